# SPDX-License-Identifier: Apache-2.0
"""Intervals that hold the true value, by `checks/interval_coverage.py`."""

from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'interval_coverage.py'


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


def test_true_values_are_those_of_a_large_set(script):
  population = script.Population(
    'large', 2, 400_000, 400_000, spread=1.5, mislabelled=0.02
  )
  scores, same = population.draw(np.random.default_rng(0))
  genuine, impostors = scores[same], scores[~same]
  assert np.mean(genuine > 0.1) == pytest.approx(population.tar(1), abs=3e-3)
  right = np.mean((scores > 0.13) == same)
  assert right == pytest.approx(population.accuracy(0.13), abs=3e-3)
  eer = population.eer()
  cut = np.quantile(impostors, 1 - eer)
  assert np.mean(genuine <= cut) == pytest.approx(eer, abs=3e-3)
  wins = np.mean(genuine > np.resize(impostors, len(genuine)))
  assert wins == pytest.approx(population.auc(), abs=3e-3)


def test_thresholds_are_those_of_the_protocol(script):
  population = script.Population('small', 1, 100, 100)
  cosines, same = population.draw(np.random.default_rng(1))
  result = script.evaluation.verify(script.embeddings_of(cosines), same)
  mean = np.mean(list(script.fold_thresholds(cosines, same)))
  assert result.threshold == pytest.approx(mean, abs=1e-12)


def test_the_table(script, capsys, monkeypatch):
  """Draws 120 sets, which shows intervals that are far too narrow or wide."""
  population = script.Population('small', 2, 150, 150, fars=(0.1,))
  monkeypatch.setattr(script, 'POPULATIONS', (population,))
  assert script.main(['--sets', '120']) == 0
  first, _, *rows, last = capsys.readouterr().out.splitlines()
  assert first.startswith('120 sets; numpy ')
  assert len(rows) == 6
  assert last.startswith('0 of them fail')


@pytest.mark.parametrize(
  ('held', 'errors', 'kept'),
  [
    (0.95, 30, True),
    (0.932, 3, True),
    (0.90, 30, False),
    (0.90, 3, False),
    (0.99, 30, False),
    (0.99, 3, True),
  ],
)
def test_the_verdict(script, held, errors, kept):
  row = {'below': 0.0, 'above': 1 - held, 'errors': errors}
  assert script.is_kept(row, 1000) == kept
