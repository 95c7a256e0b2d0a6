# SPDX-License-Identifier: Apache-2.0
"""Face verification: do two images show one identity?

Shapes: N pairs, D embedding size, F targets of FAR. A pair is *genuine* when
both images show one identity (``same`` is true), an *impostor* pair otherwise.

``verify`` is the protocol of LFW and its kin (CFP-FP, AgeDB-30, CALFW, CPLFW).
The functions of ``scores`` depend on no protocol and take any list of pairs;
they sort once, so that the eight million pairs of IJB-B take seconds.

FAR is the share of impostor pairs accepted, TAR that of genuine pairs. In the
words of ISO/IEC 19795, FAR is the FMR and TAR is 1 - FNMR.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from elasticface_jax.errors import InputError

# Squared L2 distances of unit vectors lie in [0, 4].
_DISTANCE_THRESHOLDS = np.arange(0, 4, 0.01)
# Folds of the published protocol.
_FOLDS = 10
_HEADINGS = (
  ('set', 'pairs', 'accuracy', 'accuracy', 'EER', *['FAR 1e-3'] * 3),
  ('', '', '%', 'if cosine >', '%', 'TAR %', 'if cosine >=', 'FAR found %'),
)
# LFW-style sets have about 3,000 impostor pairs: 1e-3 is three of them, and a
# lower FAR cannot be distinguished from zero.
_FARS = (1e-2, 1e-3)


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
  """Rates of accepting every pair that scores at least ``threshold``.

  The intervals are exact binomial (Clopper-Pearson) at 95 %, for independent
  pairs and a threshold set beforehand. Where pairs share images, and since the
  threshold was chosen on these very pairs, they are too narrow.

  Attributes:
    far_target: the requested FAR.
    far: the FAR of this point, at most ``far_target``.
    far_interval: lower and upper limit of ``far``.
    tar: the share of genuine pairs accepted.
    tar_interval: lower and upper limit of ``tar``.
    threshold: accept a pair whose score is this or more. Infinite where the
      target allows no pair.
    num_genuine: the number of pairs behind ``tar``.
    num_impostors: the number of pairs behind ``far``.
  """

  far_target: float
  far: float
  far_interval: tuple[float, float]
  tar: float
  tar_interval: tuple[float, float]
  threshold: float
  num_genuine: int
  num_impostors: int

  @property
  def is_measurable(self) -> bool:
    """True if a single false accept among these pairs is within the target.

    Below it, ``far`` is 0 whatever the network does.
    """
    return 1 / self.num_impostors <= self.far_target

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON: an infinite ``threshold`` becomes None."""
    point = dataclasses.asdict(self)
    if math.isinf(self.threshold):
      point['threshold'] = None
    return point


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
  embeddings: np.ndarray, same: np.ndarray, folds: int = _FOLDS
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
  same = _checked_same(same, len(embeddings) // 2)
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
    auc, eer = float(np.trapezoid(tar, far)), _equal_error_rate(far, tar)
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


def roc(
  scores: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Computes FAR and TAR at every threshold that separates two pairs.

  Point k accepts the pairs with ``scores >= thresholds[k]``. Pairs of equal
  scores are accepted or rejected together, and no point is left out.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.

  Returns:
    ``(far, tar, thresholds)``, float64, one entry for each distinct score and
    one before them with threshold infinity, where nothing is accepted. FAR and
    TAR rise from 0 to 1, thresholds fall.

  Raises:
    InputError: if the shapes disagree, a score is not finite, ``same`` holds
      anything but 0 and 1, or all pairs are of one kind.

  Examples:
    >>> far, tar, thresholds = roc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0])
    >>> print(far, tar, thresholds)
    [0.  0.  0.5 1. ] [0.  0.5 1.  1. ] [inf 0.9 0.4 0.1]
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1:
    raise InputError(f'scores have shape {scores.shape}; expected [N]')
  same = _checked_same(same, len(scores))
  if not np.isfinite(scores).all():
    pair = np.flatnonzero(~np.isfinite(scores))[0]
    raise InputError(
      f'the score of pair {pair} is {scores[pair]}; scores must be finite'
    )
  num_genuine = np.count_nonzero(same)
  num_impostors = len(same) - num_genuine
  if not (num_genuine and num_impostors):
    raise InputError(
      f'{num_genuine} genuine and {num_impostors} impostor pairs have no TAR'
      ' at a FAR; give a list with pairs of both kinds'
    )
  order = np.argsort(scores)[::-1]
  descending = scores[order]
  run_ends = np.append(np.flatnonzero(np.diff(descending)), len(scores) - 1)
  accepted = run_ends + 1
  true_accepts = np.cumsum(same[order])[run_ends]
  return (
    np.append(0.0, (accepted - true_accepts) / num_impostors),
    np.append(0.0, true_accepts / num_genuine),
    np.append(np.inf, descending[run_ends]),
  )


