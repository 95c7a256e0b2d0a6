# SPDX-License-Identifier: Apache-2.0
"""Positioned reads from a disk, or from storage that TensorFlow can reach.

A path with a scheme (``gs://bucket/faces``) is read through `tf.io.gfile`, in
blocks of a megabyte that stay in a cache for a while, because such storage has
high latency but high throughput. It serves whatever reads images in their
order: checks, `inspect` and `embed`. Training reads by a graph (`graph`).
"""

import collections
import os
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.errors import InputError, first_line

BLOCK_BYTES = 1 << 20
CACHE_BYTES = 1 << 26


def is_remote(path: str | os.PathLike) -> bool:
  """Returns True if a path has a scheme, so that TensorFlow must read it."""
  return '://' in os.fspath(path)


def without_dots(path: str | bytes) -> str | bytes:
  """Returns a local path that TensorFlow and the system take for the same.

  TensorFlow shortens ``link/..`` to the folder that holds the link.

  Examples:
    >>> without_dots('../faces'), without_dots('/no/such/../folder')
    ('../faces', '/no/folder')
  """
  names = os.fsdecode(path).split(os.sep)
  while names and names[0] in (os.curdir, os.pardir):
    del names[0]
  return os.path.realpath(path) if os.pardir in names else path


class LocalFile:
  """Open file with positioned reads, which several threads may share.

  Args:
    path: the file.

  Attributes:
    path: the file.
    size: its size in bytes.

  Raises:
    InputError: if it cannot be opened.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    try:
      self._fd = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      raise InputError(
        f'{self.path}: {error.strerror}; copy the data again, or restore it'
      ) from error
    self.close = weakref.finalize(self, os.close, self._fd)
    self.size = os.fstat(self._fd).st_size

  def is_replaced(self) -> bool:
    """Returns True if another file, or none, has its path now."""
    try:
      now = os.stat(self.path)
    except OSError:
      return True
    return not os.path.samestat(now, os.fstat(self._fd))

  def peek(self, count: int, offset: int) -> bytes:
    """Reads as `read` does."""
    return self.read(count, offset)

  def read(self, count: int, offset: int) -> bytes:
    """Reads up to `count` bytes from `offset` on; fewer where the file ends."""
    try:
      return os.pread(self._fd, count, offset)
    except OSError as error:  # A failing disk: the message must name the file.
      raise InputError(f'{self.path}: {error.strerror}') from error


class RemoteFile:
  """File that `tf.io.gfile` reads, in blocks that a cache keeps.

  Args:
    path: the file's address, with its scheme.
    cache: cache of the blocks; shared by the files of a source.

  Attributes:
    path: the file's address.
    size: its size in bytes.

  Raises:
    InputError: if it cannot be opened.
  """

  def __init__(self, path: str, cache: 'BlockCache'):
    self.path = path
    self._cache = cache
    tf = tensorflow()
    try:
      self.size = tf.io.gfile.stat(path).length
    except tf.errors.OpError as error:
      raise InputError(f'{path}: {first_line(error)}') from error

  def peek(self, count: int, offset: int) -> bytes:
    """Reads as `read` does, but by a request of its own, past the cache."""
    return self._fetch(offset, count)

  def read(self, count: int, offset: int) -> bytes:
    """Reads up to `count` bytes from `offset` on; fewer where the file ends."""
    if offset < 0 or count <= 0:
      return b''
    first, last = offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES
    last = min(last, (self.size - 1) // BLOCK_BYTES)
    blocks = [
      self._cache.get(
        (self.path, number),
        lambda n=number: self._fetch(n * BLOCK_BYTES, BLOCK_BYTES),
      )
      for number in range(first, last + 1)
    ]
    start = offset - first * BLOCK_BYTES
    return b''.join(blocks)[start : start + count]

  def _fetch(self, offset: int, count: int) -> bytes:
    tf = tensorflow()
    try:
      # Each block has its own handle, because handles have a position.
      with tf.io.gfile.GFile(self.path, 'rb') as file:
        file.seek(offset)
        return file.read(count)
    except tf.errors.OpError as error:
      raise InputError(f'{self.path}: {first_line(error)}') from error


class BlockCache:
  """Cache of the blocks read last, by key; safe for many threads.

  Args:
    max_blocks: number of blocks that are kept.
  """

  def __init__(self, max_blocks: int = CACHE_BYTES // BLOCK_BYTES):
    self._max_blocks = max_blocks
    self._blocks: collections.OrderedDict[object, Future] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def clear(self) -> None:
    """Forgets all blocks."""
    with self._lock:
      self._blocks.clear()

  def get(self, key, fetch) -> bytes:
    """Returns the cached block of a key, or the result of `fetch()`."""
    with self._lock:
      future = self._blocks.get(key)
      if future is None:
        mine = self._blocks[key] = Future()
        if len(self._blocks) > self._max_blocks:
          self._blocks.popitem(last=False)
      else:
        self._blocks.move_to_end(key)
        mine = None
    if mine is None:
      return future.result()
    try:
      mine.set_result(fetch())
    except BaseException as error:
      with self._lock:
        self._blocks.pop(key, None)  # The next call tries again.
      mine.set_exception(error)
    return mine.result()
