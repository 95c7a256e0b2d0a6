# SPDX-License-Identifier: Apache-2.0
"""The losses of the training step against the public ones of the same name."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.losses import blockwise
from elasticface_jax.losses.by_name import by_name
from elasticface_jax.losses.sampling import AllClasses

NAMES = [
  'normface',
  'arcface',
  'cosface',
  'elastic_arcface',
  'elastic_cosface',
  'elastic_arcface_plus',
  'elastic_cosface_plus',
]
PLUS = NAMES[-2:]
# None of them a default of the public functions.
NUMBERS = {
  'scale': 20.0,
  'margin': 0.3,
  'margin_std': 0.04,
  'pairing': 'released',
  'gradient': 'straight_through',
}


def uses(name, number):
  return number in inspect.signature(getattr(losses, name)).parameters


def batch(size=12, classes=10, dim=6):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(size, dim)).astype(np.float32)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  centers = rng.normal(size=(classes, dim)).astype(np.float32)
  return embeddings, centers, rng.integers(0, classes, size, np.int32)


@functools.partial(jax.jit, static_argnames=('loss', 'group_size'))
def in_blocks(loss, embeddings, centers, labels, key, group_size):
  """Loss ``[B]`` and its slope by the target cosine, as a step has them."""
  head = loss.head(len(centers))
  softmax = blockwise.margin_softmax(
    blockwise.block_statistics(
      embeddings,
      blockwise.to_blocks(centers, 4),
      labels,
      head,
      classes=AllClasses(0, 3),
    ),
    lambda cosines: loss.margins(key, cosines, group_size=group_size),
    head,
  )
  return softmax.loss, softmax.target_gradients


@functools.partial(jax.jit, static_argnames=('name', 'numbers'))
def in_public(name, embeddings, centers, labels, key, numbers):
  numbers = {k: v for k, v in numbers if uses(name, k)}
  if name.startswith('elastic'):
    numbers['key'] = key
  loss = functools.partial(getattr(losses, name), labels=labels, **numbers)
  cosines = losses.cosines(embeddings, centers)
  value, pullback = jax.vjp(loss, cosines)
  (slopes,) = pullback(jnp.ones_like(value))
  return value, slopes[jnp.arange(len(labels)), labels]


def test_the_names_are_the_public_losses():
  public = [
    name
    for name, f in vars(losses).items()
    if inspect.isfunction(f)
    and f.__module__ == 'elasticface_jax.losses.softmax'
  ]
  assert sorted(public) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_step_has_the_public_loss(name):
  loss = by_name(name, **NUMBERS)
  arrays = batch()
  got = in_blocks(loss, *arrays, jax.random.key(5), 12)
  numbers = tuple(NUMBERS.items())
  want = in_public(name, *arrays, jax.random.key(5), numbers)
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
  assert np.max(want[0]) > 1


@pytest.mark.parametrize('name', NAMES)
def test_numbers_without_use_are_dropped(name):
  loss = by_name(name, **NUMBERS)
  assert (loss.name, loss.scale) == (name, 20.0)
  other = {
    'margin': 0.2,
    'margin_std': 0.01,
    'pairing': 'paper',
    'gradient': 'exact',
  }
  for number, value in other.items():
    changed = by_name(name, **(NUMBERS | {number: value}))
    assert (changed != loss) == uses(name, number), number
  assert by_name(name, **(NUMBERS | {'scale': 30.0})).head(7).scale == 30.0
  assert loss.head(7).num_classes == 7


def margins(name, group_size, target_cosines, seed=5, **numbers):
  loss = by_name(name, **(NUMBERS | numbers))
  return np.asarray(
    loss.margins(jax.random.key(seed), target_cosines, group_size=group_size)
  )


def cosines(size=12, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, size).astype(np.float32)


@pytest.mark.parametrize('rule', ['paper', 'released'])
@pytest.mark.parametrize('name', PLUS)
def test_margins_are_paired_within_a_group(name, rule):
  target_cosines = cosines()
  drawn = np.asarray(
    losses.sample_margins(jax.random.key(5), (12,), mean=0.3, std=0.04)
  )
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


@pytest.mark.parametrize('name', NAMES[:-2])
def test_without_pairing_neither_groups_nor_cosines_matter(name):
  want = margins(name, 12, cosines())
  assert want.shape == (12,) and want.dtype == np.float32
  np.testing.assert_array_equal(margins(name, 4, cosines()), want)
  np.testing.assert_array_equal(margins(name, 12, cosines(seed=1)), want)
  if name.startswith('elastic'):
    drawn = losses.sample_margins(jax.random.key(5), (12,), mean=0.3, std=0.04)
    np.testing.assert_array_equal(want, drawn)
    assert np.all(margins(name, 12, cosines(), seed=6) != want)
  else:
    margin = np.float32(0.0 if name == 'normface' else 0.3)
    np.testing.assert_array_equal(want, np.full(12, margin))


@pytest.mark.parametrize('name', NAMES[3:])
def test_no_spread_is_the_margin_itself(name):
  got = margins(name, 4, cosines(), margin_std=0.0)
  np.testing.assert_array_equal(got, np.full(12, np.float32(0.3)))


def test_wrong_names_and_numbers_are_refused():
  def refused(match, **changes):
    with pytest.raises(ValueError, match=match):
      by_name(**({'name': 'arcface'} | NUMBERS | changes))

  refused("'sphereface'.*normface, arcface, .*_cosface_plus", name='sphereface')
  refused("pairing 'random'.*'paper', 'released'", pairing='random')
  refused("gradient 'none'.*'exact', 'straight_through'", gradient='none')
  for scale in (0.0, -1.0, float('nan')):
    refused(f'scale {scale} must be positive', scale=scale)
  for std in (-0.1, float('nan')):
    refused(f'margin_std {std} must not be negative', margin_std=std)
