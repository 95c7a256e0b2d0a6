# SPDX-License-Identifier: Apache-2.0
"""Index of the images' places, built once and cached in a file.

Finding the images of a large set takes from seconds (the index of a ``.rec``)
to minutes (millions of files in folders). The result is cached as one ``.npz``
next to the data, or in the run folder if the data folder cannot be written. It
contains a stamp of the files it was made from, and is built again when they
have changed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.errors import InputError

NAME = '.elasticface_index.npz'
_STAMP = 'stamp'


def cached(
  folders: list[Path],
  stamp: Mapping,
  build: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Reads the arrays of a cached index, or builds and caches them.

  Args:
    folders: folders for the file, of which the first that can be written is
      used; an empty list for no file.
    stamp: sizes, times and versions of the files it is made from, for JSON.
    build: makes the arrays.

  Returns:
    The arrays by name.
  """
  text = json.dumps(stamp, sort_keys=True)
  for folder in folders:
    arrays = _read(folder / NAME)
    if arrays is not None and str(arrays.pop(_STAMP, '')) == text:
      return arrays
  arrays = build()
  for folder in folders:
    if _write(folder / NAME, arrays | {_STAMP: np.array(text)}):
      break
  return arrays


def stamp_of(*paths: Path) -> dict[str, list[int]]:
  """Returns size and time of change of files or folders, by name."""
  return {
    path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths
  }


def _read(path: Path) -> dict[str, np.ndarray] | None:
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)  # Reading verifies the checksums.
  except Exception:
    # A damaged file can raise almost anything; it is built again.
    return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> bool:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as part:
      np.savez(part, **arrays)
  except (OSError, InputError):
    return False
  return True
