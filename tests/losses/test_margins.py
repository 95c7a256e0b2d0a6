# SPDX-License-Identifier: Apache-2.0
"""Margins: their distribution, their keys, and who gets which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elasticface_jax import losses

# cosines, margins, margins by rank, margins as released; each order of the
# samples is a permutation that is not its own inverse.
EXAMPLES = [
  (
    [0.2, 0.9, 0.5, 0.7],
    [0.30, 0.32, 0.38, 0.40],
    [0.40, 0.30, 0.38, 0.32],
    [0.32, 0.40, 0.38, 0.30],
  ),
  ([0.1, 0.9, 0.5], [0.4, 0.5, 0.6], [0.6, 0.4, 0.5], [0.5, 0.6, 0.4]),
]


def draw(seed, shape=(64,), mean=0.5, std=0.05):
  key = jax.random.key(seed)
  return np.asarray(losses.sample_margins(key, shape, mean=mean, std=std))


def test_margins_are_normal_and_not_clipped():
  mean, std, count = 0.35, 0.025, 1_000_000
  margins = draw(3, (count,), mean, std).astype(np.float64)
  z = (margins - mean) / std
  # Five standard errors of each estimate.
  assert abs(z.mean()) < 5 / np.sqrt(count)
  assert abs(z.std() - 1) < 5 / np.sqrt(2 * count)
  assert abs((z**3).mean()) < 5 * np.sqrt(15 / count)
  assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / count)
  # P(|z| > 4) is 6.3e-5: a clip anywhere below would leave none.
  assert 20 < (np.abs(z) > 4).sum() < 120


def test_the_key_decides():
  np.testing.assert_array_equal(draw(0), draw(0))
  assert np.all(draw(0) != draw(1))
  assert len(np.unique(draw(0))) == 64


def test_no_spread_gives_the_mean():
  np.testing.assert_array_equal(draw(0, std=0.0), np.full(64, np.float32(0.5)))


def test_margins_are_float32_in_either_mode():
  assert draw(0).dtype == np.float32
  with jax.enable_x64(True):
    wide = draw(0)
  assert wide.dtype == np.float32
  np.testing.assert_array_equal(wide, draw(0))


def test_same_draws_on_1_and_8_devices():
  def sharded(devices):
    mesh = jax.make_mesh(
      (devices,),
      ('data',),
      axis_types=(AxisType.Auto,),
      devices=jax.devices()[:devices],
    )
    return jax.jit(
      lambda key: losses.sample_margins(key, (64,), mean=0.5, std=0.05),
      out_shardings=NamedSharding(mesh, PartitionSpec('data')),
    )(jax.random.key(5))

  one, eight = sharded(1), sharded(8)
  assert len(one.sharding.device_set) == 1
  assert len(eight.sharding.device_set) == 8
  np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize('key', [np.zeros(2, np.uint32), 0, None])
def test_an_untyped_key_is_refused(key):
  with pytest.raises(TypeError, match=r'jax\.random\.key'):
    losses.sample_margins(key, (4,), mean=0.5, std=0.05)


def test_a_negative_std_is_refused():
  with pytest.raises(ValueError, match='-0.05'):
    draw(0, std=-0.05)


@pytest.mark.parametrize('cosines, margins, paper, released', EXAMPLES)
def test_pairing_by_hand(cosines, margins, paper, released):
  target_cosines = jnp.array(cosines)
  # The order in which they were drawn must not matter.
  for drawn in (jnp.array(margins), jnp.array(margins[1:] + margins[:1])):
    for rule, want in (('paper', paper), ('released', released)):
      got = losses.pair_margins(drawn, target_cosines, rule=rule)
      np.testing.assert_array_equal(got, np.float32(want))
  np.testing.assert_array_equal(
    losses.pair_margins(drawn, target_cosines), np.float32(paper)
  )


@pytest.mark.parametrize('size', [1, 2, 128])
def test_paper_pairing_is_monotone_and_released_is_the_published_index(size):
  rng = np.random.default_rng(size)
  cosines = rng.uniform(-1, 1, size).astype(np.float32)
  margins = rng.normal(0.5, 0.05, size).astype(np.float32)
  paper = np.asarray(losses.pair_margins(margins, cosines))
  released = np.asarray(losses.pair_margins(margins, cosines, rule='released'))

  np.testing.assert_array_equal(np.sort(paper), np.sort(margins))
  # Rank correlation -1: by rising cosine the margins fall.
  assert np.all(np.diff(paper[np.argsort(cosines)]) < 0)

  falling = sorted(range(size), key=lambda i: -cosines[i])
  want = [np.sort(margins)[i] for i in falling]
  np.testing.assert_array_equal(released, want)
  assert np.array_equal(paper, released) == (size <= 2)


def test_ties_go_in_index_order():
  got = losses.pair_margins(jnp.array([3.0, 1.0, 2.0]), jnp.full(3, 0.5))
  np.testing.assert_array_equal(got, [1.0, 2.0, 3.0])


def test_pairing_under_jit_and_vmap():
  rng = np.random.default_rng(0)
  cosines = rng.uniform(-1, 1, (3, 8)).astype(np.float32)
  margins = rng.normal(0.5, 0.05, (3, 8)).astype(np.float32)
  got = jax.jit(jax.vmap(losses.pair_margins))(margins, cosines)
  want = [losses.pair_margins(margins[i], cosines[i]) for i in range(3)]
  np.testing.assert_array_equal(got, np.stack(want))


def test_gradient_goes_to_the_margins_only():
  cosines, margins = (jnp.array(x) for x in EXAMPLES[0][:2])
  weights = jnp.arange(1.0, 5.0)

  def objective(margins, cosines):
    return (weights * losses.pair_margins(margins, cosines)).sum()

  to_margins, to_cosines = jax.grad(objective, (0, 1))(margins, cosines)
  # .30 went to sample 1, .32 to 3, .38 to 2, .40 to 0.
  np.testing.assert_array_equal(to_margins, [2.0, 4.0, 3.0, 1.0])
  np.testing.assert_array_equal(to_cosines, np.zeros(4))


def test_wrong_pairing_arguments_are_refused():
  x = jnp.zeros(3)
  with pytest.raises(ValueError, match="'paper', 'released'.*'rank'"):
    losses.pair_margins(x, x, rule='rank')
  with pytest.raises(ValueError, match=r'\(3,\) and \(2,\)'):
    losses.pair_margins(x, x[:2])
  with pytest.raises(ValueError, match=r'\(3, 1\)'):
    losses.pair_margins(x[:, None], x[:, None])
