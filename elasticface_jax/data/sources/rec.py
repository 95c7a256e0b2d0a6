# SPDX-License-Identifier: Apache-2.0
"""Source that reads an insightface training folder in place, without mxnet."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.sources import decode, index
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.recordio import (
  MAX_EXACT,
  RecordError,
  RecordFile,
  read_index,
)
from elasticface_jax.errors import InputError

_MAX_COUNT = 1 << 40
_MAX_SPAN = (1 << 32) - 1


class Layout(NamedTuple):
  """Layout of the records, from record 0.

  Attributes:
    text: description in one line.
    images: True for entries of the index that are images, bool, ``[entries]``.
    num_classes: C from the header's counts; 0 without a header.
  """

  text: str
  images: np.ndarray
  num_classes: int


class RecSource(EncodedSource):
  """Images and labels of ``train.rec``, ``train.idx`` and ``property``.

  Image i has the i-th smallest key. There are three layouts: record 0 is a
  header of two counts (MS1MV2 and related sets), record 0 is an image like the
  others, or there is no record 0. The index takes 12 bytes an image
  (`index.Kept`); labels are in the image records and are read with them.
  Opening also reads the last record of the file, which reveals a truncated file
  at once.

  Args:
    folder: path of the folder.
    cache: folder for the index, used if `folder` cannot be written; None for
      none.

  Attributes:
    keys: key of each image, ascending, int64, ``[num_images]``, or a range.

  Raises:
    InputError: if a file is missing, or the files do not agree.
  """

  def __init__(
    self, folder: str | os.PathLike, *, cache: str | os.PathLike | None = None
  ):
    folder = Path(folder)
    self.path = str(folder)
    check_rec(folder)
    self._file = RecordFile(folder / 'train.rec')
    self._kept = index.Kept(
      [folder] if cache is None else [folder, cache],
      {'form': 'rec 1'}
      | index.stamp_of(folder / 'train.rec', folder / 'train.idx'),
    )
    found = self._kept.arrays(
      index.NAME,
      lambda: _build(self._file, *read_index(folder / 'train.idx')),
    )
    header_classes = int(found['num_classes'])
    self.num_classes = read_property(folder, header_classes)
    if header_classes not in (0, self.num_classes):
      raise InputError(
        f'{folder}: `property` says {self.num_classes} classes, record 0 '
        f'of train.rec says {header_classes}; take both from the same copy'
      )
    # The cached index has the counts without separators.
    self.layout = re.sub(
      r'\d{4,}', lambda match: f'{int(match[0]):,}', str(found['layout'])
    )
    self._offsets, self._spans = found['offsets'], found['spans']
    self.num_images = len(self._offsets)
    first = int(found['first_key'])
    self.keys = found.get('keys', range(first, first + self.num_images))

  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Implements `EncodedSource.read`."""
    # Python's integers: NumPy's would double the time of the loop.
    offsets = self._offsets[indices].tolist()
    spans = self._spans[indices].tolist()
    encoded, labels = [], np.empty(len(indices))
    for i, (offset, span) in enumerate(zip(offsets, spans, strict=True)):
      try:
        record, _ = self._file.read_record(offset, span)
      except RecordError as error:
        raise self.bad(indices[i], error.problem) from error
      encoded.append(record.body)
      labels[i] = record.labels[0]
    return encoded, labels

  def place(self, index: int) -> str:
    """Implements `EncodedSource.place`."""
    return (
      f'{self._file.path}: key {self.keys[index]} at byte '
      f'{self._offsets[index]}'
    )

  def image_name(self, index: int) -> str:
    """Implements `EncodedSource.image_name`: the key."""
    return str(int(self.keys[int(index)]))


def is_rec(folder: Path) -> bool:
  """Returns True for a ``.rec`` folder, which may be incomplete."""
  return any((folder / name).exists() for name in ('train.rec', 'train.idx'))


def check_rec(folder: Path):
  """Checks that a folder holds ``train.rec`` and ``train.idx``.

  Args:
    folder: the folder.

  Raises:
    InputError: if one of them is missing.
  """
  if not folder.is_dir():
    raise InputError(f'{folder}: no such folder; it should hold train.rec')
  for name in ('train.rec', 'train.idx'):
    if not (folder / name).is_file():
      raise InputError(
        f'{folder}/{name} is missing; a .rec folder holds train.rec, train.idx '
        'and property'
      )


def read_property(folder: Path, header_classes: int) -> int:
  """Reads the number of classes from ``property``.

  Args:
    folder: the folder.
    header_classes: number of classes from record 0, for the remedy in the
      message; 0 if it is unknown.

  Returns:
    The number of classes.

  Raises:
    InputError: if the file is missing or is not ``classes,112,112``.
  """
  path = folder / 'property'
  classes = header_classes or 'CLASSES'
  remedy = f'write the line `{classes},112,112` into it'
  if not header_classes:
    remedy += f' (`elasticface inspect {folder}` counts the classes)'
  if not path.is_file():
    raise InputError(f'{path} is missing; {remedy}')
  text = path.read_text(encoding='ascii', errors='replace').strip()
  try:
    num_classes, height, width = map(int, text.split(','))
  except ValueError as error:
    raise InputError(
      f'{path}: cannot read {text[:40]!r} as classes,height,width; {remedy}'
    ) from error
  if (height, width) != (decode.SIZE, decode.SIZE) or num_classes < 1:
    raise InputError(
      f'{path}: {text[:40]!r} is not `classes,112,112`; only aligned faces of '
      '112x112 can be read'
    )
  if num_classes > MAX_EXACT:
    raise InputError(
      f'{path}: {num_classes} classes; labels of a .rec are float32, which '
      f'distinguish only {MAX_EXACT}: use a folder or shards'
    )
  return num_classes


