# SPDX-License-Identifier: Apache-2.0
"""The loss that a config names, as a training step runs it.

Every loss is a kind of change of the cosines (`losses._targets`) and a way to
make its margins. A step has for that its key, the state of the step before, and
of one group of samples the target cosines and the norms of the embeddings.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.errors import InputError
from elasticface_jax.losses._adaptive import (
  adaface_init,
  adaface_margins,
  curricularface_init,
  curricularface_margins,
  magface_margins,
)
from elasticface_jax.losses._blocks import Head
from elasticface_jax.losses._margins import (
  PAIRINGS,
  check_clip,
  pair_margins,
  sample_margins,
)
from elasticface_jax.losses._targets import GRADIENTS, KINDS


class Given(NamedTuple):
  """What the margins of a group of S samples may depend on."""

  key: jax.Array  # Typed PRNG key of the step.
  first_sample: jax.Array | int  # Its number in the batch.
  target_cosines: jax.Array  # Before the margin, [S].
  norms: jax.Array  # Of the embeddings, [S].
  state: Any  # Of the loss, from the step before.


class Made(NamedTuple):
  """Margins, regulariser and next state of a group."""

  margins: tuple[jax.Array, ...]  # Those of the kind, [S] each.
  regularizer: jax.Array  # Added to the loss, [S].
  state: Any  # As if this group were the batch.


def _made(given: Given, margins, regularizer=0.0, state=()) -> Made:
  each = lambda x: jnp.broadcast_to(
    jnp.asarray(x, given.target_cosines.dtype), given.target_cosines.shape
  )
  return Made(tuple(map(each, margins)), each(regularizer), state)


def _constant(given: Given, **numbers) -> Made:
  return _made(given, numbers.values())


def _drawn(given: Given, *, margin, margin_std, clip, pairing=None) -> Made:
  if not margin_std:
    return _made(given, (margin,))
  margins = sample_margins(
    given.key,
    given.target_cosines.shape,
    mean=margin,
    std=margin_std,
    clip=tuple(clip) or None,
    first_sample=given.first_sample,
  )
  if pairing is not None:
    margins = pair_margins(margins, given.target_cosines, rule=pairing)
  return _made(given, (margins,))


def _adaface(given: Given, **numbers) -> Made:
  margins, state = adaface_margins(given.norms, given.state, **numbers)
  return _made(given, margins, state=state)


def _magface(given: Given, **numbers) -> Made:
  margins, regularizer = magface_margins(given.norms, **numbers)
  return _made(given, (margins,), regularizer)


def _curricularface(given: Given, **numbers) -> Made:
  margins, state = curricularface_margins(
    given.target_cosines, given.state, **numbers
  )
  return _made(given, margins, state=state)


class _Named(NamedTuple):
  kind: str
  # Arguments of the public function, beside scale and gradient, in order.
  numbers: tuple[str, ...]
  make: Callable[..., Made]
  init: Callable[[], Any] = tuple
  has_gradient: bool = False


_DRAWN = ('margin', 'margin_std', 'clip')
_LOSSES = {
  'normface': _Named('cos', (), lambda given: _made(given, (0.0,))),
  'arcface': _Named('arc', ('margin',), _constant, has_gradient=True),
  'cosface': _Named('cos', ('margin',), _constant),
  'elastic_arcface': _Named('arc', _DRAWN, _drawn, has_gradient=True),
  'elastic_cosface': _Named('cos', _DRAWN, _drawn),
  'elastic_arcface_plus': _Named(
    'arc', (*_DRAWN, 'pairing'), _drawn, has_gradient=True
  ),
  'elastic_cosface_plus': _Named('cos', (*_DRAWN, 'pairing'), _drawn),
  'combined_margin': _Named(
    'combined', ('m1', 'm2', 'm3'), _constant, has_gradient=True
  ),
  'sphereface': _Named('sphere', ('margin',), _constant, has_gradient=True),
  'x2_softmax': _Named('x2', ('a', 'h', 'k'), _constant, has_gradient=True),
  'adaface': _Named(
    'adaface', ('margin', 'h', 'ema_rate'), _adaface, adaface_init
  ),
  'magface': _Named(
    'magface',
    (
      'lower_norm',
      'upper_norm',
      'lower_margin',
      'upper_margin',
      'regularizer_weight',
    ),
    _magface,
  ),
  'curricularface': _Named(
    'curricular', ('margin', 'ema_rate'), _curricularface, curricularface_init
  ),
}
# These have their numbers among the fields themselves, all others in a mapping
# of their own name: one word would mean another thing in each of them.
_SHARED = tuple(_LOSSES)[:7]


def _is_clip(value: Any) -> bool:
  try:
    check_clip(tuple(map(float, value)) or None)
  except ValueError:
    return False
  return True


# What a number must be, where any number will not do.
_RULES = {
  'scale': (lambda x: x > 0, 'positive'),
  'gradient': (GRADIENTS.__contains__, f'one of {", ".join(GRADIENTS)}'),
  'margin_std': (lambda x: x >= 0, '0 or more'),
  'clip': (_is_clip, 'empty or (low, high), low < high'),
  'pairing': (PAIRINGS.__contains__, f'one of {", ".join(PAIRINGS)}'),
  'ema_rate': (lambda x: 0 < x <= 1, 'in (0, 1]'),
  'sphereface.margin': (lambda x: x >= 1, 'a factor of 1 or more'),
  'x2_softmax.a': (lambda x: x < 0, 'negative'),
}


class MarginLoss(NamedTuple):
  """A named loss with the arguments it uses, and no others."""

  name: str
  scale: float
  gradient: str
  numbers: tuple[tuple[str, Any], ...]

  def __str__(self):
    fields = [('scale', self.scale), *self.numbers]
    if _LOSSES[self.name].has_gradient:
      fields.append(('gradient', self.gradient))
    return f'{self.name}({", ".join(f"{k}={v}" for k, v in fields)})'

  @property
  def margin_names(self) -> tuple[str, ...]:
    """Names of the margins, in order."""
    return KINDS[_LOSSES[self.name].kind].margins

  def head(self, num_classes: int, precision: str = 'highest') -> Head:
    """Returns the softmax over `num_classes` that this loss changes."""
    kind = _LOSSES[self.name].kind
    return Head(num_classes, self.scale, kind, self.gradient, precision)

  def init(self) -> Any:
    """The state of the loss before the first step; an empty tuple for most."""
    return _LOSSES[self.name].init()

  def make(self, given: Given) -> Made:
    """Makes the margins of one group in one step."""
    return _LOSSES[self.name].make(given, **dict(self.numbers))


def by_name(fields: Mapping[str, Any]) -> MarginLoss:
  """Picks a named loss for the training step.

  Args:
    fields: ``name`` of the public function, such as ``'elastic_arcface'``;
      ``scale``; ``gradient``, ``'exact'`` or ``'straight_through'``, of those
      that offer the choice; and the other arguments of the public function. The
      ElasticFace family and its parents have these as fields, ``margin``,
      ``margin_std``, ``clip`` (empty for none) and ``pairing``; each of the
      others has them under its own name, such as
      ``sphereface={'margin': 1.7}``.

  Returns:
    The loss. Fields that the named loss does not use are dropped, so that a
    recipe that has those of several can change the name alone.

  Raises:
    InputError: if a name or value is not one of these, or a field is missing.

  Examples:
    >>> print(by_name({'name': 'sphereface', 'scale': 30.0,
    ...                'gradient': 'exact', 'sphereface': {'margin': 1.7}}))
    sphereface(scale=30.0, margin=1.7, gradient=exact)
  """
  name = fields['name']
  if name not in _LOSSES:
    raise InputError(
      f'config.loss name {name!r} is unknown; use one of {", ".join(_LOSSES)}'
    )
  named = _LOSSES[name]
  prefix, own = '', fields
  if name not in _SHARED:
    prefix, own = f'{name}.', fields.get(name, {})
  missing = [f'loss.{prefix}{n}' for n in named.numbers if n not in own]
  missing += [f'loss.{n}' for n in ('scale', 'gradient') if n not in fields]
  if missing:
    raise InputError(
      f'config.loss name {name!r} needs {", ".join(missing)}, which this '
      'config does not have: take a recipe of that loss, or add them'
    )
  loss = MarginLoss(
    name=name,
    scale=fields['scale'],
    gradient=fields['gradient'] if named.has_gradient else 'exact',
    numbers=tuple((n, own[n]) for n in named.numbers),
  )
  _check(fields, '')
  _check(dict(loss.numbers), prefix)
  if name == 'magface':
    try:
      magface_margins(jnp.ones(1), **dict(loss.numbers))
    except ValueError as error:  # Of its limits.
      raise InputError(f'config.loss.magface {error}') from error
  return loss


def _check(fields: Mapping[str, Any], prefix: str) -> None:
  """Refuses numbers that cannot be, also those that this loss leaves alone."""
  for name, value in fields.items():
    rule = _RULES.get(prefix + name) or _RULES.get(name)
    if rule is None and isinstance(value, float):
      rule = math.isfinite, 'a finite number'
    if rule is not None and not rule[0](value):
      raise InputError(
        f'config.loss.{prefix}{name} {value!r} must be {rule[1]}'
      )
