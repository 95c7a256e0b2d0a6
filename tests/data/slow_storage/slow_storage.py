# SPDX-License-Identifier: Apache-2.0
"""Storage of a stated latency, which counts how it is read: ``slow://``.

A plug-in of TensorFlow in C (``slow_storage.c``) serves ``slow:///folder/file``
from the local disk, and every request to it takes 50 ms. It stands in for
``gs://`` in tests and benchmarks: no network, no privileges, and the counts are
exact.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

SECONDS = 0.05  # Of a request to storage in another place.
_KEPT = 65536  # As in the C file.


class CannotCompile(Exception):
  """Error for a machine without a C compiler, or with another system."""


class Counts(NamedTuple):
  """Requests since the last `reset`.

  Attributes:
    reads: reads of a range.
    stats: questions for a file's size, or whether it exists.
    lists: listings of a folder, and patterns.
    opens: opened files, which send no request.
    bytes: that were read.
    peak: the most requests that were in flight at a time.
  """

  reads: int
  stats: int
  lists: int
  opens: int
  bytes: int
  peak: int


class Range(NamedTuple):
  """One read.

  Attributes:
    inode: of the file, as `os.stat` gives it.
    offset: its first byte.
    asked: number of bytes that were wanted.
    got: number of bytes that the file had.
  """

  inode: int
  offset: int
  asked: int
  got: int


class SlowStorage:
  """The storage, of which a process has one; see `start`."""

  def __init__(self, library: ctypes.CDLL):
    self._library = library
    library.slow_storage_set_latency.argtypes = [ctypes.c_double]
    library.slow_storage_ranges.restype = ctypes.c_int64
    library.slow_storage_ranges.argtypes = [ctypes.c_void_p, ctypes.c_int64]

  def set_latency(self, seconds: float) -> None:
    """Sets how long a request takes."""
    self._library.slow_storage_set_latency(seconds)

  def reset(self) -> None:
    """Forgets all requests; call it when none is in flight."""
    self._library.slow_storage_reset()

  def counts(self) -> Counts:
    """Returns the numbers of requests."""
    numbers = (ctypes.c_int64 * len(Counts._fields))()
    self._library.slow_storage_counts(numbers)
    return Counts(*numbers)

  def ranges(self) -> list[Range]:
    """Returns the newest 65,536 reads, in the order in which they ended."""
    width = len(Range._fields)
    numbers = (ctypes.c_int64 * (width * _KEPT))()
    count = self._library.slow_storage_ranges(numbers, _KEPT)
    return [Range(*numbers[i * width : (i + 1) * width]) for i in range(count)]


def address(path: str | os.PathLike) -> str:
  """Returns the address of a local path on the storage."""
  return f'slow://{os.path.abspath(path)}'


def start(latency: float = SECONDS) -> SlowStorage:
  """Starts the storage, or returns the one of this process, with no counts.

  Args:
    latency: seconds that each request takes.

  Raises:
    CannotCompile: with the reason.
  """
  storage = _start()
  storage.set_latency(latency)
  storage.reset()
  return storage


@functools.cache
def _start() -> SlowStorage:
  with tempfile.TemporaryDirectory() as folder:
    path = compile_to(Path(folder))
    tf.experimental.register_filesystem_plugin(str(path))
    # Loaded from here on; the file is needed no more.
    return SlowStorage(ctypes.CDLL(str(path)))


def compile_to(folder: Path) -> Path:
  """Compiles the plug-in for the TensorFlow that is installed.

  Returns:
    The library's path.

  Raises:
    CannotCompile: with the reason.
  """
  compiler = shutil.which(os.environ.get('CC', 'cc'))
  if compiler is None:
    raise CannotCompile('there is no C compiler to build slow:// with')
  library = folder / 'slow_storage.so'
  done = subprocess.run(
    [
      *(compiler, '-std=gnu11', '-O2', '-Wall', '-Werror', '-shared', '-fPIC'),
      f'-I{tf.sysconfig.get_include()}',
      *(Path(__file__).with_suffix('.c'), '-o', library),
      *tf.sysconfig.get_link_flags(),
    ],
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise CannotCompile(f'{compiler} cannot build slow://: {done.stderr}')
  return library
