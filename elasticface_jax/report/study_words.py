# SPDX-License-Identifier: Apache-2.0
"""Sentences about a study: what it tells apart, with the numbers for it."""

from collections.abc import Mapping, Sequence

from elasticface_jax.evaluation.benchmark_tables import rate
from elasticface_jax.report import words
from elasticface_jax.report.study_analysis import (
  EER,
  TAR,
  Analysis,
  Comparison,
  Level,
)

MINUS = '\u2212'
NOT_MEASURABLE = words.NOT_MEASURABLE


def metric(name: str) -> str:
  """Returns the name of a rate for people.

  Examples:
    >>> metric('accuracy'), metric('eer'), metric('tar@1e-2')
    ('accuracy', 'EER', 'TAR at FAR 1e-2')
  """
  if name == EER:
    return 'EER'
  if name.startswith(TAR):
    return f'TAR at FAR {name.removeprefix(TAR)}'
  return name


def p_value(value: float | None) -> str:
  """Returns a p-value with two digits.

  Examples:
    >>> p_value(0.4), p_value(0.0312), p_value(0.997), p_value(2e-5)
    ('0.40', '0.031', '1.0', '2e-5')
    >>> p_value(None)
    'none'
  """
  if value is None:
    return 'none'
  if 0 < value < 1e-4:
    return rate(value)
  return f'{value:#.2g}'


def points(share: float | None) -> str:
  """Returns a difference in percentage points, with its sign.

  Examples:
    >>> points(0.0042), points(-0.01), points(0.0), points(None)
    ('+0.42', '−1.00', '0.00', 'not measurable')
  """
  if share is None:
    return NOT_MEASURABLE
  text = f'{100 * share:+.2f}'.replace('-', MINUS)
  return text[1:] if text[1:] == '0.00' else text


def size(share: float | None) -> str:
  """Returns a size in percentage points, without a sign."""
  return NOT_MEASURABLE if share is None else f'{100 * share:.2f}'


def points_interval(interval: tuple[float, float] | None) -> str:
  """Returns an interval in percentage points, after a space.

  Examples:
    >>> points_interval((-0.003, 0.011)), points_interval(None)
    (' [−0.30, 1.10]', '')
  """
  if interval is None:
    return ''
  low, high = (f'{100 * x:z.2f}'.replace('-', MINUS) for x in interval)
  return f' [{low}, {high}]'


def seeds(numbers: Sequence[int]) -> str:
  """Returns seeds, those that follow each other as a range.

  Examples:
    >>> seeds([0, 1, 2, 5])
    '0 to 2, 5'
  """
  groups: list[list[int]] = []
  for seed in sorted(numbers):
    if groups and seed == groups[-1][-1] + 1:
      groups[-1].append(seed)
    else:
      groups.append([seed])
  return ', '.join(
    f'{group[0]} to {group[-1]}'
    if len(group) > 2
    else ', '.join(map(str, group))
    for group in groups
  )


def level(found: Level | None) -> str:
  """Returns mean ± deviation of a rate in per cent, with its interval.

  Examples:
    >>> level(Level(0.83, 0.004, (0.82, 0.84), {}))
    '83.00 ± 0.40 [82.00, 84.00]'
    >>> level(Level(0.83, None, None, {})), level(None)
    ('83.00', 'not measurable')
  """
  if found is None or found.mean is None:
    return NOT_MEASURABLE
  text = words.percent(found.mean)
  if found.std is not None:
    text += f' ± {words.percent(found.std)}'
  return text + words.limits(found.interval)


def comparison(found: Comparison, analysis: Analysis) -> str:
  """Says in a sentence what a comparison tells, with its numbers.

  Args:
    found: of one rate.
    analysis: that it is from.
  """
  first, second = found.first, found.second
  if found.difference is None:
    return f'{second} and {first} cannot be compared: {NOT_MEASURABLE}.'
  amount = points(found.difference).lstrip(f'+{MINUS}')
  side = 'above' if found.difference > 0 else 'below'
  text = f'{second} is {amount} points {side} {first}'
  if found.difference == 0:
    text = f'{second} and {first} are 0.00 points apart'
  text += points_interval(found.interval)
  if found.p is None:
    return f'{text}: there is no test of it, so it tells nothing.'
  text += f', p {p_value(found.p)}'
  adjusted, number = found.p_adjusted, analysis.num_comparisons
  if adjusted is not None and number is not None and number > 1:
    text += f', after correction for {number} comparisons {p_value(adjusted)}'
  return f'{text}: {_verdict(found, analysis)}.'


