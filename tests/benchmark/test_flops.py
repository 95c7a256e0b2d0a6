# SPDX-License-Identifier: Apache-2.0
"""FLOPs equal those counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from elasticface_jax import models
from elasticface_jax.benchmark import flops
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.training.state import AXIS, make_mesh


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def by_hand(stages, width=64, dim=512):
  """Counts the multiplications of one image, layer by layer."""
  side, channels = 112, width
  total = side**2 * 9 * 3 * width
  for number, blocks in enumerate(stages):
    new = width * 2**number
    total += side**2 * 9 * channels * new  # Before the stride.
    side //= 2
    total += side**2 * 9 * new**2 + side**2 * channels * new  # And shortcut.
    total += (blocks - 1) * 2 * side**2 * 9 * new**2
    channels = new
  return total + side**2 * channels * dim


@pytest.mark.parametrize(
  'name, published',
  [('iresnet18', 2.61e9), ('iresnet50', 6.31e9), ('iresnet100', 12.09e9)],
)
def test_published_multiplications(name, published):
  assert by_hand(models.STAGES[name]) == pytest.approx(published, rel=0.005)


# Deeper ones take seconds to trace.
@pytest.mark.parametrize('name', ['iresnet10', 'iresnet34'])
def test_backbones(name):
  recipe = Recipe(model={'name': name}, batch_size=4, group_size=2)
  found = flops.step(models.build(name), recipe)['backbone']
  assert found == 3 * 2 * 4 * by_hand(models.STAGES[name])


@pytest.mark.parametrize(
  ('name', 'published', 'rel'),
  # Of all operations there, of which MobileFaceNet has many others.
  [('mobilefacenet', 0.45e9, 0.03), ('vit_t', 1.5e9, 0.01)],
)
def test_published_multiplications_of_other_networks(name, published, rel):
  found = flops.forward(models.build(name)) / 2
  assert found == pytest.approx(published, rel=rel)


def test_recomputation_is_no_model_flop():
  recipe = Recipe(batch_size=2, group_size=2)
  build = functools.partial(models.build, 'iresnet10', width=8)
  plain, again = (
    flops.step(build(remat=remat), recipe) for remat in (False, True)
  )
  assert plain == again


def test_head():
  recipe = Recipe(batch_size=6, num_classes=100, num_blocks=3, subcenters=2)
  assert flops.head_products(recipe, 4) == 4 * 2 * 6 * 512 * 200
  # Blocks of 34, 34 and 32: 4 + 4 + 4 classes of a tenth, rounded up.
  recipe = Recipe(batch_size=6, num_classes=100, num_blocks=3, sample_rate=0.1)
  assert flops.head_products(recipe, 3) == 3 * 2 * 6 * 512 * 12


CONVOLUTION = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
CASES = {
  'product': (lambda a, b: jnp.einsum('bij,bjk->bik', a, b), 2 * 5 * 3 * 7 * 2),
  'jit': (lambda a, b: jax.jit(jnp.matmul)(a, b), 2 * 5 * 3 * 7 * 2),
  'scan': (
    lambda a, b: jax.lax.fori_loop(0, 9, lambda i, x: x + a @ b, a @ b),
    10 * 2 * 5 * 3 * 7 * 2,
  ),
  'cond': (
    lambda a, b: jax.lax.cond(
      a[0, 0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((5, 3, 2))
    ),
    2 * 5 * 3 * 7 * 2,
  ),
  'platforms': (
    lambda a, b: jax.lax.platform_dependent(
      a, b, cpu=jnp.matmul, default=jnp.matmul
    ),
    2 * 5 * 3 * 7 * 2,
  ),
  'recomputed': (
    lambda a, b: jax.checkpoint(jnp.matmul)(a, b),
    2 * 5 * 3 * 7 * 2,
  ),
  'a loop of unknown length without products': (
    lambda a, b: jax.lax.while_loop(
      lambda x: x.sum() > 0, lambda x: x - 1, a[0]
    ),
    0,
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_products_inside_other_operations(name):
  function, expected = CASES[name]
  assert flops.count(function, array(5, 3, 7), array(5, 7, 2)) == expected


@pytest.mark.parametrize(
  'options, expected',
  [
    # Output pixels, kernel pixels, input and output channels.
    ({'window_strides': (1, 1), 'padding': 'SAME'}, 64 * 9 * 4 * 6),
    ({'window_strides': (2, 2), 'padding': ((1, 1),) * 2}, 16 * 9 * 4 * 6),
    ({'window_strides': (1, 1), 'padding': 'VALID'}, 36 * 9 * 4 * 6),
    # Three quarters of the products are with zeros between the inputs.
    (
      {
        'window_strides': (1, 1),
        'padding': ((1, 2),) * 2,
        'lhs_dilation': (2, 2),
      },
      256 * 9 * 4 * 6 // 4,
    ),
  ],
)
def test_convolutions(options, expected):
  convolve = functools.partial(
    jax.lax.conv_general_dilated, **CONVOLUTION, **options
  )
  images, kernel = array(10, 8, 8, 4), array(3, 3, 4, 6)
  assert flops.count(convolve, images, kernel) == 2 * 10 * expected


def test_grouped_convolution():
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding='SAME',
    feature_group_count=2,
    **CONVOLUTION,
  )
  found = flops.count(convolve, array(1, 8, 8, 4), array(3, 3, 2, 6))
  assert found == 2 * 64 * 9 * 2 * 6


def test_all_devices_count():
  product = jax.shard_map(
    jnp.matmul,
    mesh=make_mesh(2),
    in_specs=(P(AXIS), P()),
    out_specs=P(AXIS),
  )
  assert flops.count(product, array(10, 3), array(3, 4)) == 2 * 10 * 3 * 4


def test_loops_of_unknown_length_are_refused():
  def loop(a, count):
    return jax.lax.fori_loop(0, count, lambda i, x: x @ a, a)

  with pytest.raises(ValueError, match='unknown length'):
    flops.count(loop, array(3, 3), jax.ShapeDtypeStruct((), jnp.int32))
