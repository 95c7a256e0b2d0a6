# SPDX-License-Identifier: Apache-2.0
"""Face verification: do two images show one identity?

Shapes: N pairs, D embedding size. ``verify`` is the protocol of LFW and its kin
(CFP-FP, AgeDB-30, CALFW, CPLFW); ``rates`` has the words.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import intervals
from elasticface_jax.evaluation.rates import (
  OperatingPoint,
  area_under_curve,
  checked_fars,
  checked_same,
  curve,
  equal_error_rate,
  points_of_curve,
)

# Squared L2 distances of unit vectors lie in [0, 4].
_DISTANCE_THRESHOLDS = np.arange(0, 4, 0.01)
# Folds of the published protocol.
PUBLISHED_FOLDS = 10
# LFW-style sets have about 3,000 impostor pairs: 1e-3 is three of them, and a
# lower FAR cannot be distinguished from zero.
DEFAULT_FARS = (1e-2, 1e-3)


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
  """Results of ``verify`` on one set of pairs.

  Intervals are at 95 %, for independent pairs.

  Attributes:
    accuracy: mean accuracy of the folds, in [0, 1].
    accuracy_std: population standard deviation over the folds. It is about the
      error of one fold, and no interval.
    accuracy_interval: limits of the accuracy on new pairs, in the mean of
      thresholds chosen by as many pairs as those of a fold are.
    threshold: mean of the folds' thresholds as a cosine, accept above it.
    threshold_distance: the same threshold as a squared L2 distance of unit
      vectors, accept below it: ``threshold = 1 - threshold_distance / 2``.
    fold_accuracies: accuracy of each fold at its threshold, ``[folds]``.
    scores: cosine of each pair, float64, ``[N]``.
    same: whether the pair is genuine, bool, ``[N]``.
    tar_at_far: the operating points at the chosen FARs, by these rates, the
      highest first. This and the next four are None where all pairs are of one
      kind.
    auc: area under the curve of TAR over FAR.
    auc_interval: its limits.
    eer: equal error rate, where FAR = 1 - TAR on that curve.
    eer_interval: its limits.
    num_zero: number of embeddings that are zero; their pairs score cosine 0.
    num_resized: number of images that had another size than the network takes,
      and so are no aligned faces of it.
  """

  accuracy: float
  accuracy_std: float
  accuracy_interval: tuple[float, float]
  threshold: float
  threshold_distance: float
  fold_accuracies: np.ndarray
  scores: np.ndarray
  same: np.ndarray
  tar_at_far: dict[float, OperatingPoint] | None
  auc: float | None
  auc_interval: tuple[float, float] | None
  eer: float | None
  eer_interval: tuple[float, float] | None
  num_zero: int = 0
  num_resized: int = 0

  @property
  def folds(self) -> int:
    """Number of folds."""
    return len(self.fold_accuracies)

  @property
  def num_pairs(self) -> int:
    """Number of pairs, N."""
    return len(self.same)

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON, without ``scores`` and ``same``."""
    points = self.tar_at_far
    return {
      'protocol': 'pairs',
      'num_pairs': self.num_pairs,
      'num_genuine': int(self.same.sum()),
      'num_zero': self.num_zero,
      'num_resized': self.num_resized,
      'folds': self.folds,
      'accuracy': self.accuracy,
      'accuracy_std': self.accuracy_std,
      'accuracy_interval': list(self.accuracy_interval),
      'threshold': self.threshold,
      'threshold_distance': self.threshold_distance,
      'fold_accuracies': self.fold_accuracies.tolist(),
      'tar_at_far': points
      and {_key(far): point.as_dict() for far, point in points.items()},
      'auc': self.auc,
      'auc_interval': self.auc_interval and list(self.auc_interval),
      'eer': self.eer,
      'eer_interval': self.eer_interval and list(self.eer_interval),
    }


