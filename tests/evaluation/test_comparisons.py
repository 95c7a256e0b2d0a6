# SPDX-License-Identifier: Apache-2.0
"""Comparisons of configs, against all flips and published formulas."""

import itertools

import numpy as np
import pytest
from scipy import stats

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import comparisons


def flips(differences):
  """Counts flips farther from zero than, and as far as, the observed one."""
  farther = equal = 0
  observed = abs(sum(differences))
  for signs in itertools.product((1, -1), repeat=len(differences)):
    flipped = abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
    farther += flipped > observed
    equal += flipped == observed
  return farther, equal, 2 ** len(differences)


@pytest.mark.parametrize(
  'counts',
  [
    [3, 1, 4, 1, 5],
    [3, -1, 4, 1, -5, 9],
    [0, 0, 2, 0, -2],
    [0, 0, 0],
    [7],
    [2, 2, 2, 2, 2, 2, 2],
    [1, 2, 3, -4, 5, -6, 7, 8, -9, 10],
  ],
)
def test_flips_are_those_of_whole_numbers(counts):
  """Differences are multiples of 1/N whose sums round, and ties stay ties."""
  farther, equal, total = flips(counts)
  for denominator in (1, 3, 1200, 5999):
    test = evaluation.sign_flip_test(np.array(counts) / denominator)
    assert test.p == pytest.approx((farther + equal / 2) / total, abs=1e-12)
    assert test.p_exact == pytest.approx((farther + equal) / total, abs=1e-12)
    assert test.num_flips == total
    assert test.p >= test.p_smallest == 0.5 ** len(counts)


def test_exact_p_is_that_of_scipy():
  rng = np.random.default_rng(0)
  for num_seeds in (3, 6, 9):
    first, second = rng.normal(size=(2, num_seeds)) + [[0], [0.7]]
    expected = stats.permutation_test(
      (second, first),
      lambda x, y: np.mean(x - y),
      permutation_type='samples',
      n_resamples=np.inf,
    )
    test = evaluation.sign_flip_test(second - first)
    assert test.p_exact == pytest.approx(expected.pvalue, abs=1e-12)


def test_signs_and_order_of_seeds_do_not_matter():
  differences = np.array([0.3, -0.1, 0.25, 0.7, 0.02])
  test = evaluation.sign_flip_test(differences)
  assert evaluation.sign_flip_test(-differences) == test
  assert evaluation.sign_flip_test(differences[::-1]) == test


def test_many_seeds_are_counted_by_halves():
  differences = np.random.default_rng(1).normal(0.35, 1, size=16).round(1)
  sums = [
    np.dot(signs, differences)
    for signs in itertools.product((1, -1), repeat=16)
  ]
  exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
  test = evaluation.sign_flip_test(differences)
  assert test.p_exact == exact and test.num_flips == 2**16


def test_very_many_seeds_draw_flips_with_a_fixed_key(monkeypatch):
  differences = np.random.default_rng(1).normal(0.35, 1, size=30)
  exact = evaluation.sign_flip_test(differences)
  monkeypatch.setattr(comparisons, '_MOST_SEEDS', 20)
  test = evaluation.sign_flip_test(differences)
  assert evaluation.sign_flip_test(differences) == test
  assert test.p == pytest.approx(exact.p, abs=3e-3) and test.p != exact.p
  # The observed flip is counted, so that no p is zero.
  extreme = evaluation.sign_flip_test(np.arange(1.0, 31))
  assert extreme.p == extreme.p_smallest == 0.5 / (2**17 + 1)


@pytest.mark.parametrize('values', [[], [0.1, np.nan], [[0.1]]])
def test_values_that_are_none(values):
  with pytest.raises(InputError, match='not a finite one for each seed'):
    evaluation.sign_flip_test(values)
  with pytest.raises(InputError, match='not a finite one for each seed'):
    evaluation.seed_mean(values)


