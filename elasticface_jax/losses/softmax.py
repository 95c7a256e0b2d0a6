# SPDX-License-Identifier: Apache-2.0
r"""The named losses, from the matrix of cosines.

All are the cross-entropy of one softmax and differ in the target's logit only.
They are not reduced; take ``.mean()`` for the reference's batch loss.

Letters: B samples, C classes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from elasticface_jax.losses.logits import (
  arc_target,
  checked,
  cos_target,
  is_target,
  target_cosines,
)
from elasticface_jax.losses.margins import pair_margins, sample_margins


def _cross_entropy(
  cosines: jax.Array, labels: jax.Array, target: jax.Array, scale: float
) -> jax.Array:
  r"""Computes ``log(1 + sum_{j != y} exp(scale (cosine_j - target)))``.

  Everything is relative to the largest cosine, so that nothing overflows at
  any scale, and small losses and gradients keep their digits. What float32
  cannot keep is the last digit of the target itself: 6e-8 of a cosine is
  ``scale`` times that in the logit, 4e-6 at 64.

  Args:
    cosines: at least float32, ``[B, C]``.
    labels: integer, ``[B]``.
    target: the target's cosine after its margin, ``[B]``.
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
  # The factor is 1. It is there for its derivative: taken here, the target's
  # gradient is a sum over the others, where 1 - p would lose it as p nears 1.
  total = total * jnp.exp(scale * (fixed - target))
  lead = scale * (largest - fixed)
  # log(total + exp(-lead)); at lead 0, where total may be tiny, log1p(total).
  return lead + jnp.log1p(total + jnp.expm1(-lead))


def _margin_softmax(
  cosines: jax.Array,
  labels: jax.Array,
  margins: jax.Array | float,
  change: Callable[[jax.Array, jax.Array], jax.Array],
  scale: float,
) -> jax.Array:
  cosines, labels, margins = checked(cosines, labels, margins)
  target = change(target_cosines(cosines, labels), margins)
  return _cross_entropy(cosines, labels, target, scale)


def _draw(
  cosines: jax.Array, key: jax.Array, margin: float, margin_std: float
) -> jax.Array:
  shape = jnp.shape(cosines)[:1]
  margins = sample_margins(key, shape, mean=margin, std=margin_std)
  # Draws are float32. A margin without spread is the parent's own number,
  # which in float64 has more digits.
  return margins if margin_std else jnp.full(shape, margin)


def _draw_paired(
  cosines: jax.Array,
  labels: jax.Array,
  key: jax.Array,
  margin: float,
  margin_std: float,
  pairing: str,
) -> jax.Array:
  margins = _draw(cosines, key, margin, margin_std)
  cosines, labels, margins = checked(cosines, labels, margins)
  paired = pair_margins(margins, target_cosines(cosines, labels), rule=pairing)
  # Equal margins stay the constant that XLA sees in the parent: it folds their
  # cosine, which may differ in the last bit from one computed at run time.
  return paired if margin_std else margins


def normface(
  cosines: jax.Array, labels: jax.Array, *, scale: float = 64.0
) -> jax.Array:
  r"""NormFace: the softmax of scaled cosines, without a margin.

  Sample :math:`i` of class :math:`y_i` costs

  .. math::
    -\log \frac{e^{s \cos\theta_{i y_i}}}{\sum_j e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
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
  return _margin_softmax(cosines, labels, 0.0, cos_target, scale)


def arcface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float | jax.Array = 0.5,
  scale: float = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""ArcFace: a margin on the angle between embedding and class centre.

  With :math:`\theta_{ij} = \arccos(\text{cosines}_{ij})`, sample :math:`i` of
  class :math:`y_i` costs

  .. math::
    -\log \frac{e^{s \cos(\theta_{i y_i} + m)}}
      {e^{s \cos(\theta_{i y_i} + m)} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    margin: margin ``m``, in radians; a number, or one a sample, ``[B]``. 0
      gives NormFace exactly.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'``, or ``'straight_through'``: the same loss, but the
      derivative of the target's logit by its cosine is taken as ``s``.

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
    where ElasticFace's ArcFace has infinity and NaN. Its gradient is
    ``'exact'``; that of insightface's arcface_torch is ``'straight_through'``.
  """
  change = functools.partial(arc_target, gradient=gradient)
  return _margin_softmax(cosines, labels, margin, change, scale)


