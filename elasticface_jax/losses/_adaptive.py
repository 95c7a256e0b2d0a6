# SPDX-License-Identifier: Apache-2.0
r"""Losses whose margins depend on the norms of the embeddings or on a state.

They need more than cosines: AdaFace and MagFace the norm of each embedding
(`norms`), AdaFace and CurricularFace a state that passes from step to step. A
state is a small pytree, an argument and a result of the loss; nothing is stored
elsewhere::

  state = losses.adaface_init()
  loss, state = losses.adaface(cosines, labels, norms, state)

Each loss has a function that computes its margins alone, for
`blockwise_margin_softmax`, which takes margins and no cosines.

Letters: B samples, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elasticface_jax.exact.trees import tree_sum
from elasticface_jax.losses._arrays import (
  pick_target,
  validate_cosines,
  validate_per_sample,
)
from elasticface_jax.losses._softmax import margin_softmax

# AdaFace clips norms to NORM_LIMITS and adds EPSILON to the standard deviation.
NORM_LIMITS = 1e-3, 100.0
EPSILON = 1e-3


class AdaFaceState(NamedTuple):
  """Running mean and standard deviation of the norms of the embeddings."""

  mean: jax.Array  # float32 scalar
  std: jax.Array  # float32 scalar


class CurricularFaceState(NamedTuple):
  """Running mean of the target cosine, a measure of training progress."""

  t: jax.Array  # float32 scalar


def _mean(x: jax.Array) -> jax.Array:
  # A tree fixes the order of the sum, so that the state does not depend on how
  # it was compiled.
  return tree_sum(x) / x.shape[0]


def _move(
  running: jax.Array, batch: jax.Array, rate: float | jax.Array
) -> jax.Array:
  running = jnp.asarray(running, jnp.float32)
  return rate * batch.astype(jnp.float32) + (1 - rate) * running


def adaface_init() -> AdaFaceState:
  """Returns the state of `adaface` before the first step.

  Returns:
    The authors' initial values, a mean of 20 and a standard deviation of 100,
    float32 scalars.

  Examples:
    >>> print(adaface_init().mean)
    20.0
  """
  return AdaFaceState(jnp.float32(20.0), jnp.float32(100.0))


def adaface_margins(
  norms: ArrayLike,
  state: AdaFaceState,
  *,
  margin: float | jax.Array = 0.4,
  h: float | jax.Array = 0.333,
  ema_rate: float | jax.Array = 0.01,
) -> tuple[tuple[jax.Array, jax.Array], AdaFaceState]:
  r"""Computes AdaFace's margins from the norms of the embeddings.

  With mean :math:`\mu` and standard deviation :math:`\sigma` of the new state,

  .. math::
    k_i = \operatorname{clip}\left(
      h \frac{\lVert z_i \rVert - \mu}{\sigma + 10^{-3}}, -1, 1\right),
    \qquad a_i = -m k_i, \qquad b_i = m + m k_i

  Args:
    norms: norm of each embedding, any float dtype, ``[B]``.
    state: state after the previous step.
    margin: ``m``, in radians for a and in units of the cosine for b.
    h: inverse width of the range of norms that get different margins,
      dimensionless: 0.333 is three standard deviations to either side.
    ema_rate: weight of this batch in the running mean and standard deviation.

  Returns:
    The margins ``(a, b)`` of the kind ``'adaface'``, at least float32, ``[B]``
    each, and the new state. No gradient flows to the norms.

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
  norms = jnp.asarray(norms)
  norms = validate_per_sample('norms', jax.lax.stop_gradient(norms))
  norms = jnp.clip(norms, *NORM_LIMITS)
  running_mean, running_std = state
  mean = _mean(norms)
  new = AdaFaceState(
    _move(running_mean, mean, ema_rate), jnp.asarray(running_std, jnp.float32)
  )
  if norms.size > 1:  # One norm has no standard deviation.
    variance = tree_sum(jnp.square(norms - mean)) / (norms.size - 1)
    std = _move(running_std, jnp.sqrt(variance), ema_rate)
    new = new._replace(std=std)
  new = jax.lax.stop_gradient(new)
  # The state is float32 in any case; the norms may be float64.
  scaled = h * (norms - new.mean.astype(norms.dtype))
  k = jnp.clip(scaled / (new.std + EPSILON).astype(norms.dtype), -1, 1)
  return (-margin * k, margin + margin * k), new


