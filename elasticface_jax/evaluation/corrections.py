# SPDX-License-Identifier: Apache-2.0
"""Corrections of p values for the number of comparisons.

Both keep the chance that a study has one or more false findings. `holm` takes
any p values. `closed_test` compares configs over seeds: it has nearly the power
of a single comparison, and with five seeds it can find differences, where
corrected p values of `sign_flip_test` are all above 0.05.

Shapes: C configs, S seeds.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.comparisons import mid_p, sign_flip_test

# More have thousands of hypotheses, and take minutes.
MOST_CONFIGS = 7
# Relabellings of three or more configs; standard error 0.002 at a p of 0.05.
_DRAWS = 10_000
_ROUNDING = 1e-9


def holm(p_values: np.ndarray | Sequence[float]) -> np.ndarray:
  """Corrects p values for their number, by Holm's step-down rule.

  Rejecting what is at most ``level`` keeps the chance of one or more false
  findings at ``level``, whatever the dependence. The k-th smallest of m values
  is multiplied by m - k + 1, and none is smaller than one before it.

  Give exact values of `sign_flip_test`, not mid-p values: these exceed a small
  level by up to its double, and of four equal configs with seven seeds, 8 % of
  studies would have a false finding at 5 %.

  Args:
    p_values: p values of one family, in [0, 1], ``[M]``.

  Returns:
    The corrected values in the order given, at most 1, float64, ``[M]``.

  Examples:
    >>> print(holm([0.03, 0.01, 0.04]))
    [0.06 0.03 0.06]

  References:
    Holm, Scand. J. Statist. 6 (1979) 65.
  """
  p_values = np.asarray(p_values, np.float64)
  order = np.argsort(p_values, kind='stable')
  factors = np.arange(len(p_values), 0, -1)
  adjusted = np.empty(len(p_values))
  adjusted[order] = np.minimum(
    np.maximum.accumulate(p_values[order] * factors), 1
  )
  return adjusted


def closed_test(figures: np.ndarray) -> np.ndarray:
  """Tests all pairs of configs, with p values corrected for their number.

  A pair differs if every hypothesis that makes the two equal is rejected, among
  them "all configs are equal" and "these two are equal, and those two are". A
  hypothesis puts configs into groups, within which the networks of a seed may
  be relabelled; its statistic is the largest mean difference within a group,
  divided by its standard error if it were zero, so that configs that vary much
  do not hide others, nor pairs of few seeds those of many. Its p value is the
  mid-p of that over drawn relabellings. For two configs it is
  `sign_flip_test`. The corrected p of a pair is the largest p of the hypotheses
  that make it equal, so it is never below its own. Networks that are missing
  are not relabelled, and each pair has the seeds that both of it have.

  At 5 %, there is a false finding in as many studies as `sign_flip_test` has:
  in at most 6.2 % with 5 and 6 seeds, and 5 % with more.

  Args:
    figures: of each config and seed; NaN where there is none, ``[C, S]``. At
      most 7 configs.

  Returns:
    The corrected p of each pair, symmetric, 1 on the diagonal and where two
    configs have no seed in common, float64, ``[C, C]``.

  Raises:
    InputError: if there are too many configs, or no array of two axes is given.

  Examples:
    >>> figures = np.array([[1, 2, 3, 4, 5], [2, 1, 4, 3, 6], [7, 8, 9, 9, 9]])
    >>> print(closed_test(figures)[0].round(2))
    [1.   0.69 0.03]

  References:
    Marcus, Peritz and Gabriel, Biometrika 63 (1976) 655, for closed tests;
    Petrondas and Gabriel, JASA 78 (1983) 949, for pairs by permutation: only
    configs that a hypothesis makes equal are relabelled.
  """
  figures = np.asarray(figures, np.float64)
  if figures.ndim != 2 or len(figures) > MOST_CONFIGS:
    raise InputError(
      f'figures have shape {figures.shape}; expected [C, S], C at most '
      f'{MOST_CONFIGS}'
    )
  adjusted = np.zeros((len(figures),) * 2)
  largest = functools.cache(functools.partial(_largest, figures))
  # A config that has no figure yet is in no hypothesis.
  known = np.flatnonzero(np.isfinite(figures).any(axis=1))
  for groups in _partitions(tuple(known.tolist())):
    groups = [group for group in groups if len(group) > 1]
    p = _p(figures, groups, largest)
    for group in groups:
      place = np.ix_(group, group)
      adjusted[place] = np.maximum(adjusted[place], p)
  for first, second in itertools.combinations(range(len(figures)), 2):
    if not _shared(figures, (first, second)).size:
      adjusted[first, second] = adjusted[second, first] = 1
  np.fill_diagonal(adjusted, 1)
  return adjusted


def _p(
  figures: np.ndarray,
  groups: Sequence[tuple[int, ...]],
  largest: Callable[[tuple[int, ...]], np.ndarray],
) -> float:
  """Computes the p value of the hypothesis that groups make."""
  if not groups:
    return 1.0
  if len(groups) == 1 and len(groups[0]) == 2:
    shared = _shared(figures, groups[0])
    return sign_flip_test(shared[1] - shared[0]).p if shared.size else 1.0
  statistics = np.max([largest(group) for group in groups], axis=0)
  return mid_p(statistics, statistics[0], statistics[0])


def _shared(figures: np.ndarray, pair: Sequence[int]) -> np.ndarray:
  """Returns the figures of two configs for the seeds that both have."""
  chosen = figures[list(pair)]
  return chosen[:, np.isfinite(chosen).all(axis=0)]


def _largest(figures: np.ndarray, group: tuple[int, ...]) -> np.ndarray:
  """Computes the statistic of a group, as observed and relabelled.

  Args:
    figures: of all configs, ``[C, S]``.
    group: indices of configs; the key of the draws.
  """
  chosen = figures[list(group)]
  is_there = np.isfinite(chosen)
  labels = _labels(group, is_there.T.tobytes())
  # Of each seed, the figures that its labels now stand for.
  relabelled = np.stack([chosen[labels[s], s] for s in range(chosen.shape[1])])
  # Differences below it are errors of rounding.
  least = _ROUNDING * np.abs(chosen[is_there]).max() or 1.0
  largest = np.zeros(_DRAWS)
  for first, second in itertools.combinations(range(len(group)), 2):
    (seeds,) = np.nonzero(is_there[first] & is_there[second])
    if not len(seeds):
      continue
    differences = relabelled[seeds, :, second] - relabelled[seeds, :, first]
    spread = np.sqrt(np.square(differences).mean(axis=0))
    mean = math.sqrt(len(seeds)) * np.abs(differences.mean(axis=0))
    largest = np.maximum(largest, mean / np.maximum(spread, least))
  return largest


# Those of four configs are used again for every metric.
@functools.lru_cache(maxsize=32)
def _labels(group: tuple[int, ...], is_there: bytes) -> np.ndarray:
  """Draws labels for the networks of each seed, first those observed."""
  size = len(group)
  seeds = np.frombuffer(is_there, bool).reshape(-1, size)
  labels = np.tile(np.arange(size, dtype=np.int8), (len(seeds), _DRAWS, 1))
  rng = np.random.default_rng(group)
  drawn = rng.permuted(labels, axis=2)
  for seed, there in enumerate(seeds):
    places = np.flatnonzero(there)
    if len(places) == size:
      labels[seed] = drawn[seed]
    else:
      labels[seed][:, places] = rng.permuted(labels[seed][:, places], axis=1)
  labels[:, 0] = np.arange(size)
  return labels


def _partitions(
  items: tuple[int, ...],
) -> Iterator[list[tuple[int, ...]]]:
  """Yields all ways to put items into groups."""
  if not items:
    yield []
    return
  first, rest = items[0], items[1:]
  for number in range(len(rest) + 1):
    for others in itertools.combinations(rest, number):
      left = tuple(item for item in rest if item not in others)
      for groups in _partitions(left):
        yield [(first, *others), *groups]
