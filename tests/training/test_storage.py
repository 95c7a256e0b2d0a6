# SPDX-License-Identifier: Apache-2.0
"""Runs on images in files: the same from every storage, and what they say."""

import io

import numpy as np
import pytest
from PIL import Image

import elasticface_jax.train
from elasticface_jax import data

SHORT = {'eval__pairs': '()', 'total_steps': 2}
NUM_CLASSES, EACH = 20, 3
FORMS = 'rec', 'tfrecord', 'people'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Drawn faces in three forms, by name."""
  root = tmp_path_factory.mktemp('faces')
  paths = {form: root / form for form in FORMS}
  faces = data.SyntheticFaces(NUM_CLASSES * EACH, NUM_CLASSES, seed=0)
  images = []
  for label in range(NUM_CLASSES):
    person = paths['people'] / f'{label:02}'
    person.mkdir(parents=True)
    pixels, _ = faces.render(np.arange(label, faces.num_images, NUM_CLASSES))
    for number, image in enumerate(pixels):
      out = io.BytesIO()
      Image.fromarray(image).save(out, 'jpeg')
      images.append((out.getvalue(), label))
      (person / f'{number}.jpg').write_bytes(out.getvalue())
  data.write_rec_folder(paths['rec'], images, NUM_CLASSES)
  rec = data.open_encoded(paths['rec'])
  data.prepare_shards(rec, paths['tfrecord'], num_shards=2)
  return paths


@pytest.mark.slow
def test_one_fingerprint_from_every_storage(written, tmp_path, train_here):
  prints = set()
  for form, path in written.items():
    code, out, err = train_here(tmp_path / form, data__source=path, **SHORT)
    assert code == 0, err
    prints.add(out.splitlines()[-1])
    # Shards bring their checks.
    assert ('checking 60 images, once' in out) == (form == 'people')
    assert 'by threads of Python' not in out
  assert len(prints) == 1


def test_large_rec_is_told_of_shards(
  written, tmp_path, train_here, monkeypatch
):
  monkeypatch.setattr(elasticface_jax.train, '_LARGE', 59)
  _, out, _ = train_here(tmp_path, data__source=written['rec'], **SHORT)
  path = written['rec']
  assert (
    f'{path} is read by threads of Python; for so many images, `elasticface '
    f'prepare {path} OUT` makes shards, which a graph of TensorFlow reads'
  ) in out


def test_images_that_cannot_be_trained_on(written, tmp_path, train_here):
  people = written['people']
  path = people / '03' / '1.jpg'
  intact = path.read_bytes()
  path.write_bytes(intact[:-99])
  (people / '.elasticface_checks.npz').unlink(missing_ok=True)
  code, out, err = train_here(
    tmp_path, data__source=people, **SHORT | {'total_steps': 50}
  )
  path.write_bytes(intact)
  (people / '.elasticface_checks.npz').unlink()
  assert (
    f'1 of 60 images cannot be trained on, such as {path}: training will stop '
    'at the first that comes'
  ) in out
  assert code == 2
  assert err[-1].startswith(f'elasticface: {path}: a damaged image')
