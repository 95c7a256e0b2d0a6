# SPDX-License-Identifier: Apache-2.0
"""Folders of runs and of evaluations, as plain data.

Nothing is taken for granted: older folders lack files and fields, a run may be
under way, and any file may have been edited. What is missing becomes a note
that names the command which writes it; the rest is kept.
"""

import collections
import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax import config_rules
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import curves, drawing
from elasticface_jax.evaluation.score_files import check_scores, read_scores
from elasticface_jax.training import checkpoint, metrics

# What a page shows of the pairs that the network gets most wrong.
HARDEST = 6
# Fields of an operating point: needed ones, and others that may be None.
_NEEDED, _OTHERS = ('far_target', 'num_impostors'), ('far', 'tar', 'threshold')


class Note(NamedTuple):
  """A sentence about something that is missing.

  Attributes:
    text: the sentence.
    command: that writes what is missing; empty if none does.
    does: of the command.
  """

  text: str
  command: str = ''
  does: str = 'writes it'

  def __str__(self):
    if not self.command:
      return self.text
    return f'{self.text} This command {self.does}: {self.command}'


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """The result of one network on one set.

  Attributes:
    name: of the set.
    summary: of ``results.json`` or ``metrics.jsonl``; no value is NaN or None,
      except a threshold of an operating point, where None is infinite.
    step: of the checkpoint; None if it is not known.
    curve: ROC of its pairs; None if there are no scores, or pairs of one kind.
    histogram: of its scores; None if there are none.
    lowest: the genuine pairs that score lowest, as (index, score), the first
      one the lowest.
    highest: the impostor pairs that score highest, likewise.
    same: whether each pair is genuine, bool, ``[N]``; None without scores.
    notes: what is missing, and the command that writes it.
  """

  name: str
  summary: dict[str, Any]
  step: int | None
  curve: curves.Curve | None = None
  histogram: curves.Histogram | None = None
  lowest: Sequence[tuple[int, float]] = ()
  highest: Sequence[tuple[int, float]] = ()
  same: np.ndarray | None = None
  notes: Sequence[Note] = ()

  @property
  def protocol(self) -> str:
    """Name of the protocol; results of older versions are of pairs."""
    return str(self.summary.get('protocol', 'pairs'))

  @property
  def is_of_pairs(self) -> bool:
    """True for the protocol of LFW and its kin."""
    return self.protocol == 'pairs' and 'accuracy' in self.summary


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A run folder, or a folder of ``evaluate --out``.

  Attributes:
    folder: as it was given.
    name: differs from those of the other runs.
    config: fields by dotted name; empty for an evaluation.
    manifest: versions, device and data of every start; empty for an evaluation.
    rows: records of training and verification.
    results: by name of the set.
    step: of the newest checkpoint; None if there is none.
    fingerprint: of the train state at that step; None likewise.
    notes: what is missing, and the command that writes it.
  """

  folder: Path
  name: str
  config: dict[str, Any]
  manifest: dict[str, Any]
  rows: Sequence[dict[str, Any]]
  results: dict[str, Result]
  step: int | None
  fingerprint: str | None
  notes: Sequence[Note]

  @property
  def trained(self) -> list[dict[str, Any]]:
    """The records of training."""
    return [row for row in self.rows if 'loss' in row]

  @property
  def last_step(self) -> int:
    """Newest step of a record or a checkpoint; 0 without any."""
    steps = [row['step'] for row in self.rows]
    return max([*steps, self.step or 0])


def read_runs(folders: Sequence[Path]) -> list[Run]:
  """Reads folders of runs and of evaluations.

  Args:
    folders: one or more; none of them twice.

  Returns:
    The runs, in their order; names differ.

  Raises:
    InputError: if a folder is neither, is given twice, has no results yet, or
      holds a file that nobody can read.
  """
  places = [folder.resolve() for folder in folders]
  for folder, place in zip(folders, places, strict=True):
    if places.count(place) > 1:
      raise InputError(f'{folder} is given twice; name each folder once')
  names = _names(places)
  runs = [
    _read(folder, name) for folder, name in zip(folders, names, strict=True)
  ]
  _share_widths(runs)
  return runs


def _share_widths(runs: Sequence[Run]) -> None:
  """Counts scores of a set again where bins of another run are wider.

  Shares of pairs in bins compare only in bins of one width.
  """
  for name in {name for run in runs for name in run.results}:
    drawn = [
      run
      for run in runs
      if name in run.results and run.results[name].histogram is not None
    ]
    widths = [run.results[name].histogram.width for run in drawn]
    for run, width in zip(drawn, widths, strict=True):
      if not math.isclose(width, max(widths)):
        scores, same = read_scores(run.folder / f'scores_{name}.npz')
        # The difference of two edges has a rounding error.
        found = curves.histogram(
          scores, same, width=float(f'{max(widths):.0e}')
        )
        run.results[name] = dataclasses.replace(
          run.results[name], histogram=found
        )


def _names(places: Sequence[Path]) -> list[str]:
  """Returns the shortest ends of paths that differ from each other."""
  for depth in range(1, max(len(place.parts) for place in places) + 1):
    names = ['/'.join(place.parts[-depth:]) for place in places]
    if len({*names}) == len(names):
      break
  return names


def _read(folder: Path, name: str) -> Run:
  is_run = (folder / 'config.json').is_file()
  if not is_run and not (folder / 'results.json').is_file():
    what = (
      'holds neither config.json nor results.json'
      if folder.is_dir()
      else ('is no folder' if folder.exists() else 'does not exist')
    )
    raise InputError(
      f'{folder} {what}; give the --workdir of a run, or a folder of '
      '`evaluate --out`'
    )
  config, manifest, rows, notes = {}, {}, [], []
  if is_run:
    config = fields_of(checkpoint.read_json(folder / 'config.json'))
    rows = records(folder)
    if (folder / 'manifest.json').is_file():
      manifest = checkpoint.read_json(folder / 'manifest.json')
    else:
      notes.append(
        Note(
          'There is no manifest.json: versions, device and fingerprint of the '
          'data are not known. The run writes it when it starts.'
        )
      )
  results = _results(folder, config, rows)
  if not results and not rows:
    raise InputError(
      f'{folder} has no results yet; train until the first log_every steps, or '
      f'write some with elasticface evaluate --checkpoint {folder} '
      '--pairs FILE --out DIR, and report on DIR'
    )
  step, fingerprint = (None, None)
  if is_run:
    step, fingerprint = _fingerprint(folder, notes)
    notes += _progress(folder, config, rows, step, results)
  return Run(
    folder, name, config, manifest, rows, results, step, fingerprint, notes
  )


def _fingerprint(
  folder: Path, notes: list[Note]
) -> tuple[int | None, str | None]:
  try:
    return checkpoint.fingerprint(folder)
  except InputError as error:
    notes.append(Note(f'There is no fingerprint: {error}.'))
    return None, None


def _progress(
  folder: Path,
  config: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  step: int | None,
  results: Mapping[str, Result],
) -> list[Note]:
  """Says how far a run has come, if it is not at its end."""
  total, notes = config.get('total_steps'), []
  last = max([row['step'] for row in rows] + [step or 0])
  if isinstance(total, int) and last < total:
    notes.append(
      Note(
        f'The run is not finished: step {last:,} of {total:,}. Everything here '
        'is of what it has written so far; the command that started it resumes '
        'it.'
      )
    )
  trained = [row for row in rows if 'loss' in row]
  broken = sum(math.isnan(value) for row in trained for value in row.values())
  if broken:
    notes.append(
      Note(
        f'{broken:,} values of metrics.jsonl are not finite: curves have gaps '
        'there.'
      )
    )
  if not trained:
    notes.append(
      Note(
        'There are no training curves: metrics.jsonl has no record of a step.'
      )
    )
  if not results:
    notes.append(
      Note(
        'There is no verification yet.',
        f'elasticface evaluate --checkpoint {folder} --pairs FILE --out DIR',
      )
    )
  return notes


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields by dotted name, of a config of any version."""
  try:
    return config_rules.flatten(config)
  except InputError:
    return dict(config)


