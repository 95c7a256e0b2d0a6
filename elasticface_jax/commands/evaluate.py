# SPDX-License-Identifier: Apache-2.0
"""`elasticface evaluate`: evaluates embeddings on pair sets and benchmarks."""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _checkpoint, _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax import embeddings
  from elasticface_jax.evaluation_sets import EvaluationSet, Faces

# LFW-style sets have about 3,000 impostor pairs: 1e-3 is three of them.
_FARS = 1e-2, 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface evaluate --checkpoint runs/q --pairs lfw.bin'
  )
  _add_faces(parser)
  _add_sets(parser)
  _add_protocols(parser)
  parser.add_argument(
    '--out',
    type=_paths.path,
    metavar='DIR',
    help='folder for results.json, scores and plots, which `elasticface '
    'report` reads',
  )


def _add_faces(parser: argparse.ArgumentParser) -> None:
  faces = parser.add_mutually_exclusive_group(required=True)
  _checkpoint.add_network(faces)
  faces.add_argument(
    '--embeddings',
    type=_paths.path,
    action='append',
    metavar='DIR',
    help='embeddings from `elasticface embed` in place of a network; one of a '
    'pair set is verified, others are looked up by the names of images; repeat '
    'for more',
  )
  _checkpoint.add_step(parser)
  _checkpoint.add_file(parser)


def _add_sets(parser: argparse.ArgumentParser) -> None:
  sets = parser.add_argument_group('test sets', 'Each may be repeated.')
  sets.add_argument(
    '--pairs',
    type=_paths.text,
    action='append',
    default=[],
    metavar='FILE',
    help="pair set, .bin or .npz, or 'synthetic': LFW and its kin",
  )
  for name, help in (
    ('ijb', 'IJB-B or IJB-C, with its folder meta: 1:1, and 1:N'),
    ('megaface', 'MegaFace, with its lists: rank-1 among distractors'),
    ('tinyface', "TinyFace's Testing_Set: ranks and mean average precision"),
  ):
    sets.add_argument(
      f'--{name}',
      type=_paths.path,
      action='append',
      default=[],
      metavar='FOLDER',
      help=help,
    )


def _add_protocols(parser: argparse.ArgumentParser) -> None:
  protocols = parser.add_argument_group('protocols')
  protocols.add_argument(
    '--folds',
    type=int,
    default=10,
    metavar='N',
    help='folds of the cross-validation, 2 or more; default: 10, as published',
  )
  protocols.add_argument(
    '--far',
    type=_rate,
    action='append',
    metavar='RATE',
    help='false accept rate of pair sets at which TAR and threshold are given; '
    'repeat for more; default: 1e-2 and 1e-3',
  )
  protocols.add_argument(
    '--normalize-before-pooling',
    action='store_true',
    help='IJB: give every image of a template the same weight; default: the '
    'weight of its norm, as published',
  )
  protocols.add_argument(
    '--no-detector-scores',
    action='store_true',
    help='IJB: do not weight images by the score of their detection; default: '
    'weighted, as published',
  )


