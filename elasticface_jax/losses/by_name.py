# SPDX-License-Identifier: Apache-2.0
"""The named losses as a training step runs them: block-wise, with a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.losses.blockwise import Head
from elasticface_jax.losses.margins import pair_margins, sample_margins


class MarginLoss(NamedTuple):
  """A named loss with all its numbers; what it has no use for is None or 0."""

  name: str
  kind: str
  scale: float
  margin: float
  margin_std: float
  pairing: str | None
  gradient: str

  def __str__(self):
    names = ('scale', *_LOSSES[self.name][1])
    return (
      f'{self.name}('
      + ', '.join(f'{name}={getattr(self, name)}' for name in names)
      + ')'
    )

  def head(self, num_classes: int) -> Head:
    """The softmax over `num_classes` that this loss changes."""
    return Head(num_classes, self.scale, self.kind, self.gradient)

  def margins(
    self, key: jax.Array, target_cosines: jax.Array, *, group_size: int
  ) -> jax.Array:
    """The margins of one step, drawn for the whole batch.

    Args:
      key: typed PRNG key of the step.
      target_cosines: before the margin, ``[B]``.
      group_size: samples among which the '+' losses pair margins; the
        authors' code pairs within one GPU's 128.

    Returns:
      Margins, ``[B]``.
    """
    if not self.margin_std:
      return jnp.full_like(target_cosines, self.margin)
    margins = sample_margins(
      key, target_cosines.shape, mean=self.margin, std=self.margin_std
    )
    if self.pairing is None:
      return margins
    pair = jax.vmap(lambda m, c: pair_margins(m, c, rule=self.pairing))
    grouped = (-1, group_size)
    return pair(
      margins.reshape(grouped), target_cosines.reshape(grouped)
    ).reshape(-1)


# Kind, and which of the numbers the loss uses.
_LOSSES = {
  'normface': ('cos', ()),
  'arcface': ('arc', ('margin', 'gradient')),
  'cosface': ('cos', ('margin',)),
  'elastic_arcface': ('arc', ('margin', 'margin_std', 'gradient')),
  'elastic_cosface': ('cos', ('margin', 'margin_std')),
  'elastic_arcface_plus': (
    'arc',
    ('margin', 'margin_std', 'gradient', 'pairing'),
  ),
  'elastic_cosface_plus': ('cos', ('margin', 'margin_std', 'pairing')),
}


def by_name(
  name: str,
  *,
  scale: float,
  margin: float,
  margin_std: float,
  pairing: str,
  gradient: str,
) -> MarginLoss:
  """Picks a named loss for the training step.

  Args:
    name: of the public function, such as ``'elastic_arcface'``.
    scale: inverse temperature s.
    margin: mean margin; not used by ``'normface'``.
    margin_std: its standard deviation; used by the elastic losses.
    pairing: ``'paper'`` or ``'released'``; used by the '+' losses.
    gradient: ``'exact'`` or ``'straight_through'``; used by the arc losses.

  Returns:
    The loss. Numbers that the named loss does not use are dropped, so that a
    recipe can change the name alone.

  Raises:
    ValueError: if a name or number is not one of these.

  Examples:
    >>> by_name('arcface', scale=64.0, margin=0.5, margin_std=0.05,
    ...         pairing='paper', gradient='exact').margin_std
    0.0
  """
  if name not in _LOSSES:
    raise ValueError(
      f'loss name {name!r} is unknown; use one of {", ".join(_LOSSES)}'
    )
  for field, value, choices in (
    ('pairing', pairing, ('paper', 'released')),
    ('gradient', gradient, ('exact', 'straight_through')),
  ):
    if value not in choices:
      raise ValueError(f'loss {field} {value!r} is none of {choices}')
  if not scale > 0:
    raise ValueError(f'loss scale {scale} must be positive')
  if not margin_std >= 0:
    raise ValueError(f'loss margin_std {margin_std} must not be negative')
  kind, uses = _LOSSES[name]
  return MarginLoss(
    name=name,
    kind=kind,
    scale=scale,
    margin=margin if 'margin' in uses else 0.0,
    margin_std=margin_std if 'margin_std' in uses else 0.0,
    pairing=pairing if 'pairing' in uses else None,
    gradient=gradient if 'gradient' in uses else 'exact',
  )
