# SPDX-License-Identifier: Apache-2.0
"""Intervals, compared with distributions and with simulations."""

import pytest
from scipy import stats

from elasticface_jax import evaluation


def test_interval_has_the_published_limits():
  # The rule of three's exact form, and a textbook value (4 of 20).
  low, high = evaluation.binomial_interval(0, 100)
  assert low == 0.0
  assert high == pytest.approx(1 - 0.025 ** (1 / 100))
  assert evaluation.binomial_interval(100, 100) == pytest.approx((1 - high, 1))
  limits = evaluation.binomial_interval(4, 20)
  assert limits == pytest.approx((0.0573, 0.4366), abs=5e-5)


@pytest.mark.parametrize(('k', 'n'), [(1, 7), (3, 3000), (2999, 3000), (5, 9)])
def test_interval_leaves_half_the_rest_on_each_side(k, n):
  low, high = evaluation.binomial_interval(k, n, confidence=0.9)
  assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.05)
  assert stats.binom.cdf(k, n, high) == pytest.approx(0.05)
