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

import numpy as np

from elasticface_jax import atomic, missing
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.intervals import binomial_interval
from elasticface_jax.evaluation.rates import OperatingPoint, tar_at_far
from elasticface_jax.evaluation.verification import Verification

with missing.needs(__name__):
  from cycler import cycler
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.gridspec import SubplotSpec
  from matplotlib.ticker import MaxNLocator, StrMethodFormatter

# The palette of Okabe and Ito, which people of any colour vision can
# distinguish; without its yellow, which is faint on white.
_COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#56B4E9',
  '#E69F00',
  '#000000',
)
_LINES = cycler(linestyle=('-', '--', '-.', ':')) * cycler(color=_COLOURS)
_GENUINE, _IMPOSTOR = _COLOURS[0], _COLOURS[1]
# Widths of a bin of cosines.
_WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_FEW = 30  # Points that are marked one by one.
# The small panels of a training: label, metrics, factor, logarithmic or not.
_PANELS = (
  ('learning rate', ('learning_rate',), 1, True),
  ('accuracy in training, %', ('accuracy',), 100, False),
  ('angle to the own class, °', ('target_angle',), 180 / math.pi, False),
  ('norm of embeddings', ('embedding_norm',), 1, False),
  (
    'norm of gradients',
    ('backbone_gradient_norm', 'head_gradient_norm'),
    1,
    True,
  ),
)


