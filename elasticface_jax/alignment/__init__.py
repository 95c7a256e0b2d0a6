# SPDX-License-Identifier: Apache-2.0
"""Alignment of faces: five landmarks to the template of 112x112.

- `similarity` fits the landmarks to `TEMPLATE`; `check` says whether they can
  be those of a face.
- `align` makes the aligned face, `warp` resamples by any transform.
- `read_landmarks` reads landmarks from a file.
- `alignment.source` reads photographs as aligned faces, and needs `data`; it is
  not imported here, so that the template costs NumPy and SciPy alone.
"""

from elasticface_jax.alignment.landmark_files import (
  Landmarks,
  landmark_table,
  read_landmarks,
)
from elasticface_jax.alignment.similarity import (
  NotAligned,
  check,
  face_size,
  residual,
  similarity,
)
from elasticface_jax.alignment.template import (
  POINTS,
  SIZE,
  TEMPLATE,
  from_68,
)
from elasticface_jax.alignment.warp import align, warp

__all__ = [
  'POINTS',
  'SIZE',
  'TEMPLATE',
  'Landmarks',
  'NotAligned',
  'align',
  'check',
  'face_size',
  'from_68',
  'landmark_table',
  'read_landmarks',
  'residual',
  'similarity',
  'warp',
]
