# SPDX-License-Identifier: Apache-2.0
r"""MXNet RecordIO: reading and writing ``train.rec`` without mxnet.

A file is a sequence of parts, each ``magic u32 | cflag:3 length:29 u32 |
payload | zeros to a multiple of 4``, little-endian. A part with cflag 0 is a
complete record. A payload that contains the magic at an offset divisible by 4
is cut there, loses these four bytes and becomes parts with cflag 1, 2, ..., 2,
3; the reader inserts the bytes again. A payload begins with the header of an
image record, ``flag u32 | label f32 | id u64 | id2 u64``, followed by `flag`
more float32 labels and the body (a JPEG).

The index is text, ``key <tab> byte offset <newline>`` in the order of writing.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.sources.files import LocalFile
from elasticface_jax.errors import InputError, first_line

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack('<I', _MAGIC)
_MAX_LENGTH = (1 << 29) - 1
_HEADER = struct.Struct('<IfQQ')
# Counts and labels of a .rec are float32, which is exact up to this integer.
MAX_EXACT = 1 << 24
_FIRST_READ = 1 << 16  # Holds any aligned face.
_INDEX_LINES = 1 << 18  # Lines of an index parsed at a time.


class Record(NamedTuple):
  """Unpacked image record.

  Attributes:
    flag: 0 if the label is the header's scalar, else the number of labels.
    labels: float32, ``[1]`` if flag is 0, else ``[flag]``.
    id: by convention the record's key.
    id2: unused, except for a 1 in the header record.
    body: the encoded image; empty in header and identity records.
  """

  flag: int
  labels: np.ndarray
  id: int
  id2: int
  body: bytes


class RecordError(InputError):
  """Error for a record that cannot be read.

  Attributes:
    offset: the byte of the file at which the problem is.
    problem: the problem alone.
  """

  def __init__(self, path: Path, offset: int, problem: str):
    super().__init__(
      f'{path}: byte {offset}: {problem}; copy the file again, or list what '
      f'is intact with `elasticface inspect {path.parent}`'
    )
    self.offset = offset
    self.problem = problem


def pack(labels, body: bytes, *, record_id: int, id2: int = 0) -> bytes:
  """Returns the payload of an image record.

  Args:
    labels: one label (flag 0), or a sequence of labels (flag = its length).
    body: the encoded image.
    record_id: field ``id``, by convention the key.
    id2: field ``id2``.

  Returns:
    Header, labels and body.

  Examples:
    >>> unpack(pack(7, b'jpeg', record_id=3))
    Record(flag=0, labels=array([7.], dtype=float32), id=3, id2=0, body=b'jpeg')
  """
  if np.ndim(labels) == 0:
    return _HEADER.pack(0, labels, record_id, id2) + body
  extra = np.asarray(labels, '<f4').tobytes()
  return _HEADER.pack(len(labels), 0.0, record_id, id2) + extra + body


def unpack(payload: bytes) -> Record:
  """Reads the payload of an image record; the inverse of `pack`.

  Args:
    payload: a complete record, its parts joined.

  Returns:
    The record.

  Raises:
    ValueError: if the payload is shorter than its header says.
  """
  if len(payload) < _HEADER.size:
    raise ValueError(f'a record of {len(payload)} bytes has no image header')
  flag, label, record_id, id2 = _HEADER.unpack_from(payload)
  if not flag:
    labels = np.array([label], np.float32)
    return Record(0, labels, record_id, id2, payload[_HEADER.size :])
  start = _HEADER.size + 4 * flag
  if len(payload) < start:
    raise ValueError(
      f'the header announces {flag} labels, the record has {len(payload)} bytes'
    )
  labels = np.frombuffer(payload, '<f4', flag, _HEADER.size)
  return Record(flag, labels, record_id, id2, payload[start:])


class RecordFile(LocalFile):
  """Open ``.rec`` with positioned reads, which several threads may share.

  Args:
    path: the file.

  Raises:
    InputError: if it cannot be opened.
  """

  def read_record(self, offset: int, span: int) -> tuple[Record, int]:
    """Reads the record at a byte offset, in a single read if possible.

    Args:
      offset: position of its first magic.
      span: number of bytes up to the next record, at least the record's own
        size. It can be large, since an index may leave records out.

    Returns:
      The record, and the offset of the byte after it.

    Raises:
      RecordError: if there is no complete record.
    """
    end = offset + span
    buffer = self.read(min(span, _FIRST_READ), offset)

    def read(at, count):
      count = min(count, end - at)
      if at + count <= offset + len(buffer):
        return buffer[at - offset : at - offset + count]
      return self.read(count, at)

    return self._record(read, offset)

  def walk(self, start: int = 0) -> Iterator[tuple[int, Record]]:
    """Reads every record in the order of the file, without an index.

    Args:
      start: offset of the first record to read.

    Yields:
      Offset and record.

    Raises:
      RecordError: at the first byte that is not part of a complete record.
    """
    while start < self.size:
      record, end = self._record(lambda at, n: self.read(n, at), start)
      yield start, record
      start = end

  def _record(self, read, start: int) -> tuple[Record, int]:
    parts = []
    offset = start
    while True:
      head = read(offset, 8)
      if len(head) < 8:
        problem = 'the data end inside a split record'
        if not parts:
          problem = f'the data end after {len(head)} of 8 bytes of a head'
        raise RecordError(self.path, offset, problem)
      magic, lrec = struct.unpack('<II', head)
      cflag, length = lrec >> 29, lrec & _MAX_LENGTH
      if magic != _MAGIC:
        raise RecordError(
          self.path,
          offset,
          f'bad magic {head[:4].hex()}, expected {_MAGIC_BYTES.hex()}',
        )
      if cflag not in ((2, 3) if parts else (0, 1)):
        raise RecordError(
          self.path,
          offset,
          f'part of kind {cflag} {"inside" if parts else "outside"} a split '
          'record',
        )
      part = read(offset + 8, length)
      if len(part) < length:
        raise RecordError(
          self.path,
          offset,
          f'truncated record: {len(part)} of its {length} bytes are there',
        )
      parts.append(part)
      offset += 8 + length + -length % 4
      if cflag in (0, 3):
        break
    try:
      return unpack(_MAGIC_BYTES.join(parts)), offset
    except ValueError as error:
      raise RecordError(self.path, start, str(error)) from error


class RecordWriter:
  """Writes a ``.rec`` and its index; use it in a ``with`` statement.

  Both files appear at the end of the statement, or neither if it raises.

  Args:
    rec: path of the records.
    idx: path of the index.

  Raises:
    InputError: if they cannot be written.
  """

  def __init__(self, rec: str | os.PathLike, idx: str | os.PathLike):
    self._paths = rec, idx

  def __enter__(self):
    with contextlib.ExitStack() as files:
      rec, idx = (files.enter_context(atomic.file(p)) for p in self._paths)
      self._rec = files.enter_context(open(rec, 'wb'))
      self._idx = files.enter_context(
        open(idx, 'w', encoding='ascii', newline='\n')
      )
      self._files = files.pop_all()
    return self

  def __exit__(self, *exception):
    return self._files.__exit__(*exception)

  def write(self, key: int, payload: bytes):
    """Appends a record, cut at aligned magics as the format requires.

    Args:
      key: its key in the index.
      payload: from `pack`.

    Raises:
      ValueError: if the payload has 2**29 bytes or more.
    """
    if len(payload) > _MAX_LENGTH:
      raise ValueError(f'a record of {len(payload)} bytes; 2**29 is too many')
    self._idx.write(f'{key}\t{self._rec.tell()}\n')
    words = np.frombuffer(payload, '<u4', len(payload) // 4)
    start = 0
    for cut in 4 * np.flatnonzero(words == _MAGIC):
      self._write_part(1 if start == 0 else 2, payload[start:cut])
      start = cut + 4
    self._write_part(3 if start else 0, payload[start:])

  def _write_part(self, cflag: int, part: bytes):
    self._rec.write(struct.pack('<II', _MAGIC, cflag << 29 | len(part)))
    self._rec.write(part + bytes(-len(part) % 4))


def read_index(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
  """Reads an ``.idx``; 42 million lines take a gigabyte of memory.

  Args:
    path: the file.

  Returns:
    Keys, ascending, and the byte offset of each; int64, ``[n]``.

  Raises:
    InputError: if it is missing, empty or no index, or repeats a key.
  """
  path = Path(path)
  try:
    lines = _read_lines(path)
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; a .rec is read through its index'
    ) from error
  except ValueError as error:
    raise InputError(
      f'{path}: not an index, lines must be `key<tab>byte offset`: '
      f'{first_line(error)}'
    ) from error
  if not lines.shape[1]:
    raise InputError(f'{path}: the index is empty; copy it again')
  # In the order of keys, except key 0, which insightface writes last.
  keys, offsets = lines
  if first := np.argmin(keys):
    for column in lines:
      column[:] = np.roll(column, -first)
  if not (keys[1:] > keys[:-1]).all():
    order = np.argsort(keys, kind='stable')
    keys, offsets = keys[order], offsets[order]
  if keys[0] < 0:
    raise InputError(f'{path}: key {keys[0]} is below 0; copy the index again')
  repeated = np.flatnonzero(keys[1:] == keys[:-1])
  if repeated.size:
    raise InputError(
      f'{path}: key {keys[repeated[0]]} occurs more than once; copy the index '
      'again'
    )
  return keys, offsets


def _read_lines(path: Path) -> np.ndarray:
  """Reads keys and offsets in the order of the lines, int64 ``[2, n]``."""
  with open(path, 'rb') as file:
    blocks = iter(lambda: file.read(1 << 20), b'')
    most = 1 + sum(block.count(b'\n') for block in blocks)
  lines = np.empty((2, most), np.int64)
  done = 0
  with open(path, encoding='ascii') as file:
    # loadtxt warns if nothing is left, so it is only called if there is more.
    while first := next((line for line in file if line.strip()), ''):
      parsed = np.loadtxt(
        itertools.chain([first], itertools.islice(file, _INDEX_LINES)),
        np.int64,
        delimiter='\t',
        ndmin=2,
        comments=None,
      )
      if parsed.shape[1] != 2:
        raise ValueError(f'{parsed.shape[1]} columns')
      lines[:, done : done + len(parsed)] = parsed.T
      done += len(parsed)
  return lines[:, :done]


def write_rec_folder(
  folder: str | os.PathLike,
  images: Iterable[tuple[bytes, int]],
  num_classes: int,
):
  """Writes ``train.rec``, ``train.idx`` and ``property`` in MS1MV2's layout.

  Image records have keys 1..a-1. One identity record for each class follows,
  with the range of its images' keys. Record 0, written last, holds [a, b].

  Args:
    folder: made if it is missing; must not hold a ``train.rec`` yet.
    images: (encoded 112x112 image, label) one after the other, the images of
      a class next to each other. May be a generator; nothing is kept.
    num_classes: C; labels are in ``[0, C)``. Classes may be empty.

  Raises:
    InputError: if there is a ``train.rec``, there are more classes than float32
      can number, a label is out of range or returns after another, or the
      files cannot be written. Then no file is new.
  """
  folder = Path(folder)
  if num_classes > MAX_EXACT:
    raise InputError(
      f'{folder}: {num_classes:,} classes; labels of a .rec are float32, which '
      f'distinguish only {MAX_EXACT:,}: use a folder or shards'
    )
  atomic.make_folder(folder)
  if (folder / 'train.rec').exists():
    raise InputError(f'{folder}/train.rec exists; give another folder')
  ranges = np.zeros((num_classes, 2), np.int64)
  key, last = 0, None
  with (
    # Renamed after the other two: no folder without it can be opened.
    atomic.file(folder / 'property') as property_part,
    RecordWriter(folder / 'train.rec', folder / 'train.idx') as out,
  ):
    property_part.write_text(f'{num_classes},112,112\n')
    for key, (body, label) in enumerate(images, start=1):
      if not 0 <= label < num_classes:
        raise InputError(
          f'image {key} has label {label}, outside [0, {num_classes})'
        )
      if label != last:
        if ranges[label].any():
          raise InputError(
            f'image {key} has label {label}, and so have earlier ones that are '
            'not next to it; sort the images by label'
          )
        ranges[label, 0] = key
      ranges[label, 1] = key + 1
      last = label
      out.write(key, pack(label, body, record_id=key))
    first_identity = key + 1
    for key, pair in enumerate(ranges, start=first_identity):
      out.write(key, pack(pair, b'', record_id=key))
    end = first_identity + num_classes
    out.write(0, pack([first_identity, end], b'', record_id=0, id2=1))
