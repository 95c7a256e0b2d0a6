# SPDX-License-Identifier: Apache-2.0
"""The arguments `--checkpoint`, `--step` and those of a PyTorch file."""

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
    metavar='W|FILE.pth|FILE.onnx',
    help='run folder, a backbone trained with PyTorch, or an IResNet in an '
    'ONNX file',
  )
  add_step(parser)
  add_file(parser)


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


# Flags of a PyTorch file, and the arguments of `weights.open_weights`.
FILE_FLAGS = {
  'prefix': '--prefix',
  'colour_order': '--input',
  'normalisation': '--normalise',
}


def add_file(parser: argparse.ArgumentParser) -> None:
  """Adds what may have to be said of a PyTorch file: `FILE_FLAGS`."""
  parser.add_argument(
    '--prefix',
    metavar='NAME',
    help='which backbone of a .pth that holds several, such as teacher',
  )
  parser.add_argument(
    '--input',
    dest='colour_order',
    choices=('rgb', 'bgr'),
    help='colours that a file was trained on; default: those of the project '
    'that publishes files of such names',
  )
  parser.add_argument(
    '--normalise',
    dest='normalisation',
    metavar='FORMULA',
    help='of a pixel x in [0, 255], that a file was trained on, such as '
    "'(x - 127.5) / 128', 'x / 255' or imagenet; "
    "'(x / 255 - [A, B, C]) / [D, E, F]' with values in the order of --input; "
    'default: as for --input',
  )


def of_file(args: argparse.Namespace) -> dict[str, str | None]:
  """Returns what the arguments say of a PyTorch file, by keyword."""
  return {name: getattr(args, name) for name in FILE_FLAGS}


def open_weights(args: argparse.Namespace) -> Weights:
  """Opens the weights that the arguments name; prints its notes.

  Raises:
    InputError: if they cannot be read.
  """
  from elasticface_jax import weights

  return _open(weights.open_weights, args)


def open_network(args: argparse.Namespace) -> Embedder:
  """Opens the network that the arguments name; prints its notes.

  Raises:
    InputError: if it cannot be read.
  """
  from elasticface_jax import weights

  return _open(weights.open_embedder, args)


def _open(open_checkpoint, args):
  from elasticface_jax import runtime

  runtime.check_platform()
  opened = open_checkpoint(args.checkpoint, args.step, **of_file(args))
  if opened.note:
    print(opened.note)
  return opened
