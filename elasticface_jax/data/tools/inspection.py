# SPDX-License-Identifier: Apache-2.0
"""What is in a data set or a pair set, checked image by image."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from elasticface_jax.data.pairs import read_encoded
from elasticface_jax.data.sources import decode
from elasticface_jax.data.sources.encoded import (
  BadFace,
  EncodedSource,
  valid_labels,
)
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.opening import open_encoded
from elasticface_jax.data.sources.rec import RecSource, check_rec, is_rec
from elasticface_jax.data.sources.recordio import (
  RecordError,
  RecordFile,
  read_index,
  write_rec_folder,
)
from elasticface_jax.errors import InputError

_CHUNK = 256  # Entries looked at in one go, by one thread.
_MAX_SHOWN = 20  # Problems and notes printed; all are counted.
_FACE = (decode.SIZE, decode.SIZE)

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Report:
  """What an inspection found.

  Attributes:
    title: what was inspected.
    facts: name and value, in the order of printing.
    problems: what must be mended before training; the first of them, one line
      each.
    num_problems: how many there are in all; 0 if all is well.
    notes: what is worth knowing; the first of them, one line each.
    images_per_class: int64, ``[classes with images]``; empty for pairs.
  """

  title: str
  facts: dict[str, str]
  problems: list[str]
  num_problems: int
  notes: list[str] = dataclasses.field(default_factory=list)
  images_per_class: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return self.num_problems == 0

  def as_dict(self) -> dict:
    """For JSON; ``images_per_class`` as how many classes have how many."""
    sizes, classes = np.unique(self.images_per_class, return_counts=True)
    return dataclasses.asdict(self) | {
      'ok': self.ok,
      'images_per_class': dict(
        zip(map(str, sizes), classes.tolist(), strict=True)
      ),
    }

  def __str__(self):
    width = max(map(len, self.facts))
    lines = [self.title]
    lines += [f'  {name:{width}}  {text}' for name, text in self.facts.items()]
    lines += [f'  note: {note}' for note in self.notes]
    lines += [f'  bad: {problem}' for problem in self.problems]
    if self.num_problems > len(self.problems):
      lines.append(f'  bad: ... {self.num_problems - len(self.problems)} more')
    lines.append('ok' if self.ok else f'BAD: {self.num_problems} problem(s)')
    return '\n'.join(lines)


def inspect(
  path: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Inspects a data set or a pair set, whatever the path looks like.

  Args:
    path: what `open_encoded` takes, or a file of pairs.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.

  Returns:
    The report of `inspect_rec`, `inspect_images` or `inspect_pairs`.

  Raises:
    InputError: if it is none of these, or `fix` is given for pairs.
  """
  if not is_remote(path):
    path = Path(path)
    if path.suffix in ('.rec', '.idx') and path.is_file():
      raise InputError(
        f'{path} is a file; give the folder that holds train.rec, train.idx '
        'and property'
      )
    if path.is_file():
      if fix is not None:
        raise InputError(
          f'--fix {fix}: {path} is a pair set, of which nothing can be left '
          'out; make it anew'
        )
      return inspect_pairs(path)
    if is_rec(path):
      return inspect_rec(path, progress, fix)
  return inspect_images(open_encoded(path), progress, fix)


