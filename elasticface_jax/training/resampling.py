# SPDX-License-Identifier: Apache-2.0
"""Resizing and blurring of an image as one small matrix for each axis.

A gather of pixels whose places are drawn is slow on an accelerator, and a
drawn size gives no static shape. A matrix of weights has one: it is
``[length, length]`` for every size, rows and columns beyond the drawn sizes are
zero, and two products apply it. Places are integers until the last division,
so that rounding moves no pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Interpolations, in the order of their numbers.
METHODS = ('nearest', 'linear', 'area', 'cubic', 'lanczos')
NEAREST, LINEAR, AREA, CUBIC, LANCZOS = range(len(METHODS))

# Offsets of the pixels from which all but 'area' compute one: Lanczos takes
# eight, the others fewer.
_TAPS = np.arange(-3, 5, dtype=np.int32)
_CUBIC = -0.75  # The slope of the cubic at distance 1, as OpenCV has it.


def resize_weights(
  length: int,
  method: jax.Array | int,
  *,
  first: jax.Array | int,
  taken: jax.Array | int,
  made: jax.Array | int,
) -> jax.Array:
  """Computes the weights that resize a part of one axis.

  Pixels at the edge of the part are repeated beyond it. 'area' averages over
  what a new pixel covers; the others look at their neighbours alone, however
  much smaller the result is, as OpenCV.

  Args:
    length: of the axis.
    method: index in `METHODS`.
    first: first pixel of the part.
    taken: number of its pixels.
    made: number of pixels that they become.

  Returns:
    Float32 ``[length, length]``: in row o the weight of each old pixel in the
    new pixel o; rows from `made` on are zero.

  Examples:
    >>> weights = resize_weights(4, AREA, first=0, taken=4, made=2)
    >>> print(weights[:2])
    [[0.5 0.5 0.  0. ]
     [0.  0.  0.5 0.5]]
  """
  new = jnp.arange(length, dtype=jnp.int32)
  old = new - first
  by_area = _by_area(new[:, None], old[None], taken, made)
  by_taps = _by_taps(method, new, old, taken, made)
  weights = jnp.where(method == AREA, by_area, by_taps)
  return jnp.where(new[:, None] < made, weights, 0)


def _by_area(new, old, taken, made):
  """Computes the share of each old pixel in each new one, ``[L, L]``."""
  # In units of 1 / made of an old pixel.
  begin = jnp.maximum(new * taken, old * made)
  end = jnp.minimum((new + 1) * taken, (old + 1) * made)
  inside = (old >= 0) & (old < taken)
  overlap = jnp.where(inside, jnp.maximum(end - begin, 0), 0)
  return _divide(overlap, taken)


def _by_taps(method, new, old, taken, made):
  """Computes the weights of a few neighbours in each new pixel, ``[L, L]``."""
  # The centre of a new pixel, in units of 1 / (2 made) of an old one.
  place = (2 * new + 1) * taken - made
  below = place // (2 * made)
  beyond = _divide(place - below * 2 * made, 2 * made)  # In [0, 1).
  # The nearest is that at the new pixel's edge, not at its centre, in OpenCV.
  below = jnp.where(method == NEAREST, new * taken // made, below)
  pixels = jnp.clip(below[:, None] + _TAPS[None], 0, taken - 1)
  taps = _taps(method, beyond)
  hits = pixels[:, :, None] == old[None, None]
  return jnp.where(hits, taps[:, :, None], 0).sum(axis=1)


def _taps(method, beyond):
  """Computes the weight of each of `_TAPS`, ``[L, 8]``."""
  distances = jnp.abs(beyond[:, None] - _TAPS[None])
  lanczos = _sinc(distances) * _sinc(distances / 4)
  return jax.lax.select_n(
    jnp.asarray(method, jnp.int32),
    jnp.broadcast_to((_TAPS == 0).astype(jnp.float32), distances.shape),
    jnp.maximum(1 - distances, 0),
    jnp.zeros_like(distances),  # 'area' has none.
    _cubic(distances),
    lanczos / lanczos.sum(axis=1, keepdims=True),
  )


def _sinc(d):
  # Shorter than that of jax.numpy, which has derivatives at 0.
  x = jnp.pi * jnp.where(d == 0, 1, d)
  return jnp.where(d == 0, 1, jnp.sin(x) / x)


def _cubic(d):
  near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
  far = _CUBIC * (((d - 5) * d + 8) * d - 4)
  return jnp.where(d < 1, near, jnp.where(d < 2, far, 0))


def _divide(numerator, denominator):
  as_float = lambda x: jnp.asarray(x).astype(jnp.float32)
  return as_float(numerator) / as_float(denominator)


def blur_weights(length: int, sigma: jax.Array | float) -> jax.Array:
  """Computes the weights of a Gaussian blur along one axis.

  The image is mirrored at the middle of its first and last pixel.

  Args:
    length: of the axis.
    sigma: standard deviation in pixels, so small that a pixel has no weight
      beyond its second mirror image.

  Returns:
    Float32 ``[length, length]``; rows add up to 1.

  Examples:
    >>> print((100 * blur_weights(3, 0.5)).round().astype('int32'))
    [[79 21  0]
     [11 79 11]
     [ 0 21 79]]
  """
  new = jnp.arange(length, dtype=jnp.int32)[:, None]
  old = jnp.arange(length, dtype=jnp.int32)[None]
  bell = lambda distance: jnp.exp(-0.5 * jnp.square(distance / sigma))
  # The first and the last pixel are their own mirror images.
  left = jnp.where(old == 0, 0, bell(new + old))
  right = jnp.where(old == length - 1, 0, bell(2 * (length - 1) - old - new))
  weights = bell(new - old) + left + right
  return weights / weights.sum(axis=1, keepdims=True)


def resample(image: jax.Array, rows: jax.Array, columns: jax.Array):
  """Applies weights to both axes of an image.

  Args:
    image: uint8 ``[H, W, C]``.
    rows: float32 ``[H, H]``.
    columns: float32 ``[W, W]``.

  Returns:
    Uint8 ``[H, W, C]``, rounded to the nearest value and clipped.
  """
  # Also where products of float32 have fewer bits by default.
  highest = jax.lax.Precision.HIGHEST
  x = image.astype(jnp.float32)
  x = jnp.einsum('ow,hwc->hoc', columns, x, precision=highest)
  x = jnp.einsum('oh,hwc->owc', rows, x, precision=highest)
  return jnp.clip(jnp.floor(x + 0.5), 0, 255).astype(jnp.uint8)
