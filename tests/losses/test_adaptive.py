# SPDX-License-Identifier: Apache-2.0
"""Losses with lengths and states against NumPy in float64, from the papers.

The reference is that of `test_softmax`; here are the margins and states that
go into it, and by hand the way from a length to MagFace's loss. A state is
float32 in either mode: what is made of it takes its digits as they are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses

from .test_softmax import (
  CASES,
  arcface,
  batch,
  check_an_ulp_of_the_target,
  check_float32,
  check_hard_vectors,
  edges,
  hard_vectors,
  normface,
  reduce,
  reduce_compiled,
  reference,
  rounding,
)

NAMED = ['adaface', 'magface', 'curricularface']
KIND = {
  'adaface': 'adaface',
  'magface': 'magface',
  'curricularface': 'curricular',
}
ADA = losses.AdaFaceState(np.float32(40), np.float32(10))
T = losses.CurricularFaceState(np.float32(0.3))


def call(name, cosines, labels, norms, state=None, **options):
  """The loss, and what comes with it."""
  if name == 'adaface':
    state = state or ADA
    return losses.adaface(cosines, labels, norms, state, **options)
  if name == 'magface':
    return losses.magface(cosines, labels, norms, **options)
  state = state or T
  return losses.curricularface(cosines, labels, state, **options)


def lengths(size=32, seed=3):
  """From below MagFace's limits to above, and to both ends of AdaFace's k."""
  norms = np.random.default_rng(seed).uniform(2, 130, size)
  return norms.astype(np.float32)


def example(size=32, classes=20, kind='uniform'):
  """A batch whose first two are held at either end by AdaFace."""
  cosines, labels = batch(size, classes, kind)
  norms = lengths(size)
  for row, cosine, norm in ((0, 0.97, 100), (1, -0.985, 3)):
    if row < size - 1:
      cosines[row, labels[row]], norms[row] = cosine, norm
  return cosines, labels, norms


@functools.partial(jax.jit, static_argnames='name')
def compiled(name, cosines, labels, norms, **options):
  """Loss, gradients by cosines and norms, and what comes with the loss."""

  def loss(cosines, norms):
    return call(name, cosines, labels, norms, **options)

  value, pullback, extra = jax.vjp(loss, cosines, norms, has_aux=True)
  return value, *pullback(jnp.ones_like(value)), extra


# Margins and states.


def adaface_by_hand(norms, state, margin=0.4, h=0.333, ema_rate=0.01):
  """``k``, and the new mean and deviation."""
  norms = np.clip(np.float64(norms), 1e-3, 100)
  mean = ema_rate * norms.mean() + (1 - ema_rate) * state.mean
  std = state.std
  if len(norms) > 1:
    std = ema_rate * norms.std(ddof=1) + (1 - ema_rate) * std
  k = np.clip(h * (norms - mean) / (std + 1e-3), -1, 1)
  return (-margin * k, margin + margin * k), (mean, std)


def magface_by_hand(norms, weight=35.0):
  """Margin and regulariser, and their slopes by the length."""
  a = np.clip(np.float64(norms), 10, 110)
  inside = a == norms
  margin = 0.45 + (a - 10) * 0.35 / 100
  regularizer = weight * (a / 110**2 + 1 / a)
  slope = weight * (1 / 110**2 - 1 / a**2)
  return margin, regularizer, 0.0035 * inside, slope * inside


@pytest.mark.parametrize('size', [1, 2, 32])
@pytest.mark.parametrize('ema_rate', [0.01, 0.5, 1.0])
def test_adaface_margins_and_state(size, ema_rate):
  options = {'margin': 0.3, 'h': 0.5, 'ema_rate': ema_rate}
  state = want_state = losses.adaface_init()
  for step in range(3):
    norms = lengths(size, seed=step)
    want, want_state = adaface_by_hand(
      norms, losses.AdaFaceState(*want_state), **options
    )
    got, state = jax.jit(losses.adaface_margins)(norms, state, **options)
    np.testing.assert_allclose(state, want_state, rtol=1e-6)
    assert state.mean.dtype == state.std.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_adaface_margins_reach_both_ends():
  norms = np.float32([1, 39, 41, 99])
  state = losses.AdaFaceState(np.float32(40), np.float32(5))
  (a, b), _ = losses.adaface_margins(norms, state, ema_rate=0.0, margin=0.4)
  np.testing.assert_array_equal(a[np.array([0, 3])], np.float32([0.4, -0.4]))
  np.testing.assert_array_equal(b[np.array([0, 3])], np.float32([0, 0.8]))
  assert 0 < a[1] < 0.4 and -0.4 < a[2] < 0
  np.testing.assert_allclose(a + b, np.full(4, 0.4), rtol=1e-6)


def test_lengths_are_limited_before_they_enter_the_state():
  norms = np.float32([0, 0, 1e9, 1e30])
  _, state = losses.adaface_margins(norms, ADA, ema_rate=1.0)
  want = np.array([1e-3, 1e-3, 100, 100])
  np.testing.assert_allclose(state, (want.mean(), want.std(ddof=1)), rtol=1e-6)


@pytest.mark.parametrize('wide', [False, True])
def test_magface_margins_regulariser_and_slopes(wide):
  norms = np.append(lengths(), [0, 1e30]).astype(float if wide else np.float32)
  *want, margin_slope, regularizer_slope = magface_by_hand(norms)
  with jax.enable_x64(wide):
    ones = jnp.ones_like(norms)
    got, (by_margin, by_regularizer) = jax.jit(
      lambda n: jax.jvp(losses.magface_margins, (n,), (ones,))
    )(norms)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-12 if wide else 1e-6, atol=1e-9
  )
  close(got, want)
  close(by_margin, margin_slope)
  close(by_regularizer, regularizer_slope)
  # Longer never pays for a longer length: the regulariser falls.
  assert np.all(regularizer_slope <= 0)
  # The weight of the regulariser is its own and only its own.
  half = losses.magface_margins(np.float32(norms), regularizer_weight=17.5)
  np.testing.assert_allclose(half[0], want[0], rtol=1e-6)
  np.testing.assert_allclose(2 * half[1], want[1], rtol=1e-6)


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


@pytest.mark.parametrize('name', ['adaface', 'curricularface'])
def test_the_loss_gives_back_the_state_of_its_margins(name):
  cosines, labels = batch()
  _, state = call(name, cosines, labels, lengths(), ema_rate=0.5)
  if name == 'adaface':
    _, want = losses.adaface_margins(lengths(), ADA, ema_rate=0.5)
  else:
    _, want = losses.curricularface_margins(
      cosines[np.arange(32), labels], T, ema_rate=0.5
    )
  np.testing.assert_array_equal(state, want)
  assert np.all(np.array(state) != np.array(ADA if name == 'adaface' else T))


# The losses.


def margins_by_hand(name, norms, state, wide=True):
  """Margins in float64, from the state after the step."""
  if name == 'adaface':
    k = np.clip(np.float64(norms), 1e-3, 100) - np.float64(state.mean)
    # The sum with 1e-3 is float32 too.
    k = np.clip(0.333 * k / np.float64(state.std + np.float32(1e-3)), -1, 1)
    return -0.4 * k, 0.4 + 0.4 * k
  if name == 'magface':
    return magface_by_hand(norms)[:1]
  return 0.5, np.float64(state.t)


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('size, classes, shape', CASES)
@pytest.mark.parametrize('name', NAMED)
def test_loss_and_gradients(name, size, classes, shape, wide):
  cosines, labels, norms = example(size, classes, shape)
  dtype = np.float64 if wide else np.float32
  for scale in (64.0, 30.0, 4.0):
    with jax.enable_x64(wide):
      value, gradient, by_norm, extra = compiled(
        name, cosines.astype(dtype), labels, norms.astype(dtype), scale=scale
      )
    margins = margins_by_hand(name, norms, extra)
    want, by_hand, pull = reference(cosines, labels, margins, scale, KIND[name])
    length_want = np.zeros(size)
    if name == 'magface':
      target = cosines[np.arange(size), labels].astype(np.float64)
      _, regularizer, slope, _ = magface_by_hand(norms)
      np.testing.assert_allclose(
        extra, regularizer, rtol=1e-12 if wide else 1e-6
      )
      turned = -np.sin(np.arccos(target) + margins[0]) * (target > 0)
      length_want = scale * pull * turned * slope
    if wide:
      assert value.dtype == gradient.dtype == by_norm.dtype == np.float64
      close = functools.partial(np.testing.assert_allclose, rtol=1e-10)
      close(value, want)
      close(gradient, by_hand)
      close(by_norm, length_want)
    else:
      check_float32((value, gradient), (want, by_hand), KIND[name], scale)
      np.testing.assert_allclose(
        by_norm, length_want, rtol=rounding(KIND[name], scale), atol=1e-37
      )


def test_the_batches_reach_what_they_test():
  cosines, labels, norms = example()
  target = cosines[np.arange(32), labels]
  angle = np.arccos(target)
  _, state = losses.adaface_margins(norms, ADA)
  a, _ = margins_by_hand('adaface', norms, state)
  assert np.any(angle + a < 1e-3) and np.any(angle + a > np.pi - 1e-3)
  assert np.any(a == 0.4) and np.any(a == -0.4) and np.any(np.abs(a) < 0.3)
  assert np.any(target < 0) and np.any(target > 0)
  assert np.any(norms < 10) and np.any(norms > 110)
  assert np.any(angle + 0.5 > np.pi)
  others = cosines[np.arange(20) != labels[:, None]].reshape(32, 19)
  hard = others > np.cos(angle + 0.5)[:, None]
  assert 0.1 < hard.mean() < 0.9


@pytest.mark.parametrize('name', ['adaface', 'curricularface'])
def test_no_gradient_to_lengths_and_state(name):
  cosines, labels = batch()
  state = ADA if name == 'adaface' else T

  def everything(norms, state):
    loss, new = call(name, cosines, labels, norms, state, ema_rate=0.5)
    return loss.sum() + sum(new)

  gradients = jax.grad(everything, (0, 1))(lengths(), state)
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_curricularface_has_no_gradient_through_the_mean():
  cosines, labels = batch()
  state = lambda c: losses.curricularface(c, labels, T, ema_rate=1.0)[1].t
  np.testing.assert_array_equal(jax.grad(state)(cosines), 0 * cosines)


# Reductions.

REDUCTIONS = {
  'adaface 0': (
    lambda c, y, m: losses.adaface(c, y, lengths(), ADA, margin=0.0)[0],
    normface,
  ),
  'magface 0': (
    lambda c, y, m: losses.magface(
      c, y, lengths(), lower_margin=0.0, upper_margin=0.0
    )[0],
    normface,
  ),
  'magface m': (
    lambda c, y, m: losses.magface(
      c, y, lengths(), lower_margin=m, upper_margin=m
    )[0],
    arcface,
  ),
  'curricularface 0': (
    lambda c, y, m: losses.curricularface(c, y, T, margin=0.0)[0],
    normface,
  ),
  'curricularface m': (
    lambda c, y, m: losses.curricularface(c, y, T, margin=m)[0],
    arcface,
  ),
}


def no_hard_negatives():
  """A trained batch whose others are far, and all targets near."""
  cosines, labels = batch(kind='trained')
  rows = np.arange(32)
  target = cosines[rows, labels].copy()
  cosines = -np.abs(cosines)
  cosines[rows, labels] = np.maximum(target, 0.75)
  return cosines - 0.01, labels


@pytest.mark.parametrize('run', [reduce, reduce_compiled])
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_reductions(reduction, run):
  cosines, labels = no_hard_negatives()
  margins = 0.5 if reduction.startswith('magface') else np.full(32, 0.5)
  got, want = (
    run(loss, jnp.asarray(cosines), labels, np.float32(margins))
    for loss in REDUCTIONS[reduction]
  )
  if run is reduce or reduction.endswith('0'):
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
  # Compiled, those with a margin may differ in the target's last bit.
  check_an_ulp_of_the_target(got, want)


# Properties.


@pytest.mark.parametrize('name', NAMED)
def test_a_permuted_batch_has_permuted_losses(name):
  cosines, labels = batch()
  norms, order = lengths(), np.random.default_rng(0).permutation(32)
  *want, extra = compiled(name, cosines, labels, norms, scale=64.0)
  *got, other = compiled(
    name, cosines[order], labels[order], norms[order], scale=64.0
  )
  if name == 'magface':
    np.testing.assert_array_equal(other, extra[order])
  else:  # The order of a sum.
    np.testing.assert_allclose(other, extra, rtol=1e-6)
  for a, b in zip(got, want, strict=True):
    b = np.asarray(b)[order]
    if name == 'magface':
      np.testing.assert_array_equal(a, b)
    largest = np.abs(b).reshape(32, -1).max(axis=1)
    error = np.abs(a - b).reshape(32, -1).max(axis=1)
    assert np.all(error <= rounding(name, 64) * largest)


@pytest.mark.parametrize('name', NAMED)
def test_turned_and_stretched_vectors_have_the_same_losses(name):
  rng = np.random.default_rng(5)
  embeddings, centers = 15 * rng.normal(size=(32, 8)), rng.normal(size=(20, 8))
  labels = rng.integers(0, 20, 32)
  turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
  stretch = np.exp(rng.normal(0, 5, (20, 1)))

  def run(x, w):
    with jax.enable_x64(True):
      return compiled(
        name, losses.cosines(x, w), labels, losses.norms(x), scale=64.0
      )[0]

  want = run(embeddings, centers)
  # A state in float32 may round to the other side.
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-10 if name == 'magface' else 1e-5
  )
  close(run(embeddings @ turn, centers @ turn), want)
  close(run(embeddings, centers * stretch), want)
  longer = run(1.5 * embeddings, centers)
  if name == 'curricularface':
    close(longer, want)
  else:  # Their length is what they say of themselves.
    assert np.mean(longer != want) > 0.5


@pytest.mark.parametrize('name', NAMED)
def test_jit_vmap_and_strict_promotion(name):
  cosines, labels, norms = example()
  run = functools.partial(call, name, scale=64.0)
  want, extra = run(cosines, labels, norms)
  with jax.numpy_dtype_promotion('strict'):
    jax.eval_shape(run, cosines, labels, norms)
  close = functools.partial(
    np.testing.assert_allclose, rtol=rounding(name, 64), atol=64 * 2**-23
  )
  got, *_, other = compiled(name, cosines, labels, norms, scale=64.0)
  close(got, want)
  np.testing.assert_allclose(other, extra, rtol=3e-7)
  twice = lambda x: np.stack([x, x])
  got, _ = jax.jit(jax.vmap(run))(*map(twice, (cosines, labels, norms)))
  close(got, twice(np.asarray(want)))


@pytest.mark.parametrize('name', NAMED)
def test_nothing_overflows(name):
  cosines, labels = edges()
  norms = np.resize(np.float32([0, 1e-30, 20, 1e30, 100]), 32)
  for scale in (64.0, 1000.0):
    value, gradient, by_norm, extra = compiled(
      name, cosines, labels, norms, scale=scale
    )
    for result in (value, gradient, by_norm, *jax.tree.leaves(extra)):
      assert np.all(np.isfinite(result))
    margins = margins_by_hand(name, norms, extra)
    want, _, _ = reference(cosines, labels, margins, scale, KIND[name])
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=scale * 2**-21)


@pytest.mark.parametrize('margin', [0.0, np.pi])
def test_margins_at_their_ends_are_finite(margin):
  cosines, labels = edges()
  norms = lengths()
  for name in NAMED:
    options = {'margin': margin}
    if name == 'magface':
      options = {'lower_margin': margin, 'upper_margin': margin}
    results = compiled(name, cosines, labels, norms, scale=64.0, **options)
    for result in jax.tree.leaves(results):
      assert np.all(np.isfinite(result))


@pytest.mark.parametrize('name', NAMED)
def test_one_class_costs_nothing(name):
  cosines = jnp.array([[0.3], [1.0], [-1.0]])
  norms = np.float32([20, 0, 200])
  value, gradient, by_norm, _ = compiled(
    name, cosines, jnp.zeros(3, int), norms, scale=64.0
  )
  np.testing.assert_array_equal(value, np.zeros(3))
  np.testing.assert_array_equal(gradient, np.zeros((3, 1)))
  np.testing.assert_array_equal(by_norm, np.zeros(3))


@pytest.mark.parametrize('name', NAMED)
def test_finite_through_aligned_opposed_and_zero_vectors(name):
  embeddings, centers, labels = hard_vectors()
  cosines = losses.cosines(embeddings, centers)
  norms, pullback = jax.vjp(losses.norms, embeddings)
  value, pull, by_norm, _ = compiled(name, cosines, labels, norms, scale=64.0)
  (gradient,) = pullback(by_norm)
  assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))
  check_hard_vectors(embeddings, centers, pull)


def test_magface_drives_lengths_by_loss_and_regulariser():
  # Far from its class centre an embedding is drawn in, for the margin; else
  # the regulariser lengthens it.
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(8, 6)), rng.normal(size=(4, 6))
  x *= 40 / np.linalg.norm(x, axis=1, keepdims=True)
  labels = rng.integers(0, 4, 8)

  def objective(x):
    loss, regularizer = losses.magface(
      losses.cosines(x, w), labels, losses.norms(x)
    )
    return (loss + regularizer).sum()

  @jax.jit
  def gradients(x):
    by_norm = jax.grad(
      lambda n: losses.magface(losses.cosines(x, w), labels, n)[0].sum()
    )
    return jax.grad(objective)(x), by_norm(losses.norms(x))

  with jax.enable_x64(True):
    gradient, by_norm = map(np.asarray, gradients(x))
  # A cosine's gradient is at right angles to the embedding.
  along = (gradient * x).sum(axis=1) / 40
  *_, slope = magface_by_hand(np.full(8, 40.0))
  np.testing.assert_allclose(along, by_norm + slope, rtol=1e-9)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', NAMED)
def test_narrow_inputs_give_float32_losses(name, dtype):
  cosines, labels = batch()
  narrow = jnp.asarray(cosines, dtype), jnp.asarray(lengths(), dtype)
  got, extra = call(name, narrow[0], labels, narrow[1])
  assert {x.dtype for x in jax.tree.leaves((got, extra))} == {got.dtype}
  assert got.dtype == jnp.float32
  wide = [x.astype(jnp.float32) for x in narrow]
  want, other = call(name, wide[0], labels, wide[1])
  np.testing.assert_array_equal(got, want)
  for a, b in zip(*map(jax.tree.leaves, (extra, other)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', NAMED)
def test_defaults_are_those_documented(name):
  cosines, labels = batch()
  named = {
    'adaface': {'margin': 0.4, 'h': 0.333, 'ema_rate': 0.01},
    'magface': {
      'lower_norm': 10.0,
      'upper_norm': 110.0,
      'lower_margin': 0.45,
      'upper_margin': 0.8,
      'regularizer_weight': 35.0,
    },
    'curricularface': {'margin': 0.5, 'ema_rate': 0.01},
  }[name]
  got = call(name, cosines, labels, lengths())
  want = call(name, cosines, labels, lengths(), scale=64.0, **named)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', NAMED)
def test_wrong_arguments_are_refused(name):
  c, y, n = jnp.zeros((4, 3)), jnp.zeros(4, int), jnp.ones(4)
  with pytest.raises(ValueError, match=r'cosines must be \[B, C\].*\(3,\)'):
    call(name, c[0], y, n)
  with pytest.raises(ValueError, match=r'labels.*\(4, 3\).*\(2,\)'):
    call(name, c, y[:2], n[:2])
  with pytest.raises(TypeError, match='labels must be integer.*float32'):
    call(name, c, c[:, 0], n)
  with pytest.raises(TypeError, match='cosines must be floating.*int32'):
    call(name, jnp.zeros((4, 3), int), y, n)
  if name != 'curricularface':
    with pytest.raises(ValueError, match=r'norms must be .*\(4,\).*\(3,\)'):
      call(name, c, y, n[:3])
    with pytest.raises(ValueError, match=r'norms must be .*\(4, 1\)'):
      call(name, c, y, n[:, None])
    with pytest.raises(TypeError, match='norms must be floating.*int32'):
      call(name, c, y, y)


def test_wrong_norms_of_margins_are_refused():
  for make in (
    losses.magface_margins,
    lambda norms: losses.adaface_margins(norms, ADA),
  ):
    with pytest.raises(ValueError, match=r'norms must be \[B\].*\(2, 3\)'):
      make(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match='norms must be floating.*int32'):
      make(jnp.ones(3, int))


@pytest.mark.parametrize('low, high', [(0.0, 110.0), (20.0, 10.0), (5.0, 5.0)])
def test_wrong_limits_are_refused(low, high):
  with pytest.raises(ValueError, match=f'rise from above 0.*{low} and {high}'):
    losses.magface_margins(jnp.ones(3), lower_norm=low, upper_norm=high)
