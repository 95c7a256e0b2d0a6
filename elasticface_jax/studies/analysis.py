# SPDX-License-Identifier: Apache-2.0
"""Analysis of a study: all pairs of configs, on every set, by every metric.

Seeds are paired: two configs are compared by the differences of the seeds that
both have. `evaluation.comparisons` has the statistics.
"""

import collections
import csv
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax import atomic, evaluation
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.evaluation.comparisons import smallest_p
from elasticface_jax.evaluation.rates import is_measurable
from elasticface_jax.studies import results, tables
from elasticface_jax.studies.results import Key, SetResult, Study
from elasticface_jax.training.checkpoint import write_json

LEVEL, CONFIDENCE, POWER = 0.05, 0.95, 0.8
FILE, COMPARISONS, RUNS = 'analysis.json', 'comparisons.csv', 'runs.csv'
# Columns of comparisons.csv that are entries of a comparison.
_COLUMNS = (
  *('difference', 'std_error', 'std_error_seeds', 'std_error_pairs'),
  *('p', 'p_exact', 'p_smallest', 'p_adjusted'),
  *('detectable', 'detectable_adjusted'),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
  """One metric of every network on one set.

  Attributes:
    values: the figure of each run.
    replicates: the figures on resampled pairs, the same for all runs, ``[R]``
      each; None where runs of other seeds have other pairs.
  """

  values: dict[Key, float]
  replicates: dict[Key, np.ndarray] | None

  def of(
    self, config: str, seeds: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns values ``[S]`` and replicates ``[R, S]`` of a config."""
    keys = [Key(config, seed) for seed in seeds]
    values = np.array([self.values[key] for key in keys])
    if self.replicates is None:
      return values, None
    return values, np.stack([self.replicates[key] for key in keys], axis=1)

  def seeds(self, *configs: str) -> list[int]:
    """Returns the seeds that all of some configs have, in rising order."""
    found = [{k.seed for k in self.values if k.config == c} for c in configs]
    return sorted(set.intersection(*found))


def of_folder(folder: Path) -> dict[str, Any]:
  """Analyses the results of a study. The same results give the same numbers.

  Args:
    folder: of the study.

  Returns:
    The content of ``analysis.json``, as docs/studies.md describes it: shares
    are fractions, and None stands for what cannot be said.

  Raises:
    InputError: if there is no ``study.json``, or it is damaged.
  """
  return _analysed(results.read(folder))


def write(folder: Path) -> str:
  """Writes ``analysis.json``, ``comparisons.csv`` and ``runs.csv``.

  Args:
    folder: of the study; the files are written into it.

  Returns:
    The analysis as text.

  Raises:
    InputError: as `of_folder`, or if a file cannot be written.
  """
  study = results.read(folder)
  analysis = _analysed(study)
  _write_csv(folder / COMPARISONS, _comparison_rows(analysis))
  _write_csv(folder / RUNS, _run_rows(study, analysis))
  write_json(folder / FILE, analysis)
  return tables.text(analysis)


def _analysed(study: Study) -> dict[str, Any]:
  by_set: dict[str, dict[Key, SetResult]] = collections.defaultdict(dict)
  for key, run in study.runs.items():
    for name, result in run.sets.items():
      by_set[name][key] = result
  sets = {
    name: _set(study.configs, found) for name, found in sorted(by_set.items())
  }
  num_comparisons = len(study.configs) * (len(study.configs) - 1) // 2
  return {
    'configs': study.configs,
    'seeds': study.seeds,
    'missing': [list(key) for key in study.problems],
    'varying': ', '.join(study.differing),
    'level': LEVEL,
    'confidence': CONFIDENCE,
    'power': POWER,
    'num_comparisons': num_comparisons,
    'correction': 'closed' if _is_closed(study.configs) else 'holm',
    'notes': study.notes + _notes(sets, study.configs, num_comparisons),
    'sets': sets,
  }


def _set(
  configs: Sequence[str], found: Mapping[Key, SetResult]
) -> dict[str, Any]:
  first = next(iter(found.values()))
  return {
    'num_pairs': len(first.same),
    'num_genuine': int(first.same.sum()),
    'pairs_shared': not first.is_drawn,
    'metrics': {
      name: _metric(configs, figures) for name, figures in _figures(found)
    },
  }


# Figures of the networks.


def _figures(found: Mapping[Key, SetResult]) -> Iterator[tuple[str, Figures]]:
  """Yields names and figures: those of ``results.json``, and resampled ones."""
  first = next(iter(found.values()))
  replicates: dict[str, dict[Key, np.ndarray]] | None = None
  fars = _fars(found.values())
  if not first.is_drawn:
    replicates = _replicates(found, fars)
  for name in ('accuracy', *map(_tar_name, fars), 'eer'):
    values = {key: _value(one, name) for key, one in found.items()}
    if None not in values.values():
      yield name, Figures(values, replicates and replicates[name])


def _fars(found: Sequence[SetResult]) -> list[float]:
  """Returns the targets that all runs have and these pairs can measure."""
  shared = set.intersection(
    *(
      {
        point['far_target']
        for point in (r.summary['tar_at_far'] or {}).values()
      }
      for r in found
    )
  )
  num_impostors = min(np.count_nonzero(~result.same) for result in found)
  return sorted(
    (far for far in shared if is_measurable(far, num_impostors)), reverse=True
  )


def _tar_name(far: float) -> str:
  return f'tar@{rate(far, 6)}'


def _value(result: SetResult, name: str) -> float | None:
  if not name.startswith('tar@'):
    return result.summary[name]
  return next(
    point['tar']
    for point in result.summary['tar_at_far'].values()
    if _tar_name(point['far_target']) == name
  )


def _replicates(
  found: Mapping[Key, SetResult], fars: Sequence[float]
) -> dict[str, dict[Key, np.ndarray]]:
  """Computes every metric of every run on the same resampled pairs."""
  same = next(iter(found.values())).same
  counts = evaluation.resample(same)
  correct = np.array([result.correct for result in found.values()])
  accuracies = evaluation.resampled_accuracy(correct, counts)
  by_metric = {'accuracy': dict(zip(found, accuracies.T, strict=True))}
  if not 0 < same.mean() < 1:
    return by_metric
  names = [_tar_name(far) for far in fars]
  by_metric |= {name: {} for name in ('eer', *names)}
  for key, result in found.items():
    eer, tar = evaluation.resampled_rates(result.scores, same, counts, fars)
    by_metric['eer'][key] = eer
    for name, column in zip(names, tar.T, strict=True):
      by_metric[name][key] = column
  return by_metric


# Statistics.


def _metric(configs: Sequence[str], figures: Figures) -> dict[str, Any]:
  compared = [
    _comparison(first, second, seeds, figures)
    for first, second in itertools.combinations(configs, 2)
    if (seeds := figures.seeds(first, second))
  ]
  adjusted = _adjusted(configs, compared, figures)
  for comparison, p, found in zip(
    compared, adjusted, [c.pop('found') for c in compared], strict=True
  ):
    comparison['p_adjusted'] = p
    comparison['detectable'] = found.detectable(LEVEL, POWER)
    comparison['detectable_adjusted'] = found.detectable(
      LEVEL / len(compared), POWER
    )
  return {
    'configs': {
      config: _config(config, seeds, figures)
      for config in configs
      if (seeds := figures.seeds(config))
    },
    'comparisons': compared,
  }


def _is_closed(configs: Sequence[str]) -> bool:
  """Tells whether p values are corrected by closed tests, or by Holm's rule."""
  return len(configs) <= evaluation.MOST_CONFIGS


def _adjusted(
  configs: Sequence[str],
  compared: Sequence[Mapping[str, Any]],
  figures: Figures,
) -> list[float]:
  """Corrects the p values of comparisons for their number."""
  if not _is_closed(configs):
    return evaluation.holm([c['p_exact'] for c in compared]).tolist()
  seeds = sorted({key.seed for key in figures.values})
  table = np.array(
    [
      [figures.values.get(Key(config, seed), np.nan) for seed in seeds]
      for config in configs
    ]
  )
  adjusted, index = evaluation.closed_test(table), configs.index
  return [
    float(adjusted[index(c['first']), index(c['second'])]) for c in compared
  ]


def _config(
  config: str, seeds: Sequence[int], figures: Figures
) -> dict[str, Any]:
  values, replicates = figures.of(config, seeds)
  found = evaluation.seed_mean(values, replicates, CONFIDENCE)
  limits = found.interval and np.clip(found.interval, 0, 1).tolist()
  return {
    'mean': found.mean,
    'std': found.std,
    'interval': limits,
    'by_seed': _by_seed(seeds, values),
  }


def _comparison(
  first: str, second: str, seeds: Sequence[int], figures: Figures
) -> dict[str, Any]:
  (before, resampled_before), (after, resampled_after) = (
    figures.of(config, seeds) for config in (first, second)
  )
  # Shares of equal counts may differ by rounding, which is no difference.
  differences, replicates = np.round(after - before, 12), None
  if resampled_before is not None:
    replicates = resampled_after - resampled_before
  found = evaluation.seed_mean(differences, replicates, CONFIDENCE)
  test = evaluation.sign_flip_test(differences)
  return {
    'first': first,
    'second': second,
    'seeds': list(seeds),
    'difference': round(found.mean, 12) + 0.0,  # No -0.0.
    'by_seed': _by_seed(seeds, differences),
    'interval': found.interval and list(found.interval),
    'std_error': found.std_error,
    'std_error_seeds': found.std_error_seeds,
    'std_error_pairs': found.std_error_pairs,
    'p': test.p,
    'p_exact': test.p_exact,
    'p_smallest': test.p_smallest,
    'found': found,
  }


def _by_seed(seeds: Sequence[int], values: np.ndarray) -> dict[str, float]:
  return {
    str(seed): float(value) for seed, value in zip(seeds, values, strict=True)
  }


def _notes(
  sets: Mapping[str, Any], configs: Sequence[str], num_comparisons: int
) -> list[str]:
  """Returns sentences about what such a study can say at all."""
  notes = [
    f'{name}: pairs are drawn anew for each seed, so the variance between '
    'seeds holds theirs.'
    for name, content in sets.items()
    if not content['pairs_shared']
  ]
  numbers = {
    len(comparison['seeds'])
    for content in sets.values()
    for metric in content['metrics'].values()
    for comparison in metric['comparisons']
  }
  if not num_comparisons:
    return notes
  if not numbers:
    return [*notes, 'No two configs have a result of the same seed yet.']
  most, needed, correction = max(numbers), evaluation.seeds_needed(1, LEVEL), ''
  if not _is_closed(configs):
    needed = evaluation.seeds_needed(num_comparisons, LEVEL)
    correction = f' after the correction for {num_comparisons} comparisons'
  if most < needed:
    notes.append(
      f'{most} seed{"s" if most > 1 else ""}: no p below '
      f'{smallest_p(most):.2g} is possible, however large the difference; '
      f'{needed} seeds could reach {LEVEL:g}{correction}.'
    )
  return notes


# Files.


def _comparison_rows(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      'set': name,
      'metric': metric,
      'first': comparison['first'],
      'second': comparison['second'],
      'num_seeds': len(comparison['seeds']),
      'num_pairs': content['num_pairs'],
      'pairs_shared': content['pairs_shared'],
      **{column: comparison[column] for column in _COLUMNS},
      **dict(
        zip(
          ('interval_low', 'interval_high'),
          comparison['interval'] or (None, None),
          strict=True,
        )
      ),
    }
    for name, content in analysis['sets'].items()
    for metric, found in content['metrics'].items()
    for comparison in found['comparisons']
  ]


def _run_rows(
  study: Study, analysis: Mapping[str, Any]
) -> list[dict[str, Any]]:
  rows = []
  for config, seed in itertools.product(study.configs, study.seeds):
    run = study.runs.get(Key(config, seed))
    row = {
      'config': config,
      'seed': seed,
      'problem': study.problems.get(Key(config, seed), ''),
      'step': run and run.step,
      'fingerprint': run and run.fingerprint,
      'data_fingerprint': run and run.data_fingerprint,
    }
    for name, content in analysis['sets'].items():
      for metric, found in content['metrics'].items():
        by_seed = found['configs'].get(config, {'by_seed': {}})['by_seed']
        row[f'{name} {metric}'] = by_seed.get(str(seed))
    rows.append(row)
  return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows of the same columns; None is an empty cell."""
  text = io.StringIO()
  if rows:
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  with atomic.file(path) as part:
    part.write_text(text.getvalue())
