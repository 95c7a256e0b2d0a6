# SPDX-License-Identifier: Apache-2.0
"""The order of images, and batches as functions of the step number."""

import collections
import threading
import time

import numpy as np
import pytest

from elasticface_jax.data import RecSource, batch_indices, batches
from elasticface_jax.errors import InputError

from .conftest import assert_interrupt_ends


class Numbers:
  """Source of images that show their own number; counts the images made."""

  fingerprint = ''

  def __init__(self, num_images, num_classes=7, bad=()):
    self.num_images, self.num_classes, self.bad = num_images, num_classes, bad
    self.made = collections.Counter()
    self.lock = threading.Lock()

  def render(self, indices):
    for index in indices.tolist():
      if index in self.bad:
        raise InputError(f'image {index} is bad')
    with self.lock:
      self.made.update(indices.tolist())
    images = np.zeros((len(indices), 112, 112, 3), np.uint8)
    images[:, 0, 0] = np.stack([indices >> 16, indices >> 8, indices], 1) & 255
    return images, (indices % self.num_classes).astype(np.int32)


def order(num_images, *, seed=0, epoch=0):
  return batch_indices(
    epoch, num_images=num_images, seed=seed, batch_size=num_images
  )


def epochs_of(num_images, epochs, *, seed=0):
  """Returns the orders of the first epochs, of one batch that spans them."""
  indices = batch_indices(
    0, num_images=num_images, seed=seed, batch_size=epochs * num_images
  )
  return indices.reshape(epochs, num_images)


def read(source, first_step, last_step, batch_size, **rest):
  return list(
    batches(
      source,
      seed=rest.pop('seed', 0),
      batch_size=batch_size,
      first_step=first_step,
      last_step=last_step,
      **rest,
    )
  )


@pytest.mark.parametrize('num_images', [1, 2, 3, 64, 65, 1000])
def test_every_epoch_shows_each_image_once(num_images):
  for epoch in (0, 1, 7, 10**9):
    for seed in (0, 1, 2**40):
      indices = order(num_images, seed=seed, epoch=epoch)
      assert indices.dtype == np.int64
      assert sorted(indices.tolist()) == list(range(num_images))


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = np.concatenate(
    [epochs_of(500, 100, seed=seed) for seed in (0, 1, 2**32, 2**33)]
  )
  assert len(np.unique(orders, axis=0)) == len(orders) == 400


def test_order_looks_like_a_shuffle():
  n = 100_000
  for seed, epoch in ((0, 0), (0, 1), (1, 0)):
    indices = order(n, seed=seed, epoch=epoch)
    step = np.diff(indices)
    # Expected 1 each; no difference stands out, nothing stays in its place.
    assert np.sum(step == 1) < 8
    assert np.unique(step, return_counts=True)[1].max() < 16
    assert np.sum(indices == np.arange(n)) < 8
    for lag in (1, 2, 64, 1024):
      correlation = np.corrcoef(indices[lag:], indices[:-lag])[0, 1]
      assert abs(correlation) < 5 / np.sqrt(n)


def test_images_meet_each_place_equally_often():
  n, epochs = 8, 400
  orders = epochs_of(n, epochs)
  counts = np.stack([np.bincount(column, minlength=n) for column in orders.T])
  chi_square = np.sum((counts - epochs / n) ** 2 / (epochs / n))
  assert chi_square < 90  # 49 degrees of freedom: p < 0.0004.


def test_order_is_this_one():
  # A change of it changes every run: the changelog must say so.
  assert order(10).tolist() == [1, 3, 0, 5, 8, 6, 2, 9, 4, 7]
  third = order(10, seed=3, epoch=2)
  assert third.tolist() == [3, 2, 7, 1, 5, 6, 4, 8, 0, 9]


