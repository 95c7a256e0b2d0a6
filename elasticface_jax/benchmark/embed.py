# SPDX-License-Identifier: Apache-2.0
"""Benchmark of embedding images for an evaluation, images and mirror images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elasticface_jax import models
from elasticface_jax.benchmark import device, flops, timing
from elasticface_jax.benchmark.pytorch import embed as torch_embed
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import OURS, best_ratios
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.training.embed import make_embed


def measure(
  recipe: Recipe,
  mesh: jax.sharding.Mesh,
  against: Sequence[str],
  *,
  rounds: int,
  seconds: float,
) -> dict[str, Any]:
  """Times the embedding of one batch for each device, pixels on the host.

  Args:
    recipe: its network is embedded with, in batches of its batch size.
    mesh: the devices.
    against: ``['torch']``, or nothing.
    rounds: number of turns of each variant.
    seconds: shortest time of each in a round.

  Returns:
    JSON-like; every variant by name, and the ratios of their times.
  """
  rows = recipe.batch_size
  backbone = models.build(**recipe.model)
  variables = backbone.init(jax.random.key(0))
  embed = make_embed(backbone, mesh, rows=rows)
  images = np.random.default_rng(0).integers(
    256, size=(rows * mesh.size, *IMAGE_SHAPE), dtype=np.uint8
  )
  variants = {OURS: lambda: embed(*variables, images)}
  if 'torch' in against:
    platform = mesh.devices.flat[0].platform
    torch_device = {'gpu': 'cuda'}.get(platform, platform)
    variants |= torch_embed.make_variants(recipe, torch_device, images)
  spent = timing.in_turn(variants, rounds=rounds, seconds=seconds)
  # Forward alone, of an image and its mirror image.
  flop = 2 * len(images) * flops.forward(backbone)
  return {
    'recipe': dataclasses.asdict(recipe),
    'images': len(images),
    'model_flop': flop,
    'variants': {
      name: _described(recipe, mesh, len(images), flop, times)
      for name, times in spent.items()
    },
    'time_ratios': best_ratios(spent),
  }


def _described(
  recipe: Recipe,
  mesh: jax.sharding.Mesh,
  count: int,
  flop: int,
  times: np.ndarray,
) -> Mapping[str, Any]:
  spread = timing.spread(times)
  return {
    'batch_seconds': spread,
    'images_per_second': count / spread['median'],
    **device.shares({(recipe.dtype, None): flop}, spread['median'], mesh),
  }
