# SPDX-License-Identifier: Apache-2.0
"""Timing of several variants of a computation, in turn.

The load and the temperature of a machine change from minute to minute by more
than the differences to be measured. So the variants take turns, round by round,
and are compared within each round.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Seconds before each variant: the threads of another library have gone to
# sleep, where they would spin for work to come.
PAUSE = 0.1
MAX_CALLS = 10_000


def in_turn(
  variants: Mapping[str, Callable[[], object]],
  *,
  rounds: int,
  seconds: float,
  clock: Callable[[], float] = time.perf_counter,
  sleep: Callable[[float], object] = time.sleep,
) -> dict[str, np.ndarray]:
  """Times variants that take turns.

  Each is called twice to warm up, and once to choose how many calls a round
  takes. In each round one more call precedes them untimed: memory and caches
  that the others had must be won back, which training never has to.

  Args:
    variants: functions that run the computation once, and wait for its end.
    rounds: number of rounds.
    seconds: shortest time of a variant in a round.
    clock: returns seconds.
    sleep: waits for seconds.

  Returns:
    Seconds of a call of each variant, float64 ``[rounds]``.
  """

  def repeat(call, count):
    def timed():
      call()
      start = clock()
      for _ in range(count):
        call()
      return (clock() - start) / count

    return timed

  timed = {}
  for name, call in variants.items():
    call()
    once = max(repeat(call, 1)(), 1e-9)
    count = min(math.ceil(seconds / once), MAX_CALLS)
    timed[name] = repeat(call, count)
  return take_turns(timed, rounds=rounds, sleep=sleep)


def take_turns(
  variants: Mapping[str, Callable[[], float]],
  *,
  rounds: int,
  sleep: Callable[[float], object] = time.sleep,
) -> dict[str, np.ndarray]:
  """Calls variants that measure themselves in turn.

  The order is reversed in every other round, so that no variant always follows
  the same one.

  Args:
    variants: functions that return the seconds that they took, or another
      measured value.
    rounds: number of rounds.
    sleep: waits for seconds.

  Returns:
    Measured values of each variant, float64 ``[rounds]``.
  """
  measured = {name: np.zeros(rounds) for name in variants}
  for i in range(rounds):
    for name in list(variants)[:: 1 - 2 * (i % 2)]:
      sleep(PAUSE)
      measured[name][i] = variants[name]()
  return measured


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
  """Returns median, quartiles and range of the values of all rounds."""
  names = 'min', 'lower_quartile', 'median', 'upper_quartile', 'max'
  quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
  return dict(zip(names, quantiles.tolist(), strict=True))


def ratio(times: np.ndarray, others: np.ndarray) -> dict[str, float]:
  """Returns the spread of the ratios of two variants' times, by round."""
  return spread(times / others)


def format_spread(
  found: Mapping[str, float],
  unit: float = 1.0,
  *,
  ends: str = 'quartiles',
  digits: int | None = None,
) -> str:
  """Formats a median with its quartiles or its range.

  Args:
    found: from `spread` or `ratio`.
    unit: factor of all values, such as 1e3 for milliseconds.
    ends: ``'quartiles'`` or ``'range'``, the values in parentheses.
    digits: after the point; by default 3, or 1 for quartiles of a median of 10
      or more.

  Returns:
    Text such as ``12.0 (11.5-14.1)``.

  Examples:
    >>> format_spread(spread([0.010, 0.011, 0.012]), 1e3)
    '11.0 (10.5-11.5)'
  """
  low, high = {
    'quartiles': ('lower_quartile', 'upper_quartile'),
    'range': ('min', 'max'),
  }[ends]
  low, median, high = (unit * found[name] for name in (low, 'median', high))
  if digits is None:
    digits = 3 if ends == 'range' or median < 10 else 1
  return f'{median:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})'