def inspect_rec(
  folder: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Reads and decodes every record of a ``.rec`` folder, in file order.

  Args:
    folder: holds ``train.rec`` and ``train.idx``; `property` may be missing,
      which is a problem that the report names.
    progress: called now and then with the number of records done and of all.
    fix: folder for a clean copy, in the same layout; must not exist. Images
      that are bad are left out, and so are copies of an image within its class
      but for the first, and all copies of an image that stands in several
      classes. Classes keep their numbers.

  Returns:
    The report. It does not stop at the first problem.

  Raises:
    InputError: if there is nothing to inspect: no folder, ``train.rec`` or
      ``train.idx``, or an index that is none; or `fix` exists.
  """
  folder = Path(folder)
  check_rec(folder)
  return _inspect(_Records(folder), progress, fix)


def inspect_images(
  source: EncodedSource,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Reads and decodes every image of a folder of images, or of shards.

  Args:
    source: the images.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.

  Returns:
    The report.

  Raises:
    InputError: if `fix` exists.
  """
  return _inspect(_Images(source), progress, fix)


def inspect_pairs(path: str | os.PathLike) -> Report:
  """Decodes every image of a pair set, ``.bin`` or ``.npz``.

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
  for start in range(0, len(encoded), _CHUNK):
    chunk = encoded[start : start + _CHUNK]
    for row, found in enumerate(_decode(chunk), start):
      if isinstance(found, str):
        problems.append(f'image {row} (pair {row // 2}): {found}')
      else:
        sizes[_size_text(found)] += 1
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


def _inspect(walk: '_Walk', progress: Progress, fix) -> Report:
  if fix is not None:
    check_free(Path(fix))
  seen = _Seen(walk.total)
  for start, look in _looks(walk):
    progress(start, walk.total)
    seen.add(start, look)
  progress(walk.total, walk.total)
  source = walk.compare(seen)
  num_classes = source.num_classes if source else 0
  if num_classes:
    wrong = seen.is_image & ~valid_labels(seen.labels, num_classes)
    for row in np.flatnonzero(wrong):
      seen.bad(
        f'{walk.place(row)}: label {seen.labels[row]:g} is not an integer in '
        f'[0, {num_classes})'
      )
  labels = seen.labels[seen.is_image]
  classes, images_per_class = np.unique(
    labels[np.isfinite(labels)], return_counts=True
  )
  facts = {'layout': 'none that can be trained on'}
  if source:
    facts = {
      'layout': source.layout,
      'classes': f'{source.num_classes}',
      'fingerprint': source.fingerprint if not seen.num_problems else 'none',
    }
  facts |= walk.facts(seen) | {
    'images': f'{len(labels)}',
    'sizes': _counts(seen.sizes),
    'classes with images': f'{len(classes)}',
  }
  if len(classes):
    facts |= {
      'labels': f'{classes[0]:.0f} to {classes[-1]:.0f}',
      'images per class': f'{images_per_class.min()} to '
      f'{images_per_class.max()}, median {np.median(images_per_class):g}',
    }
  images = walk.order[seen.is_image[walk.order]]
  whole = images[seen.is_whole[images]]
  later, shared, notes = _copies(walk, seen, whole)
  facts['copies'] = (
    f'{later.sum()} in their own class, {shared.sum()} images in several'
  )
  facts['contents'] = seen.contents(images)
  if fix is not None:
    good = valid_labels(seen.labels[whole], num_classes or np.inf)
    kept = whole[good & ~later & ~shared]
    _write_clean(walk, seen, kept, num_classes, Path(fix))
    facts['clean copy'] = f'{len(kept)} of {len(images)} images, in {fix}'
  return Report(
    walk.title, facts, seen.problems, seen.num_problems, notes, images_per_class
  )


class _Look(NamedTuple):
  """What a look at k entries found.

  Attributes:
    is_image: whether there are bytes of an image, bool, ``[k]``.
    is_whole: whether they decode to 112x112, bool, ``[k]``.
    labels: float64, NaN where there is none, ``[k]``.
    digests: of the bytes, uint8, ``[k, 16]``.
    sizes: how many images have which size.
    problems: one line each.
    num_identities: identity records among them.
    num_unindexed: whole records after them that no index names.
  """

  is_image: np.ndarray
  is_whole: np.ndarray
  labels: np.ndarray
  digests: np.ndarray
  sizes: collections.Counter
  problems: list[str]
  num_identities: int = 0
  num_unindexed: int = 0


class _Walk(Protocol):
  """Entries, one after the other, in the order that reads them fastest.

  Attributes:
    title: what is walked over.
    total: number of entries.
    order: entries in canonical order, int64.
  """

  title: str
  total: int
  order: np.ndarray

  def look(self, start: int, stop: int) -> _Look:
    """Looks at some entries; called from several threads."""

  def place(self, row: int) -> str:
    """Where an entry is."""

  def encoded(self, rows: np.ndarray) -> list[bytes]:
    """The bytes of some entries that are images."""

  def compare(self, seen: '_Seen') -> EncodedSource | None:
    """Opens the data as training does, and notes where it is otherwise."""

  def facts(self, seen: '_Seen') -> dict[str, str]:
    """What this kind of data has beside images."""


class _Seen:
  """All looks together; arrays have a row an entry."""

  def __init__(self, total: int):
    self.is_image = np.zeros(total, bool)
    self.is_whole = np.zeros(total, bool)
    self.labels = np.full(total, np.nan)
    self.digests = np.zeros((total, 16), np.uint8)
    self.sizes = collections.Counter()
    self.num_identities = self.num_unindexed = 0
    self.problems, self.num_problems = [], 0

  def bad(self, problem: str):
    """Notes a problem; the first few keep their text."""
    self.num_problems += 1
    if len(self.problems) < _MAX_SHOWN:
      self.problems.append(problem)

  def add(self, start: int, look: _Look):
    """Adds what a look at the entries from `start` on found."""
    rows = slice(start, start + len(look.labels))
    self.is_image[rows] = look.is_image
    self.is_whole[rows] = look.is_whole
    self.labels[rows] = look.labels
    self.digests[rows] = look.digests
    self.sizes += look.sizes
    self.num_identities += look.num_identities
    self.num_unindexed += look.num_unindexed
    for problem in look.problems:
      self.bad(problem)

  def contents(self, images: np.ndarray) -> str:
    """SHA-256 over labels and images in order, whatever they lie in."""
    sha = hashlib.sha256()
    for start in range(0, len(images), 1 << 16):
      rows = images[start : start + (1 << 16)]
      sha.update(self.labels[rows].astype('<f8').tobytes())
      sha.update(self.digests[rows].tobytes())
    return sha.hexdigest()


def _looks(walk: _Walk) -> Iterator[tuple[int, _Look]]:
  """Looks at all entries with all cores, a few chunks ahead."""
  threads = os.cpu_count()
  starts = range(0, walk.total, _CHUNK)
  ahead = collections.deque()
  pool = ThreadPoolExecutor(threads)
  try:
    for start in starts:
      stop = min(start + _CHUNK, walk.total)
      ahead.append((start, pool.submit(walk.look, start, stop)))
      if len(ahead) > 2 * threads:
        first, future = ahead.popleft()
        yield first, future.result()
    for first, future in ahead:
      yield first, future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _look_at(
  k: int,
  rows: Sequence[int],
  encoded: Sequence[bytes],
  labels: Sequence[float],
  place: Callable[[int], str],
) -> _Look:
  """Decodes images; `rows` of `k` entries have one, `place` says where."""
  look = _Look(
    np.zeros(k, bool),
    np.zeros(k, bool),
    np.full(k, np.nan),
    np.zeros((k, 16), np.uint8),
    collections.Counter(),
    [],
  )
  look.is_image[rows] = True
  look.labels[rows] = labels
  for row, one, found in zip(rows, encoded, _decode(encoded), strict=True):
    digest = hashlib.blake2b(one, digest_size=16).digest()
    look.digests[row] = np.frombuffer(digest, np.uint8)
    if isinstance(found, str):
      look.problems.append(f'{place(row)}: {found}')
      continue
    size = _size_text(found)
    look.sizes[size] += 1
    if found == _FACE:
      look.is_whole[row] = True
    else:
      look.problems.append(f'{place(row)}: the image is {size}')
  return look


def _decode(encoded: Sequence[bytes]) -> list[tuple[int, int] | str]:
  """(height, width) of each image, or what is wrong with it."""
  try:
    decode.decode_faces(encoded)
    return [_FACE] * len(encoded)
  except decode.BadImage:
    return [_decode_one(one) for one in encoded]


def _decode_one(encoded: bytes) -> tuple[int, int] | str:
  try:
    return decode.decode_image(encoded).shape[:2]
  except decode.BadImage as error:
    return error.problem


def _size_text(size: tuple[int, int]) -> str:
  return f'{size[1]}x{size[0]}'


class _Records:
  """The records of a ``.rec`` folder in the order of the file: a `_Walk`."""

  def __init__(self, folder: Path):
    self.folder, self.title = folder, str(folder)
    self.file = RecordFile(folder / 'train.rec')
    keys, offsets = read_index(folder / 'train.idx')
    by_offset = np.argsort(offsets, kind='stable')
    self.keys, self.offsets = keys[by_offset], offsets[by_offset]
    self.order = np.argsort(self.keys, kind='stable')
    self.total = len(keys)

  def look(self, start, stop):
    rows, encoded, labels, problems = [], [], [], []
    num_identities = num_unindexed = 0
    if start == 0 and self.offsets[0] > 0:
      num_unindexed += self._gap(0, int(self.offsets[0]), problems)
    for row in range(start, stop):
      at, end = int(self.offsets[row]), self._end(row)
      try:
        record, after = self._record(at, end)
      except RecordError as error:
        problems.append(f'{self.place(row)}: {error.problem}')
        continue
      if after < end:
        num_unindexed += self._gap(after, end, problems)
      if record.body:
        rows.append(row - start)
        encoded.append(record.body)
        labels.append(record.labels[0])
      elif record.flag == 2:
        num_identities += self.keys[row] != 0
      else:
        problems.append(f'{self.place(row)}: neither an image nor two counts')
    look = _look_at(
      stop - start,
      rows,
      encoded,
      labels,
      lambda row: self.place(start + row),
    )
    return look._replace(
      problems=problems + look.problems,
      num_identities=num_identities,
      num_unindexed=num_unindexed,
    )

  def place(self, row):
    return f'key {self.keys[row]} at byte {self.offsets[row]}'

  def encoded(self, rows):
    return [
      self._record(int(self.offsets[row]), self._end(row))[0].body
      for row in rows
    ]

  def compare(self, seen):
    try:
      source = RecSource(self.folder)
    except InputError as error:
      seen.bad(str(error))
      return None
    promised = np.isin(self.keys, source.keys)
    for row in np.flatnonzero(promised & ~seen.is_image):
      seen.bad(f'{self.place(row)}: there should be an image')
    for row in np.flatnonzero(seen.is_image & ~promised):
      seen.bad(f'{self.place(row)}: an image that record 0 does not count')
    return source

  def facts(self, seen):
    return {
      'records': f'{self.total} in the index, {seen.num_unindexed} not',
      'identity records': f'{seen.num_identities}',
    }

  def _end(self, row: int) -> int:
    """Where the next record begins, or the file ends."""
    return int(
      self.offsets[row + 1] if row + 1 < self.total else self.file.size
    )

  def _record(self, at: int, end: int):
    # Equal or wild offsets leave no room, and reading there fails as it should.
    if at < 0:
      raise RecordError(self.file.path, at, 'before the file begins')
    return self.file.read_record(at, max(end - at, 0))

  def _gap(self, start: int, end: int, problems: list[str]) -> int:
    """Bytes that no entry of the index claims: other records, or garbage."""
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


class _Images:
  """The images of a folder or of shards in canonical order: a `_Walk`."""

  def __init__(self, source: EncodedSource):
    self.source, self.title = source, source.path
    self.total = source.num_images
    self.order = np.arange(self.total)

  def look(self, start, stop):
    rows, encoded, labels, problems = [], [], [], []
    for row in range(start, stop):
      try:
        (one,), (label,) = self.source.read(np.array([row]))
      except BadFace as error:
        problems.append(f'{self.place(row)}: {error.problem}')
        continue
      rows.append(row - start)
      encoded.append(one)
      labels.append(label)
    look = _look_at(
      stop - start, rows, encoded, labels, lambda row: self.place(start + row)
    )
    return look._replace(problems=problems + look.problems)

  def place(self, row):
    return self.source.place(row)

  def encoded(self, rows):
    return self.source.read(rows)[0]

  def compare(self, seen):
    return self.source

  def facts(self, seen):
    return {}


def _copies(
  walk: _Walk, seen: _Seen, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Finds images that are there more than once, byte for byte.

  Args:
    walk: says where they are.
    seen: digests and labels.
    images: entries that are whole images, in canonical order, ``[m]``.

  Returns:
    Which are copies of an earlier one of the same label, bool ``[m]``; which
    stand under several labels, bool ``[m]``; and a line for some of them.
  """
  later, shared = np.zeros((2, len(images)), bool)
  words = seen.digests[images].view(np.uint64)
  labels = seen.labels[images]
  # Equal images together, of these equal labels, of these in order.
  order = np.lexsort((labels, words[:, 1], words[:, 0]))
  words, labels = words[order], labels[order]
  same, same_label = np.zeros((2, len(images)), bool)
  same[1:] = (words[1:] == words[:-1]).all(axis=1)
  same_label[1:] = same[1:] & (labels[1:] == labels[:-1])
  later[order[same_label]] = True
  group = np.cumsum(~same)
  other_label = np.unique(group[same & ~same_label])
  shared[order[np.isin(group, other_label)]] = True
  notes = [
    f'{walk.place(images[order[i]])} (label {labels[i]:g}) is the image of '
    f'{walk.place(images[order[i - 1]])} (label {labels[i - 1]:g})'
    for i in np.flatnonzero(same)[:_MAX_SHOWN]
  ]
  return later, shared, notes


def check_free(out: Path):
  """Checks that nothing stands where something is to be written.

  Raises:
    InputError: if something does.
  """
  if out.exists():
    raise InputError(f'{out} exists; give another folder, or remove it')


def _write_clean(walk, seen, kept, num_classes: int, out: Path):
  """Writes the entries `kept`, by label, as a ``.rec`` folder."""
  if not len(kept):
    raise InputError(f'{walk.title}: no image is whole; nothing to write')
  kept = kept[np.argsort(seen.labels[kept], kind='stable')]
  labels = seen.labels[kept].astype(np.int64)

  def images():
    for start in range(0, len(kept), _CHUNK):
      rows = slice(start, start + _CHUNK)
      yield from zip(
        walk.encoded(kept[rows]), labels[rows].tolist(), strict=True
      )

  part = out.with_name(f'{out.name}.incomplete')
  check_free(part)
  write_rec_folder(part, images(), num_classes or int(labels.max()) + 1)
  os.rename(part, out)


def _counts(sizes: collections.Counter) -> str:
  return ', '.join(f'{size}: {n}' for size, n in sizes.most_common(5)) or 'none'
