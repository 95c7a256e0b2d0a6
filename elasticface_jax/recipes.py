# SPDX-License-Identifier: Apache-2.0
"""Recipes: Python files whose `get_config` returns the config of a run.

A recipe changes some fields of a base that states all of them::

  from elasticface_jax import recipes

  def get_config():
    c = recipes.base()
    c.loss = recipes.loss('cosface', margin=0.4)
    c.optim.lr = 0.05
    return c

`load` runs it, applies the command line, and checks every field of the result.
Every recipe has the variant ``:smoke``, a few steps of every part without
data. A recipe whose `get_config` takes an argument makes other variants itself.
"""

import ast
import contextlib
import difflib
import functools
import inspect
import os
import re
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticface_jax import config_rules
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_FLAG = '--config.'


def folder() -> Path:
  """Returns the folder of the recipes: the package's, or that of a clone."""
  package = Path(__file__).parent
  for place in (package / 'configs', package.parent / 'configs'):
    if (place / 'base.py').is_file():
      return place
  raise InputError(
    f'{package} has no recipes: install the package again, or run in a clone'
  )


def names() -> list[str]:
  """Returns the names of the recipes."""
  return sorted(p.stem for p in folder().glob('*.py') if p.stem != 'base')


def find(spec: str | os.PathLike) -> Path:
  """Finds a recipe.

  Args:
    spec: name of a recipe, or path of a Python file; ``:argument`` may follow.

  Returns:
    Path of the file.

  Raises:
    InputError: if there is none, with names that are close.
  """
  given = os.fspath(spec).partition(':')[0]
  if given in names():
    return folder() / f'{given}.py'
  path = Path(given)
  if path.is_file():
    if path.suffix != '.py':
      raise InputError(
        f'--config {given} is no Python file (.py): give a recipe'
      )
    return path
  close = difflib.get_close_matches(path.stem, names(), n=3, cutoff=0.5)
  raise InputError(
    f'--config {given}: no such file, nor the name of a recipe'
    + (f'; did you mean {" or ".join(close)}?' if close else '')
    + f'; recipes are in {folder()}'
  )


def base(**fields: Any) -> 'ConfigDict':
  """Returns every field of a config, to be changed by a recipe.

  Args:
    **fields: those of the first level that are other than the base's, such as
      ``loss``.
  """
  import ml_collections

  # Types are checked by `load`, in messages that name the field completely.
  return ml_collections.ConfigDict(_base().FIELDS | fields, type_safe=False)


def section(name: str) -> dict[str, Any]:
  """Returns the fields of one section of the base, such as ``'augment'``."""
  return dict(_base().FIELDS[name])


def loss(name: str, **changes: Any) -> dict[str, Any]:
  """Returns a loss with its published arguments, for the field `loss`.

  Args:
    name: of a public function in `losses`.
    **changes: arguments with other values.

  Raises:
    InputError: if there is no such loss.

  Examples:
    >>> loss('cosface', margin=0.4)
    {'name': 'cosface', 'scale': 64.0, 'margin': 0.4}
  """
  table = _base()
  if name in table.COMBINED:
    flags = [f'{_FLAG}{k}={v}' for k, v in table.COMBINED[name].items()]
    raise InputError(
      f'loss.name={name!r} is another loss with other fields: set '
      f'{" and ".join(flags)}'
    )
  if name not in table.LOSSES:
    raise InputError(
      f'loss.name={name!r} is unknown; use one of {", ".join(table.LOSSES)}'
      f'{config_rules.did_you_mean(name, table.LOSSES)}'
    )
  return {'name': name, **table.LOSSES[name], **changes}


def load(
  spec: str | os.PathLike, overrides: Sequence[str] = ()
) -> 'ConfigDict':
  """Runs a recipe and applies what the command line changes in it.

  Args:
    spec: as for `find`.
    overrides: ``--config.field=value``, any number. One that names another
      loss gives the loss that one's published arguments, and the others
      change those, in any order.

  Returns:
    The complete and checked config; locked.

  Raises:
    InputError: names the field, its value and the remedy, or the line of the
      recipe that raises.
  """
  import ml_collections

  path = find(spec)
  made = _run(path, os.fspath(spec).partition(':')[2])
  try:
    config = _checked(made)
  except InputError as error:
    raise InputError(f'{path}: {error}') from None
  if overrides:
    config = _checked(_override(config, overrides))
  return ml_collections.ConfigDict(config).lock()


def as_text(config: 'ConfigDict') -> str:
  """Returns a config as one line for each field, in the order of the base."""
  flat = config_rules.flatten(_checked(config.to_dict()))
  return '\n'.join(f'{name} = {value!r}' for name, value in flat.items())


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
  from elasticface_jax.training.loss import by_name

  config = config_rules.check(config)
  return config | {'loss': by_name(config['loss']).fields()}


# Running a recipe.


@functools.cache
def _base() -> types.ModuleType:
  path = folder() / 'base.py'
  with _blamed(path):
    return _execute(path)


def _execute(path: Path) -> types.ModuleType:
  # Not by an import: that would read a cached compilation, which two edits
  # within a second leave stale.
  module = types.ModuleType(path.stem)
  module.__file__ = str(path)
  exec(compile(path.read_bytes(), path, 'exec'), vars(module))
  return module