def adaface(
  cosines: ArrayLike,
  labels: ArrayLike,
  norms: ArrayLike,
  state: AdaFaceState,
  *,
  margin: float | jax.Array = 0.4,
  h: float | jax.Array = 0.333,
  ema_rate: float | jax.Array = 0.01,
  scale: float | jax.Array = 64.0,
) -> tuple[jax.Array, AdaFaceState]:
  r"""Computes AdaFace: good images, whose norms are large, get more margin.

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
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    norms: norm of each embedding before it is normalised, any float dtype,
      ``[B]``; see `losses.norms`. No gradient flows to it.
    state: state after the previous step, or `adaface_init()`. It is updated
      with the given batch first: on several devices, pass the norms of the
      global batch.
    margin: ``m``, in radians and in units of the cosine. 0 gives NormFace,
      except for the clip.
    h: inverse width of the range of norms that get different margins; see
      `adaface_margins`.
    ema_rate: weight of this batch in the running mean and standard deviation.
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
    changes the logits of all others; ``ema_rate`` is their t_alpha, 0.01 from
    their command line and 1.0 in their class; a batch of one keeps the standard
    deviation, where theirs becomes NaN; statistics are those of the given
    batch, not of one GPU's share.
  """
  labels = jnp.asarray(labels)
  norms = validate_per_sample('norms', norms, labels.shape)
  margins, state = adaface_margins(
    norms, state, margin=margin, h=h, ema_rate=ema_rate
  )
  loss = margin_softmax(cosines, labels, *margins, kind='adaface', scale=scale)
  return loss, state


