# SPDX-License-Identifier: Apache-2.0
"""Results of verification as text."""

import math
from collections.abc import Mapping

from elasticface_jax.evaluation.verification import (
  PUBLISHED_FOLDS,
  Verification,
)

_HEADINGS = (
  ('set', 'pairs', 'accuracy', 'accuracy', 'EER', *['FAR 1e-3'] * 3),
  ('', '', '%', 'if cosine >', '%', 'TAR %', 'if cosine >=', 'FAR found %'),
)


def table(results: Mapping[str, Verification]) -> str:
  """Formats results as a text table with a line for each set.

  Args:
    results: results by name of the set.

  Returns:
    Aligned lines without a final newline: two of headings, then for each set
    the accuracy and its cosine threshold, the equal error rate, and TAR at FAR
    1e-3, the threshold there and the FAR found, both rates with their 95 %
    interval. Below, a line for each thing that a reader must know besides: a
    FAR that these pairs cannot measure, folds that are not the published 10,
    images that were resized.

  Examples:
    >>> import numpy as np
    >>> from elasticface_jax.evaluation import verify
    >>> result = verify(np.eye(2)[[0, 0, 1, 1, 0, 1, 1, 0]], [1, 0, 1, 0],
    ...                 folds=2)
    >>> lines = table({'toy': result}).splitlines()
    >>> for line in lines[:3]:
    ...   print(line[:37].rstrip())
    set  pairs      accuracy     accuracy
                           %  if cosine >
    toy      4  50.00 ± 0.00        1.000
    >>> for line in lines[3:]:
    ...   print(line)
    toy: FAR 1e-3 cannot be measured with 2 impostor pairs; it takes 1,000
    accuracy is over 2 folds, published ones are over 10: toy
  """
  rows = [*_HEADINGS, *(_table_row(name, r) for name, r in results.items())]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in rows
  ]
  return '\n'.join([*lines, *_table_notes(results)])


def _table_row(name: str, result: Verification) -> tuple[str, ...]:
  row = (
    name,
    f'{result.num_pairs:,}',
    f'{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}',
    f'{result.threshold:.3f}',
  )
  if result.tar_at_far is None:
    return (*row, '-', '-', '-', '-')
  row = (*row, f'{100 * result.eer:.2f}')
  point = result.tar_at_far[1e-3]
  if not point.is_measurable:
    return (*row, 'not measurable', '-', '-')
  return (
    *row,
    _percent(point.tar, point.tar_interval, 2),
    # Infinite where the best score is an impostor's: no pair is accepted.
    'none' if math.isinf(point.threshold) else f'{point.threshold:.3f}',
    _percent(point.far, point.far_interval, 3),
  )


def _table_notes(results: Mapping[str, Verification]) -> list[str]:
  """Returns a line for whatever a reader of the table must know besides."""
  notes = []
  for name, result in results.items():
    notes += _notes_of_far(name, result)
    if result.num_resized:
      notes.append(
        f'{name}: {result.num_resized:,} of {2 * result.num_pairs:,} images '
        'had another size and were resized; they may not be aligned'
      )
  unusual = {r.folds for r in results.values()} - {PUBLISHED_FOLDS}
  for folds in sorted(unusual):
    names = ', '.join(n for n, r in results.items() if r.folds == folds)
    notes.append(
      f'accuracy is over {folds} folds, published ones are over '
      f'{PUBLISHED_FOLDS}: {names}'
    )
  return notes


def _notes_of_far(name: str, result: Verification) -> list[str]:
  """Says where the table has no TAR, and gives that of a higher FAR."""
  points = result.tar_at_far
  if points is None:
    kind = 'genuine' if result.same.all() else 'impostor'
    return [f'{name}: all pairs are {kind} pairs; there is no FAR and TAR']
  if points[1e-3].is_measurable:
    return []
  impostors = f'{points[1e-3].num_impostors:,} impostor pairs'
  note = f'{name}: FAR 1e-3 cannot be measured with {impostors}'
  if not points[1e-2].is_measurable:
    return [f'{note}; it takes 1,000']
  tar = _percent(points[1e-2].tar, points[1e-2].tar_interval, 2)
  return [f'{note}; at FAR 1e-2 TAR is {tar} %']


def _percent(rate: float, interval: tuple[float, float], digits: int) -> str:
  low, high = (f'{100 * limit:.{digits}f}' for limit in interval)
  return f'{100 * rate:.{digits}f} [{low}, {high}]'
