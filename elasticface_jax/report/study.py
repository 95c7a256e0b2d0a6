# SPDX-License-Identifier: Apache-2.0
"""A study's folder, configs x seeds, as plain data.

A study may be under way: runs that have not begun, or are not finished or
damaged, become notes, and the rest is shown.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticface_jax.errors import InputError
from elasticface_jax.report import read, study_analysis, study_words
from elasticface_jax.report.read import Note, Summary, is_number
from elasticface_jax.report.study_analysis import Analysis
from elasticface_jax.report.study_repeat import study_command
from elasticface_jax.studies import folder as study_folder
from elasticface_jax.studies.variants import Variant
from elasticface_jax.training import checkpoint, run_folder

# Rates of the analysis and of the runs are of one computation.
_TOLERANCE = 1e-6
# What the command of a study does with runs that are not finished.
_GOES_ON = 'goes on with them'
_AGREE = ('data_fingerprint', 'versions', 'device_kind')


@dataclasses.dataclass(frozen=True, eq=False)
class StudyRun:
  """One run of a study.

  Attributes:
    config: name of its config.
    seed: its seed.
    folder: its run folder.
    rows: records of training and verification.
    results: numbers of the sets of pairs, by name.
    step: newest step of a record or a result.
    total: number of steps; None for a run that has not begun.
    fingerprint: of its train state at the end; None if it is not known.
    start: versions, device and data of its last start.
    problem: why it cannot be read; empty otherwise.
    fields: of its config, by dotted name.
  """

  config: str
  seed: int
  folder: Path
  rows: Sequence[dict[str, Any]] = ()
  results: Mapping[str, Summary] = dataclasses.field(default_factory=dict)
  step: int = 0
  total: int | None = None
  fingerprint: str | None = None
  start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  problem: str = ''
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    """Config and seed, as ``--only`` takes them."""
    return f'{self.config}:{self.seed}'

  @property
  def has_begun(self) -> bool:
    """Tells that there is a run folder that can be read."""
    return self.total is not None

  @property
  def is_finished(self) -> bool:
    """Tells that the last step has been trained."""
    return self.has_begun and self.step >= self.total

  @property
  def trained(self) -> list[dict[str, Any]]:
    """The records of training."""
    return [row for row in self.rows if 'loss' in row]


class Study(NamedTuple):
  """A folder of `elasticface study`.

  Attributes:
    folder: as it was given.
    variants: the configs by name, in their order.
    seeds: of every config.
    differing: fields that differ between the configs.
    runs: all of them, config by config.
    analysis: of ``analysis.json``; means and deviations of the runs without it.
    is_analysed: whether ``analysis.json`` could be read.
    notes: what is missing, and the command that writes it.
  """

  folder: Path
  variants: Mapping[str, Variant]
  seeds: Sequence[int]
  differing: Sequence[str]
  runs: Sequence[StudyRun]
  analysis: Analysis
  is_analysed: bool
  notes: Sequence[Note]

  @property
  def name(self) -> str:
    """The last part of the folder's path."""
    return self.folder.resolve().name

  @property
  def shared(self) -> dict[str, Any]:
    """Fields that all configs have alike, by dotted name."""
    first = next(iter(self.variants.values())).fields
    return {
      name: value for name, value in first.items() if name not in self.differing
    }


def is_study(folder: Path) -> bool:
  """Tells whether a folder holds a study."""
  return (folder / study_folder.FILE).is_file()


