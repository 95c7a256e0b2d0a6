# SPDX-License-Identifier: Apache-2.0
"""PyTorch's embeddings equal ours, in every variant that is timed."""

import jax
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.benchmark.pytorch import embed as torch_embed
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.training.embed import make_embed
from elasticface_jax.training.state import make_mesh

torch = pytest.importorskip('torch')

MODEL = {'name': 'iresnet10', 'width': 16, 'embedding_dim': 16}


@pytest.mark.parametrize('channels_last', [False, True])
def test_embeddings_are_ours(channels_last):
  backbone = models.build(**MODEL)
  variables = backbone.init(jax.random.key(0))
  images = np.random.default_rng(0).integers(
    256, size=(4, 112, 112, 3), dtype=np.uint8
  )
  theirs = torch_embed.Embed(
    Recipe(model=MODEL), 'cpu', images, channels_last=channels_last
  )
  state_dict = interop.to_torch(*variables)
  theirs.network.load_state_dict(
    {n: torch.from_numpy(v.copy()) for n, v in state_dict.items()}
  )
  expected = make_embed(backbone, make_mesh(1), rows=4)(*variables, images)
  assert expected.std() > 0.01
  np.testing.assert_allclose(theirs(), expected, 1e-4, 1e-4)
  doubled = lambda pixels: 2 * theirs.embed(pixels)
  np.testing.assert_allclose(theirs(doubled), 2 * expected, 1e-4, 1e-4)


def test_variants_embed(monkeypatch):
  # Compiling takes a minute and tests torch, not this.
  monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
  images = np.zeros((2, 112, 112, 3), np.uint8)
  made = torch_embed.make_variants(Recipe(model=MODEL), 'cpu', images)
  assert list(made) == ['torch', 'torch channels_last', 'torch compiled']
  for variant in made.values():
    assert variant().shape == (2, 16)
