# SPDX-License-Identifier: Apache-2.0
"""Every named loss in the step: against a plain one, and on more devices.

The backbone is one linear layer, so that a step compiles in a second. The plain
step is autodiff of the public loss on the matrix of cosines.
"""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import cli, losses, models
from elasticface_jax.losses.by_name import by_name
from elasticface_jax.training import optimizer, state, step

GROUPS, GROUP_SIZE, CLASSES, BLOCKS, DIM = 8, 3, 21, 8, 8
BATCH, STEPS, RATE, SEED = GROUPS * GROUP_SIZE, 3, 0.05, 0
PIXELS = (2, 2, 3)
# As the quickstart's recipe has them, which has those of all losses.
QUICKSTART = Path(__file__).parents[2] / 'configs' / 'quickstart.py'
FIELDS = cli.load_config(str(QUICKSTART), ()).loss.to_dict() | {'scale': 16.0}
NAMES = [
  'arcface',
  'elastic_arcface',
  'elastic_cosface_plus',
  'combined_margin',
  'sphereface',
  'x2_softmax',
  'adaface',
  'magface',
  'curricularface',
]
# The loss, and sub-centres of each class.
CASES = [*((name, 1) for name in NAMES), ('curricularface', 3)]


def linear():
  """Pixels to an embedding whose length is about that of real ones."""

  def init(key):
    return jax.random.normal(key, (12, DIM)), jnp.zeros(1)

  def apply(params, batch_stats, images, *, train, key=None):
    del train, key
    return 4 * images.reshape(-1, 12) @ params, batch_stats

  return models.Backbone('linear', DIM, init, apply)


@functools.cache
def batches():
  rng = np.random.default_rng(0)
  shape = (STEPS, GROUPS, GROUP_SIZE)
  images = rng.integers(0, 256, (*shape, *PIXELS), dtype=np.uint8)
  return images, rng.integers(0, CLASSES, shape, dtype=np.int32)


@functools.cache
def run(name, subcenters, devices, sample_rate=1.0):
  """States of some steps as numpy, and what was measured."""
  layout = state.Layout(
    batch_size=BATCH,
    group_size=GROUP_SIZE,
    num_classes=CLASSES,
    num_blocks=BLOCKS,
    subcenters=subcenters,
    sample_rate=sample_rate,
    mesh=state.make_mesh(devices),
  )
  loss = by_name(FIELDS | {'name': name})
  sgd = optimizer.momentum_sgd(momentum=0.0, weight_decay=0.0)
  keys = state.make_keys(SEED)
  current = jax.jit(
    lambda key: state.init(key, linear(), loss, sgd, sgd, layout),
    out_shardings=state.shardings(layout.mesh),
  )(keys['init'])
  do = step.make_step(
    linear(), loss, sgd, sgd, lambda _: RATE, layout, flip=0.0
  )
  states, measured = [jax.tree.map(np.array, current)], []
  for images, labels in zip(*batches(), strict=True):
    put = jax.device_put((images, labels), layout.spread())
    current, numbers = do(current, *put, keys)
    states.append(jax.tree.map(np.array, current))
    measured.append(jax.tree.map(float, numbers))
  return states, measured


@functools.partial(jax.jit, static_argnames=('name', 'subcenters'))
def plain(name, subcenters, before, images, labels, key):
  """One step in one expression, on the whole batch and all classes."""
  images = images.reshape(BATCH, *PIXELS) / 127.5 - 1
  labels = labels.reshape(BATCH)
  loss = getattr(losses, name)
  given = {
    k: v
    for k, v in (FIELDS | FIELDS.get(name, {})).items()
    if k in inspect.signature(loss).parameters
  }
  if 'clip' in given:
    given |= {'clip': None, 'key': key}

  def objective(params, centers):
    embeddings, _ = linear().apply(params, None, images, train=True)
    if name in ('adaface', 'magface'):
      given['norms'] = losses.norms(embeddings)
    if name in ('adaface', 'curricularface'):
      given['state'] = before.loss_state
    cosines = losses.subcenter_cosines(
      embeddings, centers.reshape(CLASSES, subcenters, DIM)
    )
    result = loss(cosines, labels, **given)
    if name == 'magface':
      return sum(result).mean(), ()
    if not isinstance(result, tuple):
      result = result, ()
    return result[0].mean(), result[1]

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


@pytest.mark.parametrize(
  'name, subcenters',
  # The plain one pairs within the batch, the step within a group.
  [case for case in CASES if not case[0].endswith('plus')],
)
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
    # Centres are short, so that their gradient is large.
    np.testing.assert_allclose(got[:CLASSES], centers, rtol=2e-5, atol=2e-5)
    assert not got[CLASSES:].any()
    for x, y in zip(after.loss_state, new, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-6)
  moved = np.abs(states[-1].params - states[0].params).max()
  assert moved > 1e-3


@pytest.mark.parametrize('name, subcenters', CASES)
def test_bits_do_not_depend_on_devices(name, subcenters):
  want, got = run(name, subcenters, 1), run(name, subcenters, 8)
  for a, b in zip(*map(jax.tree.leaves, (want[0], got[0])), strict=True):
    assert a.tobytes() == b.tobytes()
  assert want[1] == got[1]


def test_sampled_classes_and_a_state_on_devices():
  want, _ = run('curricularface', 3, 1, 0.4)
  got, _ = run('curricularface', 3, 8, 0.4)
  for a, b in zip(*map(jax.tree.leaves, (want, got)), strict=True):
    assert a.tobytes() == b.tobytes()
  everything, _ = run('curricularface', 3, 1)
  assert np.any(everything[1].class_centers != want[1].class_centers)


def test_what_is_measured_says_what_the_margins_are():
  _, measured = run('elastic_arcface', 1, 8)
  assert {'margin_mean', 'margin_std', 'embedding_norm'} <= measured[0].keys()
  _, measured = run('curricularface', 1, 8)
  states, _ = run('curricularface', 1, 8)
  for numbers, after in zip(measured, states[1:], strict=True):
    assert numbers['t_mean'] == float(after.loss_state.t)
  _, measured = run('adaface', 1, 8)
  total = measured[0]['angle_margin_mean'] + measured[0]['cosine_margin_mean']
  assert total == pytest.approx(FIELDS['adaface']['margin'], rel=1e-5)
