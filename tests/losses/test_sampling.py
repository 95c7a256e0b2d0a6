# SPDX-License-Identifier: Apache-2.0
"""Sampled classes: their draw, its frequencies, and the softmax over them."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import tree_sum
from elasticface_jax.losses import _blocks, _sampling
from elasticface_jax.losses._sampling import AllClasses

from .programs import QUICK
from .reference import reference

# Classes, blocks, samples, rate. In turn: usual, with a last block of 13 real
# classes; more samples than a block has classes; blocks of padding alone; one
# block; all classes.
CASES = [
  (93, 6, 8, 0.3),
  (93, 6, 40, 0.3),
  (9, 6, 3, 0.5),
  (50, 1, 4, 0.1),
  (93, 6, 8, 1.0),
]


@functools.cache
def drawer(classes, blocks, rate, count=None):
  """The compiled draw of `count` blocks, from a given one on."""
  return jax.jit(
    lambda key, labels, first_block, trip_count: _sampling.draw(
      key,
      labels,
      num_classes=classes,
      num_blocks=blocks,
      sample_rate=rate,
      count=count or blocks,
      first_block=first_block,
      trip_count=trip_count,
    ),
    compiler_options=QUICK,
  )


def draw(classes, blocks, labels, rate, key):
  sample = drawer(classes, blocks, rate)(key, labels, 0, blocks)
  return jax.tree.map(np.asarray, sample)


def make_labels(classes, size, seed=0):
  """Half of them from the first classes, so that a block has many."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  labels[: size // 2] = rng.integers(0, min(classes, 14), size // 2)
  return labels.astype(np.int32)


@pytest.mark.parametrize('classes, blocks, size, rate', CASES)
def test_who_is_drawn(classes, blocks, size, rate):
  c = math.ceil(classes / blocks)
  for seed in range(3):
    labels = make_labels(classes, size, seed)
    sample = draw(classes, blocks, labels, rate, jax.random.key(seed))
    slots = min(c, max(math.ceil(Fraction(str(rate)) * c), size))
    assert sample.places.shape == sample.classes.shape
    assert sample.places.shape == (blocks, slots)
    assert sample.places.dtype == sample.classes.dtype == np.int32
    for b in range(blocks):
      block = set(range(b * c, min((b + 1) * c, classes)))
      own = block & set(labels.tolist())
      share = math.ceil(Fraction(str(rate)) * len(block))
      places, numbers = sample.places[b], sample.classes[b]
      taken = numbers[numbers < classes]
      assert len(taken) == max(share, len(own))
      assert own <= set(taken.tolist()) <= block
      # In rising order, each once, and the places belong to the classes.
      assert np.all(np.diff(places) > 0)
      np.testing.assert_array_equal(places[: len(taken)] + b * c, taken)
      # No class: outside of the block, and one number.
      assert np.all(places[len(taken) :] >= c)
      assert np.all(numbers[len(taken) :] == classes)


def test_rate_1_takes_all_in_order():
  labels = make_labels(93, 8)
  sample = draw(93, 6, labels, 1.0, jax.random.key(0))
  want = np.minimum(np.arange(96), 93).reshape(6, 16)
  np.testing.assert_array_equal(sample.classes, want)


