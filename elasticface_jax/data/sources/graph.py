# SPDX-License-Identifier: Apache-2.0
"""Reading of encoded images inside a TensorFlow graph, without Python.

Tensors about all images are made eagerly, before any function is traced. A
function captures them by reference; in a graph they would be constants, which
TensorFlow copies.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from elasticface_jax.data.sources.decode import tensorflow

# Records that are read by one thread, one after the other. A function that
# reads a single record costs 40 us more.
_CHUNK = 32
_REMOTE_READS = 64  # In flight: each waits for the storage.
_NAMES = 1 << 16  # Names that are Python objects at a time.


class GraphReader(Protocol):
  """Reader of a source's images in a graph; all arguments are tensors.

  An operation that fails raises `tf.errors.OpError` when the graph runs.
  """

  def read(self, indices: Any) -> Any:
    """Reads records at random.

    Args:
      indices: numbers of the images, int64, ``[k]``.

    Returns:
      Records as they are stored, string, ``[k]``.
    """

  def read_run(self, first: Any, count: Any) -> Any:
    """Reads the records of neighbours, by one request where possible.

    Args:
      first: number of the first image, int64 scalar.
      count: number of images, int64 scalar.

    Returns:
      Records, string, ``[count]``.
    """

  def unpack(self, records: Any, indices: Any) -> tuple[Any, Any]:
    """Takes records apart.

    Args:
      records: string, ``[k]``.
      indices: numbers of the images, int64, ``[k]``.

    Returns:
      Encoded images, string, ``[k]``, and labels, int64, ``[k]``, not yet
      compared with C.
    """


def each(function: Callable, tensors: Any, parallel: int) -> Any:
  """Applies a function to each row of tensors, several at a time.

  Args:
    function: takes the row of each tensor, and returns a tensor.
    tensors: one tensor or a tuple of them, ``[k, ...]`` each.
    parallel: number of calls at a time.

  Returns:
    The results, ``[k, ...]``.
  """
  tf = tensorflow()
  count = tf.shape(tf.nest.flatten(tensors)[0], tf.int64)[0]
  rows = tf.data.Dataset.from_tensor_slices(tensors)
  return exactly(mapped(rows, function, parallel), count)


def mapped(
  dataset: Any, function: Callable, parallel: int | None = None
) -> Any:
  """Maps a data set, its order kept.

  Args:
    dataset: a `tf.data.Dataset`.
    function: of TensorFlow operations alone.
    parallel: number of calls at a time; None for one after the other.

  Returns:
    A `tf.data.Dataset`.
  """
  return dataset.map(
    as_it_is(function),
    num_parallel_calls=parallel,
    deterministic=True if parallel else None,
  )


def as_it_is(function: Callable) -> Callable:
  """Keeps TensorFlow from rewriting a function, which takes 0.1 s for each."""
  return tensorflow().autograph.experimental.do_not_convert(function)


def exactly(dataset: Any, count: Any) -> Any:
  """Returns the elements of a data set as one tensor.

  Args:
    dataset: of tensors of one shape.
    count: number of elements, int64 scalar; less are an error, more are left.

  Returns:
    The elements, ``[count, ...]``.
  """
  return dataset.batch(count, drop_remainder=True).take(1).get_single_element()


def upright(images: Any, orientations: Any) -> Any:
  """Turns images as EXIF asks; the counterpart of `exif.upright`.

  Args:
    images: as stored, square, ``[k, S, S, 3]``.
    orientations: 1 to 8, ``[k]``.

  Returns:
    The images upright, ``[k, S, S, 3]``.
  """
  tf = tensorflow()

  def turned(images, other, which):
    asked = tf.reduce_any(
      orientations[:, None] == tf.constant(which, orientations.dtype), 1
    )
    return tf.where(asked[:, None, None, None], other, images)

  images = turned(images, tf.transpose(images, (0, 2, 1, 3)), (5, 6, 7, 8))
  images = turned(images, images[:, ::-1], (3, 4, 7, 8))
  return turned(images, images[:, :, ::-1], (2, 3, 6, 7))


class TFRecords:
  """Graph reader of TFRecord shards with examples of an image and a label.

  Args:
    paths: of the shards.
    starts: number of the first image of each shard, int64.
    offsets: first byte of each record of a shard and the shard's end, shard
      after shard, int64, ``[n + number of shards]``.
    remote: whether the shards are on remote storage.
    parallel: number of reads at a time, for shards that are not.
  """

  def __init__(
    self,
    paths: Sequence[str],
    starts: np.ndarray,
    offsets: np.ndarray,
    *,
    remote: bool,
    parallel: int,
  ):
    tf = tensorflow()
    self._paths = tf.constant(paths)
    self._starts = tf.constant(starts)
    self._offsets = tf.constant(offsets)
    count = len(starts)
    num_images = len(offsets) - count
    self._shard_ends = tf.constant(
      offsets[np.append(starts[1:], num_images) + np.arange(count)]
    )
    self._chunk = 1 if remote else _CHUNK
    self._parallel = _REMOTE_READS if remote else parallel
    self._features = {
      'image': tf.io.FixedLenFeature([], tf.string),
      'label': tf.io.FixedLenFeature([], tf.int64),
    }

  def read(self, indices):
    """Implements `GraphReader.read`."""
    tf = tensorflow()
    shards, starts, ends = self._places(indices)
    places = tf.gather(self._paths, shards)[:, None], starts[:, None]
    chunks = tf.data.Dataset.from_tensor_slices((*places, ends - starts))
    records = mapped(chunks.batch(self._chunk), _read_chunk, self._parallel)
    return exactly(records.unbatch(), tf.shape(indices, tf.int64)[0])

  def read_run(self, first, count):
    """Implements `GraphReader.read_run`."""
    tf = tensorflow()
    ends = tf.stack([first, first + count - 1])
    (shard, last), (start, _), (_, end) = map(tf.unstack, self._places(ends))
    # A run may go on in the next shards, from their first byte.
    paths = self._paths[shard : last + 1]
    offsets = tf.concat([[start], tf.zeros(last - shard, tf.int64)], 0)
    # Exactly what is needed, so that the storage gets one request.
    in_first = self._shard_ends[shard] - start
    size = tf.where(shard == last, end - start, tf.maximum(in_first, end))
    return exactly(_records(paths, offsets, size).take(count), count)

  def unpack(self, records, indices):
    """Implements `GraphReader.unpack`."""
    del indices
    example = tensorflow().io.parse_example(records, self._features)
    return example['image'], example['label']

  def _places(self, indices):
    """Returns the shards, first bytes and ends of records, ``[k]`` each."""
    tf = tensorflow()
    shards = tf.searchsorted(self._starts, indices, 'right', tf.int64) - 1
    # One end of a shard is listed before each shard but the first.
    slots = indices + shards
    return (
      shards,
      tf.gather(self._offsets, slots),
      tf.gather(self._offsets, slots + 1),
    )


class Files:
  """Graph reader of image files in the folders of people.

  Args:
    root: path of the folder that holds the folders, as bytes.
    people: names of the folders, as bytes.
    starts: number of the first image of each person, int64.
    names: the names of all files, one after the other.
    ends: end of each name in `names`.
    parallel: number of reads at a time.
  """

  def __init__(
    self,
    root: bytes,
    people: Sequence[bytes],
    starts: np.ndarray,
    names: bytes,
    ends: np.ndarray,
    *,
    parallel: int,
  ):
    tf = tensorflow()
    self._root = root
    self._people = tf.constant(people)
    self._starts = tf.constant(starts)
    self._names = _texts(names, ends)
    self._parallel = parallel

  def read(self, indices):
    """Implements `GraphReader.read`."""
    tf = tensorflow()
    person = tf.gather(self._people, self._labels(indices))
    name = tf.gather(self._names, indices)
    paths = tf.strings.join([self._root, person, name], b'/')
    return each(tf.io.read_file, paths, self._parallel)

  def read_run(self, first, count):
    """Implements `GraphReader.read_run`."""
    return self.read(first + tensorflow().range(count))

  def unpack(self, records, indices):
    """Implements `GraphReader.unpack`."""
    return records, self._labels(indices)

  def _labels(self, indices):
    tf = tensorflow()
    return tf.searchsorted(self._starts, indices, 'right', tf.int64) - 1


def _texts(joined: bytes, ends: np.ndarray) -> Any:
  """Returns texts that lie one after the other as a string tensor."""
  tf = tensorflow()
  parts, begin = [], 0
  for first in range(0, len(ends), _NAMES):
    some = ends[first : first + _NAMES].tolist()
    bounds = zip([begin, *some], some, strict=False)
    parts.append(tf.constant([joined[a:b] for a, b in bounds]))
    begin = some[-1]
  return tf.concat(parts, 0)


def _records(paths, offsets, size):
  """Returns the records of files from these bytes on, read `size` at a time.

  Only inside of a function: TensorFlow forgets the bytes where it makes an
  iterator over such a data set itself. Beyond the end of a file it returns no
  records and raises no error, so that the records must be counted.
  """
  tf = tensorflow()
  variant = tf.raw_ops.TFRecordDatasetV2(
    filenames=paths, compression_type='', buffer_size=size, byte_offsets=offsets
  )
  return tf.data.experimental.from_variant(
    variant, tf.TensorSpec([], tf.string)
  )


def _read_chunk(paths, starts, sizes):
  """Reads one record at each place, ``[c]``."""
  tf = tensorflow()
  places = tf.data.Dataset.from_tensor_slices((paths, starts, sizes))
  records = places.flat_map(as_it_is(lambda *place: _records(*place).take(1)))
  return exactly(records, tf.shape(paths, tf.int64)[0])
