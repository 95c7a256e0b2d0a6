# SPDX-License-Identifier: Apache-2.0
"""SGD of the ElasticFace authors and AdamW: torch's arithmetic, in optax.

The rate is not part of the chains: it follows from the step number, as AdamW's
bias correction does. So every state leaf has the shape of its parameter, and
the chains also run on one block of class centres, or on those of its classes
that are sampled.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# The batch size that a config's learning rate is meant for.
REFERENCE_BATCH_SIZE = 512


def learning_rate(
  *,
  base: float,
  batch_size: int,
  warmup_steps: int,
  decay_steps: tuple[int, ...],
  decay_factor: float,
  decay_end: int,
  decay_power: float,
) -> optax.Schedule:
  r"""Makes the learning rate, scaled linearly with the batch.

  .. math::
    \eta_t = \text{base} \cdot \frac{B}{512} \cdot
      \text{factor}^{|\{d \le t\}|} \cdot
      \min\left(1, \frac{t + 1}{\text{warmup}}\right) \cdot
      \min\left(1, \frac{\text{end} - t}{\text{end} - \text{warmup}}
      \right)^{\text{power}}

  Args:
    base: rate at batch size 512.
    batch_size: B, of all devices together.
    warmup_steps: steps of linear warm-up; 0 for none, as the reference.
    decay_steps: steps d at whose start the rate drops.
    decay_factor: factor of each drop.
    decay_end: step at which a polynomial decay, which begins at the end of the
      warm-up, reaches 0; 0 for none.
    decay_power: its power; 1 for a line.

  Returns:
    The rate as a function of the step, which counts from 0.

  References:
    `PolynomialLRWarmup` of insightface's arcface_torch has the polynomial.
    Differs from the authors' code in: the warm-up, which there takes the first
    step at the full rate, and each later step t at t / warmup of it.
  """
  peak = base * batch_size / REFERENCE_BATCH_SIZE
  drops = optax.piecewise_constant_schedule(
    peak, {int(step): decay_factor for step in decay_steps}
  )
  factors = [drops]
  if warmup_steps:
    ramp = optax.linear_schedule(1 / warmup_steps, 1.0, warmup_steps - 1)
    factors.append(ramp)
  if decay_end:
    fall = optax.polynomial_schedule(
      1.0, 0.0, decay_power, decay_end - warmup_steps, warmup_steps
    )
    factors.append(fall)
  return lambda step: functools.reduce(
    operator.mul, (factor(step) for factor in factors)
  )


def momentum_sgd(
  *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Makes SGD with weight decay, then momentum, without the learning rate.

  As torch.optim.SGD: ``u = momentum * u + (gradient + weight_decay * w)``,
  after which the caller takes ``w - rate * u``.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.trace(momentum)
  )


class Moments(NamedTuple):
  """Running means of AdamW, in the shapes of the parameters."""

  mean: Any  # Of the gradient.
  square: Any  # Of its square.


def adamw(
  *, beta1: float, beta2: float, eps: float, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
  r"""Makes AdamW with decoupled weight decay, without the learning rate.

  As torch.optim.AdamW, with the gradient g and all operations elementwise:

  .. math::
    m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    u = \frac{m / (1 - \beta_1^{t + 1})}{\sqrt{v / (1 - \beta_2^{t + 1})}
      + \epsilon} + \text{decay} \cdot w

  after which the caller takes ``w - rate * u``. Its ``update`` takes factors of
  m and v, which follow from the step t, as ``factors`` (`bias_correction`):
  optax's own counts steps in a scalar of its state, which no block of class
  centres has, and in float32 its 1 - 0.999 is 1.3e-5 off. Class centres that a
  step does not sample keep their moments, and t is that of the run, for them
  too.

  References:
    `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_,
    ICLR 2019. For sampled class centres, insightface's `PartialFCAdamW`, which
    does the same; its successor `PartialFC_V2` moves and decays all of them in
    every step, with a gradient of 0 for those that were not sampled.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return Moments(zeros(), zeros())

  def update(gradient, moments, params, *, factors, **others):
    del params, others

    def moved(mean, square):
      # Products: XLA makes one of the division by a scalar, or does not, by
      # what surrounds it, and so by the number of devices.
      of_mean, of_square = (x.astype(mean.dtype) for x in factors)
      return mean * of_mean / (jnp.sqrt(square * of_square) + eps)

    moments = Moments(
      optax.tree.update_moment(gradient, moments.mean, beta1, 1),
      optax.tree.update_moment(gradient, moments.square, beta2, 2),
    )
    return jax.tree.map(moved, *moments), moments

  return optax.chain(
    optax.GradientTransformationExtraArgs(init, update),
    optax.add_decayed_weights(weight_decay),
  )


# Each optimiser's function, the fields of `optim` that are its arguments, and
# how many arrays of the size of the parameters it keeps.
OPTIMIZERS = {
  'sgd': (momentum_sgd, ('momentum', 'weight_decay'), 1),
  'adamw': (adamw, ('beta1', 'beta2', 'eps', 'weight_decay'), 2),
}


def from_config(optim: Mapping[str, Any]) -> optax.GradientTransformation:
  """Makes the optimiser of a config's section `optim`, without the rate."""
  make, fields, _ = OPTIMIZERS[optim['name']]
  return make(**{field: optim[field] for field in fields})


def bias_correction(
  optim: Mapping[str, Any],
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
  """Makes the factors that an optimiser's running means lack in early steps.

  To be computed outside of the loops of a step, as the rate: inside, XLA may
  compute them anew for every element, in another way.

  Args:
    optim: a config's section.

  Returns:
    ``1 / (1 - beta ** (t + 1))`` of each mean as a function of the step t; no
    factors for SGD.
  """
  betas = {'sgd': (), 'adamw': ('beta1', 'beta2')}[optim['name']]

  def factors(step):
    count = jnp.asarray(step + 1, jnp.result_type(float))
    # To the last digits, which 1 - 0.999 would not have.
    return tuple(
      -1 / jnp.expm1(count * math.log(optim[beta])) for beta in betas
    )

  return factors
