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
from elasticface_jax.data.sources.decode import BadFace
from elasticface_jax.data.sources.encoded import (
  EncodedSource,
  counted,
  valid_labels,
)
from elasticface_jax.data.sources.rec import RecSource, read_property
from elasticface_jax.data.sources.recordio import (
  RecordError,
  RecordFile,
  read_index,
)
from elasticface_jax.data.sources.shards import INFO, ShardSource
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
    num_turned: number of images that EXIF's orientation turns.
    num_mended: number of images with damage outside of their pixels.
  """

  is_image: np.ndarray
  is_intact: np.ndarray
  labels: np.ndarray
  digests: np.ndarray
  sizes: collections.Counter
  problems: list[str]
  num_identities: int = 0
  num_unindexed: int = 0
  num_turned: int = 0
  num_mended: int = 0


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
    self.num_turned = self.num_mended = 0
    self.problems, self.num_problems = [], 0

  def bad(self, problem: str):
    """Counts a problem; the first few keep their text."""
    self.num_problems += 1
    if len(self.problems) < MAX_LINES:
      self.problems.append(problem)

  def headline(self, problem: str):
    """Counts a problem that sums up others, and puts it before them."""
    self.num_problems += 1
    self.problems = [problem, *self.problems][:MAX_LINES]

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
    self.num_turned += found.num_turned
    self.num_mended += found.num_mended
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
    stated_by: the file that states the number of classes.
    property_path: path of ``property``; None for other data sets.
  """

  title: str
  total: int
  order: np.ndarray
  stated_by: str
  property_path: Path | None

  def examine(self, start: int, stop: int) -> Findings:
    """Reads and decodes some entries; called from several threads."""

  def place(self, entry: int) -> str:
    """Names the place of an entry, for a message."""

  def class_name(self, label: int) -> str:
    """Names a class."""

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

  stated_by = '`property`'

  def __init__(self, folder: Path):
    self.folder, self.title = folder, str(folder)
    self.property_path = folder / 'property'
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

  def class_name(self, label: int) -> str:
    """Implements `Walk`."""
    return str(label)

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
      if problem := self._about_property(seen, error):
        seen.headline(problem)
      else:
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

  def _about_property(self, seen: AllFindings, refusal: InputError) -> str:
    """Returns what is wrong with `property`, and the line to write; or ''."""
    labels = seen.labels[seen.is_image & valid_labels(seen.labels, np.inf)]
    needed = max(seen.num_identities, int(labels.max(initial=-1)) + 1)
    try:
      read_property(self.folder, needed)
    except InputError as error:
      text = str(error)
    else:
      if '`property` says' not in str(refusal):
        return ''
      text = f'{refusal}, or write the line `{needed},112,112` into `property`'
    if not len(labels):
      return text
    found = counted(len(np.unique(labels)), 'class')
    return (
      f'{text} ({found} with images, labels {labels.min():g} to '
      f'{labels.max():g})'
    )

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
    self.property_path = None
    self.stated_by = INFO if isinstance(source, ShardSource) else source.path
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

  def class_name(self, label: int) -> str:
    """Implements `Walk`."""
    if label >= self.source.num_classes:
      return str(label)
    return self.source.class_name(label)

  def encoded(self, entries: np.ndarray) -> list[bytes]:
    """Implements `Walk`."""
    return self.source.read(entries)[0]

  def compare(self, seen: AllFindings) -> EncodedSource:
    """Implements `Walk`."""
    return self.source

  def facts(self, seen: AllFindings) -> dict[str, str]:
    """Implements `Walk`."""
    return {}


class Look(NamedTuple):
  """Findings about one image.

  Attributes:
    size: height and width; None if it does not decode.
    problem: of an image that does not decode; otherwise ''.
    turned: True if EXIF's orientation turns it.
    mended: True if it has damage outside of its pixels.
  """

  size: tuple[int, int] | None
  problem: str = ''
  turned: bool = False
  mended: bool = False


def look_at(encoded: bytes) -> Look:
  """Decodes an image and tells what is there to be said about it."""
  try:
    image = decode.decode(encoded)
  except decode.BadImage as error:
    return Look(None, error.problem)
  return Look(image.pixels.shape[:2], '', image.turned, image.mended)


def size_text(size: tuple[int, int]) -> str:
  """Returns (height, width) as ``widthxheight``."""
  return f'{size[1]}x{size[0]}'


def notes_about(num_turned: int, num_mended: int) -> list[str]:
  """Returns notes about images that are not stored as they are shown."""
  notes = []
  if num_turned:
    notes.append(
      f'{counted(num_turned, "image")} with an EXIF orientation: the pixels '
      'are turned, as OpenCV does'
    )
  if num_mended:
    notes.append(
      f'{counted(num_mended, "image")} with damage outside of the pixels '
      '(stray bytes in a JPEG, or a text of a PNG): all pixels are there'
    )
  return notes


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
  looks = [look_at(one) for one in encoded]
  for slot, one, look in zip(slots, encoded, looks, strict=True):
    digest = hashlib.blake2b(one, digest_size=16).digest()
    found.digests[slot] = np.frombuffer(digest, np.uint8)
    if look.size is None:
      found.problems.append(f'{place(start + slot)}: {look.problem}')
      continue
    found.sizes[size_text(look.size)] += 1
    if look.size == _FACE:
      found.is_intact[slot] = True
    else:
      found.problems.append(
        f'{place(start + slot)}: the image is {size_text(look.size)}'
      )
  return found._replace(
    num_turned=sum(look.turned for look in looks),
    num_mended=sum(look.mended for look in looks),
  )