def test_larger_blocks_are_multiples_of_8():
  for classes, blocks, want in [
    (85_742, 16, 5_360),
    (85_742, 32, 2_680),  # 2,679.4, rounded up once.
    (10_000_000, 512, 19_536),
    (200, 8, 25),
    (630, 10, 63),
    (640, 10, 64),
    (641, 10, 72),
  ]:
    assert _sampling.block_size(classes, blocks) == want
    # Blocks hold all classes, and all but the last ones are full.
    shares = _sampling.block_shares(classes, blocks, 1.0)
    assert shares.sum() == classes
    assert set(shares[: classes // want]) == {want}


def test_a_share_is_that_of_the_number_as_written():
  for rate, size, want in [
    (0.1, 30, 3),  # Times 30, more than 3 as floats.
    (0.07, 104, 8),
    (0.1, 31, 4),
    (1e-9, 5, 1),
    (1.0, 5, 5),
  ]:
    np.testing.assert_array_equal(
      _sampling.block_shares(2 * size, 2, rate), want
    )
  # Of real classes: 4, 4, 1, none.
  np.testing.assert_array_equal(_sampling.block_shares(9, 4, 0.5), [2, 2, 2, 0])
  np.testing.assert_array_equal(
    _sampling.block_shares(9, 6, 0.5), [1, 1, 1, 1, 1, 0]
  )


def test_all_negatives_are_drawn_alike():
  classes, blocks, rate, times = 93, 6, 0.3, 10_000
  c = 16
  # Four of the first block's own (its share is 5), one of the last's.
  labels = np.int32([0, 3, 3, 5, 15, 92, 92])
  keys = jax.random.split(jax.random.key(1), times)
  draw_all = jax.jit(
    jax.vmap(
      drawer(classes, blocks, rate).__wrapped__, in_axes=(0, None, None, None)
    )
  )
  drawn = np.asarray(draw_all(keys, labels, 0, blocks).classes)
  often = np.bincount(drawn.reshape(-1), minlength=classes + 1)[:classes]
  want = np.empty(classes)
  for b in range(blocks):
    block = np.arange(b * c, min((b + 1) * c, classes))
    own = np.isin(block, labels)
    share = math.ceil(0.3 * len(block))
    negatives = (share - own.sum()) / (~own).sum()
    want[block] = np.where(own, 1, negatives)
  # Shares of 13 classes and of 16: not far from 0.3 without own ones.
  assert set(np.round(want, 4)) == {0.0833, 0.25, 0.3125, 1}
  deviation = np.sqrt(want * (1 - want) / times)
  assert np.all(np.abs(often / times - want) <= 4.5 * deviation)

  # Two classes of a block: as often together as chance has it, so not always
  # neighbours, and not the same in two blocks.
  has = lambda number: (drawn == number).any(axis=(1, 2))
  together = lambda a, b: (has(a) & has(b)).mean()
  assert together(20, 21) == pytest.approx(5 / 16 * 4 / 15, abs=0.01)
  assert together(20, 36) == pytest.approx((5 / 16) ** 2, abs=0.01)


def test_a_draw_follows_from_key_and_block_alone():
  labels = make_labels(93, 8)
  key = jax.random.key(7)
  whole = draw(93, 6, labels, 0.3, key)
  jax.tree.map(
    np.testing.assert_array_equal, whole, draw(93, 6, labels, 0.3, key)
  )
  other = draw(93, 6, labels, 0.3, jax.random.key(8))
  assert np.any(whole.classes != other.classes)
  for count in (1, 3):
    part_of = drawer(93, 6, 0.3, count)
    for first in range(0, 6, count):
      part = part_of(key, labels, first, count)
      for x, y in zip(part, whole, strict=True):
        np.testing.assert_array_equal(x, y[first : first + count])


# The softmax over a sample.


def problem(
  classes=93,
  blocks=6,
  size=8,
  *,
  kind='arc',
  subcenters=1,
  dim=5,
  seed=0,
  dtype=np.float64,
):
  rng = np.random.default_rng(seed)
  c = math.ceil(classes / blocks)
  embeddings = rng.normal(size=(size, dim))
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  centers = rng.normal(size=(blocks * c, subcenters * dim))
  centers[classes:] = 0
  margins = [rng.normal(0.4, 0.1, size)]
  if kind == 'curricular':
    margins.append(rng.uniform(0.1, 0.9, size))
  return (
    embeddings.astype(dtype),
    centers.reshape(blocks, c, -1).astype(dtype),
    make_labels(classes, size, seed),
    tuple(margin.astype(dtype) for margin in margins),
    rng.normal(size=size).astype(dtype),
  )


def over_blocks(
  embeddings, slots, labels, margins, cotangents, classes, *, head, update
):
  """Loss, gradient of the embeddings, new slots and squares of each block."""
  centers = slots['centers']
  count, dim = len(centers), embeddings.shape[1]
  targets = _blocks.block_target_cosines(embeddings, centers, labels)
  samples = _blocks.Samples(embeddings, labels, targets, margins)
  taken = classes.take(slots, count)
  unit_centers = lambda x: _blocks.unit_centers(x, dim)

  def statistics_of(i):
    unit = unit_centers(loops.read(taken['centers'], i))
    return _blocks.block_statistics(samples, unit, classes.ids(i), head)

  statistics = loops.stack(statistics_of, count)
  softmax = _blocks.join_blocks(statistics, targets, margins, head)
  cotangents = _blocks.weigh(softmax, cotangents)

  def body(i, carry):
    block, taken, parts = carry
    unit, unit_vjp = jax.vjp(unit_centers, block['centers'])
    to_each = _blocks.block_cotangents(
      samples, cotangents, unit, classes.ids(i), head
    )
    to_unit = _blocks.product(to_each, embeddings, (0, 0), 'highest')
    (gradient,) = unit_vjp(to_unit)
    taken = loops.write(taken, i, update(block, gradient))
    part = _blocks.product(to_each, unit, (1, 0), 'highest')
    parts = loops.write(parts, i, (part, jnp.vdot(gradient, gradient)))
    return loops.read(taken, i + 1), taken, parts

  shapes = embeddings, jax.ShapeDtypeStruct((), embeddings.dtype)
  carry = loops.read(taken, 0), taken, loops.empty(count, shapes)
  _, taken, parts = jax.lax.fori_loop(0, count, body, carry)
  to_embeddings, squares = jax.tree.map(lambda x: x[:count], parts)
  slots = classes.put(slots, taken, count)
  return softmax.loss, tree_sum(to_embeddings), slots, squares


def descend(
  embeddings, centers, labels, margins, cotangents, sample, *, head, chosen=None
):
  """`over_blocks` with an update that leaves nothing without a reason."""

  def update(slots, gradient):
    momentum = 0.9 * slots['momentum'] + gradient + 0.1 * slots['centers']
    return {
      'centers': slots['centers'] - momentum,
      'momentum': momentum,
      'gradient': gradient,
    }

  slots = {
    'centers': centers,
    'momentum': centers + 1,
    'gradient': jnp.full_like(centers, -7),
  }
  classes = chosen(centers.shape[1]) if chosen else sample
  return over_blocks(
    embeddings,
    slots,
    labels,
    margins,
    cotangents,
    classes,
    head=head,
    update=update,
  )


compiled = jax.jit(
  descend, static_argnames=('head', 'chosen'), compiler_options=QUICK
)


@pytest.mark.parametrize(
  'kind, subcenters, case',
  [
    ('curricular', 3, CASES[0]),
    ('arc', 1, CASES[1]),
    ('arc', 2, CASES[2]),
    ('cos', 1, CASES[3]),
  ],
)
def test_the_softmax_is_the_dense_one_of_the_sample(kind, subcenters, case):
  classes, blocks, size, rate = case
  arrays = problem(*case[:3], kind=kind, subcenters=subcenters)
  embeddings, centers, labels, margins, cotangents = arrays
  sample = draw(classes, blocks, labels, rate, jax.random.key(2))
  head = _blocks.Head(classes, 20.0, kind)
  with jax.enable_x64(True):
    got = compiled(*arrays, sample, head=head)
    loss, to_embeddings, slots, squares = jax.tree.map(np.asarray, got)
  assert loss.dtype == np.float64

  # In NumPy, with the sampled classes side by side.
  taken = np.unique(sample.classes[:blocks])
  taken = taken[taken < classes]
  weights = centers.reshape(-1, centers.shape[-1])[taken]
  parts = weights.reshape(len(taken), subcenters, -1)
  norms = np.linalg.norm(parts, axis=2, keepdims=True)
  unit = parts / norms
  by_part = np.einsum('bd,nud->bnu', embeddings, unit)
  cosines = by_part.max(axis=2)
  want, to_cosines, _ = reference(
    cosines, np.searchsorted(taken, labels), margins, 20, kind
  )
  np.testing.assert_allclose(loss, want, rtol=1e-9, atol=1e-12)
  to_cosines *= cotangents[:, None]
  # All of it goes to the nearest sub-centre.
  to_parts = to_cosines[:, :, None] * (by_part == cosines[:, :, None])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-11)
  close(to_embeddings, np.einsum('bnu,nud->bd', to_parts, unit))
  gradient = np.einsum('bnu,bd->nud', to_parts, embeddings)
  along = np.sum(gradient * unit, axis=2, keepdims=True)
  gradient = ((gradient - along * unit) / norms).reshape(weights.shape)

  flat = {k: v.reshape(-1, v.shape[-1]) for k, v in slots.items()}
  close(flat['gradient'][taken], gradient)
  momentum = 0.9 * (weights + 1) + gradient + 0.1 * weights
  close(flat['momentum'][taken], momentum)
  close(flat['centers'][taken], weights - momentum)
  close(squares.sum(), np.square(gradient).sum())

  # All others, padding among them, as they were.
  left = np.setdiff1d(np.arange(centers.shape[0] * centers.shape[1]), taken)
  assert np.any(left < classes)
  before = centers.reshape(-1, centers.shape[-1])[left]
  np.testing.assert_array_equal(flat['centers'][left], before)
  np.testing.assert_array_equal(flat['momentum'][left], before + 1)
  np.testing.assert_array_equal(flat['gradient'][left], -7.0)


def test_a_sample_of_all_has_the_bits_of_all():
  arrays = problem(96, dim=16, dtype=np.float32)
  sample = draw(96, 6, arrays[2], 1.0, jax.random.key(2))
  head = _blocks.Head(96, 64.0)
  sampled = compiled(*arrays, sample, head=head)
  chosen = functools.partial(AllClasses, 0)
  plain = compiled(*arrays, None, head=head, chosen=chosen)
  jax.tree.map(np.testing.assert_array_equal, sampled, plain)


def test_no_more_than_the_sample_is_copied_or_multiplied():
  classes, blocks, size, dim = 65_536, 4, 16, 64
  shape = jax.ShapeDtypeStruct

  def step(embeddings, slots, labels, sample):
    _, _, slots, _ = over_blocks(
      embeddings,
      slots,
      labels,
      (jnp.zeros(size),),
      jnp.ones(size),
      sample,
      head=_blocks.Head(classes, 64.0),
      update=lambda slots, g: {
        'centers': slots['centers'] - g,
        'momentum': slots['momentum'] + g,
      },
    )
    return slots

  centers = shape((blocks, classes // blocks, dim), jnp.float32)
  sample = jax.eval_shape(
    drawer(classes, blocks, 0.1),
    jax.random.key(0),
    shape((size,), jnp.int32),
    0,
    blocks,
  )
  compiled = (
    jax.jit(step, donate_argnums=1, compiler_options=QUICK)
    .lower(
      shape((size, dim), jnp.float32),
      {'centers': centers, 'momentum': centers},
      shape((size,), jnp.int32),
      sample,
    )
    .compile()
  )
  one = 4 * sample.places.shape[1] * dim  # Bytes of a block's sampled centres.
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes == 2 * 4 * classes * dim
  # The sample of all blocks' centres and momentum, and what a block takes.
  most = (2 * blocks + 9) * one
  assert memory.temp_size_in_bytes < most < 4 * classes * dim
