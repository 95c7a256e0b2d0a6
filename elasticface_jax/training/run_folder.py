# SPDX-License-Identifier: Apache-2.0
"""Config and manifest of a run folder W.

``W/config.json``: the config of the run; another one is refused.
``W/manifest.json``: versions, device, settings, seed and data of every start.
``W/requirements.txt``: all installed packages that the first start used.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from elasticface_jax import __version__, atomic, config_rules, runtime
from elasticface_jax.errors import InputError
from elasticface_jax.training import installed, processes
from elasticface_jax.training.checkpoint import (
  read_json,
  steps_in,
  write_json,
)

# Fields of the config that change no bit of the state: they may differ from
# start to start. `data.source` and `start.checkpoint` may move; the fingerprint
# of what they hold may not change.
FREE_FIELDS = (
  'total_steps',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'checkpoint_checksums',
  'fingerprint_every',
  'keep_checkpoints',
  'eval',
  'data.source',
  'start.checkpoint',
)


def _flat(config: Mapping, prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def differs(field: str, before: Any, now: Any) -> bool:
  """Tells whether a field has another value that would move bits.

  Args:
    field: dotted name.
    before: its value in the config of a run folder.
    now: its value in another config.
  """
  if field == 'start.checkpoint':
    return bool(before) != bool(now)
  return before != now and not is_free(field)


def is_free(field: str) -> bool:
  """Tells whether a field, by its dotted name, changes no bit of the state.

  Examples:
    >>> is_free('log_every'), is_free('eval.pairs'), is_free('optim.lr')
    (True, True, False)
  """
  return any(field == f or field.startswith(f + '.') for f in FREE_FIELDS)


def completed(
  config: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the config of a run, with fields that its version lacked.

  Args:
    config: fields by dotted name.
    base: likewise, every field of this version.

  Examples:
    >>> done = completed({'seed': 3}, {'seed': 0, 'lr': 2, 'log_every': 50})
    >>> done['seed'], done['log_every'], done['model.block'], 'lr' in done
    (3, 50, 'insightface', False)
  """
  free = {field: value for field, value in base.items() if is_free(field)}
  return free | config_rules.ADDED | dict(config)


def is_begun(workdir: Path) -> bool:
  """Tells whether a run folder holds a checkpoint to resume from."""
  return bool(steps_in(workdir / 'checkpoints'))


def needs_initial_weights(workdir: Path, checkpoint: str) -> bool:
  """Tells whether the weights that a run begins with must be opened.

  Args:
    workdir: W.
    checkpoint: the config's ``start.checkpoint``.

  Returns:
    True for a new run that names weights. A run that has begun needs them no
    more, but if they are said to be elsewhere and something is there, `claim`
    has to compare it.
  """
  if not checkpoint:
    return False
  path = workdir / 'config.json'
  if not is_begun(workdir) or not path.exists():
    return True
  before = _flat(read_json(path))
  moved = before.get('start.checkpoint') != checkpoint
  return moved and Path(checkpoint).exists()


def claim(
  workdir: Path,
  config: Mapping,
  data_fingerprint: str,
  start_fingerprint: str | None = None,
) -> None:
  """Binds a run folder to a config, or checks that it belongs to it.

  Args:
    workdir: W, held by `run_lock`.
    config: nested, JSON-like.
    data_fingerprint: of the training data.
    start_fingerprint: of the weights that the run begins with; None if it draws
      its own, or has begun already.

  Raises:
    InputError: names the fields in which the folder's config differs, or the
      processes that were given another config, other data or other weights.
  """
  here = environment()
  processes.check_agreement(
    **{
      'the config': json.dumps(_flat(config), sort_keys=True),
      'data.source': data_fingerprint,
      'start.checkpoint': start_fingerprint or '',
      '--workdir': str(workdir),
      'the software': json.dumps(here['versions']),
      'the environment (XLA_FLAGS and the like)': json.dumps(here['settings']),
      # Trip counts follow from config and devices, and loops with collectives
      # need equal ones everywhere. On a CPU the number of threads changes bits.
      'the kind or number of devices, or PJRT_NPROC,': json.dumps(
        [
          jax.local_devices()[0].device_kind,
          here['devices'],
          here['cpu_threads'],
        ]
      ),
    }
  )
  path = workdir / 'config.json'
  manifest_path = workdir / 'manifest.json'
  starts = _read_starts(workdir, manifest_path)
  # Without a checkpoint there is nothing that another config could spoil.
  if not is_begun(workdir):
    starts = []
  else:
    for needed in (path, manifest_path):
      if not needed.exists():
        raise InputError(
          f'{workdir} holds checkpoints but no {needed.name}, which says what '
          'they are of: restore it, or give a new --workdir'
        )
    check_config(workdir, config)
  if starts:
    _check_origin(workdir, starts[0], data_fingerprint, start_fingerprint)
    _warn_of_change(workdir, starts[-1], here)
  # A run that has ended starts nothing.
  done = max(steps_in(workdir / 'checkpoints'), default=-1)
  if done < config['total_steps']:
    starts.append(
      {
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'step': max(done, 0),
        'seed': config['seed'],
        'data_fingerprint': data_fingerprint,
        'start_fingerprint': start_fingerprint,
        **here,
      }
    )
  if processes.is_first():
    write_json(manifest_path, {'starts': starts})
    write_json(path, config)
    if not is_begun(workdir):
      lines = installed.lock(here['platform'])
      with atomic.file(workdir / installed.REQUIREMENTS) as part:
        part.write_text('\n'.join([*lines, '']))


