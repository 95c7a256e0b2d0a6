# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation and of a training run, as files.

The suffix of ``path`` sets the format: ``.png``, ``.svg`` or ``.pdf``. Figures
are made without pyplot, so no display, backend or global state is involved.
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from elasticface_jax import atomic, missing
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import Verification, curves, drawing
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.evaluation.drawing import text

with missing.needs(__name__):
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.gridspec import SubplotSpec


def plot_roc(
  results: Mapping[str, Verification],
  path: str | os.PathLike[str],
  *,
  title: str,
) -> None:
  """Draws TAR over FAR, one curve for each set, FAR on a logarithmic axis.

  A curve begins at 1 / number of impostor pairs, the lowest FAR that can be
  measured. Its band is the exact 95 % interval of TAR at each FAR, for
  independent pairs. Circles are at FAR 0.1, 1e-2, 1e-3, ...

  Args:
    results: results by name of the set, each with pairs of both kinds.
    path: file to write.
    title: name of the network.

  Raises:
    InputError: if all pairs of a set are of one kind, or the file cannot be
      written.
  """
  figure, axes = _figure()
  lowest = 0.1
  for index, (name, result) in enumerate(results.items()):
    if result.same.all() or not result.same.any():
      raise InputError(
        f'{name} has no ROC: its {len(result.same)} pairs are all of one kind;'
        ' leave it out'
      )
    curve = curves.curve(result.scores, result.same)
    far = curve.lowest_far
    label = f'{name}, {curve.num_impostors:,} impostors: from FAR '
    label = text(label + rate(far))
    drawing.draw_roc(axes, curve, label=label, index=index)
    lowest = min(lowest, far)
  drawing.finish_roc(axes, lowest)
  axes.set_title(text(f'{title}: ROC of {_listed(results)}'))
  _legend_below(
    figure,
    axes,
    columns=1 if len(results) < 4 else 2,
    title='bands: 95 % intervals; circles: FAR 0.1, 1e-2, 1e-3, ...',
  )
  _save(figure, path)


def plot_scores(
  name: str, result: Verification, path: str | os.PathLike[str], *, title: str
) -> None:
  """Draws the distribution of the scores of genuine and of impostor pairs.

  Lines mark the threshold of the accuracy and that of the lowest FAR of the
  result that its pairs can measure. Bins are as wide as the number of pairs
  allows.

  Args:
    name: name of the set.
    result: its result.
    path: file to write.
    title: name of the network.

  Raises:
    InputError: if the file cannot be written.
  """
  figure, axes = _figure()
  drawing.draw_scores(axes, curves.histogram(result.scores, result.same))
  found = drawing.marks(result.as_dict())
  drawing.draw_marks(axes, found)
  axes.set_xlabel('cosine of the two embeddings of a pair (no unit)')
  # Cosines of an untrained network are all near 1.
  shown = [mark.position for mark in found if mark.position is not None]
  axes.set_xlim(
    math.floor(10 * min(result.scores.min(), *shown, math.inf)) / 10,
    math.ceil(10 * max(result.scores.max(), *shown, -math.inf)) / 10,
  )
  axes.set_title(text(f'{title}: {name}'))
  _legend_below(figure, axes, columns=2)
  _save(figure, path)


def plot_training(
  rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str
) -> None:
  """Draws the metrics of a run over its steps, each in a panel of its own.

  Args:
    rows: records of ``metrics.jsonl``: those with a ``loss`` are of training,
      those with ``pairs`` of a verification. Metrics that no record has are
      left out; NaN leaves a gap.
    path: file to write.
    title: name of the run.

  Raises:
    InputError: if the file cannot be written.
  """
  trained = [row for row in rows if 'loss' in row]
  verified = drawing.verified_in(rows)
  names = {name for row in trained for name in row}
  small = [panel for panel in drawing.PANELS if names & {*panel.metrics}]
  margins = drawing.margins_in(trained)
  last = max((row['step'] for row in rows), default=1)

  num_small = len(small) + bool(margins)
  figure, places = _sheet(2 if verified else 1, num_small)
  _metrics(_panel(figure, next(places), last), trained, drawing.LOSS)
  if verified:
    axes = _panel(figure, next(places), last)
    _accuracies(axes, verified)
  for panel in small:
    _metrics(_panel(figure, next(places), last), trained, panel)
  if margins:
    _margins(_panel(figure, next(places), last), trained, margins)
  if not trained:
    figure.axes[0].set_title('no step is recorded')
  on_sets = f', verified on {_listed(verified)}' if verified else ''
  figure.suptitle(text(title + on_sets))
  _save(figure, path)


