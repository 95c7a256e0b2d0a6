# SPDX-License-Identifier: Apache-2.0
"""Config, manifest and checkpoints of a run folder W, and fingerprints.

``W/config.json``: the config of the run; another one is refused.
``W/manifest.json``: versions, device, seed and data of every start.
``W/checkpoints/<step>/``: the train state at a step, by Orbax, which writes to
a temporary name and renames at the end: a checkpoint is complete or absent.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from elasticface_jax import __version__, atomic
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.training import processes

# Arrays are written in pieces of at most so many bytes: a process that restores
# its share on another number of devices reads only the pieces that hold it.
PIECE_BYTES = 2**22

# Fields of the config that change no bit of the state: they may differ from
# start to start. `data.source` may move; its fingerprint may not change.
FREE_FIELDS = (
  'total_steps',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'keep_checkpoints',
  'eval',
  'data.source',
)


class Checkpoints:
  """The checkpoints of one run folder; use as a context manager."""

  def __init__(self, workdir: Path, *, keep: int):
    self.folder = Path(workdir).absolute() / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    # Closing waits for all processes, and one of them may be gone.
    if error is not None and jax.process_count() > 1:
      return
    # After an error, the pending write may have failed too: the error under way
    # says more than the one that waiting would raise.
    try:
      self._manager.close()
    except Exception:
      if error is None:
        raise

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Starts to write the state, once the previous write is complete."""
    self._check_space(step, state)
    pieces = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), state
    )
    arguments = ocp.args.PyTreeSave(state, save_args=pieces)
    try:
      if not self._manager.save(step, args=arguments):
        raise InputError(
          f'{self.folder} holds step {self.latest_step}, so step {step} would '
          'be lost: if another run writes to this folder, give each its own'
        )
    except Exception as error:
      raise self._failed(step, error) from error

  def wait(self) -> None:
    """Waits until everything saved is on the disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(None, error) from error

  def _check_space(self, step: int, state: Any) -> None:
    # Before the write: one that fails half-way loses no checkpoint either, but
    # Orbax's threads report it at length.
    needed = sum(
      shard.data.nbytes
      for array in jax.tree.leaves(state)
      for shard in array.addressable_shards
      if shard.replica_id == 0
    )
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      raise self._failed(
        step, OSError(f'{free:,} bytes are free, {needed:,} are needed')
      )

  def _failed(self, step: int | None, error: Exception) -> Exception:
    if isinstance(error, InputError) or not is_disk_error(error):
      return error
    what = 'a checkpoint' if step is None else f'the checkpoint of step {step}'
    kept = self.latest_step
    return InputError(
      f'{self.folder}: could not write {what} ({first_line(error)}); '
      + ('none before it' if kept is None else f'step {kept} is kept')
      + ': free some space and run the same command again'
    )

  def restore(self, like: Any) -> Any:
    """Restores the newest checkpoint, on this mesh.

    Args:
      like: pytree of the shapes, dtypes and shardings of the state, as
        `Task.abstract_state` returns it.

    Returns:
      The state.

    Raises:
      InputError: if there is a checkpoint that cannot be read.
    """
    step = self.latest_step
    arguments = ocp.args.PyTreeRestore(
      like, restore_args=ocp.checkpoint_utils.construct_restore_args(like)
    )
    try:
      return self._manager.restore(step, args=arguments)
    except Exception as error:
      raise InputError(_damaged(self.folder, step, error)) from error


def is_disk_error(error: BaseException) -> bool:
  """Tells whether an error reports a full disk or a failed write.

  TensorStore passes the system's errors on as text.
  """
  if isinstance(error, OSError):
    return True
  reports = ('No space left', 'File too large', 'Disk quota', 'Read-only file')
  return any(text in str(error) for text in reports)


def _damaged(folder: Path, step: int, error: BaseException) -> str:
  return (
    f'{folder / str(step)} cannot be read ({first_line(error)}); remove that '
    'folder to resume from the checkpoint before it'
  )


@contextlib.contextmanager
def _opened(
  workdir: str | os.PathLike, step: int | None
) -> Iterator[tuple[ocp.CheckpointManager, int]]:
  """Opens a checkpoint for reading; reports any error inside as damage."""
  folder = Path(workdir).absolute() / 'checkpoints'
  if not folder.is_dir():
    raise InputError(
      f'{workdir} holds no checkpoints; give the --workdir of a training run'
    )
  # In this process alone: Orbax's managers would wait for all of a run.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'reader_{me}',
  )
  with ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(
      create=False, multiprocessing_options=alone
    ),
    item_handlers=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
  ) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      raise InputError(
        f'{workdir} holds no complete checkpoint; train until the first one'
      )
    step = steps[-1] if step is None else step
    if step not in steps:
      raise InputError(
        f'{workdir} holds no step {step}; it holds '
        + ', '.join(str(s) for s in steps)
      )
    try:
      yield manager, step
    except InputError:
      raise
    except Exception as error:
      raise InputError(_damaged(folder, step, error)) from error


def _read_fields(manager, step, fields):
  tree = manager.item_metadata(step).tree
  for field in fields:
    if field not in tree:
      raise InputError(f'{manager.directory / str(step)} holds no {field}')
  wanted = {field: tree[field] for field in fields or tree}
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
  )
  return manager.restore(
    step,
    args=ocp.args.PyTreeRestore(
      wanted, restore_args=as_numpy, partial_restore=True
    ),
  )


def read(
  workdir: str | os.PathLike,
  step: int | None = None,
  fields: Sequence[str] = (),
) -> tuple[int, dict[str, Any]]:
  """Reads a checkpoint as NumPy arrays, without the model or its devices.

  Args:
    workdir: the run folder.
    step: of the checkpoint; None for the newest.
    fields: parts of the state to read; empty for all.

  Returns:
    The step, and the parts by name, nested dicts of NumPy arrays.

  Raises:
    InputError: if the checkpoint is not there or cannot be read.
  """
  with _opened(workdir, step) as (manager, step):
    return step, _read_fields(manager, step, fields)


def fingerprint(
  workdir: str | os.PathLike, step: int | None = None
) -> tuple[int, str]:
  """Computes SHA-256 of names, shapes, dtypes and bytes of a state's arrays.

  Reads one part of the state after another: the class centres of many million
  classes are never in memory together with their momentum.

  Args:
    workdir: the run folder.
    step: of the checkpoint; None for the newest.

  Returns:
    The step, and the hash in hexadecimal, which does not depend on the number
    of devices and hosts.

  Raises:
    InputError: if the checkpoint is not there or cannot be read.
  """
  digest = hashlib.sha256()
  with _opened(workdir, step) as (manager, step):
    for field in sorted(manager.item_metadata(step).tree):
      _digest(digest, _read_fields(manager, step, [field]))
  return step, digest.hexdigest()


def tree_fingerprint(tree: Mapping[str, Any]) -> str:
  """Computes the `fingerprint` of nested dicts of NumPy arrays in memory."""
  digest = hashlib.sha256()
  for field in sorted(tree):
    _digest(digest, {field: tree[field]})
  return digest.hexdigest()


def _digest(digest: Any, part: Mapping[str, Any]) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(part)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  for name in sorted(named):
    array = named[name]
    digest.update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))


def write_json(path: Path, content: Any) -> None:
  """Writes JSON with sorted keys, atomically."""
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  with atomic.file(path) as part:
    part.write_text(text)


def read_json(path: Path) -> Any:
  """Reads JSON that a run wrote."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise InputError(
      f'{path} is not JSON ({error}); was it edited? Restore it, or start in a '
      'new --workdir'
    ) from error


