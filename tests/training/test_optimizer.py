# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elasticface_jax.training import optimizer


def test_rate_drops_at_the_start_of_its_steps_and_scales_with_the_batch():
  rate = optimizer.learning_rate(
    base=0.1,
    batch_size=1024,
    warmup_steps=0,
    decay_steps=(3, 5),
    decay_factor=0.1,
  )
  rates = [float(rate(step)) for step in range(7)]
  np.testing.assert_allclose(rates, [0.2] * 3 + [0.02] * 2 + [0.002] * 2, 1e-6)


def test_warmup_is_linear_and_ends_at_the_full_rate():
  rate = optimizer.learning_rate(
    base=0.1, batch_size=512, warmup_steps=4, decay_steps=(), decay_factor=0.1
  )
  rates = [float(rate(step)) for step in range(6)]
  np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], 1e-6)


def test_momentum_includes_weight_decay():
  tx = optimizer.momentum_sgd(momentum=0.9, weight_decay=0.1)
  w = {'w': jnp.array([1.0, -2.0])}
  opt = tx.init(w)
  velocity, expected = np.zeros(2), np.array([1.0, -2.0])
  for gradient in ([0.5, 0.5], [0.0, 1.0], [-1.0, 0.0]):
    updates, opt = tx.update({'w': jnp.array(gradient)}, opt, w)
    w = optax.apply_updates(w, {'w': -0.1 * updates['w']})
    velocity = 0.9 * velocity + (np.array(gradient) + 0.1 * expected)
    expected = expected - 0.1 * velocity
  assert np.asarray(w['w']) == pytest.approx(expected, rel=1e-6)
