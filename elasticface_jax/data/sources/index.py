# SPDX-License-Identifier: Apache-2.0
"""Where each image lies, found once and kept.

Finding the images of a large set takes from seconds (the index of a ``.rec``)
to minutes (millions of files in folders), so the outcome is kept as one
``.npz``: beside the data, or in the run folder where the data cannot be
written. It carries a stamp of what it was made from, and is made again when
that has changed.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

NAME = '.elasticface_index.npz'
_STAMP = 'stamp'


def cached(
  folders: list[Path],
  stamp: Mapping,
  build: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Reads the arrays of an index, or builds and keeps them.

  Args:
    folders: where it may be kept, the first that can be written wins; none for
      an index that is not kept.
    stamp: what it is made from: JSON of sizes, times and versions.
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
  """Length and time of change of files or folders, by name."""
  return {
    path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths
  }


def _read(path: Path) -> dict[str, np.ndarray] | None:
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)  # Checksums are held against the bytes.
  except Exception:
    # A damaged one can raise almost anything; it is made again.
    return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> bool:
  # Several processes may build the same index at once.
  part = path.with_name(f'{path.name}.{os.uname().nodename}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(part, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(part, path)
  except OSError:
    with contextlib.suppress(OSError):
      part.unlink()
    return False
  return True