# Results.


class Summary(NamedTuple):
  """The newest numbers of a set in a run folder.

  Attributes:
    content: of ``results.json`` or ``metrics.jsonl``, as in `Result`.
    step: of the checkpoint; None if it is not known.
    is_newer: whether it is of ``metrics.jsonl`` alone: the end of the run,
      which writes the files, has not come.
  """

  content: dict[str, Any]
  step: int | None
  is_newer: bool


def records(folder: Path) -> list[dict[str, Any]]:
  """Reads the records of a run; whatever is no number is a gap in a curve.

  Args:
    folder: the run folder.

  Returns:
    The records of training and verification, in their order.

  Raises:
    InputError: if ``metrics.jsonl`` is damaged.
  """
  return [_record(row) for row in metrics.read(folder)]


def summaries(
  folder: Path, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Summary]:
  """Reads the numbers of all sets, those of a newer verification first.

  Args:
    folder: of a run or an evaluation.
    rows: its `records`.

  Returns:
    The newest numbers by name of the set.

  Raises:
    InputError: if ``results.json`` is damaged.
  """
  newest = {
    name: max(by_step.items())
    for name, by_step in drawing.verified_in(rows).items()
  }
  saved = {}
  if (folder / 'results.json').is_file():
    saved = checkpoint.read_json(
      folder / 'results.json', 'Restore it, or evaluate again'
    )
  found = {}
  for name in {**saved, **newest}:
    whole = saved.get(name)
    summary = _finite(whole) if isinstance(whole, Mapping) else None
    step, row = newest.get(name, (None, None))
    if summary is not None and is_number(summary.get('step')):
      is_newer = row is not None and step > summary['step']
      step = step if is_newer else summary['step']
    else:  # Older files do not say it.
      is_newer = row is not None and (
        summary is None or row.get('accuracy') != summary.get('accuracy')
      )
    if is_newer:
      found[name] = Summary({**row}, step, True)
    elif summary is not None:
      found[name] = Summary(summary, step, False)
  return found


