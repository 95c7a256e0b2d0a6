# SPDX-License-Identifier: Apache-2.0
"""Face verification: do two images show one identity?

Shapes: N pairs, D embedding size. ``verify`` is the protocol of LFW and its kin
(CFP-FP, AgeDB-30, CALFW, CPLFW); ``rates`` has the words.
"""

import dataclasses
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.rates import (
  OperatingPoint,
  checked_same,
  equal_error_rate,
  operating_points,
  roc,
)

# Squared L2 distances of unit vectors lie in [0, 4].
_DISTANCE_THRESHOLDS = np.arange(0, 4, 0.01)
# Folds of the published protocol.
PUBLISHED_FOLDS = 10
# LFW-style sets have about 3,000 impostor pairs: 1e-3 is three of them, and a
# lower FAR cannot be distinguished from zero.
_FARS = (1e-2, 1e-3)


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
  """Results of ``verify`` on one set of pairs.

  Attributes:
    accuracy: mean accuracy of the folds, in [0, 1].
    accuracy_std: population standard deviation over the folds.
    threshold: mean of the folds' thresholds as a cosine, accept above it.
    threshold_distance: the same threshold as a squared L2 distance of unit
      vectors, accept below it: ``threshold = 1 - threshold_distance / 2``.
    fold_accuracies: accuracy of each fold at its threshold, ``[folds]``.
    scores: cosine of each pair, float64, ``[N]``.
    same: whether the pair is genuine, bool, ``[N]``.
    tar_at_far: the operating points at FAR 1e-2 and 1e-3, by these rates.
      This and the next two are None where all pairs are of one kind.
    auc: area under the curve of TAR over FAR.
    eer: equal error rate, where FAR = 1 - TAR on that curve.
    num_resized: number of images that had another size than the network takes,
      and so are no aligned faces of it.
  """

  accuracy: float
  accuracy_std: float
  threshold: float
  threshold_distance: float
  fold_accuracies: np.ndarray
  scores: np.ndarray
  same: np.ndarray
  tar_at_far: dict[float, OperatingPoint] | None
  auc: float | None
  eer: float | None
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
      'num_pairs': self.num_pairs,
      'num_genuine': int(self.same.sum()),
      'num_resized': self.num_resized,
      'folds': self.folds,
      'accuracy': self.accuracy,
      'accuracy_std': self.accuracy_std,
      'threshold': self.threshold,
      'threshold_distance': self.threshold_distance,
      'fold_accuracies': self.fold_accuracies.tolist(),
      'tar_at_far': points
      and {f'{far:g}': point.as_dict() for far, point in points.items()},
      'auc': self.auc,
      'eer': self.eer,
    }


def verify(
  embeddings: np.ndarray, same: np.ndarray, folds: int = PUBLISHED_FOLDS
) -> Verification:
  r"""Computes the cross-validated accuracy of the LFW protocol.

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

  Returns:
    The accuracy, its threshold, the operating points and the scores.

  Raises:
    InputError: if the shapes disagree, an embedding is not finite, ``same``
      holds anything but 0 and 1, or ``folds`` does not fit N.

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
  distances = _squared_distances(embeddings)
  scores = np.maximum(1 - distances / 2, -1.0)
  accuracies, best = _cross_validate(distances, same, folds)

  points = auc = eer = None
  if same.any() and not same.all():
    points = dict(
      zip(_FARS, operating_points(scores, same, _FARS), strict=True)
    )
    far, tar, _ = roc(scores, same)
    auc, eer = float(np.trapezoid(tar, far)), equal_error_rate(far, tar)
  return Verification(
    accuracy=float(accuracies.mean()),
    accuracy_std=float(accuracies.std()),
    threshold=float(1 - best.mean() / 2),
    threshold_distance=float(best.mean()),
    fold_accuracies=accuracies,
    scores=scores,
    same=same,
    tar_at_far=points,
    auc=auc,
    eer=eer,
  )


def _checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
  embeddings = np.asarray(embeddings, np.float64)
  if embeddings.ndim != 2 or len(embeddings) % 2:
    raise InputError(
      f'embeddings have shape {embeddings.shape}; expected [2N, D], two rows'
      ' for each pair'
    )
  bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
  if len(bad):
    raise InputError(
      f'embedding row {bad[0]} (pair {bad[0] // 2}) is not finite, nor are'
      f' {len(bad) - 1} others of {len(embeddings)}; check that image and the'
      ' checkpoint'
    )
  return embeddings


def _squared_distances(embeddings: np.ndarray) -> np.ndarray:
  """Computes squared L2 distances of unit vectors, ``[2N, D] -> [N]``."""
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  unit = embeddings / np.where(norms == 0, 1.0, norms)
  distances = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
  has_zero = (norms == 0).reshape(-1, 2).any(axis=1)
  return np.where(has_zero, 2.0, distances)


def _cross_validate(
  distances: np.ndarray, same: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray]:
  """Computes accuracy and distance threshold of each fold, ``[folds]``."""
  num_pairs, num_thresholds = len(same), len(_DISTANCE_THRESHOLDS)
  sizes = np.full(folds, num_pairs // folds)
  sizes[: num_pairs % folds] += 1
  fold = np.repeat(np.arange(folds), sizes)
  # The first threshold that accepts each pair; for some, none does.
  first = np.searchsorted(_DISTANCE_THRESHOLDS, distances, side='right')
  counts = np.zeros((2, folds, num_thresholds + 1), np.int64)
  np.add.at(counts, (same.astype(int), fold, first), 1)
  accepted = counts.cumsum(axis=2)
  impostors = accepted[0, :, -1:]
  correct = (accepted[1] + impostors - accepted[0])[:, :num_thresholds]
  # argmax takes the first, the smallest, of the best thresholds.
  best = np.argmax(correct.sum(axis=0) - correct, axis=1)
  accuracies = correct[np.arange(folds), best] / sizes
  return accuracies, _DISTANCE_THRESHOLDS[best]
