# SPDX-License-Identifier: Apache-2.0
r"""Losses whose margin follows the embeddings' lengths or the training itself.

They need more than cosines: AdaFace and MagFace the length of each embedding
(`norms`), AdaFace and CurricularFace a state that goes from step to step. A
state is a small pytree that goes in and comes out; nothing is kept elsewhere::

  state = losses.adaface_init()
  loss, state = losses.adaface(cosines, labels, norms, state)

Of each there is also the part that makes the margins, for the block-wise form,
which takes margins and not cosines.

Letters: B samples, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.exact.trees import tree_sum
from elasticface_jax.losses._logits import (
  check_floating,
  checked,
  pick_target,
  promote,
)
from elasticface_jax.losses._softmax import margin_softmax

# AdaFace: lengths are taken as no less and no more, and a standard deviation
# is never quite 0.
NORM_LIMITS = 1e-3, 100.0
EPSILON = 1e-3


class AdaFaceState(NamedTuple):
  """Running mean and standard deviation of the embeddings' lengths."""

  mean: jax.Array  # float32 scalar
  std: jax.Array  # float32 scalar


class CurricularFaceState(NamedTuple):
  """Running mean of the target cosine: how far the training has come."""

  t: jax.Array  # float32 scalar


def _mean(x: jax.Array) -> jax.Array:
  # In the order of a tree: a state must not tell how it was compiled.
  return tree_sum(x) / x.shape[0]


def _move(running: jax.Array, batch: jax.Array, rate: float) -> jax.Array:
  return rate * batch.astype(jnp.float32) + (1 - rate) * running


def _checked(
  name: str, x: jax.Array, shape: tuple[int, ...] | None = None
) -> jax.Array:
  """Numbers ``[B]`` in at least float32, or what is wrong with them."""
  x = jnp.asarray(x)
  check_floating(name, x)
  if x.ndim != 1 or shape not in (None, x.shape):
    raise ValueError(
      f'{name} must be [B]{f" = {shape}" if shape else ""}, got shape {x.shape}'
    )
  return promote(x)


def adaface_init() -> AdaFaceState:
  """The state of `adaface` before the first step: mean 20, deviation 100.

  Returns:
    The authors' initial values, float32 scalars.

  Examples:
    >>> print(adaface_init().mean)
    20.0
  """
  return AdaFaceState(jnp.float32(20.0), jnp.float32(100.0))


def adaface_margins(
  norms: jax.Array,
  state: AdaFaceState,
  *,
  margin: float = 0.4,
  h: float = 0.333,
  ema_rate: float = 0.01,
) -> tuple[tuple[jax.Array, jax.Array], AdaFaceState]:
  r"""Makes AdaFace's margins from the lengths of the embeddings.

  With mean :math:`\mu` and deviation :math:`\sigma` of the new state,

  .. math::
    k_i = \operatorname{clip}\left(
      h \frac{\lVert z_i \rVert - \mu}{\sigma + 10^{-3}}, -1, 1\right),
    \qquad a_i = -m k_i, \qquad b_i = m + m k_i

  Args:
    norms: length of each embedding, any float dtype, ``[B]``.
    state: of the step before.
    margin: ``m``, in radians for a and units of the cosine for b.
    h: how many of the lengths are told apart, dimensionless: with 0.333, those
      within three standard deviations.
    ema_rate: weight of this batch in the running mean and deviation.

  Returns:
    The margins ``(a, b)`` of the kind ``'adaface'``, at least float32, ``[B]``
    each, and the new state. No gradient flows to the lengths.

  Raises:
    ValueError: if ``norms`` is not ``[B]``.
    TypeError: if ``norms`` is not floating.

  Examples:
    >>> (a, b), state = adaface_margins(
    ...   jnp.array([10.0, 30.0]), adaface_init(), ema_rate=1.0
    ... )
    >>> print(state.mean, jnp.array_str(b, precision=3))
    20.0 [0.306 0.494]
  """
  norms = _checked('norms', jax.lax.stop_gradient(norms))
  norms = jnp.clip(norms, *NORM_LIMITS)
  mean = _mean(norms)
  new = AdaFaceState(_move(state.mean, mean, ema_rate), state.std)
  if norms.size > 1:  # One length says nothing of how they spread.
    variance = tree_sum(jnp.square(norms - mean)) / (norms.size - 1)
    std = _move(state.std, jnp.sqrt(variance), ema_rate)
    new = new._replace(std=std)
  new = jax.lax.stop_gradient(new)
  k = jnp.clip(h * (norms - new.mean) / (new.std + EPSILON), -1, 1)
  return (-margin * k, margin + margin * k), new


