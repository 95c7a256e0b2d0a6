# SPDX-License-Identifier: Apache-2.0
"""The step, compared with a plain one without loops, blocks and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elasticface_jax import losses, models
from elasticface_jax.training import state

from .. import thin
from . import tasks

GROUPS, GROUP_SIZE, CLASSES, BLOCKS = 4, 3, 21, 8
BATCH = GROUPS * GROUP_SIZE
MARGIN, STD, SCALE = 0.5, 0.05, 16.0
# At this seed no rounding flips a sign before a PReLU, where gradients jump.
SEED = 7
# Low enough that the clip acts on the backbone.
CLIP, DECAY, MOMENTUM, RATE = 0.5, 5e-4, 0.9, 0.1
SIZES = {
  'batch_size': BATCH,
  'group_size': GROUP_SIZE,
  'num_classes': CLASSES,
  'num_blocks': BLOCKS,
}
SGD = {'clip': CLIP, 'rate': RATE, 'momentum': MOMENTUM, 'weight_decay': DECAY}


@pytest.fixture(scope='module')
def backbone():
  return models.build(thin.NAME, embedding_dim=16, width=2)


@pytest.fixture(scope='module')
def batches():
  rng = np.random.default_rng(0)
  shape = (2, GROUPS, GROUP_SIZE)
  images = rng.integers(0, 256, (*shape, 112, 112, 3), dtype=np.uint8)
  return images, rng.integers(0, CLASSES, shape, dtype=np.int32)


def run(backbone, batches, n, **optimizer):
  """Returns states of two steps on n devices as NumPy arrays, and metrics."""
  task = tasks.make_task(backbone, n, **SIZES, **SGD | optimizer)
  return tasks.run(task, batches, SEED)


@pytest.fixture(scope='module')
def on_two(backbone, batches):
  return run(backbone, batches, 2)


def plain_gradients(backbone, before, images, labels, number):
  """Computes loss, statistics and gradients of the full batch at once."""
  keys = {
    name: jax.random.fold_in(key, number)
    for name, key in state.make_keys(SEED).items()
  }
  flip = jax.random.bernoulli(keys['augment'], 0.5, (BATCH,))
  margins = losses.sample_margins(
    keys['margins'], (BATCH,), mean=MARGIN, std=STD
  )
  flat = images.reshape(BATCH, 112, 112, 3)
  flat = np.where(np.asarray(flip)[:, None, None, None], flat[:, :, ::-1], flat)
  grouped = (flat / np.float32(127.5) - 1).reshape(images.shape)
  grouped = grouped.astype(np.float32)

  def objective(params, centers):
    embeddings, stats = [], []
    for group in grouped:
      e, s = backbone.apply(params, before.batch_stats, group, train=True)
      embeddings.append(e)
      stats.append(s)
    cosines = losses.cosines(jnp.concatenate(embeddings), centers)
    logits = losses.arcface_logits(
      cosines, labels.reshape(-1), margins, scale=SCALE
    )
    one_hot = jax.nn.one_hot(labels.reshape(-1), CLASSES)
    loss = optax.softmax_cross_entropy(logits, one_hot).mean()
    return loss, jax.tree.map(lambda *s: sum(s) / GROUPS, *stats)

  centers = before.class_centers.reshape(-1, 16)[:CLASSES]
  (loss, stats), gradients = jax.jit(
    jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
  )(before.params, centers)
  return loss, stats, gradients


def scaled(tree, factor):
  return jax.tree.map(lambda x: x * factor, tree)


def close(a, b, tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(
      x, y, rtol=0, atol=tolerance * max(np.abs(y).max(), 1e-2)
    )


def test_two_steps_equal_plain_ones(backbone, batches, on_two):
  states, measured = on_two
  for number in (0, 1):
    before, after = states[number], states[number + 1]
    loss, stats, (backbone_grad, centers_grad) = plain_gradients(
      backbone, before, batches[0][number], batches[1][number], number
    )
    assert measured[number]['loss'] == pytest.approx(float(loss), rel=1e-5)
    close(after.batch_stats, stats, 1e-5)

    # SGD as torch writes it, in numpy. The clip is for the backbone alone.
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(backbone_grad)))
    assert norm > CLIP
    assert measured[number]['backbone_gradient_norm'] == pytest.approx(
      norm, rel=1e-4
    )

    def sgd(weight, velocity, gradient):
      velocity = MOMENTUM * velocity + gradient + DECAY * weight
      return weight - RATE * velocity, velocity

    momentum = before.backbone_opt[1][1].trace
    clipped = scaled(backbone_grad, CLIP / norm)
    expected = jax.tree.map(
      lambda w, v, g: sgd(w, v, g)[0], before.params, momentum, clipped
    )
    close(after.params, expected, 1e-4)

    def real(blocks):
      return blocks.reshape(-1, 16)[:CLASSES]

    centers, velocity = sgd(
      real(before.class_centers),
      real(before.head_opt[1].trace),
      np.asarray(centers_grad),
    )
    close(real(after.class_centers), centers, 1e-5)
    close(real(after.head_opt[1].trace), velocity, 1e-4)
    assert not after.class_centers.reshape(-1, 16)[CLASSES:].any()
    assert int(after.step) == number + 1


def test_bits_do_not_depend_on_devices(backbone, batches, on_two):
  states, measured = on_two
  for n in (1, 4):  # One group a device at 4; blocks 8 and 2.
    others, metrics = run(backbone, batches, n)
    tasks.same_bits(states, others)
    assert metrics == measured


def test_bits_with_adamw_do_not_depend_on_devices(backbone, batches):
  # With the bias correction inside of the loops they did.
  adamw = {'optimizer': 'adamw', 'rate': 0.01, 'weight_decay': 0.1}
  states, measured = run(backbone, batches, 1, **adamw)
  others, metrics = run(backbone, batches, 4, **adamw)
  tasks.same_bits(states, others)
  assert metrics == measured
