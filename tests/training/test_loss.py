# SPDX-License-Identifier: Apache-2.0
"""The losses of the training step against the public ones of the same name."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.errors import InputError
from elasticface_jax.losses import _blocks
from elasticface_jax.training.loss import Given, by_name

# None of them a default of the public functions.
DRAWN = {'margin': 0.3, 'margin_std': 0.04, 'clip': (-1.5, 1.5)}
ARC = {'gradient': 'straight_through'}
ARGUMENTS = {
  'normface': {},
  'arcface': {'margin': 0.3} | ARC,
  'cosface': {'margin': 0.3},
  'elastic_arcface': DRAWN | ARC,
  'elastic_cosface': DRAWN,
  'elastic_arcface_plus': DRAWN | {'pairing': 'released'} | ARC,
  'elastic_cosface_plus': DRAWN | {'pairing': 'released'},
  'combined_margin': {'m1': 1.1, 'm2': 0.2, 'm3': 0.1} | ARC,
  'sphereface': {'margin': 1.4} | ARC,
  'x2_softmax': {'a': -0.7, 'h': 0.1, 'k': 0.8} | ARC,
  'adaface': {'margin': 0.3, 'h': 0.5, 'ema_rate': 0.25},
  'magface': {
    'lower_norm': 1.0,
    'upper_norm': 4.0,
    'lower_margin': 0.2,
    'upper_margin': 0.6,
    'regularizer_weight': 2.0,
  },
  'curricularface': {'margin': 0.3, 'ema_rate': 0.25},
}
NAMES = list(ARGUMENTS)
ELASTIC = [name for name in NAMES if name.startswith('elastic')]
PLUS = [name for name in NAMES if name.endswith('_plus')]


def fields(name, **changes):
  return {'name': name, 'scale': 20.0} | ARGUMENTS[name] | changes


def batch(size=12, classes=10, dim=6):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(size, dim)).astype(np.float32)
  centers = rng.normal(size=(classes, dim)).astype(np.float32)
  return embeddings, centers, rng.integers(0, classes, size, np.int32)


@functools.partial(jax.jit, static_argnames='loss')
def in_blocks(loss, embeddings, centers, labels, key):
  """Loss, its slope by the target cosine, and the state, as a step has them."""
  head = loss.head(len(centers))
  unit = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
  blocks = _blocks.to_blocks(centers, 4)
  targets = _blocks.block_target_cosines(unit, blocks, labels)
  norms = losses.norms(embeddings)
  made = loss.make(Given(key, 0, targets, norms, loss.init()))
  samples = _blocks.Samples(unit, labels, targets, made.margins)
  statistics = [
    _blocks.block_statistics(
      samples,
      _blocks.unit_centers(block, unit.shape[1]),
      3 * i + jnp.arange(3),
      head,
    )
    for i, block in enumerate(blocks)
  ]
  statistics = jax.tree.map(lambda *x: jnp.stack(x), *statistics)
  softmax = _blocks.join_blocks(statistics, targets, made.margins, head)
  assert all(margin.shape == labels.shape for margin in made.margins)
  return softmax.loss + made.regularizer, softmax.target_gradients, made.state


@functools.partial(jax.jit, static_argnames='name')
def in_public(name, embeddings, centers, labels, key):
  given = {'scale': 20.0} | ARGUMENTS[name]
  if name.startswith('elastic'):
    given['key'] = key
  if name in ('adaface', 'magface'):
    given['norms'] = losses.norms(embeddings)
  if name in ('adaface', 'curricularface'):
    given['state'] = getattr(losses, f'{name}_init')()

  def loss(cosines):
    result = getattr(losses, name)(cosines, labels, **given)
    if name == 'magface':
      return sum(result), ()
    return result if isinstance(result, tuple) else (result, ())

  cosines = losses.cosines(embeddings, centers)
  value, pullback, state = jax.vjp(loss, cosines, has_aux=True)
  (slopes,) = pullback(jnp.ones_like(value))
  return value, slopes[jnp.arange(len(labels)), labels], state


def test_arguments_are_those_of_the_public_losses(named_losses):
  arrays = {'cosines', 'labels', 'key', 'norms', 'state', 'first_sample'}
  assert named_losses.keys() == ARGUMENTS.keys()
  for name, loss in named_losses.items():
    parameters = inspect.signature(loss).parameters.keys()
    assert fields(name).keys() - {'name'} == parameters - arrays, name


@pytest.mark.parametrize('name', NAMES)
def test_a_step_has_the_public_loss(name):
  loss = by_name(fields(name))
  arrays = batch()
  got = in_blocks(loss, *arrays, jax.random.key(5))
  want = in_public(name, *arrays, jax.random.key(5))
  for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
  assert np.max(want[0]) > 1
  stateful = ('adaface', 'curricularface')
  assert bool(jax.tree.leaves(got[2])) == (name in stateful)


@pytest.mark.parametrize('name', NAMES)
def test_a_loss_takes_its_arguments_and_no_others(name):
  given = fields(name)
  loss = by_name(given)
  assert loss.fields() == given
  assert loss.gradient == given.get('gradient', 'exact')
  assert loss.head(7).num_classes == 7 and loss.head(7).scale == 20.0
  for argument in given.keys() - {'name'}:
    assert f'{argument}={given[argument]}' in str(loss)
    rest = {k: x for k, x in given.items() if k != argument}
    with pytest.raises(InputError, match=f'loss.{argument} is missing; {name}'):
      by_name(rest)
  with pytest.raises(InputError, match=f'{name} has no argument loss.m9; .*'):
    by_name(given | {'m9': 1.0})


def margins(name, group_size, target_cosines, seed=5, **changes):
  """Those of a batch of 12, made group by group."""
  loss = by_name(fields(name, **changes))
  made = []
  for first in range(0, 12, group_size):
    own = jnp.asarray(target_cosines)[first : first + group_size]
    key = jax.random.key(seed)
    given = Given(key, first, own, jnp.ones(group_size), loss.init())
    made.append(loss.make(given).margins[0])
  return np.concatenate(made)


def cosines(size=12, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, size).astype(np.float32)


def draw():
  return np.asarray(
    losses.sample_margins(
      jax.random.key(5), (12,), mean=0.3, std=0.04, clip=(-1.5, 1.5)
    )
  )


@pytest.mark.parametrize('rule', ['paper', 'released'])
@pytest.mark.parametrize('name', PLUS)
def test_margins_are_paired_within_a_group(name, rule):
  target_cosines = cosines()
  drawn = draw()
  got = margins(name, 4, jnp.asarray(target_cosines), pairing=rule)
  for group in np.split(np.arange(12), 3):
    want = losses.pair_margins(drawn[group], target_cosines[group], rule=rule)
    np.testing.assert_array_equal(got[group], want)
  assert np.any(got != margins(name, 12, target_cosines, pairing=rule))


@pytest.mark.parametrize('name', PLUS)
def test_groups_do_not_know_each_other(name):
  target_cosines = cosines()
  other = target_cosines.copy()
  other[4:8] = cosines(seed=1)[4:8]
  one, two = margins(name, 4, target_cosines), margins(name, 4, other)
  np.testing.assert_array_equal(one[:4], two[:4])
  np.testing.assert_array_equal(one[8:], two[8:])
  assert np.any(one[4:8] != two[4:8])
  np.testing.assert_array_equal(np.sort(one[4:8]), np.sort(two[4:8]))


@pytest.mark.parametrize(
  'name', ['normface', 'arcface', 'cosface', *ELASTIC[:2], 'sphereface']
)
def test_without_pairing_neither_groups_nor_cosines_matter(name):
  want = margins(name, 12, cosines())
  assert want.shape == (12,) and want.dtype == np.float32
  np.testing.assert_array_equal(margins(name, 4, cosines()), want)
  np.testing.assert_array_equal(margins(name, 12, cosines(seed=1)), want)
  if name.startswith('elastic'):
    np.testing.assert_array_equal(want, draw())
    assert np.all(margins(name, 12, cosines(), seed=6) != want)
    assert np.any(margins(name, 12, cosines(), clip=()) != want)
  else:
    margin = {'normface': 0.0, 'sphereface': 1.4}.get(name, 0.3)
    np.testing.assert_array_equal(want, np.full(12, np.float32(margin)))


@pytest.mark.parametrize('name', ELASTIC)
def test_no_spread_is_the_margin_itself(name):
  got = margins(name, 4, cosines(), margin_std=0.0)
  np.testing.assert_array_equal(got, np.full(12, np.float32(0.3)))


nan = float('nan')


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('cosface', {'name': 'triplet'}, "'triplet' .*use one of normface, arcf"),
    ('cosface', {'name': 'cosfase'}, 'did you mean cosface'),
    ('cosface', {'margn': 1.0}, 'cosface has no argument loss.margn; did you'),
    ('cosface', {'h': 1.0}, 'cosface takes loss.scale, loss.margin'),
    ('cosface', {'scale': 0.0}, 'loss.scale=0.0 must be a positive'),
    ('cosface', {'scale': nan}, 'loss.scale=nan must be a positive'),
    ('cosface', {'scale': '64'}, "loss.scale='64' must be a positive"),
    ('cosface', {'margin': nan}, 'loss.margin=nan must be a finite number'),
    ('elastic_arcface', {'margin_std': -0.1}, 'loss.margin_std=-0.1 must be 0'),
    ('elastic_arcface', {'margin_std': nan}, 'loss.margin_std=nan must be 0'),
    (
      'elastic_arcface',
      {'clip': (1.0, -1.0)},
      r'loss.clip=.* must be \(\) for',
    ),
    ('elastic_arcface', {'clip': (1.0,)}, r'loss.clip=.* must be \(\) for'),
    ('elastic_arcface', {'clip': (0.0, nan)}, r'loss.clip=.* must be \(\) for'),
    ('elastic_arcface', {'clip': ('a', 'b')}, r'loss.clip=.* must be \(\) for'),
    ('elastic_arcface', {'clip': None}, r'loss.clip=None must be \(\) for'),
    ('arcface', {'gradient': 'none'}, 'must be one of exact, straight_through'),
    (
      'elastic_cosface_plus',
      {'pairing': 'x'},
      'must be one of paper, released',
    ),
    ('sphereface', {'margin': 0.5}, 'loss.margin=0.5 must be a factor of 1'),
    ('x2_softmax', {'a': 0.7}, 'loss.a=0.7 must be a negative'),
    ('adaface', {'ema_rate': 0.0}, r'loss.ema_rate=0.0 must be in \(0, 1\]'),
    ('curricularface', {'ema_rate': 1.5}, r'loss.ema_rate=1.5 must be in'),
    (
      'magface',
      {'upper_norm': 0.5},
      'lower_norm=1.0 must be less than loss.up',
    ),
    (
      'magface',
      {'lower_norm': -1.0},
      'loss.lower_norm=-1.0 must be a positive',
    ),
  ],
)
def test_mistakes(name, changes, message):
  with pytest.raises(InputError, match=message):
    by_name(fields(name) | changes)
