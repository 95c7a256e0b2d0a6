# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights, and checks of exported ones."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax import models

METADATA = {'colour_order': 'RGB', 'input_size': [112, 112], 'use_se': True}
SMALL = {'name': 'iresnet10', 'width': 16, 'embedding_dim': 24}
# Changes of `SMALL` that every format is tested with.
OPTIONS = [
  {'use_se': True},
  pytest.param(
    {'name': 'iresnet18', 'width': 32, 'embedding_dim': 512},
    marks=pytest.mark.slow,
  ),
]


@functools.cache
def _draw(name, **options):
  backbone = models.build(name, **options)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    match path[-1].key:
      case 'kernel':
        fan_in = leaf.size // leaf.shape[-1]
        values = rng.normal(0, fan_in**-0.5, leaf.shape)
      case 'mean' | 'bias':
        values = rng.uniform(-0.5, 0.5, leaf.shape)
      case _:
        values = rng.uniform(0.3, 0.9, leaf.shape)
    return values.astype(leaf.dtype)

  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(backbone.init, key)
  return backbone, *jax.tree.map_with_path(draw, shapes)


@pytest.fixture(scope='session')
def draw_network():
  """``draw_network(name, **options)``: backbone, params, batch_stats.

  No value is left at 0 or 1, where its omission would not show. Embeddings have
  values of about 1.
  """
  return _draw


@pytest.fixture(scope='session')
def images():
  """float32 ``[64, 112, 112, 3]``, RGB in [-1, 1]."""
  rng = np.random.default_rng(1)
  # Images differ in brightness: noise alone looks alike to a network.
  means = rng.uniform(-0.6, 0.6, (64, 1, 1, 3))
  noise = rng.uniform(-0.4, 0.4, (64, 112, 112, 3))
  return (means + noise).astype(np.float32)


class _Embed:
  """A network in evaluation, compiled for 7 images at a time."""

  def __init__(self, backbone, *variables):
    self._apply = jax.jit(functools.partial(backbone.apply, train=False))
    self._variables = variables

  def __call__(self, images):
    embedded = []
    for i in range(0, len(images), 7):
      batch = images[i : i + 7]
      padding = ((0, 7 - len(batch)), *((0, 0),) * 3)
      embeddings, _ = self._apply(*self._variables, np.pad(batch, padding))
      embedded.append(np.asarray(embeddings)[: len(batch)])
    return np.concatenate(embedded)


@pytest.fixture(scope='session')
def make_embed():
  """``make_embed(backbone, params, batch_stats)``: images to embeddings."""
  return _Embed


@pytest.fixture(scope='session')
def agrees(images):
  """``agrees(found, expected)``: compares embeddings, batch by batch."""

  def check(found, expected):
    wanted = expected(images)
    # Embeddings that hardly vary would be easy to match.
    assert wanted.std(0).min() > 0.01
    for count in (1, 7, 64):
      embeddings = found(images[:count])
      assert embeddings.dtype == np.float32
      np.testing.assert_allclose(embeddings, wanted[:count], 0, 1e-4)

  return check
