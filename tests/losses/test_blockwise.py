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

from elasticface_jax import losses
from elasticface_jax.losses import _blockwise
from elasticface_jax.losses._softmax import margin_softmax
from elasticface_jax.losses._targets import KINDS

# Of each margin of each kind, the mean over the samples and the spread.
MARGINS = {
  'arc': [(0.4, 0.1)],
  'cos': [(0.4, 0.1)],
  'combined': [(1.2, 0.1), (0.3, 0.1), (0.1, 0.1)],
  'sphere': [(1.7, 0.1)],
  'x2': [(-0.9, 0.1), (0.1, 0.1), (0.65, 0.1)],
  'adaface': [(0.0, 0.6), (0.4, 0.1)],
  'magface': [(0.6, 0.1)],
  'curricular': [(0.5, 0.1), (0.3, 0.1)],
}
# Kinds whose margins a named loss takes. Others go through `margin_softmax`
# here, and through their own named loss where their margins are made.
NAMED = {
  'arc': losses.arcface,
  'cos': losses.cosface,
  'combined': losses.combined_margin,
  'sphere': losses.sphereface,
  'x2': losses.x2_softmax,
}


def batch(size=9, classes=9, dim=6, seed=0, kind='arc', subcenters=None):
  """Embeddings, class centres, labels, margins, d objective / d loss."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  labels[: size // 3] = labels[0]
  each = np.arange(size)
  centers = rng.normal(size=(classes, subcenters or 1, dim))
  # Some samples near their class centre, some far; lengths of all sorts.
  near = rng.uniform(-4, 4, (size, 1))
  embeddings = near * centers[labels, each % (subcenters or 1)]
  embeddings += rng.normal(size=(size, dim))
  embeddings *= 10 ** rng.uniform(-1, 1, (size, 1))
  centers *= 10 ** rng.uniform(-1, 1, (classes, subcenters or 1, 1))
  margins = [rng.normal(*spread, size) for spread in MARGINS[kind]]
  cotangents = rng.normal(size=size)
  narrow = lambda x: x.astype(np.float32)  # Both precisions get these numbers.
  return (
    narrow(embeddings),
    narrow(centers if subcenters else centers[:, 0]),
    labels,
    tuple(map(narrow, margins)),
    narrow(cotangents),
  )


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def dense_cosines(embeddings, centers):
  make = losses.cosines if centers.ndim == 2 else losses.subcenter_cosines
  return make(embeddings, centers)


def dense(
  embeddings, centers, labels, margins, *, kind, scale=64.0, gradient='exact'
):
  cosines = dense_cosines(embeddings, centers)
  if kind not in NAMED:
    return margin_softmax(cosines, labels, *margins, kind=kind, scale=scale)
  names = KINDS[kind].margins
  options = dict(zip(names, margins, strict=True)) | {'scale': scale}
  if gradient != 'exact':
    options['gradient'] = gradient
  return NAMED[kind](cosines, labels, **options)


def loss_and_gradients(
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
  return values, pullback(cotangents)


# Float64 is for the mathematics, and compiled in less time; float32 is compiled
# as it is for users.
QUICK = {'xla_backend_optimization_level': 0}
STATIC = 'kind', 'gradient', 'scale', 'K'
compiled = jax.jit(loss_and_gradients, static_argnames=STATIC)
compiled_quickly = jax.jit(
  loss_and_gradients, static_argnames=STATIC, compiler_options=QUICK
)


def run(*arrays, function=compiled, **options):
  """Loss, and gradients of embeddings, centres and each margin."""
  return [np.asarray(x) for x in jax.tree.leaves(function(*arrays, **options))]


def widen(arrays):
  wide = lambda x: np.float64(x) if x.dtype == np.float32 else x
  return jax.tree.map(wide, arrays)


def run_wide(arrays, **options):
  """The same in float64."""
  with jax.enable_x64(True):
    results = run(*widen(arrays), function=compiled_quickly, **options)
  assert all(x.dtype == np.float64 for x in results)
  return results


def check(got, want, relative):
  names = 'loss', 'embeddings', 'centers', *3 * ['a margin']
  for name, x, y in zip(names, got, want, strict=False):
    assert x.shape == y.shape, name
    error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
    assert error <= relative, (name, error)


# With 9 classes, 4 blocks are of three, the last of padding alone; 6 of two,
# the fifth half padding and the sixth all.
VARIANTS = [
  ('arc', 'exact', None, 9),
  ('cos', 'exact', None, 6),
  ('combined', 'exact', None, 3),
  ('sphere', 'exact', None, 6),
  ('x2', 'exact', None, 5),
  ('adaface', 'exact', None, 1),
  ('magface', 'exact', None, 6),
  ('curricular', 'exact', None, 6),
  ('arc', 'straight_through', 3, 6),
  ('combined', 'straight_through', 3, 1),
  ('sphere', 'straight_through', None, 4),
  ('x2', 'straight_through', 2, 6),
]


@pytest.mark.parametrize('kind, gradient, subcenters, num_blocks', VARIANTS)
def test_float64_is_the_dense_loss(kind, gradient, subcenters, num_blocks):
  arrays = batch(12, kind=kind, subcenters=subcenters)
  options = {'kind': kind, 'gradient': gradient, 'scale': 20.0}
  want = run_wide(arrays, **options)
  got = run_wide(arrays, **options, K=num_blocks)
  assert len(want) == len(got) == 3 + len(KINDS[kind].margins)
  assert want[0].max() > 1
  check(got, want, 1e-11)
  # Of all numbers that go in, t alone is not learned from.
  zero = [i for i, x in enumerate(got) if not np.any(x)]
  assert zero == ([4] if kind == 'curricular' else [])


def test_every_kind_is_tried_on_all_its_branches():
  assert {kind for kind, *_ in VARIANTS} == set(KINDS)
  for kind in KINDS:
    embeddings, centers, labels, (m, *_), _ = batch(12, kind=kind)
    cosines = np.float64(unit(embeddings)) @ unit(centers).T
    theta = np.arccos(cosines[np.arange(12), labels])
    hard = cosines > np.cos(theta + m)[:, None]
    for branch in {
      'sphere': [m * theta > np.pi],
      'adaface': [theta + m < 0, theta + m > np.pi],
      'magface': [theta < np.pi / 2],
      'curricular': [theta + m > np.pi, hard[labels[:, None] != np.arange(9)]],
    }.get(kind, ()):
      assert 0 < branch.mean() < 1, kind


def test_one_sample_of_one_class():
  for x in run(*batch(1, 1), kind='arc', K=1):
    np.testing.assert_array_equal(x, np.zeros_like(x))


@pytest.mark.parametrize(
  'kind, scale, num_blocks',
  [('arc', 64.0, 3), ('curricular', 64.0, 7), ('arc', 1000.0, 1)],
)
def test_float32_is_the_dense_loss_to_rounding(kind, scale, num_blocks):
  arrays = batch(32, 20, 16, seed=1, kind=kind)
  want = run_wide(arrays, scale=scale, kind=kind)
  got = run(*arrays, scale=scale, kind=kind, K=num_blocks)
  assert all(x.dtype == np.float32 for x in got)
  check(got, want, 5e-6)


def test_one_subcenter_is_the_plain_path_to_the_last_bit():
  embeddings, centers, *others = batch(32, 20, 16, seed=1, kind='curricular')
  options = {'kind': 'curricular', 'scale': 64.0, 'K': 7}
  got = run(embeddings, centers[:, None], *others, **options)
  want = run(embeddings, centers, *others, **options)
  got[2] = got[2].reshape(centers.shape)
  jax.tree.map(np.testing.assert_array_equal, got, want)


# Margins as users make them, beside the loss that makes them itself.


def elastic_plus(e, c, y):
  key = jax.random.key(1)
  drawn = losses.sample_margins(key, y.shape, mean=0.5, std=0.2)
  margins = losses.pair_margins(drawn, losses.target_cosines(e, c, y))
  return {'kind': 'cos', 'margins': margins}, 0.0, None


def elastic_plus_dense(e, c, y):
  key = jax.random.key(1)
  loss = losses.elastic_cosface_plus(
    losses.cosines(e, c), y, key=key, margin=0.5, margin_std=0.2, scale=20.0
  )
  return loss, 0.0, None


def adaface(e, c, y):
  margins, state = losses.adaface_margins(
    losses.norms(e), losses.adaface_init(), ema_rate=0.7
  )
  return {'kind': 'adaface', 'margins': margins}, 0.0, state


def adaface_dense(e, c, y):
  loss, state = losses.adaface(
    losses.cosines(e, c),
    y,
    losses.norms(e),
    losses.adaface_init(),
    ema_rate=0.7,
    scale=20.0,
  )
  return loss, 0.0, state


def magface(e, c, y):
  margins, regularizer = losses.magface_margins(losses.norms(e))
  return {'kind': 'magface', 'margins': margins}, regularizer, None


def magface_dense(e, c, y):
  cosines = losses.cosines(e, c)
  return *losses.magface(cosines, y, losses.norms(e), scale=20.0), None


def curricularface(e, c, y):
  state = losses.CurricularFaceState(jnp.float32(0.3))
  margins, state = losses.curricularface_margins(
    losses.target_cosines(e, c, y), state, ema_rate=0.5
  )
  return {'kind': 'curricular', 'margins': margins}, 0.0, state


def curricularface_dense(e, c, y):
  state = losses.CurricularFaceState(jnp.float32(0.3))
  loss, state = losses.curricularface(
    dense_cosines(e, c), y, state, ema_rate=0.5, scale=20.0
  )
  return loss, 0.0, state


@pytest.mark.parametrize(
  'make, dense_loss, subcenters',
  [
    (elastic_plus, elastic_plus_dense, None),
    (adaface, adaface_dense, None),
    (magface, magface_dense, None),
    (curricularface, curricularface_dense, 3),
  ],
)
def test_margins_that_depend_on_the_batch(make, dense_loss, subcenters):
  embeddings, centers, labels, _, weights = batch(12, 9, subcenters=subcenters)
  # Lengths below, between and above those that MagFace tells apart.
  lengths = np.linspace(4, 130, 12)[:, None]
  arrays = lengths * unit(np.float64(embeddings)), np.float64(centers)

  def blockwise_loss(e, c, y):
    made, regularizer, state = make(e, c, y)
    loss = losses.blockwise_margin_softmax(
      e, c, y, **made, scale=20.0, num_blocks=4
    )
    return loss, regularizer, state

  def evaluate(loss):
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def objective(e, c):
      each, regularizer, state = loss(e, c, labels)
      return jnp.sum(weights * (each + regularizer)), (each, state)

    with jax.enable_x64(True):
      run = jax.jit(objective, compiler_options=QUICK)
      (_, (each, state)), gradients = run(*arrays)
      return jax.tree.map(np.asarray, ([each, *gradients], state))

  (got, state), (want, state_of_dense) = map(
    evaluate, (blockwise_loss, dense_loss)
  )
  check(got, want, 1e-11)
  for x, y in zip(state or (), state_of_dense or (), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)
  # Along an embedding its length alone changes.
  along = np.abs(np.sum(got[1] * arrays[0], axis=1))
  inside = (lengths[:, 0] > 10) & (lengths[:, 0] < 110)
  is_felt = inside if make is magface else np.zeros(12, bool)
  assert 0 < inside.sum() < 12
  np.testing.assert_array_equal(along > 1e-9, is_felt)


# Numbers at the ends of their range, and narrow ones.


def test_zero_huge_tiny_and_aligned_vectors():
  embeddings, centers, labels, margins, cotangents = batch()
  lengths = np.float32([0, 3e38, 1e-36, 1, 1, 1, 1, 1, 1])[:, None]
  embeddings = lengths * unit(embeddings)
  centers = lengths[::-1] * unit(centers)
  arrays = embeddings, centers, labels, margins, cotangents
  got = run(*arrays, kind='arc', K=4)
  want = run(*arrays, kind='arc')
  np.testing.assert_allclose(got[0], want[0], rtol=3e-5)
  for x, y in zip(got[1:3], want[1:3], strict=True):
    # The gradient goes with 1 / length: each row by itself.
    largest = np.abs(y).max(axis=1, keepdims=True)
    assert np.all(np.abs(x - y) <= 1e-4 * largest)
  np.testing.assert_array_equal(got[1][0], np.zeros(6))
  np.testing.assert_array_equal(got[2][8], np.zeros(6))

  # Cosines of 1 and -1, where the slope of an arccos is infinite.
  embeddings[:5], embeddings[5:] = centers[labels[:5]], -centers[labels[5:]]
  arrays = embeddings, centers, labels, margins, cotangents
  for x in run(*arrays, kind='arc', K=4):
    assert np.all(np.isfinite(x))


def test_narrow_vectors_are_widened_first():
  embeddings, *others = batch()
  embeddings = embeddings.astype(jnp.bfloat16)
  got = run(embeddings, *others, kind='arc', K=4)
  want = run(embeddings.astype(np.float32), *others, kind='arc', K=4)
  assert got[1].dtype == jnp.bfloat16
  for x, y in zip(got, want, strict=True):
    np.testing.assert_array_equal(x, y.astype(x.dtype))
    assert x is got[1] or x.dtype == np.float32


def test_the_wider_of_two_dtypes_counts():
  embeddings, *others, cotangents = batch()
  with jax.enable_x64(True):
    wide = np.float64(embeddings), *others, np.float64(cotangents)
    got = run(*wide, function=compiled_quickly, kind='cos', K=4)
  assert [x.dtype.name for x in got[:3]] == ['float64', 'float64', 'float32']
  want = run_wide(batch(), kind='cos')
  check(got[:2], want, 1e-12)
  # As well where the centres are the wider.
  with jax.enable_x64(True):
    embeddings, centers, *others = batch()
    both = embeddings, np.float64(centers)
    loss = functools.partial(losses.blockwise_margin_softmax, num_blocks=4)
    assert jax.eval_shape(loss, *both, *others[:2]).dtype == np.float64
    targets = jax.eval_shape(losses.target_cosines, *both, others[0])
    assert targets.dtype == np.float64


def test_labels_narrower_than_the_classes():
  embeddings, centers, _, *others = batch(6, 300)
  # In eight bits class 300 is class 44 again.
  labels = np.array([0, 255, 44, 7, 255, 100])
  narrow = labels.astype(np.uint8)
  got = run(embeddings, centers, narrow, *others, kind='cos', K=3)
  want = run(embeddings, centers, labels, *others, kind='cos')
  check(got, want, 1e-5)


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
  margins = (np.full(8, 0.5, np.float32),)
  want = run(embeddings, centers, labels, margins, cotangents, kind='arc')
  np.testing.assert_allclose(value, want[0] @ cotangents, rtol=1e-5)
  got = want[0], got[0].reshape(8, -1), got[1], got[2]
  check(got, [*want[:3], want[3].sum()], 1e-5)


@pytest.mark.parametrize('kind, subcenters', [('curricular', None), ('arc', 3)])
def test_four_products_and_all_in_full_precision_on_accelerators(
  kind, subcenters
):
  arrays = batch(10, kind=kind, subcenters=subcenters)
  program = compiled.lower(*arrays, kind=kind, K=3).as_text()
  products = [x for x in program.splitlines() if 'dot_general' in x]
  # Forward; again, and the two gradients.
  assert len(products) == 4
  for product in products:
    assert 'precision = [HIGHEST, HIGHEST]' in product, product
    # B x c x D, of three classes a block.
    dims = re.findall(r'\d+(?=x)', product.split(' : ')[1])
    assert set(map(int, dims)) == {10, 3 * (subcenters or 1), 6}


def test_the_defaults_are_an_exact_arc_of_scale_64():
  embeddings, centers, labels, (margins,), _ = batch()
  loss = functools.partial(losses.blockwise_margin_softmax, num_blocks=3)
  stated = functools.partial(loss, scale=64.0, kind='arc', gradient='exact')
  default, stated, tuple_of_one = (
    str(jax.make_jaxpr(f)(embeddings, centers, labels, m))
    for f, m in ((loss, margins), (stated, margins), (stated, (margins,)))
  )
  assert default == stated == tuple_of_one


def refused(function, error, match, changes, **options):
  """Calls with one argument changed, and reads the complaint."""
  arrays = {
    'embeddings': np.ones((4, 3)),
    'class_centers': np.ones((7, 3)),
    'labels': np.zeros(4, int),
  }
  with pytest.raises(error, match=match):
    jax.eval_shape(functools.partial(function, **options), **arrays | changes)


@pytest.mark.parametrize(
  'function, options',
  [
    (losses.target_cosines, {}),
    (losses.blockwise_margin_softmax, {'margins': 0.5, 'num_blocks': 2}),
  ],
)
def test_wrong_arrays_are_refused(function, options):
  def check(error, match, **changes):
    refused(function, error, match, changes, **options)

  expected = r'\[B, D\], class_centers \[C, D\] or \[C, k, D\] and labels \[B\]'
  for name, shape, shown in [
    ('embeddings', (3,), r'not \(3,\), \(7, 3\) and \(4,\)'),
    ('embeddings', (4, 2), r'not \(4, 2\), \(7, 3\) and \(4,\)'),
    ('embeddings', (4, 3, 1), r'not \(4, 3, 1\), \(7, 3\) and \(4,\)'),
    ('class_centers', (3,), r'not \(4, 3\), \(3,\) and \(4,\)'),
    ('class_centers', (7, 3, 1), r'not \(4, 3\), \(7, 3, 1\) and \(4,\)'),
    ('class_centers', (7, 1, 2, 3), r'not \(4, 3\), \(7, 1, 2, 3\) and \(4,\)'),
  ]:
    check(ValueError, f'{expected}, {shown}', **{name: np.ones(shape)})
  for shape in ((5,), (4, 1), ()):
    labels = np.zeros(shape, int)
    check(ValueError, re.escape(f'and {shape}'), labels=labels)
  check(TypeError, 'labels must be integer.*float32', labels=np.zeros(4))
  whole = np.ones((4, 3), int)
  check(TypeError, 'embeddings must be floating.*int32', embeddings=whole)
  check(TypeError, 'class_centers must be floating', class_centers=whole)


def test_wrong_options_are_refused():
  def check(match, margins=0.5, num_blocks=2, **options):
    refused(
      losses.blockwise_margin_softmax,
      ValueError,
      match,
      {'margins': margins},
      num_blocks=num_blocks,
      **options,
    )

  for count in (0, -1, 8):
    check(rf'num_blocks.*\[1, 7\], not {count}', num_blocks=count)
  check("must be one of arc, cos, .*curricular, not 'circle'", kind='circle')
  for kind in KINDS:
    check("'straight_through', not 'none'", gradient='none', kind=kind)
  ones = np.ones
  for kind, margins, match in [
    (
      'arc',
      ones(3),
      r"'arc' must be margin,.*\(4,\), not of shapes \[\(3,\)\]",
    ),
    ('arc', ones((4, 1)), r'\[\(4, 1\)\]'),
    ('arc', (0.5, 0.5), r'\[\(\), \(\)\]'),
    ('arc', (), r'\[\]'),
    ('combined', 0.5, r"'combined' must be m1, m2, m3,.*\[\(\)\]"),
    (
      'x2',
      (0.5, ones(4), ones(5)),
      r'must be a, h, k,.*\[\(\), \(4,\), \(5,\)',
    ),
    ('curricular', ones(4), r'must be margin, t,'),
    ('adaface', ones(4), r'must be angle_margin, cosine_margin,'),
  ]:
    check(match, margins=margins, kind=kind)


# The parts, as the training step uses them.


@pytest.mark.parametrize('wide, subcenters', [(False, None), (True, 3)])
def test_target_cosines_are_those_of_the_matrix(wide, subcenters):
  embeddings, centers, labels, _, _ = batch(12, 9, subcenters=subcenters)
  embeddings = unit(embeddings) * np.geomspace(1e-36, 1e36, 12)[:, None]
  embeddings[3] = 0
  centers = np.float32(centers)
  centers[labels[4]] = np.float32(3e38) * unit(centers[labels[4]])
  labels = labels.copy()
  labels[[0, 5, 7, 9]] = [-1, 9, 10, -9]  # No class.
  arrays = embeddings.astype(np.float32), centers
  both = jax.jit(
    lambda e, c, y: (losses.target_cosines(e, c, y), dense_cosines(e, c))
  )
  with jax.enable_x64(wide):
    arrays = widen(arrays) if wide else arrays
    got, cosines = map(np.asarray, both(*arrays, labels))
  is_class = (0 <= labels) & (labels < 9)
  want = np.where(is_class, cosines[np.arange(12), labels.clip(0, 8)], 0)
  assert got.dtype == want.dtype == (np.float64 if wide else np.float32)
  np.testing.assert_allclose(got, want, atol=1e-15 if wide else 3e-7)
  np.testing.assert_array_equal(got == 0, ~is_class | (np.arange(12) == 3))


def test_target_cosines_of_narrow_vectors_are_wide():
  embeddings, centers, labels, _, _ = batch(12, 9)
  embeddings = embeddings.astype(jnp.bfloat16)
  got = losses.target_cosines(embeddings, centers, labels)
  want = np.sum(unit(np.float32(embeddings)) * unit(centers[labels]), axis=1)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=3e-7)


def test_what_is_kept_of_the_softmax():
  # Of a curriculum, where the class nearest may not be the one that counts
  # most, and the other cosines change.
  embeddings, centers, labels, (m, t), _ = batch(12, seed=4, kind='curricular')
  cosines = np.float64(unit(embeddings)) @ unit(centers).T
  head = _blockwise.Head(num_classes=9, scale=20.0, kind='curricular')

  @jax.jit
  def run(embeddings, blocks, labels, margins):
    targets_of = _blockwise.target_cosines_of
    targets = targets_of(embeddings, blocks, labels)
    last = targets_of(embeddings, blocks[2:4], labels, first_class=4)
    samples = _blockwise.Samples(embeddings, labels, targets, margins)
    statistics = [
      _blockwise.block_statistics(
        samples,
        _blockwise.unit_centers(block, embeddings.shape[1]),
        2 * i + jnp.arange(2),
        head,
      )
      for i, block in enumerate(blocks)
    ]
    statistics = jax.tree.map(lambda *x: jnp.stack(x), *statistics)
    softmax = _blockwise.join_blocks(statistics, targets, margins, head)
    return targets, last, statistics, softmax

  blocks = _blockwise.to_blocks(centers, 6)
  labels = labels.astype(np.int32)
  targets, last, statistics, softmax = run(
    unit(embeddings), blocks, labels, (m, t)
  )
  each = np.arange(12)
  target = cosines[each, labels]
  is_here = (labels >= 4) & (labels < 8)
  assert 0 < is_here.sum() < 12
  np.testing.assert_allclose(targets, target, atol=1e-6)
  np.testing.assert_array_equal(last, np.where(is_here, targets, 0))
  assert {x.shape for x in statistics} == {(6, 12)}

  theta = np.arccos(target)
  is_inside = theta + m < np.pi
  limit = np.cos(theta + m)
  moved = np.where(is_inside, limit, target - m * np.sin(m))
  slope = np.where(is_inside, np.sin(theta + m) / np.sin(theta), 1)
  to_margin = np.where(
    is_inside, -np.sin(theta + m), -np.sin(m) - m * np.cos(m)
  )
  is_hard = cosines > limit[:, None]
  changed = np.where(is_hard, cosines * (t[:, None] + cosines), cosines)
  is_other = labels[:, None] != np.arange(9)
  logits = 20 * np.where(is_other, changed, moved[:, None])
  probabilities = np.exp(logits)
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  others = np.where(is_other, changed, -np.inf)
  nearest = np.where(is_other, cosines, -np.inf)
  assert np.any(others.argmax(axis=1) != nearest.argmax(axis=1))
  miss = 1 - probabilities[each, labels]
  for got, want in [
    (softmax.largest_cosine, nearest.max(axis=1)),
    (softmax.largest_other, others.max(axis=1)),
    (
      softmax.largest_gradients,
      20 * probabilities[each, others.argmax(axis=1)],
    ),
    (softmax.target_gradients, -20 * miss * slope),
    (softmax.margin_gradients[0], -20 * miss * to_margin),
    (softmax.margin_gradients[1], np.zeros(12)),
    (softmax.loss, -np.log(probabilities[each, labels])),
  ]:
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)


# Memory.


def compiled_gradient(loss, size, *centers):
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  labels = jax.ShapeDtypeStruct((size,), jnp.int32)
  gradients = jax.grad(lambda *arrays: loss(*arrays).sum(), (0, 1, 3))
  return (
    jax.jit(gradients)
    .lower(shape(size, centers[-1]), shape(*centers), labels, shape(size))
    .compile()
  )


def largest_array(compiled):
  """Elements of the largest array named anywhere in the program."""
  shapes = re.findall(r'\w\[([\d,]+)\]', compiled.as_text())
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


@pytest.mark.parametrize(
  'kind, subcenters, num_blocks',
  [('arc', 1, 4), ('curricular', 1, 64), ('arc', 3, 16)],
)
def test_memory_grows_with_a_block_and_not_with_the_matrix(
  kind, subcenters, num_blocks
):
  size, dim, classes = 256, 16, 65_536

  def loss(embeddings, centers, labels, margins):
    if kind == 'curricular':
      margins = margins, 0.3
    return losses.blockwise_margin_softmax(
      embeddings, centers, labels, margins, kind=kind, num_blocks=num_blocks
    )

  shape = (classes, dim) if subcenters == 1 else (classes, subcenters, dim)
  compiled = compiled_gradient(loss, size, *shape)
  logits = 4 * size * classes * subcenters // num_blocks
  centers = 4 * classes * subcenters * dim // num_blocks
  # Of the embeddings' gradient, sums of 1, 2, 4, ... blocks.
  sums = 4 * (math.log2(num_blocks) + 2) * size * dim
  statistics = 4 * 4 * num_blocks * size
  temporary = compiled.memory_analysis().temp_size_in_bytes
  # A block's logits twice, and its centres twice. With sub-centres the logits
  # of each, which of them are the nearest, and the gradient of both.
  times = 2 if subcenters == 1 else 4
  assert temporary <= times * logits + 2 * centers + sums + statistics + 2**16
  assert largest_array(compiled) < size * classes


def test_the_dense_form_holds_the_matrix():
  size, dim, classes = 256, 16, 65_536
  loss = lambda e, c, y, m: losses.arcface(losses.cosines(e, c), y, margin=m)
  compiled = compiled_gradient(loss, size, classes, dim)
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary > 4 * size * classes
  assert largest_array(compiled) == size * classes
