# SPDX-License-Identifier: Apache-2.0
"""Pair sets of a command or a recipe, and the files of their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from elasticface_jax import data
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import Verification, plots
from elasticface_jax.training import checkpoint


def open_pair_sets(
  specs: Sequence[str], *, num_pairs: int, seed: int
) -> list[data.PairSet]:
  """Opens pair sets whose names differ.

  Args:
    specs: paths, or ``'synthetic'``.
    num_pairs: number of synthetic pairs.
    seed: seed of the synthetic pairs.

  Returns:
    The pair sets, in their order.

  Raises:
    InputError: if one cannot be read, or two have the same name.
  """
  opened = [
    data.open_pairs(spec, num_pairs=num_pairs, seed=seed) for spec in specs
  ]
  names = [pairs.name for pairs in opened]
  for name in names:
    if names.count(name) > 1:
      raise InputError(
        f'two pair sets are called {name!r}; their results would overwrite '
        'each other: rename a file'
      )
  return opened


def write_results(folder: Path, results: Mapping[str, Verification]) -> None:
  """Writes ``results.json``, and ROC and score plots, into a folder."""
  checkpoint.write_json(
    folder / 'results.json',
    {name: result.as_dict() for name, result in results.items()},
  )
  both_kinds = {n: r for n, r in results.items() if r.tar_at_far is not None}
  if both_kinds:
    plots.plot_roc(both_kinds, folder / 'roc.png')
  for name, result in results.items():
    plots.plot_scores(result, folder / f'scores_{name}.png')
