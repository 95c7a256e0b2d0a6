# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT in the trainer's step."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax.models.faces import IMAGE_SHAPE

from ..models import small_networks as small
from . import tasks

GROUPS, SIZE, CLASSES = 4, 3, 20


@functools.cache
def run(name, devices):
  """Returns states of two steps, and metrics."""
  rng = np.random.default_rng(0)
  shape = (2, GROUPS, SIZE)
  images = rng.integers(0, 256, (*shape, *IMAGE_SHAPE), dtype=np.uint8)
  labels = rng.integers(0, CLASSES, shape, dtype=np.int32)
  with small.few_layers():
    task = tasks.make_task(
      small.build(name, **small.OPTIONS[name]),
      devices,
      batch_size=GROUPS * SIZE,
      group_size=SIZE,
      num_classes=CLASSES,
      num_blocks=4,
      rate=0.01,
    )
    return tasks.run(task, (images, labels), seed=1)


@pytest.mark.parametrize('name', small.NAMES)
def test_bits_do_not_depend_on_devices(name):
  states, measured = run(name, 1)
  on_four, measured_on_four = run(name, 4)
  tasks.same_bits(states, on_four)
  assert measured == measured_on_four
  # And every parameter has a gradient.
  leaves = [jax.tree.leaves(state.params) for state in (states[0], states[-1])]
  assert all(np.any(a != b) for a, b in zip(*leaves, strict=True))
