# SPDX-License-Identifier: Apache-2.0
"""The examples run, show what they state, and import public names alone."""

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
  # And of them public names alone.
  used = {
    node.attr
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id == 'losses'
  }
  assert used and used <= set(losses.__all__)


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_the_docstring_has_the_command(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert f'python examples/{path.name}' in docstring


def fell(history):
  return np.mean(history[-20:]) < np.mean(history[:20]) / 3


def test_optax_loop_learns_to_distinguish_unseen_identities(load_script):
  results = load_script(FOLDER / 'optax_loop.py').main()
  assert fell(results['losses'])
  assert results['before'] < 0.4 and results['after'] > 0.9


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


def test_nnx_model_learns_and_its_state_follows_the_norms(load_script):
  results = load_script(FOLDER / 'nnx_model.py').main()
  before, after = results['before'], results['after']
  assert fell(results['losses'])
  assert before['accuracy'] < 0.1 < 0.85 < after['accuracy']
  assert before['correlation'] < after['correlation']
  # From 20 and 100 to the norms of the embeddings.
  state = results['state']
  assert abs(state.mean - after['norm']) < 0.5
  assert 0 < state.std < state.mean


@pytest.mark.parametrize('count', [1, 8])
def test_transforms_give_the_same_losses(load_script, count):
  module = load_script(FOLDER / 'transforms.py')
  results = module.main(jax.devices()[:count])
  # The loss grows with the margin, and every seed draws its own margins.
  table = np.asarray(results['table'])
  assert (np.diff(table, axis=1) > 0).all()
  assert len(np.unique(table)) == table.size
  # All devices took part.
  assert len(results['losses'].sharding.device_set) == count
  assert max(results['by_devices']) < 1e-6
  assert max(results['by_blocks']) < 1e-5
