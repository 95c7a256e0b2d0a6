# SPDX-License-Identifier: Apache-2.0
"""The head's benchmark: FLOPs, bytes, and the search for the logits matrix."""

import dataclasses
import types

import jax.numpy as jnp
import pytest

from elasticface_jax.benchmark import device, head, timing
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import Run, make_task, thin_backbone
from elasticface_jax.training.state import make_mesh

RECIPE = Recipe(
  model={'embedding_dim': 16},
  batch_size=32,
  group_size=32,
  num_classes=3000,
  num_blocks=6,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(timing, 'PAUSE', 0.0)
  monkeypatch.setattr(device, 'copy_bytes_per_second', lambda device: 1e9)
  monkeypatch.setattr(device, 'matrix_flop_per_second', lambda *_, **__: 100e9)


def test_more_classes_get_more_blocks():
  mesh = make_mesh(2)
  recipe = dataclasses.replace(RECIPE, num_blocks=4)
  made = head.recipes(recipe, mesh, (1000, 2600, 10))
  assert [r.num_classes for r in made] == [1000, 2600, 10]
  assert [r.num_blocks for r in made] == [4, 10, 2]
  assert {r.group_size for r in made} == {16}


def test_one_block_is_the_logits_matrix():
  recipe = dataclasses.replace(RECIPE, num_blocks=1, group_size=32)
  run = Run(recipe, make_mesh(1), backbone=thin_backbone(16), image_size=2)
  assert head.logits_matrix(run)['holds_logits_matrix']


def test_all_products_are_computed():
  recipe = dataclasses.replace(RECIPE, subcenters=2, group_size=32)
  task = make_task(recipe, make_mesh(1), backbone=thin_backbone(16))
  # The products need of a run only its class centres, and no compiled step.
  centers = jnp.ones(task.abstract_state().class_centers.shape)
  run = types.SimpleNamespace(
    recipe=recipe,
    layout=task.layout,
    state=types.SimpleNamespace(class_centers=centers),
  )
  text = products_of(run)
  # One in the first pass, two in each other; and no exponential.
  assert text.count(' dot(') + text.count('__onednn$matmul') == 5
  assert 'exponential' not in text
  assert head._products(run)() is None


def products_of(run):
  once = head._products(run)
  cells = dict(
    zip(
      once.__code__.co_freevars,
      (cell.cell_contents for cell in once.__closure__),
      strict=True,
    )
  )
  lowered = cells['multiplied'].lower(
    run.state.class_centers, cells['embeddings'], cells['trip_count']
  )
  return lowered.compile().as_text()


@pytest.mark.parametrize(
  ('sample_rate', 'devices', 'optimizer', 'arrays'),
  [(1.0, 1, 'sgd', 2), (0.1, 2, 'adamw', 3)],
)
def test_measure(monkeypatch, sample_rate, devices, optimizer, arrays):
  centers = []
  update = head._update

  def observed_update(run):
    centers.append(run.state.class_centers)
    return update(run)

  monkeypatch.setattr(head, '_update', observed_update)
  mesh = make_mesh(devices)
  recipe = dataclasses.replace(
    RECIPE, sample_rate=sample_rate, optimizer=optimizer
  )
  (recipe,) = head.recipes(recipe, mesh, (2880,))
  found = head.measure(recipe, mesh, rounds=2, seconds=0.01)
  classes = 2880 * sample_rate
  step, products, update = found['head'], found['products'], found['update']
  assert step['model_flop'] == 3 * 2 * 32 * 16 * classes
  assert products['model_flop'] == 5 * 2 * 32 * 16 * classes
  # Centres and momentum or moments, read and written, four bytes each.
  assert update['bytes'] == 2 * 4 * arrays * 16 * classes
  seconds = update['step_seconds']['median']
  assert update['bytes_per_second'] == pytest.approx(update['bytes'] / seconds)
  share = update['bytes'] / seconds / (devices * 1e9)
  assert update['share_of_copy_bandwidth'] == pytest.approx(share)
  ideal = step['model_flop'] / (devices * 100e9)
  share = ideal / step['step_seconds']['median']
  assert step['share_of_matrix_peak'] == pytest.approx(share)
  (ratio,) = found['time_ratios'].values()
  assert 0 < ratio['min'] <= ratio['median'] <= ratio['max']
  # Blocks hold no logits matrix.
  assert step['logits_matrix_bytes'] == 4 * 32 * 2880 // devices
  assert not step['holds_logits_matrix']
  if sample_rate == 1:  # The update is in place.
    assert centers[0].is_deleted()
