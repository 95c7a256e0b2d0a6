# SPDX-License-Identifier: Apache-2.0
"""Processes that train a narrow quickstart; shared by the checks, not a check.

`kill_anywhere.py`, `many_classes.py` and `same_bits.py` start their runs here.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[1] / 'configs' / 'quickstart.py'
PROGRAM = sys.executable, '-m', 'elasticface_jax'
# IResNet-10 with every kind of layer, but narrow: compiles in seconds.
NARROW = {
  'group_size': 4,
  'data.batch_size': 16,
  'data.synthetic.num_images': 64,
  'data.synthetic.num_classes': 20,
  'model.width': 2,
  'model.embedding_dim': 16,
  'head.num_blocks': 8,
  'log_every': 1,
  'checkpoint_every': 2,
}


def train_arguments(workdir: Path, changes: Mapping[str, Any]) -> list[str]:
  """Returns the arguments of `elasticface` for a variant of the quickstart.

  Args:
    workdir: the run folder.
    changes: config fields, by dotted name.
  """
  return [
    *('train', '--config', str(QUICKSTART), '--workdir', str(workdir)),
    *(f'--config.{name}={value}' for name, value in changes.items()),
  ]


def train_command(workdir: Path, changes: Mapping[str, Any]) -> list[str]:
  """Returns program and arguments of a process that trains."""
  return [*PROGRAM, *train_arguments(workdir, changes)]


def start(
  workdir: Path,
  changes: Mapping[str, Any],
  *,
  devices: int,
  processes: int = 1,
) -> list[subprocess.Popen]:
  """Starts a run on CPU devices.

  Args:
    workdir: the run folder; its output goes to ``WORKDIR.log`` next to it.
    changes: config fields, by dotted name.
    devices: of all processes together.
    processes: number of processes that share them.

  Returns:
    The processes.
  """
  command = train_command(workdir, changes)
  meeting = []
  if processes > 1:
    meeting += ['--coordinator', f'127.0.0.1:{free_port()}']
    meeting += ['--processes', str(processes), '--process']
  count = devices // processes
  # Every start compiles: from the second time on, from this cache, or from one
  # that the environment names.
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(workdir.parent / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }
  devices_here = {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
  }
  with log_of(workdir).open('a') as log:
    return [
      subprocess.Popen(
        command + (meeting and [*meeting, str(i)]),
        env=cache | os.environ | devices_here,
        stdout=log,
        stderr=log,
      )
      for i in range(processes)
    ]


def free_port() -> int:
  """Returns a TCP port that is free now."""
  with socket.socket() as s:
    s.bind(('', 0))
    return s.getsockname()[1]


def log_of(workdir: Path) -> Path:
  """Returns the file with the output of a run."""
  return workdir.with_name(workdir.name + '.log')


def finish(workdir: Path, started: list[subprocess.Popen]) -> None:
  """Waits for the end of a run; ends this program if it failed."""
  codes = [process.wait() for process in started]
  if any(codes):
    log = log_of(workdir)
    last = log.read_text().splitlines()[-3:]
    raise SystemExit(f'{workdir.name} ended with {codes}: {last}')


def fingerprint(workdir: Path) -> str:
  """Returns the fingerprint of a run's newest checkpoint."""
  command = [*PROGRAM, 'fingerprint', workdir]
  return subprocess.run(
    command, check=True, capture_output=True, text=True
  ).stdout.strip()
