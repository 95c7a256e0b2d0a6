# SPDX-License-Identifier: Apache-2.0
"""Sources of images, opened by the name that a config gives."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.folder import FolderSource
from elasticface_jax.data.sources.rec import RecSource, is_rec
from elasticface_jax.data.sources.shards import INFO, ShardSource
from elasticface_jax.data.sources.synthetic import SyntheticFaces
from elasticface_jax.errors import InputError


class Source(Protocol):
  """Labelled faces by number, the interface of files and of drawn faces.

  Attributes:
    num_images: number of images n.
    num_classes: number of classes C.
  """

  num_images: int
  num_classes: int

  @property
  def fingerprint(self) -> str:
    """SHA-256 that identifies images and labels, hexadecimal."""

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes images; called from several threads at once.

    Work that needs several cores (decoding, drawing) must release Python's
    lock.

    Args:
      indices: numbers of the images, int64 in ``[0, num_images)``, ``[k]``.

    Returns:
      RGB images, uint8, ``[k, 112, 112, 3]``, and labels, int32 in ``[0, C)``,
      ``[k]``. The same index always gives the same bytes.

    Raises:
      InputError: names the image that cannot be made.
    """

  def warm(self, indices: np.ndarray) -> None:
    """Fetches images that are needed soon from remote storage into caches.

    Args:
      indices: numbers of the images, mostly neighbours, int64, ``[k]``.
    """


def open_source(
  source: str | os.PathLike,
  *,
  num_images: int,
  num_classes: int,
  seed: int,
  cache: str | os.PathLike | None = None,
) -> Source:
  """Opens a config's `data.source`.

  Args:
    source: a path as for `open_encoded`, or ``'synthetic'``.
    num_images: number of synthetic images; ignored for files.
    num_classes: number of synthetic identities; ignored for files.
    seed: seed of synthetic images; ignored for files.
    cache: as for `open_encoded`.

  Returns:
    The source.

  Raises:
    InputError: if there is no such source.
  """
  if source == 'synthetic':
    return SyntheticFaces(num_images, num_classes, seed)
  return open_encoded(source, cache=cache)


def open_encoded(
  path: str | os.PathLike, *, cache: str | os.PathLike | None = None
) -> EncodedSource:
  """Opens encoded images in files; the content of the path gives the format.

  Args:
    path: a folder with ``train.rec``; one with shards and
      ``dataset_info.json``, or its address such as ``gs://bucket/faces``; or
      one with a folder of images for each person.
    cache: folder for an index of the images, used if `path` cannot be written;
      None for none.

  Returns:
    The source.

  Raises:
    InputError: if it is none of these.
  """
  if is_remote(path):
    return ShardSource(path, cache=cache)
  folder = Path(path)
  if not folder.is_dir():
    found = 'is a file' if folder.exists() else 'no such folder'
    raise InputError(
      f'{folder}: {found}; give a folder with train.rec, one with shards and '
      'dataset_info.json, or one with a folder of images for each person'
    )
  if is_rec(folder):
    return RecSource(folder, cache=cache)
  if (folder / INFO).exists() or any(folder.glob(f'*/*/{INFO}')):
    return ShardSource(folder, cache=cache)
  return FolderSource(folder, cache=cache)
