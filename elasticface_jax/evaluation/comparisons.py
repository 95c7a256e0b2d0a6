# SPDX-License-Identifier: Apache-2.0
r"""Comparisons of two ways to train, each with several seeds on the same pairs.

Every network scores the same pairs, and the networks of one seed share initial
weights, order and augmentation. A difference of two configs therefore varies
for three reasons: the seed, the pairs, and their interaction. With S seeds and
N pairs,

.. math::
  d_{si} = \Delta + a_s + b_i + e_{si}, \qquad
  \operatorname{Var} \bar d =
    \frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{N} + \frac{\sigma_e^2}{SN}.

`seed_mean` estimates that variance and an interval for new seeds and new pairs.
`sign_flip_test` asks whether the seeds at hand could have given this difference
by chance, on these pairs.

Shapes: S seeds, R replicates (resampled pairs), from ``resampling``.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from elasticface_jax.errors import InputError

# All flips of so many seeds are sums of two halves, of a million flips each.
_MOST_SEEDS = 40
# Flips drawn for more seeds.
_DRAWN_FLIPS = 2**17
# Sums that differ by less than this share of their size are equal: differences
# are ratios of counts, and sums of them round.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class SignFlipTest:
  """Result of `sign_flip_test`.

  Attributes:
    p: the mid-p value, two-sided.
    p_exact: the p value that never rejects more often than it says.
    p_smallest: the smallest mid-p value that so many seeds can give.
    num_flips: number of flips counted.
  """

  p: float
  p_exact: float
  p_smallest: float
  num_flips: int


@dataclasses.dataclass(frozen=True)
class SeedMean:
  """Mean of a figure over seeds, and how well new ones would repeat it.

  None stands where one seed, or figures that do not vary at all, tell nothing.

  Attributes:
    mean: over the seeds.
    num_seeds: number of seeds, S.
    std: standard deviation over the seeds, S - 1 in the denominator.
    std_error_seeds: the part of the standard error that more seeds reduce.
    std_error_pairs: the part that only more pairs reduce.
    std_error_fixed: the standard error for new pairs and these very networks.
    std_error: of the mean, for new seeds and new pairs.
    interval: lower and upper limit of the expected figure.
  """

  mean: float
  num_seeds: int
  std: float | None
  std_error_seeds: float | None
  std_error_pairs: float | None
  std_error_fixed: float | None
  std_error: float | None
  interval: tuple[float, float] | None

  def detectable(self, level: float = 0.05, power: float = 0.8) -> float | None:
    """Returns the smallest true mean that such a study would tell from zero.

    It is about ``std_error`` times the sum of two quantiles, those of
    ``1 - level/2`` and of ``power``, and as uncertain as ``std_error``: with
    five seeds it may well be a third too small or too large.

    Args:
      level: share of false findings, two-sided, in (0, 1).
      power: share of studies whose interval at ``1 - level`` excludes zero.

    Returns:
      The difference, in the unit of the mean; None without a standard error.

    Examples:
      >>> f'{seed_mean([0.01, 0.02, 0.00, 0.01, 0.02]).detectable():.4f}'
      '0.0139'
    """
    if self.std_error is None:
      return None
    parts = self.std_error_seeds, self.std_error_pairs, self.std_error_fixed
    return sum(
      _reach(probability, *parts, self.num_seeds)
      for probability in (1 - level / 2, power)
    )


def seed_mean(
  values: np.ndarray | Sequence[float],
  replicates: np.ndarray | None = None,
  confidence: float = 0.95,
) -> SeedMean:
  r"""Computes a mean over seeds with an interval for new seeds and new pairs.

  The variance between seeds, divided by S, estimates
  :math:`\sigma_a^2/S + \sigma_e^2/(SN)`. The variance of the resampled mean
  estimates :math:`\sigma_b^2/N + \sigma_e^2/(SN)`; the interaction, counted
  twice, is estimated by the variance between seeds of the resampled figures
  and subtracted. This is the analysis of variance of a crossed design; by
  resampling, it serves figures that are no means over pairs too.

  Degrees of freedom belong to the part of the seeds alone. The interval is the
  mean ± the standard error times a weighted mean of two quantiles, Student's t
  with S - 1 degrees and the normal one, weighted by their variances. It is
  never narrower than the one for new pairs and these very networks, as it might
  be where few seeds happen to agree.

  For figures that are normal, coverage is 95 % where one part dominates, up to
  97 % between, and up to 98 % (99 % with three seeds) where the networks of a
  config do not differ in the mean. Satterthwaite's degrees of freedom would
  give 92 % with three seeds.

  Args:
    values: the figure of each seed, or the difference of two configs, ``[S]``.
    replicates: the figures of each seed on resampled pairs, the same pairs for
      all seeds, ``[R, S]``. None where every seed has pairs of its own: then
      the variance between seeds holds theirs.
    confidence: probability that the interval contains the expected figure.

  Returns:
    Mean, standard errors and interval.

  Raises:
    InputError: if there is no value, one is not finite, or the shapes disagree.

  Examples:
    >>> found = seed_mean([0.01, 0.02, 0.00, 0.01, 0.02])
    >>> print(f'{found.mean:.3f} ± {found.std_error:.4f}')
    0.012 ± 0.0037
    >>> print('{:.4f} to {:.4f}'.format(*found.interval))
    0.0016 to 0.0224

  References:
    Cornfield and Tukey, Ann. Math. Statist. 27 (1956) 907, for the expected
    mean squares. Cochran and Cox, Experimental Designs (1957), 4.14, for the
    weighted quantile. Owen, Ann. Appl. Stat. 1 (2007) 386: resampling both
    seeds and pairs counts the interaction three times, and few seeds too
    rarely.
  """
  values = _checked(values)
  num_seeds, mean = len(values), float(np.mean(values))
  if num_seeds == 1:
    return SeedMean(mean, 1, *[None] * 6)
  std = float(np.std(values, ddof=1))
  seeds, pairs, fixed = std / math.sqrt(num_seeds), 0.0, 0.0
  if replicates is not None:
    replicates = np.asarray(replicates, np.float64)
    pairs, fixed = _errors_of_pairs(replicates, num_seeds)
  error = max(math.hypot(seeds, pairs), fixed)
  # Of equal values, rounding may leave a deviation.
  if error <= _ROUNDING * np.abs(values).max():
    return SeedMean(mean, num_seeds, 0.0, 0.0, 0.0, 0.0, None, None)
  parts = seeds, pairs, fixed
  reach = _reach((1 + confidence) / 2, *parts, num_seeds)
  limits = mean - reach, mean + reach
  return SeedMean(mean, num_seeds, std, *parts, error, limits)


def sign_flip_test(
  differences: np.ndarray | Sequence[float],
) -> SignFlipTest:
  """Tests whether two configs give one distribution of networks.

  If they do, the two networks of a seed may be swapped, which flips the sign of
  its difference. The p value is the share of all 2^S flips whose sum is at
  least as far from zero as the observed one. Nothing else is assumed; networks
  of one seed may be alike. It speaks of the pairs at hand, not of new ones:
  that is the interval of `seed_mean`.

  Of flips that are exactly as far as the observed one, the mid-p value counts
  half. At 5 % it rejects 6.2 % of true hypotheses with 5 and 6 seeds, 4.7 %
  with 7 and 8, 5 % with 10 and more; less if differences are tied. The exact
  value never rejects more than it says, and with 5 seeds never at all: it is
  at least 2/2^S, the mid-p value at least 1/2^S.

  Args:
    differences: second config minus first, for each seed, ``[S]``. With more
      than 40 seeds, 131,072 flips are drawn with a fixed key.

  Returns:
    Both p values and the smallest possible one.

  Raises:
    InputError: if there is no difference, or one is not finite.

  Examples:
    >>> test = sign_flip_test([0.01, 0.02, 0.005, 0.01, 0.02])
    >>> test.p, test.p_exact, test.p_smallest
    (0.03125, 0.0625, 0.03125)
    >>> sign_flip_test([0.01, -0.01, 0.0, 0.01, 0.0]).p
    0.625

  References:
    Fisher, The Design of Experiments (1935), section 21. Lancaster, JASA 56
    (1961) 223, for mid-p. Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9
    (2010) 39: of drawn flips, the observed one is counted too.
  """
  differences = _checked(differences)
  observed = abs(float(differences.sum()))
  tie = _ROUNDING * float(np.abs(differences).sum())
  count = _all_beyond if len(differences) <= _MOST_SEEDS else _drawn_beyond
  farther, num_flips = count(differences, observed + tie)
  # Everything is as far as zero.
  reached = num_flips
  if observed > tie:
    reached, _ = count(differences, observed - tie)
  return SignFlipTest(
    p=(farther + reached) / 2 / num_flips,
    p_exact=reached / num_flips,
    p_smallest=smallest_p(len(differences)),
    num_flips=num_flips,
  )


def smallest_p(num_seeds: int) -> float:
  """Returns the smallest mid-p value of `sign_flip_test`.

  Args:
    num_seeds: number of seeds, S.

  Returns:
    1/2^S, as long as all flips are counted.

  Examples:
    >>> smallest_p(5), smallest_p(7)
    (0.03125, 0.0078125)
  """
  if num_seeds <= _MOST_SEEDS:
    return 0.5**num_seeds
  return 0.5 / (_DRAWN_FLIPS + 1)


def seeds_needed(num_comparisons: int, level: float = 0.05) -> int:
  """Computes with how many seeds Holm's correction leaves a p below a level.

  With fewer, no difference is large enough for `sign_flip_test`: not for its
  mid-p value if there is one comparison, and not for the exact one after `holm`
  if there are more, unless others are rejected first. `closed_test` needs five
  for any number.

  Args:
    num_comparisons: number of comparisons, at least 1.
    level: share of studies with a false finding, in (0, 1).

  Returns:
    The number of seeds, S.

  Examples:
    >>> [seeds_needed(number) for number in (1, 3, 6, 10)]
    [5, 7, 8, 9]
  """
  flips = num_comparisons / level
  return math.ceil(math.log2(flips if num_comparisons == 1 else 2 * flips))


def mid_p(statistics: np.ndarray, observed: float, scale: float) -> float:
  """Computes the share of a distribution beyond a value, ties counted half.

  Args:
    statistics: the distribution, float, ``[M]``.
    observed: the value.
    scale: size of the numbers that were summed; sums of them round.

  Returns:
    The share, in [0, 1].

  Examples:
    >>> mid_p(np.array([1.0, 2.0, 3.0, 3.0]), 2.0, 3.0)
    0.625
  """
  tie = _ROUNDING * scale
  farther = np.count_nonzero(statistics > observed + tie)
  equal = np.count_nonzero(statistics >= observed - tie) - farther
  return float((farther + equal / 2) / len(statistics))


def _checked(values: np.ndarray | Sequence[float]) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
    raise InputError(
      f'values of shape {values.shape} are not a finite one for each seed'
    )
  return values


def _all_beyond(differences: np.ndarray, limit: float) -> tuple[int, int]:
  """Counts the flips whose sum is farther from zero than a limit, and all."""
  half = len(differences) // 2
  first = _flipped_sums(differences[:half])
  second = np.sort(_flipped_sums(differences[half:]))
  above = len(second) - np.searchsorted(second, limit - first, side='right')
  below = np.searchsorted(second, -limit - first)
  return int(above.sum() + below.sum()), len(first) * len(second)


def _flipped_sums(differences: np.ndarray) -> np.ndarray:
  """Computes the sums of all flips."""
  sums = np.zeros(1)
  for difference in differences:
    sums = np.concatenate([sums + difference, sums - difference])
  return sums


def _drawn_beyond(differences: np.ndarray, limit: float) -> tuple[int, int]:
  """Counts as `_all_beyond`, of drawn flips and the observed one."""
  shape = _DRAWN_FLIPS, len(differences)
  draws = np.random.default_rng(0).integers(2, size=shape, dtype=np.int8)
  sums = np.append((2.0 * draws - 1) @ differences, differences.sum())
  return int(np.count_nonzero(np.abs(sums) > limit)), len(sums)


def _errors_of_pairs(
  replicates: np.ndarray, num_seeds: int
) -> tuple[float, float]:
  """Estimates what pairs add to the error of the seeds, and their own."""
  if replicates.ndim != 2 or replicates.shape[1] != num_seeds:
    raise InputError(
      f'replicates have shape {replicates.shape}; expected [R, {num_seeds}]'
    )
  centered = replicates - replicates.mean(axis=0)
  means = centered.mean(axis=1)
  denominator = len(replicates) - 1
  of_mean = float(np.square(means).sum() / denominator)
  interaction = np.square(centered - means[:, None]).sum() / (
    denominator * num_seeds * (num_seeds - 1)
  )
  added = max(of_mean - float(interaction), 0.0)
  return math.sqrt(added), math.sqrt(of_mean)


def _reach(
  probability: float, seeds: float, pairs: float, fixed: float, num_seeds: int
) -> float:
  """Computes a quantile of the error of a mean, from its standard errors."""
  normal = special.ndtri(probability)
  error = math.hypot(seeds, pairs)
  if error:
    student = special.stdtrit(num_seeds - 1, probability)
    error = (seeds**2 * student + pairs**2 * normal) / error
  return float(max(error, fixed * normal))
