# SPDX-License-Identifier: Apache-2.0
"""Checks the memory of a training step's head on each device.

Compiles the training step, with a backbone of a single vector, for up to ten
million classes on 1, 2, 4 and 8 devices, and reads the compiler's memory
analysis. Nothing is allocated. Takes three minutes on any machine.

    python checks/head_memory.py
    python checks/head_memory.py --classes 3000000 --num-blocks 128

Columns, in MB for each device:
  state: class centres and their momentum, updated in place.
  temporary: all other memory of a step, from the embeddings to the new class
    centres and the gradient of the embeddings.
  logits: the matrix [B, C] / n, which a head without blocks holds.

The exit code is 0 if the state is sharded evenly and not copied, temporary
memory is that of a block on any number of devices (and of the drawn classes, if
they are sampled), and the program has no larger array. Choose `head.num_blocks`
by the same formula: with c = C / num_blocks classes per block, temporary memory
is about 4 * c * (3 * R + 6 * D) bytes, R the batch or about 1,024 samples of a
larger one; use at least two blocks per device, as a single one is copied.
"""

import argparse
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax import models
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import make_task
from elasticface_jax.losses import _sampling
from elasticface_jax.training import state

BATCH, GROUP, DIM = 512, 64, 512
DEVICES = (1, 2, 4, 8)
# Classes, blocks, sample rate.
CASES = (
  (85_742, 16, 1.0),
  (1_000_000, 64, 1.0),
  (10_000_000, 512, 1.0),
  (10_000_000, 512, 0.1),
)
TITLE = 'classes     blocks  rate  devices     state  temporary     logits'


class Case(NamedTuple):
  """One compiled step and its sizes."""

  num_classes: int
  num_blocks: int
  sample_rate: float
  devices: int
  compiled: jax.stages.Compiled


def one_vector() -> models.Backbone:
  """Returns a backbone without memory: brightness times a vector."""

  def init(key):
    del key
    return jnp.ones(DIM), jnp.zeros(1)

  def apply(params, batch_stats, images, *, train, key=None):
    del train, key
    brightness = images.mean((1, 2, 3))
    return brightness[:, None] * params[None], batch_stats

  return models.Backbone('one vector', DIM, init, apply)


def compile_step(
  num_classes: int, num_blocks: int, sample_rate: float, devices: int
) -> Case:
  """Compiles a training step without allocating its arrays."""
  recipe = Recipe(
    batch_size=BATCH,
    group_size=GROUP,
    num_classes=num_classes,
    num_blocks=num_blocks,
    sample_rate=sample_rate,
  )
  mesh = state.make_mesh(devices)
  compiled = make_task(recipe, mesh, backbone=one_vector()).lower((2, 2, 3))
  return Case(num_classes, num_blocks, sample_rate, devices, compiled.compile())


def check(case: Case) -> str:
  """Compares a step's memory with the expected sizes.

  Args:
    case: the step.

  Returns:
    Its row of the table.

  Raises:
    AssertionError: if it needs more.
  """
  memory = case.compiled.memory_analysis()
  blocks = case.num_blocks // case.devices
  size = _sampling.block_size(case.num_classes, case.num_blocks)
  shares = _sampling.block_shares(
    case.num_classes, case.num_blocks, case.sample_rate
  )
  taken = min(size, max(int(shares.max()), BATCH))

  # Class centres and momentum; the rest is a vector and the batch.
  centers, sampled = (blocks, size, DIM), (blocks, taken, DIM)
  state_bytes = 2 * 4 * math.prod(centers)
  small = 2**16
  assert state_bytes <= memory.argument_size_in_bytes <= state_bytes + small
  assert memory.alias_size_in_bytes >= state_bytes

  allowed = 4 * (
    # Logits of a block and masks; its centres, momentum, both new, both next.
    taken * (3 * BATCH + 6 * DIM)
    # Sums of the gradient of the embeddings, and copies to send them.
    + BATCH * DIM * (math.log2(case.num_blocks) + 6)
    # Three numbers of each sample and block, here and gathered.
    + 2 * 3 * BATCH * (case.num_blocks + blocks)
  )
  if case.sample_rate < 1:
    # Drawing: scores, indices, and drawn classes of each block. Their centres
    # and momentum are read once, before the turns.
    allowed += 4 * (8 * size + 4 * blocks * taken)
    allowed += 4 * 2 * math.prod(sampled)
  temporary = memory.temp_size_in_bytes
  assert temporary <= allowed, (
    f'{temporary / 1e6:,.0f} MB of temporary memory, not {allowed / 1e6:,.0f}'
  )

  # No other array is larger than a block or the sums.
  enough = BATCH * DIM * (math.log2(case.num_blocks) + 2)
  enough = max(enough, taken * max(BATCH, DIM))
  shapes = re.findall(r'\w\[([\d,]+)\]', case.compiled.as_text())
  shapes = {tuple(map(int, shape.split(','))) for shape in shapes}
  expected = {centers, (blocks * size, DIM), sampled}
  largest = max(shapes - expected, key=math.prod)
  assert math.prod(largest) <= enough, f'an array of {largest}'

  logits = 4 * BATCH * case.num_classes // case.devices
  return (
    f'{case.num_classes:<10,}  {case.num_blocks:6}  {case.sample_rate:4}  '
    f'{case.devices:7}  '
    f'{state_bytes / 1e6:8,.0f}  {temporary / 1e6:9,.0f}  '
    f'{logits / 1e6:9,.0f}'
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--classes', type=int, help='measure this number alone')
  parser.add_argument('--num-blocks', type=int, help='head.num_blocks for it')
  parser.add_argument('--sample-rate', type=float, default=1.0)
  flags = parser.parse_args()
  if (flags.classes is None) != (flags.num_blocks is None):
    parser.error('--classes and --num-blocks go together')
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(DEVICES))

  cases = CASES
  if flags.classes:
    cases = ((flags.classes, flags.num_blocks, flags.sample_rate),)
  print(f'B {BATCH}, D {DIM}, float32; MB for each device')
  print(TITLE)
  for case in cases:
    for devices in DEVICES:
      print(check(compile_step(*case, devices)), flush=True)


if __name__ == '__main__':
  main()