def _metrics(
  axes: Axes, rows: Sequence[Mapping[str, Any]], panel: drawing.Panel
) -> None:
  """Draws the metrics of a panel, with a legend if there are several."""
  several = len(panel.metrics) > 1
  for index, name in enumerate(panel.metrics):
    label = name.split('_')[0] if several else None
    drawing.draw_metric(
      axes, rows, name, factor=panel.factor, label=label, index=index
    )
  axes.set_ylabel(panel.label)
  if panel.is_log:
    axes.set_yscale('log')
  if several:
    axes.legend(fontsize='small')


def _margins(
  axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
  """Draws margins, with a legend if there are several."""
  several = len(names) > 1
  for index, name in enumerate(names):
    label = name if several else None
    drawing.draw_margin(axes, rows, name, factor=1, label=label, index=index)
  drawing.finish_margin(axes)
  axes.set_ylabel('margin, mean ± deviation')
  if several:
    axes.legend(fontsize='small')


def _accuracies(
  axes: Axes, verified: Mapping[str, Mapping[int, Mapping]]
) -> None:
  """Draws the accuracies of the sets, with a legend."""
  for index, (name, rows) in enumerate(verified.items()):
    drawing.draw_accuracy(axes, rows, label=text(name), index=index)
  axes.set_ylabel('verification accuracy, %')
  axes.legend(
    title='± deviation of folds', title_fontsize='small', fontsize='small'
  )


def _figure() -> tuple[Figure, Axes]:
  figure = Figure((6.4, 4.8), 150, layout='constrained')
  return figure, drawing.style(figure.subplots())


def _sheet(
  num_large: int, num_small: int
) -> tuple[Figure, Iterator[SubplotSpec]]:
  """Makes a figure with large panels in a row and small ones, three a row."""
  rows = -(-num_small // 3)
  figure = Figure((10, 4 + 2.4 * rows), 120, layout='constrained')
  grid = figure.add_gridspec(1 + rows, 6, height_ratios=[1.6] + [1] * rows)
  width = 6 // num_large
  places = [grid[0, i * width : (i + 1) * width] for i in range(num_large)]
  places += [
    grid[1 + i // 3, 2 * (i % 3) : 2 * (i % 3) + 2] for i in range(num_small)
  ]
  return figure, iter(places)


def _panel(figure: Figure, place: SubplotSpec, last: int) -> Axes:
  """Adds axes of a training; all of them show the same range of steps."""
  axes = drawing.style(figure.add_subplot(place))
  drawing.style_steps(axes, last)
  return axes


def _listed(names: Iterable[str]) -> str:
  """Lists names; a title has room for a few."""
  names = list(names)
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
  with atomic.file(path) as part, warnings.catch_warnings():
    # A name in a script that the font does not have; the title shows boxes.
    warnings.filterwarnings('ignore', 'Glyph .* missing')
    figure.savefig(part)


def _legend_below(
  figure: Figure, axes: Axes, columns: int, title: str | None = None
) -> None:
  """Names the curves of ``axes`` below all axes, where none is hidden."""
  handles, _ = axes.get_legend_handles_labels()
  figure.legend(
    handles=handles,
    loc='outside lower center',
    ncols=columns,
    title=title,
    title_fontsize='small',
    fontsize='small',
  )
