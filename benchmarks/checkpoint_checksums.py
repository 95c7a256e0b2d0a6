# SPDX-License-Identifier: Apache-2.0
r"""Times a checkpoint with and without its checksums.

Writes the train state of a network of ``--parameters`` and a head of
``--classes``, and restores it, with ``checkpoint_checksums`` on and off in
turn, and prints the times and the ratio by round. Takes two minutes, and twice
the size of the state on the disk.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 \
        python benchmarks/checkpoint_checksums.py
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elasticface_jax.benchmark import timing
from elasticface_jax.training import checkpoint, checksums, state

BLOCKS = 8


def make_state(parameters, classes):
  """Returns a state of random values: a backbone, a head, their momentum."""
  mesh = state.make_mesh()
  shapes = {
    'params': ((parameters,), P()),
    'backbone_opt': ((parameters,), P()),
    'class_centers': ((BLOCKS, classes // BLOCKS, 512), P(state.AXIS)),
    'head_opt': ((BLOCKS, classes // BLOCKS, 512), P(state.AXIS)),
  }
  draw = lambda key, shape, spec: jax.jit(
    lambda: jax.random.normal(key, shape, jnp.float32),
    out_shardings=NamedSharding(mesh, spec),
  )()
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return {
    name: draw(key, *how)
    for key, (name, how) in zip(keys, shapes.items(), strict=True)
  }


def save(folder, train_state, steps, compare):
  """Saves a step; returns the seconds until training may go on."""
  step = next(steps)
  with checkpoint.Checkpoints(folder, keep=1, compare=compare) as checkpoints:
    start = time.perf_counter()
    checkpoints.save(step, train_state)
    seconds = time.perf_counter() - start
    checkpoints.wait()
  return seconds


def restore(folder, like, compare):
  """Restores the newest step; returns the seconds."""
  with checkpoint.Checkpoints(folder, keep=1, compare=compare) as checkpoints:
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(like))
    return time.perf_counter() - start


def main(argv=None):
  """Prints the times; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  # IResNet-100 and the identities of MS1MV2, a little fewer.
  parser.add_argument('--parameters', type=int, default=65_200_000)
  parser.add_argument('--classes', type=int, default=80_000)
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args(argv)
  train_state = make_state(args.parameters, args.classes)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    train_state,
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(train_state))
  device = jax.devices()[0].device_kind
  print(f'{size / 1e9:.2f} GB on {jax.device_count()} devices ({device})')
  with tempfile.TemporaryDirectory() as folders:
    variants = {}
    for name, compare in (('with', True), ('without', False)):
      folder = Path(folders, name)
      steps = iter(range(1, args.rounds + 2))
      variants[f'save {name}'] = functools.partial(
        save, folder, train_state, steps, compare
      )
      save(folder, train_state, steps, compare)  # Compiles.
      variants[f'restore {name}'] = functools.partial(
        restore, folder, like, compare
      )
    variants['checksums'] = lambda: _timed(checksums.of_devices, train_state)
    seconds = timing.take_turns(variants, rounds=args.rounds)
  for name, times in seconds.items():
    print(f'{name:16} {timing.format_spread(timing.spread(times))} s')
  for what in ('save', 'restore'):
    ratio = timing.ratio(seconds[f'{what} with'], seconds[f'{what} without'])
    print(f'{what}, ratio: {timing.format_spread(ratio, digits=2)}')
  return 0


def _timed(call, argument):
  start = time.perf_counter()
  call(argument)
  return time.perf_counter() - start


if __name__ == '__main__':
  sys.exit(main())
