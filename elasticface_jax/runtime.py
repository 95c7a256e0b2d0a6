# SPDX-License-Identifier: Apache-2.0
"""Settings of the process that JAX reads once, when it starts."""

import os
import sys

from elasticface_jax.errors import InputError, first_line

# XLA's CPU backend splits reductions by the number of threads that it assumes,
# so the last bit of a sum would depend on the cores of the machine and on the
# number of fake devices. One value gives equal bits on every machine, and keeps
# many fake devices on few cores from starving each other.
CPU_THREADS = '32'


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
