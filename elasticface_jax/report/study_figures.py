# SPDX-License-Identifier: Apache-2.0
"""Figures of a study: its runs, differences of configs, curves of training.

Names stand in the drawings where they are long, so each has a height of its
own.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from elasticface_jax import missing
from elasticface_jax.evaluation import drawing
from elasticface_jax.report import study_words, svg, words
from elasticface_jax.report.figures import (
  Figure,
  Line,
  Table,
  id_of,
  line,
  thinned,
)
from elasticface_jax.report.study import Study, StudyRun
from elasticface_jax.report.study_analysis import (
  ACCURACY,
  Analysis,
  Comparison,
  Level,
)

with missing.needs(__name__):
  from matplotlib import patches, textpath
  from matplotlib.axes import Axes
  from matplotlib.font_manager import FontProperties

_MARKERS = 'os^DvPX*'
_SIZE = 12  # Of text.
_LINE = 16  # Height of a line of it.
_NAMES = 110  # Width of names beside the axes.
_AXIS = 64  # Height of what is below the axes.
_INSIDE = svg.WIDTH - 40  # Width of text above a row.


def runs(study: Study, name: str) -> Figure | None:
  """Draws the accuracy of each run of a study on a set, paired by seeds.

  Args:
    study: the study.
    name: of the set.
  """
  found = _levels(study, name)
  if not found:
    return None
  title = f'Accuracy of each run on {name}'
  findings = study_words.levels(found)
  labels = [_wrapped(config, _NAMES) for config in found]
  heights = [max(44, 10 + (_LINE + 2) * len(label)) for label in labels]
  places = np.cumsum(heights) - np.array(heights) / 2
  with svg.new(int(sum(heights)) + _AXIS) as figure:
    axes = drawing.style(figure.subplots())
    for seed in sorted({s for one in found.values() for s in one.by_seed}):
      values = [one.by_seed.get(seed, math.nan) for one in found.values()]
      axes.plot(
        100 * np.array(values), places, color=drawing.RULE, linewidth=0.8
      )
    for place, (config, one) in zip(places, found.items(), strict=True):
      _draw_level(axes, place, one, list(study.variants).index(config))
    texts = ['\n'.join(map(drawing.text, label)) for label in labels]
    axes.set_yticks(places, texts, linespacing=1.6)
    axes.set_ylim(sum(heights), 0)
    axes.tick_params(axis='y', length=0)
    _few_ticks(axes)
    axes.set_xlabel('accuracy, %')
    drawn = svg.convert(
      figure, f'runs-{id_of(name)}', title=title, description=findings
    )
  legend = [
    Line('runs of one seed', svg.variable(drawing.RULE), 'none'),
    Line(f'diamond below the points: mean{_with_interval(study)}', '', ''),
  ]
  return Figure(title, findings, drawn, legend, _runs_table(title, found))


def _levels(study: Study, name: str) -> dict[str, Level]:
  of_set = study.analysis.sets.get(name)
  if of_set is None or ACCURACY not in of_set.metrics:
    return {}
  found = of_set.metrics[ACCURACY].levels
  return {name: one for name, one in found.items() if one.by_seed}


def _draw_level(axes: Axes, place: float, one: Level, index: int) -> None:
  """Draws the runs of a config in a row, and their mean below them."""
  values = [100 * value for value in one.by_seed.values()]
  axes.plot(
    values,
    [place] * len(values),
    linestyle='none',
    marker=_MARKERS[index % len(_MARKERS)],
    markersize=5,
    color=drawing.line_style(index)['color'],
  )
  if one.mean is None:
    return
  below = place + 13
  if one.interval is not None:
    limits = [100 * limit for limit in one.interval]
    axes.plot(limits, [below] * 2, '|-', color=drawing.INK, linewidth=1.4)
  axes.plot(100 * one.mean, below, 'D', color=drawing.INK, markersize=4.5)


def _with_interval(study: Study) -> str:
  confidence = study.analysis.confidence
  if confidence is None:
    return ''
  return f', with its {100 * confidence:g} % interval'


def _runs_table(title: str, found: Mapping[str, Level]) -> Table:
  rows = [
    (config, str(seed), words.percent(value))
    for config, one in found.items()
    for seed, value in one.by_seed.items()
  ]
  return Table(title, ('config', 'seed', 'accuracy, %'), rows)


def differences(study: Study, name: str, metric: str) -> Figure | None:
  """Draws the differences of all pairs of configs, with their intervals.

  Args:
    study: the study.
    name: of the set.
    metric: name of the rate.
  """
  of_set = study.analysis.sets[name]
  found = [
    one
    for one in of_set.metrics[metric].comparisons
    if one.difference is not None
  ]
  if not found:
    return None
  title = f'Differences in {study_words.metric(metric)} on {name}'
  findings = study_words.differences(found, study.analysis)
  rows = [_Row.of(one) for one in found]
  bottoms = np.cumsum([row.height for row in rows])
  with svg.new(int(bottoms[-1]) + _AXIS) as figure:
    axes = drawing.style(figure.subplots())
    axes.grid(visible=False, axis='y')
    axes.axvline(0, color=drawing.INK, linewidth=1)
    for row, bottom in zip(rows, bottoms, strict=True):
      _draw_difference(axes, row, bottom)
    axes.set_ylim(bottoms[-1] + 6, 0)
    axes.set_yticks([])
    axes.spines['left'].set_visible(False)
    _few_ticks(axes)
    axes.margins(x=0.06)
    axes.set_xlabel('difference, percentage points')
    drawn = svg.convert(
      figure,
      f'differences-{id_of(name)}-{id_of(metric)}',
      title=title,
      description=findings,
    )
  return Figure(
    title,
    findings,
    drawn,
    _differences_legend(study.analysis, found),
    _differences_table(title, found),
    is_tall=bottoms[-1] > svg.HEIGHT,
  )


class _Row(NamedTuple):
  """A comparison with its label above it."""

  comparison: Comparison
  label: list[str]
  height: float

  @classmethod
  def of(cls, comparison: Comparison) -> '_Row':
    first, second = comparison.first, comparison.second
    label = _wrapped(f'{second} {study_words.MINUS} {first}', _INSIDE)
    if len(label) > 1:
      label = _wrapped(f'{second} {study_words.MINUS}', _INSIDE)
      label += _wrapped(first, _INSIDE)
    # Text, the interval, and the marks of the seeds.
    return cls(comparison, label, _LINE * len(label) + 42)


def _draw_difference(axes: Axes, row: _Row, bottom: float) -> None:
  """Draws a row: its label, the interval, what is too small, and each seed."""
  one, place = row.comparison, bottom - 20
  for k, text in enumerate(row.label):
    # One by one: Matplotlib's lines lie closer where no letter has a tail.
    axes.text(
      0,
      bottom - row.height + 12 + _LINE * k,
      drawing.text(text),
      transform=axes.get_yaxis_transform(),
      bbox={'facecolor': svg.PAPER, 'edgecolor': 'none', 'pad': 1},
      in_layout=False,
    )
  if one.detectable is not None:
    size = 100 * one.detectable
    box = patches.Rectangle(
      (-size, place - 7), 2 * size, 14, facecolor=drawing.RULE, alpha=0.25
    )
    axes.add_patch(box)
    for x in (-size, size):
      axes.plot([x, x], [place - 7, place + 7], ':', color=drawing.RULE)
  colour = drawing.PALETTE[0]
  if one.interval is not None:
    limits = [100 * limit for limit in one.interval]
    axes.plot(limits, [place] * 2, '|-', color=colour, linewidth=1.8)
  axes.plot(100 * one.difference, place, 's', color=colour, markersize=6)
  seeds = [100 * value for value in one.by_seed.values()]
  axes.plot(
    seeds,
    [place + 13] * len(seeds),
    linestyle='none',
    marker='|',
    markersize=7,
    color=drawing.INK,
  )


def _differences_legend(
  analysis: Analysis, found: Sequence[Comparison]
) -> list[Line]:
  mean = 'mean difference'
  if analysis.confidence is not None:
    mean += f' and {100 * analysis.confidence:g} % interval'
  entries = [
    Line(mean, svg.variable(drawing.PALETTE[0]), 'none'),
    Line('zero', svg.variable(drawing.INK), 'none'),
    Line('small marks: each seed', '', ''),
  ]
  if any(one.detectable is not None for one in found):
    text = 'grey, between dots: smaller than the study could have seen'
    entries.append(Line(text, '', ''))
  return entries


def _differences_table(title: str, found: Sequence[Comparison]) -> Table:
  rows = [
    (
      f'{one.second} {study_words.MINUS} {one.first}',
      study_words.points(one.difference)
      + study_words.points_interval(one.interval),
      study_words.p_value(one.p_adjusted),
      study_words.size(one.detectable),
      '; '.join(
        f'{seed}: {study_words.points(value)}'
        for seed, value in one.by_seed.items()
      )
      or words.NONE,
    )
    for one in found
  ]
  headings = (
    'second − first', 'points [interval]', 'p after correction',
    'could have seen', 'by seed',
  )  # fmt: skip
  return Table(title, headings, rows)


# Training.


class _Curve(NamedTuple):
  """Values of the runs of a config over the steps."""

  steps: list[int]
  values: np.ndarray  # [runs, steps]
  num_behind: int  # Runs that have not come as far.

  def rows(self) -> Iterator[tuple[int, float, float, float]]:
    """Yields step, mean, lowest and highest value."""
    parts = (self.values.mean(0), self.values.min(0), self.values.max(0))
    yield from zip(self.steps, *(part.tolist() for part in parts), strict=True)


def training(study: Study, sets: Sequence[str]) -> list[Figure]:
  """Draws loss and accuracy over the steps, mean and range over the seeds.

  Args:
    study: the study.
    sets: names of the sets whose accuracy is drawn.
  """
  of_loss = {
    name: _curve([_points(r.trained, 'loss', 1) for r in of_config])
    for name, of_config in _by_config(study).items()
  }
  figures = [_curves(study, 'loss', 'Loss over training', ' nats', of_loss)]
  for name in sets:
    of_set = {
      config: _curve(
        [
          _points(
            [*drawing.verified_in(r.rows).get(name, {}).values()],
            ACCURACY,
            100,
          )
          for r in of_config
        ]
      )
      for config, of_config in _by_config(study).items()
    }
    title = f'Accuracy on {name} over training'
    figures.append(_curves(study, f'accuracy-{name}', title, ' %', of_set))
  return [figure for figure in figures if figure is not None]


def _by_config(study: Study) -> dict[str, list[StudyRun]]:
  return {
    name: [run for run in study.runs if run.config == name]
    for name in study.variants
  }


def _points(
  rows: Sequence[Mapping[str, float]], metric: str, factor: float
) -> dict[int, float]:
  return {
    row['step']: factor * row[metric]
    for row in rows
    if isinstance(row.get(metric), int | float)
  }


def _curve(of_runs: Sequence[Mapping[int, float]]) -> _Curve | None:
  """Puts the runs of a config together that have come farthest."""
  begun = [points for points in of_runs if points]
  if not begun:
    return None
  last = max(map(max, begun))
  farthest = [points for points in begun if max(points) == last]
  steps = sorted(set.intersection(*map(set, farthest)))
  values = np.array([[points[s] for s in steps] for points in farthest])
  return _Curve(steps, values, len(begun) - len(farthest))


def _curves(
  study: Study,
  name: str,
  title: str,
  unit: str,
  of_configs: Mapping[str, _Curve | None],
) -> Figure | None:
  """Draws a curve with a band for each config."""
  found = {name: one for name, one in of_configs.items() if one is not None}
  if not found:
    return None
  indices = {config: k for k, config in enumerate(study.variants)}
  findings = _curves_findings(study, found, unit)
  with svg.new() as figure:
    axes = drawing.style(figure.subplots())
    drawing.style_steps(axes, max(one.steps[-1] for one in found.values()) or 1)
    for config, one in found.items():
      _draw_curve(axes, one, indices[config])
    axes.set_ylabel('loss, nats' if name == 'loss' else 'accuracy, %')
    drawn = svg.convert(
      figure, f'study-{id_of(name)}', title=title, description=findings
    )
  legend = [line(config, indices[config]) for config in found]
  legend.append(Line('bands: lowest to highest seed', '', ''))
  rows = [
    (f'{step:,}', config, *(words.number(x) for x in (mean, low, high)))
    for config, one in found.items()
    for step, mean, low, high in thinned([*one.rows()])
  ]
  headings = ('step', 'config', f'mean,{unit}', 'lowest', 'highest')
  return Figure(title, findings, drawn, legend, Table(title, headings, rows))


def _draw_curve(axes: Axes, one: _Curve, index: int) -> None:
  steps, mean, low, high = zip(*one.rows(), strict=True)
  style = drawing.line_style(index)
  axes.plot(steps, mean, marker='.' if len(steps) < 30 else None, **style)
  axes.fill_between(
    steps, low, high, alpha=0.15, color=style['color'], linewidth=0
  )


def _curves_findings(
  study: Study, found: Mapping[str, _Curve], unit: str
) -> str:
  sentences = []
  for config, one in found.items():
    rows = [row for row in one.rows() if math.isfinite(row[1])]
    if not rows:
      sentences.append(f'{config} has no finite mean.')
      continue
    step, mean, low, high = rows[-1]
    text = f'{config}: {mean:.4g}{unit} at step {step:,}'
    if len(one.values) > 1:
      text += f' over {len(one.values)} runs, {low:.4g} to {high:.4g}'
    sentences.append(f'{text}.')
    if one.num_behind:
      many = 'run has' if one.num_behind == 1 else 'runs have'
      text = f'{one.num_behind} {many} not come as far and not in the mean.'
      sentences.append(text)
  fields = [name for name in study.differing if name.startswith('loss.')]
  if unit == ' nats' and fields:
    sentences.append(
      f'The configs differ in {", ".join(fields)}: values of their losses are '
      'not comparable.'
    )
  return ' '.join(sentences)


# Text and axes.


def _few_ticks(axes: Axes) -> None:
  axes.locator_params(axis='x', nbins=6)


def _wrapped(text: str, width: float) -> list[str]:
  """Breaks a text into lines, after ``_``, ``,`` or a blank where it can."""
  lines, rest = [], text
  while _width(rest) > width:
    end = 1
    while _width(rest[: end + 1]) <= width:
      end += 1
    nice = max(rest.rfind(c, 0, end) for c in '_, ') + 1
    # A break far from the end would make many short lines.
    end = nice if nice > end / 3 else end
    lines.append(rest[:end].rstrip())
    rest = rest[end:].lstrip()
  return [*lines, rest]


def _width(text: str) -> float:
  """Returns the width of a text in a drawing."""
  return sum(map(_advance, text))


@functools.cache
def _advance(letter: str) -> float:
  font = FontProperties(family='DejaVu Sans', size=_SIZE)
  width, _, _ = textpath.text_to_path.get_text_width_height_descent(
    letter, font, ismath=False
  )
  return width
