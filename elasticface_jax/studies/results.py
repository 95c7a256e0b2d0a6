# SPDX-License-Identifier: Apache-2.0
"""Results of a study's runs, as far as they can be compared.

A study may be under way, and any file may be damaged: such runs are named and
the rest is kept. Runs that differ from the rest in what they measure, in their
step, folds or pairs, are named too.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax import config_rules
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import correct_pairs
from elasticface_jax.evaluation.score_files import check_scores, read_scores
from elasticface_jax.studies import folder as study_folder
from elasticface_jax.training import run_folder
from elasticface_jax.training.checkpoint import read_json

# Pairs of this path are drawn from the seed of a run.
DRAWN = 'synthetic'


class Key(NamedTuple):
  """Config and seed of a run."""

  config: str
  seed: int

  def __str__(self):
    return f'{self.config} seed {self.seed}'


@dataclasses.dataclass(frozen=True, eq=False)
class SetResult:
  """Verification of a network on one set of pairs.

  Attributes:
    summary: the set's part of ``results.json``.
    scores: cosine of each pair, float64, ``[N]``.
    same: whether the pair is genuine, bool, ``[N]``.
    correct: whether it is judged rightly by the protocol, bool, ``[N]``.
  """

  summary: Mapping[str, Any]
  scores: np.ndarray
  same: np.ndarray
  correct: np.ndarray

  @property
  def is_drawn(self) -> bool:
    """True if the pairs are drawn from the seed of the run."""
    return self.summary['path'] == DRAWN


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
  """Results of a finished run.

  Attributes:
    step: of the network.
    fingerprint: of the train state at that step.
    data_fingerprint: of the training data; empty if nothing says it.
    sets: results by name of the set.
  """

  step: int
  fingerprint: str
  data_fingerprint: str
  sets: dict[str, SetResult]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """Results of a study.

  Attributes:
    configs: names, in their order.
    seeds: in their order.
    differing: fields in which the configs differ.
    runs: those that can be compared.
    problems: why each other one cannot.
    notes: sentences about what is left out.
  """

  configs: list[str]
  seeds: list[int]
  differing: list[str]
  runs: dict[Key, RunResult]
  problems: dict[Key, str]
  notes: list[str]


def read(folder: Path) -> Study:
  """Reads the results of a study.

  Args:
    folder: of the study, with ``study.json``.

  Returns:
    The results; runs without any are in ``problems``.

  Raises:
    InputError: if there is no ``study.json``, or it is damaged.
  """
  content = study_folder.read(folder)
  if content is None:
    raise InputError(
      f'{folder} has no {study_folder.FILE}; give the --out of `elasticface '
      'study`'
    )
  configs, differing = content['configs'], content['differing']
  runs, problems, notes = {}, {}, []
  for config, seed in _keys(content):
    key = Key(config, seed)
    path = study_folder.run_path(folder, config, seed)
    try:
      _check_config(path, seed, configs[config]['config'])
      runs[key] = _run(key, path, notes)
    except InputError as error:
      problems[key] = str(error)
  _drop_other_steps(runs, problems, 'total_steps' in differing)
  for name in sorted({name for run in runs.values() for name in run.sets}):
    _drop_other_pairs(name, runs, notes)
  _note_other_data(runs, differing, notes)
  return Study(
    configs=list(configs),
    seeds=list(content['seeds']),
    differing=list(differing),
    runs=runs,
    problems=problems,
    notes=_grouped(problems) + notes,
  )


def _keys(content: Mapping[str, Any]) -> list[Key]:
  return [
    Key(config, seed)
    for config in content['configs']
    for seed in content['seeds']
  ]


def _check_config(path: Path, seed: int, config: Mapping[str, Any]) -> None:
  """Raises an InputError if a folder holds no run, or that of another config.

  Args:
    path: the run folder.
    seed: of the run.
    config: of the study, flat, without the seed.
  """
  if not (path / 'config.json').is_file():
    raise InputError('not begun')
  found = config_rules.saved(read_json(path / 'config.json'))
  wanted = {**config, 'seed': seed}
  for field in sorted(found.keys() | wanted.keys()):
    if run_folder.differs(field, found.get(field), wanted.get(field)):
      raise InputError(
        f'config.json has {field}={found.get(field)!r}, the study '
        f'{wanted.get(field)!r}'
      )


# One run.


def _run(key: Key, path: Path, notes: list[str]) -> RunResult:
  """Reads the results of a run; notes sets that cannot be compared."""
  file = path / 'results.json'
  if not file.is_file():
    raise InputError('not finished')
  sets, origin = {}, {}
  for name, summary in read_json(file, 'Finish the run again').items():
    _check_summary(name, summary)
    origin = summary
    if summary['protocol'] != 'pairs':
      sentence = f'{name}: results of {summary["protocol"]} are not compared.'
      notes += [sentence] if sentence not in notes else []
      continue
    try:
      sets[name] = _set_result(path / f'scores_{name}.npz', summary)
    except InputError as error:
      notes.append(
        f'{name}, {key}: left out: {error}; remove {file}, and the study '
        'verifies the run again.'
      )
  if not origin:
    raise InputError('no pair set was verified')
  return RunResult(
    origin['step'], origin['fingerprint'], _data_fingerprint(path), sets
  )


def _check_summary(name: str, summary: Any) -> None:
  kinds = {'protocol': str, 'step': int, 'fingerprint': str, 'path': str}
  if isinstance(summary, dict) and summary.get('protocol') == 'pairs':
    kinds |= {'folds': int, 'accuracy': float}
  if not isinstance(summary, dict) or not all(
    isinstance(summary.get(field), kind) for field, kind in kinds.items()
  ):
    raise InputError(f'results.json holds no results of {name}')


def _set_result(path: Path, summary: Mapping[str, Any]) -> SetResult:
  if not path.is_file():
    raise InputError(f'there is no {path.name}')
  scores, same = read_scores(path)
  try:
    check_scores(path, scores, same, summary)
    points = (summary['tar_at_far'] or {}).values()
    is_whole = all(0 < point['far_target'] < 1 for point in points)
    is_whole &= summary['eer'] is None or 0 <= summary['eer'] <= 1
  except (AttributeError, KeyError, TypeError):
    is_whole = False
  folds = summary['folds']
  if not is_whole or not 2 <= folds <= len(same):
    raise InputError('results.json was edited')
  correct = correct_pairs(scores, same, folds)
  accuracy = np.mean([fold.mean() for fold in np.array_split(correct, folds)])
  # Of a pair or two, distances from scores round to a threshold's other side.
  if abs(accuracy - summary['accuracy']) > 3 / len(same):
    raise InputError(f'{path.name} is of another evaluation than results.json')
  return SetResult(summary, scores, same, correct)


def _data_fingerprint(path: Path) -> str:
  manifest = path / 'manifest.json'
  try:
    return str(read_json(manifest)['starts'][-1]['data_fingerprint'])
  except (OSError, InputError, LookupError, TypeError):
    return ''


# All of them.


def _drop_other_steps(
  runs: dict[Key, RunResult], problems: dict[Key, str], own_steps: bool
) -> None:
  """Drops runs whose step is not that of most, or of most of their config."""
  by_config = collections.defaultdict(list)
  for key in runs:
    by_config[key.config if own_steps else ''].append(key)
  for keys in by_config.values():
    step = _most({key: runs[key].step for key in keys})
    for key in keys:
      if runs[key].step != step:
        problems[key] = (
          f'results are of step {runs[key].step:,}, the others of {step:,}'
        )
        del runs[key]


def _drop_other_pairs(
  name: str, runs: Mapping[Key, RunResult], notes: list[str]
) -> None:
  """Drops results of a set whose folds or pairs are not those of most."""
  for what, of in (
    ('folds', lambda result: result.summary['folds']),
    ('path', lambda result: result.summary['path']),
    ('labels', lambda result: result.same.tobytes()),
  ):
    _drop_others(name, runs, notes, what, of)


def _drop_others(
  name: str,
  runs: Mapping[Key, RunResult],
  notes: list[str],
  what: str,
  of: Callable[[SetResult], Hashable],
) -> None:
  results = {k: run.sets[name] for k, run in runs.items() if name in run.sets}
  groups = collections.defaultdict(dict)
  for key, result in results.items():
    # Pairs that are drawn differ from seed to seed.
    apart = what == 'labels' and result.is_drawn
    groups[key.seed if apart else None][key] = of(result)
  for values in groups.values():
    most = _most(values)
    for key, value in values.items():
      if value != most:
        del runs[key].sets[name]
        words = (
          'its pairs are not those of the others'
          if what == 'labels'
          else f'its {what} is {value}, that of the others {most}'
        )
        notes.append(f'{name}, {key}: left out: {words}.')


def _most(values: Mapping[Key, Any]) -> Any:
  """Returns the most frequent value, of several the largest."""
  counts = collections.Counter(values.values())
  return max(counts, key=lambda value: (counts[value], value))


def _note_other_data(
  runs: Mapping[Key, RunResult], differing: list[str], notes: list[str]
) -> None:
  """Notes configs that were trained on other data than others of their seed."""
  if any(field.startswith('data.') for field in differing):
    return
  by_seed = collections.defaultdict(set)
  for key, run in runs.items():
    by_seed[key.seed].add(run.data_fingerprint)
  if any(len(found) > 1 for found in by_seed.values()):
    notes.append(
      'Not all runs of a seed were trained on the same data: see '
      'data_fingerprint in runs.csv.'
    )


def _grouped(problems: Mapping[Key, str]) -> list[str]:
  """Returns a sentence for each problem, with the runs that have it."""
  runs = collections.defaultdict(lambda: collections.defaultdict(list))
  for key, problem in problems.items():
    runs[problem][key.config].append(key.seed)
  return [
    f'{"; ".join(map(_named, by_config, by_config.values()))}: {problem}.'
    for problem, by_config in runs.items()
  ]


def _named(config: str, seeds: list[int]) -> str:
  return f'{config} seed {", ".join(map(str, seeds))}'
