# SPDX-License-Identifier: Apache-2.0
"""Checks how often the intervals of a verification hold the true value.

Sets of pairs are drawn whose scores are normal, so that the true TAR at a FAR,
threshold, EER, AUC and accuracy are known; `evaluation.verify` states its 95 %
intervals for each. Takes about five minutes on one core.

    python checks/interval_coverage.py

Columns: the expected number of errors behind the figure, the true value, the
share of the sets whose interval holds it, the shares whose interval lies below
and above it, and the mean width. The exit code is 0 if all shares are between
93 and 97 %, give or take two deviations of a simulation of so many sets. Where
less than ten errors are expected, more than 97 % count too: there no interval
that is right for all networks can be exact.

The true accuracy is that of new pairs, in the mean over the thresholds that the
folds of all sets choose; these are found here once more.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import scipy
from scipy import optimize, special

from elasticface_jax import evaluation

FOLDS = 10
# Cosines of impostor pairs, whose mean is 0.
DEVIATION = 0.1
LOWEST, HIGHEST, FEW = 0.93, 0.97, 10


@dataclasses.dataclass(frozen=True)
class Population:
  """A population of pairs, and the size of the sets drawn from it.

  Attributes:
    name: the kind of set that it is like.
    separation: mean of the genuine scores, in deviations of the impostors'.
    genuine: number of genuine pairs.
    impostors: number of impostor pairs.
    spread: deviation of the genuine scores, in deviations of the impostors'.
    mislabelled: share of genuine pairs that score as impostor pairs do.
    fars: the FARs at which TAR is measured.
  """

  name: str
  separation: float
  genuine: int = 3000
  impostors: int = 3000
  spread: float = 1.0
  mislabelled: float = 0.0
  fars: tuple[float, ...] = (1e-2, 1e-3)

  def tar(self, threshold: float) -> float:
    """Returns the TAR at a threshold in deviations of the impostors."""
    clean = special.ndtr((self.separation - threshold) / self.spread)
    return (1 - self.mislabelled) * clean + self.mislabelled * special.ndtr(
      -threshold
    )

  def eer(self) -> float:
    """Returns the true equal error rate."""
    threshold = optimize.brentq(
      lambda cut: special.ndtr(-cut) - (1 - self.tar(cut)), -5, 15
    )
    return float(special.ndtr(-threshold))

  def auc(self) -> float:
    """Returns the true area under the curve."""
    clean = special.ndtr(self.separation / np.hypot(1, self.spread))
    return (1 - self.mislabelled) * clean + self.mislabelled / 2

  def accuracy(self, cosine: float) -> float:
    """Returns the true accuracy of a threshold."""
    cut = cosine / DEVIATION
    right = self.genuine * self.tar(cut) + self.impostors * special.ndtr(cut)
    return right / (self.genuine + self.impostors)

  def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the cosines of a set, and which pairs are genuine."""
    same = np.arange(self.genuine + self.impostors) < self.genuine
    same = rng.permutation(same)
    scores = rng.normal(size=len(same))
    clean = same & (rng.random(len(same)) >= self.mislabelled)
    scores[clean] = self.separation + self.spread * scores[clean]
    return np.clip(DEVIATION * scores, -1, 1), same


POPULATIONS = (
  Population('like LFW', 5.5),
  Population('like AgeDB-30', 4),
  Population('like CPLFW', 3),
  Population('like CFP', 4, 3500, 3500, spread=1.5),
  Population('mislabelled', 6, mislabelled=0.005),
  Population('untrained', 1),
  Population('small', 3, 300, 300, fars=(0.1, 0.01)),
  Population('unbalanced', 3.5, 500, 10000),
)


def embeddings_of(cosines: np.ndarray) -> np.ndarray:
  """Returns planar pairs with these cosines, ``[N] -> [2N, 2]``."""
  pairs = np.zeros((len(cosines), 2, 2))
  pairs[:, 0, 0] = 1
  pairs[:, 1] = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
  return pairs.reshape(-1, 2)


def fold_thresholds(cosines: np.ndarray, same: np.ndarray) -> Iterator[float]:
  """Yields the cosine that each fold of the published protocol is judged at."""
  distances = 2 - 2 * cosines
  grid = np.arange(400) * 0.01
  for fold in np.array_split(np.arange(len(same)), FOLDS):
    others = np.delete(np.arange(len(same)), fold)
    genuine = np.sort(distances[others][same[others]])
    impostors = np.sort(distances[others][~same[others]])
    right = np.searchsorted(genuine, grid) - np.searchsorted(impostors, grid)
    yield 1 - grid[np.argmax(right)] / 2


