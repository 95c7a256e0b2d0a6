# SPDX-License-Identifier: Apache-2.0
"""The optimisers, compared with torch's own over ten steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elasticface_jax import recipes
from elasticface_jax.training import optimizer

torch = pytest.importorskip('torch')

CLIP, STEPS = 1.0, 10


@pytest.mark.parametrize('weight_decay', [0.1, 0.0])
@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_ten_steps_with_rates_and_a_clip(name, weight_decay):
  optim = recipes.section('optim') | {
    'name': name,
    'weight_decay': weight_decay,
  }
  rng = np.random.default_rng(0)
  start = {'a': rng.normal(size=(4, 3)), 'b': rng.normal(size=5)}
  gradients = [
    {k: rng.normal(size=x.shape) for k, x in start.items()}
    for _ in range(STEPS)
  ]
  rates = np.linspace(0.01, 0.001, STEPS)

  theirs = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in start.items()}
  own = {
    'sgd': (torch.optim.SGD, {'momentum': optim['momentum']}),
    'adamw': (
      torch.optim.AdamW,
      {'betas': (optim['beta1'], optim['beta2']), 'eps': optim['eps']},
    ),
  }
  make, arguments = own[name]
  optimizer_ = make(
    theirs.values(), lr=1.0, weight_decay=weight_decay, **arguments
  )
  with jax.enable_x64(True):
    tx = optax.chain(
      optax.clip_by_global_norm(CLIP), optimizer.from_config(optim)
    )
    ours = jax.tree.map(jnp.asarray, start)
    opt = tx.init(ours)
    for number, (gradient, rate) in enumerate(
      zip(gradients, rates, strict=True)
    ):
      for k, parameter in theirs.items():
        parameter.grad = torch.tensor(gradient[k])
      torch.nn.utils.clip_grad_norm_(theirs.values(), CLIP)
      optimizer_.param_groups[0]['lr'] = rate
      optimizer_.step()
      factors = optimizer.bias_correction(optim)(jnp.int32(number))
      updates, opt = tx.update(gradient, opt, ours, factors=factors)
      ours = jax.tree.map(lambda w, u, r=rate: w - r * u, ours, updates)
      for k, parameter in theirs.items():
        # torch adds 1e-6 to the norm that it divides by.
        np.testing.assert_allclose(
          ours[k], parameter.detach().numpy(), rtol=0, atol=1e-7
        )
