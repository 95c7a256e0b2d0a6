# SPDX-License-Identifier: Apache-2.0
"""The arguments `--checkpoint`, `--step` and `--prefix`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from elasticface_jax.commands import _paths

if TYPE_CHECKING:
  from elasticface_jax.weights import Embedder, Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds ``--checkpoint`` for a command that needs weights, and the others."""
  parser.add_argument(
    '--checkpoint',
    required=True,
    type=_paths.path,
    metavar='W|FILE.pth',
    help='run folder, or a backbone trained with PyTorch',
  )
  add_step(parser)
  add_prefix(parser)


def add_network(parser: argparse._ActionsContainer, **options: bool) -> None:
  """Adds ``--checkpoint``, whose embeddings alone are needed.

  Args:
    parser: the parser, or a group of it.
    **options: ``required=True``, unless the group says so.
  """
  parser.add_argument(
    '--checkpoint',
    type=_paths.path,
    metavar='W|FILE.pth|FILE.onnx',
    help='run folder, a backbone trained with PyTorch, or any network that '
    'onnxruntime reads',
    **options,
  )


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
  from elasticface_jax import weights

  return _open(weights.open_weights, args)


def open_network(args: argparse.Namespace) -> Embedder:
  """Opens the network that the arguments name; prints what is left aside.

  Raises:
    InputError: if it cannot be read.
  """
  from elasticface_jax import weights

  return _open(weights.open_embedder, args)


def _open(open_checkpoint, args):
  from elasticface_jax import runtime

  runtime.check_platform()
  opened = open_checkpoint(args.checkpoint, args.step, args.prefix)
  if opened.note:
    print(opened.note)
  return opened
