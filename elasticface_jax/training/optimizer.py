# SPDX-License-Identifier: Apache-2.0
"""SGD of the ElasticFace authors: torch's order of operations, in optax.

The rate is not part of the chains: it follows from the step number, so the
optimiser's state holds momentum and nothing else.
"""

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
) -> optax.Schedule:
  r"""Makes the step-wise learning rate, scaled linearly with the batch.

  .. math::
    \eta_t = \text{base} \cdot \frac{B}{512} \cdot
      \text{factor}^{|\{d \le t\}|} \cdot \min(1, (t + 1) / \text{warmup})

  Args:
    base: rate at batch size 512.
    batch_size: B, of all devices together.
    warmup_steps: steps of linear warm-up; 0 for none, as the reference.
    decay_steps: steps d at whose start the rate drops.
    decay_factor: factor of each drop.

  Returns:
    The rate as a function of the step, which counts from 0.
  """
  peak = base * batch_size / REFERENCE_BATCH_SIZE
  drops = optax.piecewise_constant_schedule(
    peak, {int(step): decay_factor for step in decay_steps}
  )
  if not warmup_steps:
    return drops
  ramp = optax.linear_schedule(1 / warmup_steps, 1.0, warmup_steps - 1)
  return lambda step: drops(step) * ramp(step)


def momentum_sgd(
  *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Makes SGD with weight decay, then momentum, without the learning rate.

  As torch.optim.SGD: ``u = momentum * u + (gradient + weight_decay * w)``,
  after which the caller takes ``w - rate * u``. Every state leaf has the
  shape of its parameter, so the chain also runs on one block of classes.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.trace(momentum)
  )