@pytest.mark.parametrize('num_images', [1, 5, 12, 100])
def test_batches_are_pieces_of_one_stream(num_images):
  size = 12  # Larger than, equal to and smaller than an epoch.
  stream = np.concatenate(
    [
      order(num_images, seed=4, epoch=epoch)
      for epoch in range(9 * size // num_images + 1)
    ]
  )
  for step in range(9):
    indices = batch_indices(
      step, num_images=num_images, seed=4, batch_size=size
    )
    np.testing.assert_array_equal(
      indices, stream[step * size : (step + 1) * size]
    )


def test_batch_holds_what_its_indices_say():
  got = read(Numbers(1000), 3, 7, 70)
  assert len(got) == 4
  for step, batch in enumerate(got, start=3):
    expected = batch_indices(step, num_images=1000, seed=0, batch_size=70)
    np.testing.assert_array_equal(batch.indices, expected)
    np.testing.assert_array_equal(
      batch.images[:, 0, 0] @ np.array([1 << 16, 1 << 8, 1]), expected
    )
    np.testing.assert_array_equal(batch.labels, expected % 7)
    assert batch.images.shape == (70, 112, 112, 3)
    assert [x.dtype for x in batch] == [np.uint8, np.int32, np.int64]


def assert_equal(got, expected):
  assert len(got) == len(expected)
  for one, other in zip(got, expected, strict=True):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)


def test_threads_change_nothing():
  expected = read(Numbers(300), 0, 6, 100, threads=1)
  assert_equal(read(Numbers(300), 0, 6, 100, threads=7), expected)


def test_resumed_run_continues():
  expected = read(Numbers(50), 0, 9, 20)
  assert_equal(
    read(Numbers(50), 0, 4, 20) + read(Numbers(50), 4, 9, 20), expected
  )


def test_hosts_read_the_parts_of_one_batch():
  expected = read(Numbers(50), 0, 4, 24)
  parts = [
    read(Numbers(50), 0, 4, 24, rows=rows)
    for rows in (slice(0, 8), slice(8, 11), slice(11, 24))
  ]
  joined = [
    tuple(map(np.concatenate, zip(*step, strict=True)))
    for step in zip(*parts, strict=True)
  ]
  assert_equal(joined, expected)


def test_start_costs_the_same_everywhere():
  source = Numbers(1000)
  first = 10**11
  stream = batches(
    source,
    seed=0,
    batch_size=8,
    first_step=first,
    last_step=2 * first,
    threads=2,
  )
  assert len(next(stream).labels) == 8
  stream.close()
  assert source.made.total() <= 8 * 8  # Itself and a few ahead.


def test_no_steps_no_batches():
  assert read(Numbers(5), 3, 3, 4) == []


def test_bad_image_stops_its_own_step():
  source = Numbers(1000)
  fatal = batch_indices(4, num_images=1000, seed=0, batch_size=100)[70]
  source.bad = (fatal,)
  stream = batches(source, seed=0, batch_size=100, first_step=0, last_step=9)
  for _ in range(4):
    next(stream)
  with pytest.raises(InputError, match=f'^image {fatal} is bad$'):
    next(stream)


def test_first_bad_image_is_the_one_named():
  source = Numbers(1000)
  indices = batch_indices(0, num_images=1000, seed=0, batch_size=400)
  source.bad = tuple(indices[[50, 200, 390]])
  for _ in range(5):
    with pytest.raises(InputError, match=f'image {indices[50]} is bad'):
      read(source, 0, 1, 400, threads=4)


def test_closing_ends_the_reading():
  source = Numbers(1000)
  stream = batches(source, seed=0, batch_size=64, first_step=0, last_step=10**9)
  next(stream)
  stream.close()
  time.sleep(0.3)  # What was being made is finished.
  read_so_far = source.made.total()
  time.sleep(0.3)
  assert source.made.total() == read_so_far


def test_reads_a_folder(folder, decoded):
  for batch in read(RecSource(folder), 0, 3, 33):
    np.testing.assert_array_equal(batch.images, decoded[batch.indices])


_INTERRUPTED = """
import os, signal, sys
import numpy as np
from elasticface_jax.data import batches, threads

# Without TensorFlow, which takes seconds to import.
threads.batch_indices = lambda step, **_: np.arange(256)
# A shell's background jobs start with it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Grey:
  num_images = 1000
  def render(self, indices):
    images = np.zeros((len(indices), 112, 112, 3), np.uint8)
    return images, indices.astype(np.int32)
stream = batches(Grey(), seed=0, batch_size=256, first_step=0, last_step=10**9)
for batch in stream:
  if not batch.indices.min() < 0:
    print('reading', flush=True)
"""


def test_interrupt_ends_the_process():
  assert_interrupt_ends(_INTERRUPTED)
