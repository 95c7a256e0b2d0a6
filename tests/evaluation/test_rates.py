# SPDX-License-Identifier: Apache-2.0
"""Rates of scores, compared with loops over every threshold."""

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import intervals, rates


def slow_tar_at_far(scores, same, far):
  best = 0.0
  for threshold in scores:
    accepted = [score >= threshold for score in scores]
    false = sum(a and not s for a, s in zip(accepted, same, strict=True))
    true = sum(a and s for a, s in zip(accepted, same, strict=True))
    if false / sum(not s for s in same) <= far:
      best = max(best, true / sum(same))
  return best


def slow_published_tar(scores, same, far):
  """Goes through all points from the last; the first of the nearest counts."""
  points = [(0.0, 0.0)]
  for threshold in sorted(set(scores), reverse=True):
    false = sum(
      x >= threshold and not s for x, s in zip(scores, same, strict=True)
    )
    true = sum(x >= threshold and s for x, s in zip(scores, same, strict=True))
    points.append((false / sum(not s for s in same), true / sum(same)))
  best_distance, best = None, None
  for point_far, tar in reversed(points):
    distance = abs(point_far - far)
    if best_distance is None or distance < best_distance:
      best_distance, best = distance, (point_far, tar)
  return best


def tied_scores(num_pairs, seed):
  rng = np.random.default_rng(seed)
  same = rng.random(num_pairs) < 0.4
  same[:2] = True, False
  # Rounded: most scores are shared by several pairs of both kinds.
  return (rng.normal(size=num_pairs) + same).round(1), same


@pytest.mark.parametrize('seed', range(5))
def test_tar_at_far_equals_brute_force(seed):
  scores, same = tied_scores(80, seed)
  num_impostors = np.count_nonzero(~same)
  fars = [0, 1e-6, 0.01, 1 / num_impostors, 0.1, 3 / num_impostors, 0.5, 1]
  tars = evaluation.tar_at_far(scores, same, fars)
  thresholds = evaluation.threshold_at_far(scores, same, fars)
  for far, tar, threshold in zip(fars, tars, thresholds, strict=True):
    assert tar == slow_tar_at_far(scores, same, far)
    # The threshold is the one that gives this TAR and keeps this FAR ...
    assert np.mean(scores[same] >= threshold) == tar
    assert np.mean(scores[~same] >= threshold) <= far
    # ... and the next lower score would break it.
    lower = scores[scores < threshold]
    if len(lower):
      assert np.mean(scores[~same] >= lower.max()) > far
    one = evaluation.tar_at_far(scores, same, far)
    assert isinstance(one, float)
    assert one == tar


def test_far_of_exactly_three_in_three_thousand_counts_as_1e_3():
  same = np.repeat([True, False], 3000)
  scores = np.append(np.full(3000, 2997.0), np.arange(3000))
  assert evaluation.tar_at_far(scores, same, 1e-3) == 1.0
  assert evaluation.tar_at_far(scores, same, 0.99e-3) == 0.0


def test_equal_scores_are_accepted_or_rejected_together():
  assert evaluation.tar_at_far([0.5] * 4, [1, 1, 0, 0], 0.99) == 0.0
  assert evaluation.tar_at_far([0.5] * 4, [1, 1, 0, 0], 1) == 1.0
  far, tar, thresholds = evaluation.roc([0.5] * 4, [1, 1, 0, 0])
  np.testing.assert_array_equal(far, [0, 1])
  np.testing.assert_array_equal(tar, [0, 1])
  np.testing.assert_array_equal(thresholds, [np.inf, 0.5])


def test_float32_scores_pass_their_own_threshold():
  rng = np.random.default_rng(10)
  same = np.arange(200) % 2 == 0
  scores = (rng.normal(size=200) + same).astype(np.float32)
  threshold = evaluation.threshold_at_far(scores, same, 0.05)
  tar = evaluation.tar_at_far(scores, same, 0.05)
  assert np.mean(scores[same] >= threshold) == tar


