# SPDX-License-Identifier: Apache-2.0
"""The head's benchmark times what it says, and finds logits where they are."""

import dataclasses

import jax
import pytest

from elasticface_jax.benchmark import device, head, timing
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import Run, thin_backbone
from elasticface_jax.training.state import make_mesh

RECIPE = Recipe(
  model={'embedding_dim': 16}, batch_size=32, num_classes=3000, num_blocks=6
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(timing, 'PAUSE', 0.0)
  monkeypatch.setattr(device, 'copy_bytes_per_second', lambda device: 1e9)
  monkeypatch.setattr(device, 'matrix_flop_per_second', lambda *_, **__: 100e9)


def make(recipe, devices=1):
  (recipe,) = head.recipes(recipe, make_mesh(devices), (recipe.num_classes,))
  backbone = thin_backbone(recipe.embedding_dim)
  return Run(recipe, make_mesh(devices), backbone=backbone, image_size=2)


@pytest.mark.parametrize('devices', [1, 2])
def test_blocks_hold_no_logits_matrix(devices):
  found = head.logits_matrix(make(RECIPE, devices))
  assert found['logits_matrix_bytes'] == 4 * 32 * 3000 // devices
  assert not found['holds_logits_matrix']


def test_one_block_is_the_logits_matrix():
  one = dataclasses.replace(RECIPE, num_blocks=1)
  assert head.logits_matrix(make(one))['holds_logits_matrix']


def test_more_classes_get_more_blocks():
  mesh = make_mesh(2)
  recipe = dataclasses.replace(RECIPE, num_blocks=4)
  made = head.recipes(recipe, mesh, (1000, 2600, 10))
  assert [r.num_classes for r in made] == [1000, 2600, 10]
  assert [r.num_blocks for r in made] == [4, 10, 2]
  assert {r.group_size for r in made} == {16}


def test_all_products_are_there():
  run = make(dataclasses.replace(RECIPE, subcenters=2))
  text = products_of(run)
  # One of the first pass, two of each other; and no exponential.
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
  lowered = cells['do'].lower(
    run.state.class_centers, cells['embeddings'], cells['trip_count']
  )
  return lowered.compile().as_text()


@pytest.mark.parametrize('sample_rate', [1.0, 0.1])
def test_measure(sample_rate):
  mesh = make_mesh(1)
  recipe = dataclasses.replace(RECIPE, sample_rate=sample_rate)
  (recipe,) = head.recipes(recipe, mesh, (3000,))
  found = head.measure(recipe, mesh, rounds=2, seconds=0.01)
  classes = 3000 * sample_rate
  whole, products, update = found['head'], found['products'], found['update']
  assert whole['model_flop'] == 3 * 2 * 32 * 16 * classes
  assert products['model_flop'] == 5 * 2 * 32 * 16 * classes
  # Centres and momentum, read and written, four bytes each.
  assert update['bytes'] == 16 * 16 * classes
  seconds = update['step_seconds']['median']
  assert update['bytes_per_second'] == pytest.approx(update['bytes'] / seconds)
  share = update['bytes'] / seconds / 1e9
  assert update['share_of_copy_bandwidth'] == pytest.approx(share)
  ideal = whole['model_flop'] / 100e9
  share = ideal / whole['step_seconds']['median']
  assert whole['share_of_matrix_peak'] == pytest.approx(share)
  (ratio,) = found['time_ratios'].values()
  assert 0 < ratio['min'] <= ratio['median'] <= ratio['max']


def test_the_update_is_in_place():
  run = make(RECIPE)
  centers = run.state.class_centers
  once = head._update(run)
  jax.block_until_ready(centers)
  once()
  assert centers.is_deleted()
