# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elasticface_jax import recipes
from elasticface_jax.training import optimizer

RATE, DECAY, BETAS, EPS = 0.01, 0.1, (0.9, 0.999), 1e-8
ADAMW = {'beta1': BETAS[0], 'beta2': BETAS[1], 'eps': EPS}
factors = optimizer.bias_correction(ADAMW | {'name': 'adamw'})


def rate(**changes):
  """Returns a schedule, constant but for the changes."""
  fields = {
    'base': 0.1,
    'batch_size': 512,
    'warmup_steps': 0,
    'decay_steps': (),
    'decay_factor': 0.1,
    'decay_end': 0,
    'decay_power': 1.0,
  }
  return optimizer.learning_rate(**fields | changes)


def test_rate_drops_at_the_start_of_its_steps_and_scales_with_the_batch():
  drops = rate(batch_size=1024, decay_steps=(3, 5))
  rates = [float(drops(step)) for step in range(7)]
  np.testing.assert_allclose(rates, [0.2] * 3 + [0.02] * 2 + [0.002] * 2, 1e-6)


def test_warmup_is_linear_and_ends_at_the_full_rate():
  rates = [float(rate(warmup_steps=4)(step)) for step in range(6)]
  np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], 1e-6)


@pytest.mark.parametrize('power', [1.0, 2.0])
@pytest.mark.parametrize('warmup', [0, 4])
def test_polynomial_decay_from_the_end_of_the_warmup(warmup, power):
  end = 24
  falls = rate(warmup_steps=warmup, decay_end=end, decay_power=power)
  for step in range(end + 3):
    if step < warmup:
      expected = (step + 1) / warmup
    else:
      expected = (max(end - step, 0) / (end - warmup)) ** power
    assert float(falls(step)) == pytest.approx(0.1 * expected, rel=1e-6)
  # Drops come on top of it.
  both = rate(decay_end=end, decay_steps=(6,))
  assert float(both(12)) == pytest.approx(0.1 * 0.5 * 0.1)


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


def gradient_at(w, step):
  return np.cos(np.arange(len(w)) + 1.7 * step) * w + 0.1 * step


def descend_as_adamw(w, gradients, begin=0):
  """Descends in float64; returns the weights after each step."""
  w, mean, square = np.asarray(w, float), 0.0, 0.0
  for t, gradient in enumerate(gradients, start=begin + 1):
    mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
    unbiased = mean / (1 - BETAS[0] ** t), square / (1 - BETAS[1] ** t)
    w = w * (1 - RATE * DECAY)
    w = w - RATE * unbiased[0] / (np.sqrt(unbiased[1]) + EPS)
    yield w


def run_adamw(gradient_of, w, begin=0):
  """Descends ten steps by ours, in the dtype of the weights; likewise."""
  tx = optimizer.adamw(**ADAMW, weight_decay=DECAY)
  opt = tx.init(w)

  @jax.jit
  def step(w, opt, gradient, number):
    updates, opt = tx.update(gradient, opt, w, factors=factors(number))
    return w - RATE * updates, opt

  for number in range(begin, begin + 10):
    gradient = jnp.asarray(gradient_of(w, number), w.dtype)
    w, opt = step(w, opt, gradient, jnp.int32(number))
    yield np.asarray(w)


START = (1.0, -2.0, 0.5, 3.0)
# torch 2.13: AdamW(lr=0.01, weight_decay=0.1) in float64 on `gradient_at`.
TORCH = {
  1: (
    0.9890000001,
    -1.9880000000925409,
    0.5094999995194004,
    3.0069999999663297,
  ),
  2: (
    0.98151706022919,
    -1.9891640165439872,
    0.5188535787402381,
    3.0105348272859884,
  ),
  10: (
    0.9389333973863732,
    -1.9938089702865076,
    0.47265670633073936,
    2.9809430404290915,
  ),
}


def test_adamw_is_that_of_torch():
  with jax.enable_x64(True):
    found = list(run_adamw(gradient_at, jnp.array(START)))
  for number, expected in TORCH.items():
    np.testing.assert_allclose(found[number - 1], expected, rtol=1e-14)


@pytest.mark.parametrize('begin', [0, 3000])
def test_adamw_in_float32(begin):
  # Also where the moments begin late, as those of a class that was not sampled.
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(10, 50)).astype(np.float32)
  # Over twelve orders of magnitude, and one that is always 0.
  gradients *= np.geomspace(1e-8, 1e4, 50, dtype=np.float32)
  gradients[:, 7] = 0
  w = rng.normal(size=50).astype(np.float32)
  given = lambda _, number: gradients[number - begin]
  found = run_adamw(given, jnp.asarray(w), begin)
  expected = descend_as_adamw(w, gradients.astype(float), begin)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-7)
  np.testing.assert_allclose(ours[7], w[7] * (1 - RATE * DECAY) ** 10, 1e-6)


def test_bias_correction_has_all_digits():
  # By 1 - 0.999 in float32 the first update would be off by 6e-6.
  tx = optimizer.adamw(**ADAMW, weight_decay=0.0)
  w = jnp.ones(1)
  update, _ = tx.update(0.3 * w, tx.init(w), w, factors=factors(jnp.int32(0)))
  assert float(update[0]) == pytest.approx(1, rel=5e-7)


def test_every_optimizer_keeps_arrays_of_the_parameters_shape():
  optim = recipes.section('optim')
  params = {'a': jnp.ones((3, 2)), 'b': jnp.ones(5)}
  shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))
  for name, (_, fields, kept) in optimizer.OPTIMIZERS.items():
    assert set(fields) <= optim.keys()
    tx = optimizer.from_config(optim | {'name': name})
    opt = tx.init(params)
    assert shapes(opt) == sorted(kept * shapes(params))
    assert not any(x.any() for x in jax.tree.leaves(opt))
    factors = optimizer.bias_correction(optim | {'name': name})(jnp.int32(0))
    grown = tx.update(params, opt, params, factors=factors)[1]
    assert shapes(grown) == shapes(opt)
