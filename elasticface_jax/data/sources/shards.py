# SPDX-License-Identifier: Apache-2.0
"""Source that reads shards of TFDS, in TFRecord or ArrayRecord format."""

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from elasticface_jax.data.sources import graph, index
from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.data.sources.encoded import EncodedSource, counted
from elasticface_jax.data.sources.files import (
  BlockCache,
  LocalFile,
  RemoteFile,
  is_remote,
  without_dots,
)
from elasticface_jax.errors import InputError, first_line

INFO = 'dataset_info.json'
_HEAD = struct.Struct('<QI')
_FOOT = struct.Struct('<I')
_WALK_BYTES = 1 << 24
_END_BYTES = 1 << 12
_REQUESTS = 16  # To remote storage, at a time.


class ShardSource(EncodedSource):
  """Images of all shards, in the order of the shards and of their records.

  `prepare` and the builder `aligned_faces` write shards in the canonical order
  of their source; other builders write a shuffled order, which serves as well.
  Features ``image`` and ``label`` of the split ``train`` are read. TFRecord may
  be on storage that TensorFlow reaches (``gs://``); the library of ArrayRecord
  reads from a disk.

  The index of TFRecord takes 8 bytes an image (`index.cached`), and the one in
  ArrayRecord's library about 31 bytes an image.

  Args:
    folder: path or address of the folder that holds ``dataset_info.json``.
    cache: folder for the index, used if `folder` cannot be written; None for
      none.

  Raises:
    InputError: if there are no such shards, or fewer or shorter ones than
      ``dataset_info.json`` says.
  """

  def __init__(
    self, folder: str | os.PathLike, *, cache: str | os.PathLike | None = None
  ):
    self.path = os.fspath(folder).rstrip('/')
    if not is_remote(self.path):
      self.path = without_dots(self.path)
    info = _read_info(self.path)
    split = info.splits['train']
    lengths = list(split.shard_lengths)
    label = info.features['label']
    # A plain integer states no number.
    self.num_classes = getattr(label, 'num_classes', None) or 0
    # The file of names may have fewer, and a plain integer has none.
    self._class_names = list(getattr(label, 'names', None) or ())
    self.num_images = sum(lengths)
    if not self.num_images or not self.num_classes:
      raise InputError(
        f'{self.path}: {INFO} counts {counted(self.num_images, "image")} of '
        f'{counted(self.num_classes, "class")}; prepare it again'
      )
    form = info.file_format.value
    self.layout = f'{counted(len(lengths), "shard")} of {form}'
    paths = [f'{self.path}/{name}' for name in sorted(split.filenames)]
    if form == 'tfrecord':
      caches = [] if cache is None else [cache]
      self._shards = _TFRecords(self.path, paths, lengths, caches)
      self._kept = self._shards.kept
    elif form == 'array_record':
      self._shards = _ArrayRecords(paths, lengths)
      self._kept = index.Kept([], {})  # Its library has an index of its own.
    else:
      raise InputError(
        f'{self.path}: shards of {form} cannot be read; prepare them as '
        'tfrecord or array_record'
      )
    self._paths = paths
    self._starts = np.cumsum([0, *lengths])[:-1]

  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Implements `EncodedSource.read`."""
    example_of = tensorflow().train.Example.FromString
    shards = self._shards_of(indices).tolist()
    encoded, labels = [], np.empty(len(indices))
    for i, (shard, number) in enumerate(
      zip(shards, indices.tolist(), strict=True)
    ):
      try:
        record = self._shards.read(shard, number - int(self._starts[shard]))
        feature = example_of(record).features.feature
        (image,) = feature['image'].bytes_list.value
        (labels[i],) = feature['label'].int64_list.value
      except InputError:
        raise
      except _Damaged as error:
        raise self.bad(number, str(error)) from error
      except Exception as error:  # protobuf's exceptions are private.
        raise self.bad(
          number, f'no example of an image and a label ({first_line(error)})'
        ) from error
      encoded.append(image)
    return encoded, labels

  @property
  def in_graph(self) -> bool:
    """Implements `EncodedSource.in_graph`."""
    return isinstance(self._shards, _TFRecords)

  def graph_reader(self, parallel: int) -> graph.TFRecords:
    """Implements `EncodedSource.graph_reader`."""
    return graph.TFRecords(
      self._paths,
      self._starts,
      self._shards.offsets,
      remote=is_remote(self.path),
      parallel=parallel,
    )

  def fresh(self) -> 'ShardSource':
    """Implements `EncodedSource.fresh`."""
    if self.in_graph:
      self._shards.cache.clear()
    return self

  def render_again(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Implements `EncodedSource.render_again`."""
    if self.in_graph and not is_remote(self.path):
      shards = self._shards_of(indices)
      replaced = self._shards.replaced(np.unique(shards).tolist())
      for number in indices[np.isin(shards, replaced)]:
        raise self.bad(number, 'the file was replaced while it was in use')
    return super().render_again(indices)

  def _shards_of(self, indices):
    return np.searchsorted(self._starts, indices, 'right') - 1

  def place(self, index: int) -> str:
    """Implements `EncodedSource.place`."""
    shard = int(self._shards_of(index))
    return f'{self._paths[shard]}: record {int(index) - self._starts[shard]}'

  def image_name(self, index: int) -> str:
    """Implements `EncodedSource.image_name`: ``shard:record``."""
    shard = int(self._shards_of(index))
    name = self._paths[shard].rpartition('/')[2]
    return f'{name}:{int(index) - self._starts[shard]}'

  def class_name(self, label: int) -> str:
    """Implements `EncodedSource.class_name`: TFDS's name of the label."""
    names = self._class_names
    return names[label] if label < len(names) else str(int(label))


