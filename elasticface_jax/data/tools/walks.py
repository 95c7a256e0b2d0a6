# SPDX-License-Identifier: Apache-2.0
"""Walks over the entries of a data set, and the findings about each entry.

An entry is a record of a ``.rec`` file, or an image of a folder or of shards.
"""

import collections
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from elasticface_jax.data.sources import decode
from elasticface_jax.data.sources.encoded import BadFace, EncodedSource
from elasticface_jax.data.sources.rec import RecSource
from elasticface_jax.data.sources.recordio import (
  RecordError,
  RecordFile,
  read_index,
)
from elasticface_jax.data.tools.report import MAX_LINES
from elasticface_jax.errors import InputError

_FACE = (decode.SIZE, decode.SIZE)


class Findings(NamedTuple):
  """Findings about k consecutive entries.

  Attributes:
    is_image: True where there are bytes of an image, bool, ``[k]``.
    is_intact: True where they decode to 112x112, bool, ``[k]``.
    labels: float64, NaN where there is none, ``[k]``.
    digests: of the bytes, uint8, ``[k, 16]``.
    sizes: number of images of each size.
    problems: one line each.
    num_identities: number of identity records.
    num_unindexed: number of intact records after them that no index names.
  """

  is_image: np.ndarray
  is_intact: np.ndarray
  labels: np.ndarray
  digests: np.ndarray
  sizes: collections.Counter
  problems: list[str]
  num_identities: int = 0
  num_unindexed: int = 0


class AllFindings:
  """Findings about all entries, in arrays like those of `Findings`.

  Args:
    total: number of entries.
  """

  def __init__(self, total: int):
    self.is_image = np.zeros(total, bool)
    self.is_intact = np.zeros(total, bool)
    self.labels = np.full(total, np.nan)
    self.digests = np.zeros((total, 16), np.uint8)
    self.sizes = collections.Counter()
    self.num_identities = self.num_unindexed = 0
    self.problems, self.num_problems = [], 0

  def bad(self, problem: str):
    """Counts a problem; the first few keep their text."""
    self.num_problems += 1
    if len(self.problems) < MAX_LINES:
      self.problems.append(problem)

  def add(self, start: int, found: Findings):
    """Adds the findings about the entries from `start` on."""
    places = slice(start, start + len(found.labels))
    self.is_image[places] = found.is_image
    self.is_intact[places] = found.is_intact
    self.labels[places] = found.labels
    self.digests[places] = found.digests
    self.sizes += found.sizes
    self.num_identities += found.num_identities
    self.num_unindexed += found.num_unindexed
    for problem in found.problems:
      self.bad(problem)

  def contents(self, images: np.ndarray) -> str:
    """Returns SHA-256 over labels and images in order; independent of files."""
    sha = hashlib.sha256()
    for start in range(0, len(images), 1 << 16):
      entries = images[start : start + (1 << 16)]
      sha.update(self.labels[entries].astype('<f8').tobytes())
      sha.update(self.digests[entries].tobytes())
    return sha.hexdigest()


class Walk(Protocol):
  """Entries one after the other, in the order that reads them fastest.

  Attributes:
    title: path of the data set.
    total: number of entries.
    order: entries in canonical order, int64.
  """

  title: str
  total: int
  order: np.ndarray

  def examine(self, start: int, stop: int) -> Findings:
    """Reads and decodes some entries; called from several threads."""

  def place(self, entry: int) -> str:
    """Names the place of an entry, for a message."""

  def encoded(self, entries: np.ndarray) -> list[bytes]:
    """Reads the bytes of some entries that are images."""

  def compare(self, seen: AllFindings) -> EncodedSource | None:
    """Opens the data as training does; adds differences to the problems."""

  def facts(self, seen: AllFindings) -> dict[str, str]:
    """Returns the facts that only this kind of data set has."""