def _run(path: Path, argument: str) -> dict[str, Any]:
  """Returns what the `get_config` of a recipe returns, nested."""
  import ml_collections

  with _blamed(path):
    get_config = getattr(_execute(path), 'get_config', None)
  if not inspect.isfunction(get_config):
    raise InputError(
      f'{path} has no function get_config(), which every recipe has; see '
      f'{folder() / "quickstart.py"}'
    )
  place = f'{path}, line {get_config.__code__.co_firstlineno}'
  parameters = inspect.signature(get_config).parameters.values()
  needed = [p.name for p in parameters if p.default is p.empty]
  variants = _base().VARIANTS
  if needed and (not argument or argument in variants):
    raise InputError(
      f'{place}: get_config({needed[0]}) needs an argument: give it as '
      f'--config {path}:{needed[0].upper()}'
    )
  if argument and not parameters and argument not in variants:
    raise InputError(
      f'{place}: get_config() takes no argument {argument!r}; there is only '
      f':{", :".join(variants)}'
    )
  with _blamed(path):
    is_own = argument and argument not in variants
    config = get_config(argument) if is_own else get_config()
    if isinstance(config, ml_collections.ConfigDict):
      flat = config_rules.flatten(config.to_dict())
      changes = dict(variants.get(argument, {}))
      if 'model.name' in changes:
        own = flat.get('model.name')  # A mistake in it is reported later.
        changes['model.name'] = changes['model.name'].get(own, own)
      return config_rules.nest(flat | changes)
  raise InputError(
    f'{place}: get_config() returns {_kind(config)} and no ConfigDict: begin '
    'with c = recipes.base() and end with return c'
  )


def _kind(value: Any) -> str:
  return 'None' if value is None else f'a {type(value).__name__}'


@contextlib.contextmanager
def _blamed(path: Path) -> Iterator[None]:
  """Turns what a recipe raises into one line with its file and line."""
  try:
    yield
  except (Exception, SystemExit) as error:
    line = _line(error, path)
    place = f'{path}, line {line}' if line else str(path)
    raise InputError(f'{place}: {_words(error)}') from error


def _line(error: BaseException, path: Path) -> int | None:
  if isinstance(error, SyntaxError) and error.filename == str(path):
    return error.lineno
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  return lines[-1] if lines else None


def _words(error: BaseException) -> str:
  if isinstance(error, InputError):
    return str(error)
  if isinstance(error, SyntaxError):
    return f'{type(error).__name__}: {error.msg}'
  text = ' '.join(str(error).split())[:300]
  frames = traceback.extract_tb(error.__traceback__)
  # Of a field that a ConfigDict does not have.
  quoted = re.match(r"""[\\'"]+(\w+)[\\'"]""", text)
  if quoted and 'ml_collections' in frames[-1].filename:
    near = config_rules.did_you_mean(quoted[1], config_rules.RULES)
    return f'the config has no field {quoted[1]} there{near}'
  return f'{type(error).__name__}: {text}'


# The command line. ml_collections' own flags would run a recipe again for each
# parse, take `None` and `a.bin,b.bin` for tuples of one, and know no rules.


def _override(
  config: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
  """Returns a config with fields changed by ``--config.field=value``."""
  changes = [_split(argument) for argument in overrides]
  losses = [text for field, text in changes if field == 'loss.name']
  if losses and losses[-1] != config['loss']['name']:
    config = {**config, 'loss': loss(losses[-1])}
  flat = config_rules.flatten(config)
  for field, text in changes:
    if field in config_rules.SECTIONS:
      inside = next(name for name in flat if name.startswith(f'{field}.'))
      raise InputError(
        f'{_FLAG}{field}={text}: {field} is a section; set its fields one by '
        f'one, as {_FLAG}{inside}={flat[inside]}'
      )
    if field not in flat:
      raise InputError(_unknown(field, flat))
    rule = config_rules.rule_of(field, flat['loss.name'])
    flat[field] = _value(field, text, rule)
  return config_rules.nest(flat)


def _split(argument: str) -> tuple[str, str]:
  field, equals, text = argument.partition('=')
  if not field.startswith(_FLAG):
    raise InputError(
      f'unknown argument {argument!r}; fields are set as {_FLAG}field=value'
    )
  if not equals:
    raise InputError(f'{field} needs a value: {field}=VALUE')
  return field.removeprefix(_FLAG), text


def _unknown(field: str, flat: Mapping[str, Any]) -> str:
  words = f'there is no field {field}'
  known = list(flat)
  if field.startswith('loss.'):
    words = f'{flat["loss.name"]} has no argument {field}'
    known = [name for name in flat if name.startswith('loss.')]
  near = config_rules.did_you_mean(field, known)
  if not near and len(known) < len(flat):
    near = f'; it has {", ".join(known[1:])}'
  return f'{words}{near or "; --print lists them all"}'


def _value(field: str, text: str, rule: config_rules.Rule) -> Any:
  value = text
  if rule.kind is bool:
    value = {'true': True, 'false': False}.get(text.lower(), text)
  elif rule.kind is tuple:
    value = _tuple(text, rule.items)
  elif rule.kind is not str:
    with contextlib.suppress(ValueError):
      value = rule.kind(text)
  try:
    return rule.convert(value)
  except (ValueError, OverflowError):
    raise InputError(f'{field}={text} must be {rule.words}') from None


def _tuple(text: str, items: type) -> Any:
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    # A single name needs no quotes; what looks like several is refused.
    several = items is not str or set(text) & set(',()[]{}"\'')
    return text if several else (text,)
  return (value,) if isinstance(value, int | float | str) else value
