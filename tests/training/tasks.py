# SPDX-License-Identifier: Apache-2.0
"""Small tasks for tests, assembled like the trainer's, and their steps."""

import dataclasses

import jax
import numpy as np

from elasticface_jax import models, recipes
from elasticface_jax.training import state
from elasticface_jax.training.task import from_config

ARCFACE = {
  'name': 'elastic_arcface',
  'scale': 16.0,
  'margin': 0.5,
  'margin_std': 0.05,
  'clip': (),
  'gradient': 'exact',
}


def make_task(
  backbone,
  devices,
  *,
  batch_size,
  group_size,
  num_classes,
  num_blocks=8,
  subcenters=1,
  sample_rate=1.0,
  precision='highest',
  loss=ARCFACE,
  optimizer='sgd',
  rate=0.1,
  momentum=0.9,
  weight_decay=5e-4,
  clip=1e9,  # None.
  augment=(),
  freeze=False,
):
  """Makes a task with a constant rate, on the first devices."""
  config = {
    'data': {'batch_size': batch_size},
    'group_size': group_size,
    'augment': recipes.section('augment') | dict(augment),
    'head': {
      'num_blocks': num_blocks,
      'subcenters': subcenters,
      'sample_rate': sample_rate,
      'precision': precision,
    },
    'start': {'freeze': freeze},
    'loss': loss,
    'optim': recipes.section('optim')
    | {
      'name': optimizer,
      'lr': 1.0,
      'decay_steps': (),
      'momentum': momentum,
      'weight_decay': weight_decay,
      'backbone_clip_norm': clip,
    },
  }
  mesh = state.make_mesh(devices)
  task = from_config(config, backbone, num_classes, mesh)
  return dataclasses.replace(task, rate=lambda _: rate)


def run(task, batches, seed):
  """Returns states as NumPy arrays, before and after each step, and metrics."""
  keys = task.make_keys(seed)
  current = task.init(keys['init'])
  states, measured = [jax.tree.map(np.array, current)], []
  for images, labels in zip(*batches, strict=True):
    batch = jax.device_put((images, labels), task.layout.sharded())
    current, values = task.step(current, *batch, keys)
    states.append(jax.tree.map(np.array, current))
    measured.append(jax.tree.map(float, values))
  return states, measured


def same_bits(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.tobytes() == y.tobytes()


def linear(pixels, dim):
  """Makes a linear backbone whose embeddings have norms like real ones."""

  def init(key):
    return jax.random.normal(key, (pixels, dim)), jax.numpy.zeros(1)

  def apply(params, batch_stats, images, *, train, key=None):
    del train, key
    return 4 * images.reshape(-1, pixels) @ params, batch_stats

  return models.Backbone('linear', dim, init, apply)
