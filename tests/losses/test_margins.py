# SPDX-License-Identifier: Apache-2.0
"""Random margins: their distribution, their keys, and their pairing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elasticface_jax import losses

from .programs import QUICK

# cosines, margins, margins by rank, margins as released; each order of the
# samples is a permutation that is not its own inverse.
EXAMPLES = [
  (
    [0.2, 0.9, 0.5, 0.7],
    [0.30, 0.32, 0.38, 0.40],
    [0.40, 0.30, 0.38, 0.32],
    [0.32, 0.40, 0.38, 0.30],
  ),
  (
    [0.1, 0.9, 0.5, 0.3],
    [0.40, 0.50, 0.60, 0.70],
    [0.70, 0.40, 0.50, 0.60],
    [0.50, 0.60, 0.70, 0.40],
  ),
]


# A power of two, so that the compiler cannot round a product and a sum at once.
STD = 2**-4


@functools.cache
def drawer(shape, clip):
  make = functools.partial(losses.sample_margins, shape=shape, std=STD)
  return jax.jit(
    lambda key, first_sample: make(
      key, mean=0.5, clip=clip, first_sample=first_sample
    ),
    compiler_options=QUICK,
  )


def draw(seed, shape=(64,), clip=None, first_sample=0):
  run = drawer(shape, clip)
  return np.asarray(run(jax.random.key(seed), first_sample))


@pytest.mark.parametrize('clip', [None, (-1.0, 3.0)])
def test_the_distribution_of_a_million_margins(clip):
  count = 1_000_000
  run = jax.jit(
    lambda key: losses.sample_margins(
      key, (count,), mean=0.5, std=STD, clip=clip
    )
  )
  margins = np.float64(run(jax.random.key(0)))
  z = (margins - 0.5) / STD
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
  draws = [draw(0), draw(1)]
  draws += [np.asarray(drawer((64,), None)(step, 0)) for step in steps]
  # No two of all these margins are the same, at whatever place.
  assert len(np.unique(np.concatenate(draws))) == 5 * 64


def test_a_margin_follows_from_its_index_and_not_from_the_shape():
  # Several margins a sample too.
  shapes = [((64,), 0), ((7,), 0), ((1,), 63), ((0,), 5), ((), 63)]
  shapes += [((8, 3), 0), ((2, 3), 5)]

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(key):
    return [
      losses.sample_margins(key, shape, mean=0.5, std=STD, first_sample=first)
      for shape, first in shapes
    ]

  with jax.debug_key_reuse(False):
    whole, *parts, one, pairs, own = map(np.asarray, run(jax.random.key(3)))
  np.testing.assert_array_equal(whole, draw(3))
  for part, (shape, first) in zip(parts, shapes[1:4], strict=True):
    np.testing.assert_array_equal(part, whole[first : first + shape[0]])
  assert one.shape == () and one == whole[63]
  assert pairs.shape == (8, 3) and len(np.unique(pairs)) == 24
  np.testing.assert_array_equal(own, pairs[5:7])


@pytest.mark.parametrize('dtype', [np.int32, np.uint8])
def test_the_first_sample_may_be_traced(dtype):
  # Of a narrow dtype too, which cannot count all samples.
  whole = draw(3, (300,))
  for first in (0, 254):
    got = draw(3, (4,), first_sample=np.asarray(first, dtype))
    np.testing.assert_array_equal(got, whole[first : first + 4])


@pytest.mark.parametrize('wide', [False, True])
def test_draws_op_by_op_without_spread_and_in_either_mode(wide):
  for clip in (None, (-1.0, 2.0)):
    with jax.enable_x64(wide):
      make = functools.partial(losses.sample_margins, jax.random.key(0), (64,))
      margins = np.asarray(make(mean=0.5, std=STD, clip=clip))
      constant = np.asarray(make(mean=0.5, std=0.0, clip=clip))
    assert margins.dtype == constant.dtype == np.float32
    np.testing.assert_array_equal(constant, np.full(64, np.float32(0.5)))
    # Compiled, the inverse of the distribution rounds otherwise.
    np.testing.assert_allclose(margins, draw(0, clip=clip), rtol=1e-6)


@functools.cache
def on_devices(count, how):
  """64 margins, made by `count` devices, each its share; clipped ones too."""
  mesh = jax.make_mesh(
    (count,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )

  def make(key, shape, **options):
    draw = functools.partial(losses.sample_margins, mean=0.5, std=0.05)
    clipped_key = jax.random.fold_in(key, 1)
    return (
      draw(key, shape, **options),
      draw(clipped_key, shape, clip=(-1.0, 2.0), **options),
    )

  spec = PartitionSpec('data')
  if how == 'jit':
    sharding = NamedSharding(mesh, spec)
    run = jax.jit(
      lambda key: make(key, (64,)),
      out_shardings=sharding,
      compiler_options=QUICK,
    )
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
      ),
      compiler_options=QUICK,
    )
  compiled = run.lower(jax.random.key(5)).compile()
  return compiled(jax.random.key(5)), compiled.as_text()


@pytest.mark.parametrize(
  'count, how',
  [(1, 'shard_map'), (2, 'shard_map'), (8, 'shard_map'), (8, 'jit')],
)
def test_same_bits_on_any_number_of_devices(count, how):
  both, program = on_devices(count, how)
  alone, _ = on_devices(1, 'jit')
  for margins, want in zip(both, alone, strict=True):
    assert len(margins.sharding.device_set) == count
    np.testing.assert_array_equal(margins, want)
  # Each device draws its own and asks no other.
  assert not [x for x in ('all-', 'collective') if x in program]


@pytest.mark.parametrize('key', [np.zeros(2, np.uint32), 0, None])
def test_an_untyped_key_is_refused(key):
  with pytest.raises(TypeError, match=r'jax\.random\.key'):
    losses.sample_margins(key, (4,), mean=0.5, std=0.05)


def test_wrong_spreads_are_refused():
  make = functools.partial(
    losses.sample_margins, jax.random.key(0), (4,), mean=0.5
  )
  with pytest.raises(ValueError, match='std must not be negative, got -0.05'):
    make(std=-0.05)
  for clip in [2.0, (1.0,), (1, 1), (2, 1), (-1, 0, 1), (np.nan, 1)]:
    with pytest.raises(ValueError, match=r'\(low, high\) in standard') as error:
      make(std=0.05, clip=clip)
    assert str(error.value).endswith(f'low < high, got {clip}')


@functools.partial(jax.jit, compiler_options=QUICK)
def pair(margins, cosines):
  """Margins by either rule, and the gradients of the first."""
  paper, pullback = jax.vjp(losses.pair_margins, margins, cosines)
  released = losses.pair_margins(margins, cosines, rule='released')
  weights = jnp.arange(1, len(margins) + 1, dtype=jnp.float32)
  return paper, released, pullback(weights)


@pytest.mark.parametrize('cosines, margins, paper, released', EXAMPLES)
def test_pairing_by_hand(cosines, margins, paper, released):
  # The order in which they were drawn must not matter.
  for drawn in (margins, margins[1:] + margins[:1]):
    *results, _ = pair(np.float32(drawn), np.float32(cosines))
    for got, want in zip(results, (paper, released), strict=True):
      np.testing.assert_array_equal(got, np.float32(want))


def test_pairing_by_default():
  trace = lambda **rule: str(
    jax.make_jaxpr(functools.partial(losses.pair_margins, **rule))(
      *map(np.float32, EXAMPLES[0][:2])
    )
  )
  assert trace() == trace(rule='paper') != trace(rule='released')


@pytest.mark.parametrize('size', [1, 2, 128])
def test_paper_pairing_is_monotone_and_released_is_the_published_index(size):
  rng = np.random.default_rng(size)
  cosines = rng.uniform(-1, 1, size).astype(np.float32)
  margins = rng.normal(0.5, 0.05, size).astype(np.float32)
  paper, released, _ = map(np.asarray, pair(margins, cosines))

  np.testing.assert_array_equal(np.sort(paper), np.sort(margins))
  # Rank correlation -1: as the cosines increase the margins decrease.
  assert np.all(np.diff(paper[np.argsort(cosines)]) < 0)

  order = sorted(range(size), key=lambda i: -cosines[i])
  want = [np.sort(margins)[i] for i in order]
  np.testing.assert_array_equal(released, want)
  assert np.array_equal(paper, released) == (size <= 2)


def test_ties_go_in_index_order():
  got, *_ = pair(np.float32([3, 1, 2, 4]), np.full(4, np.float32(0.5)))
  np.testing.assert_array_equal(got, [1.0, 2.0, 3.0, 4.0])


def test_pairing_under_vmap():
  rng = np.random.default_rng(0)
  cosines = rng.uniform(-1, 1, (3, 128)).astype(np.float32)
  margins = rng.normal(0.5, 0.05, (3, 128)).astype(np.float32)
  run = jax.jit(jax.vmap(losses.pair_margins), compiler_options=QUICK)
  want = [pair(margins[i], cosines[i])[0] for i in range(3)]
  np.testing.assert_array_equal(run(margins, cosines), np.stack(want))


def test_gradient_goes_to_the_margins_only():
  cosines, margins = map(np.float32, EXAMPLES[0][:2])
  _, _, (to_margins, to_cosines) = pair(margins, cosines)
  # .30 went to sample 1, .32 to 3, .38 to 2, .40 to 0.
  np.testing.assert_array_equal(to_margins, [2.0, 4.0, 3.0, 1.0])
  np.testing.assert_array_equal(to_cosines, np.zeros(4))


def test_wrong_pairing_arguments_are_refused():
  x = np.zeros(3)
  with pytest.raises(ValueError, match="'paper', 'released'.*'rank'"):
    losses.pair_margins(x, x, rule='rank')
  with pytest.raises(ValueError, match=r'\(3,\) and \(2,\)'):
    losses.pair_margins(x, x[:2])
  with pytest.raises(ValueError, match=r'\(3, 1\)'):
    losses.pair_margins(x[:, None], x[:, None])
