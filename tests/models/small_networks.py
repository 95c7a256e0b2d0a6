# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT with every kind of layer, but few of them."""

import contextlib
from collections.abc import Iterator

import pytest

from elasticface_jax import models
from elasticface_jax.models import mobilefacenet

NAMES = 'mobilefacenet', 'vit_t'
DEPTH = 2


@contextlib.contextmanager
def few_layers() -> Iterator[None]:
  """Shortens both networks, by their names in `models.build`."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mobilefacenet, 'BLOCKS', (1, 1, 0))
    patch.setitem(models.VITS, 'vit_t', (DEPTH, models.VITS['vit_t'][1]))
    yield
