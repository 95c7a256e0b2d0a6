# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of the figures of an evaluation."""

from scipy import special


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
