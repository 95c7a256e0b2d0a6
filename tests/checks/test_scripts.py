# SPDX-License-Identifier: Apache-2.0
"""The checks that train by processes, and the verdicts that they give."""

import importlib
import sys
from pathlib import Path

import pytest

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
  monkeypatch.setitem(script.CONFIG, 'model.name', thin.NAME)
  # Two programs to compile, and not three.
  monkeypatch.setattr(script, 'DEVICES', (1, 2))
  assert script.main(['--kills=4', '--steps=24']) == 0
  lines = capsys.readouterr().out.splitlines()
  moments = [line.split()[2] for line in lines if line.startswith('kill ')]
  assert moments == ['start', 'step', 'save', 'evaluation']


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