class _Damaged(Exception):
  """Error for a record whose bytes differ from those that were written."""


class _TFRecords:
  """Records of TFRecord shards, by shard and number.

  A record is its length as u64, the masked CRC-32C of these 8 bytes, the
  bytes, and their masked CRC-32C.
  """

  def __init__(
    self,
    folder: str,
    paths: list[str],
    lengths: list[int],
    caches: list[str | os.PathLike],
  ):
    # `offsets` has the first byte of each record of a shard and the shard's
    # end, shard after shard; `_first` has the slot of each shard in it.
    self._first = np.cumsum([0, *(length + 1 for length in lengths)]).tolist()
    self.cache = BlockCache()
    self._remote = is_remote(folder)
    if self._remote:
      self._files = [RemoteFile(path, self.cache) for path in paths]
    else:
      self._files = [LocalFile(path) for path in paths]
    # Not the time of change: the kept arrays serve all copies of the shards.
    with ThreadPoolExecutor(_REQUESTS) as pool:
      ends = list(pool.map(_ends_of, self._files))
    self.kept = index.Kept(
      [folder, *caches],
      {'form': 'tfrecord 2', 'shards': ends, 'lengths': lengths},
    )
    self.offsets = self.kept.arrays(
      index.NAME, lambda: {'offsets': self._walk(lengths)}
    )['offsets']

  def read(self, shard: int, number: int) -> bytes:
    slot = self._first[shard] + number
    start, end = self.offsets[slot : slot + 2].tolist()
    frame = self._files[shard].read(end - start, start)
    data = frame[_HEAD.size : -_FOOT.size]
    if len(frame) < end - start or _HEAD.unpack_from(frame) != (
      len(data),
      _masked_crc(frame[:8]),
    ):
      raise _Damaged('the file has changed, or is damaged here')
    if _FOOT.unpack_from(frame, len(frame) - _FOOT.size) != (
      _masked_crc(data),
    ):
      raise _Damaged('the bytes are damaged: their checksum is wrong')
    return data

  def replaced(self, shards: list[int]) -> list[int]:
    """Returns which of some shards are other files than were opened."""
    return [shard for shard in shards if self._files[shard].is_replaced()]

  def _walk(self, lengths: list[int]) -> np.ndarray:
    # Remote files answer late, and the others keep Python's lock.
    threads = _REQUESTS if self._remote else 1
    with ThreadPoolExecutor(threads) as pool:
      return np.concatenate([*pool.map(_walk, self._files, lengths)])


def _walk(file: LocalFile | RemoteFile, length: int) -> np.ndarray:
  """Returns the first byte of each record of a shard, and the shard's end."""
  offsets = np.fromiter(_offsets(file), np.int64)
  if len(offsets) != length + 1:
    raise InputError(
      f'{file.path}: {INFO} counts {length} records, the file has '
      f'{len(offsets) - 1}; copy it again'
    )
  return offsets


