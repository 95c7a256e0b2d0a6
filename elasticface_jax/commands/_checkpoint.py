# SPDX-License-Identifier: Apache-2.0
"""The arguments `--checkpoint`, `--step` and `--prefix`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from elasticface_jax.commands import _paths

if TYPE_CHECKING:
  from elasticface_jax.weights import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds ``--checkpoint``, ``--step`` and ``--prefix``."""
  parser.add_argument(
    '--checkpoint',
    required=True,
    type=_paths.path,
    metavar='W|FILE.pth',
    help='run folder, or a backbone trained with PyTorch',
  )
  add_step(parser)
  add_prefix(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds ``--step``."""
  parser.add_argument(
    '--step', type=int, metavar='N', help='checkpoint to read; default: newest'
  )


def add_prefix(parser: argparse.ArgumentParser) -> None:
  """Adds ``--prefix``."""
  parser.add_argument(
    '--prefix',
    metavar='NAME',
    help='which backbone of a .pth that holds several, such as teacher',
  )


def open_weights(args: argparse.Namespace) -> Weights:
  """Opens the weights that the arguments name; prints what is left aside.

  Raises:
    InputError: if they cannot be read.
  """
  from elasticface_jax import runtime, weights

  runtime.check_platform()
  opened = weights.open_weights(args.checkpoint, args.step, args.prefix)
  if opened.note:
    print(opened.note)
  return opened
