# SPDX-License-Identifier: Apache-2.0
"""The folder of a study.

``DIR/study.json``: the configs and seeds, to which later calls may add.
``DIR/NAME/seed_K``: the run folder of a config and a seed.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.studies.variants import Variant, differing
from elasticface_jax.training import run_folder
from elasticface_jax.training.checkpoint import read_json

FILE = 'study.json'
VERSION = 1
_REMEDY = (
  'Restore it, or move it away and give the command of the study again, which '
  'picks up its runs'
)


def run_path(folder: Path, config: str, seed: int) -> Path:
  """Returns the run folder of a config and a seed.

  Args:
    folder: of the study.
    config: its name.
    seed: of the run.
  """
  return folder / config / f'seed_{seed}'


def check_place(folder: Path, variants: Sequence[Variant]) -> None:
  """Checks that a folder can be that of a study.

  Args:
    folder: DIR; need not exist.
    variants: the configs.

  Raises:
    InputError: if it is a file, a run folder, in a folder of images, or cannot
      be written.
  """
  atomic.check_folder(folder, '--out')
  for name in ('config.json', 'manifest.json', 'checkpoints'):
    if (folder / name).exists():
      raise InputError(
        f'--out {folder} is a run folder (it has {name}); give a folder for '
        'the study, in which each run gets its own'
      )
  for source in {variant.fields['data.source'] for variant in variants}:
    run_folder.check_place(folder, '--out', source)


def read(folder: Path) -> dict[str, Any] | None:
  """Reads what a study is of.

  Args:
    folder: of the study.

  Returns:
    The content of ``study.json``, with the names of configs in their order;
    None if there is none.

  Raises:
    InputError: if it is damaged, or of another version.
  """
  path = folder / FILE
  if not path.exists():
    return None
  study = read_json(path, _REMEDY)
  if study.get('version') != VERSION:
    raise InputError(
      f'{path} is of version {study.get("version")!r}, and this is version '
      f'{VERSION}: use the elasticface that wrote it'
    )
  if not _is_whole(study):
    raise InputError(
      f'{path} is not what a study wrote; was it edited? {_REMEDY}'
    )
  return study


def named_as_before(
  study: Mapping[str, Any] | None, variants: Sequence[Variant]
) -> list[Variant]:
  """Gives configs the names that they have in a study.

  A name depends on what else is on the command line; a study that grows keeps
  those that it has.

  Args:
    study: from `read`.
    variants: of the command line.

  Returns:
    The variants, some with another name.
  """
  if not study:
    return list(variants)
  kept = {
    json.dumps(config['config'], sort_keys=True): name
    for name, config in study['configs'].items()
  }
  return [
    v
    if v.name in study['configs']
    else v._replace(name=kept.get(json.dumps(v.fields, sort_keys=True), v.name))
    for v in variants
  ]


def grown(
  folder: Path,
  study: Mapping[str, Any] | None,
  variants: Sequence[Variant],
  seeds: Sequence[int],
) -> dict[str, Any]:
  """Returns a study with configs and seeds added.

  Args:
    folder: of the study, for messages.
    study: from `read`.
    variants: the configs to add.
    seeds: the seeds to add.

  Raises:
    InputError: if a config has the name of another one in the study.
  """
  configs = dict(study['configs']) if study else {}
  for variant in variants:
    now = json.loads(json.dumps(variant.fields))
    if variant.name in configs:
      _check_same(folder, variant, configs[variant.name]['config'], now)
    configs[variant.name] = {
      'config': now,
      'spec': variant.spec,
      'changes': list(variant.changes),
    }
  return {
    'version': VERSION,
    'configs': configs,
    'seeds': sorted({*seeds, *(study['seeds'] if study else ())}),
    'differing': differing([config['config'] for config in configs.values()]),
  }


def join(
  folder: Path, variants: Sequence[Variant], seeds: Sequence[int]
) -> None:
  """Adds configs and seeds to a study, which is made if there is none.

  What others add at the same time stays.

  Args:
    folder: of the study.
    variants: the configs to add.
    seeds: the seeds to add.

  Raises:
    InputError: as `grown`, or if the folder cannot be written.
  """
  atomic.make_folder(folder)
  with _alone(folder):
    # Until it is there: where a disk has no locks, others may replace it.
    while (study := read(folder)) != (
      wanted := grown(folder, study, variants, seeds)
    ):
      with atomic.file(folder / FILE) as part:
        part.write_text(json.dumps(wanted, indent=2) + '\n')


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
  """Waits until no other process of this kind is in its body."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    # Some network disks have no locks.
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _is_whole(study: Mapping[str, Any]) -> bool:
  """Tells whether a study has all its parts."""
  configs = study.get('configs')
  return (
    isinstance(configs, dict)
    and len(configs) > 0
    and all(
      isinstance(one, dict)
      and isinstance(one.get('config'), dict)
      and isinstance(one.get('spec'), str)
      and _is_list(one.get('changes'), str)
      for one in configs.values()
    )
    and _is_list(study.get('seeds'), int)
    and len(study['seeds']) > 0
    and _is_list(study.get('differing'), str)
  )


def _is_list(value: Any, kind: type) -> bool:
  return isinstance(value, list) and all(type(one) is kind for one in value)


def _check_same(
  folder: Path,
  variant: Variant,
  before: Mapping[str, Any],
  now: Mapping[str, Any],
) -> None:
  """Raises an InputError that names the fields in which two configs differ."""
  changed = [
    field
    for field in sorted(before.keys() | now.keys())
    if run_folder.differs(field, before.get(field), now.get(field))
  ]
  if changed:
    words = [
      f'{field} was {before.get(field)!r}, is {now.get(field)!r}'
      for field in changed
    ]
    raise InputError(
      f'{folder / FILE} has another {variant.name}: {"; ".join(words)}: use '
      f'that config, vary {changed[0]} by --vary, or give another --out'
    )
