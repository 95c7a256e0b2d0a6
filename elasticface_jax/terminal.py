# SPDX-License-Identifier: Apache-2.0
"""The terminal: what can be seen on it, and times as people read them."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

_SECONDS = 10  # Between two lines of progress.


def shows_bars(stream: TextIO) -> bool:
  """Returns True if a progress bar on a stream can be seen.

  A terminal in a container has 0 rows until its window is first resized
  (``docker run -t``, ``kubectl exec -t``); tqdm hides its bar there. Lines are
  printed instead, as into a pipe.

  Args:
    stream: such as `sys.stderr`.

  Examples:
    >>> import io
    >>> shows_bars(io.StringIO())
    False
  """
  try:
    # tqdm needs a row below the bar, or it shows '... (more hidden) ...'.
    return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 2
  except (OSError, ValueError):  # No such terminal; a stream that is closed.
    return False


def duration(seconds: float) -> str:
  """Formats a time as hours, minutes and seconds.

  Args:
    seconds: the time, in seconds.

  Examples:
    >>> duration(3725.4)
    '1:02:05'
  """
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'


def table(rows: Sequence[Sequence[str]]) -> str:
  """Formats an aligned table in Markdown.

  Args:
    rows: cells; the first row is the head. Columns but the first are aligned
      to the right.

  Examples:
    >>> print(table([('a', 'n'), ('one', '1'), ('ten', '10')]))
    | a   |  n |
    | --- | -: |
    | one |  1 |
    | ten | 10 |
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  pad = lambda row: [
    cell.ljust(width) if i == 0 else cell.rjust(width)
    for i, (cell, width) in enumerate(zip(row, widths, strict=True))
  ]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join(
    [line(pad(rows[0])), line(rule), *map(line, map(pad, rows[1:]))]
  )


def discard(stream: TextIO) -> None:
  """Lets a stream that is broken write to nowhere.

  Python writes what is left in its buffer when the process ends, and would fail
  then.

  Args:
    stream: such as `sys.stdout`.
  """
  with contextlib.suppress(OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Lasting:
  """A stream that drops what cannot be written any more."""

  def __init__(self, stream: TextIO):
    self._stream, self._broken = stream, False

  def write(self, text: str) -> int:
    self._try(lambda: self._stream.write(text))
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, call: Any) -> None:
    if not self._broken:
      try:
        call()
      except (OSError, ValueError) as error:  # No reader, no room; or closed.
        self._broken = True
        discard(self._stream)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
          with contextlib.suppress(OSError):
            os.write(2, b'elasticface: no space for its output; it goes on\n')

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
  """Lets the body outlive its output: a closed pipe, a lost terminal.

  Hours of training shall not end because nobody reads on, as after ``| head``,
  or when the ``tee`` behind a pipe goes with its connection.
  """
  with (
    contextlib.redirect_stdout(_Lasting(sys.stdout)),
    contextlib.redirect_stderr(_Lasting(sys.stderr)),
  ):
    yield


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
  """Shows a progress bar on a terminal, and lines on stderr elsewhere.

  Lines come every ten seconds, and at the end of whatever took longer.

  Args:
    unit: name of the things, such as ``'images'``.

  Yields:
    ``report(done, total)``, to be called as the work proceeds.
  """
  if shows_bars(sys.stderr):
    with _bar(unit) as report:
      yield report
  else:
    yield _Lines(unit)


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
  import tqdm

  with tqdm.tqdm(unit=f' {unit}', dynamic_ncols=True) as shown:

    def report(done, total):
      shown.total = total
      shown.update(done - shown.n)

    yield report


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