def verify(
  embeddings: np.ndarray,
  same: np.ndarray,
  folds: int = PUBLISHED_FOLDS,
  fars: Sequence[float] = DEFAULT_FARS,
) -> Verification:
  r"""Computes the accuracy of the LFW protocol, and rates of the same pairs.

  Embeddings are l2-normalised in float64. A pair counts as genuine when its
  squared distance :math:`d = \lVert z_{2i} - z_{2i+1} \rVert^2` is strictly
  below a threshold from 0, 0.01, ..., 3.99. Each of the contiguous, unshuffled
  folds is judged at the threshold that is best on the others, the smallest one
  of several. Where ``folds`` does not divide N, the first folds have one pair
  more.

  Args:
    embeddings: embeddings of the images, any float dtype, ``[2N, D]``; pair i
      is rows 2i and 2i+1. Their norms do not matter. For the flip test, give
      the sums of the embeddings of an image and of its mirror image.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    folds: number of folds, at least 2 and at most N.
    fars: the FARs at which TAR and threshold are wanted, each in (0, 1).

  Returns:
    The accuracy, its threshold, the operating points and the scores.

  Raises:
    InputError: if the shapes disagree, an embedding is not finite, ``same``
      holds anything but 0 and 1, ``folds`` does not fit N, or ``fars`` holds
      none or anything that is no rate between 0 and 1.

  Examples:
    >>> east, north = [1.0, 0.0], [0.0, 2.0]
    >>> result = verify(np.array([east, east, east, north]), [True, False],
    ...                 folds=2)
    >>> print(result.scores)
    [1. 0.]
    >>> result.accuracy
    0.5

  References:
    `LFW <http://vis-www.cs.umass.edu/lfw/>`_; ElasticFace (arXiv 2109.09416)
    and insightface evaluate by this rule.
    Differs from the authors' code in: a pair with a zero embedding scores
    cosine 0 (d = 2); there a zero has d = 1 to any unit vector, and two zeros
    have d = 0, which accepts them. TAR is taken at a FAR that is never above
    its target, and not interpolated.
  """
  embeddings = _checked_embeddings(embeddings)
  same = checked_same(same, len(embeddings) // 2)
  if not 2 <= folds <= len(same):
    raise InputError(
      f'folds={folds} does not fit {len(same)} pairs: choose 2 folds or more,'
      ' and no more folds than pairs'
    )
  targets = _checked_targets(fars)
  distances, num_zero = _squared_distances(embeddings)
  scores = np.maximum(1 - distances / 2, -1.0)
  accuracies, best, lost = _cross_validate(distances, same, folds)
  accuracy = float(accuracies.mean())
  return Verification(
    accuracy=accuracy,
    accuracy_std=float(accuracies.std()),
    accuracy_interval=intervals.accuracy_interval(accuracy, len(same), lost),
    threshold=float(1 - best.mean() / 2),
    threshold_distance=float(best.mean()),
    fold_accuracies=accuracies,
    scores=scores,
    same=same,
    num_zero=num_zero,
    **_rates_of_scores(scores, same, targets),
  )


def correct_pairs(
  scores: np.ndarray, same: np.ndarray, folds: int = PUBLISHED_FOLDS
) -> np.ndarray:
  """Finds the pairs that the protocol of `verify` judges rightly.

  Args:
    scores: cosine of each pair, from `verify`, ``[N]``.
    same: whether the pair is genuine, bool, ``[N]``.
    folds: number of folds, at least 2 and at most N.

  Returns:
    Whether each pair is judged rightly at the threshold of its fold, bool,
    ``[N]``. The mean over the folds is the accuracy.

  Examples:
    >>> print(correct_pairs(np.array([0.9, 0.2, 0.8, 0.7]), [1, 0, 1, 0], 2))
    [ True  True False  True]
  """
  same = checked_same(same, len(scores))
  distances = 2 - 2 * np.asarray(scores, np.float64)
  _, thresholds, _ = _cross_validate(distances, same, folds)
  return (distances < thresholds[_folds(len(same), folds)]) == same


def _key(far: float) -> str:
  short = f'{far:g}'
  return short if float(short) == far else repr(far)


def _rates_of_scores(
  scores: np.ndarray, same: np.ndarray, fars: Sequence[float]
) -> dict[str, Any]:
  """Computes the fields of a result that need pairs of both kinds."""
  if same.all() or not same.any():
    names = ('tar_at_far', 'auc', 'auc_interval', 'eer', 'eer_interval')
    return dict.fromkeys(names)
  false_accepts, true_accepts, thresholds = curve(scores, same)
  points = points_of_curve(false_accepts, true_accepts, thresholds, fars)
  return {
    'tar_at_far': dict(zip(fars, points, strict=True)),
    'auc': area_under_curve(false_accepts, true_accepts),
    'auc_interval': intervals.auc_interval(false_accepts, true_accepts),
    'eer': equal_error_rate(
      false_accepts / false_accepts[-1], true_accepts / true_accepts[-1]
    ),
    'eer_interval': intervals.equal_error_interval(false_accepts, true_accepts),
  }


def _checked_targets(fars: Sequence[float]) -> list[float]:
  """Returns the targets without repetitions, the highest first."""
  targets = checked_fars(fars)
  if targets.ndim != 1 or not targets.size or not (targets % 1).all():
    raise InputError(
      f'fars={fars} are no FARs to measure TAR at; give one or more between 0'
      ' and 1, such as 1e-3'
    )
  return sorted({float(far) for far in targets}, reverse=True)


def _checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
  embeddings = np.asarray(embeddings, np.float64)
  shape = embeddings.shape
  if len(shape) != 2 or shape[0] % 2 or not shape[1]:
    raise InputError(
      f'embeddings have shape {shape}; expected [2N, D], two rows for each pair'
    )
  bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
  if len(bad):
    others = f', nor are {len(bad) - 1} others of {len(embeddings)}'
    raise InputError(
      f'embedding row {bad[0]} (pair {bad[0] // 2}) is not finite'
      f'{others if len(bad) > 1 else ""}; check that image and the checkpoint'
    )
  return embeddings


def _squared_distances(embeddings: np.ndarray) -> tuple[np.ndarray, int]:
  """Computes squared L2 distances of unit vectors, ``[2N, D] -> [N]``.

  Also counts the embeddings that are zero, which have no direction.
  """
  # By a power of two, which changes no bit, near 1: the squares of others may
  # overflow, or be lost as if the embedding were zero.
  _, exponents = np.frexp(np.abs(embeddings).max(axis=1, keepdims=True))
  scaled = np.ldexp(embeddings, -exponents)
  norms = np.linalg.norm(scaled, axis=1, keepdims=True)
  unit = scaled / np.where(norms == 0, 1.0, norms)
  distances = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
  is_zero = (norms == 0).reshape(-1, 2)
  distances = np.where(is_zero.any(axis=1), 2.0, distances)
  return distances, int(np.count_nonzero(is_zero))


def _folds(num_pairs: int, folds: int) -> np.ndarray:
  """Returns the fold of each pair, ``[N]``."""
  sizes = np.full(folds, num_pairs // folds)
  sizes[: num_pairs % folds] += 1
  return np.repeat(np.arange(folds), sizes)


def _cross_validate(
  distances: np.ndarray, same: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Computes accuracy and distance threshold of each fold, ``[folds]``.

  Also computes how many pairs of each fold would be judged rightly at the best
  threshold of all pairs, and are not at that of the other folds.
  """
  num_thresholds, fold = len(_DISTANCE_THRESHOLDS), _folds(len(same), folds)
  sizes = np.bincount(fold)
  # The first threshold that accepts each pair; for some, none does.
  first = np.searchsorted(_DISTANCE_THRESHOLDS, distances, side='right')
  counts = np.zeros((2, folds, num_thresholds + 1), np.int64)
  np.add.at(counts, (same.astype(int), fold, first), 1)
  accepted = counts.cumsum(axis=2)
  impostors = accepted[0, :, -1:]
  correct = (accepted[1] + impostors - accepted[0])[:, :num_thresholds]
  # argmax takes the first, the smallest, of the best thresholds.
  of_all = correct.sum(axis=0)
  best = np.argmax(of_all - correct, axis=1)
  right = correct[np.arange(folds), best]
  lost = correct[:, np.argmax(of_all)] - right
  return right / sizes, _DISTANCE_THRESHOLDS[best], lost
