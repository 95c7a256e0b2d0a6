# SPDX-License-Identifier: Apache-2.0
"""`elasticface evaluate`: verifies pair sets with a trained backbone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax import atomic
from elasticface_jax.commands import _checkpoint

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
    type=Path,
    metavar='DIR',
    help='folder for results.json and plots',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints a table of the results, and writes them where ``--out`` says."""
  if args.out is not None:
    atomic.check_folder(args.out, '--out')
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
  from elasticface_jax import evaluation, pair_sets

  config = weights.config
  opened = pair_sets.open_pair_sets(
    pairs,
    num_pairs=config['eval']['synthetic_pairs'],
    seed=config['seed'],
    folds=folds,
  )
  print(f'{weights.path}, step {weights.step}')
  results = {
    p.name: evaluation.verify(weights.embed(p.images), p.same, folds)
    for p in opened
  }
  print(evaluation.table(results))
  if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    pair_sets.write_results(out, results)
    print(f'results.json and plots are in {out}')
  return results
