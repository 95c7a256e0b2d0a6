# SPDX-License-Identifier: Apache-2.0
r"""3x3 convolutions and their gradients, written for XLA's CPU compiler.

Where channels are many, all is products of matrices, which XLA has fast kernels
for. At stride 1 they are Winograd's: a tile of 2x2 pixels comes from the 4x4
that it sees, overlapping those of the next tile by two,

.. math::
  Y = A^T [(G k G^T) \odot (B^T d B)] A,

with 16 multiplications instead of 36, and both gradients likewise. Some images
at a time: what is made of them stays near the processor, and sums over pixels
stay short, hence exact. At least in float32, as there are no kernels for less.

Letters: B images, H, W pixels, I, O channels.

References:
  `Fast Algorithms for Convolutional Neural Networks
  <https://arxiv.org/abs/1509.09308>`_, F(2x2, 3x3).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# With fewer channels, what goes before and after the products costs more than
# they save.
_MANY_CHANNELS = 64
# Numbers that the images of a turn have, those in and those out together.
_NUMBERS_PER_TURN = 1 << 22


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """XLA's own convolution, padded by 1; shapes as for `convolve`."""
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT
  )


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves, padded by 1.

  Args:
    x: ``[B, H, W, I]``.
    kernel: ``[3, 3, I, O]``.
    stride: 1 or 2.

  Returns:
    ``[B, H / stride, W / stride, O]``.
  """
  if stride == 1 and _wide(kernel):
    return _convolve_tiles(x, kernel)
  return plain(x, kernel, stride)


def gradients(
  x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
  """The gradients by the input and by the kernel.

  Args:
    x: as for `convolve`.
    kernel: likewise.
    gradient: by the output.
    stride: 1 or 2.

  Returns:
    One like `x` and one like `kernel`.
  """
  if stride == 2:
    to_x = _to_input_of_stride_2(kernel, gradient)
  else:
    to_x = convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3), 1)
  if not _wide(kernel):
    to_kernel = _to_narrow_kernel(x, gradient, stride)
  elif stride == 2:
    to_kernel = _to_kernel_of_stride_2(x, gradient)
  else:
    to_kernel = _to_kernel_by_tiles(x, gradient)
  return to_x, to_kernel.astype(kernel.dtype)


def _wide(kernel):
  return min(kernel.shape[2:]) >= _MANY_CHANNELS


# Stride 1.


def _convolve_tiles(x, kernel):
  factors = _both_ways(_transform_kernel, _widened(kernel))

  def some(x):
    products = [
      [jnp.dot(d, k) for d, k in zip(*rows, strict=True)]
      for rows in zip(_tiles(_widened(x)), factors, strict=True)
    ]
    return _weave(_both_ways(_transform_back, products)).astype(x.dtype)

  even = _even(x)
  y = jax.lax.map(some, _turns(even, x.shape[-1] + kernel.shape[-1]))
  y = y.reshape(*even.shape[:3], -1)
  return y[:, : x.shape[1], : x.shape[2]]


def _to_kernel_by_tiles(x, gradient):
  def some(x, gradient):
    pixels = _parities(_widened(gradient))
    pixels = [[_transpose(p) for p in row] for row in pixels]
    products = [
      [g @ d.reshape(-1, d.shape[-1]) for d, g in zip(*rows, strict=True)]
      for rows in zip(
        _tiles(_widened(x)),
        _both_ways(_transform_gradient, pixels),
        strict=True,
      )
    ]
    return _stack(products)

  products = _sum_of_turns(some, _even(x), _even(gradient))
  kernel = _stack(_both_ways(_transform_back_to_kernel, products))
  return kernel.swapaxes(2, 3)


# Of one row or column: B, G and A of the paper, and transposes of A and G.


def _transform_pixels(d):
  return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _transform_kernel(k):
  outer, middle = 0.5 * (k[0] + k[2]), 0.5 * k[1]
  return k[0], outer + middle, outer - middle, k[2]


def _transform_back(m):
  return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _transform_gradient(g):
  return g[0], g[0] + g[1], g[0] - g[1], -g[1]


def _transform_back_to_kernel(m):
  plus, minus = 0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2])
  return m[0] + plus, minus, plus + m[3]


def _both_ways(transform: Callable, grid: Sequence[Sequence[jax.Array]]):
  """Transforms all columns of a grid of arrays, then all rows of that."""
  columns = [transform(column) for column in zip(*grid, strict=True)]
  return [transform(row) for row in zip(*columns, strict=True)]


def _tiles(x):
  """The transformed pixels of all tiles, a 4x4 grid of [b, H/2, W/2, I]."""
  return _both_ways(_transform_pixels, _every_second(x, 4))


def _even(x):
  """Adds a row and a column of zeros where their number is odd."""
  _, height, width, _ = x.shape
  return jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


def _transpose(x):
  """From [b, h, w, C] to [C, b h w], by a product with the unit matrix.

  XLA's own transpose takes ten times as long, and so does it where a product
  asks for it.
  """
  x = x.reshape(-1, x.shape[-1])
  unit = jnp.eye(x.shape[-1], dtype=x.dtype)
  return jax.lax.dot_general(unit, x, (((1,), (1,)), ((), ())))


# Stride 2, and few channels.


def _to_input_of_stride_2(kernel, gradient):
  """Every pixel's sum over the outputs that it was met by.

  Row 2i met tap 1 of output i; row 2i + 1 met tap 2 of output i and tap 0 of
  output i + 1; columns alike.
  """

  def met(taps, axis):
    first, second, third = taps
    first = jax.lax.slice_in_dim(first, 1, None, axis=axis)
    end = [(0, 1) if n == axis else (0, 0) for n in range(4)]
    return second, third + jnp.pad(first, end)

  def some(gradient):
    wide = _widened(gradient)
    taps = [[jnp.dot(wide, tap.T) for tap in row] for row in _widened(kernel)]
    rows = [met(row, axis=2) for row in taps]
    columns = [met(column, axis=1) for column in zip(*rows, strict=True)]
    parities = zip(*columns, strict=True)
    return _weave(parities).astype(gradient.dtype)

  b, h, w, channels = gradient.shape
  turns = _turns(gradient, channels + 4 * kernel.shape[2])
  return jax.lax.map(some, turns).reshape(b, 2 * h, 2 * w, -1)


def _to_kernel_of_stride_2(x, gradient):
  def some(x, gradient):
    taps = [tap for row in _every_second(_widened(x), 3) for tap in row]
    over = (0, 1, 2)
    return jax.lax.dot_general(
      jnp.concatenate(taps, axis=-1),
      _widened(gradient),
      ((over, over), ((), ())),
    )

  kernel = _sum_of_turns(some, x, gradient)
  return kernel.reshape(3, 3, x.shape[-1], -1)


def _to_narrow_kernel(x, gradient, stride):
  """A convolution of the images with the gradient, summed over the batch."""
  kernel = jax.lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    gradient.transpose(1, 2, 0, 3),
    (1, 1),
    # At stride 2 the last row of padding was never read.
    ((1, 2 - stride),) * 2,
    rhs_dilation=(stride, stride),
    dimension_numbers=_LAYOUT,
  )
  return kernel.transpose(1, 2, 0, 3)


# Pixels and turns.


def _every_second(x, count):
  """Every second pixel of the padded images, from each of the first on."""
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [
    [x[:, r : r + height : 2, c : c + width : 2] for c in range(count)]
    for r in range(count)
  ]


def _parities(x):
  return [[x[:, row::2, column::2] for column in (0, 1)] for row in (0, 1)]


def _weave(parities):
  """The images whose `_parities` these are."""
  rows = [jnp.stack(row, axis=3) for row in parities]
  x = jnp.stack(rows, axis=2)
  b, h, _, w, _, channels = x.shape
  return x.reshape(b, 2 * h, 2 * w, channels)


def _stack(grid):
  return jnp.stack([jnp.stack(row) for row in grid])


def _widened(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _turns(x, channels):
  """Splits the images into equal turns; `channels` are those in and out."""
  b, height, width, _ = x.shape
  most = max(1, _NUMBERS_PER_TURN // (height * width * channels))
  few = next(n for n in range(min(most, b), 0, -1) if b % n == 0)
  return x.reshape(b // few, few, *x.shape[1:])


def _sum_of_turns(function, x, gradient):
  x = _turns(x, x.shape[-1] + gradient.shape[-1])
  gradient = gradient.reshape(*x.shape[:2], *gradient.shape[1:])
  start = jax.eval_shape(function, x[0], gradient[0])
  total, _ = jax.lax.scan(
    lambda total, turn: (total + function(*turn), None),
    jnp.zeros(start.shape, start.dtype),
    (x, gradient),
  )
  return total
