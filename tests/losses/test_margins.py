# SPDX-License-Identifier: Apache-2.0
"""Margins: their distribution, their keys, and who gets which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
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


def draw(seed, shape=(64,), mean=0.5, std=0.05, **options):
  key = jax.random.key(seed)
  margins = losses.sample_margins(key, shape, mean=mean, std=std, **options)
  return np.asarray(margins)


@pytest.mark.parametrize(
  'mean, std, clip',
  [
    (0.5, 0.05, None),
    (0.35, 0.025, None),
    (0.5, 0.05, (-2.0, 2.0)),
    (0.35, 0.025, (-1.0, 3.0)),
  ],
)
def test_the_distribution_of_a_million_margins(mean, std, clip):
  count = 1_000_000
  margins = draw(0, (count,), mean, std, clip=clip).astype(np.float64)
  z = (margins - mean) / std
  want = scipy.stats.truncnorm(*clip) if clip else scipy.stats.norm()
  # Five standard errors of each estimate: a chance of 6e-7.
  centered = (z - want.mean()) / want.std()
  kurtosis = want.stats(moments='k') + 3
  assert abs(centered.mean()) < 5 / np.sqrt(count)
  assert abs((centered**2).mean() - 1) < 5 * np.sqrt((kurtosis - 1) / count)
  # The largest distance of the two distribution functions; beyond 2.6 /
  # sqrt(count) by a chance of 2 exp(-2 * 2.6^2) = 3e-6. Were margins clipped
  # and no more, it would be what lies outside: 0.02 and more.
  distance = scipy.stats.kstest(z, want.cdf).statistic
  assert distance < 2.6 / np.sqrt(count)
  # One sample tells nothing of the next, nor of the one a power of two away.
  for lag in (1, 2, 256, 65_536):
    together = np.mean(centered[lag:] * centered[:-lag])
    assert abs(together) < 5 / np.sqrt(count - lag), lag
  if clip is None:
    # P(|z| > 4) is 6.3e-5: a clip anywhere below would leave none.
    assert 20 < (np.abs(z) > 4).sum() < 120
  else:
    # To the rounding of a margin, and near both ends.
    low, high = clip
    assert low - 1e-5 < z.min() < low + 1e-3
    assert high - 1e-3 < z.max() < high + 1e-5


def test_seed_step_and_sample_decide():
  np.testing.assert_array_equal(draw(0), draw(0))
  assert len(np.unique(draw(0))) == 64
  steps = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
  draws = [draw(0), draw(1)] + [
    np.asarray(losses.sample_margins(step, (64,), mean=0.5, std=0.05))
    for step in steps
  ]
  # No two of all these numbers are the same, at whatever place.
  assert len(np.unique(np.concatenate(draws))) == 5 * 64


def test_a_margin_follows_from_its_number_and_not_from_the_shape():
  whole = draw(3, (64,))
  for first, count in [(0, 7), (63, 1), (5, 0)]:
    part = draw(3, (count,), first_sample=first)
    np.testing.assert_array_equal(part, whole[first : first + count])
  one = draw(3, (), first_sample=63)
  assert one.shape == () and one == whole[63]
  # Several margins a sample.
  rows = draw(3, (8, 3))
  assert rows.shape == (8, 3) and len(np.unique(rows)) == 24
  np.testing.assert_array_equal(draw(3, (2, 3), first_sample=5), rows[5:7])


@pytest.mark.parametrize('dtype', [np.int32, np.uint8])
def test_the_first_sample_may_be_traced(dtype):
  # Of a narrow dtype too, which cannot count all samples.
  whole = draw(3, (300,))
  part = jax.jit(
    lambda key, first: losses.sample_margins(
      key, (4,), mean=0.5, std=0.05, first_sample=first
    )
  )
  for first in (0, 254):
    got = part(jax.random.key(3), np.asarray(first, dtype))
    # The compiler may multiply and add in one, and so round once.
    np.testing.assert_allclose(got, whole[first : first + 4], rtol=2e-7)


@pytest.mark.parametrize('clip', [None, (-1.0, 2.0)])
def test_no_spread_gives_the_mean(clip):
  margins = draw(0, std=0.0, clip=clip)
  np.testing.assert_array_equal(margins, np.full(64, np.float32(0.5)))


@pytest.mark.parametrize('clip', [None, (-1.0, 2.0)])
def test_margins_are_float32_in_either_mode(clip):
  assert draw(0, clip=clip).dtype == np.float32
  with jax.enable_x64(True):
    wide = draw(0, clip=clip)
  assert wide.dtype == np.float32
  np.testing.assert_array_equal(wide, draw(0, clip=clip))


@functools.cache
def on_devices(count, how, clip):
  """64 margins, made by `count` devices, each its share."""
  mesh = jax.make_mesh(
    (count,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  make = functools.partial(losses.sample_margins, mean=0.5, std=0.05, clip=clip)
  spec = PartitionSpec('data')
  if how == 'jit':
    sharding = NamedSharding(mesh, spec)
    run = jax.jit(lambda key: make(key, (64,)), out_shardings=sharding)
  else:
    share = 64 // count

    def own(key):
      first = jax.lax.axis_index('data') * share
      return make(key, (share,), first_sample=first)

    run = jax.jit(
      jax.shard_map(
        own,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=spec,
        check_vma=False,
      )
    )
  compiled = run.lower(jax.random.key(5)).compile()
  return compiled(jax.random.key(5)), compiled.as_text()


@pytest.mark.parametrize(
  'how, clip',
  [('jit', None), ('shard_map', None), ('shard_map', (-1.0, 2.0))],
)
@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_same_bits_on_any_number_of_devices(count, how, clip):
  margins, program = on_devices(count, how, clip)
  assert len(margins.sharding.device_set) == count
  np.testing.assert_array_equal(margins, on_devices(1, 'jit', clip)[0])
  # Each device draws its own and asks no other.
  assert not [x for x in ('all-', 'collective') if x in program]


@pytest.mark.parametrize('key', [np.zeros(2, np.uint32), 0, None])
def test_an_untyped_key_is_refused(key):
  with pytest.raises(TypeError, match=r'jax\.random\.key'):
    losses.sample_margins(key, (4,), mean=0.5, std=0.05)


def test_wrong_spreads_are_refused():
  with pytest.raises(ValueError, match='std must not be negative, got -0.05'):
    draw(0, std=-0.05)
  for clip in [2.0, (1.0,), (1, 1), (2, 1), (-1, 0, 1), (np.nan, 1)]:
    with pytest.raises(ValueError, match=r'\(low, high\) in standard') as error:
      draw(0, clip=clip)
    assert str(error.value).endswith(f'low < high, got {clip}')


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