def cosface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float | jax.Array = 0.35,
  scale: float = 64.0,
) -> jax.Array:
  r"""CosFace: a margin on the cosine of embedding and class centre.

  Sample :math:`i` of class :math:`y_i` costs

  .. math::
    -\log \frac{e^{s (\cos\theta_{i y_i} - m)}}
      {e^{s (\cos\theta_{i y_i} - m)} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    margin: margin ``m``, in units of the cosine; a number, or one a sample,
      ``[B]``. 0 gives NormFace exactly.
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
  return _margin_softmax(cosines, labels, margin, cos_target, scale)


def elastic_arcface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  key: jax.Array,
  margin: float = 0.5,
  margin_std: float = 0.05,
  scale: float = 64.0,
  gradient: str = 'exact',
) -> jax.Array:
  r"""ElasticFace-Arc: ArcFace with a margin drawn anew for every sample.

  With :math:`\theta_{ij} = \arccos(\text{cosines}_{ij})` and
  :math:`m_i \sim \mathcal{N}(m, \sigma^2)`, sample :math:`i` of class
  :math:`y_i` costs

  .. math::
    -\log \frac{e^{s \cos(\theta_{i y_i} + m_i)}}
      {e^{s \cos(\theta_{i y_i} + m_i)}
        + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in radians.
    margin_std: standard deviation ``sigma`` of the margin, in radians. 0 gives
      ArcFace exactly. A Python number, not traced.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, or
      ``gradient`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or
      ``key`` not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_arcface(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.175 0.748]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1,
    where theirs are infinite and NaN.
  """
  margins = _draw(cosines, key, margin, margin_std)
  return arcface(
    cosines, labels, margin=margins, scale=scale, gradient=gradient
  )


def elastic_cosface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  key: jax.Array,
  margin: float = 0.35,
  margin_std: float = 0.05,
  scale: float = 64.0,
) -> jax.Array:
  r"""ElasticFace-Cos: CosFace with a margin drawn anew for every sample.

  With :math:`m_i \sim \mathcal{N}(m, \sigma^2)`, sample :math:`i` of class
  :math:`y_i` costs

  .. math::
    -\log \frac{e^{s (\cos\theta_{i y_i} - m_i)}}
      {e^{s (\cos\theta_{i y_i} - m_i)}
        + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in units of the cosine.
    margin_std: standard deviation ``sigma`` of the margin, in units of the
      cosine. 0 gives CosFace exactly. A Python number, not traced.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, or ``margin_std`` is negative.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or
      ``key`` not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_cosface(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.206 0.6  ]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: nothing.
  """
  margins = _draw(cosines, key, margin, margin_std)
  return cosface(cosines, labels, margin=margins, scale=scale)


def elastic_arcface_plus(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  key: jax.Array,
  margin: float = 0.5,
  margin_std: float = 0.0175,
  scale: float = 64.0,
  gradient: str = 'exact',
  pairing: str = 'paper',
) -> jax.Array:
  r"""ElasticFace-Arc+: the larger margins go to the samples farther away.

  `elastic_arcface`, its margins handed out by `pair_margins`: of the B margins
  drawn, the sample farthest from its class centre gets the largest. The batch
  given is the scope of the pairing; to pair within groups, give one group.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss, and it takes part in the pairing with cosine 0.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in radians.
    margin_std: standard deviation ``sigma`` of the margin, in radians. 0 gives
      ArcFace exactly. A Python number, not traced.
    scale: inverse temperature ``s``, dimensionless.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.
    pairing: ``'paper'`` or ``'released'``; see `pair_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, or
      ``gradient`` or ``pairing`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or
      ``key`` not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_arcface_plus(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.149 0.621]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, the '+'
    variant of Eqs. 5-7.
    Differs from the authors' code in: the pairing, ``'released'`` in theirs,
    which pairs next to nothing; finite gradients at cosines of -1 and 1, where
    theirs are infinite and NaN.
  """
  margins = _draw_paired(cosines, labels, key, margin, margin_std, pairing)
  return arcface(
    cosines, labels, margin=margins, scale=scale, gradient=gradient
  )


def elastic_cosface_plus(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  key: jax.Array,
  margin: float = 0.35,
  margin_std: float = 0.025,
  scale: float = 64.0,
  pairing: str = 'paper',
) -> jax.Array:
  r"""ElasticFace-Cos+: the larger margins go to the samples farther away.

  `elastic_cosface`, its margins handed out by `pair_margins`: of the B margins
  drawn, the sample farthest from its class centre gets the largest. The batch
  given is the scope of the pairing; to pair within groups, give one group.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss, and it takes part in the pairing with cosine 0.
    key: typed PRNG key (``jax.random.key``); consumed once, by the B margins.
    margin: mean margin ``m``, in units of the cosine.
    margin_std: standard deviation ``sigma`` of the margin, in units of the
      cosine. 0 gives CosFace exactly. A Python number, not traced.
    scale: inverse temperature ``s``, dimensionless.
    pairing: ``'paper'`` or ``'released'``; see `pair_margins`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``. Not
    reduced.

  Raises:
    ValueError: if the shapes disagree, ``margin_std`` is negative, or
      ``pairing`` is unknown.
    TypeError: if ``cosines`` is not floating, ``labels`` not integer or
      ``key`` not typed.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss = elastic_cosface_plus(
    ...   cosines, jnp.array([0, 1]), key=jax.random.key(0), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.178 0.514]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, the '+'
    variant of Eqs. 5-7.
    Differs from the authors' code in: the pairing, ``'released'`` in theirs,
    which pairs next to nothing; ``margin_std``, 0.02 in their released
    configuration, 0.025 in the paper.
  """
  margins = _draw_paired(cosines, labels, key, margin, margin_std, pairing)
  return cosface(cosines, labels, margin=margins, scale=scale)
