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

from elasticface_jax import data, losses

FOLDER = Path(__file__).parents[1] / 'examples'
EXAMPLES = sorted(FOLDER.glob('*.py'))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_imports_public_names_of_ours_alone(path):
  ours = {name for name in imports(path) if name.startswith('elasticface_jax')}
  feeds = path.stem == 'tf_data'
  rooms = {'losses': losses, 'data': data} if feeds else {'losses': losses}
  assert ours == {f'elasticface_jax.{room}' for room in rooms}
  for room, module in rooms.items():
    used = {
      node.attr
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Attribute)
      and isinstance(node.value, ast.Name)
      and node.value.id == room
    }
    assert used and used <= set(module.__all__)


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


@pytest.fixture(scope='module')
def faces(tmp_path_factory, load_script):
  module = load_script(FOLDER / 'tf_data.py')
  folder = tmp_path_factory.mktemp('faces')
  module.draw_faces(folder)
  return module, folder


def test_tf_data_learns_on_any_devices(faces):
  module, folder = faces
  alone = module.main(folder, jax.devices()[:1])['losses']
  together = module.main(folder, jax.devices()[:4])['losses']
  assert fell(alone)
  np.testing.assert_allclose(together, alone, rtol=0.05)
  np.testing.assert_allclose(together[:10], alone[:10], rtol=1e-3)


def test_tf_data_begins_at_any_step(faces):
  module, folder = faces
  source = data.open_encoded(folder)
  whole = list(module.batches_from(source, first_step=3, last_step=9))
  assert len(whole) == 6
  rest = list(module.batches_from(source, first_step=7, last_step=9))
  for one, other in zip(rest, whole[4:], strict=True):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)
