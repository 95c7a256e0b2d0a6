# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT: sizes, what training leaves out, golden numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.models import vit
from elasticface_jax.models.functional import functional

from . import small_networks as small

GOLDEN = Path(__file__).parent / 'golden' / 'networks.npz'
KEY = 3


def leaves(tree):
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {'.'.join(k.key for k in path): leaf for path, leaf in paths}


# Sizes


def vit_size(depth, size, dim):
  block = 4 * size + 3 * size**2 + size**2 + size + 8 * size**2 + 5 * size
  patches = 9 * 9 * 3 * size + size + 144 * size + size
  feature = 144 * size**2 + 2 * size + size * dim + 2 * dim
  return patches + depth * block + 2 * size + feature


@pytest.mark.parametrize(
  ('name', 'size'),
  [
    # Convolutions, BatchNorms and PReLUs, added up by hand.
    ('mobilefacenet', 2_059_520),
    ('vit_t', vit_size(12, 256, 512)),
    ('vit_s', vit_size(12, 512, 512)),
    ('vit_b', vit_size(24, 512, 512)),
  ],
)
def test_parameter_counts(name, size):
  params, _ = jax.eval_shape(models.build(name).init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@pytest.mark.parametrize('name', small.NAMES)
def test_all_channels_are_in_proportion_to_the_width(name):
  narrow, wide = (
    leaves(
      jax.eval_shape(
        models.build(name, width=width, embedding_dim=3 * width).init,
        jax.random.key(0),
      )[0]
    )
    for width in (2, 8)
  )
  for path, leaf in narrow.items():
    assert leaf.shape[-1] * 4 == wide[path].shape[-1], path


@pytest.mark.parametrize('name', small.NAMES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float64'])
def test_dtypes(name, dtype):
  wide = 'float64' if dtype == 'float64' else 'float32'
  with jax.enable_x64(dtype == 'float64'), small.few_layers():
    backbone = small.build(name, dtype=dtype, **small.OPTIONS[name])
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, 112, 112, 3), wide)
    for train in (False, True):
      embeddings, stats = jax.eval_shape(
        functools.partial(backbone.apply, train=train, key=jax.random.key(0)),
        *variables,
        images,
      )
      assert (embeddings.shape, embeddings.dtype) == ((4, small.DIM), wide)
      assert {x.dtype.name for x in jax.tree.leaves((variables, stats))} == {
        wide
      }


@pytest.mark.parametrize('name', small.NAMES)
def test_initial_weights(name):
  params, stats = models.build(name, width=16).init(jax.random.key(0))
  found = leaves(jax.device_get(params))
  for path, leaf in found.items():
    if leaf.ndim == 1:
      continue
    if name == 'mobilefacenet':
      fan_out = leaf.shape[0] * leaf.shape[1] if leaf.ndim == 4 else 1
      expected = (2 / (fan_out * leaf.shape[-1])) ** 0.5
    elif path.startswith('patch_embed'):
      expected = (243 * 3) ** -0.5  # Of U(-a, a): a / sqrt(3).
      assert np.abs(leaf).max() <= 243**-0.5
    else:
      expected = 0.02
    spread = 4 * expected / leaf.size**0.5
    assert abs(leaf.mean()) < spread, path
    assert abs(leaf.std() - expected) < spread, path
  ones = [x for k, x in found.items() if k.endswith('scale')]
  assert all((x == 1).all() for x in ones)
  slopes = [x for k, x in found.items() if k.endswith('slope')]
  assert all((x == 0.25).all() for x in slopes)
  means, variances = (
    [x for k, x in leaves(stats).items() if k.endswith(last)]
    for last in ('mean', 'var')
  )
  assert not any(x.any() for x in means)
  assert all((x == 1).all() for x in variances)


# Arguments


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (dict(name='vit_t', use_se=True), 'use_se True is for iresnet10.*vit_t'),
    (dict(name='vit_s', dropout=0.1), 'dropout 0.1 is for iresnet10'),
    (dict(name='mobilefacenet', block='adaface'), "block 'adaface' is for"),
    (dict(name='mobilefacenet', output_norm='plain'), 'output_norm'),
    (dict(name='vit_b', input_norm=True), 'input_norm True is for'),
    (dict(name='iresnet50', drop_path=0.1), 'drop_path 0.1 is for vit_t'),
    (dict(name='mobilefacenet', mask_ratio=0.1), 'mask_ratio 0.1 is for vit'),
    (dict(name='vit_t', drop_path=1.0), r'drop_path 1.0 must lie in \[0, 1\)'),
    (dict(name='vit_t', mask_ratio=1.0), r'mask_ratio 1.0 must lie in'),
    (dict(name='vit_t', mask_ratio=-0.1), r'mask_ratio -0.1 must lie in'),
    (dict(name='vit_t', width=3), 'width 3 of vit_t must be even'),
    (dict(name='vit_l'), "'vit_l' is unknown; use one of iresnet10"),
  ],
)
def test_arguments_that_do_not_fit(arguments, message):
  with pytest.raises(InputError, match=message):
    models.build(**arguments)


