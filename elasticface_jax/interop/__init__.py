# SPDX-License-Identifier: Apache-2.0
"""Import and export of weights: PyTorch, ONNX, StableHLO."""

from elasticface_jax.interop.families import FAMILIES
from elasticface_jax.interop.metadata import describe
from elasticface_jax.interop.onnx_weights import from_onnx
from elasticface_jax.interop.torch_heads import head_from_torch
from elasticface_jax.interop.torch_names import (
  folded,
  from_torch,
  identify,
  left_aside,
  model_of,
  num_batches_tracked,
  original_tensors,
  own_tensors,
  to_torch,
)

__all__ = [
  'FAMILIES',
  'describe',
  'folded',
  'from_onnx',
  'from_torch',
  'head_from_torch',
  'identify',
  'left_aside',
  'model_of',
  'num_batches_tracked',
  'original_tensors',
  'own_tensors',
  'to_torch',
]
