# SPDX-License-Identifier: Apache-2.0
"""Checks the error rates that the analysis of a study states.

Studies are drawn: networks of two configs, each with S seeds, score the same
pairs. A score has a part of the pair, one of the pair under its config, one of
the seed that both configs share, one of the network, and a rest. The accuracies
come from the scores by the protocol, thresholds included, and what a study
concludes from `evaluation.sign_flip_test` and `evaluation.seed_mean`. Takes
three minutes on one core.

    python checks/study_rates.py

Columns of the first table: the seeds, the kind of study and how much of the
variance of a difference is the pairs'; of studies without a difference those in
which p (mid-p) and the exact p are at most 0.05, and those whose 95 % interval
holds zero; the difference that studies state as detectable, in points, and of
studies in which it is there those whose interval holds it, those whose interval
excludes zero, and those whose p is at most 0.05. The second table has the share
of studies of four configs that find a difference of two equal ones, and the
share of the other differences that they find, by `evaluation.closed_test` and
after Holm's correction of exact p values.

The exit code is 0 if p is at most 0.05 in 3.5 to 6.5 % of the studies and the
exact p in no more than 5 %, the intervals hold in 93.5 to 98 %, the power is
70 to 90 %, and a false finding is in at most 6.5 %, each give or take two
deviations of a simulation of so many studies.

Where the configs differ on single pairs (`pairs`), though not in the mean over
all pairs, the hypothesis of the test is false: it speaks of these pairs. Its
rates have no limit there.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence

import numpy as np
import scipy
from scipy import special

from elasticface_jax import evaluation

# Cosines of impostor pairs, whose mean is 0.
DEVIATION = 0.1
LEVEL, POWER = 0.05, 0.8
# The most studies with a false finding, for one comparison as for several.
FALSE = 0.065
SEEDS = 5, 7, 10, 20
REPLICATES = 400


@dataclasses.dataclass(frozen=True)
class Design:
  """Sources of variation of the scores, in deviations of a score.

  The squares of ``pair``, ``differing`` and the rest are one together.

  Attributes:
    name: the part that dominates a difference.
    pair: of the pair, in all networks.
    differing: of the pair under its config, in all seeds.
    shared: of the seed, in both configs: moves the genuine scores.
    network: of the network, likewise.
    separation: mean of the genuine scores.
    num_pairs: N, half of them genuine.
  """

  name: str
  pair: float
  differing: float
  shared: float
  network: float
  separation: float = 2.5
  num_pairs: int = 600

  def accuracy(self, separation: float) -> float:
    """Returns the expected accuracy at the best threshold."""
    spread = np.sqrt(1 + (self.shared**2 + self.network**2) / 4)
    return float(special.ndtr(separation / 2 / spread))

  def separation_for(self, accuracy: float) -> float:
    """Inverts `accuracy`."""
    spread = np.sqrt(1 + (self.shared**2 + self.network**2) / 4)
    return float(2 * spread * special.ndtri(accuracy))

  def draw(
    self,
    rng: np.random.Generator,
    separations: Sequence[float],
    num_seeds: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws a study.

    Args:
      rng: of the draws.
      separations: of the configs, ``[C]``.
      num_seeds: S.

    Returns:
      Cosines ``[C, S, N]`` and which pairs are genuine, ``[N]``.
    """
    shape = len(separations), num_seeds, self.num_pairs
    same = np.arange(self.num_pairs) % 2 == 0
    moved = np.array(separations)[:, None] + (
      self.shared * rng.normal(size=(1, num_seeds))
      + self.network * rng.normal(size=shape[:2])
    )
    rest = np.sqrt(1 - self.pair**2 - self.differing**2)
    scores = (
      self.pair * rng.normal(size=shape[2])
      + self.differing * rng.normal(size=(shape[0], 1, shape[2]))
      + rest * rng.normal(size=shape)
      + np.where(same, moved[:, :, None], 0)
    )
    return np.clip(DEVIATION * scores, -1, 1), same


DESIGNS = (
  Design('seeds', pair=0.9, differing=0.0, shared=0.2, network=0.15),
  Design('even', pair=0.8, differing=0.0, shared=0.1, network=0.07),
  Design('rest', pair=0.6, differing=0.0, shared=0.1, network=0.0),
  Design('pairs', pair=0.5, differing=0.6, shared=0.1, network=0.07),
)
# Of the table of corrected values: the design, and separations of configs that
# are all equal, all but one, or in two pairs.
FAMILY = DESIGNS[1]
FAMILIES = {
  'all equal': (0.0, 0.0, 0.0, 0.0),
  'one apart': (0.0, 0.0, 0.0, 0.4),
  'two pairs': (0.0, 0.0, 0.4, 0.4),
}
FAMILY_SEEDS = 5, 8


