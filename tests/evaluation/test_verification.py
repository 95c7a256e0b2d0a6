# SPDX-License-Identifier: Apache-2.0
"""Verification, compared with slow loops that spell out the protocol."""

import json

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import intervals
from tests.evaluation.pairs import noisy_pairs, pairs_with_cosines


def slow_verify(embeddings, same, folds):
  """Computes fold accuracies and distance thresholds by plain loops."""
  distances = []
  for i in range(len(same)):
    a, b = embeddings[2 * i], embeddings[2 * i + 1]
    a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
    distances.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
  first, accuracies, thresholds = 0, [], []
  for fold in range(folds):
    size = len(same) // folds + (fold < len(same) % folds)
    test = range(first, first + size)
    train = [i for i in range(len(same)) if i not in test]
    first += size
    right = [
      sum((distances[i] < step * 0.01) == same[i] for i in train)
      for step in range(400)
    ]
    threshold = right.index(max(right)) * 0.01
    hits = sum((distances[i] < threshold) == same[i] for i in test)
    accuracies.append(hits / size)
    thresholds.append(threshold)
  return accuracies, thresholds


@pytest.mark.parametrize(
  ('num_pairs', 'folds'), [(60, 10), (67, 10), (10, 10), (23, 4), (2, 2)]
)
def test_verify_equals_plain_loops(num_pairs, folds):
  embeddings, same = noisy_pairs(num_pairs, seed=num_pairs)
  accuracies, thresholds = slow_verify(embeddings, same, folds)
  result = evaluation.verify(embeddings, same, folds=folds)
  np.testing.assert_array_equal(result.fold_accuracies, accuracies)
  assert result.accuracy == pytest.approx(np.mean(accuracies), abs=1e-15)
  mean = result.accuracy
  variance = sum((a - mean) ** 2 for a in accuracies) / folds
  assert result.accuracy_std == pytest.approx(variance**0.5, abs=1e-12)
  assert result.threshold_distance == pytest.approx(np.mean(thresholds))
  assert result.threshold == pytest.approx(1 - np.mean(thresholds) / 2)


def test_scores_are_cosines():
  embeddings, same = noisy_pairs(50, seed=1)
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  expected = (unit[0::2] * unit[1::2]).sum(axis=1)
  result = evaluation.verify(embeddings, same)
  np.testing.assert_allclose(result.scores, expected, atol=1e-14)
  assert result.num_pairs == 50
  np.testing.assert_array_equal(result.same, same)


def test_perfect_pairs_take_the_smallest_threshold():
  same = [True, False] * 10
  result = evaluation.verify(pairs_with_cosines(same), same)
  assert (result.accuracy, result.accuracy_std) == (1.0, 0.0)
  # d = 0 and 2: 0.01 to 2.00 separate them all, for d must be below, not at.
  assert result.threshold_distance == pytest.approx(0.01)
  assert result.threshold == pytest.approx(0.995)
  assert (result.auc, result.eer) == (1.0, 0.0)
  assert result.tar_at_far[1e-3].tar == 1.0
  assert result.tar_at_far[1e-3].threshold == 1.0


def test_distance_must_be_below_the_threshold():
  # Genuine pairs at d = 2 exactly, impostors at d = 4: 2.01 is the first.
  same = [True, False] * 2
  result = evaluation.verify(pairs_with_cosines([0, -1, 0, -1]), same, folds=2)
  assert result.accuracy == 1.0
  assert result.threshold_distance == pytest.approx(2.01)


def test_inverted_pairs():
  same = np.array([True, False] * 10)
  result = evaluation.verify(pairs_with_cosines(~same), same)
  # Accepting nothing is right on the impostors: threshold 0, the smallest.
  assert result.accuracy == 0.5
  assert result.threshold_distance == 0.0
  assert (result.auc, result.eer) == (0.0, 1.0)
  point = result.tar_at_far[1e-3]
  assert (point.tar, point.far, point.threshold) == (0.0, 0.0, np.inf)


def test_folds_are_contiguous_and_the_first_are_larger():
  # 5 pairs in 2 folds: pairs 0-2 and 3-4. Only pair 2 is judged wrongly.
  same = [True, True, False, True, False]
  result = evaluation.verify(pairs_with_cosines([1, 1, 1, 1, 0]), same, folds=2)
  np.testing.assert_array_equal(result.fold_accuracies, [2 / 3, 1.0])


