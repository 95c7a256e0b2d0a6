# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT in the trainer's step."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax import models
from elasticface_jax.models.faces import IMAGE_SHAPE

from ..models.small_networks import NAMES, few_layers
from . import tasks

GROUPS, SIZE, CLASSES = 4, 3, 20
OPTIONS = {
  'mobilefacenet': {},
  'vit_t': {'drop_path': 0.3, 'mask_ratio': 0.2},
}


@functools.cache
def run(name, devices, remat=False):
  """Returns states of two steps, and metrics."""
  with few_layers():
    backbone = models.build(
      name, width=2, embedding_dim=6, remat=remat, **OPTIONS[name]
    )
    rng = np.random.default_rng(0)
    shape = (2, GROUPS, SIZE)
    images = rng.integers(0, 256, (*shape, *IMAGE_SHAPE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, shape, dtype=np.int32)
    task = tasks.make_task(
      backbone,
      devices,
      batch_size=GROUPS * SIZE,
      group_size=SIZE,
      num_classes=CLASSES,
      num_blocks=4,
      rate=0.01,
    )
    return tasks.run(task, (images, labels), seed=1)


@pytest.mark.parametrize('name', NAMES)
def test_bits_do_not_depend_on_devices(name):
  tasks.same_bits(run(name, 1), run(name, 4))
  states, _ = run(name, 1)
  moved = [
    np.any(a != b)
    for a, b in zip(
      jax.tree.leaves(states[0].params),
      jax.tree.leaves(states[-1].params),
      strict=True,
    )
  ]
  assert all(moved)
