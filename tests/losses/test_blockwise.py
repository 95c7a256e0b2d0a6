# SPDX-License-Identifier: Apache-2.0
"""The block-wise softmax against the dense one, in value, bits and bytes.

`dense` is autodiff through `cosines` and the named losses, which have their
own reference in NumPy. In float64 the two agree to rounding. In float32 the
block-wise form is held against the dense one in float64.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from elasticface_jax import losses
from elasticface_jax.losses import blockwise
from elasticface_jax.losses.sampling import AllClasses
from elasticface_jax.losses.trees import Devices, tree_sum_scatter

ARC, COS, THROUGH = VARIANTS = [
  {'kind': 'arc', 'gradient': 'exact'},
  {'kind': 'cos', 'gradient': 'exact'},
  {'kind': 'arc', 'gradient': 'straight_through'},
]


def batch(size=9, classes=9, dim=6, seed=0):
  """Embeddings, class centres, labels, margins, d objective / d loss."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  labels[: size // 3] = labels[0]
  centers = rng.normal(size=(classes, dim))
  # Some samples near their class centre, some far; lengths of all sorts.
  near = rng.uniform(0, 2, (size, 1))
  embeddings = near * centers[labels] + rng.normal(size=(size, dim))
  embeddings *= 10 ** rng.uniform(-1, 1, (size, 1))
  centers *= 10 ** rng.uniform(-1, 1, (classes, 1))
  margins = rng.normal(0.4, 0.1, size)
  cotangents = rng.normal(size=size)
  narrow = lambda x: x.astype(np.float32)  # Both precisions get these numbers.
  return (
    *map(narrow, (embeddings, centers)),
    labels,
    *map(narrow, (margins, cotangents)),
  )


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def dense(embeddings, centers, labels, margins, *, kind, scale, gradient):
  cosines = losses.cosines(embeddings, centers)
  if kind == 'cos':
    return losses.cosface(cosines, labels, margin=margins, scale=scale)
  return losses.arcface(
    cosines, labels, margin=margins, scale=scale, gradient=gradient
  )


@functools.partial(jax.jit, static_argnames=('kind', 'gradient', 'scale', 'K'))
def compiled(
  embeddings, centers, labels, margins, cotangents, *, K=None, **options
):
  if K is None:
    loss = functools.partial(dense, **options)
  else:
    loss = functools.partial(
      losses.blockwise_margin_softmax, num_blocks=K, **options
    )
  values, pullback = jax.vjp(
    lambda e, c, m: loss(e, c, labels, m), embeddings, centers, margins
  )
  return values, *pullback(cotangents)


def run(*arrays, **options):
  """Loss, and gradients of embeddings, centres and margins."""
  return [np.asarray(x) for x in compiled(*arrays, **options)]


def run_wide(arrays, **options):
  """The same in float64."""
  arrays = [x if x.dtype == int else np.float64(x) for x in arrays]
  with jax.enable_x64(True):
    results = run(*arrays, **options)
  assert all(x.dtype == np.float64 for x in results)
  return results


def check(got, want, relative):
  names = 'loss', 'embeddings', 'centers', 'margins'
  for name, x, y in zip(names, got, want, strict=False):
    error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
    assert error <= relative, (name, error)


@pytest.mark.parametrize(
  'size, classes, num_blocks, variant',
  [
    (1, 1, 1, ARC),
    (1, 2, 2, ARC),
    (9, 9, 9, ARC),
    # Two classes a block; one in the fifth, and the sixth is all padding.
    *((9, 9, 6, variant) for variant in VARIANTS),
  ],
)
def test_float64_is_the_dense_loss(size, classes, num_blocks, variant):
  arrays = batch(size, classes)
  want = run_wide(arrays, scale=20.0, **variant)
  got = run_wide(arrays, scale=20.0, K=num_blocks, **variant)
  assert classes < 3 or want[0].max() > 1
  check(got, want, 1e-12)


@pytest.mark.parametrize(
  'variant, scale, num_blocks',
  [(ARC, 64.0, 3), (COS, 64.0, 20), (ARC, 1000.0, 1)],
)
def test_float32_is_the_dense_loss_to_rounding(variant, scale, num_blocks):
  arrays = batch(32, 20, 16, seed=1)
  want = run_wide(arrays, scale=scale, **variant)
  got = run(*arrays, scale=scale, K=num_blocks, **variant)
  assert all(x.dtype == np.float32 for x in got)
  check(got, want, 5e-6)


