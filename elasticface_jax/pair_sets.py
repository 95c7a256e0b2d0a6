# SPDX-License-Identifier: Apache-2.0
"""Pair sets of a command or a recipe, and the files of their results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from elasticface_jax import data, evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import Verification, plots
from elasticface_jax.training import checkpoint


def open_pair_sets(
  specs: Sequence[str], *, num_pairs: int, seed: int, folds: int = 10
) -> list[data.PairSet]:
  """Opens pair sets whose names differ, each of them with enough pairs.

  Everything that `evaluation.verify` refuses about the pairs is refused here,
  before hours of work that end in a verification.

  Args:
    specs: paths, or ``'synthetic'``.
    num_pairs: number of synthetic pairs.
    seed: seed of the synthetic pairs.
    folds: folds of the cross-validation, at least 2.

  Returns:
    The pair sets, in their order.

  Raises:
    InputError: if one cannot be read or has fewer pairs than folds, or two
      have the same name.
  """
  if folds < 2:
    raise InputError(
      f'folds={folds}: each fold is judged at the threshold of the others; '
      'choose 2 or more'
    )
  opened = []
  for spec in specs:
    pairs = data.open_pairs(spec, num_pairs=num_pairs, seed=seed)
    _check_folds(spec, len(pairs.same), folds)
    opened.append(pairs)
  names = [pairs.name for pairs in opened]
  for name in names:
    if names.count(name) > 1:
      raise InputError(
        f'two pair sets are called {name!r}; their results would overwrite '
        'each other: rename a file'
      )
  return opened


def _check_folds(spec: str, num_pairs: int, folds: int) -> None:
  if num_pairs >= folds:
    return
  if num_pairs < 2:
    raise InputError(
      f'{spec}: a single pair; verification needs one to set the threshold and '
      'one to judge: give 2 pairs or more'
    )
  raise InputError(
    f'{spec}: {num_pairs} pairs are too few for {folds} folds; choose folds '
    f'from 2 to {num_pairs}: --folds {num_pairs} in evaluate, '
    f'--config.eval.folds={num_pairs} in train'
  )


def verify(
  pairs: data.PairSet, embeddings: np.ndarray, folds: int
) -> Verification:
  """Verifies the embeddings of a pair set.

  Args:
    pairs: the pair set.
    embeddings: of its images, any float dtype, ``[2N, D]``.
    folds: folds of the cross-validation, at least 2.

  Returns:
    As `evaluation.verify`, with the number of images that were resized.

  Raises:
    InputError: names the pair set, if an embedding is not finite.
  """
  try:
    result = evaluation.verify(embeddings, pairs.same, folds)
  except InputError as error:
    raise InputError(f'{pairs.name}: {error}') from error
  return dataclasses.replace(result, num_resized=pairs.num_resized)


def write_results(
  folder: Path,
  results: Mapping[str, Verification],
  *,
  title: str,
  earlier: Mapping[str, Mapping] | None = None,
) -> None:
  """Writes ``results.json``, and ROC and score plots, into a folder.

  Args:
    folder: the folder.
    results: by the name of the pair set.
    title: name of the network, for the plots.
    earlier: results of the same weights on other pair sets, as for JSON.

  Raises:
    InputError: if a file cannot be written.
  """
  checkpoint.write_json(
    folder / 'results.json',
    {**(earlier or {})}
    | {name: result.as_dict() for name, result in results.items()},
  )
  both_kinds = {n: r for n, r in results.items() if r.tar_at_far is not None}
  if both_kinds:
    plots.plot_roc(both_kinds, folder / 'roc.png', title=title)
  for name, result in results.items():
    path = folder / f'scores_{name}.png'
    plots.plot_scores(name, result, path, title=title)
