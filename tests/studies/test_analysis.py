# SPDX-License-Identifier: Apache-2.0
"""The analysis of a study: numbers, files, and what is said of them."""

import csv
import json

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.studies import analysis, results, tables

from . import study_folders as made

# The last one is far from the others.
CONFIGS = {'arcface': 0.25, 'cosface': 0.25, 'elastic_arcface': 0.34}
SEEDS = [0, 1, 2, 3, 4, 5, 6]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return made.write_study(
    tmp_path_factory.mktemp('studies') / 'study', CONFIGS, SEEDS
  )


@pytest.fixture(scope='module')
def found(folder):
  return analysis.of_folder(folder)


def accuracies(folder, config, seeds=SEEDS):
  paths = [folder / config / f'seed_{seed}/results.json' for seed in seeds]
  return np.array(
    [json.loads(path.read_text())['faces']['accuracy'] for path in paths]
  )


def rows_of(path):
  return list(csv.DictReader(path.read_text().splitlines()))


def test_what_the_analysis_is_of(found):
  assert found['configs'] == list(CONFIGS)
  assert found['seeds'] == SEEDS and found['missing'] == []
  assert found['varying'] == 'loss.name'
  assert (found['level'], found['confidence'], found['power']) == (
    0.05, 0.95, 0.8,
  )  # fmt: skip
  assert found['num_comparisons'] == 3 and found['notes'] == []
  content = found['sets']['faces']
  assert content['num_pairs'] == 200 and content['num_genuine'] == 100
  assert content['pairs_shared'] is True
  # A FAR of 1e-3 cannot be measured by 100 impostor pairs.
  assert list(content['metrics']) == ['accuracy', 'tar@1e-2', 'eer']
  json.dumps(found, allow_nan=False)


def test_configs(folder, found):
  for config in CONFIGS:
    one = found['sets']['faces']['metrics']['accuracy']['configs'][config]
    expected = accuracies(folder, config)
    assert list(one['by_seed'].values()) == expected.tolist()
    assert list(one['by_seed']) == list(map(str, SEEDS))
    assert one['mean'] == pytest.approx(expected.mean())
    assert one['std'] == pytest.approx(expected.std(ddof=1))
    low, high = one['interval']
    assert 0 <= low < one['mean'] < high <= 1


def test_comparisons(folder, found):
  compared = found['sets']['faces']['metrics']['accuracy']['comparisons']
  assert [(c['first'], c['second']) for c in compared] == [
    ('arcface', 'cosface'),
    ('arcface', 'elastic_arcface'),
    ('cosface', 'elastic_arcface'),
  ]
  figures = np.array([accuracies(folder, config) for config in CONFIGS])
  for one in compared:
    first, second = (accuracies(folder, one[n]) for n in ('first', 'second'))
    differences = second - first
    assert one['seeds'] == SEEDS
    assert [*one['by_seed'].values()] == pytest.approx(differences)
    assert one['difference'] == pytest.approx(differences.mean())
    test = evaluation.sign_flip_test(differences)
    assert one['p'] == test.p and one['p_exact'] == test.p_exact
    assert one['p_smallest'] == 0.5**7
    deviation = differences.std(ddof=1) / np.sqrt(7)
    assert one['std_error_seeds'] == pytest.approx(deviation)
    assert one['detectable'] < one['detectable_adjusted']
    assert one['p_adjusted'] >= test.p
  adjusted = [one['p_adjusted'] for one in compared]
  assert found['correction'] == 'closed'
  assert adjusted == list(evaluation.closed_test(figures)[[0, 0, 1], [1, 2, 2]])
  # Planted: none, and two that all seeds show.
  assert adjusted[0] > 0.05 and adjusted[1:] == [0.5**7] * 2
  assert compared[1]['interval'][0] > 0


def test_errors_of_pairs_are_those_of_a_two_way_table(tmp_path):
  """Configs that differ on pairs in all seeds, by formulas of mean squares."""
  made.write_content(tmp_path, ['arcface', 'cosface'], range(3))
  rng = np.random.default_rng(0)
  scores = {}
  for config in ('arcface', 'cosface'):
    of_config = 0.1 * rng.normal(size=200)
    for seed in range(3):
      own = 0.03 * rng.normal(size=200)
      cosines = np.clip(of_config + own + 0.2 * made.SAME, -1, 1)
      made.write_run(tmp_path, config, seed, cosines)
      correct = evaluation.correct_pairs(cosines, made.SAME)
      scores.setdefault(config, []).append(correct)
  table = np.array(scores['cosface'], float) - np.array(scores['arcface'])
  # Within kinds, as pairs are resampled.
  for kind in (True, False):
    members = made.SAME == kind
    table[:, members] -= table[:, members].mean(axis=1, keepdims=True)
  of_pairs = np.var(table.mean(axis=0)) / 200
  rest = np.sum((table - table.mean(axis=0)) ** 2) / 2 / 3 / 200**2
  (one,) = analysis.of_folder(tmp_path)['sets']['faces']['metrics']['accuracy'][
    'comparisons'
  ]
  assert rest < of_pairs
  assert one['std_error_pairs'] ** 2 == pytest.approx(of_pairs - rest, rel=0.15)


