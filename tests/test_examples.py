# SPDX-License-Identifier: Apache-2.0
"""The examples run, show what they say, and import what users may."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from elasticface_jax import losses

FOLDER = Path(__file__).parents[1] / 'examples'
EXAMPLES = sorted(FOLDER.glob('*.py'))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_imports_only_the_losses_of_ours(path):
  ours = {name for name in imports(path) if name.startswith('elasticface_jax')}
  assert ours == {'elasticface_jax.losses'}
  # And of them nothing that is not for users.
  used = {
    node.attr
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id == 'losses'
  }
  modules = {file.stem for file in Path(losses.__file__).parent.glob('*.py')}
  assert used and all(hasattr(losses, name) for name in used)
  assert not used & (modules - {'cosines', 'norms'})


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_says_how_to_run_it(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert f'python examples/{path.name}' in docstring


def fell(history):
  return np.mean(history[-20:]) < np.mean(history[:20]) / 3


def test_optax_loop_learns_to_tell_unseen_identities_apart(load_script):
  told = load_script(FOLDER / 'optax_loop.py').main()
  assert fell(told['losses'])
  assert told['before'] < 0.4 and told['after'] > 0.9


def test_optax_loop_is_a_command():
  process = subprocess.run(
    [sys.executable, '-W', 'error', FOLDER / 'optax_loop.py'],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert process.returncode == 0, process.stderr
  assert 'unseen identities' in process.stdout
  assert not process.stderr


def test_nnx_model_learns_and_its_loss_follows_the_lengths(load_script):
  told = load_script(FOLDER / 'nnx_model.py').main()
  assert fell(told['losses'])
  assert told['before']['accuracy'] < 0.1 < 0.85 < told['after']['accuracy']
  assert told['before']['correlation'] < told['after']['correlation']
  # From 20 and 100 to what the embeddings are.
  state = told['state']
  assert abs(state.mean - told['after']['length']) < 0.5
  assert 0 < state.std < state.mean


@pytest.mark.parametrize('count', [1, 8])
def test_transforms_give_the_same_numbers(load_script, count):
  module = load_script(FOLDER / 'transforms.py')
  told = module.main(jax.devices()[:count])
  # More margin costs more, and every seed draws margins of its own.
  table = np.asarray(told['table'])
  assert (np.diff(table, axis=1) > 0).all()
  assert len(np.unique(table)) == table.size
  # One for each device, or the test would be of one device only.
  on = told['losses'].sharding.device_set
  assert len(on) == count
  assert max(told['by_devices']) < 1e-6
  assert max(told['by_blocks']) < 1e-5