def adaface(
  cosines: jax.Array,
  labels: jax.Array,
  norms: jax.Array,
  state: AdaFaceState,
  *,
  margin: float = 0.4,
  h: float = 0.333,
  ema_rate: float = 0.01,
  scale: float = 64.0,
) -> tuple[jax.Array, AdaFaceState]:
  r"""AdaFace: long embeddings, of good images, get the harder margin.

  With margins :math:`a_i, b_i` from `adaface_margins`, sample :math:`i` of
  class :math:`y_i` has the target logit

  .. math::
    s (\cos(\operatorname{clip}(\theta_{i y_i} + a_i, \epsilon, \pi - \epsilon))
      - b_i), \qquad \epsilon = 10^{-3}

  and the others :math:`s \cos\theta_{ij}`, in the loss of `arcface`.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    norms: length of each embedding before it is normalised, any float dtype,
      ``[B]``; see `losses.norms`. No gradient flows to it.
    state: of the step before, or of `adaface_init`. The batch given enters it
      first: under several devices, give the lengths of the whole batch.
    margin: ``m``, in radians and units of the cosine. 0 gives NormFace, but
      for the clip.
    h: how many of the lengths are told apart, dimensionless.
    ema_rate: weight of this batch in the running mean and deviation.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``, not
    reduced; and the new state.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``cosines`` or ``norms`` is not floating, or ``labels`` not
      integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss, state = adaface(
    ...   cosines, jnp.array([0, 1]), jnp.array([18.0, 25.0]), adaface_init(),
    ...   scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3))
    [0.183 0.516]

  References:
    `AdaFace <https://arxiv.org/abs/2204.00964>`_, CVPR 2022.
    Differs from the authors' code in: cosines are not first clipped to
    1e-3 inside [-1, 1], which stops the gradient of the nearest samples and
    moves all others' logits; ``ema_rate`` is their t_alpha, 0.01 from their
    command line and 1.0 in their class; a batch of one leaves the deviation,
    where theirs is NaN; statistics are those of the batch given, not of one
    GPU's share.
  """
  norms = _checked('norms', norms, jnp.shape(labels))
  margins, state = adaface_margins(
    norms, state, margin=margin, h=h, ema_rate=ema_rate
  )
  loss = margin_softmax(cosines, labels, *margins, kind='adaface', scale=scale)
  return loss, state


