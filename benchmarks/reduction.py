# SPDX-License-Identifier: Apache-2.0
r"""What the fixed tree costs beside the runtime's own all-reduce.

Sums one gradient a device, of the size of an IResNet's, both ways in turn on
the devices at hand, and prints the times and their ratio. The tree's order of
addition is that of the config; the all-reduce's is the runtime's own, and
changes with the number of devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 \
        python benchmarks/reduction.py
"""

import argparse
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from elasticface_jax.exact.trees import tree_all_reduce
from elasticface_jax.training import state


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  # 65.2 M parameters are those of IResNet-100.
  parser.add_argument('--numbers', type=int, default=65_200_000)
  parser.add_argument('--rounds', type=int, default=10)
  args = parser.parse_args()
  mesh = state.make_mesh()
  devices = state.Devices(state.AXIS, mesh.size)
  spread = jax.sharding.NamedSharding(mesh, P(state.AXIS))

  def compiled(reduce):
    return jax.jit(
      jax.shard_map(
        reduce,
        mesh=mesh,
        in_specs=P(state.AXIS),
        out_specs=P(),
        check_vma=False,
      )
    )

  ways = {
    'tree': compiled(functools.partial(tree_all_reduce, devices=devices)),
    'all-reduce': compiled(lambda x: jax.lax.psum(x[0], state.AXIS)),
  }
  parts = jax.jit(
    lambda: jnp.ones((mesh.size, args.numbers), jnp.float32),
    out_shardings=spread,
  )()
  seconds = {name: [] for name in ways}
  for _ in range(args.rounds + 1):
    for name, way in ways.items():
      start = time.perf_counter()
      way(parts).block_until_ready()
      seconds[name].append(time.perf_counter() - start)
  seconds = {name: times[1:] for name, times in seconds.items()}  # Compiled.
  kind = jax.devices()[0].device_kind
  print(f'{args.numbers:,} float32 on {mesh.size} devices ({kind})')
  for name, times in seconds.items():
    low, high = min(times), max(times)
    middle = statistics.median(times)
    print(f'{name:11} {middle:.3f} s (from {low:.3f} to {high:.3f})')
  pairs = np.array(seconds['tree']) / np.array(seconds['all-reduce'])
  print(f'ratio, pair by pair: median {np.median(pairs):.2f}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