@pytest.mark.parametrize('value', [True, False])
def test_pairs_of_one_kind_have_an_accuracy_only(value):
  embeddings, _ = noisy_pairs(20, seed=2)
  accuracies, _ = slow_verify(embeddings, [value] * 20, folds=10)
  result = evaluation.verify(embeddings, [value] * 20)
  np.testing.assert_array_equal(result.fold_accuracies, accuracies)
  assert result.tar_at_far is None
  assert result.auc is None
  assert result.eer is None
  assert result.auc_interval is result.eer_interval is None
  json.dumps(result.as_dict(), allow_nan=False)
  with pytest.raises(InputError, match='pairs of both kinds'):
    evaluation.tar_at_far(result.scores, result.same, 0.1)


def test_zero_embeddings_score_zero():
  embeddings = np.array([[0, 0], [0, 0], [0, 0], [3, 4], [3, 4], [3, 4.0]])
  result = evaluation.verify(embeddings, [1, 0, 1], folds=3)
  np.testing.assert_array_equal(result.scores, [0, 0, 1])
  assert result.num_zero == result.as_dict()['num_zero'] == 3
  assert np.isfinite(result.fold_accuracies).all()


def test_norms_do_not_matter():
  embeddings, same = noisy_pairs(40, seed=3)
  norms = np.random.default_rng(4).choice([2.0**-20, 1.0, 2.0**20], (80, 1))
  a = evaluation.verify(embeddings, same)
  b = evaluation.verify(embeddings * norms, same)
  np.testing.assert_array_equal(a.scores, b.scores)
  assert a.as_dict() == b.as_dict()


def test_order_within_folds_does_not_matter():
  embeddings, same = noisy_pairs(60, seed=5)
  rng = np.random.default_rng(6)
  order = np.concatenate([6 * k + rng.permutation(6) for k in range(10)])
  moved = embeddings.reshape(60, 2, -1)[order, ::-1].reshape(120, -1)
  a = evaluation.verify(embeddings, same)
  b = evaluation.verify(moved, same[order])
  assert a.as_dict() == b.as_dict()


def test_input_dtypes_and_arguments_are_left_alone():
  embeddings, same = noisy_pairs(30, seed=7)
  embeddings = embeddings.astype(np.float32)
  before = embeddings.copy()
  a = evaluation.verify(embeddings, same)
  np.testing.assert_array_equal(embeddings, before)
  b = evaluation.verify(embeddings.astype(np.float64), same.astype(int))
  assert a.scores.dtype == np.float64
  assert a.as_dict() == b.as_dict()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_non_finite_embeddings_name_the_row(bad):
  embeddings, same = noisy_pairs(20, seed=8)
  embeddings[7, 2] = bad
  with pytest.raises(InputError, match=r'row 7 \(pair 3\) is not finite'):
    evaluation.verify(embeddings, same)


def test_several_non_finite_rows_are_counted():
  embeddings, same = noisy_pairs(20, seed=8)
  embeddings[[4, 9, 30]] = np.nan
  with pytest.raises(InputError) as error:
    evaluation.verify(embeddings, same)
  assert str(error.value) == (
    'embedding row 4 (pair 2) is not finite, nor are 2 others of 40; check that'
    ' image and the checkpoint'
  )


def test_huge_and_tiny_norms_are_no_zeros():
  embeddings, same = noisy_pairs(20, seed=8)
  powers = np.random.default_rng(8).choice([-900, 0, 900], (40, 1))
  result = evaluation.verify(np.ldexp(embeddings, powers), same)
  np.testing.assert_array_equal(
    result.scores, evaluation.verify(embeddings, same).scores
  )
  assert result.num_zero == 0


def test_fars_are_the_callers():
  embeddings, same = noisy_pairs(200, seed=21)
  result = evaluation.verify(embeddings, same, fars=[0.05, 0.2, 0.05])
  assert list(result.tar_at_far) == [0.2, 0.05]
  for far, point in result.tar_at_far.items():
    assert point.far_target == far
    assert point.tar == evaluation.tar_at_far(result.scores, same, far)
  assert [*result.as_dict()['tar_at_far']] == ['0.2', '0.05']
  # Near each other, but not the same: two keys.
  close = evaluation.verify(embeddings, same, fars=[0.1, 0.1 + 1e-9])
  assert len(close.as_dict()['tar_at_far']) == 2


def test_lost_pairs_widen_the_interval_of_the_accuracy():
  embeddings, same = noisy_pairs(400, seed=23, noise=1.5)
  result = evaluation.verify(embeddings, same)
  scores = result.scores
  right = [
    (2 - 2 * scores < 0.01 * k) == same for k in range(400)
  ]  # [threshold, pair]
  best = np.argmax(np.sum(right, axis=1))
  lost = [
    40 * (np.mean(right[best][40 * k : 40 * k + 40]) - accuracy)
    for k, accuracy in enumerate(result.fold_accuracies)
  ]
  assert np.sum(np.square(lost)) > 0
  variance = result.accuracy * (1 - result.accuracy) / 400
  trials = variance * 400 / (variance + np.sum(np.square(lost)) / 400**2)
  expected = intervals.mid_p_interval(result.accuracy * trials, trials)
  assert result.accuracy_interval == pytest.approx(expected, abs=1e-12)


