# SPDX-License-Identifier: Apache-2.0
"""Drawn faces: stateless, repeatable, and distinct only in the face."""

import concurrent.futures

import numpy as np
import pytest

from elasticface_jax.data.sources import synthetic
from elasticface_jax.errors import InputError

# Mean grey level of each 16x16 pixels of two images, by the version that drew
# them. Other images need another version: fingerprints identify images.
_GOLDEN = {
  'elasticface_jax synthetic faces 1': bytes.fromhex(
    'e8d06f58808258f474655f307f5cfa656968506c58fb9864684b864b'
    'f8d16d50608138eaf574576b672b9cb75a353c2d110836637c848181'
    '1953747968868e243f58656a729c283a686a7775a32a435e6d737e9f'
    '1840575f6f7f880b273c4e505d60'
  ),
}


@pytest.fixture(scope='module')
def faces():
  return synthetic.SyntheticFaces(num_images=60, num_classes=7, seed=3)


def _accuracy(embeddings, same):
  """Computes the accuracy of the best threshold on centred cosines."""
  embeddings = embeddings.reshape(2 * len(same), -1).astype(np.float64)
  embeddings -= embeddings.mean(0)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  cosines = (embeddings[::2] * embeddings[1::2]).sum(1)
  return max(np.mean((cosines >= t) == same) for t in cosines)


def test_an_image_does_not_depend_on_what_is_drawn_with_it(faces):
  together, labels = faces.render(np.arange(60))
  assert together.shape == (60, 112, 112, 3)
  assert together.dtype == np.uint8 and labels.dtype == np.int32
  np.testing.assert_array_equal(labels, np.arange(60) % 7)
  some = np.array([59, 0, 8, 8])
  np.testing.assert_array_equal(faces.render(some)[0], together[some])
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    apart = pool.map(lambda i: faces.render(np.array([i]))[0][0], range(60))
    np.testing.assert_array_equal(np.stack(list(apart)), together)


def test_an_image_depends_on_seed_identity_and_number_alone(faces):
  def image(index, num_images, num_classes, seed):
    source = synthetic.SyntheticFaces(num_images, num_classes, seed)
    return source.render(np.array([index]))[0]

  second_of_identity_2 = image(9, 60, 7, 3)
  np.testing.assert_array_equal(image(5, 6, 3, 3), second_of_identity_2)
  assert not np.array_equal(image(9, 60, 7, 4), second_of_identity_2)
  everything = faces.render(np.arange(60))[0].reshape(60, -1)
  assert len(np.unique(everything, axis=0)) == 60


def test_empty_render(faces):
  images, labels = faces.render(np.array([], np.int64))
  assert images.shape == (0, 112, 112, 3) and labels.shape == (0,)


def test_an_index_past_the_end_is_refused(faces):
  with pytest.raises(IndexError):
    faces.render(np.array([60]))


def test_classes_are_evenly_filled(faces):
  assert faces.num_images == 60 and faces.num_classes == 7
  assert faces.labels.dtype == np.int32
  assert set(np.bincount(faces.labels, minlength=7)) == {8, 9}


def test_fingerprint_names_the_pictures(monkeypatch):
  def fingerprint(*numbers):
    return synthetic.SyntheticFaces(*numbers).fingerprint

  first = fingerprint(60, 7, 3)
  assert first == fingerprint(60, 7, 3)
  assert len(first) == 64 and int(first, 16)
  others = {fingerprint(*n) for n in [(61, 7, 3), (60, 8, 3), (60, 7, 4)]}
  monkeypatch.setattr(synthetic, 'VERSION', 'another')
  others.add(fingerprint(60, 7, 3))
  assert len(others | {first}) == 5


