# SPDX-License-Identifier: Apache-2.0
"""What is in a ``.rec`` folder or a ``.bin``, checked record by record."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from elasticface_jax.data import decode
from elasticface_jax.data.pairs import read_encoded
from elasticface_jax.data.rec_source import (
  RecSource,
  open_rec,
  valid_labels,
)
from elasticface_jax.data.recordio import RecordError, RecordFile
from elasticface_jax.errors import InputError

_CHUNK = 256  # Images decoded in one call.
_MAX_SHOWN = 20  # Problems printed; all are counted.


@dataclasses.dataclass(frozen=True)
class Report:
  """What an inspection found.

  Attributes:
    title: what was inspected.
    facts: name and value, in the order of printing.
    problems: the first of them, one line each.
    num_problems: how many there are in all; 0 if all is well.
  """

  title: str
  facts: dict[str, str]
  problems: list[str]
  num_problems: int

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return self.num_problems == 0

  def __str__(self):
    width = max(map(len, self.facts))
    lines = [self.title]
    lines += [f'  {name:{width}}  {text}' for name, text in self.facts.items()]
    lines += [f'  bad: {problem}' for problem in self.problems]
    if self.num_problems > len(self.problems):
      lines.append(f'  bad: ... {self.num_problems - len(self.problems)} more')
    lines.append('ok' if self.ok else f'BAD: {self.num_problems} problem(s)')
    return '\n'.join(lines)


def inspect_rec(
  folder: str | os.PathLike,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
  """Reads and decodes every record of a ``.rec`` folder, in file order.

  Args:
    folder: holds ``train.rec`` and ``train.idx``; `property` may be missing,
      which is a problem that the report names.
    progress: called now and then with the number of records done and of all.

  Returns:
    The report. It does not stop at the first problem.

  Raises:
    InputError: if there is nothing to inspect: no folder, ``train.rec`` or
      ``train.idx``, or an index that is none.
  """
  folder = Path(folder)
  walk = _Walk(*open_rec(folder))
  for done in range(0, len(walk.keys), _CHUNK):
    progress(done, len(walk.keys))
    walk.read(range(done, min(done + _CHUNK, len(walk.keys))))
  progress(len(walk.keys), len(walk.keys))
  facts = _opened(folder, walk) | walk.facts()
  return Report(str(folder), facts, walk.problems, walk.num_problems)


def inspect_pairs(path: str | os.PathLike) -> Report:
  """Decodes every image of a ``.bin``.

  Args:
    path: the file.

  Returns:
    The report.

  Raises:
    InputError: if the file is no pair set at all.
  """
  path = Path(path)
  encoded, same = read_encoded(path)
  sizes, problems = collections.Counter(), []
  for row, one in enumerate(encoded):
    try:
      height, width, _ = decode.decode_image(one).shape
      sizes[f'{width}x{height}'] += 1
    except decode.BadImage as error:
      problems.append(f'image {row} (pair {row // 2}): {error.problem}')
  sha = hashlib.sha256(same.tobytes())
  for one in encoded:
    sha.update(one)
  facts = {
    'pairs': f'{len(same)}: {same.sum()} same, {(~same).sum()} different',
    'images': f'{len(encoded)}',
    'sizes': _counts(sizes),
    'contents': sha.hexdigest(),
  }
  return Report(str(path), facts, problems[:_MAX_SHOWN], len(problems))


def _opened(folder: Path, walk: '_Walk') -> dict[str, str]:
  """What training would see of the folder, held against the walk."""
  try:
    source = RecSource(folder)
  except InputError as error:
    walk.bad(str(error))
    return {'layout': 'none that can be trained on'}
  walk.compare_with(source)
  return {
    'layout': source.layout,
    'classes': f'{source.num_classes}',
    'fingerprint': 'none' if walk.num_problems else source.fingerprint,
  }


class _Walk:
  """One walk over the records of an index, in the order of the file."""

  def __init__(self, file: RecordFile, keys: np.ndarray, offsets: np.ndarray):
    order = np.argsort(offsets, kind='stable')
    self.file, self.keys, self.offsets = file, keys[order], offsets[order]
    # Where the next record begins. Equal or wild offsets leave no room, and
    # reading there fails as it should.
    self.ends = np.append(self.offsets[1:], file.size)
    self.labels = np.full(len(keys), np.nan, np.float32)
    self.has_image = np.zeros(len(keys), bool)
    self.num_identities = 0
    self.num_unindexed = 0
    self.sizes = collections.Counter()
    self.sha = hashlib.sha256()
    self.problems, self.num_problems = [], 0
    if offsets.min() > 0:
      self._gap(0, self.offsets[0])

  def bad(self, problem: str):
    """Notes a problem; the first few keep their text."""
    self.num_problems += 1
    if len(self.problems) < _MAX_SHOWN:
      self.problems.append(problem)

  def read(self, rows: range):
    """Reads the records of some entries and decodes their images."""
    images = []
    for row in rows:
      start, end = int(self.offsets[row]), int(self.ends[row])
      try:
        if start < 0:
          raise RecordError(self.file.path, start, 'before the file begins')
        record, after = self.file.read(start, max(end - start, 0))
      except RecordError as error:
        self.bad(f'{self._place(row)}: {error.problem}')
        continue
      self.sha.update(record.labels.tobytes() + record.body)
      if after < end:
        self._gap(after, end)
      if record.body:
        self.has_image[row] = True
        self.labels[row] = record.labels[0]
        images.append((row, record.body))
      elif record.flag == 2:
        self.num_identities += self.keys[row] != 0
      else:
        self.bad(f'{self._place(row)}: neither an image nor two counts')
    self._decode(images)

  def compare_with(self, source: RecSource):
    """Notes where the records are not what the opened folder promises."""
    promised = np.isin(self.keys, source.keys)
    for row in np.flatnonzero(promised & ~self.has_image):
      self.bad(f'{self._place(row)}: there should be an image')
    for row in np.flatnonzero(self.has_image & ~promised):
      self.bad(f'{self._place(row)}: an image that record 0 does not count')
    wrong = self.has_image & ~valid_labels(self.labels, source.num_classes)
    for row in np.flatnonzero(wrong):
      self.bad(
        f'{self._place(row)}: label {self.labels[row]:g} is not an integer in '
        f'[0, {source.num_classes})'
      )

  def facts(self) -> dict[str, str]:
    """What was seen, by name."""
    labels = self.labels[self.has_image]
    classes, images = np.unique(labels[np.isfinite(labels)], return_counts=True)
    facts = {
      'records': f'{len(self.keys)} in the index, {self.num_unindexed} not',
      'images': f'{len(labels)}',
      'sizes': _counts(self.sizes),
      'identity records': f'{self.num_identities}',
      'classes with images': f'{len(classes)}',
    }
    if len(classes):
      facts |= {
        'labels': f'{classes[0]:.0f} to {classes[-1]:.0f}',
        'images per class': f'{images.min()} to {images.max()}, '
        f'median {np.median(images):g}',
      }
    facts['contents'] = self.sha.hexdigest()
    return facts

  def _gap(self, start: int, end: int):
    """Bytes that no entry of the index claims: other records, or garbage."""
    try:
      for offset, _ in self.file.walk(int(start)):
        if offset >= end:
          break
        self.num_unindexed += 1
    except RecordError as error:
      if error.offset < end:
        self.bad(f'byte {error.offset}: {error.problem}')

  def _decode(self, images: list[tuple[int, bytes]]):
    try:
      decode.decode_faces([encoded for _, encoded in images])
      self.sizes[f'{decode.SIZE}x{decode.SIZE}'] += len(images)
    except decode.BadImage:
      for row, encoded in images:
        self._decode_one(row, encoded)

  def _decode_one(self, row: int, encoded: bytes):
    try:
      height, width, _ = decode.decode_image(encoded).shape
    except decode.BadImage as error:
      self.bad(f'{self._place(row)}: {error.problem}')
      return
    self.sizes[f'{width}x{height}'] += 1
    if (height, width) != (decode.SIZE, decode.SIZE):
      self.bad(f'{self._place(row)}: the image is {width}x{height}')

  def _place(self, row: int) -> str:
    return f'key {self.keys[row]} at byte {self.offsets[row]}'


def _counts(sizes: collections.Counter) -> str:
  return ', '.join(f'{size}: {n}' for size, n in sizes.most_common(5)) or 'none'
