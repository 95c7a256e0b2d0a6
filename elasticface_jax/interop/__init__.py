# SPDX-License-Identifier: Apache-2.0
"""Import and export of weights: PyTorch, ONNX, StableHLO."""

from elasticface_jax.interop.metadata import describe
from elasticface_jax.interop.torch_names import (
  from_torch,
  head_from_torch,
  left_aside,
  model_of,
  num_batches_tracked,
  to_torch,
)

__all__ = [
  'describe',
  'from_torch',
  'head_from_torch',
  'left_aside',
  'model_of',
  'num_batches_tracked',
  'to_torch',
]
