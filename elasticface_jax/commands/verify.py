# SPDX-License-Identifier: Apache-2.0
"""`elasticface verify`: do two images show one person?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax.commands import _checkpoint, _faces, _paths, _threshold
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.weights import Embedder

_FAR = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface verify a.jpg b.jpg --checkpoint runs/q --far 1e-2'
  )
  for name in ('first', 'second'):
    parser.add_argument(
      name,
      type=_paths.path,
      metavar={'first': 'A', 'second': 'B'}[name],
      help='image, .jpg or .png: an aligned face, 112x112, or with '
      '--landmarks or --detect a photograph of one face',
    )
  _checkpoint.add_network(parser, required=True)
  _checkpoint.add_step(parser)
  _checkpoint.add_file(parser)
  _faces.add_arguments(parser, skip=False)
  source = parser.add_mutually_exclusive_group()
  source.add_argument(
    '--results',
    type=_paths.path,
    metavar='DIR',
    help='folder of evaluate --out of this network, whose results.json has the '
    'threshold; default: the run folder',
  )
  source.add_argument(
    '--threshold',
    type=float,
    metavar='T',
    help='accept a cosine of T or more, in place of a measured threshold',
  )
  parser.add_argument(
    '--far',
    type=float,
    metavar='F',
    help='share of impostor pairs that the threshold may accept; default: 1e-3',
  )
  parser.add_argument(
    '--set',
    dest='pair_set',
    metavar='NAME',
    help='pair set whose threshold is used, if there are several',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints score, threshold and verdict."""
  if args.threshold is not None:
    for flag, value in (('--far', args.far), ('--set', args.pair_set)):
      if value is not None:
        raise InputError(
          f'{flag} {value} is for a measured threshold, and --threshold gives '
          'one; leave either out'
        )
  if args.far is None:
    args.far = _FAR
  if not 0 < args.far < 1:
    raise InputError(f'--far {args.far:g}: a share between 0 and 1, as 1e-3')
  if args.threshold is not None and not -1 <= args.threshold <= 1:
    raise InputError(f'--threshold {args.threshold:g}: a cosine from -1 to 1')
  files = args.first, args.second
  asked = _faces.alignment(args)
  faces = [_faces.read_face(file, asked) for file in files]
  network = _checkpoint.open_network(args)
  # The threshold first: what it lacks should not cost a compilation.
  if args.threshold is not None:
    threshold, where = args.threshold, 'as given; its FAR is not known'
  else:
    threshold, where = _threshold.measured(args, network)
  print(network.title, flush=True)
  score = _cosine(network, faces, files)
  print(f'{files[0]} and {files[1]}: cosine {score:.4f}')
  print(f'threshold {threshold:.4f}, {where}')
  print(f'same person: {"yes" if score >= threshold else "no"}')


def _cosine(network: Embedder, faces: list, files: Sequence[Path]) -> float:
  """Computes the score of a pair as verification does."""
  import numpy as np

  embeddings = network.embed(np.stack(faces)).astype(np.float64)
  for file, embedding in zip(files, embeddings, strict=True):
    if not np.isfinite(embedding).all():
      raise InputError(
        f'{file}: its embedding by {network.path} is not finite; this network '
        'cannot be used'
      )
  norms = np.linalg.norm(embeddings, axis=1)
  inner = float(embeddings[0] @ embeddings[1])
  return inner / float(norms.prod()) if norms.all() else 0.0
