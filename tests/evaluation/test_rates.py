# SPDX-License-Identifier: Apache-2.0
"""Rates of scores, compared with loops over every threshold."""

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError


def slow_tar_at_far(scores, same, far):
  best = 0.0
  for threshold in scores:
    accepted = [score >= threshold for score in scores]
    false = sum(a and not s for a, s in zip(accepted, same, strict=True))
    true = sum(a and s for a, s in zip(accepted, same, strict=True))
    if false / sum(not s for s in same) <= far:
      best = max(best, true / sum(same))
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
    far_interval = evaluation.binomial_interval(false, num_impostors)
    assert point.far_interval == far_interval
    assert point.tar_interval == evaluation.binomial_interval(true, same.sum())
    assert point.num_genuine + point.num_impostors == 500


def test_one_in_49_counts_as_one():
  # 1 / 49 * 49 is below 1 in float64.
  scores, same = np.arange(98)[::-1], np.repeat([False, True], 49)
  (point,) = evaluation.operating_points(scores, same, [1 / 49])
  assert point.far_interval == evaluation.binomial_interval(1, 49)
