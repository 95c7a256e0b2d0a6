# SPDX-License-Identifier: Apache-2.0
"""Measured peaks of a device, and the memory and versions of a program."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elasticface_jax import __version__
from elasticface_jax.benchmark import timing

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')
# These change the compiled program or the number of threads.
_VARIABLES = ('XLA_FLAGS', 'PJRT_NPROC', 'OMP_NUM_THREADS', 'LIBTPU_INIT_ARGS')
ROUNDS, SECONDS = 5, 0.1  # For each peak.


def cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def cpu_name() -> str:
  """Returns the processor's name on Linux; elsewhere its architecture."""
  cpuinfo = Path('/proc/cpuinfo')
  text = cpuinfo.read_text() if cpuinfo.exists() else ''
  found = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
  return found[1] if found else platform.processor() or platform.machine()


def describe(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns the hardware that a benchmark runs on, JSON-like."""
  first = mesh.devices.flat[0]
  stats = first.memory_stats() or {}
  return {
    'platform': first.platform,
    'kind': first.device_kind,
    'count': mesh.size,
    'memory_bytes': stats.get('bytes_limit'),
    'cpu': cpu_name(),
    'cores': cores(),
  }


def software() -> dict[str, Any]:
  """Returns versions, and settings that change programs, JSON-like."""
  return {
    'versions': {
      'elasticface_jax': __version__,
      'python': platform.python_version(),
      **versions(_PACKAGES),
    },
    'jax_default_matmul_precision': jax.config.jax_default_matmul_precision,
    'jax_compilation_cache_dir': jax.config.jax_compilation_cache_dir,
    'environment': {name: os.environ.get(name) for name in _VARIABLES},
  }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
  """Returns the installed versions of packages, None for those missing."""
  found = dict.fromkeys(packages)
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def in_words(packages: Sequence[str]) -> str:
  """Returns the CPU, its cores, and the versions of packages, in one line."""
  versions = [f'{name} {importlib.metadata.version(name)}' for name in packages]
  python = f'Python {platform.python_version()}'
  return f'{cpu_name()}, {cores()} cores; {", ".join([python, *versions])}'


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns the bytes that a program needs on each device, by the compiler."""
  account = compiled.memory_analysis()
  temporary = account.temp_size_in_bytes
  arguments = account.argument_size_in_bytes
  # Buffers that are updated in place are counted once.
  results = account.output_size_in_bytes - account.alias_size_in_bytes
  return {
    'temporary_bytes': temporary,
    'argument_bytes': arguments,
    'program_bytes': temporary + arguments + results,
  }


def peak_memory(device: jax.Device) -> dict[str, Any]:
  """Returns the peak of the memory in use since the process started.

  That of the device where its allocator counts; on a CPU, the resident memory
  of the process.
  """
  stats = device.memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return {'of': 'device', 'peak_bytes': stats['peak_bytes_in_use']}
  try:
    import resource  # Not on Windows.
  except ImportError:
    return {'of': 'process', 'peak_bytes': None}
  # Kilobytes, but on macOS bytes.
  unit = 1 if platform.system() == 'Darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {'of': 'process', 'peak_bytes': unit * peak}


@functools.cache
def matrix_flop_per_second(
  dtype: str, device: jax.Device, *, precision: str | None = None
) -> float:
  """Measures the peak of matrix products: the best median over square sizes.

  Args:
    dtype: of both matrices and of their product.
    device: the device.
    precision: of the product; None for jax's default, as in the backbone.

  Returns:
    FLOP/s.
  """
  on_cpu = device.platform == 'cpu'
  sizes, products = ((512, 1024, 2048), 1) if on_cpu else ((4096, 8192), 4)

  def chain(x, w):
    for _ in range(products):
      x = jnp.matmul(x, w, precision=precision)
    return x

  best = 0.0
  for size in sizes:
    key = jax.device_put(jax.random.key(0), device)
    # With a variance that products keep: no overflow, no denormal floats.
    x = (jax.random.normal(key, (size, size)) * size**-0.5).astype(dtype)
    run = jax.jit(chain)
    (seconds,) = timing.in_turn(
      {'chain': lambda run=run, x=x: jax.block_until_ready(run(x, x))},
      rounds=ROUNDS,
      seconds=SECONDS,
    ).values()
    median = timing.spread(seconds)['median']
    best = max(best, products * 2 * size**3 / median)
  return best


@functools.cache
def copy_bytes_per_second(device: jax.Device) -> float:
  """Measures the peak of memory traffic: a large array updated in place.

  Returns:
    Bytes read plus bytes written per second.
  """
  size = 2**28 if device.platform == 'cpu' else 2**30  # Larger than any cache.
  negate = jax.jit(jnp.negative, donate_argnums=0)
  box = [jax.device_put(jnp.ones(size // 4, jnp.float32), device)]

  def once():
    box[0] = jax.block_until_ready(negate(box[0]))

  (seconds,) = timing.in_turn(
    {'negate': once}, rounds=ROUNDS, seconds=SECONDS
  ).values()
  return 2 * size / timing.spread(seconds)['median']


def shares(
  flop: dict[tuple[str, str | None], int],
  seconds: float,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """Compares a program's model FLOP/s with the measured peaks.

  Args:
    flop: FLOPs of the program, by dtype and precision of the products.
    seconds: its median time.
    mesh: the devices that share it.

  Returns:
    JSON-like. The share is the time that the products would take at the
    measured peaks, divided by the measured time.
  """
  device = mesh.devices.flat[0]
  peaks = {
    (dtype, precision): matrix_flop_per_second(
      dtype, device, precision=precision
    )
    for dtype, precision in flop
  }
  ideal = sum(count / peaks[kind] for kind, count in flop.items()) / mesh.size
  return {
    'model_flop': sum(flop.values()),
    'model_flop_per_second': sum(flop.values()) / seconds,
    'share_of_matrix_peak': ideal / seconds,
    'matrix_peak_flop_per_second_of_a_device': {
      f'{dtype}, {precision or "default"} precision': peak
      for (dtype, precision), peak in peaks.items()
    },
  }
