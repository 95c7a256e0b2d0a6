# SPDX-License-Identifier: Apache-2.0
"""Rates of accepting pairs by their scores: FAR, TAR, and the ROC curve.

Shapes: N pairs, F targets of FAR. A pair is *genuine* when both images show one
identity (``same`` is true), an *impostor* pair otherwise. The functions depend
on no protocol and take any list of pairs; they sort once, so that the eight
million pairs of IJB-B take seconds.

FAR is the share of impostor pairs accepted, TAR that of genuine pairs. In the
words of ISO/IEC 19795, FAR is the FMR and TAR is 1 - FNMR.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.intervals import binomial_interval


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
  same = checked_same(same, len(scores))
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


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
  """Interpolates the FAR where FAR = 1 - TAR, between two points.

  Args:
    far: FAR of the points of a ROC curve, from 0 to 1, ``[K]``.
    tar: TAR there, ``[K]``.

  Returns:
    The equal error rate, in [0, 1].

  Examples:
    >>> far, tar, _ = roc([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0])
    >>> equal_error_rate(far, tar)
    0.5
  """
  excess = far - (1 - tar)  # Rises from -1 to 1.
  k = np.argmax(excess >= 0)
  share = -excess[k - 1] / (excess[k] - excess[k - 1])
  return float(far[k - 1] + share * (far[k] - far[k - 1]))


def checked_same(same: np.ndarray, num_pairs: int) -> np.ndarray:
  """Checks which pairs are genuine.

  Args:
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    num_pairs: the N that the scores or embeddings have.

  Returns:
    ``same`` as bool, ``[N]``.

  Raises:
    InputError: if its shape is another, or it holds anything but 0 and 1.

  Examples:
    >>> print(checked_same([1, 0], 2))
    [ True False]
  """
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


def _last_within(
  curve_far: np.ndarray, far: float | Sequence[float]
) -> np.ndarray:
  """Finds the last point of a ROC curve whose FAR is at most ``far``."""
  far = np.asarray(far, np.float64)
  if not ((far >= 0) & (far <= 1)).all():
    raise InputError(f'far={far} is not a rate; expected values in [0, 1]')
  return np.searchsorted(curve_far, far, side='right') - 1