class RecordWalk:
  """Walk over the records of a ``.rec`` folder in the order of the file.

  Args:
    folder: holds ``train.rec`` and ``train.idx``.
  """

  def __init__(self, folder: Path):
    self.folder, self.title = folder, str(folder)
    self.file = RecordFile(folder / 'train.rec')
    keys, offsets = read_index(folder / 'train.idx')
    by_offset = np.argsort(offsets, kind='stable')
    self.keys, self.offsets = keys[by_offset], offsets[by_offset]
    self.order = np.argsort(self.keys, kind='stable')
    self.total = len(keys)

  def examine(self, start: int, stop: int) -> Findings:
    """Implements `Walk`."""
    images, encoded, labels, problems = [], [], [], []
    num_identities = num_unindexed = 0
    if start == 0 and self.offsets[0] > 0:
      num_unindexed += self._gap(0, int(self.offsets[0]), problems)
    for entry in range(start, stop):
      at, end = int(self.offsets[entry]), self._end(entry)
      try:
        record, after = self._record(at, end)
      except RecordError as error:
        problems.append(f'{self.place(entry)}: {error.problem}')
        continue
      if after < end:
        num_unindexed += self._gap(after, end, problems)
      if record.body:
        images.append(entry)
        encoded.append(record.body)
        labels.append(record.labels[0])
      elif record.flag == 2:
        num_identities += self.keys[entry] != 0
      else:
        problems.append(f'{self.place(entry)}: neither an image nor two counts')
    found = _examine(start, stop, images, encoded, labels, self.place)
    return found._replace(
      problems=problems + found.problems,
      num_identities=num_identities,
      num_unindexed=num_unindexed,
    )

  def place(self, entry: int) -> str:
    """Implements `Walk`."""
    return f'key {self.keys[entry]} at byte {self.offsets[entry]}'

  def encoded(self, entries: np.ndarray) -> list[bytes]:
    """Implements `Walk`."""
    return [
      self._record(int(self.offsets[entry]), self._end(entry))[0].body
      for entry in entries
    ]

  def compare(self, seen: AllFindings) -> RecSource | None:
    """Implements `Walk`."""
    try:
      source = RecSource(self.folder)
    except InputError as error:
      seen.bad(str(error))
      return None
    promised = np.isin(self.keys, source.keys)
    for entry in np.flatnonzero(promised & ~seen.is_image):
      seen.bad(f'{self.place(entry)}: there should be an image')
    for entry in np.flatnonzero(seen.is_image & ~promised):
      seen.bad(f'{self.place(entry)}: an image that record 0 does not count')
    return source

  def facts(self, seen: AllFindings) -> dict[str, str]:
    """Implements `Walk`."""
    return {
      'records': f'{self.total:,} in the index, {seen.num_unindexed:,} not',
      'identity records': f'{seen.num_identities:,}',
    }

  def _end(self, entry: int) -> int:
    """Returns the byte at which the next record begins or the file ends."""
    return int(
      self.offsets[entry + 1] if entry + 1 < self.total else self.file.size
    )

  def _record(self, at: int, end: int):
    # Equal or wild offsets leave no room, and reading there fails as it should.
    if at < 0:
      raise RecordError(self.file.path, at, 'before the file begins')
    return self.file.read_record(at, max(end - at, 0))

  def _gap(self, start: int, end: int, problems: list[str]) -> int:
    """Counts records in bytes that no index entry claims; reports garbage."""
    num_records = 0
    try:
      for offset, _ in self.file.walk(start):
        if offset >= end:
          break
        num_records += 1
    except RecordError as error:
      if error.offset < end:
        problems.append(f'byte {error.offset}: {error.problem}')
    return num_records


class ImageWalk:
  """Walk over the images of a folder or of shards, in canonical order.

  Args:
    source: the images.
  """

  def __init__(self, source: EncodedSource):
    self.source, self.title = source, source.path
    self.total = source.num_images
    self.order = np.arange(self.total)

  def examine(self, start: int, stop: int) -> Findings:
    """Implements `Walk`."""
    images, encoded, labels, problems = [], [], [], []
    for entry in range(start, stop):
      try:
        (one,), (label,) = self.source.read(np.array([entry]))
      except BadFace as error:
        problems.append(f'{self.place(entry)}: {error.problem}')
        continue
      images.append(entry)
      encoded.append(one)
      labels.append(label)
    found = _examine(start, stop, images, encoded, labels, self.place)
    return found._replace(problems=problems + found.problems)

  def place(self, entry: int) -> str:
    """Implements `Walk`."""
    return self.source.place(entry)

  def encoded(self, entries: np.ndarray) -> list[bytes]:
    """Implements `Walk`."""
    return self.source.read(entries)[0]

  def compare(self, seen: AllFindings) -> EncodedSource:
    """Implements `Walk`."""
    return self.source

  def facts(self, seen: AllFindings) -> dict[str, str]:
    """Implements `Walk`."""
    return {}


def decode_sizes(encoded: Sequence[bytes]) -> list[tuple[int, int] | str]:
  """Decodes images; returns (height, width) or the problem of each."""
  try:
    decode.decode_faces(encoded)
    return [_FACE] * len(encoded)
  except decode.BadImage:
    return [_decode_size(one) for one in encoded]


def size_text(size: tuple[int, int]) -> str:
  """Returns (height, width) as ``widthxheight``."""
  return f'{size[1]}x{size[0]}'


def _decode_size(encoded: bytes) -> tuple[int, int] | str:
  try:
    return decode.decode_image(encoded).shape[:2]
  except decode.BadImage as error:
    return error.problem


def _examine(
  start: int,
  stop: int,
  images: Sequence[int],
  encoded: Sequence[bytes],
  labels: Sequence[float],
  place: Callable[[int], str],
) -> Findings:
  """Decodes images and returns the findings about the entries around them.

  Args:
    start: the first entry.
    stop: the entry after the last one.
    images: the entries among them that are images, ``[m]``.
    encoded: their bytes, ``[m]``.
    labels: their labels, ``[m]``.
    place: names the place of an entry.

  Returns:
    Findings about ``stop - start`` entries.
  """
  k = stop - start
  found = Findings(
    np.zeros(k, bool),
    np.zeros(k, bool),
    np.full(k, np.nan),
    np.zeros((k, 16), np.uint8),
    collections.Counter(),
    [],
  )
  slots = [entry - start for entry in images]
  found.is_image[slots] = True
  found.labels[slots] = labels
  for slot, one, size in zip(
    slots, encoded, decode_sizes(encoded), strict=True
  ):
    digest = hashlib.blake2b(one, digest_size=16).digest()
    found.digests[slot] = np.frombuffer(digest, np.uint8)
    if isinstance(size, str):
      found.problems.append(f'{place(start + slot)}: {size}')
      continue
    found.sizes[size_text(size)] += 1
    if size == _FACE:
      found.is_intact[slot] = True
    else:
      found.problems.append(
        f'{place(start + slot)}: the image is {size_text(size)}'
      )
  return found
