# SPDX-License-Identifier: Apache-2.0
"""The page: all parts in their order, as one HTML file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from elasticface_jax.evaluation import drawing
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.report import document, figures, pictures, repeat, words
from elasticface_jax.report.document import Part
from elasticface_jax.report.figures import Table
from elasticface_jax.report.html import (
  command,
  details,
  element,
  fields,
  figure,
  grid,
  note,
  table,
)
from elasticface_jax.report.read import (
  Note,
  Result,
  Run,
  differing_fields,
  is_number,
)

_FOOTER = (
  'FAR is the share of impostor pairs accepted (FMR), TAR that of genuine '
  'pairs (1 - FNMR). Intervals are exact (Clopper-Pearson) at 95 %, for '
  'independent pairs: where pairs share images they are too narrow.'
)


def write(runs: Sequence[Run], out: Path) -> None:
  """Writes a page of runs and evaluations.

  Equal folders make equal bytes.

  Args:
    runs: of `read_runs`.
    out: the file.

  Raises:
    InputError: if the file cannot be written.
  """
  title = f'Report: {", ".join(run.name for run in runs)}'
  document.write(out, title, _parts(runs, out), _FOOTER)


def _parts(runs: Sequence[Run], out: Path) -> list[Part]:
  recipes = {
    run.name: repeat.nearest_recipe(run.config) if run.config else None
    for run in runs
  }
  sets = list(dict.fromkeys(name for run in runs for name in run.results))
  parts = [
    Part('Results', 'results', lambda: _results(runs, sets)),
    Part('Runs', 'runs', lambda: _runs(runs, recipes)),
  ]
  if any(run.rows for run in runs):
    parts.append(Part('Training', 'training', lambda: _training(runs, sets)))
  parts += [
    Part(name, f'set-{k}', lambda name=name: _set(name, runs))
    for k, name in enumerate(sets)
  ]
  return [
    *parts,
    Part('Config and manifest', 'config', lambda: _configs(runs)),
    Part('How to repeat it', 'repeat', lambda: _repeat(runs, recipes, out)),
  ]


# Results.


def _results(runs: Sequence[Run], sets: Sequence[str]) -> list[Element]:
  """Makes the table that compares all runs, and notes about it."""
  of_pairs = [
    name
    for name in sets
    if any(r.results[name].is_of_pairs for r in runs if name in r.results)
  ]
  found = []
  if of_pairs:
    found.append(table(_headline(runs, of_pairs), wide=True))
  others = [name for name in sets if name not in of_pairs]
  if others:
    found.append(
      element('p', f'Other protocols, each in its own part: {_listed(others)}.')
    )
  if not sets:
    found.append(element('p', 'No set has been evaluated yet.'))
  return found


def _headline(runs: Sequence[Run], names: Sequence[str]) -> Table:
  # A run that has other protocols only has parts of its own.
  runs = [
    run
    for run in runs
    if any(run.results[n].is_of_pairs for n in names if n in run.results)
  ]
  results = [run.results.get(name) for name in names for run in runs]
  targets = {
    far: point['far_target']
    for result in results
    if result is not None and result.is_of_pairs
    for far, point in (result.summary.get('tar_at_far') or {}).items()
  }
  fars = sorted(targets, key=lambda far: -targets[far])
  headings = (
    'set', 'run', 'step', 'pairs',
    'accuracy, % ± deviation of folds [95 % interval]',
    'accepts a cosine above',
    *(
      f'TAR at FAR {rate(targets[far])}, % [95 % interval]'
      for far in fars
    ),
    'EER, % [95 % interval]', 'AUC (no unit) [95 % interval]',
  )  # fmt: skip
  rows = []
  for name in names:
    for run in runs:
      result = run.results.get(name)
      if result is None:
        missing = ['not evaluated'] * (len(headings) - 2)
        rows.append((name, run.name, *missing))
      elif result.is_of_pairs:
        rows.append((name, run.name, *_headline_cells(result, fars)))
  return Table('Verification of pairs', headings, rows)


def _headline_cells(result: Result, fars: Sequence[str]) -> list[str]:
  found = result.summary
  points = found.get('tar_at_far') or {}
  return [
    'not known' if result.step is None else f'{result.step:,}',
    words.number(found.get('num_pairs')),
    f'{words.percent(found.get("accuracy"))} ± '
    f'{words.percent(found.get("accuracy_std"))}'
    f'{words.limits(found.get("accuracy_interval"))}',
    words.cosine(found.get('threshold')),
    *(words.tar(points[far]) if far in points else words.NONE for far in fars),
    words.with_interval(found.get('eer'), found.get('eer_interval')),
    _auc(found),
  ]


def _auc(found: Mapping[str, Any]) -> str:
  value, limits = found.get('auc'), found.get('auc_interval')
  if not is_number(value):
    return words.NONE
  if not words.is_interval(limits):
    return f'{value:.4f}'
  return f'{value:.4f} [{limits[0]:.4f}, {limits[1]:.4f}]'


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names)


# Runs.


def _runs(
  runs: Sequence[Run], recipes: Mapping[str, repeat.Recipe | None]
) -> list[Element]:
  cards = [
    element(
      'div',
      element('h3', run.name),
      *map(note, run.notes),
      fields(_facts(run, recipes[run.name])),
    )
    for run in runs
  ]
  found = [grid(cards, 'runs')]
  if sum(bool(run.config) for run in runs) > 1:
    found.append(element('h3', 'Differences of the configs'))
    found.append(_differences([run for run in runs if run.config]))
  return found


def _facts(
  run: Run, recipe: repeat.Recipe | None
) -> list[tuple[str, Element | str]]:
  """Says what a run is, as far as its folder tells."""
  facts: list[tuple[str, Element | str]] = [('folder', str(run.folder))]
  config = run.config
  if not config:
    titles = {str(r.summary.get('title', '')) for r in run.results.values()}
    networks = _listed(sorted(titles - {''})) or 'not recorded'
    return [('what', 'an evaluation'), *facts, ('network', networks)]
  if recipe is None:
    facts.append(('recipe', 'none of this version makes this config'))
  else:
    changed = len(recipe.changes)
    many = f', {changed} field{"s" if changed > 1 else ""} changed'
    facts.append(('recipe', recipe.name + (many if changed else '')))
  arguments = ', '.join(
    f'{name.removeprefix("loss.")}={words.field(value)}'
    for name, value in config.items()
    if name.startswith('loss.') and name != 'loss.name' and not _is_empty(value)
  )
  total = config.get('total_steps')
  facts += [
    (
      'model',
      f'{config.get("model.name")}, width {config.get("model.width")}, '
      f'embeddings of {config.get("model.embedding_dim")}',
    ),
    ('loss', f'{config.get("loss.name")}({arguments})'),
    ('data', str(config.get('data.source'))),
    (
      'batch',
      f'{config.get("data.batch_size")} images in groups of '
      f'{config.get("group_size")}',
    ),
    ('step', f'{words.number(run.last_step)} of {words.number(total)}'),
    (
      'fingerprint',
      'not known'
      if run.fingerprint is None
      else f'{run.fingerprint} (SHA-256 of the state of step {run.step:,})',
    ),
  ]
  return facts + _origin(run)


def _origin(run: Run) -> list[tuple[str, Element | str]]:
  """Says on what a run ran, of the last of its starts."""
  starts = run.manifest.get('starts')
  if not isinstance(starts, list) or not starts:
    return []
  last = starts[-1]
  if not isinstance(last, Mapping):
    return []
  versions = last.get('versions')
  named = versions.items() if isinstance(versions, Mapping) else ()
  return [
    (
      'device',
      f'{last.get("devices")} x {last.get("device_kind")} '
      f'({last.get("platform")}), processes: {last.get("processes")}',
    ),
    ('versions', ', '.join(f'{name} {version}' for name, version in named)),
    ('starts', f'{len(starts)}, the last one at {last.get("time")}'),
    ('data fingerprint', str(last.get('data_fingerprint'))),
  ]


def _differences(runs: Sequence[Run]) -> Element:
  names = differing_fields(runs)
  if not names:
    return element('p', 'All fields are equal.')
  rows = [
    (
      name,
      *(
        words.field(run.config[name]) if name in run.config else 'no such field'
        for run in runs
      ),
    )
    for name in names
  ]
  made = Table(
    'Fields of the configs that differ',
    ('field', *(run.name for run in runs)),
    rows,
  )
  return table(made, wide=len(runs) > 2)


def _is_empty(value: Any) -> bool:
  return value is None or (isinstance(value, str | list | dict) and not value)


# Training and sets.


def _training(runs: Sequence[Run], sets: Sequence[str]) -> list[Element]:
  drawn = [figure(made) for made in figures.training(runs, sets)]
  if not drawn:
    return [element('p', 'No step has been recorded.')]
  return [
    element(
      'p',
      'Each record is the mean over the steps since the one before it; the '
      'learning rate is that of its step. Accuracy in training is without the '
      'margin, and of the batch’s own classes.',
    ),
    grid(drawn),
  ]


def _set(name: str, runs: Sequence[Run]) -> list[Element]:
  """Makes the part of a set: figures, hardest pairs, and every number."""
  results = {run.name: run.results[name] for run in runs if name in run.results}
  whose: dict[Note, list[str]] = {}
  for run, result in results.items():
    for one in (*result.notes, *map(Note, _remarks(result))):
      whose.setdefault(one, []).append(run)
  found = [note(one, _listed(names)) for one, names in whose.items()]
  drawn = figures.roc(name, runs)
  if drawn:
    text = 'FAR and TAR of the ROC are FMR and 1 - FNMR of the DET.'
    found.append(element('p', text))
  drawn += figures.scores(name, runs)
  if drawn:
    found.append(grid([figure(made) for made in drawn]))
  for run in runs:
    result = results.get(run.name)
    if result and result.is_of_pairs and result.same is not None:
      found += _hardest(run, result)
  numbers = _numbers(name, results)
  if any(result.is_of_pairs for result in results.values()):
    return [*found, details('All numbers of these results', *numbers)]
  return found + numbers


def _remarks(result: Result) -> list[str]:
  """Says what a reader of the numbers must know besides."""
  found = []
  summary = result.summary
  resized = summary.get('num_resized')
  if is_number(resized) and resized:
    found.append(
      f'{resized:,} images had another size and were resized; they may not be '
      'aligned.'
    )
  if result.is_of_pairs and summary.get('folds', 10) != 10:
    found.append(
      f'accuracy is over {summary["folds"]} folds, published ones are over 10.'
    )
  for point in (summary.get('tar_at_far') or {}).values():
    if not drawing.is_measurable(point):
      found.append(
        f'FAR {rate(point["far_target"])} cannot be measured with '
        f'{point["num_impostors"]:,} impostor pairs.'
      )
  remarks = summary.get('remarks')
  return found + (list(map(str, remarks)) if isinstance(remarks, list) else [])


def _hardest(run: Run, result: Result) -> list[Element]:
  """Shows the genuine pairs that score lowest, impostors that score highest."""
  images, problem = pictures.of_hardest(run, result)
  found = [element('h3', f'Hardest pairs of {run.name}')]
  if problem:
    found.append(element('p', problem, class_='note'))
  for title, kind, pairs in (
    ('Genuine pairs with the lowest scores', 'genuine', result.lowest),
    ('Impostor pairs with the highest scores', 'impostor', result.highest),
  ):
    found.append(element('h4', title))
    if not pairs:
      found.append(element('p', f'There are no {kind} pairs.'))
      continue
    found.append(
      grid([_pair(k, score, kind, images) for k, score in pairs], 'hardest')
    )
  return found


def _pair(
  k: int, score: float, kind: str, images: Mapping[int, tuple[str, str]]
) -> Element:
  shown = [
    element(
      'img', src=uri, width='112', height='112',
      alt=f'{order} image of {kind} pair {k}',
    )
    for order, uri in zip(('First', 'Second'), images.get(k, ()), strict=False)
  ]  # fmt: skip
  caption = element('figcaption', f'cosine {score:.3f}, pair {k:,}')
  if not shown:
    return element('figure', caption)
  return element('figure', element('div', *shown, class_='two'), caption)


def _numbers(name: str, results: Mapping[str, Result]) -> list[Element]:
  """Makes tables of everything that the results hold, whatever it is.

  What is a record for each of several targets, such as operating points, has a
  table of its own.
  """
  keys = list(
    dict.fromkeys(key for result in results.values() for key in result.summary)
  )
  flat: dict[str, dict[str, str]] = {run: {} for run in results}
  tables = []
  for key in keys:
    values = {
      run: result.summary[key]
      for run, result in results.items()
      if key in result.summary
    }
    if all(map(_is_table, values.values())):
      tables.append(_records(f'{key} of {name}', values))
    else:
      for run, value in values.items():
        flat[run] |= _flat(value, key)
  names = dict.fromkeys(key for found in flat.values() for key in found)
  rows = [(k, *(flat[run].get(k, words.NONE) for run in flat)) for k in names]
  plain = Table(f'Everything else of {name}', ('name', *flat), rows)
  return [table(one, wide=True) for one in tables] + [
    table(plain, wide=len(flat) > 2)
  ]


# Values that are written as rates; keys of tables named so are, too.
_RATES = ('far', 'fpir', 'far_target', 'fpir_target', 'far_interval')


def _is_table(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and bool(value)
    and all(isinstance(one, Mapping) for one in value.values())
  )


def _records(title: str, values: Mapping[str, Mapping]) -> Table:
  """Lists records, a line for each of them and each run."""
  flat = [
    (_target(title, str(key)), run, _flat(record))
    for run, records in values.items()
    for key, record in records.items()
  ]
  names = dict.fromkeys(name for _, _, found in flat for name in found)
  rows = [
    (key, run, *(found.get(name, words.NONE) for name in names))
    for key, run, found in flat
  ]
  return Table(title, ('at', 'run', *names), rows)


def _target(title: str, key: str) -> str:
  """Returns the key of a record: one of ``tar_at_far`` is a rate."""
  if not title.partition(' ')[0].endswith(('_at_far', '_at_fpir')):
    return key
  try:
    return rate(float(key), 5)
  except ValueError:
    return key


def _flat(content: Any, prefix: str = '') -> dict[str, str]:
  """Returns the values in nested content by dotted name, as text."""
  if isinstance(content, Mapping):
    entries = content.items()
  elif isinstance(content, list) and any(
    isinstance(one, Mapping | list) for one in content
  ):
    entries = enumerate(content)
  elif isinstance(content, list):
    return {prefix: ', '.join(_scalar(x, prefix) for x in content) or 'none'}
  else:
    return {prefix: _scalar(content, prefix)}
  found = {}
  for key, value in entries:
    found |= _flat(value, f'{prefix}.{key}' if prefix else str(key))
  return found


def _scalar(value: Any, name: str) -> str:
  if name.rpartition('.')[2] in _RATES and is_number(value) and value >= 0:
    return rate(value, 5)
  if is_number(value):
    return words.number(value)
  return 'none' if value is None else str(value)


# Config, manifest and commands.


def _configs(runs: Sequence[Run]) -> list[Element]:
  found = []
  for run in runs:
    if not run.config:
      text = f'{run.name} is an evaluation and has no config of its own.'
      found.append(element('p', text))
      continue
    rows = [(name, words.field(value)) for name, value in run.config.items()]
    made = Table(f'Config of {run.name}', ('field', 'value'), rows)
    found.append(details(f'Config of {run.name}', table(made)))
    if run.manifest:
      text = json.dumps(run.manifest, indent=1, sort_keys=True)
      found.append(details(f'Manifest of {run.name}', command(text)))
  return found


def _repeat(
  runs: Sequence[Run],
  recipes: Mapping[str, repeat.Recipe | None],
  out: Path,
) -> list[Element]:
  found = []
  folders = repeat.new_folders(runs)
  for run in runs:
    found.append(element('h3', run.name))
    recipe = recipes[run.name]
    workdir, results = folders[run.name]
    # Without a command that trains it, there is only the folder of now.
    trained = str(run.folder) if recipe is None else workdir
    if recipe is not None:
      found.append(element('p', 'Train it again, with the versions above:'))
      found.append(command(repeat.training(run, recipe, workdir)))
    elif run.config:
      text = (
        'No recipe of this version makes its config: it was trained by another '
        'version, or from a recipe of its own. The config is above.'
      )
      found.append(element('p', text, class_='note'))
    if 'starts' in run.manifest:
      text = 'Train it again and compare it bit for bit, step by step:'
      found.append(element('p', text))
      found.append(command(repeat.repetition(run)))
    if run.fingerprint is not None:
      found.append(element('p', 'The same bits have the same fingerprint:'))
      found.append(command(repeat.fingerprint(run, trained)))
      found.append(element('p', f'prints {run.fingerprint}.'))
    own = None if recipe is None else workdir
    evaluation = repeat.evaluation(run, results, own)
    if evaluation:
      found.append(element('p', 'Evaluate it again:'))
      found.append(command(evaluation))
  found.append(element('h3', 'This page'))
  found.append(command(repeat.page([run.folder for run in runs], out)))
  return found
