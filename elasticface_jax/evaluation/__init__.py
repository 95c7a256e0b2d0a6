# SPDX-License-Identifier: Apache-2.0
"""Measures of face verification, in numpy, on embeddings or on scores.

The figures are in ``elasticface_jax.evaluation.plots``, which needs matplotlib.
"""

from elasticface_jax.evaluation.verification import (
  OperatingPoint,
  Verification,
  binomial_interval,
  operating_points,
  roc,
  table,
  tar_at_far,
  threshold_at_far,
  verify,
)

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
