# SPDX-License-Identifier: Apache-2.0
"""Pair sets of a command or a recipe, and the files of their results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax import atomic, data, evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import (
  TemplateVerification,
  Verification,
  plots,
)
from elasticface_jax.evaluation.verification import DEFAULT_FARS
from elasticface_jax.training.checkpoint import write_json

# Results that have the scores of pairs.
_OF_PAIRS = Verification, TemplateVerification


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
    check_folds(spec, len(pairs.same), folds)
    opened.append(pairs)
  check_names([pairs.name for pairs in opened])
  return opened


def check_names(names: Sequence[str]) -> None:
  """Checks that no result would replace another.

  Args:
    names: of the sets.

  Raises:
    InputError: if two are equal.
  """
  for name in names:
    if names.count(name) > 1:
      raise InputError(
        f'two sets are called {name!r}; their results would overwrite each '
        'other: rename a file'
      )


def check_folds(spec: str, num_pairs: int, folds: int) -> None:
  """Checks that there are enough pairs for the folds.

  Args:
    spec: the pair set, as the user calls it.
    num_pairs: its pairs.
    folds: of the cross-validation.

  Raises:
    InputError: if there are fewer pairs than folds.
  """
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
  pairs: data.PairSet,
  embeddings: np.ndarray,
  folds: int,
  fars: Sequence[float] = DEFAULT_FARS,
) -> Verification:
  """Verifies the embeddings of a pair set.

  Args:
    pairs: the pair set.
    embeddings: of its images, any float dtype, ``[2N, D]``.
    folds: folds of the cross-validation, at least 2.
    fars: rates at which TAR is given.

  Returns:
    As `evaluation.verify`, with the number of images that were resized.

  Raises:
    InputError: names the pair set, if an embedding is not finite.
  """
  try:
    result = evaluation.verify(embeddings, pairs.same, folds, fars=fars)
  except InputError as error:
    raise InputError(f'{pairs.name}: {error}') from error
  return dataclasses.replace(result, num_resized=pairs.num_resized)


def paths(
  specs: Sequence[str], opened: Sequence[data.PairSet]
) -> dict[str, str]:
  """Returns what each pair set was opened from, by its name.

  Args:
    specs: as given to `open_pair_sets`.
    opened: its return value.
  """
  return {pairs.name: spec for spec, pairs in zip(specs, opened, strict=True)}


def write_results(
  folder: Path,
  results: Mapping[str, Verification],
  *,
  origin: Mapping[str, Any],
  paths: Mapping[str, str],
  earlier: Mapping[str, Mapping] | None = None,
) -> None:
  """Writes ``results.json``, scores, and ROC and score plots, into a folder.

  ``scores_NAME.npz`` has the score of each pair as ``scores``, float64, and
  ``same``, bool, both ``[N]``, so that no later figure needs the network.

  Args:
    folder: the folder.
    results: by the name of the pair set. Those without scores of pairs have no
      plot and no file of scores.
    origin: the network, from `weights.origin`.
    paths: of the sets, as the user names them.
    earlier: results of the same weights on other pair sets, as for JSON.

  Raises:
    InputError: if a file cannot be written.
  """
  title = origin['title']
  of_pairs = {n: r for n, r in results.items() if isinstance(r, _OF_PAIRS)}
  both_kinds = {n: r for n, r in of_pairs.items() if 0 < r.same.mean() < 1}
  if both_kinds:
    plots.plot_roc(both_kinds, folder / 'roc.png', title=title)
  for name, result in of_pairs.items():
    path = folder / f'scores_{name}.png'
    plots.plot_scores(name, result, path, title=title)
    with atomic.file(path.with_suffix('.npz')) as part:
      np.savez(
        part,
        scores=np.asarray(result.scores, np.float64),
        same=np.asarray(result.same, bool),
      )
  # At the end: it says what the other files are of.
  write_json(
    folder / 'results.json',
    {name: {**result, **origin} for name, result in (earlier or {}).items()}
    | {
      name: result.as_dict() | {**origin, 'path': paths[name]}
      for name, result in results.items()
    },
  )
