# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/loss_speed.py` compares losses, then times them."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / 'benchmarks' / 'loss_speed.py'
SMALL = ['--batch=8', '--dim=16', '--classes=300', '--num-blocks=4']
HAS_TORCH = importlib.util.find_spec('torch') is not None


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


def test_table_of_ours(script, capsys, monkeypatch):
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  peaks = []

  def measured_peak(variant, name, flags):
    # Two rows with two variants would be four processes; one is enough.
    peaks.append(variant)
    return measure(variant, name, flags) if len(peaks) == 1 else '7'

  measure = script.measured_peak
  monkeypatch.setattr(script, 'measured_peak', measured_peak)
  flags = ['--only=jax', *SMALL, '--rounds=2', '--losses=arcface,adaface']
  assert script.main(flags) == 0
  assert peaks == 2 * [*script.OURS]
  printed = capsys.readouterr().out
  assert 'B 8, D 16, C 300, 4 blocks' in printed and 'Compile time' in printed
  lines = [line for line in printed.splitlines() if line.startswith('|')]
  rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
  titles, rule, *rows = rows
  assert [row[0] for row in rows] == ['`arcface`', '`adaface`']
  assert rule == ['---'] + ['--:'] * (len(titles) - 1)
  for row in rows:
    cells = dict(zip(titles, row, strict=True))
    memory = {name: cell for name, cell in cells.items() if 'MB' in name}
    assert len(memory) == 4
    assert all(cell == '-' or cell.isdigit() for cell in memory.values())
    for variant in script.OURS:
      median, quartiles = cells[f'{variant}, ms'].split()
      low, high = map(float, quartiles.strip('()').split('-'))
      assert low <= float(median) <= high


def test_blocks_need_less_memory(script):
  flags = script.parse(['--batch=32', '--dim=8', '--classes=6400'])
  made = script.make_steps('arcface', script.OURS, flags)
  logits = 4 * 32 * 6400
  (_, _, dense), (_, _, blockwise) = made['dense'], made['block-wise']
  assert dense >= logits and blockwise < dense / 2


def test_disagreement_ends_it(script, capsys, monkeypatch):
  monkeypatch.setitem(script.CONSTANTS, 'cosface', ('cos', 0.3501))
  flags = ['--only=jax', *SMALL, '--rounds=1', '--losses=cosface']
  assert script.main(flags) == 1
  assert 'cosface: block-wise and dense differ' in capsys.readouterr().err


def test_an_unknown_loss(script, capsys):
  with pytest.raises(SystemExit, match='2'):
    script.main(['--losses=archface'])
  assert '--losses archface: unknown' in capsys.readouterr().err


def test_peak(script):
  megabytes = script.peak_of(lambda: np.ones(100_000_000, np.uint8))
  if megabytes != '-':  # A system other than Linux.
    assert 100 <= int(megabytes) < 110


def test_without_torch(script, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert script.main(SMALL) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  assert printed.err == ("needs torch: pip install 'elasticface_jax[bench]'\n")


@pytest.mark.skipif(not HAS_TORCH, reason='needs torch')
def test_pytorch_agrees(script):
  flags = script.parse(SMALL)
  for name in script.LOSSES:
    # The tests of the losses compare block-wise with dense.
    steps = script.make_steps(name, ('dense', 'PyTorch'), flags)
    steps = {variant: step for variant, (step, *_) in steps.items()}
    gap, variant = script.disagreement(steps, name, flags)
    assert gap < 1e-5, (name, variant, gap)
