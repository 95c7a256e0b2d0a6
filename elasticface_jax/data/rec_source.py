# SPDX-License-Identifier: Apache-2.0
"""An insightface training folder, read in place: no mxnet, no conversion."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax.data import decode
from elasticface_jax.data.recordio import (
  Record,
  RecordError,
  RecordFile,
  read_index,
)
from elasticface_jax.errors import InputError

# Record 0 keeps its two counts in float32, exact up to here.
_MAX_EXACT = 1 << 24
_SAMPLED_RECORDS = 1024


class Layout(NamedTuple):
  """What record 0 says about the others.

  Attributes:
    text: one line for people.
    images: which entries of the index are images, bool, ``[entries]``.
    num_classes: C by the header's arithmetic; None without a header.
  """

  text: str
  images: np.ndarray
  num_classes: int | None


class RecSource:
  """Images and labels of ``train.rec``, ``train.idx`` and ``property``.

  Image i is the one with the i-th smallest key. Three layouts occur: record 0
  is a header of two counts (MS1MV2 and its kin), record 0 is an image like the
  rest, or there is none. Opening reads the index, record 0 and the last record
  of the file, which tells a truncated file at once; labels are in the image
  records and come with the images.

  Args:
    folder: path of the folder.

  Attributes:
    folder: the same.
    layout: which of the three layouts it is, and the keys, in words.
    num_images: number of images.
    num_classes: C, as `property` says.
    keys: key of each image, ascending, int64, ``[num_images]``.

  Raises:
    InputError: if a file is missing, or they do not agree with each other.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = Path(folder)
    self._file, keys, offsets = open_rec(self.folder)
    spans = _spans(self._file, keys, offsets)
    _check_tail(self._file, offsets, spans)
    layout = _read_layout(self._file, keys, offsets, spans)
    self.num_classes = read_property(self.folder, layout.num_classes)
    if layout.num_classes not in (None, self.num_classes):
      raise InputError(
        f'{self.folder}: `property` says {self.num_classes} classes, record 0 '
        f'of train.rec says {layout.num_classes}; take both from the same copy'
      )
    self.layout = layout.text
    self.keys = keys[layout.images]
    self.num_images = len(self.keys)
    self._offsets = offsets[layout.images]
    self._spans = spans[layout.images]

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 that tells one data set from another, hexadecimal.

    Of the index, the number of classes, the length of ``train.rec`` and 1,024
    of its image records, labels and all, evenly spread over the keys. Hashing
    a file of 30 GB would take a minute of every start; so an edit that moves no
    byte and touches none of the 1,024 goes unnoticed. `inspect_rec` hashes
    every record.
    """
    sha = hashlib.sha256(b'elasticface_jax rec 1\n')
    sha.update(f'{self.num_classes} {self._file.size}\n'.encode())
    sha.update(self.keys.astype('<i8').tobytes())
    sha.update(self._offsets.astype('<i8').tobytes())
    spread = np.linspace(0, self.num_images - 1, _SAMPLED_RECORDS)
    for record in self._records(np.unique(spread.astype(np.int64))):
      sha.update(record.labels.tobytes() + record.body)
    return sha.hexdigest()

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads and decodes images; safe to call from several threads.

    Args:
      indices: which images, int64, ``[n]``.

    Returns:
      RGB images, uint8, ``[n, 112, 112, 3]``, and labels, int32, ``[n]``.

    Raises:
      InputError: names the file, key and byte of the first bad record.
    """
    records = self._records(indices)
    labels = np.array([record.labels[0] for record in records], np.float32)
    bad = np.flatnonzero(~valid_labels(labels, self.num_classes))
    if bad.size:
      raise self._error(
        indices[bad[0]],
        f'label {labels[bad[0]]:g} is not an integer in '
        f'[0, {self.num_classes})',
      )
    try:
      images = decode.decode_faces([record.body for record in records])
    except decode.BadImage as error:
      raise self._error(indices[error.index], error.problem) from error
    return images, labels.astype(np.int32)

  def _records(self, indices: np.ndarray) -> list[Record]:
    # Python's integers: NumPy's would double the time of the loop.
    offsets = self._offsets[indices].tolist()
    spans = self._spans[indices].tolist()
    records = []
    for offset, span in zip(offsets, spans, strict=True):
      try:
        records.append(self._file.read(offset, span)[0])
      except RecordError as error:
        raise self._error(indices[len(records)], error.problem) from error
    return records

  def _error(self, index: int, problem: str) -> InputError:
    return InputError(
      f'{self._file.path}: key {self.keys[index]} at byte '
      f'{self._offsets[index]}: {problem}; `elasticface inspect {self.folder}` '
      'lists all bad records'
    )


