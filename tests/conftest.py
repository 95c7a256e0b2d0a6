# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test: hidden broadcasts and reused keys raise."""

import importlib.util
import inspect
import os

# Before jax is imported. Eight fake devices on two cores starve each other
# unless the runtime may use more threads than there are cores.
os.environ['PJRT_NPROC'] = '32'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax
import pytest

from elasticface_jax import losses

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)
jax.config.update('jax_legacy_prng_key', 'error')


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
