# SPDX-License-Identifier: Apache-2.0
r"""Named losses of the matrix of cosines.

All are the cross-entropy of one softmax and differ only in the target's logit,
which `losses._targets` computes. They are not reduced; take ``.mean()`` for the
reference's batch loss. Losses that need the norms of the embeddings, or a
state, are in `losses._adaptive`.

Letters: B samples, C classes.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elasticface_jax.losses._arrays import (
  is_target,
  pick_target,
  validate_cosines,
)
from elasticface_jax.losses._margins import pair_margins, sample_margins
from elasticface_jax.losses._targets import change_others, change_target


def _cross_entropy(
  cosines: jax.Array,
  labels: jax.Array,
  target: jax.Array,
  scale: float | jax.Array,
) -> jax.Array:
  r"""Computes ``log(1 + sum_{j != y} exp(scale (cosine_j - target)))``.

  All exponents are relative to the largest cosine, so that nothing overflows at
  any scale, and small losses and gradients keep their digits. float32 loses
  only the last digit of the target itself: a rounding error of 6e-8 in a cosine
  is ``scale`` times that in the logit, 4e-6 at 64.

  Args:
    cosines: at least float32, ``[B, C]``.
    labels: integer, ``[B]``.
    target: target cosine after its margin, ``[B]``.
    scale: inverse temperature.

  Returns:
    Loss in nats, ``[B]``.
  """
  others = ~is_target(labels, cosines.shape[1])
  fixed = jax.lax.stop_gradient(target)
  largest_other = jnp.max(cosines, axis=1, where=others, initial=-jnp.inf)
  largest = jnp.maximum(fixed, jax.lax.stop_gradient(largest_other))
  exponents = jnp.where(others, scale * (cosines - largest[:, None]), -jnp.inf)
  total = jnp.sum(jnp.exp(exponents), axis=1)
  # The factor is 1 and serves its derivative alone: so the target's gradient is
  # a sum over the others, where 1 - p would lose its digits as p nears 1.
  total = total * jnp.exp(scale * (fixed - target))
  lead = scale * (largest - fixed)
  # log(total + exp(-lead)); at lead 0, where total may be tiny, log1p(total).
  return lead + jnp.log1p(total + jnp.expm1(-lead))


def margin_softmax(
  cosines: ArrayLike,
  labels: ArrayLike,
  *margins: ArrayLike,
  kind: str,
  scale: float | jax.Array,
  gradient: str = 'exact',
) -> jax.Array:
  """Computes the loss of a kind in `_targets.KINDS`: ``[B, C]`` to ``[B]``."""
  cosines, labels, margins = validate_cosines(cosines, labels, *margins)
  before = pick_target(cosines, labels)
  target = change_target(before, margins, kind=kind, gradient=gradient)
  others = change_others(cosines, before, margins, kind=kind)
  return _cross_entropy(others, labels, target, scale)


def _draw_margins(
  cosines: ArrayLike,
  key: jax.Array,
  margin: float | jax.Array,
  margin_std: float,
  clip: tuple[float, float] | None,
  first_sample: ArrayLike,
) -> jax.Array:
  shape = jnp.asarray(cosines).shape[:1]
  margins = sample_margins(
    key,
    shape,
    mean=margin,
    std=margin_std,
    clip=clip,
    first_sample=first_sample,
  )
  # Draws are float32. Without spread the margin is that of the parent loss,
  # which has more digits in float64.
  return margins if margin_std else jnp.full(shape, margin)


def _draw_paired_margins(
  cosines: ArrayLike,
  labels: ArrayLike,
  key: jax.Array,
  margin: float | jax.Array,
  margin_std: float,
  clip: tuple[float, float] | None,
  first_sample: ArrayLike,
  pairing: str,
) -> jax.Array:
  drawn = _draw_margins(cosines, key, margin, margin_std, clip, first_sample)
  cosines, labels, (margins,) = validate_cosines(cosines, labels, drawn)
  paired = pair_margins(margins, pick_target(cosines, labels), rule=pairing)
  # Equal margins stay the constant that XLA sees in the parent loss. It folds
  # their cosine, which may differ in the last bit from one computed later.
  return paired if margin_std else margins


def normface(
  cosines: ArrayLike, labels: ArrayLike, *, scale: float | jax.Array = 64.0
) -> jax.Array:
  r"""Computes NormFace: the softmax of scaled cosines, without a margin.

  The loss of sample :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s \cos\theta_{i y_i}}}{\sum_j e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = normface(cosines, jnp.array([0, 1]), scale=4.0)
    >>> print(jnp.array_str(loss, precision=3))
    [0.04  0.127]

  References:
    `NormFace <https://arxiv.org/abs/1704.06369>`_, ACM MM 2017.
  """
  return margin_softmax(cosines, labels, 0.0, kind='cos', scale=scale)


def arcface(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  margin: ArrayLike = 0.5,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes ArcFace: a margin on the angle of embedding and class centre.

  With :math:`\theta_{ij} = \arccos(\text{cosines}_{ij})`, the loss of sample
  :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s \cos(\theta_{i y_i} + m)}}
      {e^{s \cos(\theta_{i y_i} + m)} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    margin: margin ``m``, in radians; a scalar or ``[B]``. 0 gives NormFace
      exactly.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'``, or ``'straight_through'``: the same loss, with ``s``
      in place of the derivative of the target's logit by its cosine.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = arcface(cosines, jnp.array([0, 1]), scale=4.0)
    >>> print(jnp.array_str(loss, precision=3))
    [0.136 0.56 ]

  References:
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1,
    where ElasticFace's ArcFace has infinity and NaN. ElasticFace's gradient is
    ``'exact'``; that of insightface's arcface_torch is ``'straight_through'``.
  """
  return margin_softmax(
    cosines, labels, margin, kind='arc', scale=scale, gradient=gradient
  )


def cosface(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  margin: ArrayLike = 0.35,
  scale: float | jax.Array = 64.0,
) -> jax.Array:
  r"""Computes CosFace: a margin on the cosine of embedding and class centre.

  The loss of sample :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s (\cos\theta_{i y_i} - m)}}
      {e^{s (\cos\theta_{i y_i} - m)} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    margin: margin ``m``, in units of the cosine; a scalar or ``[B]``. 0 gives
      NormFace exactly.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = cosface(cosines, jnp.array([0, 1]), scale=4.0)
    >>> print(jnp.array_str(loss, precision=3))
    [0.153 0.437]

  References:
    `CosFace <https://arxiv.org/abs/1801.09414>`_, CVPR 2018.
    Differs from the authors' code in: ElasticFace's released configuration
    trains its CosFace baseline with a margin of 0.5, not 0.35; insightface
    uses 0.4.
  """
  return margin_softmax(cosines, labels, margin, kind='cos', scale=scale)


def combined_margin(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  m1: ArrayLike = 1.0,
  m2: ArrayLike = 0.5,
  m3: ArrayLike = 0.0,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes the combined margin: SphereFace's, ArcFace's and CosFace's.

  The loss of sample :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s (\cos(m_1 \theta_{i y_i} + m_2) - m_3)}}
      {e^{s (\cos(m_1 \theta_{i y_i} + m_2) - m_3)}
        + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    m1: factor of the angle; a scalar or ``[B]``. 1 leaves the angle unchanged.
    m2: margin on the angle, in radians; a scalar or ``[B]``. (1, m, 0) equals
      `arcface`: bit for bit with margins ``[B]``; for a Python scalar XLA folds
      the cosine of `arcface`'s margin at compile time, which may change the
      last bit.
    m3: margin on the cosine; a scalar or ``[B]``. (1, 0, m) equals `cosface`
      exactly.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = combined_margin(
    ...   cosines, jnp.array([0, 1]), m1=1.0, m2=0.3, m3=0.2, scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.164 0.584]

  References:
    `ArcFace <https://arxiv.org/abs/1801.07698>`_, CVPR 2019, Eq. 4, which
    tries (1, 0.3, 0.2) and (0.9, 0.4, 0.15).
    Differs from the authors' code in: insightface's CombinedMarginLoss supports
    m1 = 1 with m2 or m3 alone and computes the angle's margin without gradient
    (``'straight_through'``); its filter of close negatives is not included.
  """
  return margin_softmax(
    cosines,
    labels,
    m1,
    m2,
    m3,
    kind='combined',
    scale=scale,
    gradient=gradient,
  )


def sphereface(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  margin: ArrayLike = 1.7,
  scale: float | jax.Array = 30.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes SphereFace-R: a factor of at least 1 on the angle.

  The loss of sample :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s \psi(\theta_{i y_i})}}
      {e^{s \psi(\theta_{i y_i})} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}},
    \qquad
    \psi(\theta) = (-1)^k \cos(m \theta) - 2 k, \quad
    k = \lfloor m \theta / \pi \rfloor

  :math:`\psi` decreases from 1 over all angles.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    margin: factor ``m`` of the angle, dimensionless, at least 1; a scalar or
      ``[B]``. 1 gives NormFace exactly.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = sphereface(cosines, jnp.array([0, 1]), scale=4.0)
    >>> print(jnp.array_str(loss, precision=3))
    [0.08 0.66]

  References:
    `SphereFace <https://arxiv.org/abs/1704.08063>`_, CVPR 2017;
    `SphereFace Revived <https://arxiv.org/abs/2109.05565>`_, TPAMI 2022.
    Differs from the authors' code in: OpenSphere uses 1 as the derivative of
    the margin (``'straight_through'``) and clamps cosines 1e-5 inside [-1, 1].
    The CVPR paper does not normalise the embeddings.
  """
  return margin_softmax(
    cosines, labels, margin, kind='sphere', scale=scale, gradient=gradient
  )


def x2_softmax(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  a: ArrayLike = -0.9,
  h: ArrayLike = 0.0,
  k: ArrayLike = 0.65,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes X2-Softmax: a parabola of the angle; the margin grows with it.

  The loss of sample :math:`i` of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s f(\theta_{i y_i})}}
      {e^{s f(\theta_{i y_i})} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}},
    \qquad f(\theta) = a (\theta - h)^2 + k

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    a: curvature, per square radian, negative; a scalar or ``[B]``.
    h: angle of the vertex, in radians; a scalar or ``[B]``.
    k: value at the vertex, in units of the cosine; a scalar or ``[B]``.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = x2_softmax(cosines, jnp.array([0, 1]), scale=4.0)
    >>> print(jnp.array_str(loss, precision=3))
    [0.207 0.96 ]

  References:
    `X2-Softmax <https://arxiv.org/abs/2312.05281>`_, Expert Systems with
    Applications 2024.
    Differs from the authors' code in: theirs uses 1 as the derivative of the
    target's change (``'straight_through'``).
  """
  return margin_softmax(
    cosines, labels, a, h, k, kind='x2', scale=scale, gradient=gradient
  )


def elastic_arcface(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  key: jax.Array,
  margin: float | jax.Array = 0.5,
  margin_std: float = 0.05,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
  clip: tuple[float, float] | None = None,
  first_sample: ArrayLike = 0,
) -> jax.Array:
  r"""Computes ElasticFace-Arc: ArcFace with a random margin for each sample.

  With :math:`\theta_{ij} = \arccos(\text{cosines}_{ij})` and
  :math:`m_i \sim \mathcal{N}(m, \sigma^2)`, the loss of sample :math:`i` of
  class :math:`y_i` is

  .. math::
    -\log \frac{e^{s \cos(\theta_{i y_i} + m_i)}}
      {e^{s \cos(\theta_{i y_i} + m_i)}
        + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in radians.
    margin_std: standard deviation ``sigma`` of the margin, in radians. 0 gives
      ArcFace exactly. A Python float, not traced.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.
    clip: bounds of the draw in standard deviations; see `sample_margins`.
    first_sample: index of the first sample in the global batch, where that is
      sharded over devices; see `sample_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, ``clip`` is
      not two increasing bounds, or ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or ``key``
      not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_arcface(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.159 0.387]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1,
    where theirs are infinite and NaN.
  """
  margins = _draw_margins(cosines, key, margin, margin_std, clip, first_sample)
  return arcface(
    cosines, labels, margin=margins, scale=scale, gradient=gradient
  )


def elastic_cosface(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  key: jax.Array,
  margin: float | jax.Array = 0.35,
  margin_std: float = 0.05,
  scale: float | jax.Array = 64.0,
  clip: tuple[float, float] | None = None,
  first_sample: ArrayLike = 0,
) -> jax.Array:
  r"""Computes ElasticFace-Cos: CosFace with a random margin for each sample.

  With :math:`m_i \sim \mathcal{N}(m, \sigma^2)`, the loss of sample :math:`i`
  of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s (\cos\theta_{i y_i} - m_i)}}
      {e^{s (\cos\theta_{i y_i} - m_i)}
        + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in units of the cosine.
    margin_std: standard deviation ``sigma`` of the margin, in units of the
      cosine. 0 gives CosFace exactly. A Python float, not traced.
    scale: inverse temperature ``s``, dimensionless.
    clip: bounds of the draw in standard deviations; see `sample_margins`.
    first_sample: index of the first sample in the global batch, where that is
      sharded over devices; see `sample_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, or ``clip``
      is not two increasing bounds.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or ``key``
      not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_cosface(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.184 0.29 ]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: nothing.
  """
  margins = _draw_margins(cosines, key, margin, margin_std, clip, first_sample)
  return cosface(cosines, labels, margin=margins, scale=scale)


def elastic_arcface_plus(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  key: jax.Array,
  margin: float | jax.Array = 0.5,
  margin_std: float = 0.0175,
  scale: float | jax.Array = 64.0,
  gradient: str = 'exact',
  clip: tuple[float, float] | None = None,
  first_sample: ArrayLike = 0,
  pairing: str = 'paper',
) -> jax.Array:
  r"""Computes ElasticFace-Arc+: larger margins for samples farther away.

  This is `elastic_arcface` with margins permuted by `pair_margins`: of the B
  margins drawn, the sample farthest from its class centre gets the largest.
  Pairing spans the given batch; to pair within a group, pass one group.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless, and its sample takes part in the
      pairing with cosine 0.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in radians.
    margin_std: standard deviation ``sigma`` of the margin, in radians. 0 gives
      ArcFace exactly. A Python float, not traced.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.
    clip: bounds of the draw in standard deviations; see `sample_margins`.
    first_sample: index of the first sample in the global batch, where that is
      sharded over devices; see `sample_margins`.
    pairing: ``'paper'`` or ``'released'``; see `pair_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, ``clip`` is
      not two increasing bounds, or ``gradient`` or ``pairing`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or ``key``
      not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_arcface_plus(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.12  0.589]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, the '+'
    variant of Eqs. 5-7.
    Differs from the authors' code in: the pairing, ``'released'`` in theirs,
    which is close to no pairing; finite gradients at cosines of -1 and 1, where
    theirs are infinite and NaN.
  """
  margins = _draw_paired_margins(
    cosines, labels, key, margin, margin_std, clip, first_sample, pairing
  )
  return arcface(
    cosines, labels, margin=margins, scale=scale, gradient=gradient
  )


def elastic_cosface_plus(
  cosines: ArrayLike,
  labels: ArrayLike,
  *,
  key: jax.Array,
  margin: float | jax.Array = 0.35,
  margin_std: float = 0.025,
  scale: float | jax.Array = 64.0,
  clip: tuple[float, float] | None = None,
  first_sample: ArrayLike = 0,
  pairing: str = 'paper',
) -> jax.Array:
  r"""Computes ElasticFace-Cos+: larger margins for samples farther away.

  This is `elastic_cosface` with margins permuted by `pair_margins`: of the B
  margins drawn, the sample farthest from its class centre gets the largest.
  Pairing spans the given batch; to pair within a group, pass one group.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless, and its sample takes part in the
      pairing with cosine 0.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in units of the cosine.
    margin_std: standard deviation ``sigma`` of the margin, in units of the
      cosine. 0 gives CosFace exactly. A Python float, not traced.
    scale: inverse temperature ``s``, dimensionless.
    clip: bounds of the draw in standard deviations; see `sample_margins`.
    first_sample: index of the first sample in the global batch, where that is
      sharded over devices; see `sample_margins`.
    pairing: ``'paper'`` or ``'released'``; see `pair_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, ``clip`` is
      not two increasing bounds, or ``pairing`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or ``key``
      not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_cosface_plus(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.122 0.474]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, the '+'
    variant of Eqs. 5-7.
    Differs from the authors' code in: the pairing, ``'released'`` in theirs,
    which is close to no pairing; ``margin_std``, 0.02 in their released
    configuration, 0.025 in the paper.
  """
  margins = _draw_paired_margins(
    cosines, labels, key, margin, margin_std, clip, first_sample, pairing
  )
  return cosface(cosines, labels, margin=margins, scale=scale)
