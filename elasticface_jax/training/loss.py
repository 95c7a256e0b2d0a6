# SPDX-License-Identifier: Apache-2.0
"""The loss that a config names, as a training step runs it.

Every loss is a kind of change of the cosines (`losses._targets`) and a way to
make its margins. A step has for that its key, the state of the step before, and
of one group of samples the target cosines and the norms of the embeddings.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax import config_rules
from elasticface_jax.errors import InputError
from elasticface_jax.losses._adaptive import (
  adaface_init,
  adaface_margins,
  curricularface_init,
  curricularface_margins,
  magface_margins,
)
from elasticface_jax.losses._blocks import Head
from elasticface_jax.losses._margins import pair_margins, sample_margins
from elasticface_jax.losses._targets import KINDS


class Given(NamedTuple):
  """Everything that the margins of a group of S samples may depend on."""

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


def _constant(given: Given, **margins) -> Made:
  return _made(given, margins.values())


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


def _adaface(given: Given, **hyperparameters) -> Made:
  margins, state = adaface_margins(given.norms, given.state, **hyperparameters)
  return _made(given, margins, state=state)


def _magface(given: Given, **hyperparameters) -> Made:
  margins, regularizer = magface_margins(given.norms, **hyperparameters)
  return _made(given, (margins,), regularizer)


def _curricularface(given: Given, **hyperparameters) -> Made:
  margins, state = curricularface_margins(
    given.target_cosines, given.state, **hyperparameters
  )
  return _made(given, margins, state=state)


class _Named(NamedTuple):
  kind: str
  # Keyword arguments of the public function, besides scale and gradient, in
  # the order in which `make` gets them.
  arguments: tuple[str, ...]
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


class MarginLoss(NamedTuple):
  """A named loss with its arguments."""

  name: str
  scale: float
  gradient: str  # 'exact' for losses that offer no choice.
  hyperparameters: tuple[tuple[str, Any], ...]  # All other arguments.

  def __str__(self):
    _, *arguments = self.fields().items()
    return f'{self.name}({", ".join(f"{k}={v}" for k, v in arguments)})'

  def fields(self) -> dict[str, Any]:
    """Returns the name and all arguments, as a config's `loss` has them."""
    fields = {'name': self.name, 'scale': self.scale}
    fields |= dict(self.hyperparameters)
    if _LOSSES[self.name].has_gradient:
      fields['gradient'] = self.gradient
    return fields

  @property
  def margin_names(self) -> tuple[str, ...]:
    """Names of the margins, in order."""
    return KINDS[_LOSSES[self.name].kind].margins

  def head(self, num_classes: int, precision: str = 'highest') -> Head:
    """Returns the softmax over `num_classes` that this loss changes."""
    kind = _LOSSES[self.name].kind
    return Head(num_classes, self.scale, kind, self.gradient, precision)

  def init(self) -> Any:
    """Returns the state of the loss before the first step, () for most."""
    return _LOSSES[self.name].init()

  def make(self, given: Given) -> Made:
    """Makes the margins of one group in one step."""
    return _LOSSES[self.name].make(given, **dict(self.hyperparameters))


def by_name(fields: Mapping[str, Any]) -> MarginLoss:
  """Picks a named loss for the training step.

  Args:
    fields: ``name`` of the public function, such as ``'elastic_arcface'``, and
      its keyword arguments, all of them and no others, without ``key`` and
      ``first_sample``, which the step has. ``clip`` is () for no bounds.

  Returns:
    The loss.

  Raises:
    InputError: if the name is unknown, an argument is unknown or missing, or a
      value is not allowed.

  Examples:
    >>> print(by_name({'name': 'sphereface', 'scale': 30.0, 'margin': 1.7,
    ...                'gradient': 'exact'}))
    sphereface(scale=30.0, margin=1.7, gradient=exact)
  """
  if 'name' not in fields:
    raise InputError(
      f'the field loss.name is missing; it is one of {", ".join(_LOSSES)}'
    )
  name = fields['name']
  if name not in _LOSSES:
    raise InputError(
      f'loss.name={name!r} is unknown; use one of {", ".join(_LOSSES)}'
      f'{config_rules.did_you_mean(str(name), _LOSSES)}'
    )
  named = _LOSSES[name]
  arguments = ['scale', *named.arguments]
  if named.has_gradient:
    arguments.append('gradient')
  given = {f'loss.{k}': value for k, value in fields.items() if k != 'name'}
  _check_arguments(name, given, [f'loss.{k}' for k in arguments])
  values = config_rules.check_values(given, name)
  return MarginLoss(
    name=name,
    scale=values['loss.scale'],
    gradient=values.get('loss.gradient', 'exact'),
    hyperparameters=tuple((k, values[f'loss.{k}']) for k in named.arguments),
  )


def _check_arguments(name: str, given: Mapping, known: list[str]) -> None:
  takes = f'{name} takes {", ".join(known)}'
  for field in given:
    if field not in known:
      near = config_rules.did_you_mean(field, known)
      raise InputError(f'{name} has no argument {field}{near or "; " + takes}')
  for field in known:
    if field not in given:
      raise InputError(
        f'the field {field} is missing; {takes}: add it, or take all from '
        f"recipes.loss('{name}')"
      )