def test_roc_only_depends_on_the_set_of_pairs():
  scores, same = tied_scores(300, seed=11)
  order = np.random.default_rng(12).permutation(300)
  for a, b in zip(
    evaluation.roc(scores, same),
    evaluation.roc(scores[order], same[order]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_scores_and_far_are_checked():
  tar_at_far = evaluation.tar_at_far
  for message, call in (
    ('score of pair 1 is nan', lambda: tar_at_far([0, np.nan], [1, 0], 0.1)),
    ('score of pair 0 is inf', lambda: tar_at_far([np.inf, 0], [1, 0], 0.1)),
    (r'far=1.5 is not', lambda: tar_at_far([0, 1], [1, 0], 1.5)),
    (r'far=nan is not', lambda: tar_at_far([0, 1], [1, 0], float('nan'))),
    (r'far=.* is not', lambda: tar_at_far([0, 1], [1, 0], [0.1, -0.1])),
    (r'expected \[N\]', lambda: tar_at_far([[0, 1]], [1, 0], 0.1)),
    (r'expected \(2,\)', lambda: tar_at_far([0, 1], [1, 0, 1], 0.1)),
    ('2 genuine and 0 impostor', lambda: tar_at_far([0, 1], [1, 1], 0.1)),
    ('0 genuine and 0 impostor', lambda: tar_at_far([], [], 0.1)),
  ):
    with pytest.raises(InputError, match=message) as error:
      call()
    assert '\n' not in str(error.value)


def test_operating_points_count_their_pairs():
  scores, same = tied_scores(500, seed=14)
  num_impostors = np.count_nonzero(~same)
  for point in evaluation.operating_points(scores, same, [1e-2, 0.2]):
    false = np.count_nonzero(scores[~same] >= point.threshold)
    true = np.count_nonzero(scores[same] >= point.threshold)
    assert point.far == false / num_impostors <= point.far_target
    assert point.tar == true / same.sum()
    assert point.far_interval == intervals.mid_p_interval(false, num_impostors)
    assert point.tar_interval[0] < point.tar < point.tar_interval[1]
    low, high = point.threshold_interval
    assert low <= point.threshold <= high
    assert point.num_genuine + point.num_impostors == 500


def test_one_in_49_counts_as_one():
  # 1 / 49 * 49 is below 1 in float64.
  scores, same = np.arange(98)[::-1], np.repeat([False, True], 49)
  (point,) = evaluation.operating_points(scores, same, [1 / 49])
  assert point.far_interval == intervals.mid_p_interval(1, 49)


@pytest.mark.parametrize('decimals', [1, 9])
@pytest.mark.parametrize('seed', range(4))
def test_published_rule_takes_the_nearest_far(seed, decimals):
  rng = np.random.default_rng(seed)
  same = rng.random(90) < 0.5
  scores = (rng.normal(size=90) + same).round(decimals)
  n = np.count_nonzero(~same)
  # Halfway between two points, just beside it, on a point, below all of them.
  fars = [0, 1e-6, 0.4 / n, 0.5 / n, 0.6 / n, 2.5 / n, 3 / n, 0.1, 0.3, 0.77, 1]
  expected = [slow_published_tar(scores, same, far) for far in fars]
  tars = evaluation.tar_at_far(scores, same, fars, rule='published')
  assert list(tars) == [tar for _, tar in expected]
  points = evaluation.operating_points(scores, same, fars, rule='published')
  assert [(p.far, p.tar) for p in points] == expected
  thresholds = evaluation.threshold_at_far(scores, same, fars, rule='published')
  assert list(thresholds) == [point.threshold for point in points]
  one = evaluation.tar_at_far(scores, same, 0.3, rule='published')
  assert isinstance(one, float) and one == expected[8][1]


def test_published_rule_may_lie_above_its_target_and_tells_so():
  scores, same = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 0, 0, 0]
  # Points at FAR 0, 1/4, ...: 0.2 is nearer to 1/4, where TAR is 1.
  (published,) = evaluation.operating_points(scores, same, [0.2], 'published')
  assert (published.far, published.tar) == (0.25, 1.0)
  assert published.threshold == 0.7
  (exact,) = evaluation.operating_points(scores, same, [0.2])
  assert (exact.far, exact.tar, exact.threshold) == (0.0, 0.5, 0.9)
  # Equally near: the larger TAR.
  assert evaluation.tar_at_far(scores, same, 0.125, rule='published') == 1.0


def test_published_rule_drops_no_point_on_a_line():
  # Five impostors follow each other, so scikit-learn's curve has FAR 0 and 0.5
  # alone; of these 0.5 is nearest to 0.4, and TAR is already 1 there.
  scores = np.arange(12)[::-1]
  same = np.isin(np.arange(12), [0, 6])
  assert evaluation.tar_at_far(scores, same, 0.4, rule='published') == 0.5
  assert evaluation.tar_at_far(scores, same, 0.46, rule='published') == 1.0


@pytest.mark.parametrize('rule', ['nearest', '', 'Exact', None])
def test_wrong_rules_are_told_both(rule):
  for call in (
    evaluation.tar_at_far,
    evaluation.threshold_at_far,
    lambda scores, same, far, rule: evaluation.operating_points(
      scores, same, [far], rule
    ),
  ):
    with pytest.raises(InputError) as error:
      call([0.1, 0.2], [0, 1], 0.1, rule=rule)
    assert f"rule={rule!r} is no rule; choose 'exact'" in str(error.value)
    assert "'published'" in str(error.value)
    assert '\n' not in str(error.value)


def test_a_far_that_is_not_measured_has_no_figure_in_json():
  scores, same = np.arange(500) % 97, np.arange(500) % 2 == 0
  high, low = evaluation.operating_points(scores, same, [0.1, 1e-3])
  assert high.is_measurable and not low.is_measurable
  row = low.as_dict()
  assert row['measurable'] is False
  assert (row['far_target'], row['num_impostors']) == (1e-3, 250)
  for name in ('far', 'tar', 'threshold'):
    assert row[name] is None
    assert row[f'{name}_interval'] is None
    assert high.as_dict()[name] == getattr(high, name)
    assert high.as_dict()[f'{name}_interval'] == [
      *getattr(high, f'{name}_interval')
    ]


def test_few_impostors_leave_tar_without_a_lower_limit():
  # 95 % of all draws of n impostors have one above the threshold of FAR 1e-2
  # from n = 299 on: 0.99**299 < 0.05 < 0.99**298.
  rng = np.random.default_rng(3)
  genuine, impostors = rng.normal(3, 1, 300), rng.normal(size=299)
  for n, is_bounded in ((298, False), (299, True)):
    scores = np.append(genuine, impostors[:n])
    same = np.arange(len(scores)) < 300
    (point,) = evaluation.operating_points(scores, same, [1e-2])
    assert point.is_bounded == is_bounded
    assert (point.tar_interval[0] > 0) == is_bounded
    assert np.isinf(point.threshold_interval[1]) != is_bounded
    assert (point.as_dict()['threshold_interval'][1] is None) != is_bounded


def test_curve_counts_pairs():
  scores, same = tied_scores(200, seed=15)
  false, true, thresholds = rates.curve(scores, same)
  assert [
    (np.count_nonzero(scores[~same] >= t), np.count_nonzero(scores[same] >= t))
    for t in thresholds
  ] == list(zip(false, true, strict=True))
  assert false.dtype == true.dtype == np.int64
