# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, and sentences that say what a figure shows.

Every figure has such sentences below it, so that nobody has to see it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.evaluation.curves import Curve
from elasticface_jax.evaluation.drawing import is_measurable
from elasticface_jax.report.read import Result, Run, differing_fields, is_number

NOT_MEASURABLE = 'not measurable'
NONE = 'not recorded'
# Losses whose margin is in units of the cosine, or a factor of the angle;
# that of the others is an angle.
_IN_COSINES = (
  'normface', 'cosface', 'elastic_cosface', 'elastic_cosface_plus',
)  # fmt: skip
_MARGINS = {
  'angle_margin': 'angle',
  'cosine_margin': 'cosine',
  'm1': 'factor',
  'm2': 'angle',
  'm3': 'cosine',
  't': 'cosine',  # The running mean of CurricularFace.
}
# Units of margins in sentences.
_UNITS = {
  'angle': '°',
  'cosine': ' of the cosine',
  'factor': ' as a factor',
  '': ' (no unit)',
}


def percent(value: Any, digits: int = 2) -> str:
  """Returns a rate in per cent, without the unit.

  Examples:
    >>> percent(0.12345), percent(None)
    ('12.35', 'not recorded')
  """
  return f'{100 * value:.{digits}f}' if is_number(value) else NONE


def number(value: Any) -> str:
  """Returns a number with up to five digits.

  Examples:
    >>> number(0.123456), number(1234567), number(float('nan'))
    ('0.12346', '1,234,567', 'not recorded')
  """
  if not is_number(value):
    return NONE
  return f'{value:,}' if isinstance(value, int) else f'{value:.5g}'


def cosine(value: Any) -> str:
  """Returns a cosine with three digits."""
  return f'{value:.3f}' if is_number(value) else NONE


def field(value: Any) -> str:
  """Returns a field of a config as JSON, a text without quotes.

  Examples:
    >>> field('arcface'), field(''), field([0.5, None])
    ('arcface', '""', '[0.5, null]')
  """
  return value if isinstance(value, str) and value else json.dumps(value)


def with_interval(value: Any, interval: Any, digits: int = 2) -> str:
  """Returns a rate in per cent, with its interval if there is one.

  Examples:
    >>> with_interval(0.5, (0.4, 0.61)), with_interval(0.5, None)
    ('50.00 [40.00, 61.00]', '50.00')
  """
  return percent(value, digits) + limits(interval, digits)


def limits(interval: Any, digits: int = 2) -> str:
  """Returns an interval in per cent, after a space; empty if there is none."""
  if not is_interval(interval):
    return ''
  low, high = (f'{100 * limit:.{digits}f}' for limit in interval)
  return f' [{low}, {high}]'


def is_interval(value: Any) -> bool:
  """Returns True for two finite numbers."""
  return (
    isinstance(value, Sequence)
    and not isinstance(value, str)
    and len(value) == 2
    and all(map(is_number, value))
  )


def tar(point: Mapping[str, Any]) -> str:
  """Returns TAR of an operating point with its interval, or says why not."""
  if not is_measurable(point):
    return NOT_MEASURABLE
  return with_interval(point['tar'], point.get('tar_interval'))


def threshold(point: Mapping[str, Any]) -> str:
  """Returns the threshold of an operating point, or says why there is none."""
  if not is_measurable(point):
    return NOT_MEASURABLE
  if point['threshold'] is None:
    return 'none: the best score is an impostor’s'
  return f'{point["threshold"]:.3f}'


def margin_unit(loss: Any, margin: str) -> str:
  """Returns what a margin is: ``'angle'``, ``'cosine'``, ``'factor'`` or ''.

  Args:
    loss: name of the loss.
    margin: name of the margin in ``metrics.jsonl``.

  Examples:
    >>> margin_unit('elastic_arcface', 'margin')
    'angle'
    >>> margin_unit('elastic_cosface', 'margin'), margin_unit('x2_softmax', 'k')
    ('cosine', '')
  """
  if margin in _MARGINS:
    return _MARGINS[margin]
  if margin != 'margin' or not isinstance(loss, str):
    return ''
  if loss in _IN_COSINES:
    return 'cosine'
  return 'factor' if loss == 'sphereface' else 'angle'


