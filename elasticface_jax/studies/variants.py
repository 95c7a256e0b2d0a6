# SPDX-License-Identifier: Apache-2.0
"""Configs of a study, from recipes, changes and varied fields."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from elasticface_jax import config_rules, recipes
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_FLAG = '--config.'
# Of the 255 bytes that most disks allow the name of a folder.
_NAME_BYTES = 200


class Variant(NamedTuple):
  """A config of a study, without a seed."""

  name: str  # Also that of its folder.
  spec: str  # Recipe, as `recipes.find` takes it.
  changes: tuple[str, ...]  # ``--config.field=value``, those varied included.
  fields: dict[str, Any]  # By dotted name, all but the seed.

  def config(self, seed: int) -> 'ConfigDict':
    """Returns the config of a run; locked, as of `recipes.load`.

    It is made of the fields, so that a recipe that is edited while a study
    runs does not change the runs to come.
    """
    import ml_collections

    nested = config_rules.nest({'seed': seed, **self.fields})
    return ml_collections.ConfigDict(nested).lock()


class Run(NamedTuple):
  """A config with a seed."""

  variant: Variant
  seed: int

  @property
  def name(self) -> str:
    """Name for the command line, such as ``'arcface:3'``."""
    return f'{self.variant.name}:{self.seed}'

  @property
  def title(self) -> str:
    """Name for people, such as ``'arcface, seed 3'``."""
    return f'{self.variant.name}, seed {self.seed}'

  @property
  def place(self) -> tuple[str, int]:
    """Name of the config, and seed."""
    return self.variant.name, self.seed


def make(
  specs: Sequence[str], changes: Sequence[str], vary: Sequence[str]
) -> list[Variant]:
  """Makes the configs of a study, and checks all of them.

  Args:
    specs: recipes, as `recipes.find` takes them.
    changes: ``--config.field=value``, for all of them.
    vary: ``field=value,value``; every recipe is combined with every choice.

  Returns:
    One variant for each recipe and choice, in their order.

  Raises:
    InputError: for a mistake in a recipe or a change, a seed, or two variants
      that are the same.
  """
  varied = _varied(vary)
  _check_changes(changes, varied)
  variants = []
  for spec, start in zip(specs, _recipe_names(specs), strict=True):
    for texts in itertools.product(*varied.values()):
      choice = dict(zip(varied, texts, strict=True))
      every = (*changes, *(f'{_FLAG}{k}={text}' for k, text in choice.items()))
      config = recipes.load(spec, every).to_dict()
      flat = config_rules.flatten(config_rules.check(config))  # In its order.
      del flat['seed']
      # The only recipe needs no name where choices tell its configs apart.
      starts = [] if varied and len(specs) == 1 else [start]
      name = ','.join([*starts, *(_choice_name(k, flat) for k in choice)])
      variants.append(Variant(_checked_name(name, spec), spec, every, flat))
  _check_distinct(variants)
  return variants


def runs(variants: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
  """Returns the runs of a study, seed by seed.

  A study that is interrupted then holds complete sets of runs that can be
  compared.

  Args:
    variants: the configs.
    seeds: the seeds.
  """
  return [Run(variant, seed) for seed in seeds for variant in variants]


def choose(every: Sequence[Run], only: str) -> Run:
  """Returns the run that ``--only`` names.

  Args:
    every: the runs of the study, in the order of ``--list``.
    only: a name such as ``'arcface:3'``, or a number from 0.

  Raises:
    InputError: if there is no such run.
  """
  if only.isdecimal():
    if int(only) < len(every):
      return every[int(only)]
    raise InputError(
      f'--only {only}: the study has {len(every)} runs, 0 to '
      f'{len(every) - 1}; see --list'
    )
  names = [run.name for run in every]
  if only in names:
    return every[names.index(only)]
  near = config_rules.did_you_mean(only, names)
  raise InputError(
    f'--only {only}: no such run{near}; give NAME:SEED or a number, as --list '
    'prints them'
  )


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the fields in which some configs differ.

  Args:
    configs: fields by dotted name. One that a config does not have, as another
      loss has other arguments, differs.

  Examples:
    >>> differing([{'group_size': 8, 'loss.m1': 1.0}, {'group_size': 8}])
    ['loss.m1']
  """
  names = dict.fromkeys(itertools.chain.from_iterable(configs))
  absent = object()
  return [
    name
    for name in names
    if any(
      config.get(name, absent) != configs[0].get(name, absent)
      for config in configs
    )
  ]


