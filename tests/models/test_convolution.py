# SPDX-License-Identifier: Apache-2.0
"""Convolutions and their gradients, compared with sums over taps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.models import convolution
from elasticface_jax.models.convolution import convolve, convolve_groups

# Height, width, channels in and out, stride: few channels and many, odd sizes,
# and the channels of a network of width 64.
SHAPES = [
  (8, 6, 3, 5, 1),
  (8, 6, 3, 5, 2),
  (6, 8, 64, 64, 1),
  (6, 8, 64, 64, 2),
  (7, 7, 64, 96, 1),
  (7, 5, 96, 64, 1),
  (4, 4, 3, 64, 1),
  (4, 4, 128, 64, 2),
]


def sum_over_taps(x, kernel, gradient, stride):
  """Returns the output and both gradients, summed tap by tap."""
  x, kernel, gradient = (
    np.asarray(a, np.float64) for a in (x, kernel, gradient)
  )
  b, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y, dx, dk = np.zeros(gradient.shape), np.zeros(padded.shape), []
  for row in range(3):
    for column in range(3):
      at = np.s_[:, row : row + h : stride, column : column + w : stride]
      y += padded[at] @ kernel[row, column]
      dx[at] += gradient @ kernel[row, column].T
      dk.append(np.einsum('bhwi,bhwo->io', padded[at], gradient))
  return y, dx[:, 1:-1, 1:-1], np.stack(dk).reshape(kernel.shape)


def draw(height, width, channels_in, channels_out, stride, *, images, dtype):
  rng = np.random.default_rng(height + channels_in)
  out = images, -(-height // stride), -(-width // stride), channels_out
  shapes = (
    (images, height, width, channels_in),
    (3, 3, channels_in, channels_out),
    out,
  )
  # The mean is 0.5, since sums that cancel would hide a missing term.
  return [jnp.asarray(rng.standard_normal(s) + 0.5, dtype) for s in shapes]


@jax.jit(static_argnums=3)
def ours(x, kernel, gradient, stride):
  y, vjp = jax.vjp(
    lambda x, kernel: convolve(x, kernel, stride=stride), x, kernel
  )
  return y, *vjp(gradient)


def errors(found, expected):
  """Returns the largest error of each, relative to the largest value."""
  return [
    np.abs(np.asarray(f, np.float64) - e).max() / np.abs(e).max()
    for f, e in zip(found, expected, strict=True)
  ]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype,bound', [('float32', 1e-6), ('float64', 1e-14)])
def test_values_and_gradients(shape, dtype, bound):
  with jax.enable_x64(dtype == 'float64'):
    given = draw(*shape, images=3, dtype=dtype)
    found = ours(*given, shape[-1])
    expected = sum_over_taps(*given, shape[-1])
  assert [f.dtype for f in found] == [dtype] * 3
  assert max(errors(found, expected)) < bound


@pytest.mark.parametrize('shape', SHAPES)
def test_bfloat16_loses_its_own_digits_only(shape):
  given = draw(*shape, images=3, dtype='bfloat16')
  found = ours(*given, shape[-1])
  assert [f.dtype for f in found] == ['bfloat16'] * 3
  # Rounded once, or a few times inside XLA's convolution.
  assert max(errors(found, sum_over_taps(*given, shape[-1]))) < 2**-6


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_by_vjp_are_the_sums_over_taps(shape):
  with jax.enable_x64(True):
    given = draw(*shape, images=3, dtype='float64')
    found = convolution.gradients_by_vjp(*given, stride=shape[-1])
    expected = sum_over_taps(*given, shape[-1])[1:]
  assert max(errors(found, expected)) < 1e-14


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_accelerators_have_the_gradients_of_a_plain_convolution(
  monkeypatch, size, stride
):
  paths = []

  def as_on_an_accelerator(*arguments, cpu, default):
    paths.append(default.func)
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', as_on_an_accelerator)

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      [(size // 2, size // 2)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  def with_gradients(function, x, kernel, gradient):
    y, vjp = jax.vjp(function, x, kernel)
    return [np.asarray(a) for a in (y, *vjp(gradient))]

  with jax.enable_x64(True):
    shape = 7, 5, 3, 4, stride
    x, kernel, gradient = draw(*shape, images=2, dtype='float64')
    given = x, kernel[:size, :size], gradient
    found = with_gradients(
      lambda x, kernel: convolve(x, kernel, stride=stride), *given
    )
    expected = with_gradients(plain, *given)
  assert max(errors(found, expected)) < 1e-14
  # A 1x1 kernel is a matrix product, the same on all platforms.
  assert paths == [convolution.gradients_by_vjp] * (size > 1)


@pytest.mark.parametrize('shape', SHAPES)
def test_other_platforms_get_the_gradients_of_vjp(shape):
  given = draw(*shape, images=2, dtype='float32')
  exported = jax.export.export(ours, platforms=['cuda'])(*given, shape[-1])
  text = exported.mlir_module()
  assert text.count('stablehlo.convolution') == 3
  assert 'stablehlo.while' not in text
  # The CPU's layout takes transposes.
  assert 'stablehlo.transpose' not in text


# Height, width, groups, channels of a group in and out, stride: depthwise, and
# as in MobileFaceNet's second layer; and a group that widens.
GROUPED = [
  (6, 4, 5, 1, 1, 1),
  (6, 4, 5, 1, 1, 2),
  (5, 7, 3, 2, 2, 1),
  (4, 6, 3, 2, 4, 2),
]


def sum_over_groups(x, kernel, gradient, stride):
  """Returns output and gradients, of each group by itself."""
  groups = x.shape[-1] // kernel.shape[2]
  split = lambda a: np.split(np.asarray(a), groups, axis=-1)
  each = zip(split(x), split(kernel), split(gradient), strict=True)
  results = [sum_over_taps(*given, stride) for given in each]
  return [np.concatenate(a, axis=-1) for a in zip(*results, strict=True)]


def draw_grouped(shape, dtype):
  height, width, groups, channels_in, channels_out, stride = shape
  x, kernel, gradient = draw(
    *(height, width, channels_in, groups * channels_out, stride),
    images=3,
    dtype=dtype,
  )
  rng = np.random.default_rng(0)
  x = rng.standard_normal((*x.shape[:3], groups * channels_in)) + 0.5
  return jnp.asarray(x, dtype), kernel, gradient


@functools.partial(jax.jit, static_argnums=(3, 4))
def ours_grouped(x, kernel, gradient, stride, function):
  y, vjp = jax.vjp(
    lambda x, kernel: function(x, kernel, stride=stride), x, kernel
  )
  return y, *vjp(gradient)


@pytest.mark.parametrize('shape', GROUPED)
@pytest.mark.parametrize(
  'function', [convolve_groups, convolution.plain_groups]
)
def test_each_group_is_convolved_by_itself(function, shape):
  with jax.enable_x64(True):
    given = draw_grouped(shape, 'float64')
    found = ours_grouped(*given, shape[-1], function)
    expected = sum_over_groups(*given, shape[-1])
  assert max(errors(found, expected)) < 1e-14


@pytest.mark.parametrize('shape', GROUPED[:3:2])
def test_groups_in_bfloat16_lose_its_own_digits_only(shape):
  given = draw_grouped(shape, 'bfloat16')
  found = ours_grouped(*given, shape[-1], convolve_groups)
  assert [f.dtype for f in found] == ['bfloat16'] * 3
  assert max(errors(found, sum_over_groups(*given, shape[-1]))) < 2**-6


def test_other_platforms_convolve_groups_natively():
  given = draw_grouped(GROUPED[2], 'float32')
  exported = jax.export.export(ours_grouped, platforms=['tpu'])(
    *given, 1, convolve_groups
  )
  text = exported.mlir_module()
  assert text.count('stablehlo.convolution') == 3
  assert text.count('feature_group_count = 3') >= 2
