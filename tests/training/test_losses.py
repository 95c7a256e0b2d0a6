# SPDX-License-Identifier: Apache-2.0
"""Every named loss in the step, compared with a plain step and over devices.

The backbone is one linear layer, so that a step compiles in a second. The plain
step is autodiff of the public loss on the matrix of cosines.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses, recipes
from elasticface_jax.training import state

from . import tasks

GROUPS, GROUP_SIZE, CLASSES, BLOCKS, DIM = 8, 3, 21, 8, 8
BATCH, STEPS, RATE, SEED = GROUPS * GROUP_SIZE, 3, 0.05, 0
PIXELS = (2, 2, 3)
SIZES = {
  'batch_size': BATCH,
  'group_size': GROUP_SIZE,
  'num_classes': CLASSES,
  'num_blocks': BLOCKS,
}
# Arguments of a few of the losses; the other ones are those published.
CHANGES = {
  'arcface': {'margin': 0.2},
  'elastic_arcface': {'margin': 0.2},
  'elastic_cosface_plus': {'margin': 0.2, 'margin_std': 0.05},
  'combined_margin': {'m2': 0.1, 'm3': 0.1},
  'sphereface': {'margin': 1.2, 'gradient': 'exact'},
  'x2_softmax': {'a': -0.6, 'k': 0.9, 'gradient': 'exact'},
  'adaface': {'margin': 0.2, 'ema_rate': 0.1},
  'magface': {
    'lower_norm': 5.0,
    'upper_norm': 20.0,
    'lower_margin': 0.1,
    'upper_margin': 0.3,
    'regularizer_weight': 5.0,
  },
  'curricularface': {'margin': 0.2},
}
# The loss, and sub-centres of each class.
CASES = [*((name, 1) for name in CHANGES), ('curricularface', 3)]


LINEAR = tasks.linear(12, DIM)


def loss_of(name):
  return recipes.loss(name, scale=16.0, **CHANGES[name])


@functools.cache
def batches():
  rng = np.random.default_rng(0)
  shape = (STEPS, GROUPS, GROUP_SIZE)
  images = rng.integers(0, 256, (*shape, *PIXELS), dtype=np.uint8)
  return images, rng.integers(0, CLASSES, shape, dtype=np.int32)


@functools.cache
def run(name, subcenters, devices, sample_rate=1.0):
  """Returns states of some steps as NumPy arrays, and their metrics."""
  task = tasks.make_task(
    LINEAR,
    devices,
    **SIZES,
    subcenters=subcenters,
    sample_rate=sample_rate,
    loss=loss_of(name),
    rate=RATE,
    momentum=0.0,
    weight_decay=0.0,
    augment={'flip': 0.0},
  )
  return tasks.run(task, batches(), SEED)


@functools.partial(jax.jit, static_argnames=('name', 'subcenters'))
def plain(name, subcenters, before, images, labels, key):
  """Computes a step in one expression, with the public loss of each group."""
  images = images.reshape(BATCH, *PIXELS) / 127.5 - 1
  labels = labels.reshape(BATCH)
  loss = getattr(losses, name)
  given = {k: v for k, v in loss_of(name).items() if k != 'name'}
  if 'clip' in given:
    given |= {'clip': None}

  def loss_of_group(cosines, labels, norms, number):
    own = dict(given)
    if 'clip' in own:
      own |= {'key': key, 'first_sample': number * GROUP_SIZE}
    if name in ('adaface', 'magface'):
      own['norms'] = norms
    if name in ('adaface', 'curricularface'):
      own['state'] = before.loss_state
    result = loss(cosines, labels, **own)
    if name == 'magface':
      return sum(result), ()
    return result if isinstance(result, tuple) else (result, ())

  def objective(params, centers):
    embeddings, _ = LINEAR.apply(params, None, images, train=True)
    norms = losses.norms(embeddings)
    cosines = losses.subcenter_cosines(
      embeddings, centers.reshape(CLASSES, subcenters, DIM)
    )
    groups = [
      loss_of_group(cosines[own], labels[own], norms[own], number)
      for number, own in enumerate(
        slice(i, i + GROUP_SIZE) for i in range(0, BATCH, GROUP_SIZE)
      )
    ]
    states = [loss_state for _, loss_state in groups]
    loss_state = jax.tree.map(lambda *x: sum(x) / GROUPS, *states)
    return jnp.concatenate([value for value, _ in groups]).mean(), loss_state

  centers = before.class_centers.reshape(BLOCKS * 3, -1)[:CLASSES]
  (value, new), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(
    before.params, centers
  )
  return (
    value,
    before.params - RATE * gradients[0],
    centers - RATE * gradients[1],
    new,
  )


@pytest.mark.parametrize('name, subcenters', CASES)
def test_a_step_is_a_plain_one(name, subcenters):
  states, measured = run(name, subcenters, 8)
  for number, (images, labels) in enumerate(zip(*batches(), strict=True)):
    before, after = states[number : number + 2]
    key = jax.random.fold_in(state.make_keys(SEED)['margins'], number)
    value, params, centers, new = plain(
      name, subcenters, before, images, labels, key
    )
    assert measured[number]['loss'] == pytest.approx(float(value), rel=1e-5)
    got = after.class_centers.reshape(BLOCKS * 3, -1)
    np.testing.assert_allclose(after.params, params, rtol=0, atol=2e-5)
    # Centres have small norms, so that their gradient is large.
    np.testing.assert_allclose(got[:CLASSES], centers, rtol=2e-5, atol=2e-5)
    assert not got[CLASSES:].any()
    for x, y in zip(after.loss_state, new, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-6)
  moved = np.abs(states[-1].params - states[0].params).max()
  assert moved > 1e-3


@pytest.mark.parametrize('name, subcenters', CASES)
def test_bits_do_not_depend_on_devices(name, subcenters):
  want, got = run(name, subcenters, 1), run(name, subcenters, 8)
  tasks.same_bits(want[0], got[0])
  assert want[1] == got[1]


def test_sampled_classes_and_a_state_on_devices():
  want, _ = run('curricularface', 3, 1, 0.4)
  got, _ = run('curricularface', 3, 8, 0.4)
  tasks.same_bits(want, got)
  everything, _ = run('curricularface', 3, 1)
  assert np.any(everything[1].class_centers != want[1].class_centers)


def test_metrics_include_the_margins():
  _, measured = run('elastic_arcface', 1, 8)
  assert {'margin_mean', 'margin_std', 'embedding_norm'} <= measured[0].keys()
  _, measured = run('curricularface', 1, 8)
  states, _ = run('curricularface', 1, 8)
  for numbers, after in zip(measured, states[1:], strict=True):
    # A mean over groups, as the state after the step.
    assert numbers['t_mean'] == pytest.approx(float(after.loss_state.t))
  _, measured = run('adaface', 1, 8)
  total = measured[0]['angle_margin_mean'] + measured[0]['cosine_margin_mean']
  assert total == pytest.approx(CHANGES['adaface']['margin'], rel=1e-5)
