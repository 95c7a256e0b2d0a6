# SPDX-License-Identifier: Apache-2.0
"""Photographs whose faces are known."""

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import alignment, data

TEMPLATE = np.array(alignment.TEMPLATE)
PEOPLE = ('ann', 'bob')


@pytest.fixture
def photographs(tmp_path):
  """Two people with two photographs each: faces and points by name.

  A photograph is a face that is turned by a quarter and placed on grey, so that
  aligning it gives back the very pixels.
  """
  images, _ = data.synthetic_pairs(20, 3)
  known = {}
  for row, image in enumerate(images[:4]):
    name = f'{PEOPLE[row // 2]}/{PEOPLE[row // 2]}_000{row % 2 + 1}.png'
    photograph = np.full((200, 180, 3), 90, np.uint8)
    x, y = 20 + 7 * row, 50 - 11 * row
    photograph[y : y + 112, x : x + 112] = np.rot90(image)
    points = np.stack([TEMPLATE[:, 1], 111 - TEMPLATE[:, 0]], axis=1) + [x, y]
    path = tmp_path / 'photos' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).save(path)
    known[name] = image, points
  return known


@pytest.fixture
def points_file(photographs, tmp_path):
  """File of the points of all photographs, as IJB has them."""
  path = tmp_path / 'points.txt'
  path.write_text(lines({n: points for n, (_, points) in photographs.items()}))
  return path


def lines(points):
  """Lines of a file of landmarks, with a score."""
  return ''.join(
    f'{name} {" ".join(map(repr, values.ravel().tolist()))} 0.9\n'
    for name, values in points.items()
  )
