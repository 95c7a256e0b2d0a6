# SPDX-License-Identifier: Apache-2.0
"""Thinned curves are exact at each of their points; histograms lose no pair."""

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import curves, drawing, intervals, rates


def scores_of(num_pairs, seed=0, ties=False, share=0.5):
  rng = np.random.default_rng(seed)
  same = rng.random(num_pairs) < share
  scores = np.tanh(rng.normal(size=num_pairs) + 2 * same)
  return (scores.round(1) if ties else scores), same


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('num_pairs', [20, 3000, 200_000])
def test_points_are_those_of_the_whole_list(num_pairs, ties):
  scores, same = scores_of(num_pairs, ties=ties)
  found = curves.curve(scores, same)
  assert len(found.far) <= 1000
  assert (np.diff(found.far) >= 0).all() and (np.diff(found.tar) >= 0).all()
  assert found.far[-1] == found.tar[-1] == 1
  assert found.far[0] <= found.lowest_far == 1 / np.count_nonzero(~same)
  # Counted anew, at each threshold.
  for k in np.linspace(0, len(found.far) - 1, 60).astype(int):
    accepted = scores >= found.thresholds[k]
    assert found.far[k] == accepted[~same].mean()
    assert found.tar[k] == accepted[same].mean()
  # Interpolated between some of the points.
  accepts = rates.curve(scores, same)[:2]
  for k in range(0, len(found.far), 11):
    interval = intervals.tar_interval(*accepts, found.far[k])
    limits = found.tar_low[k], found.tar_high[k]
    np.testing.assert_allclose(limits, interval, atol=1e-2)


@pytest.mark.parametrize('ties', [False, True])
def test_decades_are_the_operating_points(ties):
  scores, same = scores_of(200_000, ties=ties, share=0.1)
  found = curves.curve(scores, same)
  decades = list(drawing.decades(found))
  assert decades == [0.1, 0.01, 1e-3, 1e-4, 1e-5]
  for point in evaluation.operating_points(scores, same, decades):
    k = found.at(point.far_target)
    assert found.far[k] == point.far and found.tar[k] == point.tar
    assert found.thresholds[k] == point.threshold


def test_no_part_of_a_curve_is_thinned_away():
  scores, same = scores_of(200_000)
  found = curves.curve(scores, same)
  inner = found.far[found.far > 200 * found.lowest_far]
  assert np.diff(np.log(inner)).max() < 0.05


def test_pairs_of_one_kind_have_no_curve():
  with pytest.raises(InputError, match='2 genuine and 0 impostor pairs'):
    curves.curve([0.1, 0.2], [True, True])


@pytest.mark.parametrize(
  'scores',
  [
    [0.5],
    [0.5, 0.5, 0.5],
    [-1.0, 1.0],
    [0.1, 0.2, 0.3, 0.7],
    [1e-6, 2e-6, 3e-6],
    [100.0, 250.0, 900.0],
    [0.30000000000000004, 0.3, 0.29999999999999999, 0.6],
  ],
)
@pytest.mark.parametrize('first', [True, False])
def test_histogram_counts_every_pair(scores, first):
  scores = np.array(scores)
  same = np.arange(len(scores)) % 2 == 0
  found = curves.histogram(scores, same if first else ~same)
  kinds = found.genuine.sum(), found.impostor.sum()
  assert kinds[not first] == (len(scores) + 1) // 2
  assert kinds[first] == len(scores) // 2
  assert len(found.edges) == len(found.genuine) + 1 <= 203
  assert found.edges[0] <= scores.min() + 1e-9
  assert scores.max() <= found.edges[-1] + 1e-9
  np.testing.assert_allclose(np.diff(found.edges), found.width)


def test_histogram_is_that_of_numpy():
  scores, same = scores_of(5000)
  found = curves.histogram(scores, same)
  for kind, counts in ((same, found.genuine), (~same, found.impostor)):
    expected, _ = np.histogram(scores[kind], found.edges)
    np.testing.assert_array_equal(counts, expected)


def test_twenty_curves_differ():
  drawn = [drawing.line_style(k) for k in range(20)]
  looks = {(d['color'], str(d['linestyle'])) for d in drawn}
  assert len(looks) == 20
  # In colour and in pattern, from one to the next.
  for one, other in zip(drawn, drawn[1:], strict=False):
    assert one['color'] != other['color']
    assert one['linestyle'] != other['linestyle']
