# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX and XLA that move bits: set, recorded, or compared."""

import contextlib
import importlib
import os
import pkgutil
import shlex
import sys
from collections.abc import Iterator

from elasticface_jax.errors import InputError, first_line

# XLA's CPU backend splits reductions by the number of threads that it assumes,
# so the last bit of a sum would depend on the cores of the machine and on the
# number of fake devices. One value gives equal bits on every machine, and keeps
# many fake devices on few cores from starving each other.
CPU_THREADS = '32'

# XLA picks kernels for GPUs by timing them, and the pick, and with it the
# order of sums, differs from run to run. The first flag is XLA's promise of
# equal bits and ends that for products and convolutions, the second for fused
# operations too in the versions where the first does not. Without a choice by
# time, products in Triton get one tile size for all, so the third leaves them
# to cuBLAS, which chooses by rules. Pinning measured picks is no way out:
# XLA's folder for them does not hold those of fused operations.
GPU_FLAGS = (
  '--xla_gpu_deterministic_ops=true',
  '--xla_gpu_exclude_nondeterministic_ops=true',
  '--xla_gpu_enable_triton_gemm=false',
)

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


def arithmetic_settings(platform: str) -> dict[str, str]:
  """Returns the environment variables that may move bits, for a manifest.

  Args:
    platform: of the devices, such as ``'cpu'``. `GPU_FLAGS` are named for
      ``'gpu'`` alone: they change nothing elsewhere.
  """
  settings = {
    name: value
    for name, value in sorted(os.environ.items())
    if name.startswith(_RECORDED)
  }
  if 'XLA_FLAGS' in settings:
    flags = shlex.split(settings.pop('XLA_FLAGS'))
    kept = [
      flag
      for flag in flags
      if not flag.startswith(_HARMLESS_FLAGS)
      and (platform == 'gpu' or flag not in GPU_FLAGS)
    ]
    if kept:
      settings['XLA_FLAGS'] = ' '.join(sorted(kept))
  return settings


def set_environment() -> None:
  """Sets the variables that give a run its bits, before jax is imported.

  They are PJRT_NPROC and, where jax has a plugin for GPUs, `GPU_FLAGS` in
  XLA_FLAGS. What is set already stays, flag by flag. Once jax is imported,
  nothing is set: its backend may have started, and would not see it.
  """
  if 'jax' in sys.modules:
    return
  os.environ.setdefault('PJRT_NPROC', CPU_THREADS)
  missing = _missing_gpu_flags()
  # An XLA that does not know a flag ends the process, so that a machine without
  # such a GPU is left alone.
  if missing and _has_gpu_plugin():
    given = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = ' '.join([given, *missing]).strip()


def _missing_gpu_flags() -> list[str]:
  """Returns those of `GPU_FLAGS` that XLA_FLAGS gives no value."""
  given = os.environ.get('XLA_FLAGS', '').strip()
  # XLA takes anything else for the name of a file with flags.
  if given and not given.startswith('--'):
    return []
  named = {flag.partition('=')[0] for flag in shlex.split(given)}
  return [flag for flag in GPU_FLAGS if flag.partition('=')[0] not in named]


def _has_gpu_plugin() -> bool:
  """Tells whether jax will find a plugin for GPUs, of NVIDIA or AMD."""
  try:
    plugins = importlib.import_module('jax_plugins')
  except ModuleNotFoundError:
    return False
  names = [module.name for module in pkgutil.iter_modules(plugins.__path__)]
  return any(name.startswith(('xla_cuda', 'xla_rocm')) for name in names)


def warn_of_environment() -> None:
  """Prints a warning if a run lacks what `set_environment` would have set.

  In a notebook that imports jax before `elasticface_jax.train`, it sets
  nothing, and the run gets another fingerprint.
  """
  import jax

  platform = jax.default_backend()
  if platform == 'cpu' and 'PJRT_NPROC' not in os.environ:
    wanted = f'PJRT_NPROC={CPU_THREADS}'
    what = 'is not that of `elasticface train`'
  elif platform == 'gpu' and (missing := _missing_gpu_flags()):
    wanted = f'XLA_FLAGS={shlex.quote(" ".join(missing))}'
    what = 'may differ from run to run'
  else:
    return
  name = wanted.partition('=')[0]
  print(
    f'warning: jax was imported without {name}, so the fingerprint of this run '
    f'{what}: set {wanted} before importing jax',
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
