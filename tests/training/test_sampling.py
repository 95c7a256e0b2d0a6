# SPDX-License-Identifier: Apache-2.0
"""Steps over a sample of the classes, equal on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.losses import _sampling
from elasticface_jax.training import state, step

from .. import thin
from . import tasks

# One group and one block a device on 8; 21 classes a block, 18 in the last.
GROUPS, GROUP_SIZE, CLASSES, BLOCKS = 8, 2, 165, 8
BATCH = GROUPS * GROUP_SIZE
SEED = 3


class Projection:
  """A projection of 7 x 7 patches: a backbone that compiles quickly."""

  embedding_dim = 16

  def init(self, key):
    return {'w': jax.random.normal(key, (147, 16))}, {'mean': jnp.zeros(16)}

  def apply(self, params, batch_stats, images, *, train, key):
    del batch_stats, train, key
    patches = images.reshape(-1, 7, 16, 7, 16, 3).mean(axis=(2, 4))
    y = patches.reshape(-1, 147) @ params['w']
    mean = y.mean(axis=0)
    return y - mean[None], {'mean': mean}


PROJECTION = Projection()


def make_task(n, sample_rate, backbone=PROJECTION):
  return tasks.make_task(
    backbone,
    n,
    batch_size=BATCH,
    group_size=GROUP_SIZE,
    num_classes=CLASSES,
    num_blocks=BLOCKS,
    sample_rate=sample_rate,
    clip=0.5,
  )


@functools.cache
def batches():
  rng = np.random.default_rng(0)
  shape = (3, GROUPS, GROUP_SIZE)
  images = rng.integers(0, 256, (*shape, 112, 112, 3), dtype=np.uint8)
  return images, rng.integers(0, CLASSES, shape, dtype=np.int32)


@functools.cache
def run(n, sample_rate, backbone=PROJECTION):
  """Returns states of three steps on n devices as NumPy arrays, and metrics."""
  return tasks.run(make_task(n, sample_rate, backbone), batches(), SEED)


def test_bits_do_not_depend_on_devices():
  states, measured = run(2, 0.1)
  for n in (1, 8):
    others, metrics = run(n, 0.1)
    tasks.same_bits(others, states)
    assert metrics == measured


@pytest.mark.slow
def test_bits_of_a_real_backbone_do_not_depend_on_devices():
  backbone = models.build(thin.NAME, embedding_dim=16, width=2)
  states, measured = run(1, 0.1, backbone)
  others, metrics = run(8, 0.1, backbone)
  tasks.same_bits(others, states)
  assert metrics == measured


def test_a_step_updates_only_the_drawn_classes():
  states, measured = run(2, 0.1)
  assert all(np.isfinite(m['loss']) for m in measured)
  key = state.make_keys(SEED)['sampling']
  moved_in = []
  for number in range(3):
    before, after = states[number], states[number + 1]
    labels = batches()[1][number].reshape(-1)
    sample = _sampling.draw(
      jax.random.fold_in(key, number),
      labels,
      num_classes=CLASSES,
      num_blocks=BLOCKS,
      sample_rate=0.1,
      count=BLOCKS,
    )
    drawn = np.isin(np.arange(BLOCKS * 21), sample.classes)
    drawn[CLASSES:] = False
    assert drawn[labels].all() and 0.1 < drawn[:CLASSES].mean() < 0.25
    moved_in.append(drawn)
    for x, y in zip(
      jax.tree.leaves((before.class_centers, before.head_opt)),
      jax.tree.leaves((after.class_centers, after.head_opt)),
      strict=True,
    ):
      # Weight decay moves every class that takes part.
      moved = (x != y).reshape(-1, 16).any(axis=1)
      np.testing.assert_array_equal(moved, drawn)
  assert np.any(moved_in[0] != moved_in[1])


def test_rate_1_is_all_classes_to_the_bit(monkeypatch):
  plain = run(2, 1.0)
  draws = []

  def choose(task, key, labels, trips):
    layout = task.layout
    draws.append(layout.local_blocks)
    return _sampling.draw(
      key,
      labels.reshape(-1),
      num_classes=CLASSES,
      num_blocks=BLOCKS,
      sample_rate=1.0,
      count=layout.local_blocks,
      first_block=layout.devices.index() * layout.local_blocks,
      trip_count=trips.blocks,
    )

  monkeypatch.setattr(step, '_choose_classes', choose)
  sampled = run.__wrapped__(2, 1.0)
  assert draws
  tasks.same_bits(sampled[0], plain[0])
  assert sampled[1] == plain[1]
  # It differs from the softmax over a tenth of the classes.
  assert run(2, 0.1)[1][0]['loss'] < plain[1][0]['loss'] - 0.5


def test_an_appended_stream_changes_no_other():
  root = jax.random.key(SEED)
  keys = state.make_keys(SEED)
  assert list(keys) == ['init', 'margins', 'augment', 'dropout', 'sampling']
  bits = [jax.random.key_data(key) for key in keys.values()]
  first = jax.random.key_data(jax.random.split(root, 4))
  np.testing.assert_array_equal(bits[:4], first)
  assert len({x.tobytes() for x in map(np.asarray, bits)}) == 5


@pytest.mark.parametrize('rate', [0.0, -0.1, 1.5, float('nan')])
def test_an_impossible_rate_is_refused(rate):
  with pytest.raises(InputError, match=rf'head.sample_rate={rate} must be in'):
    make_task(1, rate)
