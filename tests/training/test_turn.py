# SPDX-License-Identifier: Apache-2.0
"""Turns of a real backbone: memory of one group, which remat lowers."""

import functools

import jax
import numpy as np
import pytest

from elasticface_jax.models import Backbone, iresnet
from elasticface_jax.models.functional import functional

from . import tasks

GROUPS, SIZE, DIM, CLASSES = 4, 8, 6, 20


@functools.cache
def make_task(remat, devices=1, groups=GROUPS):
  """Makes a task of two stages: all kinds of layers, quick to compile."""
  make_module = functools.partial(
    iresnet.IResNet,
    (1, 1),
    width=4,
    embedding_dim=DIM,
    dropout=0.4,
    block='insightface',
    use_se=False,
    output_norm='bias',
    input_norm=False,
    remat=remat,
    dtype='float32',
  )
  init, apply = functional(make_module, iresnet.randomize)
  return tasks.make_task(
    Backbone('two stages', DIM, init, apply),
    devices,
    batch_size=groups * SIZE,
    group_size=SIZE,
    num_classes=CLASSES,
    num_blocks=4,
    rate=0.01,
  )


@functools.cache
def run(remat, devices):
  rng = np.random.default_rng(0)
  shape = (1, GROUPS, SIZE)
  images = rng.integers(0, 256, (*shape, *iresnet.IMAGE_SHAPE), dtype=np.uint8)
  labels = rng.integers(0, CLASSES, shape, dtype=np.int32)
  return tasks.run(make_task(remat, devices), (images, labels), seed=1)


def test_remat_gives_the_same_bits_on_one_and_four_devices():
  one, four = run(True, 1), run(True, 4)  # At 4, one group a device.
  tasks.same_bits(one[0], four[0])
  assert one[1] == four[1]


def test_remat_gives_the_same_update():
  (before, again), (_, plain) = run(True, 1)[0], run(False, 1)[0]
  flat = lambda state: np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(state.params)]
  )
  moved, plainly = flat(again) - flat(before), flat(plain) - flat(before)
  assert np.linalg.norm(moved - plainly) <= 2e-5 * np.linalg.norm(plainly)


def temporary(task):
  return task.lower().compile().memory_analysis().temp_size_in_bytes


@pytest.fixture(scope='module')
def memory():
  """Temporary bytes of a step, by remat and number of groups."""
  return {
    key: temporary(make_task(*key[:1], groups=key[1]))
    for key in ((False, 4), (False, 16), (True, 4))
  }


def test_memory_is_that_of_one_group(memory):
  # Two more sums of gradients for the tree, and some values for each sample.
  params = sum(x.size for x in jax.tree.leaves(run(False, 1)[0][0].params))
  more = memory[False, 16] - memory[False, 4]
  assert more < 2 * 4 * params + 12 * SIZE * 4 * (DIM + 20)


def test_remat_keeps_a_fraction(memory):
  # A stem and two blocks have little to compute again, and the CPU compiler of
  # jax 0.10 merges that with the first computation.
  share = 1.0 if jax.__version__ < '0.11' else 0.75
  assert memory[True, 4] < share * memory[False, 4]
