# SPDX-License-Identifier: Apache-2.0
"""Drawing of curves, scores and metrics into axes, for files and reports.

Several curves in one figure differ in colour and in the pattern of the line, by
their number. No function adds a legend: a caller knows where there is room.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax import missing
from elasticface_jax.evaluation import rates
from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.evaluation.curves import Curve, Histogram

with missing.needs(__name__):
  from matplotlib.axes import Axes
  from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

INK, RULE = '#000000', '#808080'
# Those colours of Okabe and Ito's palette that stand out from white 3:1.
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', INK)
# On and off, in widths of the line; () is a solid one.
PATTERNS = ((), (5, 2), (5, 1.5, 1, 1.5), (1, 1.5))
WIDTH = 1.4
_FEW = 30  # Points that are marked one by one.
STEP = 'training step (no unit)'


class Panel(NamedTuple):
  """A metric of training, as a figure shows it.

  Attributes:
    label: of the axis, with the unit.
    metrics: names in ``metrics.jsonl``.
    factor: from the unit of the file to that of the axis.
    is_log: whether the axis is logarithmic.
  """

  label: str
  metrics: tuple[str, ...]
  factor: float
  is_log: bool


LOSS = Panel('loss, nats', ('loss',), 1, False)
PANELS = (
  Panel('learning rate (no unit)', ('learning_rate',), 1, True),
  Panel('accuracy in training, %', ('accuracy',), 100, False),
  Panel('angle to the own class, °', ('target_angle',), 180 / math.pi, False),
  Panel('norm of embeddings (no unit)', ('embedding_norm',), 1, False),
  Panel(
    'norm of gradients (no unit)',
    ('backbone_gradient_norm', 'head_gradient_norm'),
    1,
    True,
  ),
)


class Mark(NamedTuple):
  """A threshold to be marked among scores.

  Attributes:
    position: the score; None where no score is a threshold.
    label: words of a legend.
  """

  position: float | None
  label: str


def line_style(index: int) -> dict[str, Any]:
  """Returns colour, pattern and width of curve ``index``; 20 of them differ."""
  pattern = PATTERNS[index % len(PATTERNS)]
  return {
    'color': PALETTE[index % len(PALETTE)],
    'linestyle': (0, pattern) if pattern else '-',
    'linewidth': WIDTH,
  }


def style(axes: Axes) -> Axes:
  """Sets grid and frame of axes, and returns them."""
  axes.grid(color=RULE, alpha=0.3, linewidth=0.8)
  axes.spines[['top', 'right']].set_visible(False)
  # Whole numbers at the ticks, not a small rest and an offset to be added.
  axes.ticklabel_format(axis='y', useOffset=False)
  return axes


def style_steps(axes: Axes, last: int) -> None:
  """Sets the horizontal axis of a training of ``last`` steps."""
  axes.xaxis.set_major_locator(
    MaxNLocator(5, integer=True, steps=(1, 2, 5, 10))
  )
  axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axes.set_xlabel(STEP)
  axes.set_xlim(-0.03 * last, 1.03 * last)


def draw_roc(axes: Axes, curve: Curve, *, label: str, index: int) -> None:
  """Draws TAR in per cent over FAR, its band, and circles at FAR 0.1, 1e-2, ...

  Args:
    axes: to draw into.
    curve: the curve.
    label: of the line.
    index: number of the curve among those of the axes.
  """
  far = np.maximum(curve.far, curve.lowest_far)
  drawn = line_style(index)
  axes.plot(far, 100 * curve.tar, drawstyle='steps-post', label=label, **drawn)
  axes.fill_between(
    far,
    100 * curve.tar_low,
    100 * curve.tar_high,
    step='post',
    alpha=0.15,
    color=drawn['color'],
    linewidth=0,
  )
  rates = list(decades(curve))
  axes.plot(
    rates,
    [100 * curve.tar[curve.at(far)] for far in rates],
    'o',
    markersize=4,
    color=drawn['color'],
  )


def decades(curve: Curve) -> Iterator[float]:
  """Yields 0.1, 0.01, ... as far down as a FAR can be measured."""
  k = 1
  while float(f'1e-{k}') >= curve.lowest_far:
    yield float(f'1e-{k}')
    k += 1


def finish_roc(axes: Axes, lowest_far: float) -> None:
  """Draws the diagonal of chance, and sets the axes of `draw_roc`."""
  lowest = min(lowest_far, 0.1)
  chance = np.geomspace(lowest, 1, 100)
  axes.plot(chance, 100 * chance, color=RULE, linestyle=':', label='chance')
  _style_far(axes, lowest)
  axes.set_ylim(0, 101)
  axes.set_ylabel('true accept rate (TAR), %')


def draw_det(axes: Axes, curve: Curve, *, label: str, index: int) -> None:
  """Draws FNMR over FMR and its band; see `draw_roc` for the arguments.

  Where no genuine pair is rejected, there is a gap: zero has no place on a
  logarithmic axis.
  """
  far = np.maximum(curve.far, curve.lowest_far)
  drawn = line_style(index)
  missed = np.where(curve.tar < 1, 1 - curve.tar, np.nan)
  axes.plot(far, missed, drawstyle='steps-post', label=label, **drawn)
  axes.fill_between(
    far,
    np.maximum(1 - curve.tar_high, 0.5 / curve.num_genuine),
    1 - curve.tar_low,
    step='post',
    alpha=0.15,
    color=drawn['color'],
    linewidth=0,
  )


def finish_det(axes: Axes, lowest_far: float, lowest_fnmr: float) -> None:
  """Draws the diagonal FNMR = FMR, and sets the axes of `draw_det`."""
  lowest = min(lowest_far, 0.1)
  axes.plot([lowest, 1], [lowest, 1], color=RULE, linestyle=':')
  _style_far(axes, lowest, 'false match rate (FMR, no unit)')
  axes.set_yscale('log')
  axes.set_ylim(min(lowest_fnmr, 0.1), 1.05)
  axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: rate(x)))
  axes.yaxis.set_minor_formatter('')
  axes.set_ylabel('false non-match rate\n(FNMR, no unit)')


def draw_scores(axes: Axes, found: Histogram) -> None:
  """Draws the share of each kind of pair in bins of the score.

  Args:
    axes: to draw into.
    found: the counts.
  """
  kinds = (('genuine', found.genuine), ('impostor', found.impostor))
  for index, (kind, counts) in enumerate(kinds):
    if total := counts.sum():
      drawn = line_style(index)
      share = 100 * counts / total
      axes.stairs(
        share, found.edges, fill=True, alpha=0.3, color=drawn['color']
      )
      axes.stairs(share, found.edges, label=f'{total:,} {kind} pairs', **drawn)
  axes.set_ylabel(f'pairs of a kind in a bin of {found.width:g}, %')
  axes.set_ylim(bottom=0)


def draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
  """Marks thresholds by vertical lines of differing patterns."""
  for mark, pattern in zip(marks, ('-', ':', '--', '-.'), strict=False):
    if mark.position is None:
      # No line, but a legend says so.
      axes.plot([], [], ' ', label=mark.label)
    else:
      axes.axvline(mark.position, color=INK, ls=pattern, label=mark.label)


def marks(summary: Mapping[str, Any]) -> list[Mark]:
  """Returns the thresholds of a result that its scores are marked with.

  Args:
    summary: of the result's ``as_dict``; whatever it does not have is left out.

  Returns:
    The threshold of the accuracy, that of the lowest FAR that the pairs can
    measure, and a mark without a position if they cannot measure others.
  """
  found = []
  if {'accuracy', 'accuracy_std', 'threshold'} <= summary.keys():
    accuracy, deviation = summary['accuracy'], summary['accuracy_std']
    found.append(
      Mark(
        summary['threshold'],
        f'{100 * accuracy:.2f} ± {100 * deviation:.2f} % accuracy at cosine '
        f'{summary["threshold"]:.3f}',
      )
    )
  points = sorted(
    (summary.get('tar_at_far') or {}).values(), key=lambda p: p['far_target']
  )
  measured = [point for point in points if is_measurable(point)]
  if measured:
    found.append(_mark_of_far(measured[0]))
  if others := [point for point in points if not is_measurable(point)]:
    listed = ', '.join(rate(point['far_target']) for point in others[::-1])
    found.append(
      Mark(
        None,
        f'FAR {listed} cannot be measured with '
        f'{others[0]["num_impostors"]:,} impostors',
      )
    )
  return found


def is_measurable(point: Mapping[str, Any]) -> bool:
  """Returns True if an operating point has enough impostors for its FAR."""
  return rates.is_measurable(point['far_target'], point['num_impostors'])


def _mark_of_far(point: Mapping[str, Any]) -> Mark:
  """Says how many impostors score above the threshold of a FAR."""
  impostors, threshold = point['num_impostors'], point['threshold']
  note = f'FAR {rate(point["far_target"])}'
  if point['far'] is None:
    return Mark(None, f'no threshold for {note}')
  accepted = round(point['far'] * impostors) or 'none'
  label = f'{accepted} of {impostors:,} impostors'
  if threshold is None:  # The best score is an impostor's.
    return Mark(None, f'{label} ({note}): no genuine pair either')
  return Mark(threshold, f'{label} at cosine {threshold:.3f} ({note})')


def draw_metric(
  axes: Axes,
  rows: Sequence[Mapping[str, Any]],
  metric: str,
  *,
  factor: float,
  label: str | None,
  index: int,
) -> None:
  """Draws a metric over the steps; NaN and missing records leave gaps.

  Args:
    axes: to draw into.
    rows: records of training.
    metric: its name in them.
    factor: of the values.
    label: of the curve.
    index: number of the curve among those of the axes.
  """
  points = [(r['step'], factor * r[metric]) for r in rows if metric in r]
  if points:
    steps, values = zip(*points, strict=True)
    _curve(axes, steps, values, label=label, index=index)


def draw_margin(
  axes: Axes,
  rows: Sequence[Mapping[str, Any]],
  margin: str,
  *,
  factor: float,
  label: str | None,
  index: int,
) -> None:
  """Draws the mean of a margin over the steps, and its spread over samples.

  Args:
    axes: to draw into.
    rows: records of training.
    margin: its name; the records have ``<margin>_mean`` and ``<margin>_std``.
    factor: of the values.
    label: of the curve.
    index: number of the curve among those of the axes.
  """
  mean, deviation = f'{margin}_mean', f'{margin}_std'
  points = [
    (r['step'], factor * r[mean], factor * r[deviation])
    for r in rows
    if mean in r and deviation in r
  ]
  if points:
    steps, values, spread = zip(*points, strict=True)
    _curve(axes, steps, values, spread, label=label, index=index)


def finish_margin(axes: Axes) -> None:
  """Keeps the rounding errors of a constant margin from filling the axes.

  To be called after `draw_margin`: the axis spans a tenth of its value, or 0.05
  in its unit, at least.
  """
  low, high = axes.get_ylim()
  middle = (low + high) / 2
  half = max(high - low, 0.1 * abs(middle), 0.05) / 2
  axes.set_ylim(middle - half, middle + half)


def shape_of_spread(num_points: int) -> str:
  """Says how the deviation of a curve of so many points is drawn."""
  return 'bars' if num_points <= _FEW else 'bands'


def draw_accuracy(
  axes: Axes,
  rows: Mapping[int, Mapping[str, Any]],
  *,
  label: str | None,
  index: int,
) -> None:
  """Draws the accuracy of a set in per cent over the steps, ± that of folds.

  Args:
    axes: to draw into.
    rows: its records of verification, by step.
    label: of the curve.
    index: number of the curve among those of the axes.
  """
  points = [
    (step, 100 * row['accuracy'], 100 * row['accuracy_std'])
    for step, row in rows.items()
    if 'accuracy' in row and 'accuracy_std' in row
  ]
  if points:
    steps, values, spread = zip(*points, strict=True)
    _curve(axes, steps, values, spread, label=label, index=index)


def margins_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the names of the margins that records of training have."""
  names = {name for row in rows for name in row if name.endswith('_mean')}
  return sorted(name.removesuffix('_mean') for name in names)


