# SPDX-License-Identifier: Apache-2.0
"""Measures of face verification, in numpy, on embeddings or on scores.

The figures are in ``elasticface_jax.evaluation.plots``, which needs matplotlib.
"""

from elasticface_jax.evaluation.benchmark_tables import benchmark_table
from elasticface_jax.evaluation.comparisons import (
  SeedMean,
  SignFlipTest,
  seed_mean,
  seeds_needed,
  sign_flip_test,
)
from elasticface_jax.evaluation.corrections import (
  MOST_CONFIGS,
  closed_test,
  holm,
)
from elasticface_jax.evaluation.identification import (
  Identification,
  Search,
  identify,
)
from elasticface_jax.evaluation.ijb import (
  TemplateVerification,
  evaluate_ijb,
)
from elasticface_jax.evaluation.ijb_files import IJB, TemplateList, read_ijb
from elasticface_jax.evaluation.intervals import binomial_interval
from elasticface_jax.evaluation.megaface import (
  MegaFacePoint,
  MegaFaceResult,
  evaluate_megaface,
)
from elasticface_jax.evaluation.megaface_files import (
  MegaFace,
  read_feature,
  read_features,
  read_megaface,
)
from elasticface_jax.evaluation.rates import (
  OperatingPoint,
  operating_points,
  roc,
  tar_at_far,
  threshold_at_far,
)
from elasticface_jax.evaluation.resampling import (
  resample,
  resampled_accuracy,
  resampled_rates,
)
from elasticface_jax.evaluation.tables import table, tables
from elasticface_jax.evaluation.templates import pool_templates, template_scores
from elasticface_jax.evaluation.tinyface import (
  TinyFace,
  evaluate_tinyface,
  read_tinyface,
)
from elasticface_jax.evaluation.verification import (
  Verification,
  correct_pairs,
  verify,
)

__all__ = [
  'IJB',
  'MOST_CONFIGS',
  'Identification',
  'MegaFace',
  'MegaFacePoint',
  'MegaFaceResult',
  'OperatingPoint',
  'Search',
  'SeedMean',
  'SignFlipTest',
  'TemplateList',
  'TemplateVerification',
  'TinyFace',
  'Verification',
  'benchmark_table',
  'binomial_interval',
  'closed_test',
  'correct_pairs',
  'evaluate_ijb',
  'evaluate_megaface',
  'evaluate_tinyface',
  'holm',
  'identify',
  'operating_points',
  'pool_templates',
  'read_feature',
  'read_features',
  'read_ijb',
  'read_megaface',
  'read_tinyface',
  'resample',
  'resampled_accuracy',
  'resampled_rates',
  'roc',
  'seed_mean',
  'seeds_needed',
  'sign_flip_test',
  'table',
  'tables',
  'tar_at_far',
  'template_scores',
  'threshold_at_far',
  'verify',
]
