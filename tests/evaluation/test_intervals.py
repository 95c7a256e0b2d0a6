# SPDX-License-Identifier: Apache-2.0
"""Intervals, compared with distributions and with simulations."""

import numpy as np
import pytest
from scipy import optimize, stats

from elasticface_jax import evaluation
from elasticface_jax.evaluation import intervals, rates


def test_interval_has_the_published_limits():
  # The rule of three's exact form, and a textbook value (4 of 20).
  low, high = evaluation.binomial_interval(0, 100)
  assert low == 0.0
  assert high == pytest.approx(1 - 0.025 ** (1 / 100))
  assert evaluation.binomial_interval(100, 100) == pytest.approx((1 - high, 1))
  limits = evaluation.binomial_interval(4, 20)
  assert limits == pytest.approx((0.0573, 0.4366), abs=5e-5)


@pytest.mark.parametrize(('k', 'n'), [(1, 7), (3, 3000), (2999, 3000), (5, 9)])
def test_interval_leaves_half_the_rest_on_each_side(k, n):
  low, high = evaluation.binomial_interval(k, n, confidence=0.9)
  assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.05)
  assert stats.binom.cdf(k, n, high) == pytest.approx(0.05)


@pytest.mark.parametrize(
  ('k', 'n'), [(0, 50), (1, 7), (30, 3000), (3000, 3000)]
)
def test_mid_p_counts_half_of_what_was_seen(k, n):
  low, high = intervals.mid_p_interval(k, n)
  half = stats.binom.pmf(k, n, [low, high]) / 2
  if k > 0:
    assert stats.binom.sf(k, n, low) + half[0] == pytest.approx(0.025)
  if k < n:
    assert stats.binom.cdf(k, n, high) - half[1] == pytest.approx(0.025)
  assert (low == 0) == (k == 0)
  assert (high == 1) == (k == n)
  assert intervals.mid_p_interval(n - k, n) == pytest.approx(
    (1 - high, 1 - low)
  )


@pytest.mark.parametrize(('n', 'mean'), [(100, 30), (3000, 30)])
def test_mid_p_covers_in_the_mean_and_exact_always(n, mean):
  truths = np.linspace(0.5, 1.5, 101) * mean / n
  counts = np.arange(n + 1)
  for interval, lowest, highest in (
    (intervals.mid_p_interval, 0.93, 0.965),
    (intervals.binomial_interval, 0.95, 0.985),
  ):
    shown = counts[: 4 * mean]
    low, high = np.array([interval(k, n) for k in shown]).T
    covered = [
      stats.binom.pmf(shown[(low <= p) & (p <= high)], n, p).sum()
      for p in truths
    ]
    assert min(covered) >= lowest
    assert max(covered) <= highest
    if interval is intervals.mid_p_interval:
      assert np.mean(covered) == pytest.approx(0.95, abs=0.004)


def ranks_of(n, far):
  """Returns the ranks of the impostor scores that enclose a threshold."""
  ranks = np.arange(n + 1)
  low, high = intervals.threshold_interval(ranks, -ranks.astype(float), far)
  return -high, -low


@pytest.mark.parametrize(
  ('n', 'far'),
  [(299, 0.01), (3000, 1e-3), (3500, 1e-3), (10000, 1e-3), (3000, 1e-2)],
)
def test_threshold_lies_between_ranks_in_95_percent(n, far):
  first, last = ranks_of(n, far)
  # The threshold is above the score of rank r if less than r impostors reach
  # it. Fractional ranks lie between those of the whole ones beside them.
  reach = stats.binom(n, far)

  def missed_above(rank):
    whole = int(rank)
    share = rank - whole
    return (1 - share) * reach.cdf(whole - 1) + share * reach.cdf(whole)

  def missed_below(rank):
    whole = int(rank)
    share = rank - whole
    return (1 - share) * reach.sf(whole - 1) + share * reach.sf(whole)

  assert missed_above(first) + missed_below(last) == pytest.approx(0.05, 1e-3)
  if reach.pmf(0) < 0.025:
    assert missed_above(first) == pytest.approx(0.025, 1e-3)
  else:
    assert first == 1


def test_threshold_without_enough_impostors_has_one_limit():
  assert ranks_of(298, 0.01)[0] == -np.inf
  assert ranks_of(298, 0.01)[1] > 3
  # Nothing is known above FAR 1 - 1/n, by the same argument.
  assert ranks_of(298, 0.99)[1] == np.inf


def draw(rng, separation, genuine, impostors):
  scores = rng.normal(size=genuine + impostors)
  same = np.arange(genuine + impostors) < genuine
  return rates.curve(scores + separation * same, same)


def test_intervals_hold_the_truth_in_simulations():
  """Draws small sets; `checks/interval_coverage.py` draws large ones."""
  rng, separation, genuine, impostors = np.random.default_rng(5), 2, 150, 200
  cut = stats.norm.isf(0.1)
  truth = {
    'tar': stats.norm.sf(cut - separation),
    'threshold': cut,
    'eer': stats.norm.sf(separation / 2),
    'auc': stats.norm.cdf(separation / np.sqrt(2)),
  }
  held: dict[str, list[bool]] = {}
  for k in range(900):
    false, true, thresholds = draw(rng, separation, genuine, impostors)
    (point,) = rates.points_of_curve(false, true, thresholds, [0.1])
    found = {
      'tar': (point.tar_interval, truth['tar']),
      'threshold': (point.threshold_interval, cut),
      'far': (point.far_interval, stats.norm.sf(point.threshold)),
      'auc': (intervals.auc_interval(false, true), truth['auc']),
      # For comparison: this one says nothing about the threshold.
      'tar of a given threshold': (
        intervals.mid_p_interval(round(point.tar * genuine), genuine),
        truth['tar'],
      ),
    }
    if k % 3 == 0:  # It takes as long as all others.
      interval = intervals.equal_error_interval(false, true)
      found['eer'] = interval, truth['eer']
    for name, ((low, high), true_value) in found.items():
      held.setdefault(name, []).append(low <= true_value <= high)
  assert np.mean(held.pop('tar of a given threshold')) < 0.85
  for name, cases in held.items():
    # Two deviations that a simulation of so many sets has.
    chance = 2 * np.sqrt(0.05 * 0.95 / len(cases))
    assert 0.93 - chance <= np.mean(cases) <= 0.97 + chance, name