def magface_margins(
  norms: ArrayLike,
  *,
  lower_norm: float = 10.0,
  upper_norm: float = 110.0,
  lower_margin: float | jax.Array = 0.45,
  upper_margin: float | jax.Array = 0.8,
  regularizer_weight: float | jax.Array = 35.0,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes MagFace's margins and regulariser from the norms of embeddings.

  With :math:`a = \operatorname{clip}(\lVert z \rVert, l_a, u_a)`,

  .. math::
    m(a) = l_m + \frac{u_m - l_m}{u_a - l_a} (a - l_a), \qquad
    g(a) = \lambda \left(\frac{a}{u_a^2} + \frac{1}{a}\right)

  Args:
    norms: norm of each embedding, any float dtype, ``[B]``.
    lower_norm: :math:`l_a`, positive. A Python float, not traced.
    upper_norm: :math:`u_a`. A Python float, not traced.
    lower_margin: :math:`l_m` in radians, the margin of the smallest norm.
    upper_margin: :math:`u_m` in radians, the margin of the largest norm.
    regularizer_weight: :math:`\lambda`.

  Returns:
    Margins of the kind ``'magface'`` in radians and the regulariser in nats,
    weighted, at least float32, ``[B]`` each, differentiable in the norms.

  Raises:
    ValueError: if ``norms`` is not ``[B]``, or the limits are not positive and
      increasing.
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
  norms = jnp.clip(validate_per_sample('norms', norms), lower_norm, upper_norm)
  slope = (upper_margin - lower_margin) / (upper_norm - lower_norm)
  regularizer = regularizer_weight * (norms / upper_norm**2 + 1 / norms)
  return lower_margin + slope * (norms - lower_norm), regularizer


def magface(
  cosines: ArrayLike,
  labels: ArrayLike,
  norms: ArrayLike,
  *,
  lower_norm: float = 10.0,
  upper_norm: float = 110.0,
  lower_margin: float | jax.Array = 0.45,
  upper_margin: float | jax.Array = 0.8,
  regularizer_weight: float | jax.Array = 35.0,
  scale: float | jax.Array = 64.0,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes MagFace: margins grow with the norm, a regulariser rewards it.

  With the margin :math:`m_i` and the regulariser from `magface_margins`, sample
  :math:`i` of class :math:`y_i` has the target logit

  .. math::
    s \cos(\theta_{i y_i} + m_i) \text{ if } \cos\theta_{i y_i} > 0
      \text{ else } s \cos\theta_{i y_i}

  and the others :math:`s \cos\theta_{ij}`, in the loss of `arcface`. Train with
  the sum of both results::

    loss, regularizer = magface(cosines, labels, norms)
    objective = (loss + regularizer).mean()

  Args:
    cosines: cosine of each embedding with each class centre, any float dtype,
      ``[B, C]``. Computed in at least float32; gradients are finite at -1 and
      1.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    norms: norm of each embedding before it is normalised, any float dtype,
      ``[B]``; see `losses.norms`. Its gradient changes the norms.
    lower_norm: smaller norms count as this. A Python float, not traced.
    upper_norm: larger norms count as this. A Python float, not traced.
    lower_margin: margin of the smallest norm, in radians.
    upper_margin: margin of the largest norm, in radians.
    regularizer_weight: weight of the regulariser, dimensionless.
    scale: inverse temperature ``s``, dimensionless.

  Returns:
    Loss and regulariser of each sample in nats, float32 (float64 for float64),
    ``[B]`` each. Not reduced; the regulariser is weighted.

  Raises:
    ValueError: if the shapes disagree, or the limits are not positive and
      increasing.
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
  labels = jnp.asarray(labels)
  norms = validate_per_sample('norms', norms, labels.shape)
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
  """Returns the state of `curricularface` before the first step.

  Returns:
    The state with a t of 0, a float32 scalar.

  Examples:
    >>> print(curricularface_init().t)
    0.0
  """
  return CurricularFaceState(jnp.float32(0.0))


def curricularface_margins(
  target_cosines: ArrayLike,
  state: CurricularFaceState,
  *,
  margin: float | jax.Array = 0.5,
  ema_rate: float | jax.Array = 0.01,
) -> tuple[tuple[float | jax.Array, jax.Array], CurricularFaceState]:
  r"""Computes CurricularFace's margins: the given margin, and t.

  .. math::
    t \leftarrow r \operatorname{mean}_i(\cos\theta_{i y_i}) + (1 - r) t

  Args:
    target_cosines: cosine of each embedding with its own class centre, any
      float dtype, ``[B]``; see `losses.target_cosines`.
    state: state after the previous step.
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
  (running_t,) = state
  mean = _mean(validate_per_sample('target_cosines', target_cosines))
  t = jax.lax.stop_gradient(_move(running_t, mean, ema_rate))
  return (margin, t), CurricularFaceState(t)


def curricularface(
  cosines: ArrayLike,
  labels: ArrayLike,
  state: CurricularFaceState,
  *,
  margin: float | jax.Array = 0.5,
  ema_rate: float | jax.Array = 0.01,
  scale: float | jax.Array = 64.0,
) -> tuple[jax.Array, CurricularFaceState]:
  r"""Computes CurricularFace: the weight of hard negatives grows in training.

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
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    state: state after the previous step, or `curricularface_init()`. It is
      updated with the given batch first.
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
    t follows the given batch, theirs one GPU's share.
  """
  cosines, labels, _ = validate_cosines(cosines, labels)
  margins, state = curricularface_margins(
    pick_target(cosines, labels), state, margin=margin, ema_rate=ema_rate
  )
  loss = margin_softmax(
    cosines, labels, *margins, kind='curricular', scale=scale
  )
  return loss, state
