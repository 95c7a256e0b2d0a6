# SPDX-License-Identifier: Apache-2.0
"""Networks with random weights, and checks of exported ones."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.interop import torch_schemes

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


# A small network of every family and form, as its project saves it.
PUBLISHED = {
  'insightface': ('iresnet10', {}),
  'magface': ('iresnet10', {'output_norm': 'affine'}),
  'adaface': ('iresnet18', {'block': 'adaface', 'output_norm': 'plain'}),
  'adaface_se': (
    'iresnet10',
    {'block': 'adaface', 'output_norm': 'plain', 'use_se': True},
  ),
  'tface': (
    'iresnet10',
    {'block': 'adaface_bottleneck', 'output_norm': 'plain'},
  ),
  'cvlface': ('iresnet10', {'block': 'adaface', 'output_norm': 'plain'}),
  'curricularface': (
    'iresnet10',
    {'block': 'curricularface', 'output_norm': 'plain'},
  ),
  'evolve_se': (
    'iresnet10',
    {'block': 'curricularface', 'output_norm': 'affine', 'use_se': True},
  ),
}


class Published:
  """A network of a project, with numbers drawn by NumPy.

  Attributes:
    kind: key of `PUBLISHED`.
    family: key of `interop.FAMILIES`.
    name: of the network here.
    model: arguments of its modules.
    state_dict: with the prefix of the project's files.
  """

  def __init__(self, kind):
    self.kind = kind
    self.family = kind.removesuffix('_se')
    self.name, options = PUBLISHED[kind]
    self.prefix = interop.FAMILIES[self.family].prefix
    self.model = {
      'stages': models.STAGES[self.name],
      'width': 16 if 'use_se' in options else 4,
      'embedding_dim': 8,
      'use_se': False,
      'block': 'insightface',
      'output_norm': 'bias',
    } | options
    rng = np.random.default_rng(0)
    scheme = interop.FAMILIES[self.family].scheme
    modules = torch_schemes.SCHEMES[scheme].modules(**self.model)
    self.state_dict = {}
    for module in modules:
      for key, shape in sorted(module.expected().items()):
        match key.rpartition('.')[2], len(shape):
          case 'weight', 1 if module.kind == 'frozen_norm':
            array = np.ones(shape)
          case 'weight', 2 | 4:
            array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
          case 'running_mean' | 'bias', _:
            array = rng.uniform(-0.5, 0.5, shape)
          case _:
            array = rng.uniform(0.3, 0.9, shape)
        self.state_dict[self.prefix + key] = array.astype(np.float32)


@pytest.fixture(scope='session', params=PUBLISHED)
def published(request):
  """A network of a project, as it is saved, of every kind in turn."""
  return Published(request.param)


@pytest.fixture(scope='session')
def faces():
  """uint8 ``[4, 112, 112, 3]``, RGB, whose colours differ."""
  rng = np.random.default_rng(1)
  means = rng.uniform(20, 235, (4, 1, 1, 3))
  noise = rng.uniform(-20, 20, (4, 112, 112, 3))
  return (means + noise).astype(np.uint8)
