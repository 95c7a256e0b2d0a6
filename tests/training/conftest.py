# SPDX-License-Identifier: Apache-2.0
"""Fixtures for real but narrow runs, which compile and train in seconds."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / 'configs' / 'quickstart.py'
# IResNet-10, with every kind of layer of its family, but narrow.
NARROW = {
  'total_steps': 4,
  'group_size': 4,
  'data.batch_size': 16,
  'data.synthetic.num_images': 64,
  'data.synthetic.num_classes': 20,
  'model.width': 2,
  'model.embedding_dim': 16,
  'model.dropout': 0.1,
  'head.num_blocks': 8,
  'loss.name': 'elastic_arcface_plus',
  'log_every': 1,
  'eval_every': 0,
  'checkpoint_every': 2,
  'eval.synthetic_pairs': 20,
}


def overrides(**changes):
  fields = NARROW | {k.replace('__', '.'): v for k, v in changes.items()}
  return [f'--config.{name}={value}' for name, value in fields.items()]


@pytest.fixture(scope='session')
def compile_cache(tmp_path_factory):
  """A folder of compiled programs that all child processes share."""
  return tmp_path_factory.mktemp('compiled')


def environment(devices, compile_cache):
  """Returns variables for some CPU devices, without those of the suite."""
  left_out = ('XLA_FLAGS', 'PJRT_NPROC', 'JAX_PLATFORMS')
  kept = {k: v for k, v in os.environ.items() if k not in left_out}
  return kept | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'JAX_COMPILATION_CACHE_DIR': str(compile_cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }


@pytest.fixture
def elasticface(compile_cache):
  """``elasticface(*arguments, devices=1, **environment)``: a process."""

  def start(*arguments, devices=1, **variables):
    return subprocess.Popen(
      [sys.executable, '-m', 'elasticface_jax', *map(str, arguments)],
      env=environment(devices, compile_cache) | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.fixture
def training():
  """``training(workdir, **changes)``: the arguments of a narrow run."""

  def arguments(workdir, **changes):
    run = ['train', '--config', QUICKSTART, '--workdir', workdir]
    return [str(a) for a in run] + overrides(**changes)

  return arguments


@pytest.fixture
def train(elasticface, training):
  """``train(workdir, devices=1, **changes)``: a process that trains."""

  def start(workdir, devices=1, **changes):
    return elasticface(*training(workdir, **changes), devices=devices)

  return start


@pytest.fixture
def wait_for_a_step():
  """``wait_for_a_step(workdir, process)``: waits until one step is logged."""

  def wait(workdir, process):
    metrics = workdir / 'metrics.jsonl'
    while not metrics.exists() or not metrics.read_text():
      assert process.poll() is None, process.communicate()
      time.sleep(0.05)

  return wait


@pytest.fixture
def free_port():
  with socket.socket() as s:
    s.bind(('', 0))
    return s.getsockname()[1]


@pytest.fixture
def train_together(elasticface, training, free_port):
  """``train_together(workdir, processes=2, devices=1, **changes)``: processes.

  A tuple among the changes has one value for each process. No process outlives
  its test.
  """
  started = []

  def start(workdir, processes=2, devices=1, **changes):
    meeting = ['--coordinator', f'127.0.0.1:{free_port}']
    meeting += ['--processes', processes, '--process']
    for i in range(processes):
      own = {k: v[i] if type(v) is tuple else v for k, v in changes.items()}
      arguments = training(workdir, **own)
      started.append(elasticface(*arguments, *meeting, i, devices=devices))
    return started[-processes:]

  yield start
  for process in started:
    process.kill()
    process.communicate()
