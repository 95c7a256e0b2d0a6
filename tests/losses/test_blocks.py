# SPDX-License-Identifier: Apache-2.0
"""Parts of the block-wise softmax, as the training step uses them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.losses import _blocks

from .programs import QUICK
from .reference import block_batch, curricular_others, formula, unit


@pytest.mark.parametrize('wide, subcenters', [(False, None), (True, 3)])
def test_target_cosines_are_those_of_the_matrix(wide, subcenters):
  embeddings, centers, labels, _, _ = block_batch(subcenters=subcenters)
  embeddings = unit(embeddings) * np.geomspace(1e-36, 1e36, 12)[:, None]
  embeddings[3] = 0
  centers = np.float32(centers)
  centers[labels[4]] = np.float32(3e38) * unit(centers[labels[4]])
  labels = labels.copy()
  labels[[0, 5, 7, 9]] = [-1, 9, 10, -9]  # No class.
  dense = losses.subcenter_cosines if subcenters else losses.cosines

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both(embeddings, centers):
    targets = losses.target_cosines(embeddings, centers, labels)
    return targets, dense(embeddings, centers)

  dtype = np.float64 if wide else np.float32
  with jax.enable_x64(wide):
    arrays = (np.float32(x).astype(dtype) for x in (embeddings, centers))
    got, cosines = map(np.asarray, both(*arrays))
  is_class = (0 <= labels) & (labels < 9)
  want = np.where(is_class, cosines[np.arange(12), labels.clip(0, 8)], 0)
  assert got.dtype == want.dtype == (np.float64 if wide else np.float32)
  np.testing.assert_allclose(got, want, atol=1e-15 if wide else 3e-7)
  np.testing.assert_array_equal(got == 0, ~is_class | (np.arange(12) == 3))


def test_target_cosines_of_narrow_vectors_are_wide():
  embeddings, centers, labels, _, _ = block_batch()
  embeddings = embeddings.astype(jnp.bfloat16)
  run = jax.jit(losses.target_cosines, compiler_options=QUICK)
  got = run(embeddings, centers, labels)
  want = np.sum(unit(np.float32(embeddings)) * unit(centers[labels]), axis=1)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=3e-7)


def test_statistics_and_gradients_of_the_softmax():
  # CurricularFace changes the other cosines, so that the nearest class may not
  # have the largest logit.
  embeddings, centers, labels, (m, t), _ = block_batch(
    seed=4, kind='curricular'
  )
  cosines = np.float64(unit(embeddings)) @ unit(centers).T
  head = _blocks.Head(num_classes=9, scale=20.0, kind='curricular')

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(embeddings, blocks, labels, margins):
    targets_of = _blocks.block_target_cosines
    targets = targets_of(embeddings, blocks, labels)
    last = targets_of(embeddings, blocks[2:4], labels, first_class=4)
    samples = _blocks.Samples(embeddings, labels, targets, margins)
    statistics = [
      _blocks.block_statistics(
        samples,
        _blocks.unit_centers(block, embeddings.shape[1]),
        2 * i + jnp.arange(2),
        head,
      )
      for i, block in enumerate(blocks)
    ]
    statistics = jax.tree.map(lambda *x: jnp.stack(x), *statistics)
    softmax = _blocks.join_blocks(statistics, targets, margins, head)
    return targets, last, statistics, softmax

  blocks = _blocks.to_blocks(centers, 6)
  labels = labels.astype(np.int32)
  targets, last, statistics, softmax = run(
    unit(embeddings), blocks, labels, (m, t)
  )
  each = np.arange(12)
  target = cosines[each, labels]
  is_here = (labels >= 4) & (labels < 8)
  assert 0 < is_here.sum() < 12
  np.testing.assert_allclose(targets, target, atol=1e-6)
  np.testing.assert_array_equal(last, np.where(is_here, targets, 0))
  assert {x.shape for x in statistics} == {(6, 12)}

  theta = np.arccos(target)
  moved, falls = formula('curricular', theta, (m, t))
  is_inside = theta + m < np.pi
  to_margin = np.where(
    is_inside, -np.sin(theta + m), -np.sin(m) - m * np.cos(m)
  )
  changed, _ = curricular_others(cosines, theta, m, t)
  is_other = labels[:, None] != np.arange(9)
  logits = 20 * np.where(is_other, changed, moved[:, None])
  probabilities = np.exp(logits)
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  others = np.where(is_other, changed, -np.inf)
  nearest = np.where(is_other, cosines, -np.inf)
  assert np.any(others.argmax(axis=1) != nearest.argmax(axis=1))
  miss = 1 - probabilities[each, labels]
  for got, want in [
    (softmax.largest_cosine, nearest.max(axis=1)),
    (softmax.largest_other, others.max(axis=1)),
    (
      softmax.largest_gradients,
      20 * probabilities[each, others.argmax(axis=1)],
    ),
    (softmax.target_gradients, -20 * miss * falls / np.sin(theta)),
    (softmax.margin_gradients[0], -20 * miss * to_margin),
    (softmax.margin_gradients[1], np.zeros(12)),
    (softmax.loss, -np.log(probabilities[each, labels])),
  ]:
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)
