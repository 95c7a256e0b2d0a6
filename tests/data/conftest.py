# SPDX-License-Identifier: Apache-2.0
"""Small folders of faces that the tests of this room read and damage."""

import io

import numpy as np
import pytest
from PIL import Image

from elasticface_jax.data.sources.recordio import write_rec_folder

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 3, 4]
NUM_CLASSES = 5  # Class 2 has no image.


def encode(pixels, form='jpeg'):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, form)
  return out.getvalue()


@pytest.fixture(scope='session')
def pixels():
  """Distinct smooth images, before JPEG: uint8 [10, 112, 112, 3]."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (len(LABELS), 7, 7, 3), np.uint8)
  return coarse.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope='session')
def jpegs(pixels):
  return [encode(image) for image in pixels]


@pytest.fixture(scope='session')
def decoded(jpegs):
  """What Pillow makes of the JPEGs: another decoder than the one tested."""
  return np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in jpegs])


@pytest.fixture
def folder(tmp_path, jpegs):
  path = tmp_path / 'faces'
  write_rec_folder(path, zip(jpegs, LABELS, strict=True), NUM_CLASSES)
  return path
