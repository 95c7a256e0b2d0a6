# SPDX-License-Identifier: Apache-2.0
"""`elasticface convert`: makes a run folder from PyTorch or ONNX weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax import exit_codes, terminal
from elasticface_jax.commands import _checkpoint, _images, _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

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
    'CurricularFace, face.evoLVe or MagFace (.pth, .ckpt, .safetensors), or '
    'IResNet of any exporter (.onnx)',
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
  parser.add_argument(
    '--statistics',
    type=_paths.text,
    metavar='IMAGES',
    help='measure the statistics of BatchNorms that were folded in an ONNX '
    'file on the first 1,024 of these faces, as for embed, so that training '
    'begins with this network; embeddings stay equal',
  )


# For --statistics: at least, at most, and at a time.
_FEWEST, _MOST, _ROWS = 32, 1024, 16


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Makes the run folder, and prints its network.

  Raises:
    InputError: for a mistake.
    SystemExit: with `exit_codes.DIFFERENT`, if ``--check`` finds a difference.
  """
  from elasticface_jax import runtime, weights

  runtime.check_platform()

  def revise(opened: Weights) -> Weights:
    if args.statistics is not None:
      opened = _measured(opened, args.statistics)
    if args.check is not None:
      _check(opened, args.check)
    return opened

  made = weights.convert(
    args.file,
    args.workdir,
    heads=args.head,
    revise=revise,
    **_checkpoint.of_file(args),
  )
  if made.note:
    print(made.note)
  print(f'{made.model["name"]} in {args.workdir}; {made.identity.summary}')


def _measured(opened: Weights, source: str) -> Weights:
  """Returns the weights with statistics of images, and prints of how many."""
  from elasticface_jax import weights
  from elasticface_jax.data.sources.encoded import counted

  if not opened.folded:
    raise InputError(
      f'{opened.path} has the statistics of all its BatchNorms; leave '
      f'--statistics {source!a} out'
    )
  images = _images.open_images(source, _ROWS)
  if images.count < _FEWEST:
    raise InputError(
      f'--statistics {source!a} has {counted(images.count, "image")}; give '
      f'{_FEWEST} at least, better some hundred of many people'
    )
  batches = _first(images, min(images.count, _MOST))
  print(f'running {opened.path} for its statistics ...', flush=True)
  found = weights.with_statistics(opened, batches, Path(source).name)
  print(
    f'{counted(len(opened.folded), "BatchNorm")} without statistics have those '
    f'of {counted(found.measured["images"], "image")} of {source}'
  )
  return found


def _first(images: _images.Images, count: int) -> Iterator[np.ndarray]:
  """Yields the batches of the first images, and shows the progress."""
  with terminal.progress('images') as progress:
    progress(0, count)
    for places, batch in images.batches:
      if places.start >= count:
        break
      yield batch
      progress(places.stop, count)


def _check(opened: Weights, source: str) -> None:
  """Compares embeddings with the original's, and prints how near they are."""
  from elasticface_jax import originals
  from elasticface_jax.data.sources.encoded import counted

  images = _images.open_images(source, originals.ROWS)
  count = min(images.count, originals.ROWS * originals.BATCHES)
  print(f'running {opened.path} and what it became ...', flush=True)
  found = originals.compare(opened, _first(images, count))
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
