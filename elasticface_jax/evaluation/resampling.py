# SPDX-License-Identifier: Apache-2.0
"""Figures of verification on resampled pairs, for many networks at once.

Shapes: N pairs, R replicates, F targets of FAR. A replicate draws as many
genuine and as many impostor pairs as there are, with replacement; it is a row
of counts, one for each pair. The pairs are taken as independent, as elsewhere
in this package.
"""

from collections.abc import Callable, Sequence

import numpy as np

from elasticface_jax.evaluation import rates

# Standard errors from so many replicates vary by 2 %.
REPLICATES = 1000
# Counts at work at once: 8 bytes each.
_CHUNK = 2**21


def resample(
  same: np.ndarray, num_replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
  """Draws pairs with replacement, genuine and impostor pairs each on their own.

  Args:
    same: whether the pair is genuine, bool, ``[N]``.
    num_replicates: number of replicates, R.
    seed: of the draws.

  Returns:
    How often each replicate holds each pair, uint8, ``[R, N]``.

  Examples:
    >>> counts = resample(np.array([True, True, False]), 4)
    >>> counts.shape, counts[:, 2].tolist(), counts[:, :2].sum(axis=1).tolist()
    ((4, 3), [1, 1, 1, 1], [2, 2, 2, 2])
  """
  same = np.asarray(same, bool)
  rng = np.random.default_rng(seed)
  counts = np.zeros((num_replicates, len(same)), np.uint8)
  for kind in (True, False):
    members = np.flatnonzero(same == kind)
    if not len(members):
      continue
    step = max(1, _CHUNK // len(members))
    for first in range(0, num_replicates, step):
      rows = np.arange(first, min(first + step, num_replicates))
      drawn = rng.integers(len(members), size=(len(rows), len(members)))
      cells = drawn + (rows - first)[:, None] * len(members)
      counted = np.bincount(cells.ravel(), minlength=drawn.size)
      counts[np.ix_(rows, members)] = counted.reshape(drawn.shape)
  return counts


def resampled_accuracy(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Computes the accuracies of a network on resampled pairs.

  Thresholds are those of all pairs; choosing them anew in each replicate would
  cost much and change little (``checks/study_rates.py`` has the coverage).

  Args:
    correct: whether each pair is judged rightly at the threshold of its fold,
      bool, from `correct_pairs`, ``[N]`` or ``[K, N]`` for K networks.
    counts: from `resample`, ``[R, N]``.

  Returns:
    Share of the drawn pairs that are judged rightly, float64, ``[R]`` or
    ``[R, K]``.

  Examples:
    >>> print(resampled_accuracy(np.array([True, False]), np.array([[2, 0]])))
    [1.]
  """
  # In float32, in which whole numbers up to 2^24 are exact, by BLAS.
  right = counts.astype(np.float32) @ np.asarray(correct, np.float32).T
  return right.astype(np.float64) / counts.shape[1]


def resampled_rates(
  scores: np.ndarray,
  same: np.ndarray,
  counts: np.ndarray,
  fars: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
  """Computes EER, and TAR at each FAR, of a network on resampled pairs.

  The curve and its thresholds are those of each replicate, by the rules of
  `tar_at_far` and `verify`.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool, both kinds, ``[N]``.
    counts: from `resample`, ``[R, N]``.
    fars: targets in [0, 1], ``[F]``.

  Returns:
    ``(eer, tar)``, float64, ``[R]`` and ``[R, F]``.

  Raises:
    InputError: as `roc`.

  Examples:
    >>> scores, same = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
    >>> once = np.ones((1, 4), np.uint8)
    >>> eer, tar = resampled_rates(scores, same == 1, once, [0.5])
    >>> print(eer, tar)
    [0.5] [[1.]]
  """
  fars = rates.checked_fars(fars)
  false_accepts, true_accepts, _ = rates.curve(scores, same)
  order = np.argsort(scores)[::-1]
  is_genuine = np.asarray(same, bool)[order]
  step = max(1, _CHUNK // len(order))
  eer, tar = [], []
  for first in range(0, len(counts), step):
    chunk = counts[first : first + step]
    curves = _Curves(
      _Accepts(chunk[:, order[~is_genuine]], false_accepts),
      _Accepts(chunk[:, order[is_genuine]], true_accepts),
    )
    eer.append(curves.equal_error_rate())
    tar.append(np.stack([curves.tar_at(far) for far in fars], axis=1))
  return np.concatenate(eer), np.concatenate(tar)


class _Accepts:
  """Shares of the drawn pairs of one kind that each point accepts.

  Args:
    counts: how often each pair is drawn, falling in score, ``[R, n]``.
    accepted: the number of these pairs that each point accepts, ``[K]``.
  """

  def __init__(self, counts: np.ndarray, accepted: np.ndarray):
    self._drawn = np.zeros((len(counts), counts.shape[1] + 1), np.int32)
    np.cumsum(counts, axis=1, out=self._drawn[:, 1:])
    self._accepted = accepted
    self._rows = np.arange(len(counts))

  def at(self, points: np.ndarray) -> np.ndarray:
    """Returns the share at one point of each replicate, ``[R]``."""
    drawn = self._drawn[self._rows, self._accepted[points]]
    return drawn / self._drawn[:, -1]


class _Curves:
  """ROC curves of replicates, at the K points of the curve of all pairs."""

  def __init__(self, impostors: _Accepts, genuine: _Accepts):
    self._far, self._tar = impostors.at, genuine.at
    self._ends = len(impostors._accepted) - 1, len(impostors._rows)

  def equal_error_rate(self) -> np.ndarray:
    """Interpolates as `rates.equal_error_rate`, ``[R]``."""

    def excess(points: np.ndarray) -> np.ndarray:
      return self._far(points) - (1 - self._tar(points))

    after = self._first(lambda points: excess(points) >= 0)
    before = after - 1
    share = -excess(before) / (excess(after) - excess(before))
    far = self._far(before)
    return far + share * (self._far(after) - far)

  def tar_at(self, target: float) -> np.ndarray:
    """Returns the TAR by the exact rule, ``[R]``."""
    if target >= 1:
      return np.ones(self._ends[1])
    beyond = self._first(lambda points: self._far(points) > target)
    return self._tar(beyond - 1)

  def _first(self, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Finds the first point from which on a condition holds, by bisection.

    It does not hold at the first point of all, and does at the last.
    """
    last, num_replicates = self._ends
    low, high = np.zeros(num_replicates, int), np.full(num_replicates, last)
    while (high - low > 1).any():
      middle = (low + high) // 2
      held = holds(middle) & (middle > low)
      low, high = np.where(held, low, middle), np.where(held, middle, high)
    return high
