# SPDX-License-Identifier: Apache-2.0
"""Runs that begin with trained weights, also with the head, also frozen."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import (
  cli,
  embeddings,
  interop,
  losses,
  models,
  pair_sets,
  recipes,
  weights,
)
from elasticface_jax.interop import torch_files
from elasticface_jax.training import checkpoint, state

from . import tasks

# Files of PyTorch have all four stages.
FITS = {
  'model__name': 'iresnet10',
  'model__dropout': 0.0,
  'eval__synthetic_pairs': 20,
  'eval_every': 2,
}


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """A run folder, converted from a file with a head of 20 classes."""
  folder = tmp_path_factory.mktemp('released')
  backbone = models.build('iresnet10', width=2, embedding_dim=16)
  params, batch_stats = backbone.init(jax.random.key(7))
  batch_stats = jax.tree.map(lambda x: x + 0.5, batch_stats)
  torch_files.write(
    folder / 'backbone.pth', interop.to_torch(params, batch_stats), {}
  )
  centers = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
  torch_files.write(folder / 'header.pth', {'kernel': centers.T}, {})
  weights.convert(
    folder / 'backbone.pth', folder / 'run', heads=[folder / 'header.pth']
  )
  return folder / 'run'


@pytest.fixture
def fine_tune(train_here, released):
  """``fine_tune(workdir, devices, **changes)``: what a run prints."""

  def run(workdir, devices=1, **changes):
    changes = {'start__checkpoint': released} | FITS | changes
    code, out, err = train_here(workdir, devices, **changes)
    assert code == 0, err
    return out

  return run


def backbone_of(workdir, number):
  _, saved = checkpoint.read(workdir, number, ('params', 'batch_stats'))
  return saved


def accuracies(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {row['step']: row['accuracy'] for row in rows if 'pairs' in row}


def equal(a, b):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def fingerprint(out):
  return out.splitlines()[-1]


@pytest.mark.slow
def test_starts_from_the_weights_and_resumes(fine_tune, released, tmp_path):
  out = fine_tune(tmp_path / 'at_once')
  assert f'starting from {released}, step 0' in out
  # Verified as in the run: pairs are drawn with its seed and their number.
  config = weights.open_weights(tmp_path / 'at_once').config
  start = dataclasses.replace(weights.open_weights(released), config=config)
  (pairs,) = pair_sets.open_pair_sets(
    ['synthetic'], **weights.synthetic_pairs(start)
  )
  images = embeddings.Computed(start).of_images(pairs.images, lambda *_: None)
  result = pair_sets.verify(pairs, images, folds=10)
  assert accuracies(tmp_path / 'at_once')[0] == result.accuracy

  # In two parts; the second no longer needs the weights.
  fine_tune(tmp_path / 'parts', total_steps=2)
  shutil.move(released, released.with_name('moved'))
  try:
    again = fine_tune(tmp_path / 'parts')
  finally:
    shutil.move(released.with_name('moved'), released)
  assert fingerprint(again) == fingerprint(out)
  assert not equal(backbone_of(tmp_path / 'parts', 4), backbone_of(released, 0))


@pytest.mark.slow
def test_frozen(fine_tune, released, tmp_path):
  changes = {'start__freeze': True, 'start__head': True}
  out = fine_tune(tmp_path / 'at_once', **changes)
  (step_2, step_4) = (
    checkpoint.read(tmp_path / 'at_once', number)[1] for number in (2, 4)
  )
  assert equal(backbone_of(released, 0), backbone_of(tmp_path / 'at_once', 4))
  assert not np.array_equal(step_2['class_centers'], step_4['class_centers'])
  # A few steps away from the given ones.
  _, first = checkpoint.read(released, 0, ['class_centers'])
  moved = step_4['class_centers'].reshape(-1, 16)[:20] - first['class_centers']
  assert 0 < np.abs(moved).max() < 0.5
  assert len(set(accuracies(tmp_path / 'at_once').values())) == 1
  fine_tune(tmp_path / 'parts', total_steps=2, **changes)
  again = fine_tune(tmp_path / 'parts', devices=4, **changes)
  assert fingerprint(again) == fingerprint(out)


def test_mistakes(training, released, tmp_path, capsys):
  def refused(message, workdir=None, **changes):
    changes = {'start__checkpoint': released} | FITS | changes
    folder = workdir or tmp_path / 'w'
    assert cli.main(training(folder, **changes)) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1, err
    assert workdir or not folder.exists()

  refused('nowhere does not exist', start__checkpoint=tmp_path / 'nowhere')
  refused('model.width is 2 there, 4 here', model__width=4)
  refused("model.name is 'iresnet10' there", model__name='iresnet18')
  refused(
    'has 20 classes, the data have 10',
    start__head=True,
    data__synthetic__num_classes=10,
  )
  refused(
    '16 values, not 3 centres of 16',
    start__head=True,
    head__subcenters=3,
  )
  for field in ('start__freeze', 'start__head'):
    refused('set start.checkpoint', start__checkpoint='', **{field: True})
  refused('holds converted weights and no run', released)


SCALED = 16.0
RATE, DECAY, MOMENTUM = 0.5, 5e-4, 0.9


def linear():
  """Makes a linear backbone that must not run in training mode."""

  def init(key):
    return jax.random.normal(key, (12, 8)), jnp.ones(())

  def apply(params, batch_stats, images, *, train, key=None):
    assert not train
    return 4 * images.reshape(-1, 12) @ params * batch_stats, batch_stats

  return models.Backbone('linear', 8, init, apply)


def frozen_steps(devices, centers):
  """Returns centres after two steps of a frozen run, metrics and inputs."""
  task = tasks.make_task(
    linear(),
    devices,
    batch_size=24,
    group_size=3,
    num_classes=21,
    loss=recipes.loss('arcface', scale=SCALED),
    rate=RATE,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    augment={'flip': 0.0},
    freeze=True,
  )
  layout = task.layout
  keys = task.make_keys(0)
  current = task.init(keys['init'])
  rng = np.random.default_rng(0)
  taken = {
    'params': rng.normal(size=(12, 8)),
    'batch_stats': np.full((), 0.75, np.float32),
  }
  current = state.take_over(current, layout, **taken, class_centers=centers)
  images = rng.integers(0, 256, (8, 3, 2, 2, 3), dtype=np.uint8)
  labels = rng.integers(0, 21, (8, 3), dtype=np.int32)
  put = jax.device_put((images, labels), layout.sharded())
  for _ in range(2):
    current, measured = task.step(current, *put, keys)
  for name, value in taken.items():
    np.testing.assert_array_equal(
      getattr(current, name), value.astype(np.float32)
    )
  assert not any(map(np.any, jax.tree.leaves(current.backbone_opt)))
  pixels = (images.reshape(24, 12) - 127.5) / 127.5
  embeddings = 3 * pixels @ taken['params'].astype(np.float32)
  return (
    np.asarray(current.class_centers).reshape(-1, 8),
    jax.tree.map(float, measured),
    embeddings.astype(np.float32),
    labels.reshape(24),
  )


def test_frozen_steps_are_those_of_a_head_alone():
  centers = np.random.default_rng(1).normal(size=(21, 8)).astype(np.float32)
  found, measured, embeddings, labels = frozen_steps(1, centers)
  assert measured['backbone_gradient_norm'] == 0

  @jax.value_and_grad
  def objective(centers):
    cosines = losses.cosines(embeddings, centers)
    return losses.arcface(cosines, labels, scale=SCALED).mean()

  expected, momentum = jnp.asarray(centers), 0.0
  for _ in range(2):
    value, gradient = objective(expected)
    momentum = MOMENTUM * momentum + gradient + DECAY * expected
    expected = expected - RATE * momentum
  assert measured['loss'] == pytest.approx(float(value), rel=1e-5)
  np.testing.assert_allclose(found[:21], expected, rtol=1e-4, atol=1e-5)
  assert not found[21:].any()
  assert np.abs(found[:21] - centers).max() > 1e-2


def test_frozen_bits_do_not_depend_on_devices():
  centers = np.random.default_rng(1).normal(size=(21, 8)).astype(np.float32)
  one, eight = (frozen_steps(devices, centers) for devices in (1, 8))
  assert one[0].tobytes() == eight[0].tobytes()
  assert one[1] == eight[1]


def test_pixels_that_are_assumed_are_said(train_here, tmp_path):
  backbone = models.build(
    'iresnet10', width=2, block='adaface', output_norm='plain'
  )
  drawn = jax.eval_shape(backbone.init, jax.eval_shape(jax.random.key, 0))
  drawn = jax.tree.map(lambda x: np.ones(x.shape, np.float32), drawn)
  path = tmp_path / 'ir.pth'
  torch_files.write(path, interop.to_torch(*drawn, names='tface'), {})
  code, out, err = train_here(
    tmp_path / 'run', 1, **FITS | {'start__checkpoint': path}
  )
  assert f'{path}: pixels taken as RGB, (x - 127.5) / 127.5' in out
  assert 'for start.checkpoint, convert it first' in out
  # The recipe trains another form.
  assert code == 2 and "model.block is 'adaface' there" in err[0]