@pytest.mark.parametrize('name', small.NAMES)
def test_images_that_do_not_fit(name):
  with small.few_layers():
    backbone = small.build(name, **small.OPTIONS[name])
    variables = jax.eval_shape(backbone.init, jax.random.key(0))

    def shapes(*shape, dtype='float32', key=None, train=True):
      images = jax.ShapeDtypeStruct(shape, dtype)
      apply = functools.partial(backbone.apply, train=train, key=key)
      return jax.eval_shape(apply, *variables, images)

    with pytest.raises(TypeError, match='uint8'):
      shapes(2, 112, 112, 3, dtype='uint8')
    with pytest.raises(ValueError, match='108'):
      shapes(2, 108, 108, 3)
    with pytest.raises(ValueError, match='2 or more'):
      shapes(1, 112, 112, 3)
    if name == 'vit_t':
      with pytest.raises(ValueError, match='need a key'):
        shapes(2, 112, 112, 3)
    shapes(1, 112, 112, 3, train=False)


# What training leaves out


def test_factors_of_branches():
  factors = np.asarray(
    vit.draw_factors(jax.random.key(0), 5, 20_000, 0.4, 'float32')
  )
  assert factors.shape == (5, 2, 20_000)
  np.testing.assert_array_equal(factors[0], 1)
  for block, rate in enumerate([0, 0.1, 0.2, 0.3, 0.4]):
    assert set(np.unique(factors[block])) <= {0, np.float32(1 / (1 - rate))}
    for branch in factors[block]:
      assert abs((branch == 0).mean() - rate) < 0.02
      assert abs(branch.mean() - 1) < 0.02
  # Each image, block and branch by itself.
  dropped = (factors[1:] == 0).reshape(8, -1)
  assert np.abs(np.corrcoef(dropped) - np.eye(8)).max() < 0.05


@pytest.mark.parametrize(
  ('ratio', 'kept'), [(0, 144), (0.1, 129), (0.5, 72), (0.99, 1)]
)
def test_tokens_that_a_mask_leaves(ratio, kept):
  assert vit.num_kept(ratio) == kept


def test_orders_of_tokens():
  order, places = map(np.asarray, vit.draw_order(jax.random.key(0), 4_000))
  each = np.arange(144)
  np.testing.assert_array_equal(np.sort(order), np.tile(each, (4_000, 1)))
  np.testing.assert_array_equal(
    np.take_along_axis(order, places, 1), np.tile(each, (4_000, 1))
  )
  # Every token stays as often, in every image by itself.
  shares = (places < vit.num_kept(0.1)).mean(0)
  assert np.abs(shares - 129 / 144).max() < 0.025
  assert len(np.unique(places[:, 0])) == 144


@functools.cache
def train(drop_path=0.0, mask_ratio=0.0, key=KEY):
  """Returns embeddings of a small ViT in training."""
  with small.few_layers():
    backbone = small.build('vit_t', drop_path=drop_path, mask_ratio=mask_ratio)
    variables = small.as_float32('vit_t')
    images = small.images().astype(np.float32)
    run = jax.jit(functools.partial(backbone.apply, train=True))
    return np.asarray(run(*variables, images, key=jax.random.key(key))[0])


def test_shares_of_0_leave_nothing_out():
  np.testing.assert_array_equal(train(key=1), train(key=2))


def test_other_keys_leave_others_out():
  for left_out in ({'drop_path': 0.4}, {'mask_ratio': 0.2}):
    one, same, other = (train(**left_out, key=key) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - train()).max() > 1e-3


# Against NumPy


def normalized(x, scale, bias):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias


def one_block(x, p, factors):
  """Computes a block of ViT, one image and one head after the other."""
  images, tokens, size = x.shape
  head = size // 8
  y = x.copy()
  for b in range(images):
    normal = normalized(y[b], p['norm1']['scale'], p['norm1']['bias'])
    qkv = normal @ p['attn']['qkv']['kernel']
    heads = []
    for h in range(8):
      at = [
        slice(i * size + h * head, i * size + (h + 1) * head) for i in range(3)
      ]
      queries, keys, values = (qkv[:, part] for part in at)
      logits = np.exp(queries @ keys.T / np.sqrt(head))
      heads.append(logits / logits.sum(1, keepdims=True) @ values)
    proj = p['attn']['proj']
    joined = np.concatenate(heads, 1)
    y[b] += factors[0, b] * (joined @ proj['kernel'] + proj['bias'])
    normal = normalized(y[b], p['norm2']['scale'], p['norm2']['bias'])
    fc1, fc2 = p['mlp']['fc1'], p['mlp']['fc2']
    hidden = np.clip(normal @ fc1['kernel'] + fc1['bias'], 0, 6)
    y[b] += factors[1, b] * (hidden @ fc2['kernel'] + fc2['bias'])
  return y


