# SPDX-License-Identifier: Apache-2.0
r"""Confidence intervals of the figures of an evaluation.

None of them draws random numbers, so they are the same on every machine, and
none assumes a distribution of the scores. All of them assume that the pairs are
independent.

The intervals of a ROC curve follow from two facts. Let c be the threshold of
FAR f in the population. Of n impostor pairs, the number K that score c or more
is binomial with n trials and probability f, so c lies between the K-th and the
next highest impostor score. Of m genuine pairs, the number M that score c or
more is binomial with m trials, whose probability is the TAR. Averaged over K,
the beta distributions of the binomial limits become one distribution of the TAR
at FAR f, which contains the error of the threshold too.

Limits are *mid-P*: half of the conservative (Clopper-Pearson) distribution of
the lower limit and half of that of the upper limit. A conservative interval
contains the true value more often than it says where errors are few.

Shapes: K points of a ROC curve as counts, from ``rates.curve``: its first point
accepts no pair, its last one all of them.

References:
  Clopper and Pearson, Biometrika 26 (1934) 404. Lancaster, JASA 56 (1961) 223,
  for mid-P. DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837. Korn
  and Graubard, Survey Methodology 24 (1998) 193, for effective numbers of
  trials. Beran and Hall, J. R. Statist. Soc. B 55 (1993) 643, for interpolation
  between order statistics.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import special

# Each halves the bracket of a limit: it ends at a width of 1e-15.
_HALVINGS = 50
# Numbers of false accepts that an average is over, at most.
_MAX_COUNTS = 2000
# Errors in independent trials below which DeLong's variance is not relied on.
_FEW_ERRORS = 5


def binomial_interval(
  successes: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the exact (Clopper-Pearson) interval of a proportion.

  It contains the true value at least as often as it says, and more often where
  successes or failures are few: `mid_p_interval` is closer.

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


def mid_p_interval(
  successes: float, trials: float, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the mid-P interval of a proportion.

  It contains the true value about as often as it says: in the mean over the
  proportions, not for each of them, as `binomial_interval` guarantees.

  Args:
    successes: number of successes, in [0, ``trials``]; may be fractional.
    trials: number of independent trials, above 0; may be fractional.
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the proportion, in [0, 1].

  Examples:
    >>> low, high = mid_p_interval(0, 3000)  # The rule of three.
    >>> print(f'{low} to {high:.5f}')
    0.0 to 0.00100
  """
  rate_cdf = _mixture(np.ones(1), [successes], [successes], trials)
  return _limits(rate_cdf, confidence)


