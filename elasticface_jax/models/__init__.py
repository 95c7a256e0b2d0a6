# SPDX-License-Identifier: Apache-2.0
"""Backbones: pure functions from images to embeddings, over plain dicts."""

from elasticface_jax import missing

with missing.needs(__name__):
  from elasticface_jax.models.backbone import (
    STAGES,
    VITS,
    Backbone,
    build,
    stages_of,
  )

__all__ = ['STAGES', 'VITS', 'Backbone', 'build', 'stages_of']