def test_drawn_pairs_are_in_the_variance_of_seeds(tmp_path, monkeypatch):
  monkeypatch.setattr(evaluation, 'resample', None)
  made.write_study(
    tmp_path, {'arcface': 0.2, 'cosface': 0.2}, range(5), path='synthetic'
  )
  found = analysis.of_folder(tmp_path)
  content = found['sets']['faces']
  assert content['pairs_shared'] is False
  for metric in content['metrics'].values():
    (one,) = metric['comparisons']
    assert one['std_error_pairs'] == 0
    assert one['std_error'] == one['std_error_seeds']
  assert found['notes'] == [
    'faces: pairs are drawn anew for each seed, so the variance between seeds '
    'holds theirs.'
  ]


def test_many_configs_are_corrected_by_holm(tmp_path):
  names = [
    'arcface', 'cosface', 'elastic_arcface', 'elastic_cosface', 'normface',
    'elastic_arcface_plus', 'elastic_cosface_plus', 'curricularface',
  ]  # fmt: skip
  configs = dict.fromkeys(names, 0.2) | {'normface': 0.5}
  made.write_study(tmp_path, configs, range(3))
  found = analysis.of_folder(tmp_path)
  assert found['correction'] == 'holm' and found['num_comparisons'] == 28
  for metric in found['sets']['faces']['metrics'].values():
    compared = metric['comparisons']
    exact = [one['p_exact'] for one in compared]
    adjusted = [one['p_adjusted'] for one in compared]
    assert adjusted == evaluation.holm(exact).tolist()
  assert found['notes'] == [
    '3 seeds: no p below 0.12 is possible, however large the difference; 11 '
    'seeds could reach 0.05 after the correction for 28 comparisons.'
  ]
  assert "by Holm's rule" in tables.text(found)


def test_seeds_that_both_configs_have_are_compared(folder, tmp_path, found):
  configs = {'arcface': 0.25, 'cosface': 0.25}
  made.write_study(tmp_path, configs, SEEDS)
  for config, seed in (('arcface', 0), ('arcface', 3), ('cosface', 5)):
    (tmp_path / config / f'seed_{seed}/results.json').unlink()
  some = analysis.of_folder(tmp_path)
  assert some['missing'] == [['arcface', 0], ['arcface', 3], ['cosface', 5]]
  metric = some['sets']['faces']['metrics']['accuracy']
  (one,) = metric['comparisons']
  assert one['seeds'] == [1, 2, 4, 6]
  expected = accuracies(folder, 'cosface', [1, 2, 4, 6]) - accuracies(
    folder, 'arcface', [1, 2, 4, 6]
  )
  assert [*one['by_seed'].values()] == pytest.approx(expected)
  # A single comparison needs no correction.
  assert one['p_adjusted'] == one['p']
  assert len(metric['configs']['cosface']['by_seed']) == 6
  assert some['notes'][-1].startswith('4 seeds: no p below 0.062 is possible')


def test_differences_that_cancel_are_zero(tmp_path):
  """Rounding of sums is no difference, and has no sign."""
  figures = analysis.Figures(
    {
      results.Key(config, seed): value
      for config, values in {'a': (0.1, 0.4, 0.7), 'b': (0.4, 0.2, 0.6)}.items()
      for seed, value in enumerate(values)
    },
    None,
  )
  found = analysis._comparison('a', 'b', [0, 1, 2], figures)
  assert np.mean([*found['by_seed'].values()]) != 0
  assert str(found['difference']) == '0.0'


def test_one_seed(tmp_path):
  made.write_study(tmp_path, {'arcface': 0.25, 'cosface': 0.25}, [0])
  assert analysis.of_folder(tmp_path)['notes'][-1].startswith('1 seed: no p')


def test_files(folder, found, tmp_path):
  text = analysis.write(folder)
  assert text == tables.text(found)
  before = {
    name: (folder / name).read_bytes()
    for name in (analysis.FILE, analysis.COMPARISONS, analysis.RUNS)
  }
  assert json.loads(before[analysis.FILE]) == found
  analysis.write(folder)
  assert all((folder / n).read_bytes() == b for n, b in before.items())

  rows = rows_of(folder / analysis.COMPARISONS)
  metrics = found['sets']['faces']['metrics']
  compared = [c for metric in metrics.values() for c in metric['comparisons']]
  assert len(rows) == len(compared) == 9
  for row, one in zip(rows, compared, strict=True):
    assert (row['first'], row['second']) == (one['first'], one['second'])
    for column in ('difference', 'p', 'p_adjusted', 'detectable'):
      assert float(row[column]) == one[column]
    assert float(row['interval_high']) == one['interval'][1]

  rows = rows_of(folder / analysis.RUNS)
  assert len(rows) == 21
  row = rows[8]
  assert (row['config'], row['seed'], row['step']) == ('cosface', '1', '60')
  assert row['fingerprint'] == 'cosface 1'
  assert row['data_fingerprint'] == 'ab' * 32 and row['problem'] == ''
  eer = metrics['eer']['configs']['cosface']['by_seed']['1']
  assert float(row['faces eer']) == eer


