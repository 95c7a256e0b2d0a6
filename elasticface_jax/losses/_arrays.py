# SPDX-License-Identifier: Apache-2.0
"""Array helpers that all losses share: dtypes, checks, unit vectors, targets.

Letters: B samples, C classes, D embedding size, k sub-centres of a class.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def promote(x: jax.Array) -> jax.Array:
  """Widens float16 and bfloat16 to float32; leaves float32 and float64."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def check_floating(name: str, x: jax.Array) -> None:
  """Raises a TypeError unless `x`, called `name`, has a float dtype."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'{name} must be floating, got {x.dtype}')


def check_integer(name: str, x: jax.Array) -> None:
  """Raises a TypeError unless `x`, called `name`, has an integer dtype."""
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise TypeError(f'{name} must be integer, got {x.dtype}')


def validate_per_sample(
  name: str, x: ArrayLike, shape: tuple[int, ...] | None = None
) -> jax.Array:
  """Converts one float for each sample to an array and checks it.

  Args:
    name: name of the argument, for the error message.
    x: any float dtype, ``[B]``.
    shape: ``(B,)`` where it is known.

  Returns:
    The floats, at least float32, ``[B]``.

  Raises:
    ValueError: if the shape is not ``[B]``.
    TypeError: if the dtype is not floating.
  """
  x = jnp.asarray(x)
  check_floating(name, x)
  if x.ndim != 1 or shape not in (None, x.shape):
    raise ValueError(
      f'{name} must be [B]{f" = {shape}" if shape else ""}, got shape {x.shape}'
    )
  return promote(x)


def validate_cosines(
  cosines: ArrayLike, labels: ArrayLike, *margins: ArrayLike
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
  """Converts cosines, labels and margins to arrays and checks them.

  Looks at shapes and dtypes only, so it costs nothing inside ``jax.jit``.

  Args:
    cosines: any float dtype, ``[B, C]``.
    labels: integer, ``[B]``.
    *margins: a scalar or ``[B]`` each.

  Returns:
    The cosines, at least float32; the labels, int32; the margins, in the dtype
    of the cosines.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if the cosines are not floating or the labels not integer.
  """
  cosines, labels = jnp.asarray(cosines), jnp.asarray(labels)
  if cosines.ndim != 2:
    raise ValueError(f'cosines must be [B, C], got shape {cosines.shape}')
  if labels.shape != cosines.shape[:1]:
    raise ValueError(
      f'labels must be [B] for cosines [B, C] of shape {cosines.shape}, got '
      f'shape {labels.shape}'
    )
  check_floating('cosines', cosines)
  check_integer('labels', labels)
  cosines, labels = promote(cosines), labels.astype(jnp.int32)
  margins = tuple(jnp.asarray(margin, cosines.dtype) for margin in margins)
  for margin in margins:
    if margin.shape not in ((), labels.shape):
      raise ValueError(
        f'margins must be a scalar or [B] for cosines [B, C] of shape '
        f'{cosines.shape}, got shape {margin.shape}'
      )
  return cosines, labels, margins


def normalize(x: ArrayLike) -> jax.Array:
  r"""Scales each vector to norm 1.

  .. math::
    x / \lVert x \rVert_2

  Args:
    x: vectors, any float dtype, ``[..., D]``. Norms may overflow or underflow
      when squared.

  Returns:
    Unit vectors, dimensionless, at least float32, ``[..., D]``. A zero vector
    (or one with nothing above the smallest normal number) gives zeros, and
    gradient zero.

  Examples:
    >>> print(normalize(jnp.array([[3e30, 4e30], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
  """
  return _normalize(promote(jnp.asarray(x)))[0]


@jax.custom_jvp
def _normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes unit vectors and, as two factors, what `x` was multiplied by.

  Uses products only, and a derivative written by hand. The compiler may turn a
  division by a broadcast into a product or not, depending on the operations
  around it, and a training step must give the same last bit in all
  surroundings.
  """
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  is_zero = largest < jnp.finfo(x.dtype).tiny
  # Two factors: their product overflows for tiny vectors. The limit keeps the
  # first above the smallest normal number for huge ones.
  first = 1 / jnp.minimum(jnp.where(is_zero, 1, largest), 1e30)
  scaled = x * first
  square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
  second = jnp.where(is_zero, 0, 1 / jnp.sqrt(jnp.where(is_zero, 1, square)))
  return scaled * second, first, second


@_normalize.defjvp
def _normalize_jvp(primals, tangents):
  unit, first, second = _normalize(*primals)
  tangent = tangents[0] * first * second
  along = jnp.sum(unit * tangent, axis=-1, keepdims=True)
  # Derivatives of this derivative meet the factors' product alone, so the
  # second factor stands in for both.
  factors = jnp.zeros_like(first), -second * along
  return (unit, first, second), (tangent - unit * along, *factors)


def nearest_subcenters(cosines: jax.Array, subcenters: int) -> jax.Array:
  """Picks each class's nearest sub-centre: ``[B, C * k]`` to ``[B, C]``."""
  if subcenters == 1:
    return cosines
  return cosines.reshape(cosines.shape[0], -1, subcenters).max(axis=2)


def is_target(labels: jax.Array, num_classes: int) -> jax.Array:
  """Marks each sample's own class: ``[B]`` int32 to ``[B, C]`` bool."""
  classes = jnp.arange(num_classes, dtype=labels.dtype)
  return labels[:, None] == classes[None, :]


def pick_target(cosines: jax.Array, labels: jax.Array) -> jax.Array:
  """Picks each sample's cosine with its own class centre.

  Args:
    cosines: float, ``[B, C]``.
    labels: int32, ``[B]``.

  Returns:
    Target cosines, dtype of ``cosines``, ``[B]``; 0 where the label is outside
    ``[0, C)``.
  """
  # A masked sum has one term, so it is exact; its gradient is a mask, where
  # that of an index would be a scatter.
  mask = is_target(labels, cosines.shape[1])
  return jnp.sum(jnp.where(mask, cosines, 0), axis=1)
