# SPDX-License-Identifier: Apache-2.0
"""The order in windows: exact, stateless, and mostly sequential on storage."""

import numpy as np
import pytest

from elasticface_jax.data import order as order_module
from elasticface_jax.data.order import RUN, batch_indices, images_to_come
from elasticface_jax.errors import InputError


def order(num_images, window, *, seed=0, epoch=0):
  return batch_indices(
    epoch,
    num_images=num_images,
    seed=seed,
    batch_size=num_images,
    window=window,
  )


@pytest.mark.parametrize('window', [RUN, 4 * RUN, 5000, 2**20])
@pytest.mark.parametrize('num_images', [1, 5, RUN - 1, RUN, RUN + 1, 9_999])
def test_every_epoch_shows_each_image_once(num_images, window):
  for epoch in (0, 1, 10**9):
    indices = order(num_images, window, epoch=epoch)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(np.sort(indices), np.arange(num_images))


def test_a_window_reads_few_runs():
  n, window = 100 * RUN + 300, 8 * RUN
  indices = order(n, window)
  for start in range(0, n, window):
    runs = np.unique(indices[start : start + window] // RUN)
    # Its own, and one more where the short run has moved the edges.
    assert len(runs) <= 9


def test_runs_and_windows_are_shuffled():
  n, window = 32 * RUN, 8 * RUN
  orders = np.stack(
    [order(n, window, seed=seed, epoch=e) for seed in (0, 1) for e in range(4)]
  )
  assert len(np.unique(orders, axis=0)) == len(orders)
  for indices in orders:
    for lag in (1, 2, 64):
      steps = indices[lag:] - indices[:-lag]
      assert np.mean(steps == lag) < 0.01
    in_window = indices[:window]
    place = np.arange(window)
    assert abs(np.corrcoef(in_window % RUN, place % RUN)[0, 1]) < 0.06
  # The run that comes first is another one in every epoch, mostly.
  assert len({indices[0] // RUN for indices in orders}) > 4


def test_the_short_run_has_no_place_of_its_own():
  n = 4 * RUN + 100
  places = {
    int(np.flatnonzero(order(n, RUN, epoch=epoch) >= 4 * RUN)[0]) // RUN
    for epoch in range(30)
  }
  assert places == set(range(5))


def test_batches_are_pieces_of_one_stream():
  n, window, size = 3 * RUN + 77, RUN, 500
  stream = np.concatenate([order(n, window, epoch=e) for e in range(3)])
  for step in range(18):
    indices = batch_indices(
      step, num_images=n, seed=0, batch_size=size, window=window
    )
    np.testing.assert_array_equal(
      indices, stream[step * size : (step + 1) * size]
    )
    rows = slice(100, 300)
    part = batch_indices(
      step, num_images=n, seed=0, batch_size=size, window=window, rows=rows
    )
    np.testing.assert_array_equal(part, indices[rows])


def test_order_is_this_one():
  # A change of it changes every run that has a window.
  indices = order(2 * RUN + 10, 2 * RUN, seed=3)
  assert indices[:5].tolist() == [462, 1967, 1122, 679, 957]
  assert indices[-3:].tolist() == [2042, 2044, 2047]


@pytest.mark.parametrize('first_step', [0, 7, 55])
@pytest.mark.parametrize('num_images', [3 * RUN, 40 * RUN + 300])
def test_images_are_fetched_before_their_batch(num_images, first_step):
  case = dict(num_images=num_images, seed=1, batch_size=700, window=4 * RUN)
  fetched = set()
  for step in range(first_step, first_step + 60):
    if step > first_step:
      # Nothing was missing before the last step's fetching ended.
      assert fetched.issuperset(batch_indices(step, **case).tolist())
    for piece in images_to_come(step, first=step == first_step, **case):
      assert len(piece) <= RUN
      fetched.update(piece.tolist())
    if step == first_step:
      assert fetched.issuperset(batch_indices(step, **case).tolist())
      assert len(fetched) <= 3 * 4 * RUN  # Wherever the run resumes.


def test_fetching_reads_each_image_once_an_epoch():
  n, size = 10 * RUN, 512
  pieces = [
    piece
    for step in range(20, 40)
    for piece in images_to_come(
      step, num_images=n, seed=0, batch_size=size, window=2 * RUN, first=False
    )
  ]
  fetched = np.concatenate(pieces)
  assert len(fetched) == n
  assert np.bincount(fetched, minlength=n).max() <= 2  # Of two epochs.
  assert np.mean(np.diff(fetched) == 1) > 0.99


@pytest.mark.parametrize('seed', [0, 1, 2**31 - 1, 2**40, 2**128 - 1])
def test_keys_are_those_of_numpy(seed):
  rng = np.random.default_rng(seed)
  epochs = np.array([0, 1, 26, 2**32 - 1, *rng.integers(0, 2**32, 20)])
  windows = np.array([0, 1, 89, 2**32 - 1, *rng.integers(0, 2**32, 20)])
  for streams in ((epochs,), (epochs, windows)):
    words = np.stack(order_module._words(seed, *streams), axis=1)
    for got, stream in zip(words, zip(*streams, strict=True), strict=True):
      sequence = np.random.SeedSequence(seed, spawn_key=map(int, stream))
      np.testing.assert_array_equal(got, sequence.generate_state(4))


def test_epochs_beyond_the_keys():
  case = dict(num_images=2, seed=0, batch_size=4)
  batch_indices(2**31 - 1, **case)
  with pytest.raises(
    InputError, match=r'2147483649 steps of 4 images are more'
  ):
    batch_indices(2**31, **case)
