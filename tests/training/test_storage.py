# SPDX-License-Identifier: Apache-2.0
"""Runs on images in files: the same from every storage, and what they say."""

import pytest

import elasticface_jax.train
from checks import small_sources

SHORT = {'eval__pairs': '()', 'total_steps': 2}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Drawn images in three layouts, by name."""
  return small_sources.write(tmp_path_factory.mktemp('images'), 20, 3)


@pytest.mark.slow
def test_one_fingerprint_from_every_storage(written, tmp_path, train_here):
  prints = set()
  for form, path in written.items():
    code, out, err = train_here(tmp_path / form, data__source=path, **SHORT)
    assert code == 0, err
    prints.add(out.splitlines()[-1])
    # Shards bring their checks.
    assert ('checking 60 images, once' in out) == (form == 'folder')
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
  people = written['folder']
  path = people / '003' / '1.jpg'
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
