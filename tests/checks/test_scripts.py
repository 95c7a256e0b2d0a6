# SPDX-License-Identifier: Apache-2.0
"""The checks that train by processes, and the verdicts that they give."""

import argparse
import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from elasticface_jax import cli
from elasticface_jax.training import state

from .. import thin

CHECKS = Path(__file__).parents[2] / 'checks'


@pytest.fixture
def load(load_script, monkeypatch):
  monkeypatch.syspath_prepend(CHECKS)
  return lambda name: load_script(CHECKS / f'{name}.py')


@pytest.mark.slow
def test_killed_anywhere(load, monkeypatch, capsys):
  training_runs = importlib.import_module('training_runs')

  script = load('kill_anywhere')
  monkeypatch.setattr(training_runs, 'PROGRAM', (sys.executable, thin.__file__))
  thin.add(monkeypatch.setitem)
  monkeypatch.setitem(script.CONFIG, 'model.name', thin.NAME)
  monkeypatch.setitem(script.CONFIG, 'eval.synthetic_pairs', 20)
  # Two programs to compile, and not three.
  monkeypatch.setattr(script, 'DEVICES', (1, 2))
  make_mesh = state.make_mesh

  def train(workdir, steps, devices, processes):
    # A run that is not killed needs no process of its own, whose imports take
    # longer than its steps.
    monkeypatch.setattr(state, 'make_mesh', lambda: make_mesh(devices))
    changes = script.CONFIG | {'total_steps': steps}
    assert cli.main(training_runs.train_arguments(workdir, changes)) == 0
    capsys.readouterr()
    assert cli.main(['fingerprint', str(workdir)]) == 0
    return capsys.readouterr().out.strip()

  killed = []
  kill_once = script.kill_once

  def observed_kill(workdir, kill, *rest):
    kill_once(workdir, kill, *rest)
    killed.append((script.MOMENTS[kill], script.newest(workdir)))

  monkeypatch.setattr(script, 'train', train)
  monkeypatch.setattr(script, 'kill_once', observed_kill)
  assert script.main(['--kills=4', '--steps=24']) == 0
  moments, checkpoints = zip(*killed, strict=True)
  assert moments == script.MOMENTS
  assert sorted(checkpoints) == [*checkpoints] and checkpoints[-1] > 0


def test_no_process_outlives_its_run(load, monkeypatch, tmp_path):
  script = load('kill_anywhere')
  started = []

  def start(workdir, changes, *, devices, processes):
    script.log_of(workdir).write_text('first\nlast\n')
    seconds, code = changes['ends']
    code = f'import sys, time; time.sleep({seconds}); sys.exit({code})'
    started.append(subprocess.Popen([sys.executable, '-S', '-c', code]))
    return started[-1:]

  monkeypatch.setattr(script, 'start', start)
  monkeypatch.setattr(script, 'fingerprint', lambda workdir: workdir.name)
  monkeypatch.setitem(script.CONFIG, 'ends', (0, 0))
  assert script.train(tmp_path / 'run', 4, 1, 1) == 'run'
  monkeypatch.setitem(script.CONFIG, 'ends', (0, 3))
  with pytest.raises(SystemExit, match=r'run ended with \[3\].*last'):
    script.train(tmp_path / 'run', 4, 1, 1)
  # A process that does not reach its moment does not outlive the check.
  monkeypatch.setitem(script.CONFIG, 'ends', (100, 0))
  monkeypatch.setattr(script, 'PATIENCE', 0.01)
  args = argparse.Namespace(steps=4, kills=1, processes=1)
  with pytest.raises(SystemExit, match='no step came'):
    script.kill_once(tmp_path / 'run', 1, 1, args, random.Random(0))
  assert all(process.poll() is not None for process in started)


def test_other_bits_are_found(load, monkeypatch, capsys):
  script = load('same_bits')
  places = []

  def train(workdir, changes, devices, processes):
    places.append((devices, processes))
    return f'{changes["model.dtype"]} {bits(devices)}'

  monkeypatch.setattr(script, 'train', train)
  variants = {name: {'model.dtype': name} for name in ('bfloat16', 'float32')}
  monkeypatch.setattr(script, 'VARIANTS', variants)
  monkeypatch.setattr(script, 'train_killed', lambda *run: train(*run, 8, 1))

  bits = lambda devices: 'same'
  assert script.main([]) == 0
  assert set(places) == {*script.PLACES, (8, 1)}
  bits = lambda devices: 'other' if devices == 8 else 'same'
  assert script.main(['--only', 'bfloat16']) == 1
  assert 'bfloat16: DIFFERENT BITS' in capsys.readouterr().out
  # Two variants with the same bits: one of them did nothing.
  bits = lambda devices: 'same'
  variants['float32']['model.dtype'] = 'bfloat16'
  assert script.main([]) == 1


@pytest.mark.parametrize(
  ('peak', 'message', 'code'),
  [
    (2.4, 'resuming from step 4', 0),
    (2.6, 'resuming from step 4', 1),
    (2.4, 'starting', 1),
  ],
)
def test_memory_and_resume_are_judged(load, monkeypatch, peak, message, code):
  script = load('many_classes')
  needed = 3 * 1000 * script.DIM * 4
  monkeypatch.setattr(script, 'train', lambda *_: (peak * needed, message))
  assert script.main(['--classes=1000']) == code


def test_the_text_that_break_losses_replaces_exists(load):
  script = load('break_losses')
  for row in script.BREAKS:
    compile(script.broken(*row), row[0], 'exec')
  for test in script.TESTS:
    assert (CHECKS.parent / test).exists()
