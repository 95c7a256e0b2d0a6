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

SHARED = [
  'normface',
  'arcface',
  'cosface',
  'elastic_arcface',
  'elastic_cosface',
  'elastic_arcface_plus',
  'elastic_cosface_plus',
]
PLUS = SHARED[-2:]
# None of them a default of the public functions.
OWN = {
  'combined_margin': {'m1': 1.1, 'm2': 0.2, 'm3': 0.1},
  'sphereface': {'margin': 1.4},
  'x2_softmax': {'a': -0.7, 'h': 0.1, 'k': 0.8},
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
NAMES = [*SHARED, *OWN]
FIELDS = {
  'scale': 20.0,
  'margin': 0.3,
  'margin_std': 0.04,
  'clip': (-1.5, 1.5),
  'pairing': 'released',
  'gradient': 'straight_through',
} | OWN


def numbers(name, fields=FIELDS):
  """Those of the public function that a config states."""
  return {
    k: v
    for k, v in (fields | fields.get(name, {})).items()
    if k in inspect.signature(getattr(losses, name)).parameters
  }


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
  given = numbers(name)
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


def test_the_names_are_the_public_losses(named_losses):
  assert sorted(named_losses) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_step_has_the_public_loss(name):
  loss = by_name({'name': name} | FIELDS)
  arrays = batch()
  got = in_blocks(loss, *arrays, jax.random.key(5))
  want = in_public(name, *arrays, jax.random.key(5))
  for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
  assert np.max(want[0]) > 1
  stateful = ('adaface', 'curricularface')
  assert bool(jax.tree.leaves(got[2])) == (name in stateful)


@pytest.mark.parametrize('name', NAMES)
def test_numbers_without_use_are_dropped(name):
  loss = by_name({'name': name} | FIELDS)
  assert dict(loss.numbers) == {
    k: v for k, v in numbers(name).items() if k not in ('scale', 'gradient')
  }
  offers = 'gradient' in numbers(name)
  assert loss.gradient == ('straight_through' if offers else 'exact')
  assert loss.head(7).num_classes == 7 and loss.head(7).scale == 20.0
  for number, value in numbers(name).items():
    assert f'{number}={value}' in str(loss)
  # What it does have may not be missing, and the line says where it goes.
  own = name not in SHARED
  for number in numbers(name):
    fields = {'name': name} | FIELDS
    nested = own and number not in ('scale', 'gradient')
    if nested:
      fields[name] = {k: v for k, v in fields[name].items() if k != number}
    else:
      del fields[number]
    field = f'{name}.{number}' if nested else number
    with pytest.raises(InputError, match=f"'{name}' needs loss.{field},"):
      by_name(fields)


def margins(name, group_size, target_cosines, seed=5, **changes):
  """Those of a batch of 12, made group by group."""
  loss = by_name({'name': name} | FIELDS | changes)
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


@pytest.mark.parametrize('name', [*SHARED[:-2], 'sphereface'])
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


@pytest.mark.parametrize('name', SHARED[3:])
def test_no_spread_is_the_margin_itself(name):
  got = margins(name, 4, cosines(), margin_std=0.0)
  np.testing.assert_array_equal(got, np.full(12, np.float32(0.3)))


def test_wrong_names_and_numbers_are_refused():
  def refused(match, **changes):
    with pytest.raises(InputError, match=match):
      by_name({'name': 'elastic_arcface_plus'} | FIELDS | changes)

  refused("'triplet'.*normface, arcface, .*, curricularface", name='triplet')
  refused("loss.pairing 'random' must be one of paper", pairing='random')
  refused("gradient 'none' .*one of exact, straight_through", gradient='none')
  # Also where the loss has no use for it.
  refused("pairing 'random'", name='adaface', pairing='random')
  nan = float('nan')
  for scale in (0.0, -1.0, nan):
    refused(f'loss.scale {scale} must be positive', scale=scale)
  for std in (-0.1, nan):
    refused(f'loss.margin_std {std} must be 0 or more', margin_std=std)
  refused('loss.margin nan must be a finite number', margin=nan)
  for clip in ((1.0, -1.0), (1.0,), (0.0, nan), ('low', 'high')):
    refused(r'loss.clip .*empty or \(low, high\)', clip=clip)

  def refused_own(name, match, **changes):
    refused(match, name=name, **{name: FIELDS[name] | changes})

  refused_own('sphereface', 'sphereface.margin 0.5 must be .* 1', margin=0.5)
  refused_own('x2_softmax', 'loss.x2_softmax.a 0.7 must be negative', a=0.7)
  for rate in (0.0, 1.5):
    for name in ('adaface', 'curricularface'):
      refused_own(name, rf'{name}.ema_rate {rate} .*\(0, 1\]', ema_rate=rate)
  refused_own('magface', 'upper_norm must rise.* 1.0 and 0.5', upper_norm=0.5)
