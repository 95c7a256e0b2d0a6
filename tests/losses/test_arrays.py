# SPDX-License-Identifier: Apache-2.0
"""Unit vectors, targets and sub-centres against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.losses._arrays import (
  nearest_subcenters,
  normalize,
  pick_target,
  promote,
)

from .programs import QUICK
from .reference import batch, unit, vectors


def test_vectors_of_unlike_norms_do_not_disturb_each_other():
  norms = np.array([1e-30, 1e30, 1.0, 1e-10, 1e10, 0.0])
  x = vectors().astype(np.float32)
  scaled = (x * norms[:, None]).astype(np.float32)
  run = jax.jit(normalize, compiler_options=QUICK)
  got = np.asarray(run(scaled))
  np.testing.assert_allclose(got[:5], unit(x[:5].astype(float)), atol=3e-7)
  np.testing.assert_array_equal(got[5], np.zeros(5))


def test_second_derivatives_of_normalize():
  rng = np.random.default_rng(1)
  direction = rng.normal(size=5).astype(np.float32)
  weights = rng.normal(size=5).astype(np.float32)
  plain = lambda x: x / jnp.sqrt(jnp.sum(x * x))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def hessians(x):
    return [
      jax.hessian(lambda x, f=f: jnp.sum(weights * jnp.sin(f(x))))(x)
      for f in (normalize, plain)
    ]

  for norm in (1e-3, 1.0, 1e3):
    got, want = hessians(np.float32(norm) * direction)
    np.testing.assert_allclose(
      got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max()
    )


def test_picked_targets_and_their_gradient():
  cosines, labels = batch(8, 5)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(cosines, labels):
    picked, pullback = jax.vjp(lambda c: pick_target(c, labels), cosines)
    return picked, *pullback(jnp.arange(1.0, 9.0))

  got, gradient = run(cosines, labels.astype(np.int32))
  np.testing.assert_array_equal(got, cosines[np.arange(8), labels])
  want = np.zeros_like(cosines)
  want[np.arange(8), labels] = np.arange(1, 9)
  np.testing.assert_array_equal(gradient, want)
  for outside in (-1, 5):
    got, _ = run(cosines, np.full(8, outside, np.int32))
    np.testing.assert_array_equal(got, np.zeros(8))


def test_nearest_subcenters():
  cosines = np.float32([[0.1, 0.3, -0.2, -0.9, -0.5, -0.4]])
  np.testing.assert_array_equal(
    nearest_subcenters(cosines, 3), np.float32([[0.3, -0.4]])
  )
  assert nearest_subcenters(cosines, 1) is cosines


@pytest.mark.parametrize(
  'dtype, want',
  [
    ('bfloat16', 'float32'),
    ('float16', 'float32'),
    ('float32', 'float32'),
    ('float64', 'float64'),
  ],
)
def test_promote_widens_to_float32(dtype, want):
  with jax.enable_x64(True):
    shape = jax.eval_shape(promote, jax.ShapeDtypeStruct((2,), dtype))
  assert shape.dtype == want
