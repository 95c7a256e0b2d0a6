# SPDX-License-Identifier: Apache-2.0
"""Convolutions and their gradients against sums over taps in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.models import convolution
from elasticface_jax.models.convolution import convolve

# Height, width, channels in and out, stride: few channels and many, odd sizes,
# and what a network of width 64 has.
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


def taps_apart(x, kernel, gradient, stride):
  """Output and both gradients, a tap of the kernel at a time."""
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
  out = images, height // stride, width // stride, channels_out
  shapes = (
    (images, height, width, channels_in),
    (3, 3, channels_in, channels_out),
    out,
  )
  # Of mean 0.5: sums that cancel would hide what is left out.
  return [jnp.asarray(rng.standard_normal(s) + 0.5, dtype) for s in shapes]


@jax.jit(static_argnums=3)
def ours(x, kernel, gradient, stride):
  y, vjp = jax.vjp(
    lambda x, kernel: convolve(x, kernel, stride=stride), x, kernel
  )
  return y, *vjp(gradient)


def errors(found, expected):
  """The largest error of each, as a share of the largest value."""
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
    expected = taps_apart(*given, shape[-1])
  assert [f.dtype for f in found] == [dtype] * 3
  assert max(errors(found, expected)) < bound


@pytest.mark.parametrize('shape', SHAPES)
def test_bfloat16_loses_its_own_digits_only(shape):
  given = draw(*shape, images=3, dtype='bfloat16')
  found = ours(*given, shape[-1])
  assert [f.dtype for f in found] == ['bfloat16'] * 3
  # Rounded once, or a few times where XLA's convolution does it.
  assert max(errors(found, taps_apart(*given, shape[-1]))) < 2**-6


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_of_accelerators_are_the_same(shape):
  with jax.enable_x64(True):
    given = draw(*shape, images=3, dtype='float64')
    found = convolution.gradients_by_vjp(*given, stride=shape[-1])
    expected = taps_apart(*given, shape[-1])[1:]
  assert max(errors(found, expected)) < 1e-14


@pytest.mark.parametrize('shape', SHAPES)
def test_other_platforms_get_xla_s_own(shape):
  given = draw(*shape, images=2, dtype='float32')
  exported = jax.export.export(ours, platforms=['cuda'])(*given, shape[-1])
  text = exported.mlir_module()
  assert text.count('stablehlo.convolution') == 3
  assert 'stablehlo.while' not in text
