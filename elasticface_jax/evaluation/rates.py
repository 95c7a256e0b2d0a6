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
from elasticface_jax.evaluation import intervals


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
  """Rates of accepting every pair that scores at least ``threshold``.

  The intervals are those of `intervals`, at 95 %, for independent pairs. Where
  pairs share images or identities they are too narrow.

  Attributes:
    far_target: the requested FAR.
    far: the FAR of this point on these pairs, which the rule has chosen.
    far_interval: lower and upper limit of the FAR that this threshold has in
      the population.
    tar: the share of genuine pairs accepted.
    tar_interval: lower and upper limit of the TAR that belongs to
      ``far_target`` in the population; the error of the threshold is included.
    threshold: accept a pair whose score is this or more. Infinite where the
      target allows no pair.
    threshold_interval: lower and upper limit of the threshold that belongs to
      ``far_target`` in the population; infinite where these pairs give none.
    num_genuine: the number of pairs behind ``tar``.
    num_impostors: the number of pairs behind ``far``.
  """

  far_target: float
  far: float
  far_interval: tuple[float, float]
  tar: float
  tar_interval: tuple[float, float]
  threshold: float
  threshold_interval: tuple[float, float]
  num_genuine: int
  num_impostors: int

  @property
  def is_measurable(self) -> bool:
    """True if a single false accept among these pairs is within the target.

    Below it, ``far`` is 0 whatever the network does.
    """
    return is_measurable(self.far_target, self.num_impostors)

  @property
  def is_bounded(self) -> bool:
    """True if ``tar`` and ``threshold`` have a limit on both sides.

    With less than 3 / ``far_target`` impostor pairs, the threshold of the
    population may lie above all of them.
    """
    return math.isfinite(self.threshold_interval[1])

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON: what is infinite or not measured is None."""
    point: dict[str, Any] = {
      'far_target': self.far_target,
      'num_genuine': self.num_genuine,
      'num_impostors': self.num_impostors,
      'measurable': self.is_measurable,
    }
    for name in ('far', 'tar', 'threshold'):
      point[name] = _finite(getattr(self, name), self.is_measurable)
      limits = getattr(self, f'{name}_interval')
      point[f'{name}_interval'] = (
        [_finite(limit, True) for limit in limits]
        if self.is_measurable
        else None
      )
    return point


def is_measurable(far: float, num_impostors: int) -> bool:
  """Returns True if a single false accept is within a FAR.

  Args:
    far: the target.
    num_impostors: number of impostor pairs.

  Examples:
    >>> is_measurable(1e-3, 1000), is_measurable(1e-3, 999)
    (True, False)
  """
  return 1 / num_impostors <= far


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
  false_accepts, true_accepts, thresholds = curve(scores, same)
  return (
    false_accepts / false_accepts[-1],
    true_accepts / true_accepts[-1],
    thresholds,
  )


def curve(
  scores: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Counts the pairs accepted at every threshold that separates two pairs.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.

  Returns:
    ``(false_accepts, true_accepts, thresholds)``, int64, int64 and float64,
    ``[K]``: the points of `roc` as counts.

  Raises:
    InputError: as `roc`.

  Examples:
    >>> false_accepts, true_accepts, _ = curve([0.9, 0.4, 0.1], [1, 1, 0])
    >>> print(false_accepts, true_accepts)
    [0 0 0 1] [0 1 2 2]
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
  true_accepts = np.cumsum(same[order])[run_ends]
  return (
    np.append(0, run_ends + 1 - true_accepts),
    np.append(0, true_accepts),
    np.append(np.inf, descending[run_ends]),
  )


def tar_at_far(
  scores: np.ndarray,
  same: np.ndarray,
  far: float | Sequence[float],
  rule: str = 'exact',
) -> float | np.ndarray:
  """Computes TAR at the threshold that a rule chooses for a FAR.

  The rule ``'exact'`` takes the lowest threshold whose FAR on these pairs is at
  most ``far``: never above its target, and no false accept at all for a target
  below 1 / number of impostor pairs. The rule ``'published'`` takes the point
  of the ROC curve whose FAR is nearest to ``far``, which may lie above it, and
  of several such points the one of the largest TAR.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    far: target or targets in [0, 1], scalar or ``[F]``.
    rule: ``'exact'`` or ``'published'``.

  Returns:
    TAR in [0, 1], a float for a scalar ``far``, else float64 ``[F]``.

  Raises:
    InputError: as `roc`, or if ``far`` lies outside [0, 1], or the rule is
      another.

  Examples:
    >>> scores, same = [0.9, 0.8, 0.7, 0.3, 0.1], [1, 0, 1, 1, 0]
    >>> tar_at_far(scores, same, 0.5)
    1.0
    >>> print(tar_at_far(scores, same, [0.5, 0.4]).round(3))
    [1.    0.333]
    >>> tar_at_far(scores, same, 0.4, rule='published')  # at FAR 0.5
    1.0

  References:
    ``'published'`` is the rule of insightface's IJB script, which ElasticFace
    used.
    Differs from the authors' code in: all points are candidates. The script
    calls scikit-learn's ``roc_curve``, which by default leaves out points
    between two others on a line, so the nearest of the rest may be another:
    ``drop_intermediate=False`` there gives the figures of here.
  """
  curve_far, tar, _ = roc(scores, same)
  picked = tar[_chosen(curve_far, far, rule)]
  return float(picked) if np.ndim(far) == 0 else picked


def threshold_at_far(
  scores: np.ndarray,
  same: np.ndarray,
  far: float | Sequence[float],
  rule: str = 'exact',
) -> float | np.ndarray:
  """Computes the threshold that a rule chooses for a FAR.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    far: target or targets in [0, 1], scalar or ``[F]``.
    rule: ``'exact'`` or ``'published'``, as for `tar_at_far`.

  Returns:
    Threshold in the unit of the scores, to accept ``score >= threshold``; a
    float for a scalar ``far``, else float64 ``[F]``. It is infinite where the
    best score is an impostor's and the rule chooses to accept none.

  Raises:
    InputError: as `tar_at_far`.

  Examples:
    >>> threshold_at_far([0.9, 0.8, 0.7, 0.3, 0.1], [1, 0, 1, 1, 0], 0.1)
    0.9
  """
  curve_far, _, thresholds = roc(scores, same)
  picked = thresholds[_chosen(curve_far, far, rule)]
  return float(picked) if np.ndim(far) == 0 else picked


def operating_points(
  scores: np.ndarray,
  same: np.ndarray,
  fars: Sequence[float],
  rule: str = 'exact',
) -> tuple[OperatingPoint, ...]:
  """Computes TAR, threshold and FAR at each target FAR, with 95 % intervals.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    fars: targets in [0, 1], ``[F]``.
    rule: ``'exact'`` or ``'published'``, as for `tar_at_far`.

  Returns:
    The F points, each with the FAR that the rule has used.

  Raises:
    InputError: as `tar_at_far`.

  Examples:
    >>> point, = operating_points([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1e-3])
    >>> point.tar, point.threshold, point.far
    (1.0, 0.8, 0.0)
    >>> low, high = point.far_interval  # of two impostor pairs
    >>> print(f'{low:.3f} to {high:.3f}')
    0.000 to 0.776
    >>> point.is_measurable
    False
  """
  return points_of_curve(*curve(scores, same), fars, rule)


def points_of_curve(
  false_accepts: np.ndarray,
  true_accepts: np.ndarray,
  thresholds: np.ndarray,
  fars: Sequence[float],
  rule: str = 'exact',
) -> tuple[OperatingPoint, ...]:
  """Computes the operating points of a curve, as `operating_points`.

  Args:
    false_accepts: number of impostor pairs accepted, from `curve`, ``[K]``.
    true_accepts: number of genuine pairs accepted, ``[K]``.
    thresholds: the lowest score accepted, ``[K]``.
    fars: targets in [0, 1], ``[F]``.
    rule: ``'exact'`` or ``'published'``, as for `tar_at_far`.

  Returns:
    The F points.

  Raises:
    InputError: if a target lies outside [0, 1], or the rule is another.

  Examples:
    >>> points = points_of_curve(*curve([0.9, 0.4, 0.1], [1, 1, 0]), [0, 1])
    >>> [point.threshold for point in points]
    [0.4, 0.1]
  """
  num_genuine, num_impostors = int(true_accepts[-1]), int(false_accepts[-1])
  chosen = _chosen(false_accepts / num_impostors, fars, rule)
  points = []
  for target, k in zip(fars, chosen, strict=True):
    false, true, target = (
      int(false_accepts[k]),
      int(true_accepts[k]),
      float(target),
    )
    points.append(
      OperatingPoint(
        far_target=target,
        far=false / num_impostors,
        # The true FAR of a threshold that lies between two impostor scores,
        # chosen by their ranks, has the distributions that mid-P averages.
        far_interval=intervals.mid_p_interval(false, num_impostors),
        tar=true / num_genuine,
        tar_interval=intervals.tar_interval(
          false_accepts, true_accepts, target
        ),
        threshold=float(thresholds[k]),
        threshold_interval=intervals.threshold_interval(
          false_accepts, thresholds, target
        ),
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


def area_under_curve(
  false_accepts: np.ndarray, true_accepts: np.ndarray
) -> float:
  """Computes the area under the curve of TAR over FAR.

  It is the chance that a genuine pair scores higher than an impostor pair;
  equal scores count one half.

  Args:
    false_accepts: number of impostor pairs accepted, int64, from `curve`,
      ``[K]``.
    true_accepts: number of genuine pairs accepted, int64, ``[K]``.

  Returns:
    The area, in [0, 1].

  Examples:
    >>> false_accepts, true_accepts, _ = curve([0.9, 0.4, 0.4], [1, 1, 0])
    >>> area_under_curve(false_accepts, true_accepts)
    0.75
  """
  # In whole numbers, without rounding before the end.
  heights = true_accepts[1:] + true_accepts[:-1]
  doubled = int(np.diff(false_accepts) @ heights)
  return doubled / (2 * int(false_accepts[-1]) * int(true_accepts[-1]))


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


def checked_fars(far: float | Sequence[float]) -> np.ndarray:
  """Checks targets of FAR.

  Args:
    far: target or targets, scalar or ``[F]``.

  Returns:
    The targets, float64, of the same shape.

  Raises:
    InputError: if one lies outside [0, 1].

  Examples:
    >>> print(checked_fars([1e-2, 1e-3]))
    [0.01  0.001]
  """
  fars = np.asarray(far, np.float64)
  if not ((fars >= 0) & (fars <= 1)).all():
    raise InputError(f'far={far} is not a rate; expected values in [0, 1]')
  return fars


def _chosen(
  curve_far: np.ndarray, far: float | Sequence[float], rule: str
) -> np.ndarray:
  """Finds the point of a ROC curve that the rule chooses for each target."""
  far = checked_fars(far)
  within = np.searchsorted(curve_far, far, side='right') - 1
  if rule == 'exact':
    return within
  if rule != 'published':
    raise InputError(
      f"rule={rule!r} is no rule; choose 'exact', FAR never above its target,"
      " or 'published', the nearest FAR"
    )
  beyond = curve_far[np.minimum(within + 1, len(curve_far) - 1)]
  is_nearer = np.abs(beyond - far) <= np.abs(curve_far[within] - far)
  nearest = np.where(is_nearer, beyond, curve_far[within])
  return np.searchsorted(curve_far, nearest, side='right') - 1


def _finite(value: float, is_measured: bool) -> float | None:
  return value if is_measured and math.isfinite(value) else None
