# SPDX-License-Identifier: Apache-2.0
"""Arrays about a data set, made once and kept in files.

Finding the images of a large set takes from seconds (the index of a ``.rec``)
to minutes (millions of files in folders), and checking them longer. The result
is kept as ``.npz`` next to the data, or in the run folder if the data folder
cannot be written. It contains a stamp of the files it was made from, and is
made again when they have changed.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.errors import InputError

NAME = '.elasticface_index.npz'  # Places of the images.
CHECKS = '.elasticface_checks.npz'  # What decoding them has shown (`checks`).
_STAMP = 'stamp'


class Kept:
  """Arrays that are kept in files, in the first folder that can be written.

  Args:
    folders: paths, or addresses that are only read; none to keep nothing.
    stamp: sizes, times and versions of the files the arrays are made from, for
      JSON.
  """

  def __init__(self, folders: Sequence[str | os.PathLike], stamp: Mapping):
    self._folders = [os.fspath(folder) for folder in folders]
    self._stamp = json.dumps(stamp, sort_keys=True)

  def arrays(
    self, name: str, build: Callable[[], dict[str, np.ndarray]]
  ) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, or makes and keeps them.

    Args:
      name: of the file.
      build: makes the arrays.

    Returns:
      The arrays by name.
    """
    arrays = self.read(name)
    if arrays is None:
      arrays = build()
      self.write(name, arrays)
    return arrays

  def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays in the first folder that can be written, if any can be."""
    for folder in self._folders:
      if not is_remote(folder) and _write(
        Path(folder) / name, arrays | {_STAMP: np.array(self._stamp)}
      ):
        break

  def read(self, name: str) -> dict[str, np.ndarray] | None:
    """Reads the arrays of a file with this stamp; None without one."""
    return self._find(name)[1]

  def path(self, name: str) -> str | None:
    """Returns the path of a kept file with this stamp; None without one."""
    return self._find(name)[0]

  def _find(self, name: str) -> tuple[str, dict] | tuple[None, None]:
    for folder in self._folders:
      path = f'{folder}/{name}'
      arrays = _read(path)
      if arrays is not None and str(arrays.pop(_STAMP, '')) == self._stamp:
        return path, arrays
    return None, None


def stamp_of(*paths: Path) -> dict[str, list[int]]:
  """Returns size and time of change of files or folders, by name."""
  return {
    path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths
  }


def _read(path: str) -> dict[str, np.ndarray] | None:
  try:
    if is_remote(path):
      with tensorflow().io.gfile.GFile(path, 'rb') as remote:
        file = io.BytesIO(remote.read())
    else:
      file = open(path, 'rb')
    with file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)  # Reading verifies the checksums.
  except Exception:
    # A damaged file can raise almost anything; it is made again.
    return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> bool:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as part:
      np.savez(part, **arrays)
  except (OSError, InputError):
    return False
  return True
