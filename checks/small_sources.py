# SPDX-License-Identifier: Apache-2.0
"""A small data set in all layouts; shared by checks and tests, not a check."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from elasticface_jax import data

NAMES = ('shards', 'folder', 'rec')


def write(
  folder: Path, num_classes: int, images_of_each: int
) -> dict[str, Path]:
  """Writes the same drawn images in all layouts; returns their paths."""
  rng = np.random.default_rng(0)
  paths = {name: folder / name for name in NAMES}
  images = []
  for label in range(num_classes):
    person = paths['folder'] / f'{label:03}'
    person.mkdir(parents=True)
    for number in range(images_of_each):
      coarse = rng.integers(0, 256, (7, 7, 3), np.uint8)
      out = io.BytesIO()
      pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)
      Image.fromarray(pixels).save(out, 'jpeg')
      images.append((out.getvalue(), label))
      (person / f'{number}.jpg').write_bytes(out.getvalue())
  data.write_rec_folder(paths['rec'], images, num_classes)
  rec = data.open_encoded(paths['rec'])
  data.prepare_shards(rec, paths['shards'], num_shards=2)
  return paths
