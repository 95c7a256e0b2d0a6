# SPDX-License-Identifier: Apache-2.0
"""Random margins: drawing them, and pairing them with samples.

Letters: B samples.
"""

import jax
import jax.numpy as jnp


def sample_margins(
  key: jax.Array, shape: tuple[int, ...], *, mean: float, std: float
) -> jax.Array:
  r"""Draws margins from a normal distribution, without clipping.

  .. math::
    E(m, \sigma) \sim \mathcal{N}(m, \sigma^2)

  Args:
    key: typed PRNG key (``jax.random.key``); consumed once. The draw depends
      on the key and the shape, never on how many devices compute it.
    shape: shape of the result; ``(B,)`` for one margin a sample.
    mean: mean margin ``m``, in radians for arc and in cosine units for cos.
    std: standard deviation ``sigma``, in the unit of ``mean``, not negative.
      A Python number, not traced.

  Returns:
    Margins in the unit of ``mean``, float32, ``shape``.

  Raises:
    TypeError: if ``key`` is not a typed key.
    ValueError: if ``std`` is negative.

  Examples:
    >>> margins = sample_margins(jax.random.key(0), (4,), mean=0.5, std=0.05)
    >>> print(jnp.array_str(margins, precision=3))
    [0.581 0.601 0.478 0.496]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7.
    Differs from the authors' code in: the generator is a key that the caller
    holds, where theirs is never seeded.
  """
  is_typed = isinstance(key, jax.Array) and jnp.issubdtype(
    key.dtype, jax.dtypes.prng_key
  )
  if not is_typed:
    raise TypeError(
      'key must be a typed key as jax.random.key(seed) makes it, got '
      f'{getattr(key, "dtype", type(key).__name__)}'
    )
  if std < 0:
    raise ValueError(f'std must not be negative, got {std}')
  return mean + std * jax.random.normal(key, shape, jnp.float32)


# From the order of the samples by falling cosine, order[k] = the sample at
# rank k, to the place in the rising margins that each sample takes.
_PAIRINGS = {
  'paper': jnp.argsort,  # A permutation's argsort is its inverse: the ranks.
  'released': lambda order: order,
}


def pair_margins(
  margins: jax.Array, target_cosines: jax.Array, *, rule: str = 'paper'
) -> jax.Array:
  r"""Hands the batch's margins out again, by the samples' target cosines.

  With :math:`m_{(0)} \le m_{(1)} \le \dots` the sorted margins and
  :math:`o_k` the sample at rank :math:`k` by falling cosine (ties in index
  order), sample :math:`i` gets

  .. math::
    \text{paper: } m_{(k)} \text{ with } o_k = i
    \qquad \text{released: } m_{(o_i)}

  So ``'paper'`` gives the largest margin to the sample farthest from its class
  centre. ``'released'`` is what the published code computes: it reads the
  sample at rank k as the rank of sample k, the inverse permutation. The two
  agree for one or two samples; for B in random order the rank correlation of
  margin and cosine is -1 under ``'paper'``, -1/(B-1) in the mean under
  ``'released'``, which is close to no pairing at all.

  Args:
    margins: margins in any order, float, ``[B]``.
    target_cosines: cosine of each embedding with its own class centre, float,
      ``[B]``. Only their order counts; no gradient flows to them.
    rule: ``'paper'`` or ``'released'``.

  Returns:
    The same margins in another order, dtype of ``margins``, ``[B]``.

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
  if rule not in _PAIRINGS:
    raise ValueError(f'rule must be one of {sorted(_PAIRINGS)}, got {rule!r}')
  if margins.ndim != 1 or margins.shape != target_cosines.shape:
    raise ValueError(
      'margins and target_cosines must both be [B], got '
      f'{margins.shape} and {target_cosines.shape}'
    )
  order = jnp.argsort(-jax.lax.stop_gradient(target_cosines))
  return jnp.sort(margins)[_PAIRINGS[rule](order)]
