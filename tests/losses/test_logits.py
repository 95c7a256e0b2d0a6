# SPDX-License-Identifier: Apache-2.0
"""Cosines and margined logits against NumPy in float64, from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.losses.logits import arc_target, cos_target, normalize

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


# The target.


def angles(count=400, seed=0):
  rng = np.random.default_rng(seed)
  cosines = rng.uniform(-0.999, 0.999, count).astype(np.float32)
  margins = rng.normal(0.5, 0.05, count).astype(np.float32)
  return cosines, margins


def slopes(target, cosines, margins, **kwargs):
  total = lambda c: target(c, margins, **kwargs).sum()
  return np.asarray(jax.grad(total)(cosines), np.float64)


def test_arc_target_and_its_slope():
  cosines, margins = angles()
  theta = np.arccos(cosines.astype(np.float64))
  want = np.cos(theta + margins)
  # One float32 ulp of 1: rounding, nothing else.
  np.testing.assert_allclose(
    arc_target(cosines, margins), want, rtol=0, atol=2**-23
  )
  slope = np.sin(theta + margins) / np.sin(theta)
  np.testing.assert_allclose(
    slopes(arc_target, cosines, margins), slope, rtol=1e-6, atol=1e-6
  )


def test_arc_target_in_float64():
  cosines, margins = (x.astype(np.float64) for x in angles())
  theta = np.arccos(cosines)
  with jax.enable_x64(True):
    got = arc_target(cosines, margins)
    slope = slopes(arc_target, cosines, margins)
  np.testing.assert_allclose(got, np.cos(theta + margins), atol=1e-15)
  want = np.sin(theta + margins) / np.sin(theta)
  np.testing.assert_allclose(slope, want, rtol=1e-12, atol=1e-12)


def test_arc_slope_has_no_floor_next_to_one():
  # The last float32 numbers before +-1, where any epsilon would show.
  cosines = np.float32([1 - 2**-24, -1 + 2**-24, 1 - 2**-23, 0.9999, -0.999])
  exact = cosines.astype(np.float64)
  want = np.cos(0.5) + np.sin(0.5) * exact / np.sqrt((1 - exact) * (1 + exact))
  np.testing.assert_allclose(slopes(arc_target, cosines, 0.5), want, rtol=1e-6)
  assert want[0] > 1000


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
def test_arc_target_is_finite_at_the_ends_and_beyond(transform):
  # Rounding puts the cosine of a vector with itself at 1 + 1e-7.
  cosines = jnp.array([1.0, -1.0, 1.0 + 2**-23, -1.0 - 2**-23])
  got = transform(arc_target)(cosines, jnp.full(4, 0.5))
  np.testing.assert_allclose(got, np.cos(0.5) * cosines, rtol=1e-6)
  slope = slopes(transform(arc_target), cosines, jnp.full(4, 0.5))
  np.testing.assert_allclose(slope, np.full(4, np.cos(0.5)), rtol=1e-6)


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
def test_straight_through_changes_the_slope_and_not_one_bit_else(transform):
  cosines, margins = angles()
  cosines = np.append(cosines, np.float32([1, -1, 0]))
  margins = np.append(margins, np.float32([0.5, 0.5, 0.5]))
  through = lambda c, m: arc_target(c, m, gradient='straight_through')
  np.testing.assert_array_equal(
    transform(through)(cosines, margins),
    transform(lambda c, m: arc_target(c, m))(cosines, margins),
  )
  np.testing.assert_array_equal(
    slopes(transform(through), cosines, margins), np.ones(403)
  )


def test_no_margin_changes_no_bit():
  cosines, _ = angles()
  np.testing.assert_array_equal(arc_target(cosines, 0.0), cosines)
  np.testing.assert_array_equal(cos_target(cosines, 0.0), cosines)


def test_slope_by_the_margin():
  cosines, margins = angles()
  theta = np.arccos(cosines.astype(np.float64))
  total = lambda target: lambda m: target(cosines, m).sum()
  np.testing.assert_allclose(
    jax.grad(total(arc_target))(margins), -np.sin(theta + margins), atol=3e-7
  )
  np.testing.assert_array_equal(
    jax.grad(total(cos_target))(margins), -np.ones(400)
  )


def test_an_unknown_gradient_is_refused():
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    arc_target(jnp.zeros(2), 0.5, gradient='none')
  with pytest.raises(ValueError, match="'none'"):
    losses.arcface_logits(
      jnp.zeros((2, 3)), jnp.zeros(2, int), 0.5, gradient='none'
    )


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