def read_study(folder: Path) -> Study:
  """Reads a study, as far as it has come.

  Args:
    folder: of ``elasticface study --out``.

  Returns:
    The study.

  Raises:
    InputError: if ``study.json`` is damaged, or of a later version.
  """
  content = study_folder.read(folder)
  variants = {
    name: Variant(name, one['spec'], tuple(one['changes']), one['config'])
    for name, one in content['configs'].items()
  }
  seeds, differing = content['seeds'], content['differing']
  runs = [
    _run(folder, name, seed, variant)
    for name, variant in variants.items()
    for seed in seeds
  ]
  command = study_command(folder, list(variants.values()), seeds)
  command = command.replace(' \\\n  ', ' ')
  notes = [*_progress(runs, command), *_other_runs(runs, variants)]
  path, analysis = folder / study_analysis.FILE, None
  if not path.exists():
    text = f'There is no {path.name}: differences are not compared.'
    notes.append(Note(text, command))
  else:
    try:
      analysis = study_analysis.read(path, list(variants))
    except InputError as error:
      text = f'{error}: differences are not compared.'
      notes.append(Note(text, command))
  if analysis is not None:
    notes += _age(analysis, variants, seeds, runs, command)
  results = {name: {} for name in variants}
  for run in runs:
    results[run.config][run.seed] = run.results
  return Study(
    folder,
    variants,
    seeds,
    differing,
    runs,
    analysis or study_analysis.from_runs(results),
    analysis is not None,
    notes,
  )


# Runs.


def _run(folder: Path, name: str, seed: int, variant: Variant) -> StudyRun:
  place = study_folder.run_path(folder, name, seed)
  begun = StudyRun(name, seed, place)
  if not (place / 'config.json').is_file():
    return begun
  try:
    fields = read.fields_of(checkpoint.read_json(place / 'config.json'))
    rows = read.records(place)
    results = read.summaries(place, rows)
    starts = []
    if (place / 'manifest.json').is_file():
      starts = checkpoint.read_json(place / 'manifest.json').get('starts')
  except (InputError, OSError) as error:
    return dataclasses.replace(begun, problem=str(error))
  total = fields.get('total_steps')
  if not isinstance(total, int) or isinstance(total, bool):
    problem = f'{place / "config.json"} has no number as total_steps'
    return dataclasses.replace(begun, problem=problem)
  steps = [row['step'] for row in rows]
  steps += [s.step for s in results.values() if s.step is not None]
  last = starts[-1] if isinstance(starts, list) and starts else {}
  return dataclasses.replace(
    begun,
    rows=rows,
    results={name: s for name, s in results.items() if 'accuracy' in s.content},
    step=max(steps, default=0),
    total=total,
    fingerprint=_fingerprint(place, results, total),
    start=last if isinstance(last, Mapping) else {},
    fields=fields,
  )


def _fingerprint(
  place: Path, results: Mapping[str, Summary], total: int
) -> str | None:
  """Returns the fingerprint of the last step, as the run wrote it down."""
  for summary in results.values():
    found = summary.content.get('fingerprint')
    if summary.step == total and isinstance(found, str):
      return found
  if results:
    return None
  try:  # Runs without pair sets write no results.
    step, found = checkpoint.fingerprint(place)
  except InputError:
    return None
  return found if step == total else None


def _progress(runs: Sequence[StudyRun], command: str) -> list[Note]:
  """Says which runs are missing, not finished, damaged or not finite."""
  notes = [
    Note(f'{run.name} is not shown: {run.problem}.')
    for run in runs
    if run.problem
  ]
  missing = [run for run in runs if not run.has_begun and not run.problem]
  under_way = [run for run in runs if run.has_begun and not run.is_finished]
  if missing:
    has = 'has' if len(missing) == 1 else 'have'
    text = f'{len(missing)} of {len(runs)} runs {has} not begun'
    if len(missing) < len(runs):
      text += f': {_seeds_by_config(missing)}'
    # The command is the same for those that are not finished.
    again = '' if under_way else command
    notes.append(Note(f'{text}.', again, _GOES_ON))
  if under_way:
    listed = ', '.join(
      f'{run.name} (step {run.step:,} of {run.total:,})' for run in under_way
    )
    has = 'is' if len(under_way) == 1 else 'are'
    text = f'{len(under_way)} of {len(runs)} runs {has} not finished'
    notes.append(Note(f'{text}: {listed}.', command, _GOES_ON))
  broken = [
    run
    for run in runs
    if any(not is_number(v) for row in run.trained for v in row.values())
  ]
  if broken:
    text = 'Values of metrics.jsonl are not finite, and curves have gaps there'
    notes.append(Note(f'{text}: {_seeds_by_config(broken)}.'))
  return notes