class Analysis:
  """Accuracies of drawn studies, and their comparisons.

  Args:
    design: of the studies.
  """

  def __init__(self, design: Design):
    self._same = np.arange(design.num_pairs) % 2 == 0
    self._counts = evaluation.resample(self._same, REPLICATES)

  def compare(
    self, cosines: np.ndarray
  ) -> list[tuple[evaluation.SignFlipTest, evaluation.SeedMean]]:
    """Compares all pairs of configs, in their order."""
    correct = np.array(
      [
        [evaluation.correct_pairs(scores, self._same) for scores in networks]
        for networks in cosines
      ]
    )
    compared = []
    for first, second in itertools.combinations(correct, 2):
      differences = second.mean(axis=1) - first.mean(axis=1)
      resampled = [
        evaluation.resampled_accuracy(config, self._counts)
        for config in (first, second)
      ]
      compared.append(
        (
          evaluation.sign_flip_test(differences),
          evaluation.seed_mean(differences, resampled[1] - resampled[0]),
        )
      )
    return compared


def simulate(
  design: Design, num_seeds: int, num_studies: int, key: Sequence[int]
) -> dict[str, float]:
  """Returns the shares of the first table for one design.

  Args:
    design: of the studies.
    num_seeds: S.
    num_studies: number of studies of each true difference.
    key: of the draws.

  Returns:
    Shares ``p``, ``p_exact``, ``covers_zero``, ``covers``, ``power`` and
    ``power_p``, the known ``difference``, and the mean share of the variance
    that is the ``pairs``'.
  """
  rng = np.random.default_rng(key)
  analysis = Analysis(design)
  equal = [design.separation] * 2
  null = [
    analysis.compare(design.draw(rng, equal, num_seeds)[0])[0]
    for _ in range(num_studies)
  ]
  # Stated from noisy standard errors; the root of their mean square is not.
  stated = [found.detectable(LEVEL, POWER) for _, found in null]
  difference = float(np.sqrt(np.mean(np.square(stated))))
  middle = design.accuracy(design.separation)
  apart = [
    design.separation_for(middle + side * difference / 2) for side in (-1, 1)
  ]
  other = [
    analysis.compare(design.draw(rng, apart, num_seeds)[0])[0]
    for _ in range(num_studies)
  ]
  return {
    'p': np.mean([test.p <= LEVEL for test, _ in null]),
    'p_exact': np.mean([test.p_exact <= LEVEL for test, _ in null]),
    'covers_zero': np.mean([holds(found, 0.0) for _, found in null]),
    'difference': difference,
    'covers': np.mean([holds(found, difference) for _, found in other]),
    'power': np.mean([not holds(found, 0.0) for _, found in other]),
    'power_p': np.mean([test.p <= LEVEL for test, _ in other]),
    'pairs': np.mean(
      [(found.std_error_pairs / found.std_error) ** 2 for _, found in null]
    ),
  }


def holds(found: evaluation.SeedMean, difference: float) -> bool:
  """Returns True if the interval holds a difference."""
  low, high = found.interval
  return low <= difference <= high


def findings(
  apart: Sequence[float], num_seeds: int, num_studies: int, key: Sequence[int]
) -> dict[str, float]:
  """Returns the shares of the second table for one family.

  Args:
    apart: what is added to the separation of each config.
    num_seeds: S.
    num_studies: number of studies.
    key: of the draws.

  Returns:
    ``false_closed`` and ``false_holm``: shares of studies in which a corrected
    p of two equal configs is at most 0.05. ``closed`` and ``holm``: shares of
    the differences that are found; NaN without any.
  """
  rng = np.random.default_rng(key)
  rows = []
  separations = FAMILY.separation + np.array(apart)
  pairs = np.triu_indices(len(apart), 1)
  is_equal = separations[pairs[0]] == separations[pairs[1]]
  for _ in range(num_studies):
    cosines, same = FAMILY.draw(rng, separations, num_seeds)
    figures = accuracies(cosines, same)
    exact = [
      evaluation.sign_flip_test(figures[second] - figures[first]).p_exact
      for first, second in zip(*pairs, strict=True)
    ]
    found = (
      evaluation.closed_test(figures)[pairs] <= LEVEL,
      evaluation.holm(exact) <= LEVEL,
    )
    rows.append([one[is_equal].any() for one in found])
    rows[-1] += [one[~is_equal].sum() for one in found]
  false_closed, false_holm, closed, holm = np.mean(rows, axis=0)
  num_apart = np.count_nonzero(~is_equal) or np.nan
  return {
    'false_closed': false_closed,
    'false_holm': false_holm,
    'closed': closed / num_apart,
    'holm': holm / num_apart,
  }


