# SPDX-License-Identifier: Apache-2.0
r"""Times the fixed tree of additions next to the runtime's own all-reduce.

Sums one gradient per device, of the size of an IResNet's, by both methods in
turn on the devices of this machine, and prints the times and their ratio. The
tree's order of addition is that of the config; the all-reduce's is the
runtime's own, and changes with the number of devices. Takes about two minutes.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 \
        python benchmarks/reduction.py
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from elasticface_jax.benchmark import timing
from elasticface_jax.exact.trees import tree_all_reduce
from elasticface_jax.training import state


def make_calls(mesh, num_values):
  """Returns functions that sum one array of ones per device, by method."""
  devices = state.Devices(state.AXIS, mesh.size)
  sharded = jax.sharding.NamedSharding(mesh, P(state.AXIS))
  parts = jax.jit(
    lambda: jnp.ones((mesh.size, num_values), jnp.float32),
    out_shardings=sharded,
  )()

  def compiled(reduce):
    summed = jax.jit(
      jax.shard_map(
        reduce,
        mesh=mesh,
        in_specs=P(state.AXIS),
        out_specs=P(),
        check_vma=False,
      )
    )
    return lambda: summed(parts).block_until_ready()

  return {
    'tree': compiled(functools.partial(tree_all_reduce, devices=devices)),
    'all-reduce': compiled(lambda x: jax.lax.psum(x[0], state.AXIS)),
  }


def main(argv=None):
  """Prints the times; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  # 65.2 M parameters are those of IResNet-100.
  parser.add_argument(
    '--values', type=int, default=65_200_000, help='float32 values per device'
  )
  parser.add_argument('--rounds', type=int, default=10)
  args = parser.parse_args(argv)
  mesh = state.make_mesh()
  calls = make_calls(mesh, args.values)
  seconds = timing.in_turn(calls, rounds=args.rounds, seconds=0.01)
  kind = mesh.devices.flat[0].device_kind
  print(f'{args.values:,} float32 on {mesh.size} devices ({kind})')
  for name, times in seconds.items():
    spread = timing.spread(times)
    print(f'{name:11} {timing.format_spread(spread, ends="range")} s')
  ratio = timing.ratio(seconds['tree'], seconds['all-reduce'])
  print(f'ratio, by round: {timing.format_spread(ratio, digits=2)}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
