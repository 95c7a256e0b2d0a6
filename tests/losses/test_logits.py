# SPDX-License-Identifier: Apache-2.0
"""Cosines, norms and margined logits against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses

from .programs import QUICK
from .reference import unit, vectors

LOGITS = {'arc': losses.arcface_logits, 'cos': losses.cosface_logits}


def pull(function):
  """The values of a function and the gradients from given cotangents."""

  def run(cotangents, *arrays):
    values, pullback = jax.vjp(function, *arrays)
    return values, *pullback(cotangents)

  return run


def compiled(function):
  """Compiled as it is for users; results in NumPy."""
  run = jax.jit(function)
  return lambda *arrays: jax.tree.map(np.asarray, run(*arrays))


def compiled_quickly(function):
  """Compiled in less time, for the mathematics; results in NumPy."""
  run = jax.jit(function, compiler_options=QUICK)
  return lambda *arrays: jax.tree.map(np.asarray, run(*arrays))


# Cosines of [6, 5] and [4, 5], and their gradients from [6, 4].
cosines = compiled(pull(losses.cosines))
WEIGHTS = vectors(6, 4, seed=2).astype(np.float32)


@pytest.mark.parametrize('norm', [1e-30, 1e-3, 1.0, 1e30])
def test_cosines_and_their_gradient_at_any_norm(norm):
  x = (vectors() * norm).astype(np.float32)
  w = (vectors(4, seed=1) * norm).astype(np.float32)
  x64, w64 = x.astype(np.float64), w.astype(np.float64)
  want = unit(x64) @ unit(w64).T
  got, gx, gw = cosines(WEIGHTS, x, w)
  np.testing.assert_allclose(got, want, atol=3e-7)

  # d cos(x, w) / dx = (w / |w| - cos x / |x|) / |x|; the weights keep the
  # result within float32.
  along_x = (WEIGHTS * want).sum(1)[:, None]
  along_w = (WEIGHTS * want).sum(0)[:, None]
  want_x = WEIGHTS @ unit(w64) - along_x * unit(x64)
  want_w = WEIGHTS.T @ unit(x64) - along_w * unit(w64)
  norm_x = np.linalg.norm(x64, axis=1, keepdims=True)
  norm_w = np.linalg.norm(w64, axis=1, keepdims=True)
  np.testing.assert_allclose(np.float64(gx) * norm_x, want_x, atol=3e-6)
  np.testing.assert_allclose(np.float64(gw) * norm_w, want_w, atol=3e-6)


def test_a_zero_vector_has_cosine_zero_and_gradient_zero():
  x, w = vectors().astype(np.float32), vectors(4, seed=1).astype(np.float32)
  x[2], w[1] = 0, 0
  got, gx, gw = cosines(WEIGHTS, x, w)
  np.testing.assert_array_equal(got[2], np.zeros(4))
  np.testing.assert_array_equal(got[:, 1], np.zeros(6))
  assert np.all(np.isfinite(gx)) and np.all(np.isfinite(gw))
  np.testing.assert_array_equal(gx[2], np.zeros(5))
  np.testing.assert_array_equal(gw[1], np.zeros(5))
  assert np.all(np.abs(gx[0]) > 0)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_narrow_vectors_are_widened_first(dtype):
  x, w = (jnp.asarray(vectors(6, seed=s), dtype) for s in (0, 1))
  # Op by op: the products of the same numbers.
  got = losses.cosines(x, w)
  assert got.dtype == jnp.float32
  wide = losses.cosines(x.astype(jnp.float32), w.astype(jnp.float32))
  np.testing.assert_array_equal(got, wide)
  np.testing.assert_allclose(
    got, unit(np.float64(x)) @ unit(np.float64(w)).T, atol=3e-7
  )


def test_the_product_asks_accelerators_for_full_precision():
  x = jnp.ones((2, 3), jnp.bfloat16)
  (dot,) = (
    eqn
    for eqn in jax.make_jaxpr(losses.cosines)(x, x).eqns
    if eqn.primitive.name == 'dot_general'
  )
  assert set(dot.params['precision']) == {jax.lax.Precision.HIGHEST}


def test_wrong_vectors_are_refused():
  x = np.ones((2, 3))
  with pytest.raises(ValueError, match=r'\(2, 3\) and \(2, 4\)'):
    losses.cosines(x, np.ones((2, 4)))
  with pytest.raises(ValueError, match=r'\(3,\) and \(2, 3\)'):
    losses.cosines(x[0], x)
  with pytest.raises(TypeError, match='class_centers.*int32'):
    losses.cosines(x, np.ones((2, 3), int))


# Norms.

norms = compiled(pull(losses.norms))


@pytest.mark.parametrize('norm', [1e-30, 1e-3, 1.0, 1e30])
def test_norms_and_their_gradient_at_any_norm(norm):
  x = (vectors() * norm).astype(np.float32)
  wide = x.astype(np.float64)
  got, gradient = norms(np.ones(6, np.float32), x)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, np.linalg.norm(wide, axis=1), rtol=5e-7)
  np.testing.assert_allclose(gradient, unit(wide), rtol=0, atol=5e-7)


def test_a_zero_vector_has_norm_zero_and_gradient_zero():
  x = vectors().astype(np.float32)
  x[2] = 0
  got, gradient = norms(np.ones(6, np.float32), x)
  np.testing.assert_array_equal(got[2], 0)
  np.testing.assert_array_equal(gradient[2], np.zeros(5))
  assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[0]) > 0)


def test_second_derivatives_of_norms():
  hessian = compiled_quickly(jax.hessian(losses.norms))
  for norm in (1e-3, 1.0, 1e3):
    x = norm * vectors()[0]
    with jax.enable_x64(True):
      got = hessian(x)
    # d2 |x| = (1 - u u') / |x|
    want = (np.eye(5) - np.outer(unit(x), unit(x))) / np.linalg.norm(x)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12 / norm)


def test_norms_of_any_shape_and_dtype():
  x = vectors().reshape(2, 3, 5)
  narrow = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
  assert jax.eval_shape(losses.norms, narrow).dtype == jnp.float32
  with jax.enable_x64(True):
    got = compiled_quickly(losses.norms)(x)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, np.linalg.norm(x, axis=-1), rtol=1e-14)


def test_norms_of_integers_are_refused():
  with pytest.raises(TypeError, match='x must be floating.*int32'):
    losses.norms(np.ones((2, 3), int))


# Sub-centres.

# Cosines of [6, 5] and [4, k, 5], and their gradients from [6, 4].
of_subcenters = compiled(pull(losses.subcenter_cosines))


def subcenters(count, dtype=np.float32):
  rng = np.random.default_rng(3)
  return rng.normal(size=(4, count, 5)).astype(dtype)


def test_subcenter_cosines_are_those_of_the_nearest():
  x, w = vectors(), subcenters(3, np.float64)
  each = np.einsum('bd,ckd->bck', unit(x), unit(w))
  weights = vectors(6, 4, seed=2)
  with jax.enable_x64(True):
    run = compiled_quickly(pull(losses.subcenter_cosines))
    got, gx, gw = run(weights, x, w)
    assert got.dtype == np.float64
  np.testing.assert_allclose(got, each.max(axis=2), rtol=1e-13)
  # The gradient of a cosine, of the nearest alone.
  pulled = weights[:, :, None] * (each == each.max(axis=2, keepdims=True))
  along = (pulled * each).sum(axis=(1, 2))[:, None] * unit(x)
  want = np.einsum('bck,ckd->bd', pulled, unit(w)) - along
  np.testing.assert_allclose(
    gx, want / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-13
  )
  along = (pulled * each).sum(axis=0)[:, :, None] * unit(w)
  want = np.einsum('bck,bd->ckd', pulled, unit(x)) - along
  np.testing.assert_allclose(
    gw, want / np.linalg.norm(w, axis=2, keepdims=True), atol=1e-13
  )


def test_one_subcenter_is_the_class_centre_bit_for_bit():
  x, w = vectors().astype(np.float32), subcenters(1)
  got = of_subcenters(WEIGHTS, x, w)
  want = cosines(WEIGHTS, x, w[:, 0])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a.reshape(b.shape), b)


def test_equal_subcenters_share_the_gradient():
  x, w = vectors().astype(np.float32), np.repeat(subcenters(1), 3, axis=1)
  got, _, gw = of_subcenters(WEIGHTS, x, w)
  want, _, want_w = cosines(WEIGHTS, x, w[:, 0])
  np.testing.assert_allclose(got, want, atol=2e-7)
  np.testing.assert_array_equal(gw[:, 0], gw[:, 1])
  np.testing.assert_array_equal(gw[:, 0], gw[:, 2])
  np.testing.assert_allclose(gw.sum(axis=1), want_w, rtol=1e-5, atol=1e-6)


def test_order_of_subcenters_and_their_norms_do_not_count():
  x, w = vectors().astype(np.float32), subcenters(3)
  want, *_ = of_subcenters(WEIGHTS, x, w)
  got, *_ = of_subcenters(WEIGHTS, x, w[:, [2, 0, 1]])
  np.testing.assert_array_equal(got, want)
  scales = np.float32([0.5, 8, 2**60])[:, None]
  got, *_ = of_subcenters(WEIGHTS, 4 * x, w * scales)
  np.testing.assert_array_equal(got, want)


def test_zero_and_narrow_subcenters():
  x, w = vectors().astype(np.float32), subcenters(3)
  x[0], w[1, 2], w[2] = 0, 0, 0
  got, gx, gw = of_subcenters(WEIGHTS, x, w)
  np.testing.assert_array_equal(got[0], np.zeros(4))
  np.testing.assert_array_equal(got[:, 2], np.zeros(6))
  assert np.all(got[1:, 1] >= 0)
  assert np.all(np.isfinite(gx)) and np.all(np.isfinite(gw))
  np.testing.assert_array_equal(gx[0], np.zeros(5))
  narrow = (jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in (x, w))
  shape = jax.eval_shape(losses.subcenter_cosines, *narrow)
  assert shape.dtype == jnp.float32


def test_wrong_subcenters_are_refused():
  x, w = np.ones((2, 3)), np.ones((4, 2, 3))
  with pytest.raises(ValueError, match=r'\[C, k, D\].*\(2, 3\) and \(4, 3\)'):
    losses.subcenter_cosines(x, w[:, 0])
  with pytest.raises(ValueError, match=r'\(2, 3\) and \(4, 2, 2\)'):
    losses.subcenter_cosines(x, w[:, :, :2])
  with pytest.raises(ValueError, match=r'\[C, D\].*\(2, 3\) and \(4, 2, 3\)'):
    losses.cosines(x, w)
  with pytest.raises(TypeError, match='embeddings.*int32'):
    losses.subcenter_cosines(x.astype(int), w)


# The logits.


def batch(size=8, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  cosines = rng.uniform(-1, 1, (size, classes)).astype(np.float32)
  labels = rng.integers(0, classes, size)
  margins = rng.normal(0.4, 0.05, size).astype(np.float32)
  return cosines, labels, margins


@functools.partial(jax.jit, compiler_options=QUICK)
def all_logits(cosines, labels, margins):
  """Each kind with margins of each sample, with one for all, and mapped."""
  halves = [x.reshape(2, 4, *x.shape[1:]) for x in (cosines, labels, margins)]
  return {
    kind: (
      logits(cosines, labels, margins, scale=30.0),
      logits(cosines, labels, 0.4, scale=30.0),
      jax.vmap(functools.partial(logits, scale=30.0))(*halves).reshape(8, 5),
    )
    for kind, logits in LOGITS.items()
  }


def expected_logits(kind, cosines, labels, margins):
  """The logits in float64, and the places of the targets."""
  target = np.arange(8), labels
  change = {
    'arc': lambda c, m: np.cos(np.arccos(c) + m),
    'cos': lambda c, m: c - m,
  }[kind]
  want = 30 * cosines.astype(np.float64)
  want[target] = 30 * change(cosines[target].astype(np.float64), margins)
  return want, target


@pytest.mark.parametrize('kind', LOGITS)
def test_logits_change_the_target_alone(kind):
  cosines, labels, margins = batch()
  each, one, mapped = map(np.array, all_logits(cosines, labels, margins)[kind])
  for got, given in (
    (each, margins),
    (one, np.float32(0.4)),
    (mapped, margins),
  ):
    want, target = expected_logits(kind, cosines, labels, given)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[target], want[target], atol=30 * 2**-23)
    got[target] = (np.float32(30) * cosines)[target]
    np.testing.assert_array_equal(got, np.float32(30) * cosines)


@pytest.mark.parametrize('kind', LOGITS)
def test_logits_op_by_op(kind):
  cosines, labels, margins = batch()
  got = LOGITS[kind](cosines, labels, margins, scale=30.0)
  want, _ = expected_logits(kind, cosines, labels, margins)
  np.testing.assert_allclose(got, want, atol=30 * 2**-23)


@pytest.mark.parametrize('kind', LOGITS)
def test_the_default_scale_is_64(kind):
  trace = lambda **options: str(
    jax.make_jaxpr(functools.partial(LOGITS[kind], **options))(*batch())
  )
  assert trace() == trace(scale=64.0) != trace(scale=63.0)


@pytest.mark.parametrize('kind', LOGITS)
def test_narrow_cosines_make_float32_logits_and_float64_stays(kind):
  cosines, labels, margins = batch()
  narrow = jnp.asarray(cosines, jnp.bfloat16)
  got = LOGITS[kind](narrow, labels, margins, scale=30.0)
  assert got.dtype == jnp.float32
  wide = LOGITS[kind](narrow.astype(jnp.float32), labels, margins, scale=30.0)
  np.testing.assert_array_equal(got, wide)
  with jax.enable_x64(True):
    arrays = cosines.astype(np.float64), labels, margins
    assert jax.eval_shape(LOGITS[kind], *arrays).dtype == np.float64


def test_no_arccos_and_no_scatter():
  cosines, labels, margins = batch()
  total = lambda c: losses.arcface_logits(c, labels, margins).sum()
  program = str(jax.make_jaxpr(jax.value_and_grad(total))(cosines))
  assert 'cos' in program
  assert 'acos' not in program and 'atan' not in program
  assert 'scatter' not in program


def test_straight_through_logits():
  cosines, labels, margins = batch()

  @compiled_quickly
  def run(cosines):
    return {
      gradient: pull(
        lambda c, g=gradient: losses.arcface_logits(
          c, labels, margins, gradient=g
        )
      )(jnp.ones_like(cosines), cosines)
      for gradient in ('exact', 'straight_through')
    }

  results = run(cosines)
  exact, _ = results['exact']
  got, gradient = results['straight_through']
  np.testing.assert_array_equal(got, exact)
  np.testing.assert_array_equal(gradient, np.full_like(cosines, 64))
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    losses.arcface_logits(cosines, labels, margins, gradient='none')


def test_labels_of_any_integer_type():
  cosines, labels, _ = batch(4, 300)
  labels[:] = [0, 100, 200, 255]
  run = compiled_quickly(
    lambda *labels: [losses.cosface_logits(cosines, y, 0.35) for y in labels]
  )
  dtypes = (np.int32, np.uint8, np.int16, np.uint32, np.int64)
  want, *others = run(*(labels.astype(dtype) for dtype in dtypes))
  assert np.all((want != 64 * cosines).sum(axis=1) == 1)
  for got in others:
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('kind', LOGITS)
def test_wrong_arguments_are_refused(kind):
  logits = LOGITS[kind]
  c, y = np.zeros((4, 3)), np.zeros(4, int)
  with pytest.raises(ValueError, match=r'cosines must be \[B, C\].*\(3,\)'):
    logits(c[0], y, 0.5)
  with pytest.raises(ValueError, match=r'labels.*\(4, 3\).*\(3,\)'):
    logits(c, y[:3], 0.5)
  with pytest.raises(ValueError, match=r'labels.*\(4, 1\)'):
    logits(c, y[:, None], 0.5)
  with pytest.raises(ValueError, match=r'margins.*\(4, 3\).*\(3,\)'):
    logits(c, y, np.zeros(3))
  with pytest.raises(ValueError, match=r'margins.*\(4, 1\)'):
    logits(c, y, np.zeros((4, 1)))
  with pytest.raises(TypeError, match='labels must be integer.*float32'):
    logits(c, c[:, 0], 0.5)
  with pytest.raises(TypeError, match='labels must be integer.*bool'):
    logits(c, c[:, 0] > 0, 0.5)
  with pytest.raises(TypeError, match='cosines must be floating.*int32'):
    logits(np.zeros((4, 3), int), y, 0.5)
