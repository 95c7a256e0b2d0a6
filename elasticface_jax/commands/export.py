# SPDX-License-Identifier: Apache-2.0
"""`elasticface export`: writes a backbone that runs without this package."""

import argparse
from collections.abc import Sequence

from elasticface_jax.commands import _checkpoint, _paths
from elasticface_jax.errors import InputError

# Keys of `interop.FAMILIES`, which takes seconds to import; a test compares.
_STATE_DICTS = 'torch', 'safetensors'
_NAMES = (
  'insightface',
  'magface',
  'adaface',
  'tface',
  'cvlface',
  'curricularface',
  'evolve',
)
# The file is compared with the network on so many images.
_MAX_BATCH = 1024


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
    choices=(*_STATE_DICTS, 'onnx', 'stablehlo'),
    help="PyTorch's state_dict, the same in safetensors, or a network with its "
    'weights',
  )
  parser.add_argument(
    '--names',
    choices=_NAMES,
    help='project whose modules shall load a state_dict: its names, colours '
    'and scale of pixels; default: insightface, which is ElasticFace too',
  )
  parser.add_argument(
    '--out',
    required=True,
    type=_paths.path,
    metavar='FILE',
    help='file to write',
  )
  parser.add_argument(
    '--batch',
    type=int,
    metavar='N',
    help='images that a StableHLO file takes, so that older versions of jax '
    'read it too; default: any number',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the file, and prints its size."""
  from elasticface_jax import weights

  if args.names is not None and args.format not in _STATE_DICTS:
    raise InputError(
      f'--names {args.names} is for --format torch or safetensors; leave it out'
    )
  if args.batch is not None and args.format != 'stablehlo':
    raise InputError(
      f'--batch {args.batch} is for --format stablehlo; leave it out'
    )
  if args.batch is not None and not 1 <= args.batch <= _MAX_BATCH:
    raise InputError(f'--batch {args.batch}: give 1 to {_MAX_BATCH}')
  weights.check_export(args.out, args.format)
  if args.out.exists():
    raise InputError(
      f'--out {args.out} exists; give another name, or remove it'
    )
  opened = _checkpoint.open_weights(args)
  if args.format not in _STATE_DICTS:
    print(
      f'compiling {opened.model["name"]}, and comparing it with the file ...',
      flush=True,
    )
  folded = weights.export(
    opened,
    args.out,
    file_format=args.format,
    names=args.names or _NAMES[0],
    batch=args.batch,
  )
  if folded:
    print(
      f'folded for {args.names or _NAMES[0]}, with equal embeddings: '
      f'{"; ".join(folded)}; fine-tuning differs'
    )
  print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')