def test_zero_huge_tiny_and_aligned_vectors():
  embeddings, centers, labels, margins, cotangents = batch()
  lengths = np.float32([0, 3e38, 1e-36, 1, 1, 1, 1, 1, 1])[:, None]
  embeddings = lengths * unit(embeddings)
  centers = lengths[::-1] * unit(centers)
  arrays = embeddings, centers, labels, margins, cotangents
  got = run(*arrays, scale=64.0, K=4, **ARC)
  want = run(*arrays, scale=64.0, **ARC)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for x, y in zip(got[1:3], want[1:3], strict=True):
    # The gradient goes with 1 / length: each row by itself.
    largest = np.abs(y).max(axis=1, keepdims=True)
    assert np.all(np.abs(x - y) <= 1e-4 * largest)
  np.testing.assert_array_equal(got[1][0], np.zeros(6))
  np.testing.assert_array_equal(got[2][8], np.zeros(6))

  # Cosines of 1 and -1, where the slope of an arccos is infinite.
  embeddings[:5], embeddings[5:] = centers[labels[:5]], -centers[labels[5:]]
  arrays = embeddings, centers, labels, margins, cotangents
  for x in run(*arrays, scale=64.0, K=4, **ARC):
    assert np.all(np.isfinite(x))


def test_narrow_vectors_are_widened_first():
  embeddings, *others = batch()
  embeddings = embeddings.astype(jnp.bfloat16)
  got = run(embeddings, *others, scale=64.0, K=4, **COS)
  want = run(embeddings.astype(np.float32), *others, scale=64.0, K=4, **COS)
  assert got[1].dtype == jnp.bfloat16
  for x, y in zip(got, want, strict=True):
    np.testing.assert_array_equal(x, y.astype(x.dtype))
    assert x is got[1] or x.dtype == np.float32


def test_the_wider_of_two_dtypes_counts():
  embeddings, *others, cotangents = batch()
  with jax.enable_x64(True):
    got = run(
      np.float64(embeddings),
      *others,
      np.float64(cotangents),
      scale=20.0,
      K=4,
      **COS,
    )
  assert [x.dtype.name for x in got[:3]] == ['float64', 'float64', 'float32']
  want = run_wide(batch(), scale=20.0, **COS)
  check(got[:2], want, 1e-12)


def test_labels_narrower_than_the_classes():
  embeddings, centers, _, *others = batch(6, 300)
  # In eight bits class 300 is class 44 again.
  labels = np.array([0, 255, 44, 7, 255, 100])
  loss = functools.partial(run, scale=64.0, K=3, **COS)
  got = loss(embeddings, centers, labels.astype(np.uint8), *others)
  want = loss(embeddings, centers, labels, *others)
  for x, y in zip(got, want, strict=True):
    np.testing.assert_array_equal(x, y)


def test_grad_of_vmap_and_one_margin_for_all():
  embeddings, centers, labels, margins, cotangents = batch(8)
  halves = [x.reshape(2, 4, *x.shape[1:]) for x in (embeddings, labels)]
  weights = cotangents.reshape(2, 4)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
  def by_halves(embeddings, centers, margin):
    loss = jax.vmap(
      lambda e, y: losses.blockwise_margin_softmax(
        e, centers, y, margin, num_blocks=4
      )
    )
    return jnp.sum(loss(embeddings, halves[1]) * weights)

  value, got = by_halves(halves[0], centers, 0.5)
  got = [np.asarray(x) for x in got]
  margins = np.full(8, 0.5, np.float32)
  want = run(
    embeddings, centers, labels, margins, cotangents, scale=64.0, K=4, **ARC
  )
  np.testing.assert_allclose(value, want[0] @ cotangents, rtol=1e-5)
  got = want[0], got[0].reshape(8, -1), got[1], got[2]
  check(got, [*want[:3], want[3].sum()], 1e-5)


def test_four_products_and_all_in_full_precision_on_accelerators():
  arrays = batch()
  program = compiled.lower(*arrays, scale=64.0, K=3, **ARC).as_text()
  products = [x for x in program.splitlines() if 'dot_general' in x]
  # Forward; again, and the two gradients.
  assert len(products) == 4
  for product in products:
    assert 'precision = [HIGHEST, HIGHEST]' in product, product


def test_the_defaults_are_an_exact_arc_of_scale_64():
  arrays = batch()[:4]
  loss = functools.partial(losses.blockwise_margin_softmax, num_blocks=3)
  assert str(jax.make_jaxpr(loss)(*arrays)) == str(
    jax.make_jaxpr(functools.partial(loss, scale=64.0, **ARC))(*arrays)
  )