def test_tar_interval_contains_what_a_slow_average_does():
  rng = np.random.default_rng(6)
  false, true, _ = draw(rng, 1.5, 80, 120)
  far, m, n = 0.07, 80, 120

  def chance_of_less(tar):
    """Averages over the number of impostors above the true threshold."""
    total = 0.0
    for k in range(n + 1):
      # Thresholds with k false accepts: from just above the next impostor to
      # the impostor of rank k.
      most = max(t for f, t in zip(false, true, strict=True) if f <= k)
      fewest = min(t for f, t in zip(false, true, strict=True) if f >= k)
      low = stats.beta.cdf(tar, fewest, m - fewest + 1) if fewest else 1.0
      high = stats.beta.cdf(tar, most + 1, m - most) if most < m else 0.0
      total += stats.binom.pmf(k, n, far) * (low + high) / 2
    return total

  expected = [
    optimize.brentq(lambda x, t=t: chance_of_less(x) - t, 0, 1, xtol=1e-12)
    for t in (0.025, 0.975)
  ]
  assert intervals.tar_interval(false, true, far) == pytest.approx(
    expected, abs=1e-9
  )


def test_equal_error_limits_are_where_tar_limits_are():
  rng = np.random.default_rng(7)
  false, true, _ = draw(rng, 1.5, 80, 120)
  low, high = intervals.equal_error_interval(false, true)
  # At the lower limit 1 - EER is the upper limit of TAR, and the reverse.
  assert intervals.tar_interval(false, true, low)[1] == pytest.approx(1 - low)
  assert intervals.tar_interval(false, true, high)[0] == pytest.approx(1 - high)


def test_auc_interval_has_delong_variance():
  rng = np.random.default_rng(8)
  genuine, impostors = rng.normal(1, 1, 70), rng.normal(size=90)
  scores, same = np.append(genuine, impostors), np.arange(160) < 70
  wins = genuine[:, None] > impostors
  variance = (
    wins.mean(axis=1).var(ddof=1) / 70 + wins.mean(axis=0).var(ddof=1) / 90
  )
  error = 1 - wins.mean()
  trials = error * (1 - error) / variance
  low, high = intervals.auc_interval(*rates.curve(scores, same)[:2])
  expected = intervals.mid_p_interval(error * trials, trials)
  assert 1 - high == pytest.approx(expected[0], abs=1e-12)
  # The lower limit allows for one more pair as bad as the worst.
  worst = max((~wins).mean(axis=1).max() / 70, (~wins).mean(axis=0).max() / 90)
  error += worst
  trials = error * (1 - error) / (variance + worst**2)
  limit = stats.beta.ppf(0.975, error * trials, (1 - error) * trials)
  assert 1 - low == pytest.approx(limit, abs=1e-12)
  # Exchanged kinds turn the area round.
  turned = intervals.auc_interval(*rates.curve(-scores, same)[:2])
  assert turned == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_auc_of_separable_scores_is_no_certainty():
  false, true, _ = draw(np.random.default_rng(9), 50, 3000, 40)
  low, high = intervals.auc_interval(false, true)
  assert high == 1.0
  assert low == pytest.approx(0.05 ** (1 / 40))
  low, high = intervals.equal_error_interval(false, true)
  assert low == 0 and 0.01 < high < 0.1


def test_intervals_of_millions_of_pairs_are_quick_and_narrow():
  # 4,000,000 genuine pairs of quantised scores: the work is in the counts.
  grid = np.linspace(-4, 8, 20001)
  true = np.append(0, np.cumsum(np.diff(stats.norm.cdf(grid - 4))[::-1] * 4e6))
  false = np.append(0, np.cumsum(np.diff(stats.norm.cdf(grid))[::-1] * 4e6))
  true, false = true.astype(np.int64), false.astype(np.int64)
  eer = stats.norm.sf(2)
  low, high = intervals.equal_error_interval(false, true)
  assert low < eer < high < low + 4e-4
  low, high = intervals.tar_interval(false, true, 0.4)
  assert low < stats.norm.sf(stats.norm.isf(0.4) - 4) < high
  low, high = intervals.auc_interval(false, true)
  assert low < stats.norm.cdf(4 / np.sqrt(2)) < high < low + 1e-4


def test_intervals_are_the_same_each_time():
  false, true, thresholds = draw(np.random.default_rng(10), 2, 300, 300)
  first, second = (
    rates.points_of_curve(false, true, thresholds, [0.1, 0.01])
    for _ in range(2)
  )
  assert first == second


def test_equal_scores_leave_the_equal_error_rate_symmetric():
  # All scores are equal, so that both kinds are exchangeable.
  low, high = intervals.equal_error_interval([0, 100], [0, 100])
  assert low + high == pytest.approx(1)
  assert low < 0.46
