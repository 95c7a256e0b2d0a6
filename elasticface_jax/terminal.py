# SPDX-License-Identifier: Apache-2.0
"""The terminal: what can be seen on it, and times as people read them."""

import os
from typing import TextIO


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