def _offsets(file: LocalFile | RemoteFile) -> Iterator[int]:
  """Yields the byte at which each record begins, and the end of the last."""
  offset, buffer, start = 0, b'', 0
  while True:
    yield offset
    if offset == file.size:
      return
    if not start <= offset <= start + len(buffer) - _HEAD.size:
      start, buffer = offset, file.read(_WALK_BYTES, offset)
    head = buffer[offset - start : offset - start + _HEAD.size]
    if len(head) < _HEAD.size or _HEAD.unpack(head)[1] != _masked_crc(head[:8]):
      raise InputError(
        f'{file.path}: byte {offset}: no record begins here; copy the file '
        'again'
      )
    offset += _HEAD.size + _HEAD.unpack(head)[0] + _FOOT.size
    if offset > file.size:
      raise InputError(
        f'{file.path}: cut off: a record ends at byte {offset}, the file has '
        f'{file.size}; copy it again'
      )


def _ends_of(file: LocalFile | RemoteFile) -> list:
  """Returns what tells a shard from another: size, and hash of both ends."""
  last = max(0, file.size - _END_BYTES)
  ends = [file.peek(_END_BYTES, at) for at in (0, last)]
  return [file.size, hashlib.sha256(b''.join(ends)).hexdigest()]


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _ArrayRecords:
  """Records of ArrayRecord shards, by shard and number."""

  def __init__(self, paths: list[str], lengths: list[int]):
    if is_remote(paths[0]):
      raise InputError(
        f'{paths[0]}: ArrayRecord is read from a disk; copy the shards, or '
        'prepare them as tfrecord'
      )
    from array_record.python import array_record_module

    self._readers = []
    for path, length in zip(paths, lengths, strict=True):
      # Without reading ahead, which would cost 8 MB a shard.
      reader = array_record_module.ArrayRecordReader(
        path, 'readahead_buffer_size:0,max_parallelism:0'
      )
      if not reader.ok():
        raise InputError(f'{path}: {_reason(reader)}; copy it again')
      if reader.num_records() != length:
        raise InputError(
          f'{path}: {INFO} counts {length} records, the file has '
          f'{reader.num_records()}; copy it again'
        )
      self._readers.append(reader)

  def read(self, shard: int, number: int) -> bytes:
    try:
      # As a range: a list of indices would start threads each time.
      (record,) = self._readers[shard].read(number, number + 1)
    except RuntimeError as error:
      raise _Damaged(f'the bytes are damaged ({first_line(error)})') from error
    return record


def _reason(reader) -> str:
  try:
    reader.close()  # The first call that names the reason.
  except RuntimeError as error:
    return first_line(error)
  return 'cannot be read'


def _read_info(folder: str):
  """Reads TFDS's description of the shards."""
  tf = tensorflow()
  try:
    if not tf.io.gfile.exists(f'{folder}/{INFO}'):
      raise InputError(f'{folder}: holds no {INFO}{_hint(folder)}')
    info = _info(folder)
  except InputError:
    raise
  except Exception as error:
    # TFDS and the file systems raise many kinds.
    raise InputError(
      f"{folder}: TFDS's description, {INFO} and features.json, cannot be read "
      f'({first_line(error)}); prepare or copy it again'
    ) from error
  if 'train' not in info.splits:
    raise InputError(
      f'{folder}: no split `train`, only {", ".join(info.splits) or "none"}; '
      'prepare it with one'
    )
  missing = {'image', 'label'} - set(info.features or ())
  if missing:
    raise InputError(
      f'{folder}: the examples have no feature `{min(missing)}`, only '
      f'{", ".join(info.features or ()) or "none"}; prepare it with one'
    )
  return info


def _info(folder: str):
  import tensorflow_datasets as tfds

  if not is_remote(folder):
    return tfds.builder_from_directory(folder).info
  # TFDS knows some kinds of storage, TensorFlow others.
  gfile = tensorflow().io.gfile
  with tempfile.TemporaryDirectory() as near:
    for name in gfile.listdir(folder):
      if name.endswith(('.json', '.txt')):
        gfile.copy(f'{folder}/{name}', f'{near}/{name}')
    return tfds.builder_from_directory(near).info


def _hint(folder: str) -> str:
  """Names the folder to give instead: TFDS adds ``name/version`` to it."""
  gfile = tensorflow().io.gfile
  for depth in range(1, 4):
    found = gfile.glob('/'.join([folder, *'*' * depth, INFO]))
    if found:
      return f'; give {found[0].removesuffix("/" + INFO)}'
  return ''
