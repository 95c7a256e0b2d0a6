# SPDX-License-Identifier: Apache-2.0
"""The timed step is the trainer's, and its figures are consistent."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from elasticface_jax import recipes
from elasticface_jax.benchmark import device, loop, step, timing
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.errors import InputError
from elasticface_jax.missing import MissingPackage
from elasticface_jax.training import state, task

CONFIGS = Path(__file__).parents[2] / 'configs'
PAPER = CONFIGS / 'elastic_arc_r100_ms1mv2.py'

RECIPE = Recipe(
  model={'name': 'iresnet10', 'embedding_dim': 16, 'dtype': 'float32'},
  batch_size=8,
  group_size=4,
  num_classes=50,
  num_blocks=4,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(timing, 'PAUSE', 0.0)
  monkeypatch.setattr(device, 'matrix_flop_per_second', lambda *_, **__: 100e9)


@pytest.fixture(scope='module')
def run():
  # A real network takes long to compile; test_command has one.
  return step.Run(RECIPE, state.make_mesh(2), backbone=step.thin_backbone(16))


def trainers_task(layout):
  """Returns a recipe of configs/, assembled as by the trainer."""
  config = recipes.load(PAPER).to_dict()
  config['data']['batch_size'] = layout.batch_size
  config['group_size'] = layout.group_size
  config['head']['num_blocks'] = layout.num_blocks
  backbone = step.thin_backbone(16)
  return task.from_config(config, backbone, layout.num_classes, layout.mesh)


def test_is_the_trainers_step(run):
  trainers = trainers_task(run.layout)
  images, labels = map(run.layout.put, run.host_batch)
  keys = state.make_keys(0)
  expected, _ = trainers.step(trainers.init(keys['init']), images, labels, keys)
  keys = state.make_keys(0)
  start = trainers.init(keys['init'])
  found, _ = run.step_fn(start, images, labels, run.keys)
  jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_measure(monkeypatch):
  monkeypatch.setattr(
    step.models, 'build', lambda embedding_dim, **_: step.thin_backbone(16)
  )
  run = step.Run(dataclasses.replace(RECIPE, group_size=2), state.make_mesh(2))
  before = int(run.state.step)
  found = step.measure(run, ['merged'], rounds=2, seconds=0.01)
  # One for the memory, three to warm up, and rounds.
  assert int(run.state.step) >= before + 1 + 3 + 2
  assert set(found['variants']) == {'ours', 'merged'}
  assert set(found['time_ratios']) == {'ours / merged'}
  assert found['model_flop'] == {
    'backbone': 3 * 2 * 8 * 12 * 16,
    'head': 3 * 2 * 8 * 16 * 50,
  }
  ours = found['variants']['ours']
  seconds = ours['step_seconds']['median']
  flop = sum(found['model_flop'].values())
  assert ours['model_flop'] == flop
  assert ours['model_flop_per_second'] == pytest.approx(flop / seconds)
  # Of two devices.
  assert ours['share_of_matrix_peak'] == pytest.approx(flop / seconds / 200e9)
  assert ours['images_per_second'] == pytest.approx(8 / seconds)
  assert ours['compile_seconds'] > ours['trace_seconds'] / 100 > 0
  assert ours['program_bytes'] > ours['temporary_bytes'] > 0
  assert ours['peak_memory']['peak_bytes'] > 1e7


def test_best_of_torch_is_what_counts():
  ours = np.array([1.0, 2.0, 1.0])
  spent = {'ours': ours, 'torch': 3 * ours, 'torch channels_last': 2 * ours}
  ratios = step.best_ratios(spent)
  assert ratios['torch / ours']['median'] == 3
  assert ratios['best of torch / ours']['variant'] == 'torch channels_last'
  assert ratios['best of torch / ours']['median'] == 2


def test_loop(run, monkeypatch):
  thin = []

  def make_thin(*arguments, **named):
    # Another program to compile; the one at hand is as fast.
    thin.append(arguments)
    return run

  monkeypatch.setattr(loop, 'Run', make_thin)
  found = loop.measure(run, steps=5, rounds=2)
  ((recipe, _),) = thin
  assert recipe.num_classes == 4 and recipe.num_blocks == 2
  assert found['steps_of_a_round'] == 3
  assert set(found['variants']) == {'bare steps', 'loop'}
  (ratio,) = found['time_ratios'].values()
  assert ratio['min'] > 0.1
  # A difference of two times: its sign is noise where others use the cores.
  assert abs(found['added_seconds_per_step_at_most']['median']) < 1


@pytest.mark.parametrize(
  'changes, told',
  [
    ({'loss': {'name': 'archface'}}, "'archface' is unknown"),
    ({'num_blocks': 51}, 'head.num_blocks=51'),
    ({'group_size': 3}, 'group_size=3'),
    ({'model': {'name': 'resnet'}}, "'resnet' is unknown"),
    ({'group_size': 8}, 'nothing to merge'),
  ],
)
def test_mistakes(changes, told):
  recipe = dataclasses.replace(RECIPE, **changes)
  with pytest.raises(InputError, match=told):
    step.check(recipe, state.make_mesh(1), ['merged'])


def test_without_torch(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(MissingPackage, match=r'torch.*pip install .*\[bench\]'):
    step.check(RECIPE, state.make_mesh(1), ['torch'])


def test_torch_is_on_one_device():
  with pytest.raises(InputError, match='--devices at 1'):
    step.check(RECIPE, state.make_mesh(2), ['torch'])
