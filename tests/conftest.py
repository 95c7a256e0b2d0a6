# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test: hidden broadcasts and reused keys raise."""

import importlib.util
import inspect
import os
import shutil
import signal
import tempfile

# Before jax is imported. Eight fake devices on two cores starve each other
# unless the runtime may use more threads than there are cores.
os.environ['PJRT_NPROC'] = '32'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

# All processes of a session, workers of xdist too, share what they compile.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  os.path.join(tempfile.gettempdir(), f'elasticface_jax-{os.getpid()}'),
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax
import pytest

from elasticface_jax import losses

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)
jax.config.update('jax_legacy_prng_key', 'error')

# A shell's background job ignores SIGINT, one under nohup SIGHUP, and so would
# the processes that tests start. With a handler here they get the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
  signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_unconfigure():
  path = os.environ['JAX_COMPILATION_CACHE_DIR']
  if path.endswith(f'elasticface_jax-{os.getpid()}'):
    shutil.rmtree(path, ignore_errors=True)


def pytest_collection_modifyitems(items):
  """Puts files with long tests first, so that no worker ends with one."""
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope='session')
def load_script():
  """``load_script(path)``: a module of a file that is in no package."""

  def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  return load


@pytest.fixture(scope='session')
def named_losses():
  """The public losses by name: functions of cosines, labels and a scale."""
  return {
    name: value
    for name, value in vars(losses).items()
    if inspect.isfunction(value)
    and list(inspect.signature(value).parameters)[:2] == ['cosines', 'labels']
    and not name.endswith('_logits')
  }
