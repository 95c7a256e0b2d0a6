# SPDX-License-Identifier: Apache-2.0
"""The input's benchmark."""

import pytest

from elasticface_jax import data
from elasticface_jax.benchmark import input, timing
from elasticface_jax.errors import InputError


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  folder = tmp_path_factory.mktemp('input') / 'faces'
  input.draw_rec_folder(folder, 230)
  return folder


def test_drawn_folder_is_sound(faces):
  report = data.inspect(faces)
  assert report.ok
  source = data.open_encoded(faces)
  assert (source.num_images, source.num_classes) == (230, 3)


def test_measure(faces, monkeypatch):
  monkeypatch.setattr(timing, 'PAUSE', 0.0)
  found = input.measure(
    str(faces), batch_size=40, images_per_second=1000, rounds=3, seconds=0.01
  )
  by_stage = found['seconds_per_image_of_one_thread']
  assert tuple(by_stage) == input.STAGES
  assert sum(found['share_of_stage'].values()) == pytest.approx(1)
  each = sum(by_stage.values())
  assert found['cores_per_accelerator'] == pytest.approx(1000 * each)
  rate = found['images_per_second']
  assert 100 < rate['min'] <= rate['median'] <= rate['max']
  assert found['num_images'] == 230


def test_mistakes(faces, tmp_path):
  with pytest.raises(InputError, match='--batch-size 231'):
    input.measure(
      str(faces), batch_size=231, images_per_second=1, rounds=1, seconds=0.01
    )
  with pytest.raises(InputError, match='no such folder'):
    input.check(str(tmp_path / 'none'))
  with pytest.raises(InputError, match='synthetic'):
    input.check('synthetic')
