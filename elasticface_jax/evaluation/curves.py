# SPDX-License-Identifier: Apache-2.0
"""ROC curves with their bands, and histograms of scores, small enough to draw.

Shapes: N pairs, P points of a curve, K bins. Every figure of a list of scores,
as a picture file or in a report, is drawn from these.
"""

import dataclasses
import math

import numpy as np

from elasticface_jax.evaluation import intervals, rates

# No figure shows more points along a logarithmic axis.
_POINTS = 600
# The band is computed at the first points, where it jumps, and at about so many
# others; between them it is interpolated. A limit takes a millisecond and more.
_FIRST, _BAND_POINTS = 10, 80
# Bins between the lowest and the highest score.
_FEWEST, _MOST = 8, 200


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """Some points of an exact ROC curve, and the band of each.

  No point is interpolated: each is TAR and FAR of one threshold. The band is
  the 95 % interval of the TAR at this FAR, of `intervals.tar_interval`.

  Attributes:
    far: false accept rate (FMR), rising, float64, ``[P]``. It begins with the
      last point at or below 1 / ``num_impostors``, the lowest FAR that can be
      measured, which may be 0.
    tar: true accept rate at ``far``, float64, ``[P]``. FNMR is ``1 - tar``.
    tar_low: lower limit of ``tar``, float64, ``[P]``.
    tar_high: upper limit of ``tar``, float64, ``[P]``.
    thresholds: score from which on a point accepts, float64, ``[P]``; infinite
      where it accepts nothing.
    num_genuine: number of genuine pairs.
    num_impostors: number of impostor pairs.
  """

  far: np.ndarray
  tar: np.ndarray
  tar_low: np.ndarray
  tar_high: np.ndarray
  thresholds: np.ndarray
  num_genuine: int
  num_impostors: int

  @property
  def lowest_far(self) -> float:
    """The lowest FAR that can be measured."""
    return 1 / self.num_impostors

  def at(self, far: float) -> int:
    """Returns the index of the last point whose FAR is at most ``far``.

    For ``far`` of 1, 0.1, 0.01, ... from `lowest_far` on, that is the last one
    of the whole curve too.
    """
    return int(np.searchsorted(self.far, far, side='right')) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
  """Numbers of scores in bins of equal width, for each kind of pair.

  Attributes:
    edges: of the bins, rising, float64, ``[K + 1]``; multiples of the width.
    genuine: number of genuine pairs in each bin, int, ``[K]``.
    impostor: number of impostor pairs in each bin, int, ``[K]``.
  """

  edges: np.ndarray
  genuine: np.ndarray
  impostor: np.ndarray

  @property
  def width(self) -> float:
    """Width of a bin, in the unit of the scores."""
    return float(self.edges[1] - self.edges[0])


def curve(scores: np.ndarray, same: np.ndarray) -> Curve:
  """Computes a ROC curve, and thins it to points that a figure can show.

  The points are the last ones within each of some hundred rates, evenly spaced
  in their logarithm, from 1 / number of impostor pairs to 1.

  Args:
    scores: score of each pair, higher = more alike, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.

  Returns:
    The points.

  Raises:
    InputError: as `evaluation.roc`, among others if all pairs are of one kind.

  Examples:
    >>> found = curve([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0])
    >>> print(found.far, found.tar, found.thresholds)
    [0.5 1. ] [1. 1.] [0.4 0.1]
    >>> print(found.tar_low.round(3), found.tar_high.round(3))
    [0.    0.224] [1. 1.]
  """
  false_accepts, true_accepts, thresholds = rates.curve(scores, same)
  num_genuine, num_impostors = int(true_accepts[-1]), int(false_accepts[-1])
  far = false_accepts / num_impostors
  decades = 10.0 ** -np.arange(math.log10(num_impostors) // 1 + 1)
  grid = np.geomspace(1 / num_impostors, 1, _POINTS)
  grid = np.union1d(grid, [float(f'{rate:.0e}') for rate in decades])
  picked = np.unique(np.searchsorted(far, grid, side='right') - 1)
  low, high = _band(false_accepts, true_accepts, far[picked])
  return Curve(
    far=far[picked],
    tar=true_accepts[picked] / num_genuine,
    tar_low=low,
    tar_high=high,
    thresholds=thresholds[picked],
    num_genuine=num_genuine,
    num_impostors=num_impostors,
  )


def _band(
  false_accepts: np.ndarray, true_accepts: np.ndarray, far: np.ndarray
) -> np.ndarray:
  """Computes the lower and the upper limit of TAR at rising rates."""
  step = max(1, len(far) // _BAND_POINTS)
  nodes = np.union1d(
    np.arange(min(_FIRST, len(far))), np.arange(len(far) - 1, 0, -step)
  )
  limits = [
    intervals.tar_interval(false_accepts, true_accepts, far[k]) for k in nodes
  ]
  return np.array(
    [
      np.interp(np.arange(len(far)), nodes, side)
      for side in np.transpose(limits)
    ]
  )


def histogram(
  scores: np.ndarray, same: np.ndarray, *, width: float | None = None
) -> Histogram:
  """Counts scores in bins that are as wide as the number of pairs allows.

  The width is 1, 2 or 5 times a power of ten: the one nearest to Scott's rule
  for the kind that has the narrower bins.

  Args:
    scores: finite score of each pair, any float dtype, ``[N]``.
    same: whether the pair is genuine, bool or 0 and 1, ``[N]``.
    width: of a bin, such as that of another network's scores; None for the rule
      above.

  Returns:
    The counts of both kinds, in the same bins.

  Examples:
    >>> found = histogram([0.9, 0.5, 0.3, -0.1], [1, 1, 0, 0])
    >>> print(found.edges.round(9))
    [-0.1  0.   0.1  0.2  0.3  0.4  0.5  0.6  0.7  0.8  0.9  1. ]
    >>> print(found.genuine, found.impostor)
    [0 0 0 0 0 0 1 0 0 0 1] [1 0 0 0 1 0 0 0 0 0 0]
  """
  scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
  kinds = [scores[same], scores[~same]]
  width = width or _bin_width([kind for kind in kinds if len(kind)])
  # A score on an edge belongs to the bin above it; rounding must not move it.
  first, last = (math.floor(f(scores) / width + 1e-9) for f in (np.min, np.max))
  edges = np.arange(first, last + 2) * width
  place = np.floor(scores / width + 1e-9).astype(int) - first
  genuine, impostor = (
    np.bincount(place[kind], minlength=len(edges) - 1) for kind in (same, ~same)
  )
  return Histogram(edges, genuine, impostor)


def _bin_width(kinds: list[np.ndarray]) -> float:
  """Chooses the width of a bin by Scott's rule, from the smaller kind."""
  width = min(3.49 * np.std(x) * len(x) ** (-1 / 3) for x in kinds)
  span = max(x.max() for x in kinds) - min(x.min() for x in kinds)
  width = min(max(width, span / _MOST), span / _FEWEST) or 0.1
  power = 10.0 ** math.floor(math.log10(width))
  near = min((1, 2, 5, 10), key=lambda k: abs(math.log(k * power / width)))
  return float(f'{near * power:.0e}')
