# SPDX-License-Identifier: Apache-2.0
"""`elasticface convert`: makes a run folder from PyTorch weights."""

import argparse
from collections.abc import Sequence

from elasticface_jax.commands import _checkpoint, _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface convert 295672backbone.pth --workdir runs/released'
  )
  parser.add_argument(
    'file',
    type=_paths.path,
    metavar='FILE.pth',
    help='backbone of ElasticFace, insightface, AdaFace, TFace, CVLface, '
    'CurricularFace, face.evoLVe or MagFace',
  )
  parser.add_argument(
    '--workdir',
    required=True,
    type=_paths.path,
    metavar='W',
    help='folder to make',
  )
  parser.add_argument(
    '--head',
    action='append',
    default=[],
    type=_paths.path,
    metavar='FILE.pth',
    help='class centres too; repeat for the files of further ranks',
  )
  _checkpoint.add_file(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Makes the run folder, and prints its network."""
  from elasticface_jax import runtime, weights

  runtime.check_platform()
  made = weights.convert(
    args.file, args.workdir, heads=args.head, **_checkpoint.of_file(args)
  )
  if made.note:
    print(made.note)
  print(f'{made.model["name"]} in {args.workdir}; {made.identity.summary}')