def _rate(text: str) -> float:
  try:
    rate = float(text)
  except ValueError:
    rate = math.nan
  if not 0 < rate < 1:
    raise argparse.ArgumentTypeError(f'{text} is no rate between 0 and 1')
  return rate


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints a table of the results, and writes them where ``--out`` says."""
  if args.out is not None:
    atomic.check_folder(args.out, '--out')
    if (args.out / 'config.json').exists():
      raise InputError(
        f'--out {args.out} is a run folder, whose own results.json would be '
        'replaced; give another folder'
      )
  _check_flags(args)
  from elasticface_jax import pair_sets

  begin = time.perf_counter()
  faces, sets = _opened(args)
  pair_sets.check_names([one.name for one in sets])
  evaluate(faces, sets, begin=begin, out=args.out)


def _check_flags(args: argparse.Namespace) -> None:
  """Refuses flags that would change nothing."""
  for flag, is_given, of, is_there in (
    ('--step', args.step is not None, '--checkpoint', args.checkpoint),
    *(
      (flag, getattr(args, name) is not None, '--checkpoint', args.checkpoint)
      for name, flag in _checkpoint.FILE_FLAGS.items()
    ),
    (
      '--normalize-before-pooling',
      args.normalize_before_pooling,
      '--ijb',
      args.ijb,
    ),
    ('--no-detector-scores', args.no_detector_scores, '--ijb', args.ijb),
    ('--far', args.far, 'pair sets', args.pairs or args.embeddings),
  ):
    if is_given and not is_there:
      raise InputError(
        f'{flag} is for {of}, of which there is none here; leave it out'
      )


def _opened(args: argparse.Namespace) -> tuple[Faces, list[EvaluationSet]]:
  """Opens the network or the folders, and all test sets."""
  from elasticface_jax import embeddings, evaluation_sets

  fars = tuple(sorted(args.far or _FARS, reverse=True))
  if args.checkpoint is not None:
    if not (args.pairs or args.ijb or args.megaface or args.tinyface):
      raise InputError(
        'there is nothing to evaluate on: give --pairs, --ijb, --megaface or '
        '--tinyface'
      )
    network = _checkpoint.open_network(args)
    sets = [*_pairs(args, network, fars), *_benchmarks(args)]
    for one in sets:
      if isinstance(one, evaluation_sets.Files):
        one.check_files()
    return embeddings.Computed(network), sets
  folders = [embeddings.open_folder(path) for path in args.embeddings]
  sets = [*_saved_pairs(args, folders, fars), *_benchmarks(args)]
  return embeddings.Saved(folders), sets


def _pairs(
  args: argparse.Namespace, network: Any, fars: tuple[float, ...]
) -> Iterator[EvaluationSet]:
  from elasticface_jax import evaluation_sets, pair_sets, weights

  synthetic = weights.synthetic_pairs(network)
  opened = pair_sets.open_pair_sets(args.pairs, folds=args.folds, **synthetic)
  for path, pairs in zip(args.pairs, opened, strict=True):
    yield evaluation_sets.Pairs(path, pairs, folds=args.folds, fars=fars)


def _saved_pairs(
  args: argparse.Namespace,
  folders: Sequence[embeddings.Folder],
  fars: tuple[float, ...],
) -> Iterator[EvaluationSet]:
  from elasticface_jax import evaluation_sets

  if args.pairs:
    raise InputError(
      f'--pairs {args.pairs[0]} needs a network (--checkpoint); with '
      '--embeddings, give the folder that `elasticface embed` made of the pair '
      'set, with its same.npy'
    )
  of_pairs = [folder for folder in folders if folder.same is not None]
  if not (of_pairs or args.ijb or args.megaface or args.tinyface):
    raise InputError(
      f'{args.embeddings[0]} has no same.npy, so it is no pair set; give one, '
      'or --ijb, --megaface or --tinyface'
    )
  for folder in of_pairs:
    yield evaluation_sets.SavedPairs(folder, folds=args.folds, fars=fars)


def _benchmarks(args: argparse.Namespace) -> Iterator[EvaluationSet]:
  from elasticface_jax import evaluation, evaluation_sets

  for folder in args.ijb:
    with warnings.catch_warnings():
      # What it warns of stands below the table too.
      warnings.simplefilter('ignore', UserWarning)
      ijb = evaluation.read_ijb(folder)
    protocol = functools.partial(
      evaluation.evaluate_ijb,
      ijb,
      keep_norms=not args.normalize_before_pooling,
      weight_by_detector=not args.no_detector_scores,
    )
    yield evaluation_sets.Files(
      ijb.name,
      str(folder),
      ijb.image_paths,
      protocol,
      landmarks=ijb.landmarks,
    )
  for name, folders, read, evaluate in (
    (
      'MegaFace',
      args.megaface,
      evaluation.read_megaface,
      evaluation.evaluate_megaface,
    ),
    (
      'TinyFace',
      args.tinyface,
      evaluation.read_tinyface,
      evaluation.evaluate_tinyface,
    ),
  ):
    for folder in folders:
      dataset = read(folder)
      protocol = functools.partial(evaluate, dataset)
      yield evaluation_sets.Files(
        name, str(folder), dataset.image_paths, protocol
      )


def evaluate(
  faces: Faces, sets: Sequence[EvaluationSet], *, begin: float, out: Path | None
) -> dict[str, Any]:
  """Evaluates embeddings on test sets, and prints the tables.

  Args:
    faces: gives the embeddings.
    sets: the test sets.
    begin: when the command began, of `time.perf_counter`.
    out: folder for results and plots; None for none.

  Returns:
    Results by name.

  Raises:
    InputError: if an image or an embedding cannot be used.
  """
  from elasticface_jax import evaluation, pair_sets

  print(faces.title, flush=True)
  total = sum(one.num_images for one in sets)
  results, paths, before = {}, {}, 0
  with terminal.progress('images') as progress:
    for one in sets:
      report = lambda done, _, before=before: progress(before + done, total)
      more = one.evaluate(faces, report)
      results |= more
      paths |= dict.fromkeys(more, one.path)
      before += one.num_images
  print(evaluation.tables(results))
  seconds = terminal.duration(time.perf_counter() - begin)
  print(f'{total:,} images took {seconds}')
  if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    pair_sets.write_results(out, results, origin=faces.origin, paths=paths)
    print(f'results.json, scores and plots are in {out}')
  return results
