# SPDX-License-Identifier: Apache-2.0
"""Files of scores, ``scores_NAME.npz``, which an evaluation writes."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError, first_line

# Files of scores and results may be of two evaluations.
_TOLERANCE = 1e-9


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads a file of scores.

  Args:
    path: ``scores_NAME.npz``.

  Returns:
    ``(scores, same)``, float64 and bool, both ``[N]``.

  Raises:
    InputError: without a remedy, if it is damaged or holds something else.
  """
  try:
    # NumPy leaves a damaged file open that it opened itself.
    with path.open('rb') as file, np.load(file, allow_pickle=False) as saved:
      scores, same = saved['scores'], saved['same']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(f'{path.name} is damaged ({first_line(error)})') from error
  if scores.ndim != 1 or scores.shape != same.shape or same.dtype != bool:
    raise InputError(f'{path.name} holds no scores of pairs')
  if not np.issubdtype(scores.dtype, np.floating):
    raise InputError(f'{path.name} holds {scores.dtype} as scores')
  if not len(scores) or not np.isfinite(scores).all():
    raise InputError(f'{path.name} holds scores that are not finite, or none')
  return scores.astype(np.float64), same


def check_scores(
  path: Path, scores: np.ndarray, same: np.ndarray, summary: Mapping[str, Any]
) -> None:
  """Compares scores with the numbers that were computed from them.

  Args:
    path: of the scores.
    scores: from `read_scores`.
    same: likewise.
    summary: the set's part of ``results.json``.

  Raises:
    InputError: without a remedy, if they are of another evaluation.
  """
  counts = {'num_pairs': len(same), 'num_genuine': int(same.sum())}
  agree = all(summary.get(name, n) == n for name, n in counts.items())
  for point in (summary.get('tar_at_far') or {}).values():
    if agree and None not in (point['threshold'], point['tar']):
      tar = np.mean(scores[same] >= point['threshold'])
      agree = abs(tar - point['tar']) < _TOLERANCE
  if not agree:
    raise InputError(f'{path.name} is of another evaluation than results.json')
