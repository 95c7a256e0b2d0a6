# SPDX-License-Identifier: Apache-2.0
"""`elasticface evaluate`: verifies pair sets with a trained backbone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _checkpoint, _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.evaluation import Verification
  from elasticface_jax.weights import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface evaluate --checkpoint runs/q --pairs lfw.bin'
  )
  _checkpoint.add_arguments(parser)
  parser.add_argument(
    '--pairs',
    type=_paths.text,
    required=True,
    action='append',
    metavar='FILE',
    help="pair set, .bin or .npz, or 'synthetic'; repeat for more",
  )
  parser.add_argument(
    '--folds',
    type=int,
    default=10,
    metavar='N',
    help='folds of the cross-validation, 2 or more; default: 10, as published',
  )
  parser.add_argument(
    '--out',
    type=_paths.path,
    metavar='DIR',
    help='folder for results.json and plots',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints a table of the results, and writes them where ``--out`` says."""
  if args.out is not None:
    atomic.check_folder(args.out, '--out')
    if (args.out / 'config.json').exists():
      raise InputError(
        f'--out {args.out} is a run folder, whose own results.json would be '
        'replaced; give another folder'
      )
  evaluate(
    _checkpoint.open_weights(args), args.pairs, folds=args.folds, out=args.out
  )


def evaluate(
  weights: Weights, pairs: Sequence[str], *, folds: int, out: Path | None
) -> dict[str, Verification]:
  """Verifies pair sets with a trained backbone.

  Args:
    weights: the backbone.
    pairs: paths, or ``'synthetic'``.
    folds: folds of the cross-validation, at least 2.
    out: folder for results and plots; None for none.

  Returns:
    The result of each pair set, by name.

  Raises:
    InputError: if a pair set cannot be read, or has fewer pairs than folds.
  """
  import jax
  import numpy as np

  from elasticface_jax import evaluation, pair_sets

  begin = time.perf_counter()
  config = weights.config
  opened = pair_sets.open_pair_sets(
    pairs,
    num_pairs=config['eval']['synthetic_pairs'],
    seed=config['seed'],
    folds=folds,
  )
  print(f'{weights.path}, step {weights.step}', flush=True)
  # What the devices take at a time, so that the last one alone is not full.
  chunk = weights.eval_rows * 8 * jax.device_count()
  total = sum(len(p.images) for p in opened)
  results, done = {}, 0
  with terminal.progress('images') as progress:
    progress(0, total)
    for p in opened:
      embeddings = []
      for start in range(0, len(p.images), chunk):
        embeddings.append(weights.embed(p.images[start : start + chunk]))
        done += len(embeddings[-1])
        progress(done, total)
      results[p.name] = pair_sets.verify(p, np.concatenate(embeddings), folds)
  print(evaluation.table(results))
  seconds = terminal.duration(time.perf_counter() - begin)
  print(f'{total:,} images took {seconds}')
  if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    title = f'{weights.path.resolve().name}, step {weights.step}'
    pair_sets.write_results(out, results, title=title)
    print(f'results.json and plots are in {out}')
  return results
