# SPDX-License-Identifier: Apache-2.0
"""The argument `--checkpoint`, and a network with its weights."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import numpy as np

  from elasticface_jax.weights import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds ``--checkpoint`` and ``--step``."""
  parser.add_argument(
    '--checkpoint',
    required=True,
    type=Path,
    metavar='W|FILE.pth',
    help='run folder, or a backbone trained with PyTorch',
  )
  add_step(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds ``--step``."""
  parser.add_argument(
    '--step', type=int, metavar='N', help='checkpoint to read; default: newest'
  )


def open_weights(args: argparse.Namespace) -> Weights:
  """Opens the weights that the arguments name.

  Raises:
    InputError: if they cannot be read.
  """
  from elasticface_jax import runtime, weights

  runtime.check_platform()
  return weights.open_weights(args.checkpoint, args.step)


def embedder(weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
  """Makes `training.embed.make_embed` with weights placed on all devices."""
  import jax
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from elasticface_jax import models
  from elasticface_jax.training import state
  from elasticface_jax.training.embed import make_embed

  mesh = state.make_mesh()
  placed = jax.device_put(
    (weights.params, weights.batch_stats), NamedSharding(mesh, P())
  )
  backbone = models.build(**weights.model)
  rows = weights.eval_rows
  return functools.partial(make_embed(backbone, mesh, rows=rows), *placed)
