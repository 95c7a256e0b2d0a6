# SPDX-License-Identifier: Apache-2.0
"""Recipes: Python files that give a config, and changes to its fields."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from elasticface_jax.errors import InputError


def load(file: str, overrides: Sequence[str]):
  """Loads a recipe and applies what the command line changes in it.

  Args:
    file: path of a Python file with `get_config`, and ``:argument`` for it.
    overrides: ``--config.field=value``, any number.

  Returns:
    A locked `ml_collections.ConfigDict`.

  Raises:
    InputError: names the file, field or value that is wrong.
  """
  from absl import flags
  from ml_collections import config_flags

  path = file.split(':')[0]
  if not Path(path).is_file():
    raise InputError(
      f'--config {path}: no such file; recipes are in the folder configs/'
    )
  for argument in overrides:
    if argument.startswith('-') and not argument.startswith('--config.'):
      raise InputError(
        f'unknown argument {argument!r}; fields are set as --config.field=value'
      )
  values = flags.FlagValues()
  argv = ['elasticface', f'--config={file}', *overrides]
  config_flags.DEFINE_config_file(
    'config', flag_values=values, lock_config=True, sys_argv=argv
  )
  try:
    left = values(argv)[1:]
  except (flags.Error, ValueError) as error:
    raise InputError(f'{error} (in --config {file})') from error
  except (AttributeError, KeyError) as error:
    raise InputError(_unknown_field(file, overrides)) from error
  if left:
    raise InputError(f'unknown argument {left[0]!r}')
  return values['config'].value


def as_text(config) -> str:
  """Returns a config as text, one field a line."""
  return str(config).strip()


def _unknown_field(file: str, overrides: Sequence[str]) -> str:
  known = _fields(load(file, ()))
  for argument in overrides:
    name = argument.removeprefix('--config.').split('=')[0]
    if argument.startswith('--config.') and name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      # The same last part elsewhere is the likelier slip; the nearest such.
      same = [f for f in known if f.split('.')[-1] == name]
      close = sorted(same, key=lambda f: f.count('.')) or close
      hint = f'did you mean {close[0]}?' if close else f'see {file}'
      return f'the config {file} has no field {name!r}; {hint}'
  return f'the config {file} does not have all the fields set'


def _fields(config, prefix: str = '') -> list[str]:
  names = []
  for name, value in config.items():
    names.append(prefix + name)
    if hasattr(value, 'items'):
      names += _fields(value, f'{prefix}{name}.')
  return names