def test_wrong_arguments_are_refused():
  def refused(error, match, **changes):
    arrays = {
      'embeddings': np.ones((4, 3)),
      'class_centers': np.ones((7, 3)),
      'labels': np.zeros(4, int),
      'margins': 0.5,
    }
    options = {'num_blocks': 2}
    for name, value in changes.items():
      (arrays if name in arrays else options)[name] = value
    loss = functools.partial(losses.blockwise_margin_softmax, **options)
    with pytest.raises(error, match=match):
      jax.eval_shape(loss, **arrays)

  expected = r'expected embeddings \[B, D\], class_centers \[C, D\], labels.*'
  for name, shape, shown in [
    ('embeddings', (3,), r'not \(3,\), \(7, 3\)'),
    ('embeddings', (4, 2), r'\(4, 2\), \(7, 3\)'),
    ('class_centers', (7, 3, 1), r'\(7, 3, 1\)'),
    ('margins', (3,), r'and \(3,\)'),
    ('margins', (4, 1), r'and \(4, 1\)'),
  ]:
    refused(ValueError, expected + shown, **{name: np.ones(shape)})
  for shape in ((5,), (4, 1), ()):
    refused(ValueError, expected, labels=np.zeros(shape, int))
  for count in (0, -1, 8):
    refused(ValueError, rf'num_blocks.*\[1, 7\], not {count}', num_blocks=count)
  refused(ValueError, "'arc' or 'cos', not 'sphere'", kind='sphere')
  for kind in ('arc', 'cos'):
    refused(
      ValueError, "'straight_through', not 'none'", gradient='none', kind=kind
    )
  refused(TypeError, 'labels must be integer.*float32', labels=np.zeros(4))
  whole = np.ones((4, 3), int)
  refused(TypeError, 'embeddings must be floating.*int32', embeddings=whole)
  refused(TypeError, 'class_centers must be floating', class_centers=whole)


# The parts, as the training step uses them.


def test_what_is_kept_of_the_softmax():
  embeddings, centers, labels, _, _ = batch()
  cosines = np.float64(unit(embeddings)) @ unit(centers).T
  head = blockwise.Head(num_classes=9, scale=20.0, kind='cos')

  @jax.jit
  def run(embeddings, blocks, labels):
    classes = AllClasses(0, 2)
    statistics = blockwise.block_statistics(
      embeddings, blocks, labels, head, classes=classes
    )
    assert statistics.target.shape == (6, 9)
    # Margins that are the target's cosines, so that it is seen who gets what.
    return blockwise.margin_softmax(statistics, lambda cosines: cosines, head)

  blocks = blockwise.to_blocks(centers, 6)
  softmax = run(unit(embeddings), blocks, labels.astype(np.int32))
  each = np.arange(9)
  target = cosines[each, labels]
  logits = 20 * cosines
  logits[each, labels] = 0
  probabilities = np.exp(logits)
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  others = np.where(labels[:, None] == each, -np.inf, cosines)
  miss = 1 - probabilities[each, labels]
  for got, want in [
    (softmax.target_cosines, target),
    (softmax.margins, target),
    (softmax.largest_other, others.max(axis=1)),
    (softmax.largest_probability, probabilities[each, others.argmax(axis=1)]),
    (softmax.target_gradients, -20 * miss),
    (softmax.margin_gradients, 20 * miss),
    (softmax.loss, -np.log1p(-miss)),
  ]:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@functools.cache