def roc(
  curves: Mapping[str, Curve], fingerprints: Mapping[str, Any] | None = None
) -> str:
  """Says what TAR each run has at the lowest FAR of `common_far`.

  Args:
    curves: by name of the run.
    fingerprints: of the networks, likewise; those of one are not compared.
  """
  far = common_far(curves.values())
  found = []
  for name, curve in curves.items():
    k = curve.at(far)
    found.append(
      f'{name} accepts {percent(curve.tar[k])} % of {curve.num_genuine:,} '
      f'genuine pairs (95 % interval {percent(curve.tar_low[k])} to '
      f'{percent(curve.tar_high[k])} %) at FAR {rate(far)}.'
    )
  first = next(iter(curves.values()))
  found.append(
    f'{first.num_impostors:,} impostor pairs measure no FAR below '
    f'{rate(first.lowest_far)}.'
  )
  networks: dict[Any, list[str]] = {}
  for name in curves:
    # Older results have no fingerprint: each is a network of its own.
    key = (fingerprints or {}).get(name) or ('run', name)
    networks.setdefault(key, []).append(name)
  found += [
    f'{" and ".join(names)} are one network: their fingerprints are equal.'
    for names in networks.values()
    if len(names) > 1
  ]
  if len(networks) > 1:
    others = {names[0]: curves[names[0]] for names in networks.values()}
    limits = [
      (c.tar_low[c.at(far)], c.tar_high[c.at(far)]) for c in others.values()
    ]
    found.append(_compared(list(others), limits, f'TAR at FAR {rate(far)}'))
  return ' '.join(found)


def other_losses(runs: Sequence[Run]) -> str:
  """Says that values of different losses cannot be compared; or nothing.

  The sentence begins with a space.
  """
  fields = [name for name in differing_fields(runs) if name.startswith('loss.')]
  if not fields:
    return ''
  return (
    f' The runs differ in {", ".join(fields)}: values of their losses are not '
    'comparable.'
  )


def common_far(curves: Sequence[Curve]) -> float:
  """Returns the lowest of 0.1, 0.01, ... where TAR has a lower limit.

  That takes about three impostor pairs that pass.
  """
  lowest = 3 * max(curve.lowest_far for curve in curves)
  k = 1
  while float(f'1e-{k + 1}') >= lowest:
    k += 1
  return float(f'1e-{k}') if lowest <= 0.1 else 1.0


def _compared(
  names: Sequence[str], limits: Sequence[tuple[float, float]], what: str
) -> str:
  """Says whether intervals separate the runs."""
  order = sorted(range(len(names)), key=lambda k: -limits[k][0])
  best = order[0]
  if all(limits[best][0] > limits[k][1] for k in order[1:]):
    return (
      f'The interval of {names[best]} lies above all others: these pairs tell '
      f'the runs apart by {what}.'
    )
  return (
    f'Intervals overlap: by them alone, {what} does not tell all runs apart.'
  )


def det(results: Mapping[str, Result]) -> str:
  """Says where both error rates are equal."""
  found = []
  for name, result in results.items():
    rates = result.summary.get('eer')
    if rates is None:
      curve = result.curve
      k = int(np.argmin(np.abs(curve.far - (1 - curve.tar))))
      rates = (curve.far[k] + 1 - curve.tar[k]) / 2
    found.append(f'{name}: both error rates are equal at {percent(rates)} %.')
  return ' '.join(found)


