# SPDX-License-Identifier: Apache-2.0
"""Losses with norms and states against NumPy in float64, from the papers.

A state is float32 in either mode: what is computed from it takes its digits as
they are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses

from . import programs
from .programs import ADAPTIVE, KIND, STATES
from .reference import (
  adaface_margins,
  check_float32,
  check_float64,
  edges,
  magface_margins,
  reference,
  rounding,
  unit,
  vectors,
)

ADA, T = STATES['adaface'], STATES['curricularface']
QUICK = programs.QUICK


def call(name, cosines, labels, norms, **options):
  key = jax.random.key(0)
  return programs.call(name, cosines, labels, norms, key=key, **options)


# Margins and states.


@pytest.mark.parametrize('size', [1, 2, 32])
def test_adaface_margins_and_state(size):
  run = jax.jit(losses.adaface_margins, compiler_options=QUICK)
  for ema_rate in (0.01, 0.5, 1.0):
    options = {'margin': 0.3, 'h': 0.5, 'ema_rate': ema_rate}
    state = want_state = losses.adaface_init()
    for step in range(3):
      norms = programs.make_norms(size, seed=step)
      want, want_state = adaface_margins(
        norms, losses.AdaFaceState(*want_state), **options
      )
      got, state = run(norms, state, **options)
      np.testing.assert_allclose(state, want_state, rtol=1e-6)
      assert state.mean.dtype == state.std.dtype == np.float32
      np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_adaface_margins_reach_both_ends():
  norms = np.resize(np.float32([1, 39, 41, 99]), 32)
  state = losses.AdaFaceState(np.float32(40), np.float32(5))
  (a, b), _ = losses.adaface_margins(norms, state, ema_rate=0.0, margin=0.4)
  a, b = np.asarray(a), np.asarray(b)
  np.testing.assert_array_equal(a[[0, 3]], np.float32([0.4, -0.4]))
  np.testing.assert_array_equal(b[[0, 3]], np.float32([0, 0.8]))
  assert 0 < a[1] < 0.4 and -0.4 < a[2] < 0
  np.testing.assert_allclose(a + b, np.full(32, 0.4), rtol=1e-6)


def test_norms_are_clipped_before_they_enter_the_state():
  norms = np.resize(np.float32([0, 0, 1e9, 1e30]), 32)
  _, state = losses.adaface_margins(norms, ADA, ema_rate=1.0)
  want = np.resize([1e-3, 1e-3, 100, 100], 32)
  np.testing.assert_allclose(state, (want.mean(), want.std(ddof=1)), rtol=1e-6)


@pytest.mark.parametrize('wide', [False, True])
def test_magface_margins_regulariser_and_slopes(wide):
  norms = np.append(programs.make_norms(), [0, 1e30])
  norms = norms.astype(float if wide else np.float32)
  *want, margin_slope, regularizer_slope = magface_margins(norms)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(norms):
    ones = jnp.ones_like(norms)
    return (
      *jax.jvp(losses.magface_margins, (norms,), (ones,)),
      losses.magface_margins(norms, regularizer_weight=17.5),
    )

  with jax.enable_x64(wide):
    got, (by_margin, by_regularizer), half = run(norms)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-12 if wide else 1e-6, atol=1e-9
  )
  close(got, want)
  close(by_margin, margin_slope)
  close(by_regularizer, regularizer_slope)
  # The regulariser decreases with the norm.
  assert np.all(regularizer_slope <= 0)
  # Its weight changes the regulariser alone.
  close(half[0], want[0])
  close(2 * np.asarray(half[1]), want[1])


def test_curricularface_margins_and_state():
  state, t = losses.curricularface_init(), 0.0
  for seed in range(3):
    targets = np.random.default_rng(seed).uniform(-1, 1, 32).astype(np.float32)
    (margin, got), state = losses.curricularface_margins(
      targets, state, margin=0.4, ema_rate=0.25
    )
    t = 0.25 * targets.astype(float).mean() + 0.75 * t
    np.testing.assert_allclose(got, t, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got, state.t)
    assert margin == 0.4 and state.t.dtype == np.float32


def test_first_states():
  np.testing.assert_array_equal(losses.adaface_init(), [20, 100])
  np.testing.assert_array_equal(losses.curricularface_init(), [0])


@pytest.mark.parametrize('name', STATES)
def test_the_loss_returns_the_state_of_its_margins(name):
  cosines, labels, norms = programs.example()
  _, state = programs.eager()[name]
  if name == 'adaface':
    _, want = losses.adaface_margins(norms, ADA)
  else:
    targets = cosines[np.arange(32), labels]
    _, want = losses.curricularface_margins(targets, T)
  np.testing.assert_array_equal(state, want)
  assert np.all(np.array(state) != np.array(STATES[name]))


# The losses.


@pytest.mark.parametrize('program', ['float32', 'float64'])
@pytest.mark.parametrize('batch_kind', ['uniform', 'trained'])
@pytest.mark.parametrize('name', ADAPTIVE)
def test_loss_and_gradients(name, batch_kind, program):
  cosines, labels, norms = programs.example(batch_kind)
  wide = program == 'float64'
  for scale in (64.0, 30.0, 4.0):
    result = programs.results(batch_kind, program, scale)[name]
    margins = programs.adaptive_margins(name, norms, result.extra)
    *want, pull = reference(cosines, labels, margins, scale, KIND[name])
    by_norms = np.zeros(32)
    if name == 'magface':
      target = cosines[np.arange(32), labels].astype(np.float64)
      _, regularizer, slope, _ = magface_margins(norms)
      np.testing.assert_allclose(
        result.extra, regularizer, rtol=1e-12 if wide else 1e-6
      )
      turned = -np.sin(np.arccos(target) + margins[0]) * (target > 0)
      by_norms = scale * pull * turned * slope
    if wide:
      check_float64(result[:3], (*want, by_norms))
    else:
      check_float32(result[:2], want, KIND[name], scale)
      np.testing.assert_allclose(
        result.by_norms, by_norms, rtol=rounding(KIND[name], scale), atol=1e-37
      )


def test_the_batches_reach_what_they_test():
  cosines, labels, norms = programs.example()
  target = cosines[np.arange(32), labels]
  angle = np.arccos(target)
  _, state = programs.eager()['adaface']
  a, _ = programs.adaptive_margins('adaface', norms, state)
  assert np.any(angle + a < 1e-3) and np.any(angle + a > np.pi - 1e-3)
  assert np.any(a == 0.4) and np.any(a == -0.4) and np.any(np.abs(a) < 0.3)
  assert np.any(target < 0) and np.any(target > 0)
  assert np.any(norms < 10) and np.any(norms > 110)
  assert np.any(angle + 0.5 > np.pi)
  others = cosines[np.arange(20) != labels[:, None]].reshape(32, 19)
  hard = others > np.cos(angle + 0.5)[:, None]
  assert 0.1 < hard.mean() < 0.9


def test_no_gradient_to_norms_and_states():
  cosines, labels, norms = programs.example()

  @functools.partial(jax.jit, compiler_options=QUICK)
  @functools.partial(jax.grad, argnums=(0, 1))
  def of_everything(norms, states):
    total = 0.0
    for name, state in states.items():
      loss, new = call(
        name, cosines, labels, norms, states={name: state}, ema_rate=0.5
      )
      total += loss.sum() + sum(new)
    return total

  gradients = of_everything(norms, STATES)
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_curricularface_has_no_gradient_through_the_mean():
  cosines, labels, _ = programs.example()

  @functools.partial(jax.jit, compiler_options=QUICK)
  @jax.grad
  def gradient(cosines):
    return losses.curricularface(cosines, labels, T, ema_rate=1.0)[1].t

  np.testing.assert_array_equal(gradient(cosines), 0 * cosines)


# Properties.


@pytest.mark.parametrize('name', ADAPTIVE)
def test_a_permuted_batch_has_permuted_losses(name):
  cosines, labels, norms = programs.example()
  order = np.random.default_rng(0).permutation(32)
  want = programs.results('uniform', 'float32')[name]
  got = programs.evaluate(cosines[order], labels[order], norms[order])[name]
  if name == 'magface':
    np.testing.assert_array_equal(got.extra, want.extra[order])
  else:  # The order of a sum.
    np.testing.assert_allclose(got.extra, want.extra, rtol=1e-6)
  for a, b in zip(got[:3], want[:3], strict=True):
    b = b[order]
    if name == 'magface':
      np.testing.assert_array_equal(a, b)
    largest = np.abs(b).reshape(32, -1).max(axis=1)
    error = np.abs(a - b).reshape(32, -1).max(axis=1)
    assert np.all(error <= rounding(name, 64) * largest)


@pytest.mark.parametrize('scale', [64.0, 1000.0])
def test_nothing_overflows(scale):
  cosines, labels = edges()
  norms = np.resize(np.float32([0, 1e-30, 20, 1e30, 100]), 32)
  results = programs.evaluate(cosines, labels, norms, scale=scale)
  for name in ADAPTIVE:
    for result in jax.tree.leaves(results[name]):
      assert np.all(np.isfinite(result))
    margins = programs.adaptive_margins(name, norms, results[name].extra)
    want, _, _ = reference(cosines, labels, margins, scale, KIND[name])
    np.testing.assert_allclose(
      results[name].loss, want, rtol=1e-6, atol=scale * 2**-21
    )


@pytest.mark.parametrize('margin', [0.0, np.pi])
def test_margins_at_their_ends_are_finite(margin):
  cosines, labels = edges()
  margins = {
    name: dict.fromkeys(options, margin)
    for name, (_, options) in ADAPTIVE.items()
  }
  results = programs.evaluate(cosines, labels, margins=margins)
  for name in ADAPTIVE:
    for result in jax.tree.leaves(results[name]):
      assert np.all(np.isfinite(result))


def test_magface_changes_norms_by_loss_and_regulariser():
  # Far from its class centre an embedding is drawn in, for the margin; else
  # the regulariser lengthens it.
  x, w = 40 * unit(vectors(8, 6)), vectors(4, 6, seed=1)
  labels = np.random.default_rng(0).integers(0, 4, 8)

  def objective(x):
    loss, regularizer = losses.magface(
      losses.cosines(x, w), labels, losses.norms(x)
    )
    return (loss + regularizer).sum()

  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradients(x):
    by_norm = jax.grad(
      lambda n: losses.magface(losses.cosines(x, w), labels, n)[0].sum()
    )
    return jax.grad(objective)(x), by_norm(losses.norms(x))

  with jax.enable_x64(True):
    gradient, by_norm = map(np.asarray, gradients(x))
  # A cosine's gradient is at right angles to the embedding.
  along = (gradient * x).sum(axis=1) / 40
  *_, slope = magface_margins(np.full(8, 40.0))
  np.testing.assert_allclose(along, by_norm + slope, rtol=1e-9)


# Arguments.


@pytest.mark.parametrize('name', ADAPTIVE)
def test_defaults_are_those_documented(name):
  arrays = np.zeros((4, 3)), np.zeros(4, int), np.ones(4)
  stated = {
    'adaface': {'margin': 0.4, 'h': 0.333, 'ema_rate': 0.01},
    'magface': {
      'lower_norm': 10.0,
      'upper_norm': 110.0,
      'lower_margin': 0.45,
      'upper_margin': 0.8,
      'regularizer_weight': 35.0,
    },
    'curricularface': {'margin': 0.5, 'ema_rate': 0.01},
  }[name] | {'scale': 64.0}

  def trace(**options):
    run = functools.partial(call, name, **options)
    return str(jax.make_jaxpr(run)(*arrays))

  assert trace() == trace(**stated)
  assert trace() != trace(**stated | {'scale': 1.0})


@pytest.mark.parametrize('name', ADAPTIVE)
def test_wrong_arguments_are_refused(name):
  c, y, n = np.zeros((4, 3)), np.zeros(4, int), np.ones(4)

  def check(error, match, *arrays):
    with pytest.raises(error, match=match):
      jax.eval_shape(functools.partial(call, name), *arrays)

  check(ValueError, r'cosines must be \[B, C\].*\(3,\)', c[0], y, n)
  check(ValueError, r'labels.*\(4, 3\).*\(2,\)', c, y[:2], n[:2])
  check(TypeError, 'labels must be integer.*float32', c, c[:, 0], n)
  check(TypeError, 'cosines must be floating.*int32', c.astype(int), y, n)
  if name != 'curricularface':
    check(ValueError, r'norms must be .*\(4,\).*\(3,\)', c, y, n[:3])
    check(ValueError, r'norms must be .*\(4, 1\)', c, y, n[:, None])
    check(TypeError, 'norms must be floating.*int32', c, y, y)


def test_wrong_norms_of_margins_are_refused():
  for make in (
    losses.magface_margins,
    lambda norms: losses.adaface_margins(norms, ADA),
  ):
    with pytest.raises(ValueError, match=r'norms must be \[B\].*\(2, 3\)'):
      make(np.ones((2, 3)))
    with pytest.raises(TypeError, match='norms must be floating.*int32'):
      make(np.ones(3, int))


@pytest.mark.parametrize('low, high', [(0.0, 110.0), (20.0, 10.0), (5.0, 5.0)])
def test_wrong_limits_are_refused(low, high):
  with pytest.raises(ValueError, match=f'rise from above 0.*{low} and {high}'):
    losses.magface_margins(np.ones(3), lower_norm=low, upper_norm=high)