def plot_roc(
  results: Mapping[str, Verification],
  path: str | os.PathLike[str],
  *,
  title: str,
) -> None:
  """Draws TAR over FAR, one curve for each set, FAR on a logarithmic axis.

  A curve begins at 1 / number of impostor pairs, the lowest FAR that can be
  measured. Its band is the exact 95 % interval of TAR at each FAR, for
  independent pairs. Circles are the operating points that can be measured.

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
  for name, result in results.items():
    if result.tar_at_far is None:
      raise InputError(
        f'{name} has no ROC: its {result.num_pairs} pairs are all of one kind;'
        ' leave it out'
      )
    lowest = min(lowest, _draw_roc(axes, name, result))
  chance = np.geomspace(lowest, 1, 200)
  axes.plot(chance, 100 * chance, color='grey', ls=':', label='chance')
  axes.set_xscale('log')
  axes.set_xlim(lowest, 1)
  axes.set_ylim(0, 101)
  axes.set_xlabel('false accept rate (FAR)')
  axes.set_ylabel('true accept rate (TAR), %')
  axes.set_title(_text(f'{title}: ROC of {_listed(results)}'))
  _legend_below(
    figure,
    axes,
    columns=1 if len(results) < 4 else 2,
    title='bands: 95 % intervals; circles: FAR 1e-3 and 1e-2, if measurable',
  )
  _save(figure, path)


def plot_scores(
  name: str, result: Verification, path: str | os.PathLike[str], *, title: str
) -> None:
  """Draws the distribution of the scores of genuine and of impostor pairs.

  Lines mark the threshold of the accuracy and that of FAR 1e-3. Bins are as
  wide as the number of pairs allows.

  Args:
    name: name of the set.
    result: its result.
    path: file to write.
    title: name of the network.

  Raises:
    InputError: if the file cannot be written.
  """
  figure, axes = _figure()
  kinds = (
    ('genuine', _GENUINE, result.scores[result.same]),
    ('impostor', _IMPOSTOR, result.scores[~result.same]),
  )
  width = _bin_width([scores for _, _, scores in kinds if len(scores)])
  edges = np.linspace(-1, 1, round(2 / width) + 1)
  for kind, colour, scores in kinds:
    if len(scores):
      counts, _ = np.histogram(scores, edges)
      share, label = 100 * counts / len(scores), f'{len(scores):,} {kind} pairs'
      axes.stairs(share, edges, fill=True, alpha=0.35, color=colour)
      axes.stairs(share, edges, color=colour, label=label)
  axes.axvline(
    result.threshold,
    color='black',
    label=f'{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} % '
    f'accuracy at cosine {result.threshold:.3f}',
  )
  if result.tar_at_far:
    _mark_far(axes, result.tar_at_far[1e-3])
  axes.set_xlabel('cosine of the two embeddings of a pair')
  axes.set_ylabel(f'pairs of a kind in a bin of {width:g}, %')
  # Cosines of an untrained network are all near 1.
  shown = np.append(result.scores, result.threshold)
  axes.set_xlim(
    math.floor(10 * shown.min()) / 10, math.ceil(10 * shown.max()) / 10
  )
  axes.set_ylim(bottom=0)
  axes.set_title(_text(f'{title}: {name}'))
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
  # The newest record of a step: a finished run can be verified again.
  verified: dict[str, dict[int, Mapping]] = {}
  for row in rows:
    if 'pairs' in row:
      verified.setdefault(row['pairs'], {})[row['step']] = row
  names = {name for row in trained for name in row}
  small = [panel for panel in _PANELS if names & {*panel[1]}]
  margins = sorted(n.removesuffix('_mean') for n in names if '_mean' in n)

  num_small = len(small) + bool(margins)
  figure, places = _sheet(2 if verified else 1, num_small)
  _draw_metrics(_panel(figure, next(places), 'loss, nats'), trained, ('loss',))
  if verified:
    axes = _panel(figure, next(places), 'verification accuracy, %')
    _draw_accuracies(axes, verified)
  for label, metrics, factor, is_log in small:
    axes = _panel(figure, next(places), label)
    _draw_metrics(axes, trained, metrics, factor)
    if is_log:
      axes.set_yscale('log')
  if margins:
    axes = _panel(figure, next(places), 'margin, mean ± deviation')
    _draw_margins(axes, trained, margins)
  # The same range of steps in all panels.
  last = max((row['step'] for row in rows), default=1)
  for axes in figure.axes:
    axes.set_xlim(-0.03 * last, 1.03 * last)
  if not trained:
    figure.axes[0].set_title('no step is recorded')
  on_sets = f', verified on {_listed(verified)}' if verified else ''
  figure.suptitle(_text(title + on_sets))
  _save(figure, path)


def _draw_roc(axes: Axes, name: str, result: Verification) -> float:
  """Draws the curve of a set; returns the lowest FAR that it can measure."""
  num_genuine = int(np.count_nonzero(result.same))
  num_impostors = len(result.same) - num_genuine
  # On a grid, since a curve may have millions of points.
  far = np.geomspace(1 / num_impostors, 1, 1000)
  tar = tar_at_far(result.scores, result.same, far)
  label = f'{name}, {num_impostors:,} impostors: from FAR {_far(far[0])}'
  (line,) = axes.plot(
    far, 100 * tar, drawstyle='steps-post', label=_text(label)
  )
  accepted, place = np.unique(
    np.rint(tar * num_genuine).astype(int), return_inverse=True
  )
  band = np.array([binomial_interval(k, num_genuine) for k in accepted])[place]
  axes.fill_between(
    far, *100 * band.T, step='post', alpha=0.15, color=line.get_color(), lw=0
  )
  points = [p for p in result.tar_at_far.values() if p.is_measurable]
  axes.plot(
    [point.far_target for point in points],
    [100 * point.tar for point in points],
    'o',
    markersize=5,
    color=line.get_color(),
  )
  return float(far[0])


def _mark_far(axes: Axes, point: OperatingPoint) -> None:
  """Marks the threshold of a FAR, and how many impostors are above it."""
  accepted = round(point.far * point.num_impostors) or 'none'
  label = f'{accepted} of {point.num_impostors:,} impostors'
  note = f'FAR {_far(point.far_target)}'
  if not point.is_measurable:
    note = f'too few for {note}'
  if math.isinf(point.threshold):
    # The best score is an impostor's. No line, but the legend says so.
    axes.plot([], [], ' ', label=f'{label} ({note}): no genuine pair either')
  else:
    label += f' at cosine {point.threshold:.3f} ({note})'
    axes.axvline(point.threshold, color='black', ls=':', label=label)


def _far(rate: float) -> str:
  return (
    f'{rate:.2g}'
    if rate > 1e-2
    else f'{rate:.1e}'.replace('.0e', 'e').replace('e-0', 'e-')
  )


def _bin_width(kinds: Sequence[np.ndarray]) -> float:
  """Chooses the width of a bin by Scott's rule, from the smaller kind."""
  width = min(3.49 * np.std(x) * len(x) ** (-1 / 3) for x in kinds)
  return min(_WIDTHS, key=lambda one: abs(math.log(one / max(width, 1e-9))))