def split_values(text: str) -> list[str]:
  """Splits values at the commas outside of brackets and quotes.

  Args:
    text: the values.

  Examples:
    >>> split_values('0.1,0.2')
    ['0.1', '0.2']
    >>> split_values('(10,20),(30,)')
    ['(10,20)', '(30,)']
  """
  values, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '"\'':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
      if letter == ',' and depth == 0:
        values.append('')
        continue
    values[-1] += letter
  return values


def _varied(vary: Sequence[str]) -> dict[str, list[str]]:
  """Returns the values of each varied field, as texts."""
  varied: dict[str, list[str]] = {}
  for argument in vary:
    field, equals, text = argument.partition('=')
    field = field.removeprefix(_FLAG)
    if not equals:
      raise InputError(
        f'--vary {argument} has no values: give FIELD=VALUE,VALUE, such as '
        'loss.margin=0.4,0.5'
      )
    if field in varied:
      raise InputError(
        f'--vary {field} is given twice: give all its values at once, as in '
        f'--vary {field}={",".join([*varied[field], text])}'
      )
    varied[field] = split_values(text)
  return varied


def _check_changes(
  changes: Sequence[str], varied: Mapping[str, list[str]]
) -> None:
  """Raises an InputError for a seed, or a field that is varied besides."""
  changed = {
    change.partition('=')[0].removeprefix(_FLAG): change for change in changes
  }
  for field, argument in (
    *changed.items(),
    *((k, f'--vary {k}') for k in varied),
  ):
    if field == 'seed':
      raise InputError(
        f'{argument}: a study gives its runs the seeds 0, 1, ... itself; '
        '--seeds N says how many'
      )
  for field in varied:
    if field in changed:
      raise InputError(
        f'{changed[field]} sets what --vary {field} varies: leave one of them '
        'out'
      )


# Names.


def _recipe_names(specs: Sequence[str]) -> list[str]:
  """Returns the names of recipes; their arguments alone, where these differ."""
  stems = [recipes.find(spec).stem for spec in specs]
  arguments = [spec.partition(':')[2] for spec in specs]
  several = len(specs) > 1 and len(set(stems)) == 1
  if several and all(arguments) and len(set(arguments)) == len(specs):
    return arguments
  return [
    f'{stem}_{argument}' if argument else stem
    for stem, argument in zip(stems, arguments, strict=True)
  ]


def _choice_name(field: str, flat: Mapping[str, Any]) -> str:
  """Returns the name of a choice; of the field, its last part if unique."""
  last = field.rpartition('.')[2]
  same = [name for name in flat if name.rpartition('.')[2] == last]
  value = flat[field]
  if isinstance(value, tuple):
    value = '-'.join(map(str, value))
  return (
    f'{last if len(same) == 1 else field}={value if value != "" else "none"}'
  )


def _checked_name(name: str, spec: str) -> str:
  """Replaces what shells and folders do not take in a name."""
  name = re.sub(r'[^\w.,=+-]', '_', name)
  if name[0] in '.-':
    raise InputError(
      f'--config {spec}: a folder called {name} would be hidden or be taken '
      'for a flag: rename the recipe'
    )
  if len(name.encode()) > _NAME_BYTES:
    raise InputError(
      f'--config {spec}: its runs would be in a folder called {name}, which is '
      f'longer than {_NAME_BYTES} bytes: put changes into a recipe, and vary '
      'fewer fields'
    )
  return name


def _check_distinct(variants: Sequence[Variant]) -> None:
  """Raises an InputError if two variants have one name, or are one config."""
  for one, other in itertools.combinations(variants, 2):
    # Some disks do not tell capitals apart.
    if one.name.casefold() == other.name.casefold():
      same = f'would both be called {one.name}'
      remedy = 'give each once, or rename one of the files'
    elif one.fields == other.fields:
      same = f'({one.name} and {other.name}) are the same config'
      remedy = 'leave one of them out'
    else:
      continue
    raise InputError(
      f'{_called(one, other)} and {_called(other, one)} {same}: {remedy}'
    )


def _called(variant: Variant, other: Variant) -> str:
  """Returns the arguments of a config, without the changes of both."""
  own = [change for change in variant.changes if change not in other.changes]
  return ' '.join(['--config', variant.spec, *own])
