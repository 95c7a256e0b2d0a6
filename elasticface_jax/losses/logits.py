# SPDX-License-Identifier: Apache-2.0
"""Cosines, and the arc and cos changes of the target logit.

Letters: B samples, C classes, D embedding size.
"""

import jax
import jax.numpy as jnp


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
  embeddings = jnp.asarray(embeddings)
  class_centers = jnp.asarray(class_centers)
  shapes = embeddings.shape, class_centers.shape
  if [len(s) for s in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
    raise ValueError(
      'embeddings must be [B, D] and class_centers [C, D], got '
      f'{shapes[0]} and {shapes[1]}'
    )
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)
  return jnp.matmul(
    normalize(embeddings),
    normalize(class_centers).T,
    precision=jax.lax.Precision.HIGHEST,
  )


def checked(
  cosines: jax.Array, labels: jax.Array, margins: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the arguments as arrays of one float dtype, or says what is wrong.

  Looks at shapes and dtypes only, so it costs nothing inside ``jax.jit``.

  Args:
    cosines: any float dtype, ``[B, C]``.
    labels: integer, ``[B]``.
    margins: a number or ``[B]``.

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
  if jnp.shape(margins) not in ((), labels.shape):
    raise ValueError(
      f'margins must be a number or [B] for cosines [B, C] of shape '
      f'{cosines.shape}, got shape {jnp.shape(margins)}'
    )
  check_floating('cosines', cosines)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels must be integer, got {labels.dtype}')
  cosines = promote(cosines)
  return (
    cosines,
    labels.astype(jnp.int32),
    jnp.asarray(margins, cosines.dtype),
  )


def check_floating(name: str, x: jax.Array) -> None:
  """Raises a TypeError unless `x`, called `name`, has a float dtype."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'{name} must be floating, got {x.dtype}')


def is_target(labels: jax.Array, num_classes: int) -> jax.Array:
  """Marks each sample's own class: ``[B]`` int32 to ``[B, C]`` bool."""
  classes = jnp.arange(num_classes, dtype=labels.dtype)
  return labels[:, None] == classes[None, :]


def target_cosines(cosines: jax.Array, labels: jax.Array) -> jax.Array:
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


def arc_target(
  target_cosines: jax.Array,
  margins: jax.Array | float,
  *,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Adds an angular margin to the target cosine.

  With :math:`c = \cos\theta`,

  .. math::
    \cos(\theta + m) = c \cos m - \sqrt{(1 - c)(1 + c)} \sin m

  There is no fallback for :math:`\theta + m > \pi`, where the value rises
  again.

  Args:
    target_cosines: ``c``, at least float32, ``[B]``.
    margins: margin ``m`` in radians, a number or ``[B]``.
    gradient: ``'exact'``: the derivative by ``c`` is
      ``cos m + c / sqrt((1 - c)(1 + c)) sin m``; where ``|c| >= 1`` the second
      term, infinite there, is left out. ``'straight_through'``: the same
      value, derivative 1.

  Returns:
    The target cosine with its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``.

  Raises:
    ValueError: if ``gradient`` is another name.

  Examples:
    >>> target = arc_target(jnp.cos(jnp.array([0.3])), 0.5)
    >>> print(jnp.array_str(target, precision=3), f'{jnp.cos(0.8):.3f}')
    [0.697] 0.697

  References:
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.
    Differs from the authors' code in: no arccos, whose gradient is NaN at
    ``c = 1`` and infinite at ``c = -1``; theirs is otherwise ``'exact'``.
    ``'straight_through'`` is the gradient of insightface's arcface_torch.
  """
  if gradient == 'exact':
    return _cosine_of_sum(target_cosines, margins)
  if gradient == 'straight_through':
    fixed = jax.lax.stop_gradient(target_cosines)
    return _cosine_of_sum(fixed, margins) + (target_cosines - fixed)
  raise ValueError(
    f"gradient must be 'exact' or 'straight_through', got {gradient!r}"
  )


def _cosine_of_sum(c: jax.Array, margins: jax.Array | float) -> jax.Array:
  # The product form keeps every digit of the sine next to |c| = 1, where
  # 1 - c * c would lose half of them.
  sine_squared = (1 - c) * (1 + c)
  inside = sine_squared > 0
  sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, sine_squared, 1)), 0)
  return c * jnp.cos(margins) - sine * jnp.sin(margins)


def cos_target(
  target_cosines: jax.Array, margins: jax.Array | float
) -> jax.Array:
  """Takes a margin off the target cosine.

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: margin ``m`` in cosine units, a number or ``[B]``.

  Returns:
    The target cosine less its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``.

  References:
    `CosFace <https://arxiv.org/abs/1801.09414>`_, CVPR 2018.
  """
  return target_cosines - margins


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
    gradient: ``'exact'`` or ``'straight_through'``; see `arc_target`.

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
  target = arc_target(
    target_cosines(cosines, labels), margins, gradient=gradient
  )
  return scale * _with_target(cosines, labels, target)


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
  target = cos_target(target_cosines(cosines, labels), margins)
  return scale * _with_target(cosines, labels, target)


def _with_target(
  cosines: jax.Array, labels: jax.Array, target: jax.Array
) -> jax.Array:
  mask = is_target(labels, cosines.shape[1])
  return jnp.where(mask, target[:, None], cosines)
