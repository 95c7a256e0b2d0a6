# SPDX-License-Identifier: Apache-2.0
"""Measures of face verification, in numpy, on embeddings or on scores.

The figures are in ``elasticface_jax.evaluation.plots``, which needs matplotlib.
"""

from elasticface_jax.evaluation.intervals import binomial_interval
from elasticface_jax.evaluation.rates import (
  OperatingPoint,
  operating_points,
  roc,
  tar_at_far,
  threshold_at_far,
)
from elasticface_jax.evaluation.tables import table
from elasticface_jax.evaluation.verification import Verification, verify

__all__ = [
  'OperatingPoint',
  'Verification',
  'binomial_interval',
  'operating_points',
  'roc',
  'table',
  'tar_at_far',
  'threshold_at_far',
  'verify',
]
