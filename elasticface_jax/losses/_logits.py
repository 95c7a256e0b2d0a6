# SPDX-License-Identifier: Apache-2.0
"""Cosines, and the logits of ArcFace and CosFace.

Letters: B samples, C classes, D embedding size, k sub-centres of a class.
"""

import jax
import jax.numpy as jnp

from elasticface_jax.losses._targets import change_target


def promote(x: jax.Array) -> jax.Array:
  """Widens float16 and bfloat16 to float32; leaves float32 and float64."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def normalize(x: jax.Array) -> jax.Array:
  r"""Scales each vector to length 1, whatever its length was.

  .. math::
    x / \lVert x \rVert_2

  Args:
    x: vectors, any float dtype, ``[..., D]``. Lengths that overflow or
      underflow when squared are fine.

  Returns:
    Unit vectors, dimensionless, at least float32, ``[..., D]``. A zero vector
    (or one with nothing above the smallest normal number) gives zeros, and
    gradient zero.

  Examples:
    >>> print(normalize(jnp.array([[3e30, 4e30], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
  """
  return _normalize(promote(x))[0]


@jax.custom_jvp
def _normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Unit vectors, and what `x` was multiplied by, as two factors.

  Products only, and the derivative by hand. The compiler may turn a division
  by a broadcast into a product or not, depending on what stands around it,
  and a training step must give the same last bit in all surroundings.
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


def norms(x: jax.Array) -> jax.Array:
  r"""Computes the length of each vector.

  .. math::
    \lVert x \rVert_2

  Args:
    x: vectors, any float dtype, ``[..., D]``.

  Returns:
    Lengths, at least float32, ``[...]``. The gradient is the unit vector; that
    of a zero vector is zero.

  Examples:
    >>> print(norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [5. 0.]
  """
  x = promote(x)
  # The length is x along its own direction. Taken so, it has the range of
  # `normalize` and its finite derivatives.
  return jnp.sum(x * normalize(x), axis=-1)


def cosines(embeddings: jax.Array, class_centers: jax.Array) -> jax.Array:
  r"""Computes the cosine of each embedding with each class centre.

  .. math::
    \cos\theta_{ij} = \frac{\langle z_i, W_j \rangle}
      {\lVert z_i \rVert \lVert W_j \rVert}

  Args:
    embeddings: any length, any float dtype, ``[B, D]``.
    class_centers: any length, any float dtype, ``[C, D]``.

  Returns:
    Cosines, dimensionless, at least float32, ``[B, C]``; by rounding they may
    leave [-1, 1] in the last digit. A zero vector has cosine 0 with all.

  Raises:
    ValueError: if the shapes are not ``[B, D]`` and ``[C, D]``.
    TypeError: if the dtypes are not floating.

  Examples:
    >>> embeddings = jnp.array([[3.0, 4.0]])
    >>> print(cosines(embeddings, jnp.array([[2.0, 0.0], [0.0, -0.5]])))
    [[ 0.6 -0.8]]
  """
  embeddings, class_centers = (
    jnp.asarray(embeddings),
    jnp.asarray(class_centers),
  )
  _check_vectors(embeddings, class_centers, '[C, D]')
  return jnp.matmul(
    normalize(embeddings),
    normalize(class_centers).T,
    precision=jax.lax.Precision.HIGHEST,
  )


def subcenter_cosines(
  embeddings: jax.Array, class_centers: jax.Array
) -> jax.Array:
  r"""Computes the cosine of each embedding with a class's nearest sub-centre.

  .. math::
    \cos\theta_{ij} = \max_{l \le k} \cos(z_i, W_{jl})

  A class with several centres may gather its outliers, such as mislabelled
  images, around one of them and leave the others clean. All losses take these
  cosines as they take those of `cosines`.

  Args:
    embeddings: any length, any float dtype, ``[B, D]``.
    class_centers: k sub-centres for each class, any length, any float dtype,
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
  embeddings, class_centers = (
    jnp.asarray(embeddings),
    jnp.asarray(class_centers),
  )
  _check_vectors(embeddings, class_centers, '[C, k, D]')
  num_classes, count, dim = class_centers.shape
  each = cosines(embeddings, class_centers.reshape(num_classes * count, dim))
  return nearest(each, count)


def nearest(cosines: jax.Array, count: int) -> jax.Array:
  """Largest of each class's `count` cosines: ``[B, C * k]`` to ``[B, C]``."""
  if count == 1:
    return cosines
  return cosines.reshape(cosines.shape[0], -1, count).max(axis=2)


def _check_vectors(
  embeddings: jax.Array, class_centers: jax.Array, wanted: str
) -> None:
  shapes = embeddings.shape, class_centers.shape
  ndims = 2, wanted.count(',') + 1
  if (len(shapes[0]), len(shapes[1])) != ndims or (
    shapes[0][-1] != shapes[1][-1]
  ):
    raise ValueError(
      f'embeddings must be [B, D] and class_centers {wanted}, got '
      f'{shapes[0]} and {shapes[1]}'
    )
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)


def checked(
  cosines: jax.Array, labels: jax.Array, *margins: jax.Array | float
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
  """Returns the arguments as arrays of one float dtype, or says what is wrong.

  Looks at shapes and dtypes only, so it costs nothing inside ``jax.jit``.

  Args:
    cosines: any float dtype, ``[B, C]``.
    labels: integer, ``[B]``.
    *margins: a number or ``[B]`` each.

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
  for margin in margins:
    if jnp.shape(margin) not in ((), labels.shape):
      raise ValueError(
        f'margins must be a number or [B] for cosines [B, C] of shape '
        f'{cosines.shape}, got shape {jnp.shape(margin)}'
      )
  check_floating('cosines', cosines)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels must be integer, got {labels.dtype}')
  cosines = promote(cosines)
  return (
    cosines,
    labels.astype(jnp.int32),
    tuple(jnp.asarray(margin, cosines.dtype) for margin in margins),
  )


def check_floating(name: str, x: jax.Array) -> None:
  """Raises a TypeError unless `x`, called `name`, has a float dtype."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'{name} must be floating, got {x.dtype}')


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


def arcface_logits(
  cosines: jax.Array,
  labels: jax.Array,
  margins: jax.Array | float,
  *,
  scale: float = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes logits with an angular margin on each sample's own class.

  .. math::
    l_{ij} = s \cos(\theta_{ij} + m_i [j = y_i])

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Gradients are finite at -1 and 1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      no margin.
    margins: margin ``m`` in radians, a number or ``[B]``.
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
    where theirs are infinite and NaN; other classes' cosines are not passed
    through arccos and cos.
  """
  cosines, labels, margins = checked(cosines, labels, margins)
  return scale * _with_margin(cosines, labels, margins, 'arc', gradient)


def cosface_logits(
  cosines: jax.Array,
  labels: jax.Array,
  margins: jax.Array | float,
  *,
  scale: float = 64.0,
) -> jax.Array:
  r"""Computes logits with a cosine margin on each sample's own class.

  .. math::
    l_{ij} = s (\cos\theta_{ij} - m_i [j = y_i])

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      no margin.
    margins: margin ``m`` in cosine units, a number or ``[B]``.
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
  cosines, labels, margins = checked(cosines, labels, margins)
  return scale * _with_margin(cosines, labels, margins, 'cos', 'exact')


def _with_margin(
  cosines: jax.Array,
  labels: jax.Array,
  margins: tuple[jax.Array, ...],
  kind: str,
  gradient: str,
) -> jax.Array:
  target = change_target(
    pick_target(cosines, labels), margins, kind=kind, gradient=gradient
  )
  mask = is_target(labels, cosines.shape[1])
  return jnp.where(mask, target[:, None], cosines)
