# SPDX-License-Identifier: Apache-2.0
"""Norms, cosines, and the logits of ArcFace and CosFace.

Letters: B samples, C classes, D embedding size, k sub-centres of a class.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elasticface_jax.losses._arrays import (
  check_floating,
  is_target,
  nearest_subcenters,
  normalize,
  pick_target,
  promote,
  validate_cosines,
)
from elasticface_jax.losses._targets import change_target


def norms(x: ArrayLike) -> jax.Array:
  r"""Computes the norm of each vector.

  .. math::
    \lVert x \rVert_2

  Args:
    x: vectors, any float dtype, ``[..., D]``.

  Returns:
    Norms, at least float32, ``[...]``. The gradient is the unit vector; that
    of a zero vector is zero.

  Raises:
    TypeError: if ``x`` is not floating.

  Examples:
    >>> print(norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [5. 0.]
  """
  x = jnp.asarray(x)
  check_floating('x', x)
  x = promote(x)
  # The norm is the component of x along its own direction. In this form it has
  # the range of `normalize` and its finite derivatives.
  return jnp.sum(x * normalize(x), axis=-1)


def cosines(embeddings: ArrayLike, class_centers: ArrayLike) -> jax.Array:
  r"""Computes the cosine of each embedding with each class centre.

  .. math::
    \cos\theta_{ij} = \frac{\langle z_i, W_j \rangle}
      {\lVert z_i \rVert \lVert W_j \rVert}

  Args:
    embeddings: any norm, any float dtype, ``[B, D]``.
    class_centers: any norm, any float dtype, ``[C, D]``.

  Returns:
    Cosines, dimensionless, at least float32, ``[B, C]``; rounding may put them
    outside [-1, 1] in the last digit. A zero vector has cosine 0 with all.

  Raises:
    ValueError: if the shapes are not ``[B, D]`` and ``[C, D]``.
    TypeError: if the dtypes are not floating.

  Examples:
    >>> embeddings = jnp.array([[3.0, 4.0]])
    >>> print(cosines(embeddings, jnp.array([[2.0, 0.0], [0.0, -0.5]])))
    [[ 0.6 -0.8]]
  """
  embeddings, class_centers = _validate_vectors(
    embeddings, class_centers, '[C, D]'
  )
  return jnp.matmul(
    normalize(embeddings),
    normalize(class_centers).T,
    precision=jax.lax.Precision.HIGHEST,
  )


def subcenter_cosines(
  embeddings: ArrayLike, class_centers: ArrayLike
) -> jax.Array:
  r"""Computes the cosine of each embedding with a class's nearest sub-centre.

  .. math::
    \cos\theta_{ij} = \max_{l \le k} \cos(z_i, W_{jl})

  A class with several centres can gather its outliers, such as mislabelled
  images, around one of them and keep the others clean. All losses accept these
  cosines as they accept those of `cosines`.

  Args:
    embeddings: any norm, any float dtype, ``[B, D]``.
    class_centers: k sub-centres for each class, any norm, any float dtype,
      ``[C, k, D]``.

  Returns:
    Cosines, dimensionless, at least float32, ``[B, C]``. The gradient goes to
    the nearest sub-centre, and in equal parts to those that are equally near.

  Raises:
    ValueError: if the shapes are not ``[B, D]`` and ``[C, k, D]``.
    TypeError: if the dtypes are not floating.

  Examples:
    >>> class_centers = jnp.array([[[2.0, 0.0], [0.0, -0.5]]])
    >>> print(subcenter_cosines(jnp.array([[3.0, 4.0]]), class_centers))
    [[0.6]]

  References:
    `Sub-center ArcFace <https://doi.org/10.1007/978-3-030-58621-8_43>`_,
    ECCV 2020; the authors use k = 3.
  """
  embeddings, class_centers = _validate_vectors(
    embeddings, class_centers, '[C, k, D]'
  )
  num_classes, subcenters, dim = class_centers.shape
  each = cosines(
    embeddings, class_centers.reshape(num_classes * subcenters, dim)
  )
  return nearest_subcenters(each, subcenters)


def _validate_vectors(
  embeddings: ArrayLike, class_centers: ArrayLike, expected: str
) -> tuple[jax.Array, jax.Array]:
  embeddings = jnp.asarray(embeddings)
  class_centers = jnp.asarray(class_centers)
  shapes = embeddings.shape, class_centers.shape
  ndims = 2, expected.count(',') + 1
  if (len(shapes[0]), len(shapes[1])) != ndims or (
    shapes[0][-1] != shapes[1][-1]
  ):
    raise ValueError(
      f'embeddings must be [B, D] and class_centers {expected}, got '
      f'{shapes[0]} and {shapes[1]}'
    )
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)
  return embeddings, class_centers


def arcface_logits(
  cosines: ArrayLike,
  labels: ArrayLike,
  margins: ArrayLike,
  *,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes logits with an angular margin on each sample's own class.

  .. math::
    l_{ij} = s \cos(\theta_{ij} + m_i [j = y_i])

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Gradients are finite at -1 and 1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. A label out of
      range has no margin.
    margins: margin ``m`` in radians, a scalar or ``[B]``.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Logits in nats, at least float32, ``[B, C]``. Those of other classes are
    ``scale * cosines``, bit for bit.

  Raises:
    ValueError: if the shapes disagree, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> logits = arcface_logits(cosines, jnp.array([0, 1]), 0.5, scale=4.0)
    >>> print(jnp.array_str(logits, precision=3))
    [[2.323 0.4  ]
     [0.8   1.088]]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7;
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1,
    where theirs are infinite and NaN; the cosines of other classes do not pass
    through arccos and cos.
  """
  cosines, labels, (margins,) = validate_cosines(cosines, labels, margins)
  return scale * _with_margin(cosines, labels, margins, 'arc', gradient)


def cosface_logits(
  cosines: ArrayLike,
  labels: ArrayLike,
  margins: ArrayLike,
  *,
  scale: float | jax.Array = 64.0,
) -> jax.Array:
  r"""Computes logits with a cosine margin on each sample's own class.

  .. math::
    l_{ij} = s (\cos\theta_{ij} - m_i [j = y_i])

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. A label out of
      range has no margin.
    margins: margin ``m`` in cosine units, a scalar or ``[B]``.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Logits in nats, at least float32, ``[B, C]``. Those of other classes are
    ``scale * cosines``, bit for bit.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> logits = cosface_logits(cosines, jnp.array([0, 1]), 0.35, scale=4.0)
    >>> print(jnp.array_str(logits, precision=3))
    [[2.2 0.4]
     [0.8 1.4]]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7;
    `CosFace <https://arxiv.org/abs/1801.09414>`_, CVPR 2018.
    Differs from the authors' code in: nothing.
  """
  cosines, labels, (margins,) = validate_cosines(cosines, labels, margins)
  return scale * _with_margin(cosines, labels, margins, 'cos', 'exact')


def _with_margin(
  cosines: jax.Array,
  labels: jax.Array,
  margins: jax.Array,
  kind: str,
  gradient: str,
) -> jax.Array:
  target = change_target(
    pick_target(cosines, labels), (margins,), kind=kind, gradient=gradient
  )
  mask = is_target(labels, cosines.shape[1])
  return jnp.where(mask, target[:, None], cosines)
