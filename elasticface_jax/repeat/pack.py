# SPDX-License-Identifier: Apache-2.0
"""Packs: one small file with what a stranger needs to repeat a run.

It is JSON under gzip, at most `MAX_BYTES` of it, without code or pickles, and
is checked as something that anybody may have written: paths in it are not used,
and what is printed of it has no control characters.
"""

import base64
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax import atomic, config_rules
from elasticface_jax.data.hashes import ImageHashes
from elasticface_jax.errors import InputError
from elasticface_jax.repeat import expected
from elasticface_jax.repeat.expected import Expected, Images
from elasticface_jax.training import records

FORM = 'elasticface_jax run 1'
MAX_BYTES = 1 << 26  # Of the JSON.
_MAX_HASHES = 1 << 16  # Of images, or of blocks of them: 256 kB.
_MAX_TEXT = 1 << 10  # Of a text that is printed.


def make(run: Expected, every: int = 0) -> dict[str, Any]:
  """Makes the content of a pack.

  Args:
    run: from `expected.read_folder`, with the fingerprints of its checkpoints.
    every: steps between the records that are taken, besides the first and the
      newest; 0 for all.

  Returns:
    Content for JSON.

  Raises:
    InputError: if the run has recorded nothing.
  """
  check_recorded(run)
  sums = run.records.sums
  ends = {min(sums, default=0), max(sums, default=0), *run.fingerprints}
  taken = {
    step: text
    for step, text in sums.items()
    if not every or step % every == 0 or step in ends
  }
  return {
    'form': FORM,
    'config': config_rules.nest(run.config),
    'starts': run.starts,
    'requirements': list(run.requirements),
    'tensors': list(run.records.tensors),
    'sums': {str(step): text for step, text in taken.items()},
    'metrics': [{'step': step, **row} for step, row in run.rows.items()],
    'fingerprints': {str(k): text for k, text in run.fingerprints.items()},
    'images': run.images and _packed(run.images),
  }


def check_recorded(run: Expected) -> None:
  """Raises an InputError if a run has recorded no step."""
  if not run.newest:
    raise InputError(
      f'{run.path} has no record of a step: neither checksums of its state nor '
      'metrics; train it to its first checkpoint'
    )


def _packed(images: Images) -> dict[str, Any]:
  block = -(-images.num_images // _MAX_HASHES)
  if images.block == 1:
    images = expected.in_blocks(
      ImageHashes(images.hashes, images.with_labels, images.num_classes), block
    )
  return {
    'num_images': images.num_images,
    'num_classes': images.num_classes,
    'block': images.block,
    'with_labels': images.with_labels,
    'hashes': base64.b64encode(images.hashes.astype('<u4').tobytes()).decode(),
  }


def write(content: Mapping[str, Any], path: Path) -> None:
  """Writes a pack; equal content makes equal bytes.

  Args:
    content: from `make`.
    path: the file.

  Raises:
    InputError: if it cannot be written.
  """
  text = json.dumps(content, sort_keys=True, separators=(',', ':'))
  with atomic.file(path) as part:
    part.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(path: Path) -> Expected:
  """Reads a pack.

  Args:
    path: the file.

  Returns:
    What it says.

  Raises:
    InputError: if it is none, is damaged, or is too large.
  """
  content = _content(path)
  try:
    return _checked(content, path)
  except InputError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise _damaged(path, f'{type(error).__name__} in its content') from error


def _content(path: Path) -> dict[str, Any]:
  try:
    with gzip.open(path, 'rb') as file:
      # A small file may hold any number of zeros.
      text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
      raise InputError(
        f'{path} holds more than {MAX_BYTES >> 20} MB: no pack is so large'
      )
    content = json.loads(text)
    if not isinstance(content, dict) or content.get('form') != FORM:
      raise ValueError(f'it is no {FORM}')
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise _damaged(path, 'no complete gzip file') from error
  except (RecursionError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise _damaged(path, f'no JSON of the form {FORM!r}') from error
  return content


def _damaged(path: Path, reason: str) -> InputError:
  return InputError(
    f'{path} is no pack of a run, or is damaged ({reason}); give a file of '
    '`elasticface repeat --pack`, or a run folder'
  )


def _checked(content: Mapping[str, Any], path: Path) -> Expected:
  """Returns the content of a pack, each part of it checked."""
  for part in ('config', 'starts', 'tensors', 'requirements'):
    _check_texts(content[part])
  tensors = tuple(content['tensors'])
  if not all(isinstance(name, str) for name in tensors):
    raise TypeError('tensors')
  sums = {
    _step(step): records.checked(text, len(tensors))
    for step, text in content['sums'].items()
  }
  fingerprints = {_step(k): text for k, text in content['fingerprints'].items()}
  if not all(re.fullmatch('[0-9a-f]{64}', x) for x in fingerprints.values()):
    raise ValueError('fingerprints')
  rows = [row | {'step': _step(row['step'])} for row in content['metrics']]
  for row in rows:
    _check_texts(row)
  found = Expected(
    str(path),
    is_pack=True,
    config=config_rules.flatten(content['config']),
    starts=expected.checked_starts(content['starts'], path),
    records=records.Records(tensors, dict(sorted(sums.items()))),
    rows=expected.rows_of(rows),
    images=content['images'] and _unpacked(content['images']),
    requirements=expected.checked_requirements(content['requirements'], path),
    fingerprints=fingerprints,
  )
  check_recorded(found)
  return found


def _check_texts(content: Any) -> None:
  """Raises a ValueError for a text that would disturb a terminal."""
  if isinstance(content, str):
    if len(content) > _MAX_TEXT or not content.isprintable():
      raise ValueError('text')
  elif isinstance(content, Mapping):
    _check_texts([*content, *content.values()])
  elif isinstance(content, list):
    for one in content:
      _check_texts(one)


def _step(step: Any) -> int:
  number = int(step)
  if not 0 <= number < 2**31 or isinstance(step, bool | float):
    raise ValueError('step')
  return number


def _unpacked(images: Mapping[str, Any]) -> Images:
  raw = base64.b64decode(images['hashes'], validate=True)
  found = Images(
    np.frombuffer(raw, '<u4').astype(np.uint32),
    *(images[k] for k in ('num_images', 'num_classes', 'block')),
    with_labels=images['with_labels'] is True,
  )
  for count in found[1:4]:
    if type(count) is not int or count < 1:
      raise ValueError('images')
  if len(found.hashes) != -(-found.num_images // found.block):
    raise ValueError('hashes')
  return found