def tar_at_far(
  scores: np.ndarray, same: np.ndarray, far: float | Sequence[float]
) -> float | np.ndarray:
  """Computes TAR at the lowest threshold of a FAR of at most ``far``.

  The FAR on these pairs is never above its target. A target below 1 / number of
  impostor pairs allows no false accept at all.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    far: target or targets in [0, 1], scalar or ``[F]``.

  Returns:
    TAR in [0, 1], a float for a scalar ``far``, else float64 ``[F]``.

  Raises:
    InputError: as ``roc``, or if ``far`` lies outside [0, 1].

  Examples:
    >>> scores, same = [0.9, 0.8, 0.7, 0.3, 0.1], [1, 0, 1, 1, 0]
    >>> tar_at_far(scores, same, 0.5)
    1.0
    >>> print(tar_at_far(scores, same, [0.5, 0.1]).round(3))
    [1.    0.333]

  References:
    Differs from the authors' code in: the IJB script of insightface, which
    ElasticFace used, takes the point whose FAR is *nearest* to the target,
    which may lie above it.
  """
  curve_far, tar, _ = roc(scores, same)
  picked = tar[_last_within(curve_far, far)]
  return float(picked) if np.ndim(far) == 0 else picked


def threshold_at_far(
  scores: np.ndarray, same: np.ndarray, far: float | Sequence[float]
) -> float | np.ndarray:
  """Computes the lowest threshold whose FAR on these pairs is at most ``far``.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    far: target or targets in [0, 1], scalar or ``[F]``.

  Returns:
    Threshold in the unit of the scores, to accept ``score >= threshold``; a
    float for a scalar ``far``, else float64 ``[F]``. It is infinite where the
    best score is an impostor's and the target allows none.

  Raises:
    InputError: as ``roc``, or if ``far`` lies outside [0, 1].

  Examples:
    >>> threshold_at_far([0.9, 0.8, 0.7, 0.3, 0.1], [1, 0, 1, 1, 0], 0.1)
    0.9
  """
  curve_far, _, thresholds = roc(scores, same)
  picked = thresholds[_last_within(curve_far, far)]
  return float(picked) if np.ndim(far) == 0 else picked


def operating_points(
  scores: np.ndarray, same: np.ndarray, fars: Sequence[float]
) -> tuple[OperatingPoint, ...]:
  """Computes TAR and threshold at each target FAR, with exact 95 % intervals.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    fars: targets in [0, 1], ``[F]``.

  Returns:
    The F points, by the rule of ``tar_at_far``.

  Raises:
    InputError: as ``roc``, or if a target lies outside [0, 1].

  Examples:
    >>> point, = operating_points([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1e-3])
    >>> point.tar, point.threshold, point.far
    (1.0, 0.8, 0.0)
    >>> low, high = point.far_interval  # of two impostor pairs
    >>> print(f'{low:.3f} to {high:.3f}')
    0.000 to 0.842
  """
  curve_far, curve_tar, thresholds = roc(scores, same)
  num_genuine = int(np.count_nonzero(same))
  num_impostors = len(same) - num_genuine
  points = []
  for target, k in zip(fars, _last_within(curve_far, fars), strict=True):
    far, tar = float(curve_far[k]), float(curve_tar[k])
    false_accepts, true_accepts = far * num_impostors, tar * num_genuine
    points.append(
      OperatingPoint(
        far_target=float(target),
        far=far,
        far_interval=binomial_interval(round(false_accepts), num_impostors),
        tar=tar,
        tar_interval=binomial_interval(round(true_accepts), num_genuine),
        threshold=float(thresholds[k]),
        num_genuine=num_genuine,
        num_impostors=num_impostors,
      )
    )
  return tuple(points)


