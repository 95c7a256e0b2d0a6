# SPDX-License-Identifier: Apache-2.0
"""Arrows between the rooms point one way."""

import ast
import importlib.util
from pathlib import Path

PACKAGE = Path(importlib.util.find_spec('elasticface_jax').origin).parent

# Who may import whom, besides itself and the one exception class. The training
# step needs the losses' functions of blocks; all else is handed to it.
ALLOWED = {
  'exact': set(),
  'losses': {'exact'},
  'models': set(),
  'data': {'pickles', 'atomic'},
  'evaluation': set(),
  'training': {'exact', 'losses', 'config_rules'},
  'config_rules': set(),
  'recipes': {'config_rules', 'training'},
  'benchmark': {
    'exact',
    'losses',
    'models',
    'data',
    'training',
    'config_rules',
    'recipes',
  },
  'interop': {'models', 'pickles', 'atomic'},
  'weights': {'models', 'training', 'interop', 'atomic', 'config_rules'},
  'experiment': {
    'models',
    'data',
    'evaluation',
    'training',
    'weights',
    'atomic',
  },
  'cli': {
    'experiment',
    'weights',
    'data',
    'training',
    'benchmark',
    'recipes',
  },
  '__main__': {'cli'},
  'errors': set(),
  'pickles': set(),
  'atomic': set(),
  '__init__': set(),
}
NOT_LOSSES = {'flax', 'optax', 'tensorflow', 'orbax', 'elasticface_jax.errors'}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def rooms():
  for path in PACKAGE.rglob('*.py'):
    yield path.relative_to(PACKAGE).parts[0].removesuffix('.py'), path


def test_every_room_is_known():
  assert {room for room, _ in rooms()} == set(ALLOWED)


def test_rooms_import_only_what_they_may():
  for room, path in rooms():
    for name in imports(path):
      if name.startswith('elasticface_jax.'):
        other = name.split('.')[1]
        allowed = ALLOWED[room] | {room, 'errors', '__version__'}
        assert other in allowed, f'{path} imports {name}'


def test_losses_and_exact_need_only_jax():
  for room, path in rooms():
    if room in ('losses', 'exact'):
      for name in imports(path):
        assert not any(
          name == other or name.startswith(other + '.') for other in NOT_LOSSES
        ), f'{path} imports {name}'


def test_only_models_know_nnx():
  for room, path in rooms():
    if room != 'models':
      assert not any(name.startswith('flax') for name in imports(path)), path
