# SPDX-License-Identifier: Apache-2.0
"""Resampling: exact bilinear, black beyond the image."""

import numpy as np
import pytest

from elasticface_jax import alignment
from elasticface_jax.errors import InputError

TEMPLATE = np.array(alignment.TEMPLATE)


def bilinear(image, matrix):
  """Every value from its four neighbours, by their definition."""
  inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
  height, width, _ = image.shape
  result = np.zeros((112, 112, 3))
  for row in range(112):
    for column in range(112):
      x, y, _ = inverse @ [column, row, 1]
      for i in (int(np.floor(y)), int(np.floor(y)) + 1):
        for j in (int(np.floor(x)), int(np.floor(x)) + 1):
          if 0 <= i < height and 0 <= j < width:
            weight = (1 - abs(y - i)) * (1 - abs(x - j))
            result[row, column] += weight * image[i, j]
  return result


@pytest.mark.parametrize('scale', [0.3, 1.7])
def test_every_value_is_the_bilinear_one(scale):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (90, 130, 3), np.uint8)
  angle = rng.uniform(0, 6)
  matrix = scale * np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  # The centre of the image becomes that of the face; its corners are black.
  centre = matrix @ [64.5, 44.5]
  matrix = np.column_stack([matrix, [55.5, 55.5] - centre])
  exact = bilinear(image, matrix)
  found = alignment.warp(image, matrix)
  # Half a grey level is rounded either way by the last bit of a sum.
  assert np.abs(found - exact).max() <= 0.5 + 1e-9
  assert (found == 0).all(-1).any() == (exact == 0).all(-1).any()


def test_an_aligned_face_stays_as_it_is():
  face = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)
  np.testing.assert_array_equal(alignment.align(face, TEMPLATE), face)
  # A quarter turn has no pixel to interpolate.
  turned = np.rot90(face)  # (x, y) goes to (y, 111 - x).
  points = np.stack([TEMPLATE[:, 1], 111 - TEMPLATE[:, 0]], axis=1)
  np.testing.assert_array_equal(alignment.align(turned, points), face)


def test_landmarks_come_to_the_template():
  image = np.zeros((300, 300, 3), np.uint8)
  points = 2 * TEMPLATE[:, ::-1] * [1, -1] + [30, 260]  # Turned and doubled.
  for place, (x, y) in enumerate(np.rint(points).astype(int)):
    image[y - 3 : y + 4, x - 3 : x + 4] = 50 * (place + 1)
  face = alignment.align(image, points)
  for place, (x, y) in enumerate(np.rint(TEMPLATE).astype(int)):
    assert (face[y, x] == 50 * (place + 1)).all()


@pytest.mark.parametrize(
  ('image', 'matrix', 'message'),
  [
    (np.zeros((9, 9, 3)), np.eye(2, 3), 'float64 of shape'),
    (np.zeros((9, 9), np.uint8), np.eye(2, 3), r'\(9, 9\); give uint8'),
    (np.zeros((9, 9, 4), np.uint8), np.eye(2, 3), r'\(9, 9, 4\); give'),
    (np.zeros((9, 9, 3), np.uint8), np.zeros((2, 3)), 'cannot be inverted'),
  ],
)
def test_what_cannot_be_resampled(image, matrix, message):
  with pytest.raises(InputError, match=message):
    alignment.warp(image, matrix)
