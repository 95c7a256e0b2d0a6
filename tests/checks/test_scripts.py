# SPDX-License-Identifier: Apache-2.0
"""The scripts in checks/ run; here in a short form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parents[2] / 'checks'


def run(script, *arguments, devices=1):
  count = f'--xla_force_host_platform_device_count={devices}'
  process = subprocess.run(
    [sys.executable, CHECKS / script, *arguments],
    env=os.environ | {'XLA_FLAGS': count},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  return process.stdout


@pytest.mark.slow
def test_killed_anywhere():
  told = run('kill_anywhere.py', '--kills', '4', '--steps', '12')
  moments = [line.split()[2] for line in told.splitlines() if 'kill ' in line]
  assert moments == ['start', 'step', 'save', 'evaluation']


def test_reduction():
  told = run('reduction.py', '--numbers', '1000', '--rounds', '2', devices=2)
  assert 'on 2 devices' in told and 'ratio' in told


def test_what_breaks_the_losses_is_still_there(load_script):
  script = load_script(CHECKS / 'break_losses.py')
  for row in script.BREAKS:
    compile(script.broken(*row), row[0], 'exec')
  for test in script.TESTS:
    assert (CHECKS.parent / test).exists()
