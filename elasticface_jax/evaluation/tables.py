# SPDX-License-Identifier: Apache-2.0
"""Results of verification as text."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from elasticface_jax.evaluation.benchmark_tables import (
  aligned,
  benchmark_table,
  percent,
  rate,
)
from elasticface_jax.evaluation.rates import OperatingPoint
from elasticface_jax.evaluation.verification import (
  PUBLISHED_FOLDS,
  Verification,
)

_HEADINGS = (
  *('set', 'pairs', 'accuracy %', 'EER %', 'AUC %'),
  *('FAR', 'TAR %', 'cosine >='),
)
_BRACKETS = (
  '±: deviation of the folds; [ ]: 95 % intervals, for independent pairs; '
  'pairs that share images or people vary more'
)


def table(results: Mapping[str, Verification]) -> str:
  """Formats results as a text table with a few lines for each set.

  Args:
    results: results by name of the set.

  Returns:
    Aligned lines without a final newline: a heading, then for each set the
    accuracy ± the deviation of the folds, the equal error rate and the area
    under the curve, their 95 % intervals in the line below, and the cosine
    above which the accuracy counts a pair as genuine in the next one. Beside
    them, for each FAR, TAR and its interval, and the threshold. Below, a line
    for each thing that a reader must know besides: a FAR that these pairs
    cannot measure, zero embeddings, folds that are not the published 10, images
    that were resized.

  Examples:
    >>> import numpy as np
    >>> from elasticface_jax.evaluation import verify
    >>> result = verify(np.eye(2)[[0, 0, 1, 1, 0, 1, 1, 0]], [1, 0, 1, 0],
    ...                 folds=2, fars=[0.5])
    >>> for line in table({'toy': result}).splitlines()[:4]:
    ...   print(line[:57].rstrip())
    set  pairs      accuracy %          EER %          AUC %
    toy      4    50.00 ± 0.00          50.00          50.00
                 [9.43, 90.57]  [9.43, 90.57]  [2.50, 97.50]
                if cos > 1.000
  """
  rows = [_HEADINGS]
  for name, result in results.items():
    rows += _table_rows(name, result)
  return '\n'.join([*aligned(rows), *_notes(results)])


def tables(results: Mapping[str, Any]) -> str:
  """Formats results of any kind as text tables.

  Args:
    results: of `verify`, `evaluate_ijb`, `evaluate_megaface` and
      `evaluate_tinyface`, by name.

  Returns:
    `table` of the pair sets, `benchmark_table` of the others, with an empty
    line between them.

  Examples:
    >>> import numpy as np
    >>> from elasticface_jax.evaluation import verify
    >>> same = [1, 0, 1, 0]
    >>> toy = {'toy': verify(np.eye(2)[[0, 0, 1, 1] * 2], same, folds=2)}
    >>> tables(toy) == table(toy)
    True
  """
  pairs = {n: r for n, r in results.items() if isinstance(r, Verification)}
  others = {n: r for n, r in results.items() if n not in pairs}
  parts = [table(pairs)] if pairs else []
  return '\n\n'.join(parts + ([benchmark_table(others)] if others else []))


def _table_rows(name: str, result: Verification) -> list[tuple[str, ...]]:
  """Returns the cells of a set: figures, their intervals, the threshold."""
  rates = [('-', '-'), ('', ''), ('', '')]
  points = [('-', '-', '-')]
  if result.tar_at_far is not None:
    rates[0] = percent(result.eer), percent(result.auc)
    rates[1] = _limits(result.eer_interval), _limits(result.auc_interval)
    points = [_point_cells(point) for point in result.tar_at_far.values()]
  accuracy, deviation = percent(result.accuracy), percent(result.accuracy_std)
  accuracies = (
    f'{accuracy} ± {deviation}',
    _limits(result.accuracy_interval),
    f'if cos > {result.threshold:.3f}',
  )
  lines = itertools.zip_longest(accuracies, rates, points)
  rows = []
  for k, (cell, pair, point) in enumerate(lines):
    first = (name, f'{result.num_pairs:,}') if k == 0 else ('', '')
    rows.append((*first, cell or '', *(pair or ('', '')), *(point or [''] * 3)))
  return rows


def _point_cells(point: OperatingPoint) -> tuple[str, str, str]:
  far = rate(point.far_target, 3)
  if not point.is_measurable:
    return far, 'not measurable', '-'
  # Infinite where the best score is an impostor's: no pair is accepted.
  infinite = math.isinf(point.threshold)
  threshold = 'none' if infinite else f'{point.threshold:.3f}'
  return far, percent(point.tar, point.tar_interval), threshold


def _notes(results: Mapping[str, Verification]) -> list[str]:
  """Returns a line for whatever a reader of the table must know besides."""
  notes = []
  for name, result in results.items():
    notes += _notes_of_far(name, result)
    images = 2 * result.num_pairs
    if result.num_zero:
      notes.append(
        f'{name}: {result.num_zero:,} of {images:,} embeddings are zero; their '
        'pairs score cosine 0'
      )
    if result.num_resized:
      notes.append(
        f'{name}: {result.num_resized:,} of {images:,} images '
        'had another size and were resized; they may not be aligned'
      )
  unusual = {r.folds for r in results.values()} - {PUBLISHED_FOLDS}
  for folds in sorted(unusual):
    names = ', '.join(n for n, r in results.items() if r.folds == folds)
    notes.append(
      f'accuracy is over {folds} folds, published ones are over '
      f'{PUBLISHED_FOLDS}: {names}'
    )
  return [*notes, _BRACKETS]


def _notes_of_far(name: str, result: Verification) -> list[str]:
  """Says where the table has no TAR, or one without a lower limit."""
  if result.tar_at_far is None:
    kind = 'genuine' if result.same.all() else 'impostor'
    return [
      f'{name}: all pairs are {kind} pairs; there is no FAR, TAR, EER and AUC'
    ]
  points = result.tar_at_far.values()
  notes = []
  if unmeasured := [p for p in points if not p.is_measurable]:
    needed = ' and '.join(
      f'{math.ceil(1 / point.far_target):,}' for point in unmeasured
    )
    verb = 'it takes' if len(unmeasured) == 1 else 'they take'
    notes.append(
      f'{name}: FAR {_listed(unmeasured)} cannot be measured with '
      f'{unmeasured[0].num_impostors:,} impostor pairs; {verb} {needed}'
    )
  if unbounded := [p for p in points if p.is_measurable and not p.is_bounded]:
    # So many that one is above the threshold with a probability of 95 %.
    needed = math.ceil(math.log(0.05) / math.log1p(-unbounded[-1].far_target))
    notes.append(
      f'{name}: TAR at FAR {_listed(unbounded)} has no lower limit with '
      f'{unbounded[0].num_impostors:,} impostor pairs; one takes {needed:,}'
    )
  return notes


def _listed(points: Sequence[OperatingPoint]) -> str:
  return ' and '.join(rate(point.far_target, 3) for point in points)


def _limits(interval: tuple[float, float]) -> str:
  low, high = map(percent, interval)
  return f'[{low}, {high}]'