def test_a_block_of_vit_with_numpy():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    block = functools.partial(vit.Block, 16, dtype='float64')
    init, apply = functional(lambda: Alone(block()), lambda params, key: params)
    params, _ = init(jax.random.key(0))
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    x = rng.standard_normal((3, 5, 16))
    factors = np.array([[0, 1, 2], [1.5, 0, 1.0]])
    found, _ = apply(params, {}, (x, jnp.asarray(factors)), train=True)
  expected = one_block(x, params['block'], factors)
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


class Alone(nnx.Module):
  def __init__(self, block):
    self.block = block

  def __call__(self, inputs, *, train, key):
    del train, key
    return self.block(*inputs)


def test_patches_are_read_row_by_row_and_the_rest_is_not():
  rng = np.random.default_rng(0)
  embedding = functools.partial(vit.PatchEmbedding, 8, dtype='float32')
  init, apply = functional(
    lambda: Alone(embedding()), lambda params, key: params
  )
  params, _ = init(jax.random.key(0))
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype('float32'), params
  )
  images = rng.standard_normal((2, 112, 112, 3)).astype('float32')
  (found, _) = apply(params, {}, (jnp.asarray(images),), train=False)
  proj = params['block']['proj']
  for row, column in ((0, 0), (3, 7), (11, 11)):
    patch = images[:, 9 * row : 9 * row + 9, 9 * column : 9 * column + 9]
    expected = np.einsum('bhwc,hwce->be', patch, proj['kernel']) + proj['bias']
    np.testing.assert_allclose(found[:, 12 * row + column], expected, atol=1e-4)
  images[:, 108:] = images[:, :, 108:] = 9
  (again, _) = apply(params, {}, (jnp.asarray(images),), train=False)
  np.testing.assert_array_equal(again, found)


def test_softmax_and_permutation_have_the_gradients_of_jax():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, by = (jnp.asarray(rng.standard_normal((2, 144, 3))) for _ in range(2))
    order, places = vit.draw_order(jax.random.key(0), 2)
    pairs = (
      (vit._softmax, jax.nn.softmax),
      (
        lambda x: vit._permute(x, order, places),
        lambda x: jnp.take_along_axis(x, order[..., None], 1),
      ),
    )
    for ours, theirs in pairs:
      found, expected = (
        jax.vjp(function, x)[1](by)[0] for function in (ours, theirs)
      )
      np.testing.assert_allclose(found, expected, atol=1e-14)


# Golden numbers of PyTorch's modules (test_networks_with_torch.py)


@pytest.mark.parametrize('name', small.NAMES)
def test_golden_numbers_in_evaluation(name):
  expected = np.load(GOLDEN)[f'{name}.evaluated']
  np.testing.assert_allclose(small.in_evaluation(name), expected, atol=1e-4)


@pytest.mark.parametrize('name', small.NAMES)
def test_golden_numbers_in_training(name):
  golden = np.load(GOLDEN)
  found, tensors = small.in_training(
    name, small.state_dict(name), jax.random.key(KEY), small.directions()
  )
  np.testing.assert_allclose(found, golden[f'{name}.embeddings'], atol=1e-9)
  norms = np.array([np.linalg.norm(tensors[k]) for k in small.trained(tensors)])
  np.testing.assert_allclose(
    norms, golden[f'{name}.norms'], rtol=1e-8, atol=1e-9 * norms.max()
  )


@pytest.mark.parametrize('name', small.NAMES)
def test_remat_changes_gradients_in_the_last_digits_only(name):
  with small.few_layers(), jax.enable_x64(True):
    backbone = small.build(
      name, dtype='float64', remat=True, **small.OPTIONS[name]
    )
    variables = jax.tree.map(np.array, small.variables(name))

    @jax.jit
    @jax.grad
    def gradient(params):
      embeddings, _ = backbone.apply(
        params,
        variables[1],
        jnp.asarray(small.images()),
        train=True,
        key=jax.random.key(KEY),
      )
      return (embeddings * small.directions()).sum()

    found = gradient(variables[0])
  golden = np.load(GOLDEN)[f'{name}.norms']
  norms = sorted(np.linalg.norm(x) for x in jax.tree.leaves(found))
  for norm in norms:
    assert np.abs(golden - norm).min() < 1e-8 * golden.max()