def test_without_pairs_the_interval_is_students():
  rng = np.random.default_rng(2)
  for num_seeds in (2, 3, 5, 20):
    values = rng.normal(size=num_seeds)
    found = evaluation.seed_mean(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert found.interval == pytest.approx(expected, rel=1e-12)
    assert found.std_error == pytest.approx(stats.sem(values), rel=1e-12)
    assert found.std_error_pairs == 0
    assert evaluation.seed_mean(values).std == np.std(values, ddof=1)


def crossed(rng, num_seeds, num_pairs, seeds, pairs, rest):
  return (
    seeds * rng.normal(size=(num_seeds, 1))
    + pairs * rng.normal(size=num_pairs)
    + rest * rng.normal(size=(num_seeds, num_pairs))
  )


@pytest.mark.parametrize('parts', [(0.0, 1, 1), (0.02, 1, 2), (0.3, 0.2, 3)])
def test_standard_errors_are_those_of_a_two_way_table(parts):
  """Mean squares of seeds, pairs and rest, as in any textbook of designs."""
  rng = np.random.default_rng(3)
  num_seeds, num_pairs = 6, 1000
  table = crossed(rng, num_seeds, num_pairs, *parts)
  grand, of_seeds, of_pairs = table.mean(), table.mean(1), table.mean(0)
  ms_seeds = num_pairs * np.sum((of_seeds - grand) ** 2) / (num_seeds - 1)
  ms_pairs = num_seeds * np.sum((of_pairs - grand) ** 2) / (num_pairs - 1)
  rest = table - of_seeds[:, None] - of_pairs + grand
  ms_rest = np.sum(rest**2) / (num_seeds - 1) / (num_pairs - 1)
  size = num_seeds * num_pairs

  counts = evaluation.resample(np.ones(num_pairs, bool), 8000)
  found = evaluation.seed_mean(of_seeds, counts @ table.T / num_pairs)
  assert found.std_error_seeds**2 == pytest.approx(ms_seeds / size)
  expected = max(ms_pairs - ms_rest, 0) / size
  tolerance = 0.06 * ms_pairs / size
  assert found.std_error_pairs**2 == pytest.approx(expected, abs=tolerance)
  assert found.std_error_fixed**2 == pytest.approx(
    ms_pairs / size, abs=tolerance
  )
  assert found.std_error == max(
    np.hypot(found.std_error_seeds, found.std_error_pairs),
    found.std_error_fixed,
  )


def test_the_interval_averages_quantiles_by_variances():
  rng = np.random.default_rng(4)
  table = crossed(rng, 4, 500, 0.05, 1.0, 0.5)
  counts = evaluation.resample(np.ones(500, bool))
  found = evaluation.seed_mean(table.mean(axis=1), counts @ table.T / 500)
  seeds, pairs = found.std_error_seeds**2, found.std_error_pairs**2
  quantile = np.average(
    [stats.t.ppf(0.975, 3), 1.959964], weights=[seeds, pairs]
  )
  half = (found.interval[1] - found.interval[0]) / 2
  assert half == pytest.approx(quantile * np.sqrt(seeds + pairs), rel=1e-6)
  assert np.mean(found.interval) == pytest.approx(found.mean)


def test_seeds_that_happen_to_agree_leave_the_error_of_the_pairs():
  replicates = np.random.default_rng(5).normal(0.01, 0.004, size=(5000, 3))
  found = evaluation.seed_mean([0.01, 0.01, 0.01], replicates)
  fixed = 0.004 / np.sqrt(3)
  assert found.std_error_pairs < fixed / 3
  assert found.std_error == pytest.approx(fixed, rel=0.05)
  half = (found.interval[1] - found.interval[0]) / 2
  assert half == pytest.approx(1.96 * fixed, rel=0.05)


def test_nothing_is_said_without_variation():
  for found in (
    evaluation.seed_mean([0.3]),
    evaluation.seed_mean([0.1] * 7),
    evaluation.seed_mean([0.1] * 7, np.full((9, 7), 0.1)),
  ):
    assert found.interval is found.std_error is found.detectable() is None


def test_replicates_of_other_seeds_are_refused():
  with pytest.raises(InputError, match=r'expected \[R, 3\]'):
    evaluation.seed_mean([1, 2, 3], np.zeros((9, 4)))


def test_power_at_the_detectable_mean():
  """The sum of two quantiles comes close to the noncentral distribution."""
  for num_seeds in (4, 5, 10, 20):
    values = np.resize([1.0, -1.0], num_seeds)
    found = evaluation.seed_mean(values)
    shift = found.detectable() / found.std_error
    cut = stats.t.ppf(0.975, num_seeds - 1)
    power = stats.nct.sf(cut, num_seeds - 1, shift)
    assert power == pytest.approx(0.8, abs=0.03)
    assert found.detectable(0.05 / 6) > found.detectable()
    assert found.detectable(power=0.9) > found.detectable()


def test_seeds_needed_are_the_fewest():
  assert evaluation.seeds_needed(1) == 5
  for number in (2, 3, 6, 15):
    needed = evaluation.seeds_needed(number)
    for num_seeds, can in ((needed, True), (needed - 1, False)):
      test = evaluation.sign_flip_test(np.ones(num_seeds))
      p_values = [test.p_exact] + [1.0] * (number - 1)
      assert (evaluation.holm(p_values)[0] <= 0.05) == can
