# SPDX-License-Identifier: Apache-2.0
"""The numbers of a study: its `analysis.json`, or what its runs tell alone.

The file may be of another version, edited or damaged: what is no number is
None, and the page says so where it stands.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.report.read import Summary, is_number
from elasticface_jax.report.words import is_interval
from elasticface_jax.training import checkpoint

FILE = 'analysis.json'
ACCURACY, EER, TAR = 'accuracy', 'eer', 'tar@'


class Level(NamedTuple):
  """A rate of one config over the seeds, as a share.

  Attributes:
    mean: over the seeds; None if it cannot be measured.
    std: over the seeds; None for a single one.
    interval: of the mean; None if there is none.
    by_seed: the rate of each run.
  """

  mean: float | None
  std: float | None
  interval: tuple[float, float] | None
  by_seed: dict[int, float]


class Comparison(NamedTuple):
  """The difference of two configs in one rate, second minus first, as a share.

  Attributes:
    first: name of a config.
    second: name of the other one.
    difference: mean over the seeds; None if it cannot be measured.
    by_seed: of each seed.
    interval: of the difference; None if there is none.
    p: of the permutation test; None if there is none.
    p_adjusted: after the correction for the number of comparisons.
    detectable: smallest difference that the study would have found.
    detectable_adjusted: the same after the correction.
    others: further numbers of the file by name.
  """

  first: str
  second: str
  difference: float | None
  by_seed: dict[int, float]
  interval: tuple[float, float] | None
  p: float | None
  p_adjusted: float | None
  detectable: float | None
  detectable_adjusted: float | None
  others: dict[str, float]


class Metric(NamedTuple):
  """One rate on one set.

  Attributes:
    levels: by name of the config.
    comparisons: pairs of configs, in their order.
  """

  levels: dict[str, Level]
  comparisons: Sequence[Comparison]


class OfSet(NamedTuple):
  """All rates on one set.

  Attributes:
    num_pairs: number of its pairs; None if it is not known.
    num_genuine: number of its genuine pairs, likewise.
    pairs_shared: whether all runs were evaluated on the same pairs; None if it
      is not known.
    metrics: by name, such as ``tar@1e-2``.
  """

  num_pairs: int | None
  num_genuine: int | None
  pairs_shared: bool | None
  metrics: dict[str, Metric]


@dataclasses.dataclass(frozen=True)
class Analysis:
  """Numbers of a study.

  Attributes:
    configs: names.
    seeds: of the runs.
    level: of the tests; None where there are none.
    confidence: of the intervals; likewise.
    power: at which a difference would have been found; likewise.
    num_comparisons: that the correction is for; likewise.
    correction: name of the correction; empty if it is not known.
    notes: sentences.
    sets: by name.
  """

  configs: Sequence[str]
  seeds: Sequence[int]
  level: float | None
  confidence: float | None
  power: float | None
  num_comparisons: int | None
  correction: str
  notes: Sequence[str]
  sets: dict[str, OfSet]


_CORRECTIONS = {'closed': 'closed permutation tests', 'holm': 'Holm’s rule'}
_OF_COMPARISON = (
  'difference', 'p', 'p_adjusted', 'detectable', 'detectable_adjusted',
)  # fmt: skip


def read(path: Path, configs: Sequence[str]) -> Analysis:
  """Reads the analysis of a study.

  Args:
    path: ``analysis.json``.
    configs: names in the study; numbers of others are left out.

  Returns:
    The analysis.

  Raises:
    InputError: without a remedy, if it is damaged.
  """
  try:
    content = checkpoint.read_json(path, '')
    return _analysis(content, configs)
  except (InputError, OSError, RecursionError) as error:
    raise InputError(f'{path.name} is damaged') from error
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(f'{path.name} is not what a study wrote') from error


def _analysis(content: Mapping[str, Any], configs: Sequence[str]) -> Analysis:
  numbers = (
    _number(content.get(name)) for name in ('level', 'confidence', 'power')
  )
  return Analysis(
    [str(name) for name in content['configs']],
    [int(seed) for seed in content['seeds']],
    *numbers,
    _whole(content.get('num_comparisons')),
    _CORRECTIONS.get(str(content.get('correction')), ''),
    [str(note) for note in content.get('notes') or ()],
    {name: _of_set(found, configs) for name, found in content['sets'].items()},
  )


def _of_set(content: Mapping[str, Any], configs: Sequence[str]) -> OfSet:
  shared = content.get('pairs_shared')
  return OfSet(
    _whole(content.get('num_pairs')),
    _whole(content.get('num_genuine')),
    shared if isinstance(shared, bool) else None,
    {
      name: Metric(
        {
          config: _level(found['configs'][config])
          for config in configs
          if config in found['configs']
        },
        [
          _comparison(one)
          for one in found['comparisons']
          if one['first'] in configs and one['second'] in configs
        ],
      )
      for name, found in content['metrics'].items()
    },
  )


def _level(content: Mapping[str, Any]) -> Level:
  return Level(
    _number(content.get('mean')),
    _number(content.get('std')),
    _interval(content.get('interval')),
    _by_seed(content.get('by_seed')),
  )


def _comparison(content: Mapping[str, Any]) -> Comparison:
  difference, *others = (_number(content.get(name)) for name in _OF_COMPARISON)
  return Comparison(
    content['first'],
    content['second'],
    difference,
    _by_seed(content.get('by_seed')),
    _interval(content.get('interval')),
    *others,
    {
      name: value
      for name, value in content.items()
      if name not in _OF_COMPARISON and is_number(value)
    },
  )


def _number(value: Any) -> float | None:
  return value if is_number(value) else None


def _whole(value: Any) -> int | None:
  return value if is_number(value) and isinstance(value, int) else None


def _interval(value: Any) -> tuple[float, float] | None:
  return tuple(value) if is_interval(value) else None


def _by_seed(content: Any) -> dict[int, float]:
  found = {
    int(seed): value
    for seed, value in (content or {}).items()
    if is_number(value)
  }
  return dict(sorted(found.items()))


def from_runs(
  results: Mapping[str, Mapping[int, Mapping[str, Summary]]],
) -> Analysis:
  """Computes means and deviations from the runs, for want of an analysis.

  Args:
    results: numbers of the sets, by name of the config and seed.

  Returns:
    An analysis without intervals and comparisons.
  """
  values: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
  for config, by_seed in results.items():
    for seed, sets in by_seed.items():
      for name, summary in sets.items():
        for metric, value in rates(summary.content):
          of_metric = values.setdefault(name, {}).setdefault(metric, {})
          of_metric.setdefault(config, {})[seed] = value
  return Analysis(
    list(results),
    sorted({seed for by_seed in results.values() for seed in by_seed}),
    None,
    None,
    None,
    None,
    '',
    [],
    {
      name: OfSet(
        None,
        None,
        None,
        {
          metric: Metric({c: _summed(v) for c, v in found.items()}, [])
          for metric, found in metrics.items()
        },
      )
      for name, metrics in values.items()
    },
  )


def _summed(by_seed: dict[int, float]) -> Level:
  values = list(by_seed.values())
  deviation = statistics.stdev(values) if len(values) > 1 else None
  return Level(statistics.fmean(values), deviation, None, by_seed)


def rates(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """Yields name and value of the rates of a set that have been measured.

  Args:
    summary: of ``results.json``.

  Examples:
    >>> point = {'far_target': 0.01, 'tar': 0.75}
    >>> summary = {'accuracy': 0.5, 'tar_at_far': {'0.01': point}}
    >>> list(rates(summary))
    [('accuracy', 0.5), ('tar@1e-2', 0.75)]
  """
  for name in (ACCURACY, EER):
    if is_number(summary.get(name)):
      yield name, summary[name]
  for point in (summary.get('tar_at_far') or {}).values():
    if is_number(point.get('tar')):
      yield f'{TAR}{rate(point["far_target"])}', point['tar']