def _seeds_by_config(runs: Sequence[StudyRun]) -> str:
  found: dict[str, list[int]] = {}
  for run in runs:
    found.setdefault(run.config, []).append(run.seed)
  return '; '.join(
    f'{config}, seed {study_words.seeds(seeds)}'
    for config, seeds in found.items()
  )


def _other_runs(
  runs: Sequence[StudyRun], variants: Mapping[str, Variant]
) -> list[Note]:
  """Says which runs were not trained as the study says, or not alike."""
  notes = []
  begun = [run for run in runs if run.has_begun]
  for run in begun:
    fields = _other_fields(run, variants[run.config])
    if fields:
      text = (
        f'{run.folder} is another run than {study_folder.FILE} says: '
        f'{", ".join(fields)} {"differs" if len(fields) == 1 else "differ"}.'
      )
      notes.append(Note(text))
  drawn = any(
    one.fields.get('data.source') == 'synthetic' for one in variants.values()
  )
  for field in _AGREE:
    if field == 'data_fingerprint' and drawn:
      continue  # Drawn faces follow from the seed.
    values: dict[str, list[str]] = {}
    for run in begun:
      if field in run.start:
        shown = start_field(run.start[field])
        values.setdefault(shown, []).append(run.name)
    if len(values) > 1:
      listed = '; '.join(
        f'{value} (runs: {len(names)}, such as {names[0]})'
        for value, names in values.items()
      )
      text = f'The runs differ in {field.replace("_", " ")}: {listed}.'
      notes.append(Note(text))
  return notes


def start_field(value: Any) -> str:
  """Returns what a run's start says, such as its versions, as text."""
  if isinstance(value, Mapping):
    return ', '.join(f'{name} {value[name]}' for name in sorted(value))
  return str(value)


def _other_fields(run: StudyRun, variant: Variant) -> list[str]:
  """Returns fields in which a run is another one than the study says."""
  asked = {**variant.fields, 'seed': run.seed}
  return [
    name
    for name, value in asked.items()
    if name in run.fields and run_folder.differs(name, run.fields[name], value)
  ]


# Age of the analysis.


def _age(
  analysis: Analysis,
  variants: Mapping[str, Variant],
  seeds: Sequence[int],
  runs: Sequence[StudyRun],
  command: str,
) -> list[Note]:
  """Says what the analysis does not know yet."""
  name, notes = study_analysis.FILE, []
  others = {*analysis.configs} ^ {*variants}
  if others:
    listed = ', '.join(sorted(others))
    text = f'{name} is of other configs than the study: {listed}.'
    notes.append(Note(text, command))
  if other := {*analysis.seeds} ^ {*seeds}:
    listed = ', '.join(map(str, sorted(other)))
    text = f'{name} is of other seeds than the study: {listed}.'
    notes.append(Note(text, command))
  changed, left_out = [], []
  for run in runs:
    known = _known(run, analysis)
    if any(old is not None and not _is_near(old, new) for old, new in known):
      changed.append(run.name)
    elif run.is_finished and any(old is None for old, _ in known):
      left_out.append(run.name)
  if changed:
    many = 'a run has' if len(changed) == 1 else f'{len(changed)} runs have'
    text = (
      f'{name} is older than these runs: {many} other results now: '
      f'{", ".join(changed)}.'
    )
    notes.append(Note(text, command))
  if left_out:
    text = (
      f'{name} leaves finished runs out: {", ".join(left_out)}. Its notes say '
      'why, or it is older than they are.'
    )
    notes.append(Note(text, command))
  return notes


def _known(
  run: StudyRun, analysis: Analysis
) -> list[tuple[float | None, float | None]]:
  """Returns accuracies of a run on each set, in the analysis and now."""
  if run.config not in analysis.configs or run.seed not in analysis.seeds:
    return []
  found = []
  for name, of_set in analysis.sets.items():
    metric = of_set.metrics.get(study_analysis.ACCURACY)
    level = metric and metric.levels.get(run.config)
    known = level.by_seed.get(run.seed) if level else None
    summary = run.results.get(name)
    now = None if summary is None else summary.content['accuracy']
    if (known, now) != (None, None):
      found.append((known, now))
  return found


def _is_near(known: float, now: float | None) -> bool:
  return now is not None and abs(known - now) <= _TOLERANCE