def test_wrong_arguments_say_what_was_expected():
  embeddings, same = noisy_pairs(20, seed=9)
  verify = evaluation.verify
  for message, call in (
    (r'\(39, 6\); expected \[2N, D\]', lambda: verify(embeddings[1:], same)),
    (r'\(240,\); expected', lambda: verify(embeddings.ravel(), same)),
    (r'\(19,\); expected \(20,\)', lambda: verify(embeddings, same[1:])),
    ('same holds 2; expected 1', lambda: verify(embeddings, [1, 2] * 10)),
    ('folds=21 does not fit 20', lambda: verify(embeddings, same, folds=21)),
    ('folds=1 does not fit', lambda: verify(embeddings, same, folds=1)),
    (r'\(40, 0\); expected', lambda: verify(embeddings[:, :0], same)),
    ('folds=10 does not fit 0 pairs', lambda: verify(np.zeros((0, 4)), [])),
    ('same holds nan', lambda: verify(embeddings, [1, np.nan] * 10)),
    (r'fars=\(\) are no FARs', lambda: verify(embeddings, same, fars=())),
    ('fars=0.1 are no FARs', lambda: verify(embeddings, same, fars=0.1)),
    (r'fars=\[0\] are no', lambda: verify(embeddings, same, fars=[0])),
    (r'fars=\[1.0\] are no', lambda: verify(embeddings, same, fars=[1.0])),
    ('far=.* is not a rate', lambda: verify(embeddings, same, fars=[0.1, 2])),
    ('far=.* is not', lambda: verify(embeddings, same, fars=[float('nan')])),
  ):
    with pytest.raises(InputError, match=message) as error:
      call()
    assert '\n' not in str(error.value)


def test_auc_is_the_chance_that_a_genuine_pair_scores_higher():
  embeddings, same = noisy_pairs(120, seed=13, noise=1.5)
  # Repeated pairs give ties, which count one half.
  embeddings, same = np.tile(embeddings, (2, 1)), np.tile(same, 2)
  same[:20] = ~same[:20]
  result = evaluation.verify(embeddings, same)
  genuine = result.scores[same][:, None]
  impostor = result.scores[~same][None, :]
  wins = np.mean((genuine > impostor) + 0.5 * (genuine == impostor))
  assert result.auc == pytest.approx(wins, abs=1e-12)


def test_equal_error_rate_by_hand():
  # One of four impostors above one of four genuine pairs: both rates 1/4.
  cosines = [0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.0, -0.1]
  result = evaluation.verify(
    pairs_with_cosines(cosines), [1] * 4 + [0] * 4, folds=4
  )
  assert result.eer == pytest.approx(0.25)
  # Between two points: FAR 0 to 1/2 at TAR 2/3, crossing at 1/3.
  cosines = [0.9, 0.8, 0.5, 0.1, -0.3]
  result = evaluation.verify(
    pairs_with_cosines(cosines), [1, 1, 0, 1, 0], folds=2
  )
  assert result.eer == pytest.approx(1 / 3)


def test_as_dict_is_json_and_holds_no_pair():
  embeddings, same = noisy_pairs(3000, seed=15)
  result = evaluation.verify(embeddings, same)
  text = json.dumps(result.as_dict(), allow_nan=False)
  row = json.loads(text)
  assert len(text) < 2000
  assert row['protocol'] == 'pairs'
  assert row['accuracy_interval'] == list(result.accuracy_interval)
  assert row['auc_interval'] == list(result.auc_interval)
  assert row['eer_interval'] == list(result.eer_interval)
  assert row['num_zero'] == 0
  assert row['accuracy'] == result.accuracy
  assert row['num_pairs'] == 3000
  assert row['num_genuine'] == same.sum()
  assert row['tar_at_far']['0.001']['tar'] == result.tar_at_far[1e-3].tar
  assert row['fold_accuracies'] == list(result.fold_accuracies)


def test_as_dict_has_no_infinity():
  scores = pairs_with_cosines([1, 0, 0.5, -1])
  result = evaluation.verify(scores, [0, 1, 0, 1], folds=2)
  assert result.tar_at_far[1e-3].threshold == np.inf
  json.dumps(result.as_dict(), allow_nan=False)
  assert result.as_dict()['tar_at_far']['0.001']['threshold'] is None
