# SPDX-License-Identifier: Apache-2.0
"""Records of a run that a repetition is compared with, and their reading.

Nothing here imports jax: on a CPU, the number of threads that the run had must
be set before jax starts.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax import config_rules
from elasticface_jax.data.hashes import ImageHashes
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.training import installed, metrics, records

# Of a row of metrics, what is no measurement of the training.
_NOT_COMPARED = ('step', 'images_per_second')
_VERSION = re.compile(r'[\w.+!-]{1,80}', re.ASCII)


class Images(NamedTuple):
  """Hashes of the images that a run was trained on.

  Attributes:
    hashes: of blocks of neighbours, uint32.
    num_images: n.
    num_classes: C.
    block: images in a block; 1 where each has its own hash.
    with_labels: whether they are of the labels too.
  """

  hashes: np.ndarray
  num_images: int
  num_classes: int
  block: int
  with_labels: bool


class Expected(NamedTuple):
  """Facts of a run, from its folder or a pack.

  Attributes:
    path: of the folder or the file, for messages.
    is_pack: whether it is a file from elsewhere, whose paths mean nothing here.
    config: fields by dotted name.
    starts: of the manifest.
    records: of the states.
    rows: of the metrics, by step.
    images: None if they were not recorded, or are drawn.
    requirements: lines for pip; empty if they were not recorded.
    fingerprints: SHA-256 by step; those of a folder are computed when needed.
  """

  path: str
  is_pack: bool
  config: dict[str, Any]
  starts: list[dict[str, Any]]
  records: records.Records
  rows: dict[int, dict[str, float]]
  images: Images | None
  requirements: tuple[str, ...]
  fingerprints: dict[int, str]

  @property
  def newest(self) -> int:
    """The newest step of which anything is recorded."""
    return max((*self.records.sums, *self.rows), default=0)

  def started(self, steps: int) -> list[dict[str, Any]]:
    """Returns the starts that had a part in the first steps."""
    return [
      start
      for k, start in enumerate(self.starts)
      if k == 0 or start.get('step', 0) < steps
    ]


def read_folder(folder: Path) -> Expected:
  """Reads what a run folder says.

  Args:
    folder: the run folder, of a run that has ended or begun.

  Returns:
    What it says.

  Raises:
    InputError: if it is no run folder, or a file of it is damaged.
  """
  if not folder.is_dir():
    found = 'is a file' if folder.exists() else 'no such folder'
    raise InputError(
      f'{folder}: {found}; give a run folder, or a file of `repeat --pack`'
    )
  if (folder / 'study.json').exists():
    raise InputError(
      f'{folder} holds a study; give one of its runs: {folder}/NAME/seed_K'
    )
  manifest = _needed(folder, 'manifest.json')
  if 'converted' in manifest:
    raise InputError(
      f'{folder} holds converted weights and no run; give a run folder'
    )
  config = config_rules.saved(_needed(folder, 'config.json'))
  kept = ImageHashes.read(folder)
  requirements = folder / installed.REQUIREMENTS
  lines = requirements.read_text() if requirements.exists() else ''
  return Expected(
    str(folder),
    is_pack=False,
    config=config,
    starts=checked_starts(manifest.get('starts'), folder / 'manifest.json'),
    records=_with_checkpoints(folder, records.read(folder)),
    rows=rows_of(metrics.read(folder)),
    images=kept and in_blocks(kept, 1),
    requirements=checked_requirements(lines.splitlines(), requirements),
    fingerprints={},
  )


def _needed(folder: Path, name: str) -> dict[str, Any]:
  path = folder / name
  if not path.exists():
    raise InputError(
      f'{folder} holds no {name}: give a run folder that `train` has begun, or '
      'a file of `repeat --pack`'
    )
  # Not by `training.checkpoint`, which imports jax.
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise InputError(
      f'{path} is not JSON ({first_line(error)}); was it edited? Restore it'
    ) from error
  if not isinstance(content, dict):
    raise InputError(f'{path} is not what a run wrote; restore it')
  return content


def checked_starts(starts: Any, path: Any) -> list[dict[str, Any]]:
  """Returns the starts of a manifest, each with all that is compared.

  Raises:
    InputError: if they are not as a run writes them.
  """
  kinds = {
    'versions': dict,
    'platform': str,
    'device_kind': str,
    'settings': dict,
    'data_fingerprint': str,
  }
  if (
    not isinstance(starts, list)
    or not starts
    or not all(
      isinstance(start, dict)
      and all(isinstance(start.get(k), kind) for k, kind in kinds.items())
      and isinstance(start.get('step', 0), int)
      and all(isinstance(x, str) for x in start['settings'].values())
      and all(
        isinstance(x, str) and _VERSION.fullmatch(x)
        for x in start['versions'].values()
      )
      and isinstance(start.get('start_fingerprint'), str | None)
      and re.fullmatch(r'[1-9]\d{0,3}', start.get('cpu_threads') or '1')
      for start in starts
    )
  ):
    raise InputError(
      f'{path} has no list of starts as a run writes it; was it edited? '
      'Restore it'
    )
  return starts


def checked_requirements(lines: Sequence[str], path: Any) -> tuple[str, ...]:
  """Returns lines for pip that hold names and versions, and nothing else.

  Raises:
    InputError: names the first other line, such as an option of pip.
  """
  for line in lines:
    name, _, version = line.partition('==')
    if not (_VERSION.fullmatch(name) and _VERSION.fullmatch(version)):
      raise InputError(f'{path}: {line[:80]!r} is not name==version')
  return tuple(lines)


def rows_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
  """Returns the measurements of training by step, without evaluations.

  Examples:
    >>> rows_of([{'step': 2, 'loss': 1.5, 'images_per_second': 9.0},
    ...          {'step': 2, 'pairs': 'lfw', 'accuracy': 0.5}])
    {2: {'loss': 1.5}}
  """
  return {
    row['step']: {
      name: value
      for name, value in row.items()
      if name not in _NOT_COMPARED and isinstance(value, int | float)
    }
    for row in rows
    if 'pairs' not in row
  }


def _with_checkpoints(folder: Path, found: records.Records) -> records.Records:
  """Adds the checksums that checkpoints hold, for runs of older versions."""
  tensors, sums = found.tensors, dict(found.sums)
  for path in sorted(folder.glob('checkpoints/*/_CHECKPOINT_METADATA')):
    step = path.parent.name
    if not step.isdigit() or int(step) in sums:
      continue
    try:
      kept = json.loads(path.read_text())['custom_metadata']['checksums']
      folded = records.fold(kept)
    except (AttributeError, KeyError, TypeError, ValueError):
      continue  # Without checksums; damage is told by whoever restores it.
    tensors = tensors or tuple(folded)
    if set(folded) == set(tensors):
      sums[int(step)] = ''.join(folded[name] for name in tensors)
  return records.Records(tensors, dict(sorted(sums.items())))


def in_blocks(images: ImageHashes, block: int) -> Images:
  """Returns one hash for each block of neighbours, the last may be shorter.

  Args:
    images: hashes of all images.
    block: images in a block; with 1, each keeps its own hash.
  """
  hashes = images.hashes
  if block > 1:
    hashes = np.array(
      [
        int.from_bytes(
          hashlib.blake2b(
            hashes[i : i + block].tobytes(), digest_size=4
          ).digest(),
          'little',
        )
        for i in range(0, len(hashes), block)
      ],
      np.uint32,
    )
  return Images(
    hashes, len(images.hashes), images.num_classes, block, images.with_labels
  )
