# SPDX-License-Identifier: Apache-2.0
"""Photographs of any size, read as the aligned faces in them.

First all photographs are searched for their points (`search`), so that what
cannot be aligned is known before any work; then each is aligned when it is
read.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from elasticface_jax.alignment.landmark_files import Landmarks
from elasticface_jax.alignment.similarity import NotAligned, check
from elasticface_jax.alignment.warp import align
from elasticface_jax.data.sources import decode
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.images import read_image
from elasticface_jax.data.threads import in_order
from elasticface_jax.errors import InputError

_THREADS = min(16, os.cpu_count() or 1)


class Finder(Protocol):
  """Origin of landmarks: a file, or a detector.

  Attributes:
    parallel: whether calls from several threads are faster.
  """

  parallel: bool

  def find(self, name: str, image: np.ndarray) -> np.ndarray:
    """Returns the five points of the only face of an image.

    Args:
      name: of the image.
      image: RGB, uint8, ``[H, W, 3]``.

    Returns:
      float64, ``[5, 2]``, as for `similarity`.

    Raises:
      NotAligned: if there is no face, or more than one.
    """


class FromFile:
  """Landmarks of a file as a `Finder`.

  Args:
    landmarks: of the file.
  """

  parallel = True

  def __init__(self, landmarks: Landmarks):
    self.landmarks = landmarks

  def find(self, name: str, image: np.ndarray) -> np.ndarray:
    """Implements `Finder.find`; the pixels do not matter."""
    return self.landmarks.find(name)


class Photographs(Protocol):
  """Images of any size, by number."""

  def __len__(self) -> int:
    """Returns the number of images."""

  def name(self, index: int) -> str:
    """Names an image, as a file of landmarks does."""

  def read(self, index: int) -> np.ndarray:
    """Reads an image.

    Raises:
      InputError: if it cannot be read.
    """


class Found(NamedTuple):
  """Result of a search for the points of photographs.

  Attributes:
    points: five of each, float64, ``[n, 5, 2]``; NaN where there are none.
    problems: of each photograph that cannot be aligned, by its number.
  """

  points: np.ndarray
  problems: dict[int, NotAligned]

  @property
  def kept(self) -> np.ndarray:
    """Numbers of the photographs that can be aligned, int64, rising."""
    return np.flatnonzero(np.isfinite(self.points).all((1, 2)))


def search(
  photographs: Photographs,
  finder: Finder,
  *,
  min_face: float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
  """Finds the points of all photographs, and checks them.

  Args:
    photographs: n images.
    finder: where points come from.
    min_face: as for `check`.
    progress: called now and then with the number of images done and of all.

  Returns:
    The points, and what is wrong with those that have none; also if they
    cannot be read.
  """

  def find(index):
    try:
      image = photographs.read(index)
    except InputError as error:
      return NotAligned('the image cannot be read', str(error))
    height, width, _ = image.shape
    try:
      points = finder.find(photographs.name(index), image)
      check(points, (width, height), min_face)
    except NotAligned as problem:
      return problem
    return points

  total = len(photographs)
  points, problems = np.full((total, 5, 2), np.nan), {}
  progress(0, total)
  pool = ThreadPoolExecutor(_THREADS)  # Its threads start with the first call.
  try:
    results = map(find, range(total))
    if finder.parallel:
      results = in_order(pool, find, range(total), ahead=4 * _THREADS)
    for index, found in enumerate(results):
      if isinstance(found, NotAligned):
        problems[index] = found
      else:
        points[index] = found
      progress(index + 1, total)
  finally:
    pool.shutdown(wait=True, cancel_futures=True)
  return Found(points, problems)


class Files:
  """Image files as photographs.

  Args:
    paths: the files.
    names: their names, in a file of landmarks.
  """

  def __init__(self, paths: Sequence[Path], names: Sequence[str]):
    self.paths, self.names = paths, names

  def __len__(self) -> int:
    """Implements `Photographs`."""
    return len(self.paths)

  def name(self, index: int) -> str:
    """Implements `Photographs.name`."""
    return self.names[index]

  def read(self, index: int) -> np.ndarray:
    """Implements `Photographs.read`."""
    return read_image(self.paths[index])


class Encoded:
  """A data set of images of any size, as photographs.

  Args:
    source: the data set.
  """

  def __init__(self, source: EncodedSource):
    self._source = source

  def __len__(self) -> int:
    """Implements `Photographs`."""
    return self._source.num_images

  def name(self, index: int) -> str:
    """Implements `Photographs.name`."""
    return self._source.image_name(index)

  def read(self, index: int) -> np.ndarray:
    """Implements `Photographs.read`."""
    (image,), _ = self.read_labelled(np.array([index]))
    return image

  def read_labelled(
    self, indices: np.ndarray
  ) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads images and their labels.

    Args:
      indices: numbers of the images, int64, ``[k]``.

    Returns:
      k images, RGB, uint8, ``[H, W, 3]``, and labels as stored, ``[k]``.

    Raises:
      InputError: names the first image that cannot be read.
    """
    encoded, labels = self._source.read(indices)
    images = []
    for index, one in zip(indices, encoded, strict=True):
      try:
        images.append(decode.decode_image(one))
      except decode.BadImage as error:
        raise InputError(
          f'{self._source.place(index)}: {error.problem}; copy it again, or '
          'remove it'
        ) from error
    return images, labels


class AlignedSource(EncodedSource):
  """A data set of the faces in the photographs of another one.

  Classes keep their numbers. An image is a PNG, so that nothing is lost once
  more: its pixels are those that `embed` and `verify` see.

  Args:
    source: the photographs.
    points: the five points of each, float64, ``[n, 5, 2]``.
    kept: numbers of the photographs that are aligned, int64, ``[k]``; the
      others are left out.
  """

  def __init__(
    self, source: EncodedSource, points: np.ndarray, kept: np.ndarray
  ):
    self._photographs, self._source = Encoded(source), source
    self._points, self._indices = points, kept
    self.path, self.layout = source.path, f'{source.layout}, aligned'
    self.num_images, self.num_classes = len(kept), source.num_classes

  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Implements `EncodedSource.read`: PNG files of aligned faces."""
    faces, labels = self._faces(indices)
    return [encode_png(face) for face in faces], labels

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Implements `EncodedSource.render`, without a PNG between."""
    faces, labels = self._faces(indices)
    return np.stack(faces), labels.astype(np.int32)

  def _faces(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    own = self._indices[indices]
    images, labels = self._photographs.read_labelled(own)
    return [
      align(image, points)
      for image, points in zip(images, self._points[own], strict=True)
    ], labels

  def place(self, index: int) -> str:
    """Implements `EncodedSource.place`."""
    return self._source.place(int(self._indices[index]))

  def image_name(self, index: int) -> str:
    """Implements `EncodedSource.image_name`."""
    return self._source.image_name(int(self._indices[index]))

  def class_name(self, label: int) -> str:
    """Implements `EncodedSource.class_name`."""
    return self._source.class_name(label)


def encode_png(image: np.ndarray) -> bytes:
  """Encodes an image without loss.

  Args:
    image: RGB, uint8, ``[H, W, 3]``.

  Returns:
    The bytes of a PNG.
  """
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'png')
  return out.getvalue()
