# SPDX-License-Identifier: Apache-2.0
"""IResNet, compared with published shapes and a NumPy network in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.models import iresnet, layers
from elasticface_jax.models.functional import functional

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3)}
SMALL = dict(embedding_dim=16, width=8)


@functools.cache
def small(**options):
  """Makes a small backbone with random weights, and its compiled `apply`."""
  backbone = models.build('iresnet10', **(SMALL | options))
  params, stats = backbone.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(a.dtype), params
  )
  stats = jax.tree.map(
    lambda a: a + 0.5 * rng.random(a.shape).astype(a.dtype), stats
  )
  run = {
    train: jax.jit(functools.partial(backbone.apply, train=train))
    for train in (True, False)
  }
  return backbone, params, stats, run


@functools.cache
def tiny(dropout=0.0, remat=False, dtype='float32'):
  """Makes a network of two stages: the code of all, quicker to compile."""
  init, apply = functional(
    functools.partial(
      iresnet.IResNet,
      (1, 1),
      width=4,
      embedding_dim=6,
      dropout=dropout,
      block='insightface',
      use_se=False,
      output_norm='bias',
      input_norm=False,
      remat=remat,
      dtype=dtype,
    ),
    iresnet.randomize,
  )
  return apply, *init(jax.random.key(0))


def pictures(count, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (count, 112, 112, 3)).astype('float32')


def leaves(tree):
  """Returns leaves by dotted path, as NumPy arrays, which compile nothing."""
  paths = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  return {'.'.join(k.key for k in path): leaf for path, leaf in paths}


# Names and shapes


@pytest.mark.parametrize(
  ('name', 'use_se', 'published'),
  [
    ('iresnet18', False, 24_025_600),
    ('iresnet34', False, 34_139_328),
    ('iresnet50', False, 43_590_848),
    ('iresnet100', False, 65_156_160),
    ('iresnet200', False, 118_833_920),
    ('iresnet100', True, 65_528_384),
  ],
)
def test_parameter_counts(name, use_se, published):
  backbone = models.build(name, use_se=use_se)
  params, _ = jax.eval_shape(backbone.init, jax.random.key(0))
  # The published count holds the frozen scale of the last BatchNorm.
  assert sum(a.size for a in jax.tree.leaves(params)) == published - 512


def published_shapes(stages, use_se):
  """Returns the shapes of the arrays of the PyTorch networks, by name."""
  shapes = {}

  def norm(name, channels, scale=True):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      if scale or leaf != 'weight':
        shapes[f'{name}.{leaf}'] = (channels,)

  shapes['conv1.weight'] = (64, 3, 3, 3)
  norm('bn1', 64)
  shapes['prelu.weight'] = (64,)
  for stage, blocks in enumerate(stages, 1):
    out = 32 * 2**stage
    for i in range(blocks):
      into = out if i or stage == 1 else out // 2
      at = f'layer{stage}.{i}'
      norm(f'{at}.bn1', into)
      shapes[f'{at}.conv1.weight'] = (out, into, 3, 3)
      norm(f'{at}.bn2', out)
      shapes[f'{at}.prelu.weight'] = (out,)
      shapes[f'{at}.conv2.weight'] = (out, out, 3, 3)
      norm(f'{at}.bn3', out)
      if i == 0:
        shapes[f'{at}.downsample.0.weight'] = (out, into, 1, 1)
        norm(f'{at}.downsample.1', out)
      if use_se:
        shapes[f'{at}.se_block.fc1.weight'] = (out // 16, out, 1, 1)
        shapes[f'{at}.se_block.fc2.weight'] = (out, out // 16, 1, 1)
  norm('bn2', 512)
  shapes['fc.weight'], shapes['fc.bias'] = (512, 25088), (512,)
  norm('features', 512, scale=False)
  return shapes


@pytest.mark.parametrize('use_se', [False, True])
@pytest.mark.parametrize('depth', STAGES)
def test_names_and_shapes_are_the_published_ones(depth, use_se):
  backbone = models.build(f'iresnet{depth}', use_se=use_se)
  params, stats = jax.eval_shape(backbone.init, jax.random.key(0))
  weights = {'kernel': 'weight', 'scale': 'weight', 'slope': 'weight'}
  running = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
  shapes = {}
  for path, leaf in (leaves(params) | leaves(stats)).items():
    module, _, name = path.rpartition('.')
    # HWIO to OIHW; [in, out] to [out, in].
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
    shape = tuple(leaf.shape[i] for i in order)
    shapes[f'{module}.{(weights | running)[name]}'] = shape
    assert leaf.dtype == jnp.float32
  assert shapes == published_shapes(STAGES[depth], use_se)
  # The published number of arrays, less the batch counters and a frozen scale.
  blocks = sum(STAGES[depth])
  counters = 3 * blocks + 7
  expected = 18 * blocks + 43 - counters - 1 + 2 * use_se * blocks
  assert len(shapes) == expected


def test_each_stage_halves_the_image_and_the_width_doubles(monkeypatch):
  seen = []
  plain = iresnet.Block.__call__

  def recording(self, x, *, train):
    y = plain(self, x, train=train)
    seen.append((x.shape, y.shape))
    return y

  monkeypatch.setattr(iresnet.Block, '__call__', recording)
  backbone = models.build('iresnet18', embedding_dim=5, width=8)
  params, stats = jax.eval_shape(backbone.init, jax.random.key(0))
  embeddings, updated = jax.eval_shape(
    functools.partial(backbone.apply, train=True), params, stats, pictures(3)
  )
  ends = [y for _, y in seen[1::2]]
  assert seen[0][0] == (3, 112, 112, 8)
  assert ends == [
    (3, 56, 56, 8),
    (3, 28, 28, 16),
    (3, 14, 14, 32),
    (3, 7, 7, 64),
  ]
  # The first block of a stage does the halving.
  assert [y for _, y in seen[::2]] == ends
  assert (embeddings.shape, embeddings.dtype) == ((3, 5), jnp.float32)
  assert leaves(updated) == leaves(stats)


# Initial values


def test_initial_values():
  with jax.enable_x64(True):
    backbone, *_ = small(dtype='float64', use_se=True, width=16)
    params, stats = map(leaves, backbone.init(jax.random.key(0)))
  constants = {'scale': 1.0, 'slope': 0.25, 'bias': 0.0, 'mean': 0.0, 'var': 1}
  kernels = []
  for path, leaf in (params | stats).items():
    if leaf.ndim == 4:
      kernels.append(np.ravel(leaf))
      # Four standard errors.
      np.testing.assert_allclose(
        np.sqrt(np.mean(leaf**2)), 0.1, rtol=4 / np.sqrt(2 * leaf.size)
      )
    elif not path.startswith('fc.'):
      assert (leaf == constants[path.rpartition('.')[2]]).all(), path
  assert len(kernels) == 1 + 4 * 3 + 4 * 2
  together = np.concatenate(kernels)
  assert abs(together.mean()) < 4 * 0.1 / np.sqrt(together.size)
  np.testing.assert_allclose(together.std(), 0.1, rtol=5e-3)
  # A normal distribution, and no value drawn twice for two kernels.
  np.testing.assert_allclose(np.mean(together**4) / 0.1**4, 3, rtol=0.03)
  assert np.unique(together).size > 0.95 * together.size

  limit = 1 / np.sqrt(49 * 128)
  for name, slack in (('fc.kernel', 0.01), ('fc.bias', 0.3)):
    values = params[name]
    assert np.abs(values).max() <= limit
    np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=slack)
    assert np.abs(values).max() > 0.9 * limit


def test_initial_values_depend_on_the_key_alone():
  backbone, *_ = small()
  first, again, other = (
    leaves(backbone.init(jax.random.key(k))[0]) for k in (0, 0, 1)
  )
  for path, leaf in first.items():
    assert (leaf == again[path]).all()
    drawn = 'kernel' in path or path == 'fc.bias'
    assert (leaf != other[path]).any() == drawn, path


@pytest.mark.parametrize(
  ('name', 'block', 'missing', 'channels'),
  [
    ('iresnet50', 'insightface', [], 512),
    ('iresnet50', 'adaface', ['layer1.0.downsample'], 512),
    ('iresnet152', 'curricularface', ['layer1.0.downsample', '.bn2'], 512),
    # Where each stage begins, the channels grow.
    ('iresnet152', 'adaface_bottleneck', [], 2048),
    ('iresnet200', 'adaface_bottleneck', [], 2048),
  ],
)
def test_blocks_of_other_projects(name, block, missing, channels):
  backbone = models.build(name, block=block, output_norm='plain')
  params, stats = jax.eval_shape(backbone.init, jax.random.key(0))
  shapes = leaves(jax.tree.map(lambda leaf: np.zeros(leaf.shape), params))
  assert shapes['fc.kernel'].shape == (channels * 49, 512)
  assert 'features' not in params
  assert stats['features'].keys() == {'mean', 'var'}
  in_blocks = [path for path in shapes if path.startswith('layer')]
  for part in missing:
    assert not [path for path in in_blocks if part in path]
  counts = [
    len({path.split('.')[1] for path in shapes if path.startswith(stage)})
    for stage in ('layer1', 'layer2', 'layer3', 'layer4')
  ]
  assert tuple(counts) == models.stages_of(name, block)
  deep = {'iresnet50': (3, 4, 14, 3), 'iresnet152': (3, 8, 36, 3)}
  assert tuple(counts) == deep.get(name, (3, 24, 36, 3))


# The forward pass, against NumPy in float64


class Reference:
  """The network in NumPy, written from its description."""

  def __init__(self, params, stats, train):
    self.arrays = leaves(params)
    self.running = leaves(stats)
    self.train = train

  def norm(self, x, name):
    axes = tuple(range(x.ndim - 1))
    mean, var = (self.running[f'{name}.{k}'] for k in ('mean', 'var'))
    if self.train:
      count = x.size / x.shape[-1]
      unbiased = x.var(axes, ddof=1)
      self.running[f'{name}.mean'] = 0.9 * mean + 0.1 * x.mean(axes)
      self.running[f'{name}.var'] = 0.9 * var + 0.1 * unbiased
      mean, var = x.mean(axes), unbiased * (count - 1) / count
    scale = self.arrays.get(f'{name}.scale', 1.0)
    bias = self.arrays.get(f'{name}.bias', 0.0)
    return scale * (x - mean) / np.sqrt(var + 1e-5) + bias

  def conv(self, x, name, stride=1):
    kernel = self.arrays[f'{name}.kernel']
    size = kernel.shape[0]
    pad = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum('bhwcij,ijco->bhwo', windows, kernel, optimize=True)

  def prelu(self, x, name):
    return np.maximum(x, 0) + self.arrays[f'{name}.slope'] * np.minimum(x, 0)

  def gate(self, x, name):
    hidden = self.conv(x.mean((1, 2), keepdims=True), f'{name}.fc1')
    logits = self.conv(np.maximum(hidden, 0), f'{name}.fc2')
    return x / (1 + np.exp(-logits))

  def block(self, x, name, stride):
    y = self.conv(self.norm(x, f'{name}.bn1'), f'{name}.conv1')
    if f'{name}.bn2.scale' in self.arrays:
      y = self.norm(y, f'{name}.bn2')
    y = self.prelu(y, f'{name}.prelu')
    if f'{name}.conv3.kernel' in self.arrays:
      y = self.norm(self.conv(y, f'{name}.conv2'), f'{name}.bn3')
      y = self.conv(self.prelu(y, f'{name}.prelu2'), f'{name}.conv3', stride)
      y = self.norm(y, f'{name}.bn4')
    else:
      y = self.norm(self.conv(y, f'{name}.conv2', stride), f'{name}.bn3')
    if f'{name}.se_block.fc1.kernel' in self.arrays:
      y = self.gate(y, f'{name}.se_block')
    if f'{name}.downsample.0.kernel' in self.arrays:
      x = self.conv(x, f'{name}.downsample.0', stride)
      x = self.norm(x, f'{name}.downsample.1')
    return x[:, :: x.shape[1] // y.shape[1], :: x.shape[2] // y.shape[2]] + y

  def __call__(self, images, stages):
    x = images.astype('float64')
    if 'input.mean' in self.running:
      x = (x - self.running['input.mean']) / self.running['input.std']
    x = self.norm(self.conv(x, 'conv1'), 'bn1')
    x = self.prelu(x, 'prelu')
    for stage, blocks in enumerate(stages, 1):
      for i in range(blocks):
        x = self.block(x, f'layer{stage}.{i}', stride=1 if i else 2)
    x = self.norm(x, 'bn2').reshape(len(x), -1)
    x = x @ self.arrays['fc.kernel'] + self.arrays['fc.bias']
    return self.norm(x, 'features')


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize(
  'options',
  [
    dict(use_se=True, width=16),
    dict(block='adaface', output_norm='plain', width=4),
    dict(block='curricularface', output_norm='affine', width=4),
    dict(block='adaface_bottleneck', input_norm=True, width=4),
  ],
  ids=lambda options: options.get('block', 'insightface'),
)
def test_float64_is_the_reference_to_twelve_digits(options, train):
  with jax.enable_x64(True):
    _, params, stats, run = small(dtype='float64', **options)
    images = pictures(3).astype('float64')
    embeddings, updated = run[train](params, stats, images)
    trees = (params, stats, updated, embeddings)
    assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(trees))
  reference = Reference(params, stats, train)
  expected = reference(images, (1, 1, 1, 1))
  # A single float32 operation would leave 7 digits.
  scale = np.abs(expected).max()
  np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-11 * scale)
  for path, leaf in leaves(updated).items():
    np.testing.assert_allclose(
      leaf, reference.running[path], rtol=1e-10, atol=1e-12, err_msg=path
    )


@pytest.mark.parametrize('train', [True, False])
def test_float32_is_the_reference_to_five_digits(train):
  _, params, stats, run = small()
  embeddings, updated = run[train](params, stats, pictures(4))
  reference = Reference(params, stats, train)
  expected = reference(pictures(4), (1, 1, 1, 1))
  scale = np.abs(expected).max()
  np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5 * scale)
  for path, leaf in leaves(updated).items():
    np.testing.assert_allclose(
      leaf, reference.running[path], rtol=1e-5, atol=1e-5, err_msg=path
    )


def test_float64_accepts_float32_weights():
  """PyTorch files hold float32 weights."""
  with jax.enable_x64(True):
    backbone, *trees, _ = small(dtype='float64', use_se=True, width=16)
    params, stats = jax.tree.map(lambda a: a.astype('float32'), trees)

    def loss(params):
      embeddings, _ = backbone.apply(params, stats, pictures(2), train=True)
      return embeddings.sum(), embeddings

    gradient, embeddings = jax.eval_shape(jax.grad(loss, has_aux=True), params)
  assert embeddings.dtype == jnp.float64
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(gradient))


@pytest.mark.parametrize('train', [True, False])
def test_jit_equals_eager(train):
  apply, params, stats = tiny()
  apply = functools.partial(apply, train=train)
  eager, updated = apply(params, stats, pictures(4))
  compiled, again = jax.jit(apply)(params, stats, pictures(4))
  scale = np.abs(eager).max()
  np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5 * scale)
  for path, leaf in leaves(updated).items():
    np.testing.assert_allclose(leaves(again)[path], leaf, rtol=0, atol=1e-5)


def test_evaluation_is_one_image_at_a_time_and_keeps_the_statistics():
  _, params, stats, run = small()
  both, updated = run[False](params, stats, pictures(4))
  other = np.concatenate([pictures(2), pictures(2, seed=5)])
  mixed, _ = run[False](params, stats, other)
  np.testing.assert_array_equal(both[:2], mixed[:2])
  assert (both[2:] != mixed[2:]).any()
  for path, leaf in leaves(stats).items():
    np.testing.assert_array_equal(leaf, leaves(updated)[path])


def test_the_gate_changes_the_output():
  with jax.enable_x64(True):
    _, params, stats, run = small(dtype='float64', use_se=True, width=16)
    images = pictures(3).astype('float64')
    gated, _ = run[False](params, stats, images)
    half_open = jax.tree.map_with_path(
      lambda path, a: 0 * a if 'se_block' in str(path) else a, params
    )
    halved, _ = run[False](half_open, stats, images)
  assert np.abs(gated - halved).max() > 0.1 * np.abs(halved).max()


# Compute dtype


def test_bfloat16_computes_in_it_and_returns_float32():
  backbone, params, stats, run = small(dtype='bfloat16')
  embeddings, updated = run[False](params, stats, pictures(4))
  expected, _ = small()[3][False](params, stats, pictures(4))
  trees = (params, stats, updated, embeddings)
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(trees))
  error = np.linalg.norm(embeddings - expected) / np.linalg.norm(expected)
  # bfloat16 has 8 bits: an error of 0 would mean that it was not used.
  assert 1e-4 < error < 0.05
  jaxpr = jax.make_jaxpr(functools.partial(backbone.apply, train=True))(
    params, stats, pictures(4)
  )
  products = re.findall(r':(\w+)\[\S*\] = conv_general_dilated', str(jaxpr))
  assert set(products) == {'bf16'} and len(products) >= 9


def test_bfloat16_sums_are_float32():
  count = 2**16 + 1  # Not a bfloat16 number; a sum of ones in it stops at 256.
  x = jnp.full((count, 1), -1, jnp.bfloat16)
  _, pullback = jax.vjp(layers._prelu, x, jnp.full(1, 0.25))
  _, dslope = pullback(jnp.ones_like(x))
  assert dslope == -count and dslope.dtype == jnp.float32

  norm = layers.BatchNorm(1, dtype='bfloat16')
  norm(jnp.concatenate([x, 0 * x]), train=True)
  np.testing.assert_allclose(norm.mean[...], -0.05, rtol=1e-6)
  np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 0.25, rtol=1e-5)


# Layers


def batch_norm(x, scale, bias):
  layer = layers.BatchNorm(x.shape[-1], dtype=x.dtype)
  layer.scale.set_value(scale)
  layer.bias.set_value(bias)
  return layer(x, train=True)


@pytest.mark.parametrize('shape', [(2, 2, 3, 2), (4, 3)])
def test_batch_norm_gradient_is_that_of_finite_differences(shape):
  rng = np.random.default_rng(0)
  scale, bias = rng.standard_normal((2, shape[-1]))
  x, weights = rng.standard_normal((2, *shape))
  with jax.enable_x64(True):
    y, pullback = jax.vjp(batch_norm, *map(jnp.asarray, (x, scale, bias)))
    gradients = [np.asarray(g) for g in pullback(jnp.asarray(weights))]

  def loss(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    normal = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    return ((normal * scale + bias) * weights).sum()

  total = (np.asarray(y) * weights).sum()
  np.testing.assert_allclose(total, loss(x, scale, bias))
  for which, gradient in enumerate(gradients):
    for index in np.ndindex(gradient.shape):
      moved = [[a.copy() for a in (x, scale, bias)] for _ in range(2)]
      moved[0][which][index] += 1e-5
      moved[1][which][index] -= 1e-5
      difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-5
      np.testing.assert_allclose(gradient[index], difference, atol=1e-7)


def test_the_variance_survives_a_large_mean():
  rng = np.random.default_rng(0)
  x = (1000 + rng.standard_normal((64, 4, 4, 2))).astype('float32')
  norm = layers.BatchNorm(2, dtype='float32')
  y = norm(jnp.asarray(x), train=True)
  # The mean of squares minus the squared mean keeps one or two digits here.
  var = (np.asarray(norm.var[...]) - 0.9) / 0.1
  expected = x.astype('float64').var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(var, expected, rtol=1e-4)
  np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)


def test_one_value_a_channel_leaves_finite_statistics():
  norm = layers.BatchNorm(3, dtype='float32')
  y = norm(jnp.array([[1.0, -2.0, 5.0]]), train=True)
  np.testing.assert_array_equal(y, np.zeros((1, 3)))
  np.testing.assert_allclose(norm.mean[...], [0.1, -0.2, 0.5], rtol=1e-6)
  np.testing.assert_allclose(norm.var[...], 0.9, rtol=1e-6)


def test_prelu_has_a_slope_for_each_channel():
  x = jnp.array([[2.0, 2.0], [-3.0, -3.0], [0.0, 0.0]])
  slope = jnp.array([0.5, -1.0])
  y, pullback = jax.vjp(layers._prelu, x, slope)
  np.testing.assert_array_equal(y, [[2, 2], [-1.5, 3], [0, 0]])
  dx, dslope = pullback(jnp.array([[1.0, 1.0], [1.0, 2.0], [1.0, 1.0]]))
  # At 0 the slope counts, as in PyTorch.
  np.testing.assert_array_equal(dx, [[1, 1], [0.5, -2], [0.5, -1]])
  np.testing.assert_array_equal(dslope, [-3, -6])


# Dropout


def test_dropout_is_reproducible_and_off_in_evaluation():
  apply, params, stats = tiny(dropout=0.4)
  train = jax.jit(functools.partial(apply, train=True))
  first, again, other = (
    train(params, stats, pictures(4), key=jax.random.key(k))[0]
    for k in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  quiet, _ = apply(params, stats, pictures(4), train=False)
  plain, _ = tiny()[0](params, stats, pictures(4), train=False)
  np.testing.assert_array_equal(quiet, plain)


def test_dropout_drops_its_share_and_keeps_the_mean(monkeypatch):
  """Records what the fully connected layer gets from a BatchNorm of ones."""
  seen = []
  normalize = layers.BatchNorm.__call__

  def ones_at_the_end(self, x, *, train):
    is_last_map = x.shape[1:] == (28, 28, 8)
    return jnp.ones_like(x) if is_last_map else normalize(self, x, train=train)

  def recording(self, x):
    seen.append(x)
    return jnp.zeros((len(x), 6))

  monkeypatch.setattr(layers.BatchNorm, '__call__', ones_at_the_end)
  monkeypatch.setattr(layers.Linear, '__call__', recording)
  apply, params, stats = tiny(dropout=0.4)
  apply(params, stats, pictures(4), train=True, key=jax.random.key(0))
  inputs = np.asarray(seen[0])
  assert inputs.shape == (4, 28 * 28 * 8)
  np.testing.assert_allclose(np.unique(inputs), [0, 1 / 0.6], rtol=1e-6)
  np.testing.assert_allclose((inputs == 0).mean(), 0.4, atol=0.01)


# Groups


def test_groups_in_loops_equal_groups_by_themselves():
  """A forward loop that keeps residuals, then a backward loop."""
  apply, params, stats = tiny()
  groups = jnp.stack([pictures(2), pictures(2, seed=2), pictures(2, seed=3)])
  weights = np.random.default_rng(0).standard_normal((2, 6)).astype('float32')

  def forward(params, images):
    embeddings, updated = apply(params, stats, images, train=True)
    return (embeddings * weights).sum(), updated

  @jax.jit
  def in_loops(params, groups, count):
    tree = None

    def residuals(images):
      nonlocal tree
      loss, pullback, updated = jax.vjp(
        lambda p: forward(p, images), params, has_aux=True
      )
      kept, tree = jax.tree.flatten(pullback)
      return kept, (loss, updated)

    kept, outputs = jax.lax.map(residuals, groups)

    def add(i, total):
      pullback = jax.tree.unflatten(tree, [a[i] for a in kept])
      return jax.tree.map(jnp.add, total, pullback(jnp.float32(1))[0])

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.fori_loop(0, count, add, zeros), outputs

  gradient, (losses, updated) = in_loops(params, groups, 3)
  gradient, updated = leaves(gradient), leaves(updated)
  alone = jax.jit(jax.value_and_grad(forward, has_aux=True))
  expected = dict.fromkeys(gradient, 0.0)
  for i, images in enumerate(groups):
    (loss, statistics), part = alone(params, images)
    np.testing.assert_allclose(losses[i], loss, rtol=1e-3, atol=1e-4)
    for path, leaf in leaves(statistics).items():
      np.testing.assert_allclose(
        updated[path][i], leaf, rtol=1e-4, atol=1e-5, err_msg=path
      )
    expected = {path: expected[path] + g for path, g in leaves(part).items()}
  difference = {path: gradient[path] - g for path, g in expected.items()}
  size, error = (
    np.sqrt(sum(np.sum(g**2) for g in tree.values()))
    for tree in (expected, difference)
  )
  assert error < 1e-3 * size


def test_training_embeds_a_group_by_its_own_statistics():
  _, params, stats, run = small()
  together, _ = run[True](params, stats, pictures(4))
  alone, _ = run[True](params, stats, pictures(4)[:2])
  assert np.abs(together[:2] - alone).max() > 0.1


# Rematerialisation


def kept_arrays(**options):
  """Returns the arrays that the pullback of IResNet-18 holds, as shapes.

  Without parameters, whose bytes come second, before those of all parameters.
  """
  backbone = models.build('iresnet18', dropout=0.4, **(SMALL | options))
  shared = 0

  def kept(params, stats, images, key):
    nonlocal shared
    _, pullback, _ = jax.vjp(
      lambda p: backbone.apply(p, stats, images, train=True, key=key),
      params,
      has_aux=True,
    )
    held = jax.tree.leaves(pullback)
    known = {id(leaf) for leaf in jax.tree.leaves(params)}
    shared = sum(leaf.nbytes for leaf in held if id(leaf) in known)
    return [leaf for leaf in held if id(leaf) not in known]

  params, stats = jax.eval_shape(backbone.init, jax.random.key(0))
  held = jax.eval_shape(kept, params, stats, pictures(4), jax.random.key(0))
  return held, shared, sum(leaf.size * 4 for leaf in jax.tree.leaves(params))


def test_remat_keeps_the_inputs_of_blocks():
  held, shared, parameters = kept_arrays(remat=True)
  maps = sorted(a.shape[1:] for a in held if a.ndim == 4)
  stem = [(112, 112, 3), (112, 112, 8)]  # Its input and its output.
  # Two blocks in each stage; the output of the last one is kept too.
  ends = [(56, 56, 8), (28, 28, 16), (14, 14, 32), (7, 7, 64)]
  assert maps == sorted(stem + 2 * ends)
  # Parameters are held themselves, without copies.
  assert 0.99 * parameters < shared <= parameters
  plain, _, _ = kept_arrays()
  assert sum(a.size for a in held) < sum(a.size for a in plain) / 5


def test_remat_changes_no_value():
  """In float64, only the rounding of other fusions is left."""
  results = []
  with jax.enable_x64(True):
    images = pictures(4).astype('float64')
    weights = np.random.default_rng(0).standard_normal((4, 6))
    for remat in (False, True):
      apply, params, stats = tiny(dropout=0.4, remat=remat, dtype='float64')

      def objective(params, stats, key, apply=apply):
        embeddings, stats = apply(params, stats, images, train=True, key=key)
        return (embeddings * weights).sum(), (embeddings, stats)

      gradient = jax.jit(jax.grad(objective, has_aux=True))
      results.append(gradient(params, stats, jax.random.key(3)))
  (plain, (embeddings, stats)), (again, (same, updated)) = results
  np.testing.assert_allclose(same, embeddings, rtol=0, atol=1e-12)
  for path, leaf in leaves(stats).items():
    np.testing.assert_allclose(leaves(updated)[path], leaf, rtol=1e-13)
  largest = max(np.abs(g).max() for g in leaves(plain).values())
  for path, g in leaves(plain).items():
    np.testing.assert_allclose(
      leaves(again)[path], g, rtol=0, atol=1e-12 * largest, err_msg=path
    )


def test_remat_is_for_training_alone():
  apply, params, stats = tiny(remat=True)
  for train in (True, False):
    program = jax.make_jaxpr(functools.partial(apply, train=train))(
      params, stats, pictures(2)
    )
    calls = {str(e.primitive) for e in program.eqns}
    assert bool(calls & {'checkpoint', 'remat', 'remat2'}) == train


# Mistakes


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(name='resnet50'), "'resnet50' is unknown; use one of iresnet10, "),
    (dict(dtype='float16'), "'float16' is unknown; use one of float32"),
    (dict(dtype='float64'), 'needs jax_enable_x64'),
    (dict(dropout=1.0), 'dropout 1.0 must lie in'),
    (dict(dropout=-0.1), 'dropout -0.1 must lie in'),
    (dict(width=0), 'width 0 must be positive'),
    (dict(embedding_dim=0), 'embedding_dim 0'),
    (dict(use_se=True, width=24), 'width 24 with use_se'),
    (dict(block='resnet'), "'resnet' is unknown; use one of insightface, "),
    (dict(output_norm='none'), "'none' is unknown; use one of bias, affine"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(InputError, match=message) as error:
    models.build(**(dict(name='iresnet10') | options))
  assert '\n' not in str(error.value)


def test_wrong_images_are_named():
  apply, params, stats = tiny()
  apply = functools.partial(apply, params, stats, train=False)
  with pytest.raises(TypeError, match='images are uint8; scale them to'):
    apply(np.zeros((2, 112, 112, 3), 'uint8'))
  for shape in [(2, 96, 112, 3), (112, 112, 3), (2, 3, 112, 112)]:
    with pytest.raises(ValueError, match=r'not \[B, 112, 112, 3\]'):
      apply(np.zeros(shape, 'float32'))


@pytest.mark.parametrize('count', [0, 1])
def test_training_on_one_image_is_refused(count):
  apply, params, stats = tiny()
  images = pictures(count)
  with pytest.raises(ValueError, match='training needs 2 or more'):
    apply(params, stats, images, train=True)
  # As a program, and mapped over a batch of ones.
  train = functools.partial(apply, params, stats, train=True)
  for transform in (jax.jit, jax.vmap):
    given = images if transform is jax.jit else images[:, None]
    with pytest.raises(ValueError, match='training needs 2 or more'):
      jax.eval_shape(transform(train), given)
  with pytest.raises(ValueError, match='all gradients'):
    jax.eval_shape(
      jax.grad(lambda p: apply(p, stats, images, train=True)[0].sum()), params
    )


def test_dropout_without_a_key_is_named():
  _, params, stats, _ = small()
  backbone = models.build('iresnet10', dropout=0.4, **SMALL)
  with pytest.raises(ValueError, match='dropout 0.4 in training needs a key'):
    backbone.apply(params, stats, pictures(2), train=True)


def test_weights_of_another_backbone_are_refused():
  _, params, stats, _ = small()
  other = models.build('iresnet18', **SMALL)
  with pytest.raises(ValueError, match='another model'):
    other.apply(params, stats, pictures(2), train=False)


def test_a_backbone_is_frozen_and_has_its_name_and_size():
  backbone = models.build('iresnet10', **SMALL)
  assert (backbone.name, backbone.embedding_dim) == ('iresnet10', 16)
  with pytest.raises(AttributeError):
    backbone.name = 'iresnet18'
