# SPDX-License-Identifier: Apache-2.0
"""Progress over a number of things."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from elasticface_jax import terminal

_SECONDS = 10  # Between two lines.


@contextlib.contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
  """Shows a progress bar on a terminal, and lines on stderr elsewhere.

  Lines come every ten seconds, and at the end of whatever took longer.

  Args:
    unit: name of the things, such as ``'images'``.

  Yields:
    ``progress(done, total)``, to be called as the work proceeds.
  """
  if terminal.shows_bars(sys.stderr):
    with _bar(unit) as progress:
      yield progress
  else:
    yield _Lines(unit)


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
  import tqdm

  with tqdm.tqdm(unit=f' {unit}', dynamic_ncols=True) as shown:

    def progress(done, total):
      shown.total = total
      shown.update(done - shown.n)

    yield progress


class _Lines:
  """Lines on stderr, such as ``1,024 of 7,024 images``."""

  def __init__(self, unit: str):
    self._unit, self._begin = unit, time.monotonic()
    self._said = self._begin

  def __call__(self, done: int, total: int) -> None:
    now = time.monotonic()
    at_end = done == total and self._said > self._begin
    if at_end or now >= self._said + _SECONDS:
      line = f'{done:,} of {total:,} {self._unit}'
      print(line, file=sys.stderr, flush=True)
      self._said = now
