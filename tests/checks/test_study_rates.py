# SPDX-License-Identifier: Apache-2.0
"""Error rates of studies, by `checks/study_rates.py`."""

from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'study_rates.py'


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


def test_the_true_accuracy_is_that_of_many_networks(script):
  design = script.Design('any', 0.5, 0.6, 0.3, 0.4, num_pairs=4000)
  rng = np.random.default_rng(0)
  cosines, same = design.draw(rng, [2.0, 3.0], 100)
  found = script.accuracies(cosines, same).mean(axis=1)
  expected = [design.accuracy(separation) for separation in (2.0, 3.0)]
  assert found == pytest.approx(expected, abs=0.015)
  assert design.separation_for(design.accuracy(2.0)) == pytest.approx(2)


def test_parts_of_scores_have_the_stated_correlations(script):
  design = script.Design('any', 0.6, 0.5, 0.0, 0.0, num_pairs=20_000)
  cosines, same = design.draw(np.random.default_rng(0), [0, 0], 2)
  scores = cosines[:, :, ~same] / script.DEVIATION
  correlations = np.corrcoef(scores.reshape(4, -1))
  assert correlations[0, 1] == pytest.approx(0.6**2 + 0.5**2, abs=0.03)
  assert correlations[0, 2] == pytest.approx(0.6**2, abs=0.03)


@pytest.mark.parametrize('place', [0, 3])
def test_rates_of_a_few_studies(script, place):
  """Draws 150 studies, which shows rates that are far off."""
  design = script.DESIGNS[place]
  row = script.simulate(design, 5, 150, (1, place))
  assert script.failures(design, row, 150) == []
  assert row['p_exact'] == 0


def test_the_tables(script, capsys, monkeypatch):
  monkeypatch.setattr(script, 'DESIGNS', script.DESIGNS[1:2])
  monkeypatch.setattr(script, 'FAMILY_SEEDS', (5,))
  assert script.main(['--studies', '60', '--seeds', '6', '--key', '1']) == 0
  first, _, row, title, _, *rows, last = capsys.readouterr().out.splitlines()
  assert first.startswith('60 studies; numpy ')
  assert row.split()[:2] == ['6', 'even']
  assert title.startswith('four configs: ')
  assert len(rows) == 3
  assert last.startswith('0 shares fail; ')


GOOD = {
  'p': 0.05, 'p_exact': 0.03, 'covers_zero': 0.95, 'covers': 0.96, 'power': 0.8,
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'share'),
  [
    ('p', 0.10),
    ('p', 0.01),
    ('p_exact', 0.08),
    ('covers_zero', 0.90),
    ('covers', 0.999),
    ('power', 0.6),
  ],
)
def test_the_verdict(script, name, share):
  seeds, *_, pairs = script.DESIGNS
  assert script.failures(seeds, GOOD, 1000) == []
  row = {**GOOD, name: share}
  assert script.failures(seeds, row, 1000) == [name]
  # Where configs differ on pairs, the hypothesis of the test is false.
  expected = [] if name.startswith('p_') or name == 'p' else [name]
  assert script.failures(pairs, row, 1000) == expected