def binomial_interval(
  successes: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the exact (Clopper-Pearson) interval of a proportion.

  Args:
    successes: number of successes, in [0, ``trials``].
    trials: number of independent trials, at least 1.
    confidence: least probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the proportion, in [0, 1].

  Examples:
    >>> low, high = binomial_interval(0, 3000)
    >>> print(f'{low} to {high:.5f}')
    0.0 to 0.00123

  References:
    Clopper and Pearson, Biometrika 26 (1934) 404.
  """
  k, n, tail = successes, trials, (1 - confidence) / 2
  # betaincinv inverts the beta distribution, whose parameters must be positive.
  low = special.betaincinv(k, n - k + 1, tail) if k else 0.0
  high = special.betaincinv(k + 1, n - k, 1 - tail) if k < n else 1.0
  return float(low), float(high)


def table(results: Mapping[str, Verification]) -> str:
  """Formats results as a text table with a line for each set.

  Args:
    results: results by name of the set.

  Returns:
    Aligned lines without a final newline: two of headings, then for each set
    the accuracy and its cosine threshold, the equal error rate, and TAR at FAR
    1e-3, the threshold there and the FAR found, both rates with their 95 %
    interval. Below, a line for each thing that a reader must know besides: a
    FAR that these pairs cannot measure, folds that are not the published 10,
    images that were resized.

  Examples:
    >>> result = verify(np.eye(2)[[0, 0, 1, 1, 0, 1, 1, 0]], [1, 0, 1, 0],
    ...                 folds=2)
    >>> lines = table({'toy': result}).splitlines()
    >>> for line in lines[:3]:
    ...   print(line[:37].rstrip())
    set  pairs      accuracy     accuracy
                           %  if cosine >
    toy      4  50.00 ± 0.00        1.000
    >>> for line in lines[3:]:
    ...   print(line)
    toy: FAR 1e-3 cannot be measured with 2 impostor pairs; it takes 1,000
    accuracy is over 2 folds, published ones are over 10: toy
  """
  rows = [*_HEADINGS, *(_table_row(name, r) for name, r in results.items())]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in rows
  ]
  return '\n'.join([*lines, *_table_notes(results)])


def _table_row(name: str, result: Verification) -> tuple[str, ...]:
  row = (
    name,
    f'{result.num_pairs:,}',
    f'{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}',
    f'{result.threshold:.3f}',
  )
  if result.tar_at_far is None:
    return (*row, '-', '-', '-', '-')
  row = (*row, f'{100 * result.eer:.2f}')
  point = result.tar_at_far[1e-3]
  if not point.is_measurable:
    return (*row, 'not measurable', '-', '-')
  return (
    *row,
    _percent(point.tar, point.tar_interval, 2),
    # Infinite where the best score is an impostor's: no pair is accepted.
    'none' if math.isinf(point.threshold) else f'{point.threshold:.3f}',
    _percent(point.far, point.far_interval, 3),
  )


def _table_notes(results: Mapping[str, Verification]) -> list[str]:
  """Returns a line for whatever a reader of the table must know besides."""
  notes = []
  for name, result in results.items():
    notes += _notes_of_far(name, result)
    if result.num_resized:
      notes.append(
        f'{name}: {result.num_resized:,} of {2 * result.num_pairs:,} images '
        'had another size and were resized; they may not be aligned'
      )
  unusual = {r.folds for r in results.values()} - {_FOLDS}
  for folds in sorted(unusual):
    names = ', '.join(n for n, r in results.items() if r.folds == folds)
    notes.append(
      f'accuracy is over {folds} folds, published ones are over {_FOLDS}: '
      f'{names}'
    )
  return notes


def _notes_of_far(name: str, result: Verification) -> list[str]:
  """Says where the table has no TAR, and gives that of a higher FAR."""
  points = result.tar_at_far
  if points is None:
    kind = 'genuine' if result.same.all() else 'impostor'
    return [f'{name}: all pairs are {kind} pairs; there is no FAR and TAR']
  if points[1e-3].is_measurable:
    return []
  impostors = f'{points[1e-3].num_impostors:,} impostor pairs'
  note = f'{name}: FAR 1e-3 cannot be measured with {impostors}'
  if not points[1e-2].is_measurable:
    return [f'{note}; it takes 1,000']
  tar = _percent(points[1e-2].tar, points[1e-2].tar_interval, 2)
  return [f'{note}; at FAR 1e-2 TAR is {tar} %']


def _percent(rate: float, interval: tuple[float, float], digits: int) -> str:
  low, high = (f'{100 * limit:.{digits}f}' for limit in interval)
  return f'{100 * rate:.{digits}f} [{low}, {high}]'


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


def _checked_same(same: np.ndarray, num_pairs: int) -> np.ndarray:
  same = np.asarray(same)
  if same.shape != (num_pairs,):
    raise InputError(
      f'same has shape {same.shape}; expected {(num_pairs,)}, one for each pair'
    )
  valid = (same == 0) | (same == 1)
  if not valid.all():
    raise InputError(
      f'same holds {same[~valid][0]}; expected 1 (genuine) or 0 (impostor)'
    )
  return same.astype(bool)


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


def _last_within(
  curve_far: np.ndarray, far: float | Sequence[float]
) -> np.ndarray:
  """Finds the last point of a ROC curve whose FAR is at most ``far``."""
  far = np.asarray(far, np.float64)
  if not ((far >= 0) & (far <= 1)).all():
    raise InputError(f'far={far} is not a rate; expected values in [0, 1]')
  return np.searchsorted(curve_far, far, side='right') - 1


def _equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
  """Interpolates the FAR where FAR = 1 - TAR, between two points."""
  excess = far - (1 - tar)  # Rises from -1 to 1.
  k = np.argmax(excess >= 0)
  share = -excess[k - 1] / (excess[k] - excess[k - 1])
  return float(far[k - 1] + share * (far[k] - far[k - 1]))
