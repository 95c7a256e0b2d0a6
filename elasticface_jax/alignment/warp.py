# SPDX-License-Identifier: Apache-2.0
"""Resampling of a face to 112x112: exact bilinear, black beyond the image.

SciPy's, since it gives the same pixels everywhere: those of OpenCV's
``warpAffine`` depend on its version.
"""

import numpy as np
from scipy import ndimage

from elasticface_jax.alignment.similarity import similarity
from elasticface_jax.alignment.template import SIZE
from elasticface_jax.errors import InputError


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
  """Aligns a face to the template.

  Args:
    image: RGB, uint8, ``[H, W, 3]``; any order of channels keeps its order.
    landmarks: five points, as for `similarity`.

  Returns:
    The face, uint8, ``[112, 112, 3]``.

  Raises:
    InputError: as `similarity` and `warp`. Whether the points are those of a
      face is for `check` to say.

  Examples:
    >>> from elasticface_jax.alignment import TEMPLATE
    >>> face = np.arange(112 * 112 * 3, dtype=np.uint8).reshape(112, 112, 3)
    >>> bool((align(face, np.array(TEMPLATE)) == face).all())
    True
  """
  return warp(image, similarity(landmarks))


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Resamples an image to 112x112 by a similarity or any affine transform.

  A pixel is the bilinear mean of the four around its place in the image, which
  are black where there is no image, computed in float64 and rounded to the
  nearest, half to even. Nothing is smoothed first: a face that shrinks much
  is undersampled, as by insightface's aligner and the scripts for IJB.

  Args:
    image: uint8, ``[H, W, 3]``.
    matrix: from places in the image to places in the result, x before y,
      integers being centres of pixels; float, ``[2, 3]``.

  Returns:
    uint8, ``[112, 112, 3]``.

  Raises:
    InputError: if the image is no RGB image of uint8, or the matrix has no
      inverse.

  Examples:
    >>> image = np.full((4, 4, 3), 200, np.uint8)
    >>> warp(image, np.array([[1, 0, 0.5], [0, 1, 0]]))[0, :6, 0].tolist()
    [100, 200, 200, 200, 100, 0]
  """
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise InputError(
      f'the image is {image.dtype} of shape {image.shape}; give uint8 [H, W, 3]'
    )
  matrix = np.asarray(matrix, np.float64)
  try:
    inverse = np.linalg.inv(matrix[:, :2])
  except np.linalg.LinAlgError as error:
    raise InputError(f'{matrix.tolist()} cannot be inverted') from error
  # SciPy counts rows before columns.
  offset = -(inverse @ matrix[:, 2])[::-1]
  result = np.empty((SIZE, SIZE, 3), np.uint8)
  for channel in range(3):
    values = ndimage.affine_transform(
      image[..., channel],
      inverse[::-1, ::-1],
      offset,
      (SIZE, SIZE),
      np.float64,
      order=1,
      mode='grid-constant',
      cval=0,
    )
    # What is past the ends is an error of rounding.
    result[..., channel] = np.clip(np.rint(values), 0, 255)
  return result