def accuracy_interval(
  accuracy: float, num_pairs: int, lost: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the interval of a cross-validated accuracy.

  The true value is the accuracy on new pairs, in the mean over thresholds that
  are chosen by as many pairs as a fold's is. It varies more from set to set
  than a share of independent trials: a fold with unusual pairs is judged at a
  threshold that was chosen without them. The squares of what the folds lose in
  this way are added to the binomial variance. Without them, the interval would
  contain the true value in 91 to 93 % of sets, instead of 95 %.

  Args:
    accuracy: mean accuracy of the folds, in [0, 1].
    num_pairs: number of pairs.
    lost: number of pairs of each fold that are judged wrongly at its threshold,
      beyond those at the threshold that is best for all pairs, ``[folds]``.
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the accuracy, in [0, 1].

  Examples:
    >>> low, high = accuracy_interval(0.99, 6000, np.array([0, 2, 0, 3, 0]))
    >>> print(f'{low:.4f} to {high:.4f}')
    0.9869 to 0.9925
  """
  single = accuracy * (1 - accuracy)
  trials = float(num_pairs)
  if single:
    trials = single / (single / num_pairs + np.sum(np.square(lost / num_pairs)))
  return mid_p_interval(accuracy * trials, trials, confidence)


def tar_interval(
  false_accepts: np.ndarray,
  true_accepts: np.ndarray,
  far: float,
  confidence: float = 0.95,
) -> tuple[float, float]:
  """Computes the interval of the TAR that belongs to a FAR.

  The true value is the TAR in the population at the threshold whose FAR in the
  population is ``far``. The error of estimating this threshold is included;
  that of a threshold set beforehand is `mid_p_interval`'s.

  Args:
    false_accepts: number of impostor pairs accepted at each point, int,
      ``[K]``.
    true_accepts: number of genuine pairs accepted at each point, int, ``[K]``.
    far: the FAR, in [0, 1].
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the TAR. The lower one is 0 where the threshold may
    lie above every impostor pair: for 95 %, with less than 3 / ``far`` of them.

  Examples:
    >>> false_accepts = np.append(0, np.arange(1001))
    >>> true_accepts = np.append(0, np.arange(9000, 10001))
    >>> low, high = tar_interval(false_accepts, true_accepts, 0.1)
    >>> print(f'{low:.4f} to {high:.4f}')
    0.9040 to 0.9158
    >>> low, high = tar_interval(false_accepts, true_accepts, 0.001)
    >>> print(f'{low:.4f} to {high:.4f}')
    0.0000 to 0.9056
  """
  true_accepts = np.asarray(true_accepts)
  counts, weights = _false_accepts_at(far, int(false_accepts[-1]))
  first, last = _gaps(false_accepts, counts)
  tar_cdf = _mixture(
    weights, true_accepts[first], true_accepts[last], int(true_accepts[-1])
  )
  return _limits(tar_cdf, confidence)


def threshold_interval(
  false_accepts: np.ndarray,
  thresholds: np.ndarray,
  far: float,
  confidence: float = 0.95,
) -> tuple[float, float]:
  """Computes the interval of the threshold that belongs to a FAR.

  The true value is the score that a share ``far`` of all impostor pairs of the
  population reach. Limits are scores of impostor pairs, chosen by their rank,
  or lie between two neighbours.

  Args:
    false_accepts: number of impostor pairs accepted at each point, int,
      ``[K]``.
    thresholds: the lowest score accepted at each point, falling, ``[K]``.
    far: the FAR, in [0, 1].
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the threshold. With less than 3 / ``far`` impostor
    pairs the upper one is infinite for 95 %. With up to 3.7 / ``far`` it is the
    highest impostor score, which is too low in more than 2.5 % of all cases;
    the lower limit is too high in the rest of the 5 %.

  Examples:
    >>> scores = np.arange(1000, 0, -1) / 1000
    >>> low, high = threshold_interval(np.arange(1001),
    ...                                np.append(np.inf, scores), 0.1)
    >>> print(f'{low:.3f} to {high:.3f}')
    0.882 to 0.919
  """
  thresholds = np.asarray(thresholds)
  counts, weights = _false_accepts_at(far, int(false_accepts[-1]))
  at_most, at_least = np.cumsum(weights), np.cumsum(weights[::-1])[::-1]
  tail = (1 - confidence) / 2
  none = at_most[0] if counts[0] == 0 else 0.0
  every = at_least[-1] if counts[-1] == false_accepts[-1] else 0.0

  def score(rank: float) -> float:
    """Returns the impostor score of this rank; 1 is the highest."""
    rank = max(rank, 1.0)
    whole = int(rank)
    upper, lower = thresholds[
      np.searchsorted(false_accepts, [whole, min(whole + 1, counts[-1])])
    ]
    return float(upper + (rank - whole) * (lower - upper))

  low, high = -math.inf, math.inf
  if none <= 2 * tail:
    # Lower than the score of rank r, where less than r pairs reach it.
    upper_tail = max(tail, none)
    high = score(np.interp(upper_tail, at_most, counts + 1))
    lower_tail = 2 * tail - upper_tail
  else:
    lower_tail = 2 * tail
  if every <= lower_tail:
    low = score(np.interp(lower_tail, at_least[::-1], counts[::-1]))
  return low, high


def equal_error_interval(
  false_accepts: np.ndarray, true_accepts: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the interval of the equal error rate.

  The rate is p or more where the TAR that belongs to FAR p is 1 - p or less, so
  a limit is the p at which 1 - p is a limit of this TAR.

  Args:
    false_accepts: number of impostor pairs accepted at each point, int,
      ``[K]``.
    true_accepts: number of genuine pairs accepted at each point, int, ``[K]``.
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the rate, in [0, 1].

  Examples:
    >>> low, high = equal_error_interval([0, 3, 300], [0, 297, 300])
    >>> print(f'{low:.4f} to {high:.4f}')
    0.0050 to 0.0285
  """
  false_accepts = np.asarray(false_accepts)
  true_accepts = np.asarray(true_accepts)
  num_genuine, tail = int(true_accepts[-1]), (1 - confidence) / 2

  def chance_of_more(rate: float) -> float:
    counts, weights = _false_accepts_at(rate, int(false_accepts[-1]))
    first, last = _gaps(false_accepts, counts)
    # Among equal scores the curve is a straight line, as for the rate itself.
    after = np.minimum(last + 1, len(false_accepts) - 1)
    inside = counts - false_accepts[last]
    among = np.maximum(false_accepts[after] - false_accepts[last], 1)
    share = inside / among * (true_accepts[after] - true_accepts[last])
    fewest = true_accepts[first] + share
    tar_cdf = _mixture(weights, fewest, true_accepts[last] + share, num_genuine)
    return tar_cdf(1 - rate)

  low, _ = _bisect(lambda rate: chance_of_more(rate) > 1 - tail)
  _, high = _bisect(lambda rate: chance_of_more(rate) > tail)
  return low, high


def auc_interval(
  false_accepts: np.ndarray, true_accepts: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes the interval of the area under a ROC curve.

  The area is a proportion: of the comparisons of a genuine with an impostor
  pair, those that the genuine pair wins. DeLong's variance says of how many
  independent trials. The limit on the far side, for an area near 1 the lower
  one, allows for one more pair as bad as the worst, since the sum of a few
  large errors is skewed. Where the errors weigh less than five independent
  ones, that is not enough: then each pair of the rarer kind is one trial, and
  the interval contains the true value more often than it says.

  Args:
    false_accepts: number of impostor pairs accepted at each point, int,
      ``[K]``.
    true_accepts: number of genuine pairs accepted at each point, int, ``[K]``.
    confidence: probability that the interval contains the true value.

  Returns:
    Lower and upper limit of the area, in [0, 1].

  Examples:
    >>> low, high = auc_interval([0, 30, 300], [0, 270, 300])
    >>> print(f'{low:.3f} to {high:.3f}')
    0.873 to 0.922
  """
  false_accepts = np.asarray(false_accepts, np.float64)
  true_accepts = np.asarray(true_accepts, np.float64)
  impostors, genuine = np.diff(false_accepts), np.diff(true_accepts)
  num_impostors, num_genuine = false_accepts[-1], true_accepts[-1]
  # The share of the other kind that a pair of each score loses against.
  of_genuine = (false_accepts[:-1] + impostors / 2) / num_impostors
  of_impostors = 1 - (true_accepts[:-1] + genuine / 2) / num_genuine
  error = float(genuine @ of_genuine / num_genuine)
  if error > 0.5:  # The rarer outcome is the error.
    low, high = auc_interval(true_accepts, false_accepts, confidence)
    return 1 - high, 1 - low

  variance = _variance(of_genuine, genuine) + _variance(of_impostors, impostors)
  if error**2 < _FEW_ERRORS * variance or variance == 0:
    trials = min(num_genuine, num_impostors)
    low, high = mid_p_interval(error * trials, trials, confidence)
    return 1 - high, 1 - low
  trials = error * (1 - error) / variance
  low, _ = mid_p_interval(error * trials, trials, confidence)
  worst = max(
    of_genuine[genuine > 0].max() / num_genuine,
    of_impostors[impostors > 0].max() / num_impostors,
  )
  error += worst
  trials = error * (1 - error) / (variance + worst**2)
  high = special.betaincinv(
    error * trials, (1 - error) * trials, (1 + confidence) / 2
  )
  return 1 - float(high), 1 - low


def _variance(errors: np.ndarray, pairs: np.ndarray) -> float:
  """Estimates the variance of a mean error; infinite for a single pair."""
  num_pairs = pairs.sum()
  if num_pairs == 1:
    return math.inf
  mean = errors @ pairs / num_pairs
  return float((errors - mean) ** 2 @ pairs / (num_pairs - 1) / num_pairs)


def _false_accepts_at(
  far: float, num_impostors: int
) -> tuple[np.ndarray, np.ndarray]:
  """Computes how many impostors reach the threshold of a FAR, and how likely.

  Counts without weight are left out, and where there are many, all but a
  regular share of the others.
  """
  reach = 7 * math.sqrt(num_impostors * far * (1 - far)) + 20
  lowest = max(0, math.floor(num_impostors * far - reach))
  highest = min(num_impostors, math.ceil(num_impostors * far + reach))
  step = 1 + (highest - lowest) // _MAX_COUNTS
  counts = np.arange(lowest, highest + 1, step)
  others = num_impostors - counts
  logs = (
    special.xlogy(counts, far)
    + special.xlog1py(others, -far)
    - special.gammaln(counts + 1)
    - special.gammaln(others + 1)
  )
  weights = np.exp(logs - logs.max())
  return counts, weights / weights.sum()


def _gaps(
  false_accepts: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the first and the last point with each number of false accepts.

  Where equal scores leave no such point, both are the last one with less.
  """
  last = np.searchsorted(false_accepts, counts, side='right') - 1
  return np.minimum(np.searchsorted(false_accepts, counts), last), last


def _mixture(
  weights: np.ndarray, fewest: np.ndarray, most: np.ndarray, trials: float
) -> Callable[[float], float]:
  """Averages mid-P distributions of a proportion; returns the cumulative one.

  Args:
    weights: weight of each, sum 1, ``[C]``.
    fewest: successes for the lower limit, ``[C]``.
    most: successes for the upper limit, ``[C]``.
    trials: number of trials.
  """
  successes = np.append(fewest, np.add(most, 1)).astype(np.float64)
  # Most counts of false accepts share a number of successes.
  successes, place = np.unique(successes, return_inverse=True)
  weights = np.bincount(place, np.append(weights, weights) / 2)
  failures = trials + 1 - successes

  def cdf(rate: float) -> float:
    inner = special.betainc(
      np.maximum(successes, 1e-300), np.maximum(failures, 1e-300), rate
    )
    # No success: all mass is at 0. No failure: all of it is at 1.
    inner = np.where(successes <= 0, 1.0, np.where(failures <= 0, 0.0, inner))
    return float(weights @ inner)

  return cdf


def _limits(
  cdf: Callable[[float], float], confidence: float
) -> tuple[float, float]:
  """Finds the limits that leave half of the rest on each side."""
  tail = (1 - confidence) / 2
  low, _ = _bisect(lambda rate: cdf(rate) < tail)
  _, high = _bisect(lambda rate: cdf(rate) < 1 - tail)
  return low, high


def _bisect(is_below: Callable[[float], bool]) -> tuple[float, float]:
  """Encloses the rate in [0, 1] up to which ``is_below`` is true."""
  low, high = 0.0, 1.0
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    if is_below(middle):
      low = middle
    else:
      high = middle
  return low, high