def _flat(config: Mapping, prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def _is_free(field: str) -> bool:
  return any(field == f or field.startswith(f + '.') for f in FREE_FIELDS)


def is_begun(workdir: Path) -> bool:
  """Tells whether a run folder holds a complete checkpoint to resume from."""
  steps = (workdir / 'checkpoints').glob('*')
  return any(step.name.isdigit() for step in steps)


def claim(
  workdir: Path,
  config: Mapping,
  data_fingerprint: str,
  start_fingerprint: str | None = None,
) -> None:
  """Binds a run folder to a config, or checks that it belongs to it.

  Args:
    workdir: W; created if it does not exist.
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
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'--workdir {workdir}: cannot make this folder ({error.strerror}); give '
      'one that can be written'
    ) from error
  path = workdir / 'config.json'
  manifest_path = workdir / 'manifest.json'
  starts = []
  if manifest_path.exists():
    manifest = read_json(manifest_path)
    if 'converted' in manifest:
      raise InputError(
        f'{workdir} holds converted weights and no run; give a new --workdir, '
        f'and --config.start.checkpoint={workdir} to begin with them'
      )
    starts = manifest['starts']
  if path.exists():
    _check_config(workdir, _flat(read_json(path)), _flat(config))
  if starts:
    _check_origin(workdir, starts[0], data_fingerprint, start_fingerprint)
  starts.append(
    {
      'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
      'seed': config['seed'],
      'data_fingerprint': data_fingerprint,
      'start_fingerprint': start_fingerprint,
      **here,
    }
  )
  if processes.is_first():
    write_json(manifest_path, {'starts': starts})
    write_json(path, config)


def _check_config(workdir: Path, before: Mapping, now: Mapping) -> None:
  """Raises an InputError that names the fields in which configs differ."""
  differing = [
    f'{field} was {before.get(field)!r}, is {now.get(field)!r}'
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field) and not _is_free(field)
  ]
  if differing:
    raise InputError(
      f'{workdir} belongs to another config: {"; ".join(differing)}; use '
      'that config, or a new --workdir'
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


def environment() -> dict[str, Any]:
  """Returns what the bits of a run depend on besides config and data."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  device = jax.devices()[0]
  return {
    'versions': {
      'elasticface_jax': __version__,
      'python': platform.python_version(),
    }
    | {name: metadata.version(name) for name in packages},
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    # On a CPU the number of threads decides how sums are split.
    'cpu_threads': os.environ.get('PJRT_NPROC'),
  }
