# SPDX-License-Identifier: Apache-2.0
"""Fixtures for real but narrow runs, which compile and train in seconds."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from elasticface_jax import cli
from elasticface_jax.training import state

from .. import thin

QUICKSTART = Path(__file__).parents[2] / 'configs' / 'quickstart.py'
THIN = Path(thin.__file__)
# A network with every kind of layer, and the same step for all tests of whole
# runs: what one has compiled, the others read. Eight groups and eight blocks,
# one of each on eight devices.
NARROW = {
  'total_steps': 4,
  'group_size': 2,
  'data.batch_size': 16,
  'data.synthetic.num_images': 64,
  'data.synthetic.num_classes': 20,
  'model.name': thin.NAME,
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


@pytest.fixture(scope='module', autouse=True)
def thin_backbone():
  with pytest.MonkeyPatch.context() as patch:
    thin.add(patch.setitem)
    yield


def environment(devices):
  """Variables of a process with CPU devices, without the suite's own."""
  left_out = ('XLA_FLAGS', 'PJRT_NPROC', 'JAX_PLATFORMS')
  kept = {k: v for k, v in os.environ.items() if k not in left_out}
  return kept | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }


@pytest.fixture
def elasticface():
  """``elasticface(*arguments, devices=1, **environment)``: a process.

  It knows the thin backbone, and is the command `elasticface` otherwise.

  No process outlives its test.
  """
  started = []

  def start(*arguments, devices=1, **variables):
    process = subprocess.Popen(
      [sys.executable, THIN, *map(str, arguments)],
      env=environment(devices) | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


class Ended(NamedTuple):
  """A command that has ended in this process."""

  code: int
  out: str
  err: list[str]  # Lines.


@pytest.fixture
def run_here(capfd, monkeypatch):
  """``run_here(*arguments, devices=1)``: a command in this process.

  It saves the start of a process, which takes longer than a narrow run. The
  mesh is the first devices of the eight that there are.
  """
  make_mesh = state.make_mesh

  def run(*arguments, devices=1):
    monkeypatch.setattr(state, 'make_mesh', lambda: make_mesh(devices))
    capfd.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return Ended(code, out, err.strip().splitlines())

  return run


@pytest.fixture
def train_here(run_here, training):
  """``train_here(workdir, devices=1, **changes)``: a run that has ended."""

  def run(workdir, devices=1, **changes):
    return run_here(*training(workdir, **changes), devices=devices)

  return run


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

  A change to a tuple is one for each process.
  """

  def start(workdir, processes=2, devices=1, **changes):
    meeting = ['--coordinator', f'127.0.0.1:{free_port}']
    meeting += ['--processes', processes, '--process']
    return [
      elasticface(
        *training(
          workdir,
          **{k: v[i] if type(v) is tuple else v for k, v in changes.items()},
        ),
        *meeting,
        i,
        devices=devices,
      )
      for i in range(processes)
    ]

  return start