def verified_in(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[int, Mapping[str, Any]]]:
  """Returns the newest record of each set and step: a run verifies again."""
  verified: dict[str, dict[int, Mapping]] = {}
  for row in rows:
    if 'pairs' in row:
      verified.setdefault(row['pairs'], {})[row['step']] = row
  return verified


def text(name: str) -> str:
  r"""Returns a name that Matplotlib shows as it is.

  It takes ``$`` for mathematics, and leaves ``_name`` out of a legend.
  """
  name = name.replace('$', r'\$')
  return f'\u200a{name}' if name.startswith('_') else name


def _style_far(
  axes: Axes, lowest: float, label: str = 'false accept rate (FAR, no unit)'
) -> None:
  axes.set_xscale('log')
  axes.set_xlim(lowest, 1)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate(x)))
  axes.xaxis.set_minor_formatter('')
  axes.set_xlabel(label)


def _curve(
  axes: Axes,
  steps: Sequence[int],
  values: Sequence[float],
  deviation: Sequence[float] | None = None,
  *,
  label: str | None,
  index: int,
) -> None:
  """Draws a curve; the deviation as a band, or bars where points are few."""
  few = len(steps) <= _FEW
  drawn = line_style(index)
  axes.plot(steps, values, marker='.' if few else None, label=label, **drawn)
  if deviation is None:
    return
  values, deviation = np.asarray(values), np.asarray(deviation)
  limits, colour = (values - deviation, values + deviation), drawn['color']
  if few:
    axes.vlines(steps, *limits, color=colour, alpha=0.5)
  else:
    axes.fill_between(steps, *limits, alpha=0.2, color=colour, linewidth=0)
