# SPDX-License-Identifier: Apache-2.0
"""Faces in: training sources, batches, and pairs for verification."""

from elasticface_jax.data.inspection import Report, inspect_pairs, inspect_rec
from elasticface_jax.data.pairs import (
  PairSet,
  open_pairs,
  read_pairs,
  write_pairs,
)
from elasticface_jax.data.pipeline import Batch, batch_indices, batches
from elasticface_jax.data.rec_source import RecSource
from elasticface_jax.data.recordio import write_rec_folder
from elasticface_jax.data.sources import Source, open_source
from elasticface_jax.data.synthetic import SyntheticFaces, synthetic_pairs

__all__ = [
  'Batch',
  'PairSet',
  'RecSource',
  'Report',
  'Source',
  'SyntheticFaces',
  'batch_indices',
  'batches',
  'inspect_pairs',
  'inspect_rec',
  'open_pairs',
  'open_source',
  'read_pairs',
  'synthetic_pairs',
  'write_pairs',
  'write_rec_folder',
]
