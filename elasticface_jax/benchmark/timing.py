# SPDX-License-Identifier: Apache-2.0
"""Times several ways to the same end, in turn.

What else a machine does, and how warm it is, changes from minute to minute by
more than what is to be told apart. So the ways take turns, round by round, and
are compared within each round.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# In seconds, before each way: the threads of another library have gone to
# sleep, where they would spin for work to come.
PAUSE = 0.1
MAX_CALLS = 10_000


def in_turn(
  ways: Mapping[str, Callable[[], object]],
  *,
  rounds: int,
  seconds: float,
  clock: Callable[[], float] = time.perf_counter,
  sleep: Callable[[float], object] = time.sleep,
) -> dict[str, np.ndarray]:
  """Times ways that take turns.

  Each is called twice to warm up, and once to choose how many calls a round
  takes. In each round one more call goes before them untimed: memory and
  caches that the others had must be won back, which training never has to.

  Args:
    ways: each a function that does the thing once, and waits for its end.
    rounds: how many.
    seconds: how long a way takes in a round, at least.
    clock: tells seconds.
    sleep: waits for seconds.

  Returns:
    Seconds of a call, of each way, float64 ``[rounds]``.
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
  for name, call in ways.items():
    call()
    once = max(repeat(call, 1)(), 1e-9)
    count = min(math.ceil(seconds / once), MAX_CALLS)
    timed[name] = repeat(call, count)
  return take_turns(timed, rounds=rounds, sleep=sleep)


def take_turns(
  ways: Mapping[str, Callable[[], float]],
  *,
  rounds: int,
  sleep: Callable[[float], object] = time.sleep,
) -> dict[str, np.ndarray]:
  """Lets ways take turns that time themselves.

  Every other round goes backwards, so that no way always follows the same one.

  Args:
    ways: each gives the seconds that it took.
    rounds: how many.
    sleep: waits for seconds.

  Returns:
    These seconds, of each way, float64 ``[rounds]``.
  """
  spent = {name: np.zeros(rounds) for name in ways}
  for i in range(rounds):
    for name in list(ways)[:: 1 - 2 * (i % 2)]:
      sleep(PAUSE)
      spent[name][i] = ways[name]()
  return spent


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
  """Median, quartiles and range of what the rounds gave."""
  names = 'min', 'lower_quartile', 'median', 'upper_quartile', 'max'
  numbers = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
  return dict(zip(names, numbers.tolist(), strict=True))


def ratio(times: np.ndarray, others: np.ndarray) -> dict[str, float]:
  """Spread of the ratios of two ways' times, round by round."""
  return spread(times / others)
