# SPDX-License-Identifier: Apache-2.0
"""The block-wise softmax against NumPy, in value, bits and bytes.

The reference is that of the named losses, in float64, and the gradients of the
vectors follow from it. In float64 the two agree to rounding.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.losses._targets import KINDS

from .programs import QUICK, adaptive_margins
from .reference import (
  adaface_margins,
  dense_reference,
  magface_margins,
  reference,
  unit,
)
from .reference import block_batch as batch


def loss_and_gradients(
  embeddings, centers, labels, margins, weights, *, K, **options
):
  values, pullback = jax.vjp(
    lambda e, c, m: losses.blockwise_margin_softmax(
      e, c, labels, m, num_blocks=K, **options
    ),
    embeddings,
    centers,
    margins,
  )
  return values, pullback(weights)


# Float64 is for the mathematics, and compiled in less time; float32 is compiled
# as it is for users.
STATIC = 'kind', 'gradient', 'scale', 'K'
compiled = jax.jit(loss_and_gradients, static_argnames=STATIC)
compiled_quickly = jax.jit(
  loss_and_gradients, static_argnames=STATIC, compiler_options=QUICK
)


def flat(results):
  """Loss, and gradients of embeddings, centres and each margin."""
  return [np.asarray(x) for x in jax.tree.leaves(results)]


def run(*arrays, **options):
  return flat(compiled_quickly(*arrays, **options))


def widen(arrays):
  wide = lambda x: np.float64(x) if x.dtype == np.float32 else x
  return jax.tree.map(wide, arrays)


def check(got, want, relative, of_margins=None):
  names = 'loss', 'embeddings', 'centers', *3 * ['a margin']
  for name, x, y in zip(names, got, want, strict=False):
    assert x.shape == y.shape, name
    error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
    limit = of_margins or relative if name == 'a margin' else relative
    assert error <= limit, (name, error)


# With 9 classes, 4 blocks are of three, the last of padding alone; 6 of two,
# the fifth half padding and the sixth all.
VARIANTS = [
  ('arc', 'exact', None, 9),
  ('cos', 'exact', None, 4),
  ('combined', 'exact', None, 3),
  ('sphere', 'exact', None, 6),
  ('x2', 'exact', 2, 5),
  ('adaface', 'exact', None, 1),
  ('magface', 'exact', None, 6),
  ('curricular', 'exact', None, 6),
  ('arc', 'straight_through', 3, 6),
]


def variant_arrays(variant):
  kind, _, subcenters, _ = variant
  return batch(kind=kind, subcenters=subcenters)


@functools.cache
def variants_in_float64():
  """The results of each variant, all compiled together."""

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run_all(arrays):
    return [
      loss_and_gradients(
        *arrays[i], kind=kind, gradient=gradient, scale=20.0, K=num_blocks
      )
      for i, (kind, gradient, _, num_blocks) in enumerate(VARIANTS)
    ]

  with jax.enable_x64(True):
    results = run_all([widen(variant_arrays(v)) for v in VARIANTS])
  return dict(zip(VARIANTS, map(flat, results), strict=True))


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_float64_is_the_reference(variant):
  got = variants_in_float64()[variant]
  kind, gradient, *_ = variant
  want = dense_reference(
    *variant_arrays(variant), kind=kind, scale=20.0, gradient=gradient
  )
  assert len(want) == len(got) == 3 + len(KINDS[kind].margins)
  assert all(x.dtype == np.float64 for x in got)
  assert want[0].max() > 1
  check(got, want, 1e-11, of_margins=1e-9)
  # Of all that goes in, t alone is not learned from.
  zero = [i for i, x in enumerate(got) if not np.any(x)]
  assert zero == ([4] if kind == 'curricular' else [])


def test_every_kind_is_tried_on_all_its_branches():
  assert {kind for kind, *_ in VARIANTS} == set(KINDS)
  for kind in KINDS:
    embeddings, centers, labels, (m, *_), _ = batch(kind=kind)
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


IN_FLOAT32 = [('arc', 1000.0, 3), ('curricular', 64.0, 7)]


@functools.cache
def in_float32():
  """Results in float32; the last with the centres as one sub-centre each."""
  batches = {kind: batch(32, 20, 16, 1, kind) for kind, *_ in IN_FLOAT32}
  embeddings, centers, *others = batches['curricular']
  batches['subcenter'] = embeddings, centers[:, None], *others

  @jax.jit
  def run_all(batches):
    run = lambda name, kind, scale, K: loss_and_gradients(
      *batches[name], kind=kind, scale=scale, K=K
    )
    results = [run(kind, kind, scale, K) for kind, scale, K in IN_FLOAT32]
    return *results, run('subcenter', 'curricular', 64.0, 7)

  return list(map(flat, run_all(batches))), batches


@pytest.mark.parametrize(
  'case', range(len(IN_FLOAT32)), ids=lambda i: str(IN_FLOAT32[i])
)
def test_float32_is_the_reference_to_rounding(case):
  results, batches = in_float32()
  kind, scale, _ = IN_FLOAT32[case]
  want = dense_reference(*batches[kind], kind=kind, scale=scale)
  assert all(x.dtype == np.float32 for x in results[case])
  check(results[case], want, 5e-6)


def test_one_subcenter_is_the_plain_path_to_the_last_bit():
  (_, want, got), _ = in_float32()
  for x, y in zip(got, want, strict=True):
    np.testing.assert_array_equal(x.reshape(y.shape), y)


# Margins as users make them.


def make_elastic_plus(e, c, y):
  key = jax.random.key(1)
  drawn = losses.sample_margins(key, y.shape, mean=0.5, std=0.25)
  margins = losses.pair_margins(drawn, losses.target_cosines(e, c, y))
  return {'kind': 'cos', 'margins': margins}, 0.0, (drawn,)


def make_adaface(e, c, y):
  margins, state = losses.adaface_margins(
    losses.norms(e), losses.adaface_init(), ema_rate=0.7
  )
  return {'kind': 'adaface', 'margins': margins}, 0.0, state


def make_magface(e, c, y):
  margins, regularizer = losses.magface_margins(losses.norms(e))
  return {'kind': 'magface', 'margins': margins}, regularizer, ()


def make_curricularface(e, c, y):
  state = losses.CurricularFaceState(jnp.float32(0.3))
  margins, state = losses.curricularface_margins(
    losses.target_cosines(e, c, y), state, ema_rate=0.5
  )
  return {'kind': 'curricular', 'margins': margins}, 0.0, state


def target_cosines(e, c, y):
  return np.sum(unit(e)[:, None] * unit(c).reshape(len(c), -1, 6)[y], 2).max(1)


def elastic_plus_by_hand(e, c, y, drawn):
  ranks = np.argsort(np.argsort(-target_cosines(e, c, y)))
  return 'cos', (np.sort(drawn[0])[ranks],), drawn


def adaface_by_hand(e, c, y, state):
  norms, first = np.linalg.norm(e, axis=1), losses.AdaFaceState(20.0, 100.0)
  _, want = adaface_margins(norms, first, ema_rate=0.7)
  # The state is float32, and the margins follow from its digits.
  return 'adaface', adaptive_margins('adaface', norms, state), want


def magface_by_hand(e, c, y, state):
  return 'magface', magface_margins(np.linalg.norm(e, axis=1))[:1], ()


def curricularface_by_hand(e, c, y, state):
  t = 0.5 * target_cosines(e, c, y).mean() + 0.5 * 0.3
  margins = np.full(12, 0.5), np.full(12, np.float64(state[0]))
  return 'curricular', margins, (t,)


MADE = {
  'elastic_plus': (make_elastic_plus, elastic_plus_by_hand),
  'adaface': (make_adaface, adaface_by_hand),
  'magface': (make_magface, magface_by_hand),
  'curricularface': (make_curricularface, curricularface_by_hand),
}
# Norms below, between and above those that MagFace tells apart.
NORMS = np.linspace(4, 130, 12)[:, None]


@functools.cache
def made():
  """The inputs, and the losses, gradients and states of each loss."""
  batches = {}
  for name in MADE:
    subcenters = 3 if name == 'curricularface' else None
    e, c, y, _, weights = map(
      np.asarray, batch(kind='cos', subcenters=subcenters)
    )
    e = NORMS * unit(np.float64(e))
    batches[name] = e, np.float64(c), y, np.float64(weights)

  def evaluate(make, e, c, y, weights):
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def objective(e, c):
      options, regularizer, state = make(e, c, y)
      loss = losses.blockwise_margin_softmax(
        e, c, y, **options, scale=20.0, num_blocks=4
      )
      return jnp.sum(weights * (loss + regularizer)), (loss, state)

    (_, (loss, state)), gradients = objective(e, c)
    return [loss, *gradients], state

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(batches):
    return {
      name: evaluate(make, *batches[name]) for name, (make, _) in MADE.items()
    }

  with jax.enable_x64(True):
    return batches, jax.tree.map(np.asarray, run(batches))


@pytest.mark.parametrize('name', MADE)
def test_margins_that_depend_on_the_batch(name):
  batches, results = made()
  (got, state), (e, c, y, weights) = results[name], batches[name]
  kind, margins, want_state = MADE[name][1](e, c, y, state)
  for x, y_ in zip(state, want_state, strict=True):
    np.testing.assert_allclose(x, y_, rtol=1e-6)
  want = dense_reference(e, c, y, margins, weights, kind=kind, scale=20.0)
  if name == 'magface':
    _, _, slope, regularizer_slope = magface_margins(NORMS[:, 0])
    by_norm = want[3] * slope + weights * regularizer_slope
    want[1] += by_norm[:, None] * unit(e)
  check(got, want[:3], 1e-9)
  # Along an embedding its norm alone changes.
  along = np.abs(np.sum(got[1] * e, axis=1))
  inside = (NORMS[:, 0] > 10) & (NORMS[:, 0] < 110)
  is_felt = inside if name == 'magface' else np.zeros(12, bool)
  assert 0 < inside.sum() < 12
  np.testing.assert_array_equal(along > 1e-9, is_felt)


# Values at the ends of their range, and narrow ones.


def test_zero_huge_tiny_and_aligned_vectors():
  embeddings, centers, labels, margins, cotangents = batch()
  norms = np.ones((12, 1), np.float32)
  norms[:3, 0] = 0, 3e38, 1e-36
  embeddings = norms * unit(embeddings)
  centers = norms[:9][::-1] * unit(centers)
  arrays = embeddings, centers, labels, margins, cotangents
  got = run(*arrays, kind='arc', scale=64.0, K=4)
  want = dense_reference(*arrays, kind='arc', scale=64.0)
  np.testing.assert_allclose(got[0], want[0], rtol=3e-5)
  for x, y in zip(got[1:3], want[1:3], strict=True):
    # The gradient goes with 1 / norm: each row by itself, down to the smallest
    # normal number.
    limit = 1e-4 * np.abs(y).max(axis=1, keepdims=True) + 1.2e-38
    assert np.all(np.abs(x - y) <= limit)
  np.testing.assert_array_equal(got[1][0], np.zeros(6))
  np.testing.assert_array_equal(got[2][8], np.zeros(6))

  # Cosines of 1 and -1, where the slope of an arccos is infinite.
  embeddings[:5], embeddings[5:] = centers[labels[:5]], -centers[labels[5:]]
  arrays = embeddings, centers, labels, margins, cotangents
  for x in run(*arrays, kind='arc', scale=64.0, K=4):
    assert np.all(np.isfinite(x))


def test_narrow_vectors_are_widened_first():
  embeddings, *others = batch()
  embeddings = embeddings.astype(jnp.bfloat16)
  got = run(embeddings, *others, kind='arc', scale=64.0, K=4)
  want = run(
    embeddings.astype(np.float32), *others, kind='arc', scale=64.0, K=4
  )
  assert got[1].dtype == jnp.bfloat16
  for x, y in zip(got, want, strict=True):
    np.testing.assert_array_equal(x, y.astype(x.dtype))
    assert x is got[1] or x.dtype == np.float32


def test_the_wider_of_two_dtypes_counts():
  embeddings, *others, cotangents = batch(kind='cos')
  with jax.enable_x64(True):
    wide = np.float64(embeddings), *others, np.float64(cotangents)
    got = run(*wide, kind='cos', scale=20.0, K=4)
  assert [x.dtype.name for x in got[:3]] == ['float64', 'float64', 'float32']
  want = variants_in_float64()['cos', 'exact', None, 4]
  check(got[:2], want, 1e-11)
  # As well where the centres are the wider.
  with jax.enable_x64(True):
    centers, *others = others
    both = embeddings, np.float64(centers)
    loss = functools.partial(losses.blockwise_margin_softmax, num_blocks=4)
    assert jax.eval_shape(loss, *both, *others[:2]).dtype == np.float64
    targets = jax.eval_shape(losses.target_cosines, *both, others[0])
    assert targets.dtype == np.float64


def test_labels_narrower_than_the_classes():
  embeddings, centers, _, (margins,), _ = batch(6, 300, kind='cos')
  # In eight bits class 300 is class 44 again.
  labels = np.array([0, 255, 44, 7, 255, 100])
  loss = jax.jit(
    functools.partial(
      losses.blockwise_margin_softmax, kind='cos', num_blocks=3, scale=8.0
    ),
    compiler_options=QUICK,
  )
  got = loss(embeddings, centers, labels.astype(np.uint8), margins)
  cosines = np.float64(unit(embeddings)) @ unit(centers).T
  want, *_ = reference(cosines, labels, (margins,), 8.0, 'cos')
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_grad_of_vmap_and_one_margin_for_all():
  embeddings, centers, labels, margins, cotangents = batch()
  halves = [x.reshape(2, 6, *x.shape[1:]) for x in (embeddings, labels)]
  weights = cotangents.reshape(2, 6)

  @functools.partial(jax.jit, compiler_options=QUICK)
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
  def by_halves(embeddings, centers, margin):
    loss = jax.vmap(
      lambda e, y: losses.blockwise_margin_softmax(
        e, centers, y, margin, num_blocks=4
      )
    )
    return jnp.sum(loss(embeddings, halves[1]) * weights)

  value, got = by_halves(halves[0], centers, np.float32(0.5))
  got = [np.asarray(x) for x in got]
  margins = (np.full(12, 0.5, np.float32),)
  want = run(
    embeddings,
    centers,
    labels,
    margins,
    cotangents,
    kind='arc',
    scale=64.0,
    K=4,
  )
  np.testing.assert_allclose(value, want[0] @ cotangents, rtol=1e-5)
  got = want[0], got[0].reshape(12, -1), got[1], got[2]
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
  """Calls with one argument changed; expects the error."""
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


# Memory.


def compiled_gradient(loss, size, *centers):
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  labels = jax.ShapeDtypeStruct((size,), jnp.int32)
  gradients = jax.grad(lambda *arrays: loss(*arrays).sum(), (0, 1, 3))
  return (
    jax.jit(gradients, compiler_options=QUICK)
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
