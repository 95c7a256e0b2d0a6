# SPDX-License-Identifier: Apache-2.0
"""Verification, compared with slow loops that spell out the protocol."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError


def noisy_pairs(num_pairs, seed, dim=6, noise=0.6):
  rng = np.random.default_rng(seed)
  same = rng.random(num_pairs) < 0.5
  first = rng.normal(size=(num_pairs, dim))
  other = rng.normal(size=(num_pairs, dim))
  second = np.where(same[:, None], first + noise * other, other)
  embeddings = np.empty((2 * num_pairs, dim))
  embeddings[0::2], embeddings[1::2] = first, second
  return embeddings, same


def pairs_with_cosines(cosines):
  """Makes planar pairs with these cosines; exact for 1, 0 and -1."""
  cosines = np.asarray(cosines, np.float64)
  embeddings = np.zeros((2 * len(cosines), 2))
  embeddings[0::2, 0] = 1
  embeddings[1::2, 0] = cosines
  embeddings[1::2, 1] = np.sqrt(1 - cosines**2)
  return embeddings


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


def slow_tar_at_far(scores, same, far):
  best = 0.0
  for threshold in scores:
    accepted = [score >= threshold for score in scores]
    false = sum(a and not s for a, s in zip(accepted, same, strict=True))
    true = sum(a and s for a, s in zip(accepted, same, strict=True))
    if false / sum(not s for s in same) <= far:
      best = max(best, true / sum(same))
  return best


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
  row, note = evaluation.table({'a': result}).splitlines()[2:]
  assert row.split()[-4:] == ['-'] * 4
  assert note == (
    f'a: all pairs are {"genuine" if value else "impostor"} pairs; there is no '
    'FAR and TAR'
  )
  with pytest.raises(InputError, match='pairs of both kinds'):
    evaluation.tar_at_far(result.scores, result.same, 0.1)


def test_zero_embeddings_score_zero():
  embeddings = np.array([[0, 0], [0, 0], [0, 0], [3, 4], [3, 4], [3, 4.0]])
  result = evaluation.verify(embeddings, [1, 0, 1], folds=3)
  np.testing.assert_array_equal(result.scores, [0, 0, 1])
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
  ):
    with pytest.raises(InputError, match=message) as error:
      call()
    assert '\n' not in str(error.value)


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


def test_as_dict_is_json_and_holds_no_pair():
  embeddings, same = noisy_pairs(300, seed=15)
  result = evaluation.verify(embeddings, same)
  text = json.dumps(result.as_dict(), allow_nan=False)
  row = json.loads(text)
  assert len(text) < 2000
  assert row['accuracy'] == result.accuracy
  assert row['num_pairs'] == 300
  assert row['num_genuine'] == same.sum()
  assert row['tar_at_far']['0.001']['tar'] == result.tar_at_far[1e-3].tar
  assert row['fold_accuracies'] == list(result.fold_accuracies)


def test_as_dict_has_no_infinity():
  scores = pairs_with_cosines([1, 0, 0.5, -1])
  result = evaluation.verify(scores, [0, 1, 0, 1], folds=2)
  assert result.tar_at_far[1e-3].threshold == np.inf
  json.dumps(result.as_dict(), allow_nan=False)
  assert result.as_dict()['tar_at_far']['0.001']['threshold'] is None


def table_of(**results):
  """Returns the heading lines of a table, its rows and its notes."""
  lines = evaluation.table(results).splitlines()
  return lines[:2], lines[2 : 2 + len(results)], lines[2 + len(results) :]


def result_with(num_impostors, genuine=(1.0,) * 100, **fields):
  """Verifies pairs of which no impostor has a cosine above 0."""
  cosines = np.append(np.zeros(num_impostors), genuine)
  same = np.arange(len(cosines)) >= num_impostors
  result = evaluation.verify(pairs_with_cosines(cosines), same)
  return dataclasses.replace(result, **fields)


def test_table_and_dict_name_folds_that_are_not_ten():
  embeddings, same = noisy_pairs(20, seed=17)
  ten, four, two = (
    evaluation.verify(embeddings, same, folds=folds) for folds in (10, 4, 2)
  )
  assert [r.as_dict()['folds'] for r in (ten, four, two)] == [10, 4, 2]
  *_, notes = table_of(a=ten, b=four, c=two, d=two)
  assert [note for note in notes if 'folds' in note] == [
    'accuracy is over 2 folds, published ones are over 10: c, d',
    'accuracy is over 4 folds, published ones are over 10: b',
  ]
  assert not any('folds' in note for note in table_of(a=ten)[2])


@pytest.mark.parametrize(
  ('num_impostors', 'note'),
  [
    (20, 'a: FAR 1e-3 cannot be measured with 20 impostor pairs; it takes'),
    (99, 'a: FAR 1e-3 cannot be measured with 99 impostor pairs; it takes'),
    (100, 'with 100 impostor pairs; at FAR 1e-2 TAR is 100.00 [96.38, 100.00]'),
    (999, 'with 999 impostor pairs; at FAR 1e-2 TAR is 100.00 [96.38, 100.00]'),
  ],
)
def test_table_has_no_figure_for_a_far_that_is_not_measured(
  num_impostors, note
):
  _, (row,), (line,) = table_of(a=result_with(num_impostors))
  assert row.split()[-4:] == ['not', 'measurable', '-', '-']
  assert note in line


@pytest.mark.parametrize('num_impostors', [1000, 3000])
def test_table_has_a_far_that_is_measured(num_impostors):
  _, (row,), notes = table_of(a=result_with(num_impostors))
  assert '100.00 [96.38, 100.00]         1.000  0.000 [0.000, 0.' in row
  assert not notes


@pytest.mark.parametrize('genuine', [(-1.0,), (-1.0, -1.0)])
def test_table_never_prints_an_infinite_threshold(genuine):
  # The best scores are impostors', more of them than FAR 1e-3 allows.
  result = result_with(2000, genuine * 50)
  assert result.tar_at_far[1e-3].threshold == np.inf
  _, (row,), _ = table_of(a=result)
  assert 'inf' not in row and ' none  0.000 [' in row


@pytest.mark.parametrize('num_resized', [1, 2000])
def test_table_notes_images_that_were_resized(num_resized):
  result = result_with(1000, num_resized=num_resized)
  assert result.as_dict()['num_resized'] == num_resized
  *_, notes = table_of(a=result, b=result_with(1000))
  assert notes == [
    f'a: {num_resized:,} of 2,200 images had another size and were resized; '
    'they may not be aligned'
  ]


def test_table_lines_up():
  results = {
    name: evaluation.verify(*noisy_pairs(num_pairs, seed=16))
    for name, num_pairs in (('lfw', 40), ('a_longer_name', 2400))
  }
  headings, rows, _ = table_of(**results)
  assert len({len(line) for line in headings + rows}) == 1
  accuracy = results['lfw'].accuracy
  assert rows[0].startswith('lfw            ')
  assert f'{100 * accuracy:.2f} ± ' in rows[0]
  point = results['a_longer_name'].tar_at_far[1e-3]
  assert f' {100 * point.tar:.2f} [' in rows[1]
  assert f' {point.threshold:.3f} ' in rows[1]
