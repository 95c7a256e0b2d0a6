# SPDX-License-Identifier: Apache-2.0
"""Arrows between the rooms point one way."""

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec('elasticface_jax').origin).parent

# Who may import whom, besides itself and the exceptions. The training step
# needs the losses' functions of blocks; all else is handed to it.
ALLOWED = {
  'exact': set(),
  'losses': {'exact'},
  'models': {'missing'},
  'data': {'pickles', 'atomic', 'missing'},
  # The rest reads and writes files; `describe` states its template.
  'alignment': {'data', 'atomic', 'missing'},
  'evaluation': {'atomic', 'missing'},
  'training': {
    'exact',
    'losses',
    'atomic',
    'config_rules',
    'missing',
    'terminal',
    'runtime',
  },
  'config_rules': set(),
  'recipes': {'config_rules', 'training'},
  'benchmark': {
    'exact',
    'losses',
    'models',
    'data',
    'training',
    'missing',
    'atomic',
    'config_rules',
    'recipes',
    'terminal',
  },
  'planning': {
    'models',
    'training',
    'benchmark',
    'recipes',
    'atomic',
    'missing',
    'runtime',
    'terminal',
  },
  'interop': {'alignment', 'models', 'pickles', 'atomic'},
  'originals': {'interop', 'models', 'weights'},
  'weights': {'models', 'training', 'interop', 'atomic', 'config_rules'},
  'pair_sets': {'data', 'evaluation', 'training', 'atomic'},
  'report': {
    'data',
    'evaluation',
    'training',
    'studies',
    'recipes',
    'config_rules',
    'atomic',
    'missing',
  },
  'embeddings': {'data', 'training', 'weights'},
  'evaluation_sets': {'alignment', 'data', 'embeddings', 'models', 'pair_sets'},
  'repeat': {
    'train',
    'training',
    'recipes',
    'config_rules',
    'data',
    'runtime',
    'atomic',
    'terminal',
    'missing',
    'weights',
  },
  'train': {
    'models',
    'data',
    'evaluation',
    'training',
    'weights',
    'pair_sets',
    'runtime',
    'config_rules',
    'terminal',
  },
  'studies': {
    'recipes',
    'config_rules',
    'training',
    'train',
    'runtime',
    'evaluation',
    'atomic',
    'terminal',
    'missing',
  },
  'commands': {
    'studies',
    'alignment',
    'models',
    'data',
    'evaluation',
    'training',
    'benchmark',
    'planning',
    'weights',
    'originals',
    'recipes',
    'pair_sets',
    'embeddings',
    'evaluation_sets',
    'report',
    'repeat',
    'train',
    'runtime',
    'exit_codes',
    'missing',
    'atomic',
    'terminal',
  },
  'cli': {'commands', 'runtime', 'exit_codes', 'missing'},
  '__main__': {'cli'},
  'errors': set(),
  'exit_codes': {'terminal'},
  'missing': set(),
  'runtime': set(),
  'pickles': set(),
  'terminal': set(),
  'atomic': set(),
  '__init__': set(),
}
# Sub-rooms, lowest first: each may import those before it. The room's own
# `__init__` re-exports from all of them.
SUBROOMS = {
  'data': (
    'elasticface_jax.data.sources',
    'elasticface_jax.data',
    'elasticface_jax.data.tools',
  )
}
NOT_LOSSES = {'flax', 'optax', 'tensorflow', 'orbax', 'elasticface_jax.errors'}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def within(name, package):
  return name == package or name.startswith(package + '.')


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


@pytest.mark.parametrize('room', SUBROOMS)
def test_subrooms_import_only_lower_ones(room):
  levels = SUBROOMS[room]

  def level(name):
    return levels.index(max((s for s in levels if within(name, s)), key=len))

  for other, path in rooms():
    if other == room and path != PACKAGE / room / '__init__.py':
      own = path.relative_to(PACKAGE.parent).with_suffix('').parts
      for name in imports(path):
        if within(name, f'elasticface_jax.{room}'):
          assert level(name) <= level('.'.join(own)), f'{path} imports {name}'


def test_losses_and_exact_need_only_jax():
  for room, path in rooms():
    if room in ('losses', 'exact'):
      for name in imports(path):
        assert not any(within(name, other) for other in NOT_LOSSES), (
          f'{path} imports {name}'
        )


def test_only_models_know_nnx():
  for room, path in rooms():
    if room != 'models':
      assert not any(name.startswith('flax') for name in imports(path)), path
