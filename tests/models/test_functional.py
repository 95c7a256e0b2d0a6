# SPDX-License-Identifier: Apache-2.0
"""A module as two pure functions, tested on a chain whose order matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from elasticface_jax.models.functional import functional

LINKS = 12


class Chain(nnx.Module):
  """Twelve affine maps, so that '10' and '11' sort before '2'; a counter."""

  def __init__(self):
    self.links = nnx.Dict()
    for i in range(LINKS):
      self.links[str(i)] = nnx.Dict({'weight': nnx.Param(jnp.ones(()))})
    self.seen = nnx.BatchStat(jnp.zeros(()))

  def __call__(self, inputs, *, train, key):
    for i in range(LINKS):
      inputs = inputs * self.links[str(i)]['weight'][...] + i
    if train:
      self.seen.set_value(self.seen[...] + inputs)
    return inputs if key is None else inputs + jax.random.normal(key)


def randomize(params, key):
  weights = jax.random.uniform(key, (LINKS,)) + 0.5
  links = {str(i): {'weight': weights[i]} for i in range(LINKS)}
  return {'links': links}


def by_hand(params, x):
  for i in range(LINKS):
    x = x * float(params['links'][str(i)]['weight']) + i
  return x


init, apply = functional(Chain, randomize)


def test_trees_are_plain_dicts_with_string_keys():
  def check(tree):
    if type(tree) is dict:
      assert all(type(key) is str for key in tree)
      for branch in tree.values():
        check(branch)
    else:
      assert isinstance(tree, jax.Array)

  params, stats = init(jax.random.key(0))
  check(params)
  check(stats)
  assert stats == {'seen': 0}
  _, stats = apply(params, stats, 1.0, train=True)
  check(stats)


def test_every_value_reaches_its_own_variable():
  params, stats = init(jax.random.key(0))
  outputs, _ = apply(params, stats, 2.0, train=False)
  np.testing.assert_allclose(outputs, by_hand(params, 2.0), rtol=1e-5)


def test_the_order_of_dict_entries_does_not_matter():
  params, stats = init(jax.random.key(0))
  reordered = {'links': dict(reversed(params['links'].items()))}
  assert list(reordered['links']) != list(params['links'])
  expected, _ = apply(params, stats, 2.0, train=False)
  outputs, _ = apply(reordered, stats, 2.0, train=False)
  assert outputs == expected


def test_apply_is_pure():
  params, stats = init(jax.random.key(0))
  first, updated = apply(params, stats, 2.0, train=True)
  assert stats['seen'] == 0 and updated['seen'] == first
  second, _ = apply(params, stats, 2.0, train=True)
  assert first == second
  _, kept = apply(params, updated, 2.0, train=False)
  assert kept['seen'] == updated['seen']


def test_the_key_reaches_the_module():
  params, stats = init(jax.random.key(0))
  plain, _ = apply(params, stats, 2.0, train=False)
  noisy, _ = apply(params, stats, 2.0, train=False, key=jax.random.key(3))
  noise = jax.random.normal(jax.random.key(3))
  np.testing.assert_allclose(noisy, plain + noise, rtol=1e-6)


def test_init_depends_on_its_key():
  first, again, other = (init(jax.random.key(k))[0] for k in (0, 0, 1))
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, first, again))
  assert not jax.tree.all(jax.tree.map(lambda a, b: a == b, first, other))


def test_statistics_pass_through_jit_scan_and_grad():
  params, stats = init(jax.random.key(0))
  inputs = jnp.array([1.0, 2.0, 3.0])

  def total(params, stats):
    def step(stats, x):
      outputs, stats = apply(params, stats, x, train=True)
      return stats, outputs

    stats, outputs = jax.lax.scan(step, stats, inputs)
    return outputs.sum(), stats

  gradient, updated = jax.jit(jax.grad(total, has_aux=True))(params, stats)
  expected = sum(by_hand(params, x) for x in (1.0, 2.0, 3.0))
  np.testing.assert_allclose(updated['seen'], expected, rtol=1e-5)
  # The last weight multiplies the output of the eleven links before it.
  last = float(params['links']['11']['weight'])
  np.testing.assert_allclose(
    gradient['links']['11']['weight'], (expected - 33) / last, rtol=1e-5
  )


def test_functional_computes_nothing():
  def failing():
    chain = Chain()
    assert isinstance(chain.seen[...], jax.core.Tracer)
    return chain

  functional(failing, randomize)


@pytest.mark.parametrize('missing', [True, False])
def test_foreign_keys_are_refused(missing):
  params, stats = init(jax.random.key(0))
  links = dict(params['links'])
  if missing:
    del links['3']
  else:
    links['12'] = links['3']
  with pytest.raises(ValueError, match='do not have the keys that init gives'):
    apply({'links': links}, stats, 1.0, train=False)
  with pytest.raises(ValueError, match='do not have the keys'):
    apply(params, {}, 1.0, train=False)