def identity(config: Mapping, data_fingerprint: str) -> str:
  """Returns a hash of all that a run may not change, for its checkpoints.

  Fields of `config_rules.ADDED` that have those values are left out, so that
  it is the hash in the checkpoints of older versions.

  Args:
    config: nested.
    data_fingerprint: of the training data.
  """
  fixed = {
    field: bool(value) if field == 'start.checkpoint' else value
    for field, value in _flat(config).items()
    if (field == 'start.checkpoint' or not is_free(field))
    and config_rules.ADDED.get(field) != value
  }
  text = json.dumps([fixed, data_fingerprint], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_place(folder: Path, argument: str, source: str) -> None:
  """Checks that nothing would be written into a folder of images.

  Args:
    folder: where to write; need not exist.
    argument: the command's name for it, for the message.
    source: the config's ``data.source``.

  Raises:
    InputError: if the folder is inside of the source.
  """
  images = Path(source).resolve()
  if images.is_dir() and images in (path := folder.resolve(), *path.parents):
    raise InputError(
      f'{argument} {folder} is inside data.source={source}, where its folders '
      'would be taken for people; give a folder outside of it'
    )


def _read_starts(workdir: Path, path: Path) -> list[dict[str, Any]]:
  """Reads the starts of a run from its manifest; none if it is new."""
  if not path.exists():
    return []
  manifest = read_json(path)
  if 'converted' in manifest:
    raise InputError(
      f'{workdir} holds converted weights and no run; give a new --workdir, '
      f'and --config.start.checkpoint={workdir} to begin with them'
    )
  needed = {'data_fingerprint', 'start_fingerprint'}
  starts = manifest['starts'] if 'starts' in manifest else None
  if not isinstance(starts, list) or not all(
    isinstance(start, dict) and needed <= start.keys() for start in starts
  ):
    raise InputError(
      f'{path} has no list of starts as a run writes it; was it edited? '
      'Restore it, or start in a new --workdir'
    )
  return starts


def check_config(workdir: Path, config: Mapping) -> None:
  """Compares a config with that of a run folder.

  Args:
    workdir: W, with a ``config.json``.
    config: nested, JSON-like.

  Raises:
    InputError: names the fields in which they differ, but for free ones.
  """
  before, now = (
    config_rules.ADDED | _flat(c)
    for c in (read_json(workdir / 'config.json'), config)
  )
  differing = {
    field: f'{field} was {before.get(field)!r}, is {now.get(field)!r}'
    for field in sorted(before.keys() | now.keys())
    if differs(field, before.get(field), now.get(field))
  }
  if differing:
    remedy = 'use that config, or a new --workdir'
    if all(field.startswith('optim.') for field in differing):
      # Often asked for: a run that goes on at another rate is another run.
      remedy += (
        f' with --config.start.checkpoint={workdir} to begin with the weights '
        'of this one'
      )
    raise InputError(
      f'{workdir} belongs to another config: {"; ".join(differing.values())}; '
      f'{remedy}'
    )


def _check_origin(
  workdir: Path,
  first_start: Mapping,
  data_fingerprint: str,
  start_fingerprint: str | None,
) -> None:
  """Raises an InputError if a run began with other data or weights."""
  first = first_start['data_fingerprint']
  if first != data_fingerprint:
    raise InputError(
      f'{workdir} was trained on other data: its fingerprint was {first}, '
      f'that of data.source is {data_fingerprint}; give the data it was '
      'trained on, or a new --workdir'
    )
  first = first_start['start_fingerprint']
  if start_fingerprint not in (None, first):
    raise InputError(
      f'{workdir} began with other weights: their fingerprint was {first}, '
      f'that of start.checkpoint is {start_fingerprint}; give a new --workdir'
    )


def _warn_of_change(workdir: Path, before: Mapping, here: Mapping) -> None:
  """Prints a warning if what the bits depend on changed since the last start.

  It is no error: a run must survive an update, and a move to other hardware.
  """
  names = ('versions', 'platform', 'device_kind', 'cpu_threads', 'settings')
  changes = []
  for name in names:
    if name in before and before[name] != here[name]:
      old, new = before[name], here[name]
      if isinstance(new, Mapping):
        # A version records more packages than the one before it did.
        known = old if name == 'versions' else old | new
        keys = [k for k in sorted(known) if old.get(k) != new.get(k)]
        changes += [f'{k} was {old.get(k)}, is {new.get(k)}' for k in keys]
      else:
        changes.append(f'{name} was {old}, is {new}')
  if changes and processes.is_first():
    print(
      f'warning: {workdir}: {"; ".join(changes)}: the fingerprint may not be '
      'that of an uninterrupted run',
      file=sys.stderr,
    )


def environment() -> dict[str, Any]:
  """Returns what the bits of a run depend on besides config and data."""
  device = jax.devices()[0]
  return {
    'versions': {
      'elasticface_jax': __version__,
      'python': platform.python_version(),
    }
    | installed.versions(device.platform),
    'sources': installed.sources(),
    'processor': installed.processor(),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    # On a CPU the number of threads decides how sums are split.
    'cpu_threads': os.environ.get('PJRT_NPROC'),
    'settings': runtime.arithmetic_settings(device.platform),
  }
