# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation and of a training run, as files.

The suffix of ``path`` sets the format: ``.png``, ``.svg`` or ``.pdf``. Figures
are made without pyplot, so no display, backend or global state is involved.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.verification import Verification, tar_at_far

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


def plot_roc(
  results: Mapping[str, Verification], path: str | os.PathLike[str]
) -> None:
  """Draws TAR over FAR, one curve for each set, FAR on a logarithmic axis.

  A curve begins at 1 / number of impostor pairs, the lowest FAR that can be
  measured.

  Args:
    results: results by name of the set, each with pairs of both kinds.
    path: file to write.

  Raises:
    InputError: if all pairs of a set are of one kind.
  """
  figure, (axes,) = _figure(rows=1)
  lowest = 0.1
  for name, result in results.items():
    if result.tar_at_far is None:
      raise InputError(
        f'{name} has no ROC: its {result.num_pairs} pairs are all of one kind;'
        ' leave it out'
      )
    floor = 1 / np.count_nonzero(~result.same)
    # On a grid, since a curve may have millions of points.
    far = np.geomspace(floor, 1, 1000)
    tar = tar_at_far(result.scores, result.same, far)
    axes.plot(far, 100 * tar, drawstyle='steps-post', label=name)
    lowest = min(lowest, floor)
  axes.set_xscale('log')
  axes.set_xlim(lowest, 1)
  axes.set_xlabel('false accept rate (FAR)')
  axes.set_ylabel('true accept rate (TAR), %')
  _legend(figure, axes, columns=4)
  _save(figure, path)


def plot_scores(result: Verification, path: str | os.PathLike[str]) -> None:
  """Draws the distribution of the scores of genuine and of impostor pairs.

  Lines mark the threshold of the accuracy and that of FAR 1e-3.

  Args:
    result: the result of one set.
    path: file to write.
  """
  figure, (axes,) = _figure(rows=1)
  edges = np.linspace(-1, 1, 101)
  for name, colour, chosen in (
    ('genuine', _GENUINE, result.same),
    ('impostor', _IMPOSTOR, ~result.same),
  ):
    num_pairs = np.count_nonzero(chosen)
    if num_pairs:
      counts, _ = np.histogram(result.scores[chosen], edges)
      share, label = 100 * counts / num_pairs, f'{name}, {num_pairs:,} pairs'
      axes.stairs(share, edges, fill=True, alpha=0.35, color=colour)
      axes.stairs(share, edges, color=colour, label=label)
  accuracy = f'threshold {result.threshold:.3f}, {100 * result.accuracy:.2f} %'
  axes.axvline(result.threshold, color='black', label=f'{accuracy} accuracy')
  if result.tar_at_far:
    point = result.tar_at_far[1e-3]
    if np.isfinite(point.threshold):
      label = f'threshold {point.threshold:.3f}, FAR {point.far:.1e}'
      axes.axvline(point.threshold, color='black', ls=':', label=label)
  axes.set_xlabel('cosine of the pair')
  axes.set_ylabel('share of the kind, % per 0.02 of cosine')
  axes.set_xlim(-1, 1)
  axes.set_ylim(bottom=0)
  _legend(figure, axes, columns=2)
  _save(figure, path)


def plot_training(
  losses: tuple[Sequence[int], Sequence[float]],
  accuracies: Mapping[str, tuple[Sequence[int], Sequence[float]]],
  path: str | os.PathLike[str],
) -> None:
  """Draws the loss and the accuracy of each pair set over the steps.

  Args:
    losses: steps and the loss at each, in nats; NaN leaves a gap.
    accuracies: steps and the accuracy at each, in [0, 1], by the name of the
      pair set. Without any, the figure is the loss alone.
    path: file to write.
  """
  figure, panels = _figure(rows=2 if accuracies else 1)
  panels[0].plot(*losses, linewidth=1)
  panels[0].set_ylabel('loss, nats')
  for name, (steps, values) in accuracies.items():
    panels[1].plot(
      steps, 100 * np.asarray(values), label=name, marker='.', markersize=5
    )
  if accuracies:
    panels[1].set_ylabel('verification accuracy, %')
    _legend(figure, panels[1], columns=4)
  panels[-1].set_xlabel('step')
  panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
  _save(figure, path)


def _figure(rows: int) -> tuple[Figure, list[Axes]]:
  figure = Figure((6.4, 4.0 if rows == 1 else 6.0), 150, layout='constrained')
  panels = list(figure.subplots(rows, squeeze=False, sharex=True)[:, 0])
  for axes in panels:
    axes.set_prop_cycle(_LINES)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  return figure, panels


def _save(figure: Figure, path: str | os.PathLike) -> None:
  with atomic.file(path) as part:
    figure.savefig(part)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
  """Names the curves of ``axes`` above all axes, where none is hidden."""
  handles, _ = axes.get_legend_handles_labels()
  figure.legend(
    handles=handles,
    loc='outside upper center',
    ncols=min(columns, len(handles)),
  )
