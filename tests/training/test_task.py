# SPDX-License-Identifier: Apache-2.0
"""Tasks assembled from configs: compiled steps, states, and refused values."""

import re

import jax
import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.training import embed, state
from elasticface_jax.training.task import from_config

from . import tasks

LINEAR = tasks.linear(12, 8)
SIZES = {'batch_size': 12, 'group_size': 3, 'num_classes': 21}


def test_the_step_compiled_ahead_is_the_step():
  task = tasks.make_task(LINEAR, 2, **SIZES)
  rng = np.random.default_rng(0)
  images = task.layout.put(rng.integers(256, size=(12, 2, 2, 3), dtype='u1'))
  labels = task.layout.put(rng.integers(21, size=12, dtype=np.int32))
  compiled = task.lower((2, 2, 3)).compile()

  def after(do):
    keys = task.make_keys(0)
    return do(task.init(keys['init']), images, labels, keys)

  ahead = after(lambda *given: compiled(task.layout.trip_counts(), *given))
  jax.tree.map(np.testing.assert_array_equal, after(task.step), ahead)


def test_the_abstract_state_is_the_state():
  task = tasks.make_task(LINEAR, 4, **SIZES)
  like = task.abstract_state()
  found = task.init(task.make_keys(0)['init'])
  for x, y in zip(*map(jax.tree.leaves, (like, found)), strict=True):
    assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)


@pytest.mark.parametrize('precision', ['highest', 'high', 'default'])
def test_the_products_of_the_head_have_its_precision(precision):
  task = tasks.make_task(LINEAR, 1, precision=precision, **SIZES)
  text = task.lower((2, 2, 3)).as_text()
  found = re.findall(r'dot_general .*precision = \[(\w+)', text)
  # Five of the head; the backbone has the default, forward and backward.
  assert sorted(found) == sorted([precision.upper()] * 5 + ['DEFAULT'] * 2)


def test_unknown_names_are_refused():
  with pytest.raises(
    InputError, match="precision='low' must be .*highest, high,"
  ):
    tasks.make_task(LINEAR, 1, precision='low', **SIZES)
  loss = tasks.ARCFACE | {'name': 'archface'}
  with pytest.raises(InputError, match="loss.name='archface' is unknown"):
    tasks.make_task(LINEAR, 1, loss=loss, **SIZES)
  with pytest.raises(KeyError):
    from_config({}, LINEAR, 21, state.make_mesh(1))


@pytest.mark.parametrize('size, groups, rows', [(128, 4, 512), (128, 13, 128)])
def test_rows_of_the_head_divide_the_batch(size, groups, rows):
  sizes = {'batch_size': size * groups, 'group_size': size, 'num_classes': 21}
  assert tasks.make_task(LINEAR, 1, **sizes).layout.head_rows == rows


def test_several_row_parts_have_the_same_gradient(monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(1, 4, 3, 2, 2, 3), dtype=np.uint8)
  labels = rng.integers(21, size=(1, 4, 3), dtype=np.int32)
  at_once, _ = tasks.run(
    tasks.make_task(LINEAR, 1, **SIZES), (images, labels), 0
  )
  monkeypatch.setattr(state, 'HEAD_ROWS', 6)
  task = tasks.make_task(LINEAR, 1, **SIZES)
  assert task.layout.head_rows == 6
  in_turn, _ = tasks.run(task, (images, labels), 0)
  np.testing.assert_allclose(
    at_once[1].class_centers, in_turn[1].class_centers, rtol=0, atol=1e-6
  )


@pytest.mark.parametrize('count', [1, 37, 100])
def test_embeddings_do_not_depend_on_devices_or_their_number(count):
  images = np.random.default_rng(0).integers(
    256, size=(100, 2, 2, 3), dtype=np.uint8
  )
  params, stats = LINEAR.init(jax.random.key(0))
  found = [
    embed.make_embed(LINEAR, state.make_mesh(n), rows=4)(params, stats, images)
    for n in (1, 3, 8)
  ]
  assert found[0].shape == (100, 8)
  assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
  pixels = images.reshape(100, 12) / 127.5 - 1
  mirrored = images[:, :, ::-1].reshape(100, 12) / 127.5 - 1
  np.testing.assert_allclose(
    found[0], 4 * (pixels + mirrored) @ np.asarray(params), rtol=1e-3, atol=1e-4
  )
  some = embed.make_embed(LINEAR, state.make_mesh(3), rows=4)
  assert some(params, stats, images[:count]).tobytes() == (
    found[0][:count].tobytes()
  )


def test_rows_must_be_positive():
  with pytest.raises(InputError, match='eval.rows=0 must be at least 1'):
    embed.make_embed(LINEAR, state.make_mesh(1), rows=0)
