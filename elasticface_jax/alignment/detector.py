# SPDX-License-Identifier: Apache-2.0
"""The detector for photographs without landmarks: MTCNN, of the package mtcnn.

It brings its weights in the wheel, runs in the TensorFlow that reading data
needs anyway, and finds the five points of the template.
"""

from typing import Any, Protocol

import numpy as np

from elasticface_jax import missing
from elasticface_jax.alignment.similarity import (
  NotAligned,
  face_size,
  similarity,
)
from elasticface_jax.data.sources import decode

# Columns of a detection: number of the image, box, confidence, and then five x
# and five y, whatever the package's docstring says.
_CONFIDENCE, _POINTS = 5, slice(6, 16)
# The package's own threshold of 0.8 finds faces in folds of clothes, each of
# which makes a second face of a portrait.
_LEAST_CONFIDENCE = 0.9


class Network(Protocol):
  """The interface of ``mtcnn.MTCNN`` that is used."""

  def detect_faces(self, image: np.ndarray, *, output_type: str) -> Any:
    """Returns detections, ``[k, 16]``; ``[0, any]`` if there are none."""


class Detector:
  """A detector as the origin of landmarks, for `source.search`.

  Args:
    network: finds the faces.
    min_face: least side of a face, in pixels, as `face_size` measures it.
      Smaller ones count only where there is no other.
  """

  # TensorFlow uses all cores for one image.
  parallel = False

  def __init__(self, network: Network, min_face: float):
    self._network, self._min_face = network, min_face

  def find(self, name: str, image: np.ndarray) -> np.ndarray:
    """Returns the five points of the only face of an image.

    Args:
      name: of the image; not used.
      image: RGB, uint8, ``[H, W, 3]``.

    Returns:
      float64, ``[5, 2]``, as for `similarity`.

    Raises:
      NotAligned: if no face is found, or more than one.
    """
    faces = self.faces(image)
    large = [f for f in faces if _size(f) >= self._min_face] or faces
    if not large:
      raise NotAligned('no face was found')
    if len(large) > 1:
      places = ', '.join(
        f'({x:.0f}, {y:.0f})' for x, y in (face.mean(0) for face in large[:3])
      )
      more = ', ...' if len(large) > 3 else ''
      raise NotAligned(
        'several faces were found',
        f'{len(large)} faces were found, at {places}{more}; crop the image, '
        'give the points by --landmarks, or ignore small faces by --min-face',
      )
    return large[0]

  def faces(self, image: np.ndarray) -> list[np.ndarray]:
    """Finds all faces of an image.

    Args:
      image: RGB, uint8, ``[H, W, 3]``.

    Returns:
      Five points of each, float64, ``[5, 2]``.
    """
    found = np.asarray(
      self._network.detect_faces(image, output_type='numpy'), np.float64
    )
    if not found.size:
      return []
    return [
      row[_POINTS].reshape(2, 5).T
      for row in found
      if row[_CONFIDENCE] >= _LEAST_CONFIDENCE
    ]


def mtcnn(min_face: float) -> Detector:
  """Opens MTCNN, on the CPU.

  Args:
    min_face: as for `Detector`.

  Returns:
    The detector. On one machine it finds the same points in the same image at
    every call.

  Raises:
    MissingPackage: if the extra ``[detect]`` is not installed.
  """
  with missing.needs('--detect'):
    decode.tensorflow()  # Before mtcnn imports it, loudly.
    from mtcnn import MTCNN
  return Detector(MTCNN(device='CPU:0'), min_face)


def _size(points: np.ndarray) -> float:
  return face_size(similarity(points))
