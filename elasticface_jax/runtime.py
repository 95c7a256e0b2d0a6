# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX and XLA that move bits: set, recorded, or compared."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator

from elasticface_jax.errors import InputError, first_line

# XLA's CPU backend splits reductions by the number of threads that it assumes,
# so the last bit of a sum would depend on the cores of the machine and on the
# number of fake devices. One value gives equal bits on every machine, and keeps
# many fake devices on few cores from starving each other.
CPU_THREADS = '32'

# Settings of JAX under which a run would get other bits, and their values here.
# A user's shell or notebook may have others.
_ARITHMETIC = {
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_random_seed_offset': 0,
  'jax_default_matmul_precision': None,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_disable_jit': False,
}
# Environment variables that change what a compiler does, or the arithmetic of
# a device, and that nothing here can set; starts of names.
_RECORDED = (
  'JAX_COMPILER_',
  'JAX_DISABLE_MOST_OPTIMIZATIONS',
  'JAX_EXEC_TIME_OPTIMIZATION_EFFORT',
  'JAX_OPTIMIZATION_LEVEL',
  'JAX_USE_',
  'LIBTPU_INIT_ARGS',
  'NVIDIA_TF32_OVERRIDE',
  'XLA_FLAGS',
)
# Flags of XLA_FLAGS without influence on bits.
_HARMLESS_FLAGS = ('--xla_force_host_platform_device_count', '--xla_dump_')


@contextlib.contextmanager
def fixed_arithmetic(*, x64: bool) -> Iterator[None]:
  """Sets what JAX would take from a user's shell or notebook, for a while.

  Prints a line on stderr for each setting that differs.

  Args:
    x64: whether the model computes in float64.
  """
  import jax

  wanted = _ARITHMETIC | {'jax_enable_x64': x64}
  before = {name: getattr(jax.config, name) for name in wanted}
  for name, value in wanted.items():
    # An enumeration is compared by the name of its member.
    found = getattr(before[name], 'value', before[name])
    if found != value:
      print(
        f'{name.upper()}={found} is not used: a run has {value}, so that its '
        'fingerprint is the same everywhere',
        file=sys.stderr,
      )
      jax.config.update(name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def arithmetic_settings() -> dict[str, str]:
  """Returns the environment variables that may move bits, for a manifest."""
  settings = {
    name: value
    for name, value in sorted(os.environ.items())
    if name.startswith(_RECORDED)
  }
  if 'XLA_FLAGS' in settings:
    flags = shlex.split(settings.pop('XLA_FLAGS'))
    kept = [flag for flag in flags if not flag.startswith(_HARMLESS_FLAGS)]
    if kept:
      settings['XLA_FLAGS'] = ' '.join(sorted(kept))
  return settings


def set_cpu_threads() -> None:
  """Sets PJRT_NPROC to `CPU_THREADS`, unless it is set or jax is imported.

  Once jax is imported, its CPU backend may have started, and would not see it.
  """
  if 'jax' not in sys.modules:
    os.environ.setdefault('PJRT_NPROC', CPU_THREADS)


def warn_of_cpu_threads() -> None:
  """Prints a warning if a CPU run has another thread count than the command.

  In a notebook that imports jax before `elasticface_jax.train`, PJRT_NPROC is
  not set, and the run gets another fingerprint.
  """
  import jax

  if 'PJRT_NPROC' not in os.environ and jax.default_backend() == 'cpu':
    print(
      'warning: jax was imported without PJRT_NPROC, so the fingerprint of '
      'this run is not that of `elasticface train`: set '
      f'PJRT_NPROC={CPU_THREADS} before importing jax',
      file=sys.stderr,
    )


def check_platform() -> None:
  """Starts JAX's backend, on the platform that JAX_PLATFORMS names.

  Call it after `training.processes.start`, which must come first.

  Raises:
    InputError: if the variable names a platform that is not there.
  """
  import jax

  platforms = jax.config.jax_platforms
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    # The loss of another process is told apart by its type.
    if not platforms or isinstance(error, jax.errors.JaxRuntimeError):
      raise
    # Without jax's plugin for CUDA, there is an assertion without a message.
    reason = first_line(error) if str(error) else 'jax finds no such device'
    raise InputError(
      f'JAX_PLATFORMS={platforms}: {reason}; unset it to use what is there'
    ) from error
