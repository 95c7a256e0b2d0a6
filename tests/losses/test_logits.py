# SPDX-License-Identifier: Apache-2.0
"""Cosines, lengths and margined logits against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.losses._logits import normalize, pick_target

LOGITS = {'arc': losses.arcface_logits, 'cos': losses.cosface_logits}


def vectors(rows=6, dim=5, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, dim))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Cosines.


@pytest.mark.parametrize('length', [1e-30, 1e-3, 1.0, 1e30])
def test_cosines_and_their_gradient_at_any_length(length):
  x = (vectors() * length).astype(np.float32)
  w = (vectors(4, seed=1) * length).astype(np.float32)
  x64, w64 = x.astype(np.float64), w.astype(np.float64)
  want = unit(x64) @ unit(w64).T
  np.testing.assert_allclose(losses.cosines(x, w), want, atol=3e-7)

  # d cos(x, w) / dx = (w / |w| - cos x / |x|) / |x|; the weights keep the
  # result within float32.
  weights = vectors(6, 4, seed=2).astype(np.float32)
  gx, gw = jax.grad(
    lambda x, w: (weights * losses.cosines(x, w)).sum(), (0, 1)
  )(x, w)
  want_x = weights @ unit(w64) - (weights * want).sum(1)[:, None] * unit(x64)
  want_w = weights.T @ unit(x64) - (weights * want).sum(0)[:, None] * unit(w64)
  norm_x = np.linalg.norm(x64, axis=1, keepdims=True)
  norm_w = np.linalg.norm(w64, axis=1, keepdims=True)
  np.testing.assert_allclose(np.float64(gx) * norm_x, want_x, atol=3e-6)
  np.testing.assert_allclose(np.float64(gw) * norm_w, want_w, atol=3e-6)


def test_rows_of_unlike_lengths_do_not_disturb_each_other():
  lengths = np.array([1e-30, 1e30, 1.0, 1e-10, 1e10, 0.0])
  x = vectors().astype(np.float32)
  scaled = (x * lengths[:, None]).astype(np.float32)
  got = np.asarray(normalize(scaled))
  np.testing.assert_allclose(got[:5], unit(x[:5].astype(float)), atol=3e-7)
  np.testing.assert_array_equal(got[5], np.zeros(5))


def test_a_zero_vector_has_cosine_zero_and_gradient_zero():
  x, w = vectors().astype(np.float32), vectors(4, seed=1).astype(np.float32)
  x[2], w[1] = 0, 0
  cosines = np.asarray(losses.cosines(x, w))
  np.testing.assert_array_equal(cosines[2], np.zeros(4))
  np.testing.assert_array_equal(cosines[:, 1], np.zeros(6))
  gx, gw = jax.grad(
    lambda x, w: jnp.square(losses.cosines(x, w) - 2).sum(), (0, 1)
  )(x, w)
  assert np.all(np.isfinite(gx)) and np.all(np.isfinite(gw))
  np.testing.assert_array_equal(gx[2], np.zeros(5))
  np.testing.assert_array_equal(gw[1], np.zeros(5))
  assert np.all(np.abs(gx[0]) > 0)


@pytest.mark.parametrize('length', [1e-3, 1.0, 1e3])
def test_second_derivatives_of_normalize(length):
  rng = np.random.default_rng(1)
  x = length * rng.normal(size=5).astype(np.float32)
  weights = rng.normal(size=5).astype(np.float32)
  plain = lambda x: x / jnp.sqrt(jnp.sum(x * x))
  hessian = lambda unit: jax.jit(
    jax.hessian(lambda x: jnp.sum(weights * jnp.sin(unit(x))))
  )(x)
  want = hessian(plain)
  np.testing.assert_allclose(
    hessian(normalize), want, rtol=1e-5, atol=1e-5 * np.abs(want).max()
  )


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_narrow_inputs_are_widened_first(dtype):
  x, w = (jnp.asarray(vectors(seed=s), dtype) for s in (0, 1))
  got = losses.cosines(x, w)
  assert got.dtype == jnp.float32
  wide = losses.cosines(x.astype(jnp.float32), w.astype(jnp.float32))
  np.testing.assert_array_equal(got, wide)


def test_float64_stays():
  with jax.enable_x64(True):
    got = losses.cosines(vectors(), vectors(4, seed=1))
    assert got.dtype == jnp.float64
    want = unit(vectors()) @ unit(vectors(4, seed=1)).T
    np.testing.assert_allclose(got, want, atol=1e-15)


def test_the_product_asks_accelerators_for_full_precision():
  x = jnp.ones((2, 3), jnp.bfloat16)
  (dot,) = (
    eqn
    for eqn in jax.make_jaxpr(losses.cosines)(x, x).eqns
    if eqn.primitive.name == 'dot_general'
  )
  assert set(dot.params['precision']) == {jax.lax.Precision.HIGHEST}


def test_wrong_vectors_are_refused():
  x = jnp.ones((2, 3))
  with pytest.raises(ValueError, match=r'\(2, 3\) and \(2, 4\)'):
    losses.cosines(x, jnp.ones((2, 4)))
  with pytest.raises(ValueError, match=r'\(3,\) and \(2, 3\)'):
    losses.cosines(x[0], x)
  with pytest.raises(TypeError, match='class_centers.*int32'):
    losses.cosines(x, jnp.ones((2, 3), int))


# Lengths.


@pytest.mark.parametrize('length', [1e-30, 1e-3, 1.0, 1e30])
def test_norms_and_their_gradient_at_any_length(length):
  x = (vectors() * length).astype(np.float32)
  wide = x.astype(np.float64)
  got = losses.norms(x)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, np.linalg.norm(wide, axis=1), rtol=5e-7)
  gradient = jax.jit(jax.grad(lambda x: losses.norms(x).sum()))(x)
  np.testing.assert_allclose(gradient, unit(wide), rtol=0, atol=5e-7)


def test_a_zero_vector_has_length_zero_and_gradient_zero():
  x = vectors().astype(np.float32)
  x[2] = 0
  got, pullback = jax.vjp(losses.norms, x)
  (gradient,) = pullback(jnp.ones(6))
  np.testing.assert_array_equal(got[2], 0)
  np.testing.assert_array_equal(gradient[2], np.zeros(5))
  assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient[0]) > 0)


@pytest.mark.parametrize('length', [1e-3, 1.0, 1e3])
def test_second_derivatives_of_norms(length):
  x = length * vectors()[0]
  with jax.enable_x64(True):
    got = jax.jit(jax.hessian(losses.norms))(x)
  # d2 |x| = (1 - u u') / |x|
  want = (np.eye(5) - np.outer(unit(x), unit(x))) / np.linalg.norm(x)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12 / length)


def test_norms_of_any_shape_and_dtype():
  x = vectors(6, 5).reshape(2, 3, 5)
  assert losses.norms(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32
  with jax.enable_x64(True):
    got = jax.jit(losses.norms)(x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, np.linalg.norm(x, axis=-1), rtol=1e-14)


# Sub-centres.


def subcenters(count, dtype=np.float32):
  rng = np.random.default_rng(3)
  return rng.normal(size=(4, count, 5)).astype(dtype)


def test_subcenter_cosines_are_those_of_the_nearest():
  x, w = vectors(), subcenters(3, np.float64)
  each = np.einsum('bd,ckd->bck', unit(x), unit(w))
  weights = vectors(6, 4, seed=2)
  with jax.enable_x64(True):
    got, gx, gw = jax.jit(
      lambda x, w: (
        losses.subcenter_cosines(x, w),
        *jax.vjp(losses.subcenter_cosines, x, w)[1](weights),
      )
    )(x, w)
  np.testing.assert_allclose(got, each.max(axis=2), rtol=1e-13)
  # The gradient of a cosine, of the nearest alone.
  pull = weights[:, :, None] * (each == each.max(axis=2, keepdims=True))
  along = (pull * each).sum(axis=(1, 2))[:, None] * unit(x)
  want = np.einsum('bck,ckd->bd', pull, unit(w)) - along
  np.testing.assert_allclose(
    gx, want / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-13
  )
  along = (pull * each).sum(axis=0)[:, :, None] * unit(w)
  want = np.einsum('bck,bd->ckd', pull, unit(x)) - along
  np.testing.assert_allclose(
    gw, want / np.linalg.norm(w, axis=2, keepdims=True), atol=1e-13
  )


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
def test_one_subcenter_is_the_class_centre_bit_for_bit(transform):
  x, w = vectors().astype(np.float32), subcenters(1)
  weights = vectors(6, 4, seed=2).astype(np.float32)

  @transform
  def run(x, w):
    loss = losses.cosines if w.ndim == 2 else losses.subcenter_cosines
    value, pullback = jax.vjp(loss, x, w)
    return value, *pullback(weights)

  got, want = run(x, w), run(x, w[:, 0])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a.reshape(b.shape), b)


def test_equal_subcenters_share_the_gradient():
  x, w = vectors().astype(np.float32), np.repeat(subcenters(1), 2, axis=1)
  np.testing.assert_allclose(
    losses.subcenter_cosines(x, w), losses.cosines(x, w[:, 0]), atol=2e-7
  )
  total = lambda f: jax.grad(lambda w: f(x, w).sum())
  got = total(losses.subcenter_cosines)(w)
  np.testing.assert_array_equal(got[:, 0], got[:, 1])
  want = total(losses.cosines)(w[:, 0])
  np.testing.assert_allclose(got.sum(axis=1), want, rtol=1e-5, atol=1e-6)


def test_order_of_subcenters_and_their_lengths_do_not_count():
  x, w = vectors().astype(np.float32), subcenters(3)
  want = losses.subcenter_cosines(x, w)
  np.testing.assert_array_equal(
    losses.subcenter_cosines(x, w[:, [2, 0, 1]]), want
  )
  got = losses.subcenter_cosines(
    4 * x, w * np.float32([0.5, 8, 2**60])[:, None]
  )
  np.testing.assert_array_equal(got, want)


def test_zero_and_narrow_subcenters():
  x, w = vectors().astype(np.float32), subcenters(3)
  x[0], w[1, 2], w[2] = 0, 0, 0
  got = losses.subcenter_cosines(x, w)
  np.testing.assert_array_equal(got[0], np.zeros(4))
  np.testing.assert_array_equal(got[:, 2], np.zeros(6))
  assert np.all(np.asarray(got)[1:, 1] >= 0)
  gx, gw = jax.jit(
    jax.grad(lambda x, w: losses.subcenter_cosines(x, w).sum(), (0, 1))
  )(x, w)
  assert np.all(np.isfinite(gx)) and np.all(np.isfinite(gw))
  np.testing.assert_array_equal(gx[0], np.zeros(5))
  narrow = losses.subcenter_cosines(
    *(jnp.asarray(a, jnp.bfloat16) for a in (x, w))
  )
  assert narrow.dtype == jnp.float32


def test_wrong_subcenters_are_refused():
  x, w = jnp.ones((2, 3)), jnp.ones((4, 2, 3))
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


@pytest.mark.parametrize('kind', LOGITS)
@pytest.mark.parametrize('margin', ['one', 'each'])
def test_logits_change_the_target_alone(kind, margin):
  cosines, labels, margins = batch()
  margins = np.float32(0.4) if margin == 'one' else margins
  got = np.array(LOGITS[kind](cosines, labels, margins, scale=30.0))
  assert got.dtype == np.float32

  rows = np.arange(8)
  target = cosines[rows, labels].astype(np.float64)
  change = {
    'arc': lambda c, m: np.cos(np.arccos(c) + m),
    'cos': lambda c, m: c - m,
  }[kind]
  np.testing.assert_allclose(
    got[rows, labels], 30 * change(target, margins), atol=30 * 2**-23
  )
  got[rows, labels] = (np.float32(30) * cosines)[rows, labels]
  np.testing.assert_array_equal(got, np.float32(30) * cosines)


def test_the_default_scale_is_64():
  cosines, labels, margins = batch()
  for logits in LOGITS.values():
    np.testing.assert_array_equal(
      logits(cosines, labels, margins),
      logits(cosines, labels, margins, scale=64.0),
    )


@pytest.mark.parametrize('kind', LOGITS)
def test_narrow_cosines_make_float32_logits_and_float64_stays(kind):
  cosines, labels, margins = batch()
  narrow = jnp.asarray(cosines, jnp.bfloat16)
  got = LOGITS[kind](narrow, labels, margins)
  assert got.dtype == jnp.float32
  wide = LOGITS[kind](narrow.astype(jnp.float32), labels, margins)
  np.testing.assert_array_equal(got, wide)
  with jax.enable_x64(True):
    wider = LOGITS[kind](cosines.astype(np.float64), labels, margins)
  assert wider.dtype == np.float64


@pytest.mark.parametrize('kind', LOGITS)
def test_logits_under_jit_and_vmap(kind):
  cosines, labels, margins = batch()
  want = LOGITS[kind](cosines, labels, margins)
  # XLA may fuse a product and a sum into one rounding.
  got = jax.jit(LOGITS[kind])(cosines, labels, margins)
  np.testing.assert_allclose(got, want, rtol=0, atol=64 * 2**-23)
  halves = [x.reshape(2, 4, *x.shape[1:]) for x in (cosines, labels, margins)]
  got = jax.vmap(LOGITS[kind])(*halves).reshape(8, 5)
  np.testing.assert_allclose(got, want, rtol=0, atol=64 * 2**-23)


def test_no_arccos_and_no_scatter():
  cosines, labels, margins = batch()
  total = lambda c: losses.arcface_logits(c, labels, margins).sum()
  program = str(jax.make_jaxpr(jax.value_and_grad(total))(cosines))
  assert 'cos' in program
  assert 'acos' not in program and 'atan' not in program
  assert 'scatter' not in program


def test_picked_targets_and_their_gradient():
  cosines, labels, _ = batch()
  got, pullback = jax.vjp(
    lambda c: pick_target(c, jnp.asarray(labels, jnp.int32)), cosines
  )
  np.testing.assert_array_equal(got, cosines[np.arange(8), labels])
  (gradient,) = pullback(jnp.arange(1.0, 9.0))
  want = np.zeros_like(cosines)
  want[np.arange(8), labels] = np.arange(1, 9)
  np.testing.assert_array_equal(gradient, want)
  outside = pick_target(jnp.asarray(cosines), jnp.full(8, 5, jnp.int32))
  np.testing.assert_array_equal(outside, np.zeros(8))


def test_straight_through_logits():
  cosines, labels, margins = batch()
  run = lambda gradient: jax.vjp(
    lambda c: losses.arcface_logits(c, labels, margins, gradient=gradient),
    cosines,
  )
  (exact, _), (got, pullback) = run('exact'), run('straight_through')
  np.testing.assert_array_equal(got, exact)
  (gradient,) = pullback(jnp.ones_like(got))
  np.testing.assert_array_equal(gradient, np.full_like(cosines, 64))
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    run('none')


def test_labels_of_any_integer_type():
  cosines, labels, _ = batch(4, 300)
  labels[:] = [0, 100, 200, 255]
  want = losses.cosface_logits(cosines, labels, 0.35)
  for dtype in (np.uint8, np.int16, np.uint32, np.int64):
    got = losses.cosface_logits(cosines, labels.astype(dtype), 0.35)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('kind', LOGITS)
def test_wrong_arguments_are_refused(kind):
  logits = LOGITS[kind]
  c, y = jnp.zeros((4, 3)), jnp.zeros(4, int)
  with pytest.raises(ValueError, match=r'cosines must be \[B, C\].*\(3,\)'):
    logits(c[0], y, 0.5)
  with pytest.raises(ValueError, match=r'labels.*\(4, 3\).*\(3,\)'):
    logits(c, y[:3], 0.5)
  with pytest.raises(ValueError, match=r'labels.*\(4, 1\)'):
    logits(c, y[:, None], 0.5)
  with pytest.raises(ValueError, match=r'margins.*\(4, 3\).*\(3,\)'):
    logits(c, y, jnp.zeros(3))
  with pytest.raises(ValueError, match=r'margins.*\(4, 1\)'):
    logits(c, y, jnp.zeros((4, 1)))
  with pytest.raises(TypeError, match='labels must be integer.*float32'):
    logits(c, c[:, 0], 0.5)
  with pytest.raises(TypeError, match='labels must be integer.*bool'):
    logits(c, c[:, 0] > 0, 0.5)
  with pytest.raises(TypeError, match='cosines must be floating.*int32'):
    logits(jnp.zeros((4, 3), int), y, 0.5)
