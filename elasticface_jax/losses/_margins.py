# SPDX-License-Identifier: Apache-2.0
"""Random margins: draws, and pairing with samples.

Letters: B samples.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def sample_margins(
  key: jax.Array,
  shape: Sequence[int],
  *,
  mean: float | jax.Array,
  std: float,
  clip: tuple[float, float] | None = None,
  first_sample: ArrayLike = 0,
) -> jax.Array:
  r"""Draws margins from a normal distribution, one for each sample.

  .. math::
    E(m, \sigma) \sim \mathcal{N}(m, \sigma^2)

  Sample i draws from its own key, ``fold_in(key, i)``. So its margin depends on
  the key and on its index in the global batch, and not on how many samples are
  drawn together or where: with ``first_sample=32``, a device that holds samples
  32 to 63 draws the same margins as the global batch has there.

  Args:
    key: typed PRNG key (``jax.random.key``) of the step; consumed once.
    shape: shape of the result; ``(B,)`` for one margin per sample. The first
      dim counts samples.
    mean: mean margin ``m``, in radians for arc and in cosine units for cos.
    std: standard deviation ``sigma``, in the unit of ``mean``, not negative.
      A Python float, not traced.
    clip: ``(low, high)`` in standard deviations: the distribution is truncated
      to ``[m + low sigma, m + high sigma]`` and renormalised, so that no margin
      is drawn more often than its neighbours. None, as published, leaves it
      unbounded. Bounds far out in one tail, from (5, 6) on, leave float32 few
      values to draw.
    first_sample: index of the first sample in the global batch; may be traced,
      such as ``jax.lax.axis_index('batch') * B`` inside ``jax.shard_map``.

  Returns:
    Margins in the unit of ``mean``, float32, ``shape``.

  Raises:
    TypeError: if ``key`` is not a typed key.
    ValueError: if ``std`` is negative, or ``clip`` is not two increasing
      bounds.

  Examples:
    >>> margins = sample_margins(jax.random.key(0), (4,), mean=0.5, std=0.05)
    >>> print(jnp.array_str(margins, precision=3))
    [0.55  0.378 0.565 0.469]
    >>> own = sample_margins(
    ...   jax.random.key(0), (2,), mean=0.5, std=0.05, first_sample=2
    ... )
    >>> print(own == margins[2:])
    [ True  True]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: the caller holds the key; their
    generators, one for each GPU, are never seeded. ``clip`` is ours.
  """
  is_typed = isinstance(key, jax.Array) and jnp.issubdtype(
    key.dtype, jax.dtypes.prng_key
  )
  if not is_typed:
    raise TypeError(
      'key must be a typed key as jax.random.key(seed) makes it, got '
      f'{getattr(key, "dtype", type(key).__name__)}'
    )
  if not std >= 0:
    raise ValueError(f'std must not be negative, got {std}')
  check_clip(clip)
  shape = tuple(shape)

  def draw_one(sample):
    own = jax.random.fold_in(key, sample)
    if clip is None:
      return jax.random.normal(own, shape[1:], jnp.float32)
    return jax.random.truncated_normal(own, *clip, shape[1:], jnp.float32)

  count = shape[0] if shape else 1
  samples = jnp.asarray(first_sample, jnp.uint32) + jnp.arange(
    count, dtype=jnp.uint32
  )
  return mean + std * jax.vmap(draw_one)(samples).reshape(shape)


def check_clip(clip: tuple[float, float] | None) -> None:
  """Raises a ValueError unless `clip` is None or two increasing bounds."""
  if clip is None:
    return
  if np.shape(clip) != (2,) or not clip[0] < clip[1]:
    raise ValueError(
      f'clip must be (low, high) in standard deviations, low < high, got {clip}'
    )


# Maps the order of the samples by decreasing cosine, order[k] = the sample at
# rank k, to each sample's position in the increasing margins.
PAIRINGS = {
  'paper': jnp.argsort,  # A permutation's argsort is its inverse: the ranks.
  'released': lambda order: order,
}


def pair_margins(
  margins: ArrayLike, target_cosines: ArrayLike, *, rule: str = 'paper'
) -> jax.Array:
  r"""Permutes the batch's margins by the samples' target cosines.

  With :math:`m_{(0)} \le m_{(1)} \le \dots` the sorted margins and
  :math:`o_k` the sample at rank :math:`k` by decreasing cosine (ties in index
  order), sample :math:`i` gets

  .. math::
    \text{paper: } m_{(k)} \text{ with } o_k = i
    \qquad \text{released: } m_{(o_i)}

  So ``'paper'`` gives the largest margin to the sample farthest from its class
  centre. The published code computes ``'released'``: it takes the sample at
  rank k for the rank of sample k, which is the inverse permutation. The two
  agree for one or two samples. For B samples in random order the rank
  correlation of margin and cosine is -1 under ``'paper'`` and -1/(B-1) on
  average under ``'released'``, which is close to no pairing at all.

  Args:
    margins: margins in any order, float, ``[B]``.
    target_cosines: cosine of each embedding with its own class centre, float,
      ``[B]``. Only their order matters; no gradient flows to them.
    rule: ``'paper'`` or ``'released'``.

  Returns:
    The margins, permuted, dtype of ``margins``, ``[B]``.

  Raises:
    ValueError: if the shapes are not both ``[B]``, or the rule is unknown.

  Examples:
    >>> margins = jnp.array([0.30, 0.32, 0.38, 0.40])
    >>> target_cosines = jnp.array([0.2, 0.9, 0.5, 0.7])
    >>> print(pair_margins(margins, target_cosines))
    [0.4  0.3  0.38 0.32]
    >>> print(pair_margins(margins, target_cosines, rule='released'))
    [0.32 0.4  0.38 0.3 ]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, the '+'
    variants.
    Differs from the authors' code in: the default, ``'paper'``; theirs is
    ``'released'``.
  """
  if rule not in PAIRINGS:
    raise ValueError(f'rule must be one of {sorted(PAIRINGS)}, got {rule!r}')
  margins, target_cosines = jnp.asarray(margins), jnp.asarray(target_cosines)
  if margins.ndim != 1 or margins.shape != target_cosines.shape:
    raise ValueError(
      'margins and target_cosines must both be [B], got '
      f'{margins.shape} and {target_cosines.shape}'
    )
  order = jnp.argsort(-jax.lax.stop_gradient(target_cosines))
  return jnp.sort(margins)[PAIRINGS[rule](order)]
