# SPDX-License-Identifier: Apache-2.0
"""Losses that for some margins are another loss, to the last bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses

from . import programs
from .reference import batch, check_an_ulp_of_the_target, check_bits

NORMS, STATES = programs.make_norms(), programs.STATES


def normface(c, y, m):
  return losses.normface(c, y)


def arcface(c, y, m):
  return losses.arcface(c, y, margin=m)


def cosface(c, y, m):
  return losses.cosface(c, y, margin=m)


# A loss of margins m, ``[B]``, and the loss that it is.
PLAIN = {
  'combined arc': (
    lambda c, y, m: losses.combined_margin(c, y, m1=1.0, m2=m, m3=0.0),
    arcface,
  ),
  'combined cos': (
    lambda c, y, m: losses.combined_margin(c, y, m1=1.0, m2=0.0, m3=m),
    cosface,
  ),
  'combined 0': (
    lambda c, y, m: losses.combined_margin(c, y, m2=0.0),
    normface,
  ),
  'sphereface 1': (
    lambda c, y, m: losses.sphereface(c, y, margin=1.0, scale=64.0),
    normface,
  ),
  'arcface 0': (lambda c, y, m: losses.arcface(c, y, margin=0.0), normface),
  'cosface 0': (lambda c, y, m: losses.cosface(c, y, margin=0.0), normface),
}
# Likewise, where no negative is hard and no target far.
ADAPTIVE = {
  'adaface 0': (
    lambda c, y, m: losses.adaface(
      c, y, NORMS.astype(c.dtype), STATES['adaface'], margin=0.0
    )[0],
    normface,
  ),
  'magface 0': (
    lambda c, y, m: losses.magface(
      c, y, NORMS.astype(c.dtype), lower_margin=0.0, upper_margin=0.0
    )[0],
    normface,
  ),
  'magface m': (
    lambda c, y, m: losses.magface(
      c, y, NORMS.astype(c.dtype), lower_margin=m, upper_margin=m
    )[0],
    arcface,
  ),
  'curricularface 0': (
    lambda c, y, m: losses.curricularface(
      c, y, STATES['curricularface'], margin=0.0
    )[0],
    normface,
  ),
  'curricularface m': (
    lambda c, y, m: losses.curricularface(
      c, y, STATES['curricularface'], margin=m
    )[0],
    arcface,
  ),
}
REDUCTIONS = PLAIN | ADAPTIVE
PARENTS = {loss.__name__: loss for loss in (normface, arcface, cosface)}


def run_all(are_parents, cosines, labels, margins):
  """Losses and gradients by the cosines, of the losses or of their parents."""
  chosen = PARENTS if are_parents else {k: v[0] for k, v in REDUCTIONS.items()}
  results = {}
  for name, loss in chosen.items():
    value, pullback = jax.vjp(lambda c, f=loss: f(c, labels, margins), cosines)
    results[name] = value, *pullback(jnp.ones_like(value))
  return results


# The losses and their parents are compiled apart, as users compile them.
run_float32 = jax.jit(run_all, static_argnums=0)
run_float64 = jax.jit(
  run_all, static_argnums=0, compiler_options=programs.QUICK
)


def no_hard_negatives():
  """A trained batch whose others are far, and all targets near."""
  cosines, labels = batch(kind='trained')
  each = np.arange(32)
  target = cosines[each, labels].copy()
  cosines = -np.abs(cosines)
  cosines[each, labels] = np.maximum(target, 0.75)
  return cosines - np.float32(0.01), labels


MARGINS = np.linspace(0.3, 0.6, 32)


@functools.cache
def compiled(is_plain, wide):
  """Results of the losses, and of their parents."""
  cosines, labels = batch(kind='trained') if is_plain else no_hard_negatives()
  dtype = np.float64 if wide else np.float32
  run = run_float64 if wide else run_float32
  arrays = cosines.astype(dtype), labels, MARGINS.astype(dtype)
  with jax.enable_x64(wide):
    return [
      jax.tree.map(np.asarray, run(are_parents, *arrays))
      for are_parents in (False, True)
    ]


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_compiled(reduction, wide):
  results, parents = compiled(reduction in PLAIN, wide)
  parent = REDUCTIONS[reduction][1].__name__
  got, want = results[reduction], parents[parent]
  assert got[0].dtype == got[1].dtype == (np.float64 if wide else np.float32)
  if reduction in ('magface m', 'curricularface m'):
    # Compiled, these may differ in the target's last bit.
    check_an_ulp_of_the_target(got, want)
  else:
    check_bits(got, want)


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_op_by_op(reduction):
  is_plain = reduction in PLAIN
  cosines, labels = batch(kind='trained') if is_plain else no_hard_negatives()
  got, want = (
    loss(cosines, labels, np.float32(MARGINS)) for loss in REDUCTIONS[reduction]
  )
  np.testing.assert_array_equal(got, want)


def test_a_constant_combined_margin_is_its_part_to_an_ulp_of_the_target():
  # A margin known when XLA compiles gives arcface another last bit than the
  # same margin given at run time. The combined margin has the latter's.
  cosines, labels = batch(kind='trained')
  combined, alone = REDUCTIONS['combined arc']

  def constant(loss):
    value, pullback = jax.vjp(lambda c: loss(c, labels, 0.5), cosines)
    return value, *pullback(jnp.ones_like(value))

  got, with_constant = (
    jax.tree.map(np.asarray, jax.jit(constant, static_argnums=0)(loss))
    for loss in (combined, alone)
  )
  check_an_ulp_of_the_target(got, with_constant)
  half = np.full(32, 0.5, np.float32)
  at_run_time = run_float32(True, cosines, labels, half)['arcface']
  check_bits(got, at_run_time)


@pytest.mark.parametrize('run', ['op by op', 'float32', 'float64'])
def test_no_spread_is_the_parent_loss(run):
  # Each is compiled alone: XLA folds the cosine of a constant margin.
  cosines, labels, _ = programs.example()
  cosines = cosines.astype(np.float64 if run == 'float64' else np.float32)

  def evaluate(loss):
    if run != 'op by op':
      quick = programs.QUICK if run == 'float64' else None
      loss = jax.jit(loss, compiler_options=quick)
    with jax.enable_x64(run == 'float64'):
      value = loss(cosines, labels)
    assert value.dtype == cosines.dtype
    return np.asarray(value)

  for parent in (losses.arcface, losses.cosface):
    want = evaluate(parent)
    for suffix in ('', '_plus'):
      elastic = getattr(losses, f'elastic_{parent.__name__}{suffix}')
      key = jax.random.key(0)
      got = evaluate(functools.partial(elastic, key=key, margin_std=0.0))
      np.testing.assert_array_equal(got, want)
