# SPDX-License-Identifier: Apache-2.0
"""Figures of runs: curves of training, ROC, DET and scores, side by side.

Each has its legend and its numbers beside the drawing, where a page can lay
them out and a screen reader can read them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from elasticface_jax import missing
from elasticface_jax.evaluation import drawing
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.evaluation.curves import Curve, Histogram
from elasticface_jax.report import svg, words
from elasticface_jax.report.read import Result, Run

with missing.needs(__name__):
  from matplotlib.axes import Axes

_ROWS = 20  # Of a table of a curve over steps.


class Line(NamedTuple):
  """An entry of a legend.

  Attributes:
    label: words.
    colour: CSS's ``stroke``; empty for words about all curves.
    pattern: CSS's ``stroke-dasharray``.
  """

  label: str
  colour: str
  pattern: str


class Table(NamedTuple):
  """Numbers of a figure.

  Attributes:
    caption: what they are.
    headings: of the columns.
    rows: text of the cells; the first one names the row.
  """

  caption: str
  headings: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
  """A drawing and everything that goes with it.

  Attributes:
    title: short.
    findings: sentences that say what it shows.
    drawing: the element ``svg``.
    legend: entries, in the order of the curves.
    table: its numbers.
    is_tall: whether it is as high as two others.
  """

  title: str
  findings: str
  drawing: Element
  legend: Sequence[Line]
  table: Table
  is_tall: bool = False


def training(runs: Sequence[Run], sets: Sequence[str]) -> list[Figure]:
  """Draws the metrics of training, one figure each, all runs in it.

  Args:
    runs: those with records of training and others, in the order of the page.
    sets: names of the sets whose accuracy is drawn.
  """
  margins = _margins(runs)
  panels = [('loss', drawing.LOSS)]
  panels += [
    (metric, panel._replace(metrics=(metric,)))
    for panel in drawing.PANELS
    for metric in panel.metrics
    # The angle is drawn above the margins.
    if metric != 'target_angle' or margins is None
  ]
  found = [
    margins,
    *(_metric(runs, name, panel) for name, panel in panels),
    *(_accuracy(name, runs) for name in sets),
  ]
  return [figure for figure in found if figure is not None]


def _metric(
  runs: Sequence[Run], name: str, panel: drawing.Panel
) -> Figure | None:
  """Draws a metric over the steps of all runs that have it."""
  points = {
    run.name: [
      (row['step'], panel.factor * row[name])
      for row in run.trained
      if name in row
    ]
    for run in runs
  }
  points = {name: found for name, found in points.items() if found}
  if not points:
    return None
  label = panel.label
  if name.endswith('gradient_norm'):
    label = f'{name.partition("_")[0]}: {label}'
  title, _, unit = label.replace(' (no unit)', ', no unit').rpartition(', ')
  with svg.new() as figure:
    axes = _step_axes(figure.subplots(), runs)
    for index, run in enumerate(runs):
      drawing.draw_metric(
        axes, run.trained, name, factor=panel.factor, label=None, index=index
      )
    axes.set_ylabel(label)
    if panel.is_log:
      axes.set_yscale('log')
      _plain_log(axes)
    over = '' if title.endswith('training') else ' over training'
    title = f'{title[0].upper()}{title[1:]}{over}'
    findings = words.metric(points, '' if unit == 'no unit' else f' {unit}')
    if name == 'loss':
      findings += words.other_losses([r for r in runs if r.name in points])
    return Figure(
      title,
      findings,
      svg.convert(figure, f'metric-{name}', title=title, description=findings),
      _legend(runs, points),
      _steps_table(title, unit, points),
    )


def _plain_log(axes: Axes) -> None:
  """Shows plain numbers on a logarithmic axis, also within one decade."""
  axes.yaxis.set_major_formatter(lambda x, _: f'{x:g}')
  low, high = axes.get_ylim()
  inside = low > 0 and high < 100 * low
  axes.yaxis.set_minor_formatter(
    (lambda x, _: f'{x:g}' if f'{x:e}'[0] in '25' else '') if inside else ''
  )


def _margins(runs: Sequence[Run]) -> Figure | None:
  """Draws angles to the own class above the margins that are added to them."""
  found = {
    run.name: drawing.margins_in(run.trained) for run in runs if run.trained
  }
  units = []
  for run in runs:
    for name in found.get(run.name, ()):
      unit = words.margin_unit(run.config.get('loss.name'), name)
      units += [unit] if unit not in units else []
  if not units:
    return None
  with svg.new(svg.HEIGHT + 130 * len(units)) as figure:
    panels = figure.subplots(
      1 + len(units), sharex=True, height_ratios=[1.3] + [1] * len(units)
    )
    for axes in panels:
      _step_axes(axes, runs).set_xlabel('')
    panels[-1].set_xlabel(drawing.STEP)
    panels[0].set_ylabel('angle to the\nown class, °')
    places = dict(zip(units, panels[1:], strict=True))
    for unit, axes in places.items():
      axes.set_ylabel(_MARGIN_LABELS[unit])
    for index, run in enumerate(runs):
      drawing.draw_metric(
        panels[0],
        run.trained,
        'target_angle',
        factor=180 / math.pi,
        label=None,
        index=index,
      )
      for name in found.get(run.name, ()):
        unit = words.margin_unit(run.config.get('loss.name'), name)
        drawing.draw_margin(
          places[unit],
          run.trained,
          name,
          factor=180 / math.pi if unit == 'angle' else 1,
          label=None,
          index=index,
        )
    for axes in panels[1:]:
      drawing.finish_margin(axes)
    figure.align_ylabels(panels)
    title = 'Angle to the own class, and the margins drawn'
    numbers = [
      sum(f'{name}_std' in row for row in run.trained)
      for run in runs
      for name in found.get(run.name, ())
    ]
    findings = ' '.join(
      words.margin(run, found.get(run.name, ())) for run in runs if run.trained
    )
    return Figure(
      title,
      findings,
      svg.convert(figure, 'margins', title=title, description=findings),
      _legend(
        runs, found, about=f'{_shapes(numbers)}: ± deviation over samples'
      ),
      _margin_table(runs, found),
      is_tall=True,
    )


_MARGIN_LABELS = {
  'angle': 'margin, °',
  'cosine': 'margin, cosine\n(no unit)',
  'factor': 'margin, factor\n(no unit)',
  '': 'argument of the\nloss (no unit)',
}


def _margin_table(
  runs: Sequence[Run], found: Mapping[str, Sequence[str]]
) -> Table:
  rows = []
  for run in runs:
    for row in thinned(run.trained):
      angle = row.get('target_angle')
      margins = [
        words.margin_of(run.config.get('loss.name'), name, row)
        for name in found.get(run.name, ())
      ]
      rows.append(
        (
          f'{row["step"]:,}',
          run.name,
          f'{math.degrees(angle):.2f}'
          if words.is_number(angle)
          else words.NONE,
          ', '.join(margins) or words.NONE,
        )
      )
  return Table(
    'Angle to the own class and margins',
    ('step', 'run', 'angle, °', 'margin, mean ± deviation'),
    rows,
  )


def _accuracy(name: str, runs: Sequence[Run]) -> Figure | None:
  """Draws the accuracy on a pair set over training, all runs in one figure."""
  verified = {run.name: drawing.verified_in(run.rows) for run in runs}
  records = {
    run: {
      step: row
      for step, row in found[name].items()
      if 'accuracy' in row and 'accuracy_std' in row
    }
    for run, found in verified.items()
    if name in found
  }
  records = {run: found for run, found in records.items() if found}
  if not records:
    return None
  with svg.new() as figure:
    axes = _step_axes(figure.subplots(), runs)
    for index, run in enumerate(runs):
      found = records.get(run.name, {})
      drawing.draw_accuracy(axes, found, label=None, index=index)
    axes.set_ylabel('verification accuracy, %')
    title = f'Accuracy on {name} over training'
    points = {
      run: [(step, 100 * row['accuracy']) for step, row in found.items()]
      for run, found in records.items()
    }
    findings = words.metric(points, ' %', 4)
    numbers = [len(found) for found in records.values()]
    return Figure(
      title,
      findings,
      svg.convert(
        figure, f'accuracy-{id_of(name)}', title=title, description=findings
      ),
      _legend(runs, records, about=f'{_shapes(numbers)}: ± deviation of folds'),
      _steps_table(title, '%', points),
    )


def roc(name: str, runs: Sequence[Run]) -> list[Figure]:
  """Draws ROC and DET of a set, all runs in each, with their 95 % bands."""
  results = {run.name: run.results.get(name) for run in runs}
  results = {
    run: found
    for run, found in results.items()
    if found is not None and found.curve is not None
  }
  if not results:
    return []
  curves = {run: result.curve for run, result in results.items()}
  lowest = min(curve.lowest_far for curve in curves.values())
  least = min(1 / curve.num_genuine for curve in curves.values())
  indices = {run.name: k for k, run in enumerate(runs)}
  found = []
  for kind, title, draw, finish, limits, sentences in (
    (
      'roc',
      f'ROC of {name}',
      drawing.draw_roc,
      drawing.finish_roc,
      (lowest,),
      words.roc(
        curves,
        {run: r.summary.get('fingerprint') for run, r in results.items()},
      ),
    ),
    (
      'det',
      f'DET of {name}',
      drawing.draw_det,
      drawing.finish_det,
      (lowest, least),
      words.det(results),
    ),
  ):
    with svg.new() as figure:
      axes = drawing.style(figure.subplots())
      for run, curve in curves.items():
        draw(axes, curve, label='', index=indices[run])
      finish(axes, *limits)
      other = 'chance' if kind == 'roc' else 'FNMR = FMR'
      found.append(
        Figure(
          title,
          sentences,
          svg.convert(
            figure, f'{kind}-{id_of(name)}', title=title, description=sentences
          ),
          [
            *_legend(runs, curves, about='bands: 95 % intervals'),
            Line(other, svg.variable(drawing.RULE), '2 4'),
          ],
          _roc_table(title, curves, is_det=kind == 'det'),
        )
      )
  return found


def _roc_table(
  title: str, curves: Mapping[str, Curve], *, is_det: bool
) -> Table:
  """Lists a curve at powers of ten, and at the lowest rate that it measures."""
  rows = []
  for run, curve in curves.items():
    rates = [1.0] if curve.lowest_far > 0.1 else []
    rates += [*drawing.decades(curve)]
    for far in [*rates, curve.lowest_far]:
      k = curve.at(far)
      if far == curve.lowest_far and rates and far == rates[-1]:
        continue
      value, low, high = curve.tar[k], curve.tar_low[k], curve.tar_high[k]
      if is_det:
        value, low, high = 1 - value, 1 - high, 1 - low
      cut = curve.thresholds[k]
      rows.append(
        (
          rate(far),
          run,
          words.with_interval(float(value), (float(low), float(high))),
          rate(float(curve.far[k]), 3),
          f'{cut:.4f}' if math.isfinite(cut) else 'none',
        )
      )
  first, second = ('FMR', 'FNMR') if is_det else ('FAR', 'TAR')
  return Table(
    f'{title} at powers of ten',
    (
      f'{first} at most',
      'run',
      f'{second}, % [95 % interval]',
      f'{first} found',
      'score from',
    ),
    rows,
  )


def scores(name: str, runs: Sequence[Run]) -> list[Figure]:
  """Draws the distribution of the scores of a set, a figure for each run.

  Their horizontal axes are equal.
  """
  results = {
    index: run.results[name]
    for index, run in enumerate(runs)
    if name in run.results and run.results[name].histogram is not None
  }
  edges = [result.histogram.edges for result in results.values()]
  limits = [x for one in edges for x in (one[0], one[-1])]
  return [
    _scores(index, runs[index].name, result, (min(limits), max(limits)))
    for index, result in results.items()
  ]


def _scores(
  index: int, run: str, result: Result, limits: tuple[float, float]
) -> Figure:
  found = result.histogram
  title = f'Scores of {result.name}, {run}'
  findings = words.scores(result)
  marks = drawing.marks(result.summary)
  with svg.new() as figure:
    axes = drawing.style(figure.subplots())
    drawing.draw_scores(axes, found)
    drawing.draw_marks(axes, marks)
    axes.set_xlim(*limits)
    axes.set_xlabel('score, cosine (no unit)')
    kinds = (('genuine', found.genuine), ('impostor', found.impostor))
    entries = [
      line(f'{counts.sum():,} {kind} pairs', k)
      for k, (kind, counts) in enumerate(kinds)
      if counts.any()
    ]
    patterns = ('none', '2 4', '8 4', '8 4 2 4')
    entries += [
      # Words about a threshold that is not drawn have no sample of a line.
      Line(mark.label, '', '')
      if mark.position is None
      else Line(mark.label, svg.variable(drawing.INK), pattern)
      for mark, pattern in zip(marks, patterns, strict=False)
    ]
    name = f'scores-{index}-{id_of(result.name)}'
    return Figure(
      title,
      findings,
      svg.convert(figure, name, title=title, description=findings),
      entries,
      _scores_table(title, found),
    )


def _scores_table(title: str, found: Histogram) -> Table:
  """Lists the bins, several of them together where there are many."""
  together = -(-len(found.genuine) // 25)
  rows = []
  for k in range(0, len(found.genuine), together):
    last = min(k + together, len(found.genuine))
    rows.append(
      (
        f'{found.edges[k]:.4g} to {found.edges[last]:.4g}',
        f'{found.genuine[k:last].sum():,}',
        f'{found.impostor[k:last].sum():,}',
      )
    )
  return Table(title, ('score', 'genuine pairs', 'impostor pairs'), rows)


def _step_axes(axes: Axes, runs: Sequence[Run]) -> Axes:
  drawing.style(axes)
  drawing.style_steps(
    axes, max((run.last_step for run in runs), default=1) or 1
  )
  return axes


def _legend(
  runs: Sequence[Run], shown: Mapping[str, object], about: str = ''
) -> list[Line]:
  entries = [
    line(run.name, index) for index, run in enumerate(runs) if run.name in shown
  ]
  return entries + ([Line(about, '', '')] if about else [])


def _shapes(numbers: Sequence[int]) -> str:
  """Says how the deviations of curves of so many points are drawn."""
  return ' and '.join(sorted({*map(drawing.shape_of_spread, numbers)}))


def line(label: str, index: int) -> Line:
  """Returns the entry of a curve, by its number."""
  style = drawing.line_style(index)
  pattern = drawing.PATTERNS[index % len(drawing.PATTERNS)]
  return Line(
    label,
    svg.variable(style['color']),
    ' '.join(f'{2 * part:g}' for part in pattern) or 'none',
  )


def thinned(rows: Sequence) -> list:
  """Returns some twenty entries of a list, the first and the last included."""
  if len(rows) <= _ROWS:
    return list(rows)
  return [rows[round(k)] for k in np.linspace(0, len(rows) - 1, _ROWS)]


def _steps_table(
  title: str, unit: str, points: Mapping[str, Sequence[tuple[int, float]]]
) -> Table:
  steps = sorted({step for found in points.values() for step, _ in found})
  by_step = {name: dict(found) for name, found in points.items()}
  return Table(
    title,
    ('step', *(f'{name}, {unit}' for name in points)),
    [
      (f'{step:,}', *(words.number(by_step[name].get(step)) for name in points))
      for step in thinned(steps)
    ],
  )


def id_of(name: str) -> str:
  """Returns a name as letters and digits, different for different names."""
  return ''.join(
    c if c.isascii() and c.isalnum() else f'_{ord(c):x}' for c in name
  )
