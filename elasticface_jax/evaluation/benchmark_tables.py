# SPDX-License-Identifier: Apache-2.0
"""Text tables of the benchmarks of templates and galleries.

Their results have ``headings``, ``rows(name)`` and ``notes(name)``; results of
one kind share a table.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Result(Protocol):
  """Parts of a result that a table needs."""

  @property
  def headings(self) -> tuple[str, ...]:
    """Headings of the columns."""

  def rows(self, name: str) -> list[tuple[str, ...]]:
    """Returns the cells of each line."""

  def notes(self, name: str) -> list[str]:
    """Returns lines for whatever else a reader must know."""


def benchmark_table(results: Mapping[str, Result]) -> str:
  """Formats results as text tables, one for each kind of result.

  Args:
    results: results of `evaluate_ijb`, `evaluate_megaface` and
      `evaluate_tinyface` by name.

  Returns:
    Aligned lines without a final newline: tables with a line of headings, with
    an empty line between two, each followed by its notes.

  Examples:
    >>> import numpy as np
    >>> from elasticface_jax.evaluation import Identification, identify
    >>> one = identify(np.eye(2), [1, 2], np.eye(2), [1, 2])
    >>> table = benchmark_table({'toy': Identification((one,))})
    >>> print(table.splitlines()[1][:28])
    toy  gallery        2      2
  """
  kinds: dict[tuple[str, ...], list[tuple[str, Result]]] = {}
  for name, result in results.items():
    kinds.setdefault(result.headings, []).append((name, result))
  tables = []
  for headings, members in kinds.items():
    rows = [row for name, result in members for row in result.rows(name)]
    notes = [note for name, result in members for note in result.notes(name)]
    tables.append('\n'.join([*aligned([headings, *rows]), *notes]))
  return '\n\n'.join(tables)


def percent(
  rate: float, interval: tuple[float, float] | None = None, digits: int = 2
) -> str:
  """Formats a rate in percent, with its interval if there is one.

  Args:
    rate: in [0, 1].
    interval: lower and upper limit of the rate.
    digits: digits after the point.

  Returns:
    Digits without a percent sign.

  Examples:
    >>> percent(0.5), percent(0.5, (0.25, 1.0), 0), percent(-1e-17)
    ('50.00', '50 [25, 100]', '0.00')
  """
  text = f'{100 * rate:z.{digits}f}'  # No -0.00 of differences.
  if interval is None:
    return text
  low, high = (f'{100 * limit:z.{digits}f}' for limit in interval)
  return f'{text} [{low}, {high}]'


def rate(value: float, digits: int = 2) -> str:
  """Formats a rate such as a FAR, short; powers of ten below 0.1 as such.

  Args:
    value: the rate.
    digits: most of its digits.

  Examples:
    >>> rate(1e-3), rate(0.01), rate(0.1), rate(1 / 3000), rate(0)
    ('1e-3', '1e-2', '0.1', '3.3e-4', '0')
    >>> rate(0.01017, 3), rate(0.25)
    ('1.02e-2', '0.25')
  """
  # What rounds up to 0.1 is written as that.
  rounded = float(f'{value:.{digits}g}')
  if not rounded or rounded >= 0.1:
    return f'{rounded:.{digits}g}'
  mantissa, _, power = f'{value:.{digits - 1}e}'.partition('e')
  if '.' in mantissa:
    mantissa = mantissa.rstrip('0').rstrip('.')
  return f'{mantissa}e{int(power)}'


def power(rate: float) -> str:
  """Formats a target rate as a power of ten.

  Args:
    rate: the target.

  Returns:
    Its shortest spelling.

  Examples:
    >>> power(1e-6), power(0.1), power(0.05)
    ('1e-6', '1e-1', '5e-2')
  """
  mantissa, exponent = f'{rate:.1e}'.split('e')
  return f'{mantissa.removesuffix(".0")}e{int(exponent)}'


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
  """Aligns the first column to the left and the others to the right.

  Args:
    rows: cells of each line.

  Returns:
    Lines without blanks at their ends.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
    ).rstrip()
    for row in rows
  ]