def magface_margins(
  norms: jax.Array,
  *,
  lower_norm: float = 10.0,
  upper_norm: float = 110.0,
  lower_margin: float = 0.45,
  upper_margin: float = 0.8,
  regularizer_weight: float = 35.0,
) -> tuple[jax.Array, jax.Array]:
  r"""Makes MagFace's margins and regulariser from the embeddings' lengths.

  With :math:`a = \operatorname{clip}(\lVert z \rVert, l_a, u_a)`,

  .. math::
    m(a) = l_m + \frac{u_m - l_m}{u_a - l_a} (a - l_a), \qquad
    g(a) = \lambda \left(\frac{a}{u_a^2} + \frac{1}{a}\right)

  Args:
    norms: length of each embedding, any float dtype, ``[B]``.
    lower_norm: :math:`l_a`, positive.
    upper_norm: :math:`u_a`.
    lower_margin: :math:`l_m` in radians, the margin of the shortest.
    upper_margin: :math:`u_m` in radians, the margin of the longest.
    regularizer_weight: :math:`\lambda`.

  Returns:
    Margins of the kind ``'magface'`` in radians and the regulariser in nats,
    weighted, at least float32, ``[B]`` each, differentiable in the lengths.

  Raises:
    ValueError: if ``norms`` is not ``[B]``, or the limits do not rise from
      above 0.
    TypeError: if ``norms`` is not floating.

  Examples:
    >>> margins, regularizer = magface_margins(jnp.array([5.0, 60.0, 200.0]))
    >>> print(jnp.array_str(margins, precision=3))
    [0.45  0.625 0.8  ]
    >>> print(jnp.array_str(regularizer, precision=3))
    [3.529 0.757 0.636]
  """
  if not 0 < lower_norm < upper_norm:
    raise ValueError(
      'lower_norm and upper_norm must rise from above 0, got '
      f'{lower_norm} and {upper_norm}'
    )
  norms = jnp.clip(_checked('norms', norms), lower_norm, upper_norm)
  slope = (upper_margin - lower_margin) / (upper_norm - lower_norm)
  regularizer = regularizer_weight * (norms / upper_norm**2 + 1 / norms)
  return lower_margin + slope * (norms - lower_norm), regularizer


def magface(
  cosines: jax.Array,
  labels: jax.Array,
  norms: jax.Array,
  *,
  lower_norm: float = 10.0,
  upper_norm: float = 110.0,
  lower_margin: float = 0.45,
  upper_margin: float = 0.8,
  regularizer_weight: float = 35.0,
  scale: float = 64.0,
) -> tuple[jax.Array, jax.Array]:
  r"""MagFace: long embeddings get the larger margin, and pay for short ones.

  With the margin :math:`m_i` and the regulariser from `magface_margins`, sample
  :math:`i` of class :math:`y_i` has the target logit

  .. math::
    s \cos(\theta_{i y_i} + m_i) \text{ if } \cos\theta_{i y_i} > 0
      \text{ else } s \cos\theta_{i y_i}

  and the others :math:`s \cos\theta_{ij}`, in the loss of `arcface`. What is
  trained is the sum of both results::

    loss, regularizer = magface(cosines, labels, norms)
    objective = (loss + regularizer).mean()

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    norms: length of each embedding before it is normalised, any float dtype,
      ``[B]``; see `losses.norms`. Its gradient is what drives the lengths.
    lower_norm: shorter embeddings count as this long.
    upper_norm: longer embeddings count as this long.
    lower_margin: margin of the shortest, in radians.
    upper_margin: margin of the longest, in radians.
    regularizer_weight: weight of the regulariser, dimensionless.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss and regulariser of each sample in nats, float32 (float64 for float64),
    ``[B]`` each. Not reduced; the regulariser is weighted.

  Raises:
    ValueError: if the shapes disagree, or the limits do not rise from above 0.
    TypeError: if ``cosines`` or ``norms`` is not floating, or ``labels`` not
      integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss, regularizer = magface(
    ...   cosines, jnp.array([0, 1]), jnp.array([18.0, 25.0]), scale=4.0
    ... )
    >>> print(jnp.array_str(loss + regularizer, precision=3))
    [2.124 2.036]

  References:
    `MagFace <https://arxiv.org/abs/2103.06627>`_, CVPR 2021, with the 'easy
    margin' of the authors' training script.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1.
  """
  norms = _checked('norms', norms, jnp.shape(labels))
  margins, regularizer = magface_margins(
    norms,
    lower_norm=lower_norm,
    upper_norm=upper_norm,
    lower_margin=lower_margin,
    upper_margin=upper_margin,
    regularizer_weight=regularizer_weight,
  )
  loss = margin_softmax(cosines, labels, margins, kind='magface', scale=scale)
  return loss, regularizer


