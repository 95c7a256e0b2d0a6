# SPDX-License-Identifier: Apache-2.0
"""Training steps with AdamW, compared with a plain loop in float64."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax import recipes
from elasticface_jax.losses import _sampling
from elasticface_jax.training import state

from . import tasks

GROUPS, GROUP_SIZE, CLASSES, BLOCKS, DIM, STEPS = 4, 2, 37, 4, 8, 10
BATCH, BLOCK = GROUPS * GROUP_SIZE, 10  # The last block has 7 classes.
# At this seed no rounding flips the sign of a gradient that is nearly 0.
SEED, SCALE, RATE, DECAY, CLIP = 3, 16.0, 0.01, 0.1, 0.05
BETAS, EPS = (0.9, 0.999), 1e-8
PIXELS = 2, 2, 3
LINEAR = tasks.linear(12, DIM)


@functools.cache
def batches():
  rng = np.random.default_rng(0)
  shape = (STEPS, GROUPS, GROUP_SIZE)
  images = rng.integers(0, 256, (*shape, *PIXELS), dtype=np.uint8)
  return images, rng.integers(0, CLASSES, shape, dtype=np.int32)


@functools.cache
def run(sample_rate, devices):
  """Returns states of ten steps as NumPy arrays, and their metrics."""
  task = tasks.make_task(
    LINEAR,
    devices,
    batch_size=BATCH,
    group_size=GROUP_SIZE,
    num_classes=CLASSES,
    num_blocks=BLOCKS,
    sample_rate=sample_rate,
    loss=recipes.loss('normface', scale=SCALE),
    optimizer='adamw',
    rate=RATE,
    weight_decay=DECAY,
    clip=CLIP,
    augment={'flip': 0.0},
  )
  return tasks.run(task, batches(), SEED)


def drawn(sample_rate, number):
  """Returns the classes that take part in a step, increasing."""
  if sample_rate == 1:
    return np.arange(CLASSES)
  sample = _sampling.draw(
    jax.random.fold_in(state.make_keys(SEED)['sampling'], number),
    batches()[1][number].reshape(-1),
    num_classes=CLASSES,
    num_blocks=BLOCKS,
    sample_rate=sample_rate,
    count=BLOCKS,
  )
  classes = np.unique(sample.classes)
  return classes[classes < CLASSES]


def rows(blocks):
  """Returns an array over all classes as its real rows, in float64."""
  return np.array(blocks.reshape(-1, DIM)[:CLASSES], float)


def unit(x):
  """Normalises rows; returns a function for the gradient too."""
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  y = x / norm
  return y, lambda g: (g - y * (g * y).sum(1, keepdims=True)) / norm


def gradients(matrix, centers, images, labels):
  """Computes those of the mean NormFace loss of a linear network by hand."""
  pixels = 4 * (images.reshape(BATCH, -1) / 127.5 - 1)
  embeddings, to_matrix = unit(pixels @ matrix)
  directions, to_centers = unit(centers)
  logits = SCALE * embeddings @ directions.T
  shares = np.exp(logits - logits.max(1, keepdims=True))
  shares /= shares.sum(1, keepdims=True)
  shares[np.arange(BATCH), labels] -= 1
  to_cosines = SCALE * shares / BATCH
  return (
    pixels.T @ to_matrix(to_cosines @ directions),
    to_centers(to_cosines.T @ embeddings),
  )


def descend(w, mean, square, gradient, t):
  mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
  square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
  deviation = np.sqrt(square / (1 - BETAS[1] ** t))
  step = mean / (1 - BETAS[0] ** t) / (deviation + EPS)
  return w - RATE * step - RATE * DECAY * w, mean, square


@pytest.mark.parametrize('sample_rate', [1.0, 0.4])
def test_ten_steps_equal_a_plain_loop(sample_rate):
  states, measured = run(sample_rate, 2)
  matrix = np.array(states[0].params, float), 0.0, 0.0
  centers = rows(states[0].class_centers)
  head = [centers, np.zeros_like(centers), np.zeros_like(centers)]
  for number, (images, labels) in enumerate(zip(*batches(), strict=True)):
    classes = drawn(sample_rate, number)
    own = np.searchsorted(classes, labels.reshape(-1))
    of_matrix, of_centers = gradients(matrix[0], head[0][classes], images, own)
    norm = np.linalg.norm(of_matrix)
    found = measured[number]['backbone_gradient_norm']
    assert norm > CLIP and found == pytest.approx(norm, rel=1e-4)
    # The clip comes before the moments, and is for the backbone alone. Classes
    # that are not drawn keep weights and moments; t is that of the run.
    matrix = descend(*matrix, of_matrix * CLIP / norm, number + 1)
    moved = descend(*(x[classes] for x in head), of_centers, number + 1)
    for whole, part in zip(head, moved, strict=True):
      whole[classes] = part

    after = states[number + 1]
    moments = after.backbone_opt[1][0]
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    close(after.params, matrix[0], atol=5e-4 * RATE)
    close(moments.mean, matrix[1], atol=5e-6 * np.abs(matrix[1]).max())
    close(moments.square, matrix[2], atol=5e-6 * matrix[2].max())
    close(rows(after.class_centers), head[0], atol=5e-4 * RATE)
    moments = after.head_opt[0]
    close(rows(moments.mean), head[1], atol=3e-5 * np.abs(head[1]).max())
    close(rows(moments.square), head[2], atol=3e-5 * head[2].max())


def test_bits_do_not_depend_on_devices():
  states, measured = run(0.4, 2)
  for devices in (1, 4):
    others, metrics = run(0.4, devices)
    tasks.same_bits(others, states)
    assert metrics == measured


def test_classes_that_are_not_drawn_keep_their_bits():
  states, _ = run(0.4, 2)
  for number in range(STEPS):
    before, after = states[number : number + 2]
    left = np.setdiff1d(np.arange(BLOCKS * BLOCK), drawn(0.4, number))
    assert len(left) > CLASSES / 3
    for x, y in zip(
      jax.tree.leaves((before.class_centers, before.head_opt)),
      jax.tree.leaves((after.class_centers, after.head_opt)),
      strict=True,
    ):
      moved = (x != y).reshape(-1, DIM).any(axis=1)
      assert not moved[left].any() and moved[drawn(0.4, number)].all()
