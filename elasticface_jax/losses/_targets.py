# SPDX-License-Identifier: Apache-2.0
r"""Functions that each loss applies to the cosines before the softmax.

All losses here are one softmax of scaled cosines. They differ in two functions,
the `Kind` of the loss:

- one maps the target cosine and its margins to a new target cosine;
- in CurricularFace, another maps every other cosine too, given the target
  cosine and the margins.

A loss can run block by block (`losses._blocks`) because both functions see one
cosine of the matrix ``[B, C]`` at a time, and besides it only values ``[B]``. A
loss that needs two other classes at once (a distance between class centres, a
sort of the logits) does not fit.

A margin is a scalar or one value for each sample. `losses._margins`,
`losses._softmax` and `losses._adaptive` make the margins: constants, draws, or
functions of the norms or of a running mean.

Letters: B samples, s other classes. Angles are in radians.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Margin = jax.Array | float  # A scalar, or ``[B]``.

# AdaFace keeps its changed angle this far from 0 and pi.
ANGLE_LIMIT = 1e-3


def _sine(c: jax.Array) -> jax.Array:
  """Computes ``sqrt(1 - c^2)``; 0 with derivative 0 where ``|c| >= 1``."""
  # The product form keeps every digit of the sine next to |c| = 1, where
  # 1 - c * c would lose half of them.
  square = (1 - c) * (1 + c)
  inside = square > 0
  return jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1)), 0)


def _cosine_of_sum(c: jax.Array, margins: Margin) -> jax.Array:
  """Computes ``cos(theta + margin)``; its derivative omits infinite terms."""
  return c * jnp.cos(margins) - _sine(c) * jnp.sin(margins)


def angles(cosines: jax.Array) -> jax.Array:
  r"""Computes the angle of each cosine, with finite derivatives.

  Args:
    cosines: at least float32, any shape. Rounding may put them outside
      [-1, 1].

  Returns:
    :math:`\theta` in [0, pi], same dtype and shape. The derivative by the
    cosine is ``-1 / sin(theta)``; where that is infinite, 0.

  Examples:
    >>> print(angles(jnp.array([1.0, 0.0, -1.0])))
    [0.        1.5707964 3.1415927]
  """
  return jnp.arctan2(_sine(cosines), cosines)


def arc_target(target_cosines: jax.Array, margins: Margin) -> jax.Array:
  r"""Adds an angular margin to the target cosine.

  With :math:`c = \cos\theta`,

  .. math::
    \cos(\theta + m) = c \cos m - \sqrt{(1 - c)(1 + c)} \sin m

  There is no fallback for :math:`\theta + m > \pi`, where the value increases
  again.

  Args:
    target_cosines: ``c``, at least float32, ``[B]``.
    margins: margin ``m`` in radians, a scalar or ``[B]``.

  Returns:
    The target cosine with its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``. The derivative by ``c`` is
    ``cos m + c / sqrt((1 - c)(1 + c)) sin m``; where ``|c| >= 1`` it omits the
    second term, which is infinite there.

  Examples:
    >>> target = arc_target(jnp.cos(jnp.array([0.3])), 0.5)
    >>> print(jnp.array_str(target, precision=3), f'{jnp.cos(0.8):.3f}')
    [0.697] 0.697

  References:
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.
    Differs from the authors' code in: no arccos, whose gradient is NaN at
    ``c = 1`` and infinite at ``c = -1``.
  """
  return _cosine_of_sum(target_cosines, margins)


def cos_target(target_cosines: jax.Array, margins: Margin) -> jax.Array:
  """Subtracts a margin from the target cosine.

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: margin ``m`` in cosine units, a scalar or ``[B]``.

  Returns:
    The target cosine minus its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``.

  References:
    `CosFace <https://arxiv.org/abs/1801.09414>`_, CVPR 2018.
  """
  return target_cosines - margins


def combined_target(
  target_cosines: jax.Array, m1: Margin, m2: Margin, m3: Margin
) -> jax.Array:
  r"""Multiplies the angle, adds to it, and subtracts from the cosine.

  .. math::
    \cos(m_1 \theta + m_2) - m_3

  Written as ``cos(theta + ((m1 - 1) theta + m2)) - m3``, so that (1, m, 0) is
  `arc_target` and (1, 0, m) is `cos_target` to the last bit.

  Args:
    target_cosines: at least float32, ``[B]``.
    m1: factor of the angle, a scalar or ``[B]``.
    m2: margin on the angle in radians, a scalar or ``[B]``.
    m3: margin on the cosine, a scalar or ``[B]``.

  Returns:
    The target cosine with its margins, not scaled, dtype of
    ``target_cosines``, ``[B]``. No fallback beyond pi.

  References:
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019, Eq. 4.
  """
  extra = (m1 - 1) * angles(target_cosines) + m2
  return _cosine_of_sum(target_cosines, extra) - m3


def sphere_target(target_cosines: jax.Array, margins: Margin) -> jax.Array:
  r"""Multiplies the angle, and keeps decreasing beyond pi.

  .. math::
    (-1)^k \cos(m \theta) - 2 k, \qquad
    k = \lfloor m \theta / \pi \rfloor

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: factor ``m`` of the angle, at least 1, a scalar or ``[B]``.

  Returns:
    The target cosine with its margin, not scaled, about in [1 - 2m, 1], dtype
    of ``target_cosines``, ``[B]``.

  References:
    `SphereFace <https://arxiv.org/abs/1704.08063>`_, CVPR 2017, and
    `SphereFace Revived <https://arxiv.org/abs/2109.05565>`_, TPAMI 2022.
  """
  theta = angles(target_cosines)
  fixed = jax.lax.stop_gradient(margins * theta)
  # An angle of pi belongs to the last piece: it does not start a new one.
  last = jnp.ceil(jax.lax.stop_gradient(jnp.asarray(margins, theta.dtype))) - 1
  k = jnp.clip(jnp.floor(fixed / np.pi), 0, jnp.maximum(last, 0))
  sign = 1 - 2 * (k % 2)
  return sign * _cosine_of_sum(target_cosines, (margins - 1) * theta) - 2 * k


def x2_target(
  target_cosines: jax.Array, a: Margin, h: Margin, k: Margin
) -> jax.Array:
  r"""Replaces the target cosine by a parabola of the angle.

  .. math::
    a (\theta - h)^2 + k

  Args:
    target_cosines: at least float32, ``[B]``.
    a: curvature, negative, a scalar or ``[B]``.
    h: angle of the vertex in radians, a scalar or ``[B]``.
    k: value at the vertex, a scalar or ``[B]``.

  Returns:
    The changed target cosine, not scaled, dtype of ``target_cosines``,
    ``[B]``.

  References:
    `X2-Softmax <https://arxiv.org/abs/2312.05281>`_, Expert Systems with
    Applications 2024.
  """
  return a * jnp.square(angles(target_cosines) - h) + k


def adaface_target(
  target_cosines: jax.Array, angle_margins: Margin, cosine_margins: Margin
) -> jax.Array:
  r"""Adds to the angle, clips it to (0, pi), and subtracts from the cosine.

  .. math::
    \cos(\operatorname{clip}(\theta + a, \epsilon, \pi - \epsilon)) - b,
    \qquad \epsilon = 10^{-3}

  Args:
    target_cosines: at least float32, ``[B]``.
    angle_margins: ``a`` in radians, may be negative, a scalar or ``[B]``.
    cosine_margins: ``b`` in cosine units, a scalar or ``[B]``.

  Returns:
    The target cosine with its margins, not scaled, dtype of
    ``target_cosines``, ``[B]``. The gradient is 0 where the angle is clipped.

  References:
    `AdaFace <https://arxiv.org/abs/2204.00964>`_, CVPR 2022, Eqs. 9-16.
  """
  total = angles(target_cosines) + angle_margins
  end = np.cos(ANGLE_LIMIT)
  changed = jnp.where(
    total <= ANGLE_LIMIT,
    end,
    jnp.where(
      total >= np.pi - ANGLE_LIMIT,
      -end,
      _cosine_of_sum(target_cosines, angle_margins),
    ),
  )
  return changed - cosine_margins


def magface_target(target_cosines: jax.Array, margins: Margin) -> jax.Array:
  r"""Adds an angular margin where the angle is below 90 degrees.

  .. math::
    \cos(\theta + m) \text{ if } \cos\theta > 0 \text{ else } \cos\theta

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: margin ``m`` in radians, a scalar or ``[B]``.

  Returns:
    The target cosine with its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``.

  References:
    `MagFace <https://arxiv.org/abs/2103.06627>`_, CVPR 2021; the 'easy margin'
    with which the authors train.
  """
  changed = _cosine_of_sum(target_cosines, margins)
  return jnp.where(target_cosines > 0, changed, target_cosines)


def curricular_target(
  target_cosines: jax.Array, margins: Margin, t: Margin
) -> jax.Array:
  r"""Adds an angular margin; beyond pi, decreases in a straight line.

  .. math::
    \cos(\theta + m) \text{ if } \theta + m < \pi
    \text{ else } \cos\theta - m \sin m

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: margin ``m`` in radians, a scalar or ``[B]``.
    t: unused here; `curricular_others` uses it.

  Returns:
    The target cosine with its margin, not scaled, dtype of
    ``target_cosines``, ``[B]``.

  References:
    `CurricularFace <https://arxiv.org/abs/2004.00288>`_, CVPR 2020.
  """
  del t
  return jnp.where(
    target_cosines > -jnp.cos(margins),
    _cosine_of_sum(target_cosines, margins),
    target_cosines - margins * jnp.sin(margins),
  )


def curricular_others(
  cosines: jax.Array, target_cosines: jax.Array, margins: Margin, t: Margin
) -> jax.Array:
  r"""Raises or lowers the cosines of hard negatives (CurricularFace).

  .. math::
    c_j (t + c_j) \text{ if } c_j > \cos(\theta_y + m) \text{ else } c_j

  Args:
    cosines: with other classes, at least float32, ``[B, s]``.
    target_cosines: before the margin, ``[B]``.
    margins: margin ``m`` in radians, a scalar or ``[B]``.
    t: running mean of the target cosine, a scalar or ``[B]``.

  Returns:
    The changed cosines, ``[B, s]``. No gradient flows to the target, the
    margins or ``t``.

  References:
    `CurricularFace <https://arxiv.org/abs/2004.00288>`_, CVPR 2020, Eq. 10.
  """
  limit = jax.lax.stop_gradient(_cosine_of_sum(target_cosines, margins))
  t = jnp.broadcast_to(jax.lax.stop_gradient(t), limit.shape)
  hard = cosines > limit[:, None]
  return jnp.where(hard, cosines * (t[:, None] + cosines), cosines)


class Kind(NamedTuple):
  """Two functions of one cosine each, which make up a loss."""

  margins: tuple[str, ...]  # Names of its margins, in order.
  target: Callable[..., jax.Array]  # (cosines [B], *margins) -> [B]
  # (cosines [B, s], target cosines [B], *margins) -> [B, s]
  others: Callable[..., jax.Array] = lambda cosines, *_: cosines


KINDS = {
  'arc': Kind(('margin',), arc_target),
  'cos': Kind(('margin',), cos_target),
  'combined': Kind(('m1', 'm2', 'm3'), combined_target),
  'sphere': Kind(('margin',), sphere_target),
  'x2': Kind(('a', 'h', 'k'), x2_target),
  'adaface': Kind(('angle_margin', 'cosine_margin'), adaface_target),
  'magface': Kind(('margin',), magface_target),
  'curricular': Kind(('margin', 't'), curricular_target, curricular_others),
}


GRADIENTS = 'exact', 'straight_through'


def check_kind(kind: str, gradient: str) -> None:
  """Raises a ValueError unless both names are known."""
  if kind not in KINDS:
    raise ValueError(f'kind must be one of {", ".join(KINDS)}, not {kind!r}')
  if gradient not in GRADIENTS:
    raise ValueError(
      f"gradient must be 'exact' or 'straight_through', not {gradient!r}"
    )


def change_target(
  target_cosines: jax.Array,
  margins: tuple[Margin, ...],
  *,
  kind: str,
  gradient: str = 'exact',
) -> jax.Array:
  """Applies the target function of a kind of loss.

  Args:
    target_cosines: at least float32, ``[B]``.
    margins: margins of the kind, in order.
    kind: a name in `KINDS`.
    gradient: ``'exact'``: the derivative of the function.
      ``'straight_through'``: the same value with derivative 1 by the cosine, as
      in insightface's arcface_torch and in OpenSphere, which compute the margin
      without gradient.

  Returns:
    The changed target cosine, not scaled, ``[B]``.

  Raises:
    ValueError: if a name is unknown.
  """
  check_kind(kind, gradient)
  change = KINDS[kind].target
  if gradient == 'exact':
    return change(target_cosines, *margins)
  fixed = jax.lax.stop_gradient(target_cosines)
  return change(fixed, *margins) + (target_cosines - fixed)


def change_others(
  cosines: jax.Array,
  target_cosines: jax.Array,
  margins: tuple[Margin, ...],
  *,
  kind: str,
) -> jax.Array:
  """Applies the function of a kind of loss for other classes.

  Args:
    cosines: with other classes, at least float32, ``[B, s]``.
    target_cosines: before the margin, ``[B]``.
    margins: margins of the kind, in order.
    kind: a name in `KINDS`.

  Returns:
    The changed cosines, ``[B, s]``; unchanged in all kinds but ``curricular``.
  """
  return KINDS[kind].others(cosines, target_cosines, *margins)