def on_devices(count):
  """One step of the head on `count` devices, cut as the training step is."""
  embeddings, centers, labels, _, _ = batch(16, 61, 16)
  blocks = np.asarray(blockwise.to_blocks(centers, 8))
  head = blockwise.Head(num_classes=61, scale=64.0)
  devices = Devices('devices', count)
  mesh = jax.make_mesh(
    (count,),
    ('devices',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )

  def step(embeddings, blocks, labels, key, trip_count):
    slots = {'centers': blocks, 'gradient': jnp.zeros_like(blocks)}
    where = {
      'classes': AllClasses(devices.index() * blocks.shape[0], 8),
      'trip_count': trip_count,
    }
    embeddings = devices.gather(embeddings)
    labels = devices.gather(labels)
    softmax = blockwise.margin_softmax(
      jax.tree.map(
        devices.gather,
        blockwise.block_statistics(embeddings, blocks, labels, head, **where),
      ),
      lambda cosines: losses.sample_margins(
        key, cosines.shape, mean=0.5, std=0.05
      ),
      head,
    )

    def descend(slots, gradient):
      moved = slots['centers'] - 0.1 * (gradient + 0.01 * slots['centers'])
      return {'centers': moved, 'gradient': gradient}

    parts, slots, squares = blockwise.block_gradients(
      embeddings,
      slots,
      labels,
      softmax,
      jnp.full(16, 1 / 16),
      head,
      centers=lambda slots: slots['centers'],
      update=descend,
      **where,
    )
    results = {'gradient': tree_sum_scatter(parts, devices), 'squares': squares}
    return softmax.loss, slots | {'embeddings': results}

  P = PartitionSpec
  run = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(P('devices'), P('devices'), P('devices'), P(), P()),
    out_specs=(P(), P('devices')),
    check_vma=False,
  )
  trip_count = np.asarray(8 // count, np.int32)
  arrays = unit(embeddings), blocks, labels, jax.random.key(3), trip_count
  compiled = jax.jit(run).lower(*arrays).compile()
  loss, results = compiled(*arrays)
  results = jax.tree.map(np.asarray, {'loss': loss} | results)
  return results, compiled.as_text()


@pytest.mark.parametrize('count', [2, 4, 8])
def test_the_bits_do_not_tell_the_number_of_devices(count):
  (got, program), (want, program_of_one) = on_devices(count), on_devices(1)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  # Nor does the program: one block is a loop too, and read out of a buffer.
  for part in ('while', 'dynamic-slice', 'dynamic-update-slice'):
    uses = [x.count(f' {part}(') for x in (program, program_of_one)]
    assert uses[0] == uses[1] > 1, part


def test_the_sharded_head_is_the_dense_loss():
  got, _ = on_devices(8)
  embeddings, centers, labels, _, _ = batch(16, 61, 16)
  margins = losses.sample_margins(jax.random.key(3), (16,), mean=0.5, std=0.05)
  arrays = unit(embeddings), centers, labels, np.asarray(margins)
  want = run_wide((*arrays, np.full(16, 1 / 16)), scale=64.0, **ARC)
  # Here the gradient of the unit embeddings, there of any: without the part
  # along them.
  gradient = got['embeddings']['gradient']
  along = np.sum(arrays[0] * gradient, axis=1, keepdims=True)
  across = gradient - arrays[0] * along
  gradient = got['gradient'].reshape(64, 16)
  check([got['loss'], across, gradient[:61]], want[:3], 5e-6)
  np.testing.assert_array_equal(gradient[61:], np.zeros((3, 16)))
  np.testing.assert_allclose(
    got['embeddings']['squares'],
    np.square(gradient).reshape(8, -1).sum(axis=1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    got['centers'].reshape(64, 16)[:61],
    centers - 0.1 * (gradient[:61] + 0.01 * centers),
    rtol=1e-5,
    atol=1e-6,
  )


# Memory.


def compiled_gradient(loss, size, dim, classes):
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  labels = jax.ShapeDtypeStruct((size,), jnp.int32)
  gradients = jax.grad(lambda *arrays: loss(*arrays).sum(), (0, 1, 3))
  return (
    jax.jit(gradients)
    .lower(shape(size, dim), shape(classes, dim), labels, shape(size))
    .compile()
  )


def largest_array(compiled):
  """Elements of the largest array named anywhere in the program."""
  shapes = re.findall(r'\w\[([\d,]+)\]', compiled.as_text())
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


@pytest.mark.parametrize('num_blocks', [4, 16, 64])
def test_memory_grows_with_a_block_and_not_with_the_matrix(num_blocks):
  size, dim, classes = 256, 16, 65_536
  compiled = compiled_gradient(
    functools.partial(losses.blockwise_margin_softmax, num_blocks=num_blocks),
    size,
    dim,
    classes,
  )
  logits = 4 * size * classes // num_blocks
  centers = 4 * classes * dim // num_blocks
  # Of the embeddings' gradient, sums of 1, 2, 4, ... blocks.
  sums = 4 * (math.log2(num_blocks) + 2) * size * dim
  statistics = 3 * 4 * num_blocks * size
  temporary = compiled.memory_analysis().temp_size_in_bytes
  # A block's logits twice, and its centres twice.
  assert temporary <= 2 * logits + 2 * centers + sums + statistics + 2**16
  assert largest_array(compiled) < size * classes


def test_the_dense_form_holds_the_matrix():
  size, dim, classes = 256, 16, 65_536
  loss = lambda e, c, y, m: losses.arcface(losses.cosines(e, c), y, margin=m)
  compiled = compiled_gradient(loss, size, dim, classes)
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary > 4 * size * classes
  assert largest_array(compiled) == size * classes