def test_runs_without_results_have_a_row(tmp_path):
  made.write_study(tmp_path, {'arcface': 0.2, 'cosface': 0.2}, [0, 1])
  (tmp_path / 'arcface/seed_1/results.json').unlink()
  analysis.write(tmp_path)
  rows = rows_of(tmp_path / analysis.RUNS)
  assert rows[1]['problem'] == 'not finished'
  assert rows[1]['faces accuracy'] == rows[1]['step'] == ''


def test_studies_without_results(tmp_path):
  made.write_content(tmp_path, ['arcface', 'cosface'], [0, 1])
  text = analysis.write(tmp_path)
  assert text.splitlines() == [
    'arcface seed 0, 1; cosface seed 0, 1: not begun.',
    'No two configs have a result of the same seed yet.',
  ]
  found = json.loads((tmp_path / analysis.FILE).read_text())
  assert found['sets'] == {}


def test_one_config_is_no_comparison(tmp_path):
  made.write_study(tmp_path, {'arcface': 0.2}, [0, 1, 2])
  found = analysis.of_folder(tmp_path)
  assert found['num_comparisons'] == 0 and found['notes'] == []
  text = tables.text(found)
  assert 'arcface' in text and 'points' not in text


def test_pairs_of_one_kind_have_an_accuracy_alone(tmp_path):
  made.write_study(
    tmp_path,
    {'arcface': 0.2, 'cosface': 0.2},
    [0, 1, 2],
    same=np.ones(60, bool),
  )
  found = analysis.of_folder(tmp_path)
  assert list(found['sets']['faces']['metrics']) == ['accuracy']


def test_several_sets(tmp_path):
  made.write_study(
    tmp_path, {'arcface': 0.2, 'cosface': 0.2}, [0, 1], sets=('lfw', 'agedb')
  )
  found = analysis.of_folder(tmp_path)
  assert list(found['sets']) == ['agedb', 'lfw']
  for name in found['sets']:
    assert f'{name}: 200 pairs, 100 genuine' in tables.text(found)


def test_no_study(tmp_path):
  with pytest.raises(InputError, match=r'has no study\.json'):
    analysis.write(tmp_path)


# Text.


def test_the_text(found):
  lines = tables.text(found).splitlines()
  assert lines[0] == 'faces: 200 pairs, 100 genuine'
  assert lines[1].split() == (
    'config seeds accuracy % TAR at FAR 1e-2 % EER %'.split()
  )
  one = found['sets']['faces']['metrics']['accuracy']['configs']['arcface']
  cells = f'{100 * one["mean"]:.2f} ± {100 * one["std"]:.2f}'
  assert lines[2].startswith('arcface') and cells in lines[2]
  row = next(line for line in lines if line.startswith('cosface - arcface'))
  comparison = found['sets']['faces']['metrics']['accuracy']['comparisons'][0]
  low, high = (100 * limit for limit in comparison['interval'])
  difference = 100 * comparison['difference']
  assert f'{difference:.2f} [{low:.2f}, {high:.2f}]' in row
  assert row.split()[-3] == f'{comparison["p"]:.3f}'
  assert any(
    line.startswith('accuracy: elastic_arcface is ')
    and 'points higher than arcface (p 0.008 after the correction)' in line
    for line in lines
  )
  assert any(
    line.startswith('accuracy: not told apart: arcface and cosface; the study '
                    'could have seen ')
    for line in lines
  )  # fmt: skip
  assert not any(
    'significan' in line or 'no difference' in line for line in lines
  )


@pytest.mark.parametrize(
  ('p', 'interval', 'words'),
  [
    (0.01, [0.01, 0.03], 'b is 2.00 points higher than a (p 0.010 after the '
     'correction), on new pairs too'),
    (0.01, [-0.01, 0.05], 'b is 2.00 points higher than a on these pairs (p '
     '0.010 after the correction), and not surely on others: there, anything '
     'from -1.00 to 5.00 is possible'),
    (0.375, [0.01, 0.03], 'b is 2.00 points higher than a, and the interval '
     'excludes 0, but p is 0.375 after the correction: more seeds must confirm '
     'it'),
    (0.375, [-0.01, 0.05], 'not told apart: a and b; the study could have seen '
     '1.50 points'),
    (1.0, None, 'nothing can be said of a and b: one seed, or no variation'),
    (1e-5, [0.01, 0.03], '(p <0.001 after the correction)'),
  ],
)  # fmt: skip
def test_conclusions(p, interval, words):
  comparison = {
    'first': 'a', 'second': 'b', 'difference': 0.02, 'interval': interval,
    'p_adjusted': p, 'detectable': interval and 0.015,
  }  # fmt: skip
  (sentence,) = tables._conclusions([comparison], 0.05)
  assert words in sentence