def scores(result: Result) -> str:
  """Says where genuine and impostor scores lie, and how far they overlap."""
  found, parts = result.histogram, []
  middles = (found.edges[:-1] + found.edges[1:]) / 2
  for kind, counts in (
    ('Genuine', found.genuine),
    ('Impostor', found.impostor),
  ):
    if total := counts.sum():
      mean = (counts * middles).sum() / total
      deviation = math.sqrt((counts * (middles - mean) ** 2).sum() / total)
      parts.append(
        f'{kind} pairs score {mean:.2f} ± {deviation:.2f} (mean and deviation).'
      )
    else:
      parts.append(f'There are no {kind.lower()} pairs.')
  if result.lowest and result.highest:
    parts.append(
      f'The lowest genuine score is {result.lowest[0][1]:.3f}, the highest '
      f'impostor score {result.highest[0][1]:.3f}.'
    )
  return ' '.join(parts)


def metric(
  runs: Mapping[str, Sequence[tuple[int, float]]], unit: str, digits: int = 3
) -> str:
  """Says where a metric begins and ends in each run, and its extremes.

  Args:
    runs: steps and values of each run, by name.
    unit: after a number, such as ``' nats'``.
    digits: of the numbers.
  """
  found = []
  for name, points in runs.items():
    finite = [(s, v) for s, v in points if math.isfinite(v)]
    if not finite:
      found.append(f'{name} has no finite value.')
      continue
    (first, begin), (last, end) = finite[0], finite[-1]
    low, high = (f(v for _, v in finite) for f in (min, max))
    more = _more_digits(low, high)
    show = lambda value, n=digits + more: f'{value:.{n}g}{unit}'
    found.append(
      f'{name}: {show(begin)} at step {first:,}, {show(end)} at step {last:,}'
      + (f'; between {show(low)} and {show(high)}.' if first < last else '.')
    )
  return ' '.join(found)


def _more_digits(low: float, high: float) -> int:
  """Returns how many more digits tell numbers apart that lie close together."""
  if not low < high:
    return 0
  size = math.floor(math.log10(max(abs(low), abs(high))))
  more = size - math.floor(math.log10(high - low)) - 1
  return min(max(more, 0), 4)


def margin(run: Run, names: Sequence[str]) -> str:
  """Says what margin was drawn last, and how the angle to the class moved."""
  found = []
  trained = run.trained
  loss = run.config.get('loss.name')
  for name in names:
    with_it = [row for row in trained if _is_measured(row, name)]
    if with_it:
      last = with_it[-1]
      drawn = margin_of(loss, name, last)
      found.append(f'{drawn} over the samples of step {last["step"]:,}.')
  angles = [
    (row['step'], math.degrees(row['target_angle']))
    for row in trained
    if is_number(row.get('target_angle'))
  ]
  if angles:
    (first, begin), (last, end) = angles[0], angles[-1]
    n = 1 + _more_digits(*sorted((begin, end)))
    found.append(
      f'The angle to the own class goes from {begin:.{n}f}° at step {first:,} '
      f'to {end:.{n}f}° at step {last:,}.'
    )
  return f'{run.name}: {" ".join(found)}' if found else ''


def margin_of(loss: Any, name: str, row: Mapping[str, Any]) -> str:
  """Returns mean, deviation and unit of a margin in a record.

  Examples:
    >>> margin_of('cosface', 'margin', {'margin_mean': 0.35, 'margin_std': 0.0})
    'margin 0.3500 ± 0.0000 of the cosine'
  """
  if not _is_measured(row, name):
    return f'{name} {NONE}'
  unit = margin_unit(loss, name)
  mean, deviation = (
    f'{math.degrees(value):.2f}' if unit == 'angle' else f'{value:.4f}'
    for value in (row[f'{name}_mean'], row[f'{name}_std'])
  )
  return f'{name} {mean} ± {deviation}{_UNITS[unit]}'


def _is_measured(row: Mapping[str, Any], name: str) -> bool:
  return all(is_number(row.get(f'{name}_{part}')) for part in ('mean', 'std'))