def curricularface_init() -> CurricularFaceState:
  """The state of `curricularface` before the first step: t is 0.

  Returns:
    The state, a float32 scalar.

  Examples:
    >>> print(curricularface_init().t)
    0.0
  """
  return CurricularFaceState(jnp.float32(0.0))


def curricularface_margins(
  target_cosines: jax.Array,
  state: CurricularFaceState,
  *,
  margin: float = 0.5,
  ema_rate: float = 0.01,
) -> tuple[tuple[float, jax.Array], CurricularFaceState]:
  r"""Makes CurricularFace's margins: the margin itself, and t.

  .. math::
    t \leftarrow r \operatorname{mean}_i(\cos\theta_{i y_i}) + (1 - r) t

  Args:
    target_cosines: cosine of each embedding with its own class centre, any
      float dtype, ``[B]``; see `losses.target_cosines`.
    state: of the step before.
    margin: ``m``, in radians.
    ema_rate: ``r``, the weight of this batch.

  Returns:
    The margins ``(m, t)`` of the kind ``'curricular'``, and the new state. No
    gradient flows to the cosines.

  Raises:
    ValueError: if ``target_cosines`` is not ``[B]``.
    TypeError: if ``target_cosines`` is not floating.

  Examples:
    >>> (margin, t), state = curricularface_margins(
    ...   jnp.array([0.2, 0.6]), curricularface_init(), ema_rate=0.5
    ... )
    >>> print(t)
    0.2
  """
  mean = _mean(_checked('target_cosines', target_cosines))
  t = jax.lax.stop_gradient(_move(state.t, mean, ema_rate))
  return (margin, t), CurricularFaceState(t)


def curricularface(
  cosines: jax.Array,
  labels: jax.Array,
  state: CurricularFaceState,
  *,
  margin: float = 0.5,
  ema_rate: float = 0.01,
  scale: float = 64.0,
) -> tuple[jax.Array, CurricularFaceState]:
  r"""CurricularFace: hard negatives count little at first, and more later.

  With :math:`t` from `curricularface_margins`, sample :math:`i` of class
  :math:`y_i` has the logits

  .. math::
    s \cos(\theta_{i y_i} + m) \text{ and, of others, }
    s \cos\theta_{ij} \cdot \begin{cases}
      1 & \cos\theta_{ij} \le \cos(\theta_{i y_i} + m) \\
      t + \cos\theta_{ij} & \text{else}
    \end{cases}

  in the loss of `arcface`; where :math:`\theta_{i y_i} + m \ge \pi`, the
  target's is :math:`s (\cos\theta_{i y_i} - m \sin m)`.

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      meaningless loss; mask it.
    state: of the step before, or of `curricularface_init`. The batch given
      enters it first.
    margin: ``m``, in radians.
    ema_rate: weight of this batch in t.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64), ``[B]``, not
    reduced; and the new state.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``cosines`` is not floating or ``labels`` not integer.

  Examples:
    >>> cosines = jnp.array([[0.9, 0.1], [0.2, 0.7]])
    >>> loss, state = curricularface(
    ...   cosines, jnp.array([0, 1]), curricularface_init(), scale=4.0
    ... )
    >>> print(jnp.array_str(loss, precision=3), f'{state.t:.3f}')
    [0.136 0.56 ] 0.008

  References:
    `CurricularFace <https://arxiv.org/abs/2004.00288>`_, CVPR 2020.
    Differs from the authors' code in: finite gradients at cosines of -1 and 1;
    t is of the batch given, theirs of one GPU's share.
  """
  cosines, labels, _ = checked(cosines, labels)
  margins, state = curricularface_margins(
    pick_target(cosines, labels), state, margin=margin, ema_rate=ema_rate
  )
  loss = margin_softmax(
    cosines, labels, *margins, kind='curricular', scale=scale
  )
  return loss, state