def accuracies(cosines: np.ndarray, same: np.ndarray) -> np.ndarray:
  """Returns accuracies by the protocol, ``[C, S, N] -> [C, S]``."""
  return np.array(
    [
      [evaluation.correct_pairs(scores, same).mean() for scores in networks]
      for networks in cosines
    ]
  )


def failures(
  design: Design, row: dict[str, float], num_studies: int
) -> list[str]:
  """Returns the names of the shares that are not as stated.

  Args:
    design: of the studies.
    row: from `simulate`.
    num_studies: behind each share.

  Returns:
    Names, none if all are.
  """
  limits = {
    'covers_zero': (0.935, 0.98),
    'covers': (0.935, 0.98),
    'power': (0.7, 0.9),
  }
  if not design.differing:
    limits |= {'p': (0.035, 0.065), 'p_exact': (0.0, LEVEL)}
  return [
    name
    for name, (low, high) in limits.items()
    if not low - error(low, num_studies)
    <= row[name]
    <= high + error(high, num_studies)
  ]


def error(share: float, num_studies: int) -> float:
  """Returns two deviations of a share of so many studies."""
  return 2 * float(np.sqrt(share * (1 - share) / num_studies))


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the tables and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--studies', type=int, default=1000, metavar='N')
  parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
  parser.add_argument('--key', type=int, default=0)
  args = parser.parse_args(argv)
  begin, failed = time.perf_counter(), 0
  print(
    f'{args.studies} studies; numpy {np.__version__}, scipy {scipy.__version__}'
  )
  print(
    f'{"seeds":>5} {"design":8}{"pairs %":>8}{"p %":>7}{"exact %":>9}'
    f'{"zero %":>8}{"points":>8}{"holds %":>9}{"power %":>9}{"by p %":>8}'
  )
  for num_seeds in args.seeds:
    for place, design in enumerate(DESIGNS):
      row = simulate(
        design, num_seeds, args.studies, (args.key, num_seeds, place)
      )
      wrong = failures(design, row, args.studies)
      failed += len(wrong)
      cells = {name: 100 * share for name, share in row.items()}
      print(
        f'{num_seeds:5} {design.name:8}{cells["pairs"]:8.0f}{cells["p"]:7.1f}'
        f'{cells["p_exact"]:9.1f}{cells["covers_zero"]:8.1f}'
        f'{cells["difference"]:8.2f}{cells["covers"]:9.1f}'
        f'{cells["power"]:9.1f}{cells["power_p"]:8.1f}'
        f'{"  <- " + ", ".join(wrong) if wrong else ""}',
        flush=True,
      )
  print('four configs: false findings %, differences found %')
  print(
    f'{"seeds":>5} {"configs":10}{"closed":>8}{"Holm":>7}{"closed":>8}'
    f'{"Holm":>7}'
  )
  for num_seeds in FAMILY_SEEDS:
    for place, (name, apart) in enumerate(FAMILIES.items()):
      key = args.key, num_seeds, 9, place
      row = findings(apart, num_seeds, args.studies, key)
      is_kept = max(row['false_closed'], row['false_holm']) <= (
        FALSE + error(FALSE, args.studies)
      )
      failed += not is_kept
      cells = {name: 100 * share for name, share in row.items()}
      print(
        f'{num_seeds:5} {name:10}{cells["false_closed"]:8.1f}'
        f'{cells["false_holm"]:7.1f}{cells["closed"]:8.1f}{cells["holm"]:7.1f}'
        f'{"" if is_kept else "  <- above 6.5"}',
        flush=True,
      )
  print(f'{failed} shares fail; {time.perf_counter() - begin:.0f} s')
  return int(failed > 0)


if __name__ == '__main__':
  sys.exit(main())
