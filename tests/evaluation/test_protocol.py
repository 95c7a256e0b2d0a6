# SPDX-License-Identifier: Apache-2.0
"""Twenty sets of embeddings, judged by loops that spell out the protocol.

Nothing here is taken from the package: the loops follow its description alone.
"""

import math

import numpy as np
import pytest

from elasticface_jax import evaluation
from tests.evaluation.pairs import noisy_pairs, pairs_with_cosines

FARS = (0.3, 0.1, 0.0333, 1e-2, 1e-3)


def planar(seed, genuine, impostor, same):
  """Draws planar pairs whose cosines are uniform in two ranges."""
  rng = np.random.default_rng(seed)
  limits = np.where(np.asarray(same)[:, None], genuine, impostor)
  return pairs_with_cosines(rng.uniform(*limits.T)), np.asarray(same)


def alternating(num_pairs):
  return np.arange(num_pairs) % 2 == 0


def of_random(seed, num_pairs=60, dim=8):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2 * num_pairs, dim)), rng.random(num_pairs) < 0.5


def with_zeros():
  embeddings, same = noisy_pairs(60, seed=31)
  # Both of a genuine pair, one of another, both of an impostor pair.
  genuine, impostors = np.flatnonzero(same), np.flatnonzero(~same)
  for row in (
    *(2 * genuine[0], 2 * genuine[0] + 1, 2 * genuine[1]),
    *(2 * impostors[0], 2 * impostors[0] + 1),
  ):
    embeddings[row] = 0
  return embeddings, same


def scaled(factors, seed):
  embeddings, same = noisy_pairs(60, seed=seed)
  norms = np.random.default_rng(seed).choice(factors, (120, 1))
  return embeddings * norms, same


def duplicated():
  embeddings, same = noisy_pairs(20, seed=33)
  return np.tile(embeddings, (3, 1)), np.tile(same, 3)


def few_cosines(seed, num_pairs):
  rng = np.random.default_rng(seed)
  cosines = rng.choice([-1, -0.28, 0, 0.6, 0.8, 0.96, 1], num_pairs)
  return pairs_with_cosines(cosines), rng.random(num_pairs) < cosines / 4 + 0.5


def one_genuine():
  same = np.arange(50) == 17
  return planar(34, (0.2, 0.6), (-0.5, 0.5), same)


SETS = {
  'random': lambda: (*of_random(1), 10),
  'random, many': lambda: (*of_random(2, 150, 3), 10),
  'separable': lambda: (
    *planar(3, (0.5, 0.9), (-0.5, 0.3), alternating(60)),
    10,
  ),
  'separable by a hair': lambda: (
    *planar(4, (0.3001, 0.3002), (0.2, 0.3), alternating(40)),
    10,
  ),
  'inverted': lambda: (
    *planar(5, (-0.5, 0.1), (0.3, 0.9), alternating(40)),
    10,
  ),
  'overlapping': lambda: (*noisy_pairs(80, seed=6, noise=1.0), 10),
  'overlapping, noisier': lambda: (*noisy_pairs(80, seed=7, noise=2.5), 10),
  'ties': lambda: (*few_cosines(8, 70), 10),
  'all scores equal': lambda: (np.ones((80, 4)), alternating(40), 10),
  'uneven folds': lambda: (*noisy_pairs(67, seed=9), 10),
  'uneven folds of two sizes': lambda: (*noisy_pairs(23, seed=10), 4),
  'as many folds as pairs': lambda: (*noisy_pairs(12, seed=11), 12),
  'sorted by kind': lambda: (
    *planar(12, (0, 0.9), (-0.4, 0.5), np.arange(50) < 25),
    10,
  ),
  'genuine only': lambda: (noisy_pairs(40, seed=13)[0], np.ones(40, bool), 10),
  'impostors only': lambda: (noisy_pairs(40, seed=14)[0], np.zeros(40, int), 5),
  'unnormalised': lambda: (*scaled([1e-3, 0.7, 1.0, 12.5, 4e4], 15), 10),
  'huge and tiny': lambda: (*scaled([1e-200, 1e-160, 1.0, 1e200], 16), 10),
  'zeros': lambda: (*with_zeros(), 10),
  'duplicates': lambda: (*duplicated(), 10),
  'float16': lambda: (
    noisy_pairs(60, seed=17)[0].astype(np.float16),
    noisy_pairs(60, seed=17)[1],
    10,
  ),
  'negative scores': lambda: (
    *planar(18, (-0.5, -0.1), (-0.9, -0.3), alternating(60)),
    10,
  ),
  'one genuine pair': lambda: (*one_genuine(), 10),
}