def intervals_of(
  population: Population, result: evaluation.Verification
) -> Iterator[tuple[str, float, float | None, tuple[float, float]]]:
  """Yields name, expected errors, true value and interval of each figure.

  The true value of the accuracy is None: it is known after all sets.
  """
  pairs = population.genuine + population.impostors
  rarer = min(population.genuine, population.impostors)
  errors = pairs * (1 - population.accuracy(result.threshold))
  yield 'accuracy', errors, None, result.accuracy_interval
  eer, auc = population.eer(), population.auc()
  yield 'EER', rarer * eer, eer, result.eer_interval
  # Of errors in AUC a pair that ranks badly makes many at once.
  yield 'AUC', rarer * (1 - auc), auc, result.auc_interval
  for far, point in result.tar_at_far.items():
    cut = float(-special.ndtri(far))
    tar, name = population.tar(cut), f'at FAR {far:g}'
    false = population.impostors * far
    fewest = min(population.genuine * (1 - tar), false)
    yield f'TAR {name}', fewest, tar, point.tar_interval
    yield f'cosine {name}', false, DEVIATION * cut, point.threshold_interval
    true_far = float(special.ndtr(-point.threshold / DEVIATION))
    yield f'FAR {name}', false, true_far, point.far_interval


def simulate(
  population: Population, num_sets: int, seed: tuple[int, ...]
) -> list[dict]:
  """Returns a row for each figure of a population.

  Args:
    population: to draw from.
    num_sets: number of sets.
    seed: of the draws.

  Returns:
    Dicts with ``figure``, ``errors``, ``true`` and the rates ``below`` and
    ``above`` of intervals that lie on one side of it, and the mean ``width``.
  """
  rng = np.random.default_rng(seed)
  found: dict[str, list[tuple]] = {}
  accuracies = []
  for _ in range(num_sets):
    cosines, same = population.draw(rng)
    result = evaluation.verify(
      embeddings_of(cosines), same, FOLDS, population.fars
    )
    accuracies += map(population.accuracy, fold_thresholds(cosines, same))
    for name, *rest in intervals_of(population, result):
      found.setdefault(name, []).append(rest)
  rows = []
  for name, cases in found.items():
    errors, true, limits = zip(*cases, strict=True)
    if name == 'accuracy':
      true = [np.mean(accuracies)] * num_sets
    true, (low, high) = np.array(true), np.array(limits).T
    rows.append(
      {
        'figure': name,
        'errors': np.mean(errors),
        'true': true.mean(),
        'below': np.mean(high < true),
        'above': np.mean(low > true),
        'width': np.mean(high - low),
      }
    )
  return rows


def is_kept(row: dict, num_sets: int) -> bool:
  """Decides whether a row of `simulate` is what the intervals state."""
  held = 1 - row['below'] - row['above']
  low, high = (
    2 * np.sqrt(share * (1 - share) / num_sets) for share in (LOWEST, HIGHEST)
  )
  return held >= LOWEST - low and (
    held <= HIGHEST + high or row['errors'] < FEW
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a table and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sets', type=int, default=1000, metavar='N')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  begin, failures = time.perf_counter(), 0
  print(f'{args.sets} sets; numpy {np.__version__}, scipy {scipy.__version__}')
  print(
    f'{"set":14}{"figure":20}{"errors":>9}{"true":>9}{"held %":>8}'
    f'{"below":>7}{"above":>7}{"width":>9}'
  )
  for place, population in enumerate(POPULATIONS):
    for row in simulate(population, args.sets, (args.seed, place)):
      held = 100 * (1 - row['below'] - row['above'])
      kept = is_kept(row, args.sets)
      failures += not kept
      print(
        f'{population.name:14}{row["figure"]:20}{row["errors"]:9.1f}'
        f'{row["true"]:9.5f}{held:8.1f}{100 * row["below"]:7.1f}'
        f'{100 * row["above"]:7.1f}{row["width"]:9.5f}'
        f'{"" if kept else "  <- not 93 to 97"}',
        flush=True,
      )
  print(f'{failures} of them fail; {time.perf_counter() - begin:.0f} s')
  return int(failures > 0)


if __name__ == '__main__':
  sys.exit(main())