def _draw_metrics(
  axes: Axes,
  rows: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  factor: float = 1,
) -> None:
  """Draws metrics over the steps, with a legend if there are several."""
  for name in names:
    points = [(r['step'], factor * r[name]) for r in rows if name in r]
    if points:
      label = name.split('_')[0] if len(names) > 1 else None
      _curve(axes, *zip(*points, strict=True), label=label)
  if len(names) > 1:
    axes.legend(fontsize='small')


def _draw_margins(
  axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
  """Draws the mean of each margin over the steps, and its spread."""
  for name in names:
    steps, mean, deviation = zip(
      *(
        (r['step'], r[f'{name}_mean'], r[f'{name}_std'])
        for r in rows
        if f'{name}_mean' in r
      ),
      strict=True,
    )
    _curve(axes, steps, mean, deviation, label=name if len(names) > 1 else None)
  if len(names) > 1:
    axes.legend(fontsize='small')


def _draw_accuracies(
  axes: Axes, verified: Mapping[str, Mapping[int, Mapping]]
) -> None:
  """Draws the accuracy of each set over the steps, ± that of its folds."""
  for name, rows in verified.items():
    steps, accuracy, deviation = zip(
      *((s, r['accuracy'], r['accuracy_std']) for s, r in rows.items()),
      strict=True,
    )
    accuracy, deviation = 100 * np.array(accuracy), 100 * np.array(deviation)
    _curve(axes, steps, accuracy, deviation, label=_text(name))
  axes.legend(
    title='± deviation of folds', title_fontsize='small', fontsize='small'
  )


def _curve(
  axes: Axes,
  steps: Sequence[int],
  values: Sequence[float],
  deviation: Sequence[float] | None = None,
  *,
  label: str | None,
) -> None:
  """Draws a curve; the deviation as a band, or bars where points are few."""
  few = len(steps) <= _FEW
  (line,) = axes.plot(
    steps,
    values,
    marker='.' if few else None,
    linewidth=1.2,
    label=label,
  )
  if deviation is None:
    return
  values, deviation = np.asarray(values), np.asarray(deviation)
  colour = line.get_color()
  if few:
    axes.vlines(
      steps, values - deviation, values + deviation, color=colour, alpha=0.5
    )
  else:
    axes.fill_between(
      steps,
      values - deviation,
      values + deviation,
      alpha=0.2,
      color=colour,
      lw=0,
    )


def _figure() -> tuple[Figure, Axes]:
  figure = Figure((6.4, 4.8), 150, layout='constrained')
  return figure, _style(figure.subplots())


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


def _panel(figure: Figure, place: SubplotSpec, label: str) -> Axes:
  axes = _style(figure.add_subplot(place))
  axes.xaxis.set_major_locator(
    MaxNLocator(5, integer=True, steps=(1, 2, 5, 10))
  )
  axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axes.set_xlabel('step')
  axes.set_ylabel(label)
  return axes


def _style(axes: Axes) -> Axes:
  axes.set_prop_cycle(_LINES)
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  return axes


def _listed(names: Iterable[str]) -> str:
  """Lists names; a title has room for a few."""
  names = list(names)
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def _text(name: str) -> str:
  r"""Returns a name that Matplotlib shows as it is.

  It takes ``$`` for mathematics, and leaves ``_name`` out of a legend.
  """
  name = name.replace('$', r'\$')
  return f'\u200a{name}' if name.startswith('_') else name


def _save(figure: Figure, path: str | os.PathLike) -> None:
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