def _verdict(found: Comparison, analysis: Analysis) -> str:
  """Says what the test tells of these pairs, and the interval of others."""
  if analysis.level is None:
    return 'no level says what that means'
  leaves_zero = found.interval is not None and not _holds_zero(found.interval)
  if _decisive(found) <= analysis.level:
    text = f'the study tells them apart at level {analysis.level:g}'
    if leaves_zero:
      return f'{text}, on new pairs too'
    return f'{text} on these pairs, and not surely on others'
  text = 'the study does not tell them apart'
  if leaves_zero:
    text = f'the interval excludes 0, but {text}'
  if found.p <= analysis.level:
    text += ' after the correction'
  smallest = found.others.get('p_smallest', 0)
  if smallest > analysis.level:
    return f'{text}; with so few seeds no p is below {p_value(smallest)}'
  if found.detectable is None:
    return f'{text}; nothing says what it could have seen'
  text += f'; it could have seen {size(found.detectable)} points'
  if found.detectable_adjusted is not None and analysis.num_comparisons != 1:
    text += f', or {size(found.detectable_adjusted)} after the correction'
  return text


def _holds_zero(interval: tuple[float, float]) -> bool:
  return interval[0] <= 0 <= interval[1]


def _decisive(found: Comparison) -> float:
  return found.p if found.p_adjusted is None else found.p_adjusted


def levels(found: Mapping[str, Level]) -> str:
  """Says what the runs of each config reach.

  Args:
    found: by name of the config.
  """
  sentences = []
  for name, one in found.items():
    if one.mean is None or not one.by_seed:
      sentences.append(f'{name}: {NOT_MEASURABLE}.')
      continue
    values = one.by_seed.values()
    if len(values) == 1:
      sentences.append(f'{name}: {words.percent(one.mean)} %, one run.')
      continue
    deviation = '' if one.std is None else f' ± {words.percent(one.std)}'
    sentences.append(
      f'{name}: {words.percent(one.mean)}{deviation} % over {len(values)} '
      f'runs, from {words.percent(min(values))} to '
      f'{words.percent(max(values))} %.'
    )
  return ' '.join(sentences)


def differences(found: Sequence[Comparison], analysis: Analysis) -> str:
  """Says how many differences a study tells from zero, and between which.

  Args:
    found: of one rate, each with a difference.
    analysis: that they are from.
  """
  values = [one.difference for one in found]
  many = len(found)
  if many == 1:
    return comparison(found[0], analysis)
  text = (
    f'The {many} differences go from {points(min(values))} to '
    f'{points(max(values))} points.'
  )
  tested = [one for one in found if one.p is not None]
  if tested and analysis.level is not None:
    apart = sum(_decisive(one) <= analysis.level for one in tested)
    text += (
      f' The study tells {apart or "none"} of them from zero at level '
      f'{analysis.level:g} after correction.'
    )
  sizes = [
    one.detectable
    for one in found
    if one.detectable is not None
    and one.others.get('p_smallest', 0) <= (analysis.level or 1)
  ]
  if sizes:
    ends = ' to '.join(dict.fromkeys(map(size, (min(sizes), max(sizes)))))
    text += f' It could have seen {ends} points, before correction.'
  return text


def detectable(analysis: Analysis) -> str:
  """Says what "could have seen" means; empty without a power."""
  if analysis.power is None or analysis.level is None:
    return ''
  return (
    'Could have seen: with a true difference of this size, the interval '
    f'excludes 0 in {100 * analysis.power:g} % of such studies; after '
    'correction, one at the level divided by the number of comparisons. A '
    'smaller one may be there.'
  )