def test_pictures_are_those_of_their_version():
  source = synthetic.SyntheticFaces(num_images=2, num_classes=2, seed=0)
  images = source.render(np.arange(2))[0].reshape(2, 7, 16, 7, 16, 3)
  golden = np.frombuffer(_GOLDEN[synthetic.VERSION], np.uint8)
  # Rounding, and a little more: the last bit of a sine depends on the platform.
  np.testing.assert_allclose(
    images.mean((2, 4, 5)).ravel(), golden, rtol=0, atol=0.6
  )


def test_an_identity_keeps_its_face():
  """Tests that means over many images identify their identity."""
  source = synthetic.SyntheticFaces(num_images=240, num_classes=8, seed=1)
  images = source.render(np.arange(240))[0].reshape(2, 15, 8, -1)
  first, second = images.mean(1, dtype=np.float32)
  distances = np.linalg.norm(first[:, None] - second[None], axis=2)
  assert np.mean(distances.argmin(1) == np.arange(8)) > 0.8


def test_neither_pixels_nor_colours_tell_identities_apart():
  images, same = synthetic.synthetic_pairs(200, seed=2)
  assert _accuracy(images[:, ::2, ::2], same) < 0.7
  assert _accuracy(images.mean((1, 2)), same) < 0.7


def test_windows_only_save_time(faces, monkeypatch):
  everything = slice(None), slice(0, synthetic.SIZE), slice(0, synthetic.SIZE)
  images = faces.render(np.arange(60))[0].astype(np.int32)
  monkeypatch.setattr(synthetic._Canvas, 'window', lambda *_: everything)
  difference = faces.render(np.arange(60))[0] - images
  assert np.abs(difference).max() <= 8


def test_every_tenth_of_the_pairs_is_half_genuine():
  images, same = synthetic.synthetic_pairs(40, seed=0)
  assert images.shape == (80, 112, 112, 3) and images.dtype == np.uint8
  assert same.shape == (40,) and same.dtype == bool
  np.testing.assert_array_equal(same.reshape(10, 4).sum(1), 2)
  assert len(np.unique(images.reshape(80, -1), axis=0)) == 80
  np.testing.assert_array_equal(synthetic.synthetic_pairs(40, 0)[0], images)
  assert not np.array_equal(synthetic.synthetic_pairs(40, 1)[0], images)


def test_pairs_share_no_identity_with_each_other_or_training(monkeypatch):
  monkeypatch.setattr(synthetic, '_render', lambda *drawn: drawn)
  (_, identities, numbers), same = synthetic.synthetic_pairs(600, seed=0)
  first, second = identities.reshape(-1, 2).T
  np.testing.assert_array_equal(first == second, same)
  assert np.all(numbers.reshape(-1, 2) == [0, 1])
  assert len(np.unique(identities)) == 2 * 600 - same.sum()
  assert identities.min() > np.iinfo(np.int32).max  # Labels are int32.


@pytest.mark.parametrize(
  ('numbers', 'message'),
  [
    ((10, 0, 0), 'num_classes=0'),
    ((0, -1, 0), 'num_classes=-1'),
    ((0, 1, 0), 'num_images=0 is less than num_classes=1'),
    ((9, 10, 0), 'num_images=9 is less than num_classes=10'),
    ((9, 9, -1), 'seed=-1'),
    ((9, 9, 2**64), 'seed=18446744073709551616'),
  ],
)
def test_impossible_sources_are_refused(numbers, message):
  with pytest.raises(InputError, match=message):
    synthetic.SyntheticFaces(*numbers)


@pytest.mark.parametrize(
  ('numbers', 'message'),
  [((0, 0), 'num_pairs=0'), ((30, 0), 'num_pairs=30'), ((20, -1), 'seed=-1')],
)
def test_impossible_pair_sets_are_refused(numbers, message):
  with pytest.raises(InputError, match=message):
    synthetic.synthetic_pairs(*numbers)


def test_the_largest_seed_draws():
  source = synthetic.SyntheticFaces(1, 1, 2**64 - 1)
  assert source.render(np.array([0]))[0].std() > 0
