# SPDX-License-Identifier: Apache-2.0
"""Sets of `elasticface evaluate`: pair sets and the larger benchmarks.

A set is opened, with all its lists, before any image is embedded: a
mistake ends a command before its work. It then asks for its embeddings, which
are computed or saved (`embeddings`), and gives its results by name.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from elasticface_jax import alignment, data, embeddings, pair_sets
from elasticface_jax.errors import InputError
from elasticface_jax.models.faces import IMAGE_SHAPE

Faces = embeddings.Computed | embeddings.Saved


class EvaluationSet(Protocol):
  """Images, and the protocol of their embeddings.

  Attributes:
    name: of the set, with which the names of its results begin.
    path: of the set, as the user names it.
    num_images: number of images to embed.
  """

  name: str
  path: str
  num_images: int

  def evaluate(
    self, faces: Faces, progress: embeddings.Progress
  ) -> dict[str, Any]:
    """Embeds the images and computes the results.

    Args:
      faces: gives the embeddings.
      progress: called with the number of images done, and of all.

    Returns:
      Results by name.

    Raises:
      InputError: if an image or an embedding cannot be used.
    """


class Pairs:
  """A pair set whose images a network embeds."""

  def __init__(
    self, path: str, pairs: data.PairSet, *, folds: int, fars: tuple[float, ...]
  ):
    """Takes a pair set.

    Args:
      path: of the set, as the user names it.
      pairs: from `pair_sets.open_pair_sets`.
      folds: of the cross-validation.
      fars: rates at which TAR is given.
    """
    self.name, self.path = pairs.name, path
    self.num_images = len(pairs.images)
    self._pairs, self._folds, self._fars = pairs, folds, fars

  def evaluate(
    self, faces: embeddings.Computed, progress: embeddings.Progress
  ) -> dict[str, Any]:
    """Verifies the pairs; see `EvaluationSet`."""
    found = faces.of_images(self._pairs.images, progress)
    result = pair_sets.verify(self._pairs, found, self._folds, self._fars)
    return {self._pairs.name: result}


class SavedPairs:
  """A pair set whose embeddings were saved, with the truth beside them."""

  def __init__(
    self, folder: embeddings.Folder, *, folds: int, fars: tuple[float, ...]
  ):
    """Takes a folder.

    Args:
      folder: of embeddings, with ``same.npy``.
      folds: of the cross-validation.
      fars: rates at which TAR is given.

    Raises:
      InputError: if it has fewer pairs than folds.
    """
    pair_sets.check_folds(str(folder.path), len(folder.same), folds)
    self.name, self.path = folder.name, folder.data
    self.num_images = len(folder.array)
    self._folder, self._folds, self._fars = folder, folds, fars

  def evaluate(
    self, faces: embeddings.Saved, progress: embeddings.Progress
  ) -> dict[str, Any]:
    """Verifies the pairs; see `EvaluationSet`."""
    folder = self._folder
    pairs = data.PairSet(
      folder.name, np.zeros((0, *IMAGE_SHAPE), np.uint8), folder.same
    )
    result = pair_sets.verify(pairs, folder.array, self._folds, self._fars)
    progress(self.num_images, self.num_images)
    return {folder.name: result}


class Files:
  """A benchmark whose images are files, such as IJB-C."""

  def __init__(
    self,
    name: str,
    path: str,
    image_paths: Sequence[str],
    protocol: Callable[[np.ndarray], Mapping[str, Any]],
    *,
    landmarks: np.ndarray | None = None,
  ):
    """Takes a benchmark.

    Args:
      name: of the benchmark.
      path: of its folder, as the user names it.
      image_paths: n files to embed.
      protocol: takes embeddings ``[n, D]`` and gives results by name.
      landmarks: of the faces in the images, ``[n, 5, 2]``; None for faces that
        are aligned.
    """
    self.name, self.path, self.num_images = name, path, len(image_paths)
    self._paths, self._landmarks = image_paths, landmarks
    self._protocol = protocol
    self._black: list[int] = []  # Faces outside of their image.

  def check_files(self) -> None:
    """Checks that all images are there, before hours of work.

    Raises:
      InputError: names the first one that is missing.
    """
    missing = [path for path in self._paths if not os.path.isfile(path)]
    if missing:
      raise InputError(
        f'{missing[0]}: No such file, the first of {len(missing):,} missing '
        f'images of {len(self._paths):,} of {self.name}; add them, or give '
        'embeddings of all images by --embeddings'
      )

  def evaluate(
    self, faces: Faces, progress: embeddings.Progress
  ) -> dict[str, Any]:
    """Evaluates the benchmark; see `EvaluationSet`."""
    found = faces.of_files(self._paths, self._read, progress)
    if self._black:
      first = self._paths[min(self._black)]
      print(
        f'{self.name}: faces of {len(self._black):,} images are black, as '
        f'their landmarks lie outside of them, such as those of {first}'
      )
    return dict(self._protocol(found))

  def _read(self, index: int) -> np.ndarray:
    """Reads the aligned face of an image."""
    path = self._paths[index]
    image = data.read_image(path)
    if self._landmarks is not None:
      try:
        face = alignment.align(image, self._landmarks[index])
      except InputError as error:
        raise InputError(f'{path}: {error}') from error
      if not face.any() and image.any():
        self._black.append(index)
      return face
    if image.shape != IMAGE_SHAPE:
      height, width, _ = image.shape
      raise InputError(
        f'{path}: the image is {width}x{height}, not 112x112; give aligned '
        'crops'
      )
    return image