def open_rec(folder: Path) -> tuple[RecordFile, np.ndarray, np.ndarray]:
  """Opens ``train.rec`` and reads ``train.idx``.

  Args:
    folder: the folder.

  Returns:
    The open file, and the index as `read_index` gives it.

  Raises:
    InputError: if one of them is missing or is something else.
  """
  if not folder.is_dir():
    raise InputError(f'{folder}: no such folder; it should hold train.rec')
  for name in ('train.rec', 'train.idx'):
    if not (folder / name).is_file():
      raise InputError(
        f'{folder}/{name} is missing; a .rec folder holds train.rec, train.idx '
        'and property'
      )
  return RecordFile(folder / 'train.rec'), *read_index(folder / 'train.idx')


def read_property(folder: Path, header_classes: int | None) -> int:
  """Reads the number of classes from ``property``.

  Args:
    folder: the folder.
    header_classes: what record 0 says, for the remedy in the message.

  Returns:
    The number of classes.

  Raises:
    InputError: if the file is missing, is no ``classes,112,112``, or the images
      are said to have another size.
  """
  path = folder / 'property'
  classes = 'CLASSES' if header_classes is None else header_classes
  remedy = f'write the line `{classes},112,112` into it'
  if header_classes is None:
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
  return num_classes


def _header_counts(path: Path, record: Record) -> tuple[int, int]:
  """Reads record 0 where it is a header.

  Args:
    path: the file, for the message.
    record: record 0, which has no body.

  Returns:
    (a, b): images have keys 1..a-1, identity records a..b-1.

  Raises:
    InputError: if it holds no two such counts, or they are not exact.
  """
  first, end = record.labels.tolist() if record.flag == 2 else (0, 0)
  if not 2 <= first < end < np.inf:
    raise InputError(
      f'{path}: record 0 is neither an image nor a header of two counts '
      f'(labels {record.labels[:4].tolist()}); take train.rec and train.idx '
      'from the same copy'
    )
  if end > _MAX_EXACT:
    raise InputError(
      f'{path}: record 0 counts to {end:.0f}, float32 is exact only up to '
      f'{_MAX_EXACT}; take the lines of key 0 and of the identity records out '
      'of train.idx'
    )
  return int(first), int(end)


def valid_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Which labels are integers in ``[0, num_classes)``; NaN is not.

  Args:
    labels: float32, ``[n]``.
    num_classes: C.

  Returns:
    bool, ``[n]``.
  """
  return (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))


def _read_layout(file: RecordFile, keys, offsets, spans) -> Layout:
  every = np.ones(len(keys), bool)
  at = np.flatnonzero(keys == 0)
  if not at.size:
    return Layout(
      f'no record 0: all {len(keys)} records are images', every, None
    )
  record, _ = file.read(int(offsets[at[0]]), int(spans[at[0]]))
  if record.body:
    return Layout(f'no header: all {len(keys)} records are images', every, None)
  first, end = _header_counts(file.path, record)
  images = (keys >= 1) & (keys < first)
  # Keys are distinct: if there are that many, all of 1..first-1 are there.
  if images.sum() != first - 1:
    raise InputError(
      f'{file.path}: record 0 announces {first - 1} images, train.idx lists '
      f'{images.sum()} of them; take both from the same copy'
    )
  text = f'header: {first - 1} images, then {end - first} identity records'
  return Layout(text, images, end - first)


def _spans(file: RecordFile, keys, offsets) -> np.ndarray:
  """Bytes from each record to the next one, or to the end of the file."""
  outside = np.flatnonzero((offsets < 0) | (offsets >= file.size))
  if outside.size:
    raise InputError(
      f'{file.path}: key {keys[outside[0]]} should be at byte '
      f'{offsets[outside[0]]}, the file has {file.size} bytes; it is cut off, '
      'or train.idx belongs to another file: copy both again'
    )
  order = np.argsort(offsets)
  spans = np.empty_like(offsets)
  spans[order] = np.diff(offsets[order], append=file.size)
  repeated = np.flatnonzero(spans == 0)
  if repeated.size:
    raise InputError(
      f'{file.path}: key {keys[repeated[0]]} shares byte '
      f'{offsets[repeated[0]]} with another key; copy train.idx again'
    )
  return spans


def _check_tail(file: RecordFile, offsets, spans):
  """The last record is whole, and after it the file ends or goes on."""
  last = np.argmax(offsets)
  _, end = file.read(int(offsets[last]), int(spans[last]))
  if end < file.size:
    # A valid record: the index may leave out what nobody wants to train on.
    next(file.walk(end))
