# SPDX-License-Identifier: Apache-2.0
"""The page of a study: what it tells apart, its runs, and how to repeat it."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from elasticface_jax import config_rules, recipes
from elasticface_jax.report import (
  document,
  repeat,
  study_figures,
  study_repeat,
  study_words,
  words,
)
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
  unbroken,
)
from elasticface_jax.report.study import Study, StudyRun, start_field
from elasticface_jax.report.study_analysis import (
  ACCURACY,
  Comparison,
  Metric,
  OfSet,
)
from elasticface_jax.studies import folder as study_folder
from elasticface_jax.studies import sharing

_DIGITS = 16  # Of a fingerprint in the table of runs.
# Files that a study writes besides, and what is in them.
_FILES = {
  'analysis.json': 'every number of this page, as shares',
  'comparisons.csv': 'the comparisons, one a line',
  'runs.csv': 'the rates of each run, one a line',
}


def write(study: Study, out: Path) -> None:
  """Writes a page of a study.

  Equal folders make equal bytes.

  Args:
    study: of `read_study`.
    out: the file.

  Raises:
    InputError: if the file cannot be written.
  """
  sets = _sets(study)
  parts = [Part('Study', 'study', lambda: _study(study))]
  parts += [
    Part(name, f'set-{k}', lambda name=name: _set(study, name))
    for k, name in enumerate(sets)
  ]
  if any(run.rows for run in study.runs):
    parts.append(Part('Training', 'training', lambda: _training(study, sets)))
  parts += [
    Part('Runs', 'runs', lambda: _runs(study, sets)),
    Part('Configs', 'configs', lambda: _configs(study)),
    Part('How to repeat it', 'repeat', lambda: _repeat(study, out)),
  ]
  document.write(out, f'Study: {study.name}', parts, _footer(study))


def _sets(study: Study) -> list[str]:
  found = [name for run in study.runs for name in run.results]
  return list(dict.fromkeys([*study.analysis.sets, *found]))


def _footer(study: Study) -> str:
  text = (
    'A difference is the second config minus the first one, seed by seed, in '
    'percentage points. TAR is the share of genuine pairs accepted, FAR that '
    'of impostor pairs.'
  )
  if study.analysis.confidence is None:
    return text
  return (
    f'{text} Intervals are at {100 * study.analysis.confidence:g} %, over '
    'seeds and pairs.'
  )


# Study.


def _shared(study: Study) -> str:
  """Returns what runs of one seed share, as the study said it."""
  # An older version may lack fields, which were as they are in the base; each
  # loss has its own.
  base = config_rules.flatten(recipes.base(loss={}).to_dict())
  configs = [base | one.fields for one in study.variants.values()]
  return sharing.describe(configs, len(study.seeds))


def _study(study: Study) -> list[Element]:
  """Makes the first part: what is compared, and what is missing."""
  finished = sum(run.is_finished for run in study.runs)
  facts = [
    ('folder', str(study.folder)),
    ('configs', ', '.join(study.variants)),
    ('seeds', study_words.seeds(study.seeds)),
    ('runs', f'{finished} of {len(study.runs)} finished'),
    ('shared by seed', _shared(study)),
    *_origin(study.runs),
  ]
  found = [fields(facts), *map(note, study.notes)]
  if study.analysis.notes:
    of_analysis = [
      element('li', *unbroken(text)) for text in study.analysis.notes
    ]
    found.append(element('p', 'Notes of the analysis:'))
    found.append(element('ul', *of_analysis))
  if not _sets(study):
    found.append(element('p', 'No set of pairs has been evaluated yet.'))
  if study.differing and len(study.variants) > 1:
    found.append(_differences(study))
  return found


def _origin(runs: Sequence[StudyRun]) -> list[tuple[str, str]]:
  """Says on what the runs ran, of the last of their starts."""
  found = []
  for name in ('device_kind', 'versions', 'data_fingerprint'):
    values = collections.Counter(
      start_field(run.start[name]) for run in runs if name in run.start
    )
    if values:
      many = len(values) > 1
      listed = '; '.join(
        f'{value} ({count} runs)' if many else value
        for value, count in values.items()
      )
      found.append((name.replace('device_kind', 'device'), listed))
  return [(name.replace('_', ' '), text) for name, text in found]


def _differences(study: Study) -> Element:
  """Makes a table of what differs, a line for each config."""
  rows = [
    (
      name,
      *(
        words.field(one.fields[field])
        if field in one.fields
        else 'no such field'
        for field in study.differing
      ),
    )
    for name, one in study.variants.items()
  ]
  made = Table(
    'Fields of the configs that differ', ('config', *study.differing), rows
  )
  return table(made, wide=True)


# Sets.


def _set(study: Study, name: str) -> list[Element]:
  """Makes the part of a set: tables, sentences and figures."""
  of_set = study.analysis.sets.get(name)
  if of_set is None:
    text = 'The analysis does not have this set.'
    return [element('p', text, class_='note')]
  found = [element('p', text) for text in _pairs(of_set)]
  found.append(table(_levels(study, of_set), wide=True))
  metrics = of_set.metrics
  compared = [m for m, one in metrics.items() if one.comparisons]
  if ACCURACY in compared:
    found += _comparisons(study, ACCURACY, metrics[ACCURACY])
  elif study.is_analysed:
    found.append(element('p', 'There are no two configs to compare.'))
  drawn = [study_figures.runs(study, name)]
  if ACCURACY in compared:
    drawn.append(study_figures.differences(study, name, ACCURACY))
  drawn = [one for one in drawn if one is not None]
  if drawn:
    found.append(grid([figure(one) for one in drawn]))
  for metric in compared:
    if metric != ACCURACY:
      found.append(_other(study, name, metric, metrics[metric]))
  if compared:
    rows = [row for m in compared for row in _numbers(m, metrics[m])]
    made = _with_headings(f'Further numbers of the comparisons on {name}', rows)
    found.append(details('All numbers of the comparisons', made))
  return found


def _pairs(of_set: OfSet) -> list[str]:
  found = []
  if of_set.num_pairs is not None:
    text = f'{of_set.num_pairs:,} pairs'
    if of_set.num_genuine is not None:
      text += f', {of_set.num_genuine:,} of them genuine'
    found.append(f'{text}.')
  if of_set.pairs_shared is False:
    found.append('Runs of other seeds have other pairs.')
  return found


def _levels(study: Study, of_set: OfSet) -> Table:
  """Lists the rates of each config."""
  metrics = of_set.metrics
  interval = study.analysis.confidence
  about = '' if interval is None else f' [{100 * interval:g} % interval]'
  headings = (
    'config',
    'seeds',
    *(
      f'{study_words.metric(m)}, % ± deviation over seeds{about}'
      for m in metrics
    ),
  )
  rows = []
  for name in study.variants:
    levels = [one.levels.get(name) for one in metrics.values()]
    number = max((len(one.by_seed) for one in levels if one), default=0)
    rows.append((name, str(number), *map(study_words.level, levels)))
  return Table('Configs, over seeds', headings, rows)


def _comparisons(study: Study, metric: str, found: Metric) -> list[Element]:
  """Makes a table of comparisons, and what follows from them."""
  analysis = study.analysis
  sentences = (
    element('li', *unbroken(study_words.comparison(one, analysis)))
    for one in found.comparisons
  )
  about = study_words.detectable(analysis)
  return [
    table(_comparison_table(study, metric, found.comparisons), wide=True),
    *([element('p', about)] if about else []),
    element('ul', *sentences),
  ]


def _comparison_table(
  study: Study, metric: str, found: Sequence[Comparison]
) -> Table:
  analysis = study.analysis
  interval, number = analysis.confidence, analysis.num_comparisons
  about = '' if interval is None else f' [{100 * interval:g} % interval]'
  of = '' if number is None else f' for {number} comparisons'
  of += f', by {analysis.correction}' if analysis.correction else ''
  headings = (
    'second − first', 'seeds', f'difference, points{about}', 'p',
    f'p after correction{of}', 'could have seen, points',
    'could have seen after correction, points',
  )  # fmt: skip
  rows = [
    (
      f'{one.second} {study_words.MINUS} {one.first}',
      str(len(one.by_seed)),
      study_words.points(one.difference)
      + study_words.points_interval(one.interval),
      study_words.p_value(one.p),
      study_words.p_value(one.p_adjusted),
      study_words.size(one.detectable),
      study_words.size(one.detectable_adjusted),
    )
    for one in found
  ]
  name = study_words.metric(metric)
  return Table(f'Comparisons in {name}', headings, rows)


def _other(study: Study, name: str, metric: str, found: Metric) -> Element:
  """Makes a closed part of a rate other than the accuracy."""
  drawn = study_figures.differences(study, name, metric)
  return details(
    f'Comparisons in {study_words.metric(metric)}',
    *_comparisons(study, metric, found),
    *([] if drawn is None else [grid([figure(drawn)])]),
  )


def _numbers(
  metric: str, found: Metric
) -> list[tuple[str, str, dict[str, float]]]:
  return [
    (
      study_words.metric(metric),
      f'{one.second} {study_words.MINUS} {one.first}',
      one.others,
    )
    for one in found.comparisons
  ]


def _with_headings(
  title: str, found: Sequence[tuple[str, str, Mapping[str, float]]]
) -> Element:
  names = dict.fromkeys(name for _, _, others in found for name in others)
  rows = [
    (pair, metric, *(words.number(others.get(name)) for name in names))
    for metric, pair, others in found
  ]
  headings = ('second − first', 'rate', *names)
  return table(Table(title, headings, rows), wide=True)


# Training, runs, configs and commands.


def _training(study: Study, sets: Sequence[str]) -> list[Element]:
  drawn = [figure(made) for made in study_figures.training(study, sets)]
  if not drawn:
    return [element('p', 'No step has been recorded.')]
  text = (
    'Each curve is the mean of the runs of a config, its band goes from the '
    'lowest to the highest of them.'
  )
  return [element('p', text), grid(drawn)]


def _runs(study: Study, sets: Sequence[str]) -> list[Element]:
  """Makes the table of all runs."""
  headings = (
    'config', 'seed', 'step', f'fingerprint, first {_DIGITS} digits',
    *(f'accuracy on {name}, %' for name in sets),
  )  # fmt: skip
  rows = [
    (
      run.config,
      str(run.seed),
      _step(run),
      'not known' if run.fingerprint is None else run.fingerprint[:_DIGITS],
      *(
        words.percent(run.results[name].content['accuracy'])
        if name in run.results
        else 'not evaluated'
        for name in sets
      ),
    )
    for run in study.runs
  ]
  made = table(Table('Runs of the study', headings, rows), wide=True)
  begun = [run for run in study.runs if run.has_begun]
  found = [details(f'All {len(rows)} runs', made)]
  if begun:
    seed = begun[0].seed
    folders = [run.folder for run in begun if run.seed == seed]
    text = (
      f'Curves, scores and hardest pairs of single runs, here those of seed '
      f'{seed}, are on a page of their own:'
    )
    page = study_repeat.runs_page(folders, f'{study.name}_seed_{seed}.html')
    found += [element('p', text), command(page)]
  return found


def _step(run: StudyRun) -> str:
  if run.problem:
    return 'damaged'
  if not run.has_begun:
    return 'not begun'
  if run.is_finished:
    return f'{run.step:,}'
  return f'{run.step:,} of {run.total:,}'


def _configs(study: Study) -> list[Element]:
  rows = [(name, words.field(value)) for name, value in study.shared.items()]
  made = Table('Fields that all configs share', ('field', 'value'), rows)
  return [
    details(f'{len(rows)} fields that all configs share', table(made)),
    *(
      details(
        f'Config of {name}',
        table(
          Table(
            f'Config of {name}',
            ('field', 'value'),
            [(key, words.field(value)) for key, value in one.fields.items()],
          )
        ),
      )
      for name, one in study.variants.items()
    ),
  ]


def _repeat(study: Study, out: Path) -> list[Element]:
  """Makes the commands that repeat the study, and what they are to give."""
  variants, again = (
    list(study.variants.values()),
    study_repeat.rerun(study.folder),
  )
  found = [
    element('p', 'Make the study again, with the versions above:'),
    command(study_repeat.study_command(again, variants, study.seeds)),
  ]
  one = study.runs[0]
  found.append(element('p', f'Make one of its runs again, {one.name}:'))
  found.append(
    command(study_repeat.study_command(again, variants, study.seeds, one.name))
  )
  known = [run for run in study.runs if run.fingerprint is not None]
  if known:
    folder = study_folder.run_path(again, one.config, one.seed)
    found.append(element('p', 'This command prints the fingerprint of it:'))
    found.append(command(study_repeat.fingerprint(folder)))
    text = 'The same bits have these fingerprints, of the last step:'
    prints = command(
      '\n'.join(f'{run.name}  {run.fingerprint}' for run in known)
    )
    found.append(element('p', text))
    found.append(details(f'Fingerprints of {len(known)} runs', prints))
  there = [name for name in _FILES if (study.folder / name).is_file()]
  if there:
    entries = [
      element('li', element('code', name), f': {_FILES[name]}')
      for name in there
    ]
    found += [
      element('h3', 'Raw numbers'),
      element('p', f'In {study.folder}:'),
      element('ul', *entries),
    ]
  found += [
    element('h3', 'This page'),
    command(repeat.page([study.folder], out)),
  ]
  return found