def _results(
  folder: Path, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Result]:
  found = {}
  for name, (content, step, is_newer) in summaries(folder, rows).items():
    if is_newer:
      note = _no_scores(folder, config, name, content, step)
      found[name] = Result(name, content, step, notes=[note])
    else:
      found[name] = _with_scores(folder, config, name, content, step)
  return found


def _no_scores(
  folder: Path,
  config: Mapping[str, Any],
  name: str,
  summary: Mapping[str, Any],
  step: int | None,
  problem: str = '',
) -> Note:
  """Says what is not shown without scores, and the command that writes them."""
  problem = problem or f'There is no scores_{name}.npz'
  of_step = '' if step is None else f' of step {step:,}'
  network = summary.get('checkpoint', folder if config else 'CHECKPOINT')
  at_step = '' if step is None else f' --step {step}'
  path = path_of(config, name, summary)
  return Note(
    f'{problem}: ROC, DET, score histogram and hardest pairs{of_step} are not '
    'shown.',
    f'elasticface evaluate --checkpoint {shlex.quote(str(network))}{at_step} '
    f'--pairs {shlex.quote(path)} --out DIR',
  )


def path_of(
  config: Mapping[str, Any], name: str, summary: Mapping[str, Any]
) -> str:
  """Returns the path of a set as it was given; ``FILE`` if nothing says it."""
  if 'path' in summary:
    return str(summary['path'])
  pairs = config.get('eval.pairs')
  for spec in pairs if isinstance(pairs, list) else []:
    if Path(str(spec)).stem == name:
      return str(spec)
  return 'FILE'


def _with_scores(
  folder: Path,
  config: Mapping[str, Any],
  name: str,
  summary: dict[str, Any],
  step: int | None,
) -> Result:
  result = Result(name, summary, step)
  if result.protocol == 'identification':
    return result
  path = folder / f'scores_{name}.npz'
  if not path.is_file():
    note = _no_scores(folder, config, name, summary, step)
    return dataclasses.replace(result, notes=[note])
  try:
    scores, same = read_scores(path)
    check_scores(path, scores, same, summary)
  except InputError as error:
    note = _no_scores(folder, config, name, summary, step, str(error))
    return dataclasses.replace(result, notes=[note])
  genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
  return dataclasses.replace(
    result,
    curve=curves.curve(scores, same)
    if len(genuine) and len(impostor)
    else None,
    histogram=curves.histogram(scores, same),
    lowest=_extreme(scores, genuine, 1),
    highest=_extreme(scores, impostor, -1),
    same=same,
  )


def _extreme(
  scores: np.ndarray, pairs: np.ndarray, sign: int
) -> list[tuple[int, float]]:
  """Returns the pairs with the lowest of ``sign * scores``, in that order."""
  order = np.argsort(sign * scores[pairs], kind='stable')[:HARDEST]
  return [(int(k), float(scores[k])) for k in pairs[order]]


# Numbers.


def _finite(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record without values that are None, NaN or infinite.

  Operating points without a target or a number of impostors are left out, as
  figures and tables cannot show them. So are the intervals of results without a
  protocol: they are of a version whose intervals meant something else.
  """
  kept = {}
  for name, value in content.items():
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
      continue
    if name == 'accuracy' and not is_number(value):
      continue
    if name == 'tar_at_far':
      value = _points(value)
      if 'protocol' not in content:
        for point in value.values():
          point.pop('tar_interval', None)
    kept[str(name)] = value
  return kept


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record of metrics; whatever is no number is a gap in a curve."""
  if 'loss' not in row:
    return _finite(row)
  return {
    name: value if is_number(value) else math.nan for name, value in row.items()
  }


def _points(points: Any) -> dict[str, dict[str, Any]]:
  if not isinstance(points, Mapping):
    return {}
  complete = {
    str(key): {**point}
    | {f: point.get(f) if is_number(point.get(f)) else None for f in _OTHERS}
    for key, point in points.items()
    if isinstance(point, Mapping)
    and all(is_number(point.get(field)) for field in _NEEDED)
  }
  return dict(sorted(complete.items(), key=lambda x: -x[1]['far_target']))


def is_number(value: Any) -> bool:
  """Returns True for a finite number that is no truth value."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def differing_fields(runs: Sequence[Run]) -> list[str]:
  """Returns the fields of the configs that not all runs have alike."""
  configs = [run.config for run in runs if run.config]
  names = collections.ChainMap(*configs[::-1])
  return [
    name
    for name in names
    if any(
      name not in config or config[name] != configs[0].get(name)
      for config in configs
    )
  ]