def squared_distance(a, b):
  a, b = [float(x) for x in a], [float(x) for x in b]
  # hypot neither overflows nor loses small norms.
  length_a, length_b = math.hypot(*a), math.hypot(*b)
  if length_a == 0 or length_b == 0:
    return 2.0
  return math.fsum(
    (x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True)
  )


def accuracy_of(distances, same, folds):
  """Returns the accuracy of each fold, at the best threshold of the others."""
  right = [
    [(distance < k * 0.01) == bool(kind) for k in range(400)]
    for distance, kind in zip(distances, same, strict=True)
  ]
  accuracies, first = [], 0
  for fold in range(folds):
    last = first + len(same) // folds + (fold < len(same) % folds)
    train = right[:first] + right[last:]
    counts = [sum(row[k] for row in train) for k in range(400)]
    best = counts.index(max(counts))
    test = right[first:last]
    accuracies.append(sum(row[best] for row in test) / len(test))
    first = last
  return accuracies


def curve_of(scores, same):
  """Returns FAR and TAR at infinity and at each score, the highest first."""
  genuine = [x for x, kind in zip(scores, same, strict=True) if kind]
  impostors = [x for x, kind in zip(scores, same, strict=True) if not kind]
  points = [(0.0, 0.0)]
  for threshold in sorted(set(scores), reverse=True):
    far = sum(x >= threshold for x in impostors) / len(impostors)
    points.append((far, sum(x >= threshold for x in genuine) / len(genuine)))
  return points


def area_of(scores, same):
  genuine = [x for x, kind in zip(scores, same, strict=True) if kind]
  impostors = [x for x, kind in zip(scores, same, strict=True) if not kind]
  wins = sum((g > i) + 0.5 * (g == i) for g in genuine for i in impostors)
  return wins / (len(genuine) * len(impostors))


def equal_error_of(points):
  """Follows the polygon of the curve to where FAR is 1 - TAR."""
  for (far, tar), (next_far, next_tar) in zip(
    points[:-1], points[1:], strict=True
  ):
    before, after = far - (1 - tar), next_far - (1 - next_tar)
    if before < 0 <= after:
      return far + (next_far - far) * before / (before - after)
  raise AssertionError('the curve does not end at (1, 1)')


def nearest_of(points, target):
  """Returns the FAR and TAR of insightface's rule."""
  best = None
  for far, tar in reversed(points):
    if best is None or abs(far - target) < abs(best[0] - target):
      best = far, tar
  return best


@pytest.mark.parametrize('name', SETS)
def test_figures_equal_slow_loops(name):
  embeddings, same, folds = SETS[name]()
  result = evaluation.verify(embeddings, same, folds, FARS)
  pairs = zip(embeddings[0::2], embeddings[1::2], strict=True)
  distances = [squared_distance(a, b) for a, b in pairs]
  np.testing.assert_allclose(
    result.scores, 1 - np.divide(distances, 2), 0, 1e-14
  )

  accuracies = accuracy_of(distances, same, folds)
  mean = math.fsum(accuracies) / folds
  deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in accuracies) / folds)
  assert result.accuracy == pytest.approx(mean, abs=1e-12)
  assert result.accuracy_std == pytest.approx(deviation, abs=1e-12)
  low, high = result.accuracy_interval
  assert low <= result.accuracy <= high
  if all(same) or not any(same):
    assert result.tar_at_far is result.auc is result.eer is None
    return

  # Equal scores are equal in the last bit too, so those of the result count.
  scores = result.scores.tolist()
  points = curve_of(scores, same)
  area, equal_error = area_of(scores, same), equal_error_of(points)
  assert result.auc == pytest.approx(area, abs=1e-12)
  assert result.eer == pytest.approx(equal_error, abs=1e-12)
  assert result.auc_interval[0] <= result.auc <= result.auc_interval[1]
  assert result.eer_interval[0] <= result.eer <= result.eer_interval[1]
  for target in FARS:
    tar = max(tar for far, tar in points if far <= target)
    point = result.tar_at_far[target]
    assert point.tar == pytest.approx(tar, abs=1e-12)
    assert point.far <= target
    assert point.tar_interval[0] <= point.tar <= point.tar_interval[1]
    far, tar = nearest_of(points, target)
    (near,) = evaluation.operating_points(
      scores, same, [target], rule='published'
    )
    assert near.far == pytest.approx(far, abs=1e-12)
    assert near.tar == pytest.approx(tar, abs=1e-12)


def test_there_are_twenty_sets():
  assert len(SETS) >= 20