def _build(
  file: RecordFile, keys: np.ndarray, offsets: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the arrays that `RecSource` keeps of an index."""
  spans = spans_of(file, keys, offsets)
  last = np.argmax(offsets)
  _, end = file.read_record(int(offsets[last]), int(spans[last]))
  if end < file.size:
    next(file.walk(end))  # Raises if there is no record.
    # An index may leave records out, but a truncated index looks the same:
    # record 0, which counts the others, is the last in insightface's files.
    raise InputError(
      f'{file.path}: has {file.size - end:,} bytes after the last record that '
      f'train.idx lists, key {keys[last]}; the index is cut off: copy it '
      'again, or write the images that it lists to a new folder with '
      f'`elasticface inspect {file.path.parent} --fix OUT`'
    )
  layout = _read_layout(file, keys, offsets, spans)
  kept = {
    'offsets': offsets[layout.images],
    'spans': spans[layout.images],
    'num_classes': np.array(layout.num_classes),
    'layout': np.array(layout.text),
  }
  keys = keys[layout.images]
  kept['first_key'] = keys[0]
  if keys[-1] - keys[0] >= len(keys):
    kept['keys'] = keys
  return kept


def _read_layout(file: RecordFile, keys, offsets, spans) -> Layout:
  everything = Layout(
    f'no record 0: all {len(keys)} records are images',
    np.ones(len(keys), bool),
    0,
  )
  if keys[0] != 0:
    return everything

  def read(entry):
    return file.read_record(int(offsets[entry]), int(spans[entry]))[0]

  record = read(0)
  if record.body:
    return everything._replace(
      text=f'no header: all {len(keys)} records are images'
    )
  first, end = _header_counts(file.path, record)
  if end > MAX_EXACT:
    first, end = _exact_counts(file.path, first, end, keys, read)
  images = (keys >= 1) & (keys < first)
  # Keys are distinct, so this number means that all of 1..first-1 are there.
  if images.sum() != first - 1:
    raise InputError(
      f'{file.path}: record 0 announces {first - 1} images, train.idx lists '
      f'{images.sum()} of them; take both from the same copy'
    )
  text = f'header: {first - 1} images, then {end - first} identity records'
  return Layout(text, images, end - first)


def _header_counts(path: Path, record) -> tuple[int, int]:
  """Reads record 0 where it is a header.

  Args:
    path: the file, for the message.
    record: record 0, which has no body.

  Returns:
    (a, b): images have keys 1..a-1, identity records a..b-1.

  Raises:
    InputError: if it does not hold two such counts.
  """
  first, end = record.labels.tolist() if record.flag == 2 else (0, 0)
  if not 2 <= first < end < _MAX_COUNT:
    raise InputError(
      f'{path}: record 0 is neither an image nor a header of two counts '
      f'(labels {record.labels[:4].tolist()}); take train.rec and train.idx '
      'from the same copy'
    )
  return int(first), int(end)


def _exact_counts(
  path: Path, first: int, end: int, keys: np.ndarray, read
) -> tuple[int, int]:
  """Finds counts that float32 has rounded: 42,474,558 becomes 42,474,560.

  Args:
    path: the file, for the message.
    first: rounded key of the first identity record.
    end: rounded key after the last one.
    keys: all keys, ascending from 0.
    read: reads the record of an entry.

  Returns:
    (a, b) as `_header_counts`: the key of the first record near `first` without
    a body, and the last key plus one.

  Raises:
    InputError: if the index does not agree with the rounded counts.
  """
  slack, end_slack = np.spacing(np.array([first, end], np.float32)).astype(int)
  entries = range(
    np.searchsorted(keys, first - slack),
    np.searchsorted(keys, first + slack, 'right'),
  )
  found = next((keys[i] for i in entries if not read(i).body), None)
  if found is None or abs(keys[-1] + 1 - end) > end_slack:
    raise InputError(
      f'{path}: record 0 counts to {first} and {end}, train.idx ends at key '
      f'{keys[-1]} and has no identity record near {first}; take both from '
      'the same copy'
    )
  return int(found), int(keys[-1]) + 1


def spans_of(
  file: RecordFile, keys: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
  """Computes the bytes from each record to the next, or to the file's end.

  Args:
    file: the records.
    keys: int64, ``[n]``, for messages.
    offsets: int64, ``[n]``.

  Returns:
    uint32, ``[n]``; capped, since an index may leave out most of a file.

  Raises:
    InputError: if an offset is outside the file, or two are equal.
  """
  outside = np.flatnonzero((offsets < 0) | (offsets >= file.size))
  if outside.size:
    raise InputError(
      f'{file.path}: key {keys[outside[0]]} should be at byte '
      f'{offsets[outside[0]]}, the file has {file.size} bytes; it is cut off, '
      'or train.idx belongs to another file: copy both again'
    )
  spans = np.empty(len(offsets), np.uint32)
  order = np.argsort(offsets, kind='stable')  # Fast: almost sorted.
  gaps = np.diff(offsets[order], append=file.size)
  spans[order] = np.minimum(gaps, _MAX_SPAN)
  repeated = np.flatnonzero(spans == 0)
  if repeated.size:
    raise InputError(
      f'{file.path}: key {keys[repeated[0]]} shares byte '
      f'{offsets[repeated[0]]} with another key; copy train.idx again'
    )
  return spans
