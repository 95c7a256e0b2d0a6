# SPDX-License-Identifier: Apache-2.0
"""`elasticface export`: writes a backbone that runs without this package."""

import argparse
from collections.abc import Sequence

from elasticface_jax.commands import _checkpoint, _paths
from elasticface_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface export --checkpoint runs/q --format onnx '
    '--out backbone.onnx'
  )
  _checkpoint.add_arguments(parser)
  parser.add_argument(
    '--format',
    required=True,
    choices=('torch', 'onnx', 'stablehlo'),
    help="PyTorch's state_dict, or a network with its weights",
  )
  parser.add_argument(
    '--out',
    required=True,
    type=_paths.path,
    metavar='FILE',
    help='file to write',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the file, and prints its size."""
  from elasticface_jax import weights

  weights.check_export(args.out, args.format)
  if args.out.exists():
    raise InputError(
      f'--out {args.out} exists; give another name, or remove it'
    )
  opened = _checkpoint.open_weights(args)
  if args.format != 'torch':
    print(
      f'compiling {opened.model["name"]}, and comparing it with the file ...',
      flush=True,
    )
  weights.export(opened, args.out, file_format=args.format)
  print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')
