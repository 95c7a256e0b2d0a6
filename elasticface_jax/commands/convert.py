# SPDX-License-Identifier: Apache-2.0
"""`elasticface convert`: makes a run folder from PyTorch or ONNX weights."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elasticface_jax import exit_codes, terminal
from elasticface_jax.commands import _checkpoint, _images, _paths

if TYPE_CHECKING:
  from elasticface_jax.weights import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface convert 295672backbone.pth --workdir runs/released'
  )
  parser.add_argument(
    'file',
    type=_paths.path,
    metavar='FILE',
    help='backbone of ElasticFace, insightface, AdaFace, TFace, CVLface, '
    'CurricularFace, face.evoLVe or MagFace (.pth), or IResNet of any '
    'exporter (.onnx)',
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
  parser.add_argument(
    '--check',
    type=_paths.text,
    metavar='IMAGES',
    help='compare the embeddings of the first 256 of these faces, as for '
    'embed, with those that the file itself gives: run by onnxruntime, or by '
    'torch, which must be installed; exit code 1, and nothing is written, if '
    'they differ',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Makes the run folder, and prints its network.

  Raises:
    InputError: for a mistake.
    SystemExit: with `exit_codes.DIFFERENT`, if ``--check`` finds a difference.
  """
  from elasticface_jax import runtime, weights

  runtime.check_platform()

  def check(opened: Weights) -> None:
    if args.check is not None:
      _check(opened, args.check)

  made = weights.convert(
    args.file,
    args.workdir,
    heads=args.head,
    check=check,
    **_checkpoint.of_file(args),
  )
  if made.note:
    print(made.note)
  print(f'{made.model["name"]} in {args.workdir}; {made.identity.summary}')


def _check(opened: Weights, source: str) -> None:
  """Compares embeddings with the original's, and prints how near they are."""
  from elasticface_jax import originals
  from elasticface_jax.data.sources.encoded import counted

  images = _images.open_images(source, originals.ROWS)
  count = min(images.count, originals.ROWS * originals.BATCHES)

  def batches():
    with terminal.progress('images') as progress:
      progress(0, count)
      for places, batch in itertools.islice(images.batches, originals.BATCHES):
        yield batch
        progress(places.stop, count)

  print(f'running {opened.path} and what it became ...', flush=True)
  found = originals.compare(opened, batches())
  print(
    f'{counted(found.count, "image")} of {source}: embeddings differ from the '
    f"file's own by {found.gap:.2g} at most, where values go up to "
    f'{found.largest:.3g}; the smallest cosine is {found.cosine:.7f}'
  )
  if not found.is_close:
    print(
      f'more than {originals.TOLERANCE:g} of the largest value: nothing is '
      'written'
    )
    raise SystemExit(exit_codes.DIFFERENT)
