# SPDX-License-Identifier: Apache-2.0
"""Exceptions that end in one line: a user's mistake, and a stop on request."""

import signal


class InputError(ValueError):
  """A wrong path, value or file: its message is all that the user sees.

  The message is one line that names the value, the file and the remedy. The
  command line prints it without a traceback and exits with 2; anything else
  that is raised is a defect of ours and keeps its traceback.
  """


class Stopped(Exception):
  """The stop of a run that was asked for, after its state was saved.

  Attributes:
    exit_code: 128 + the number of the signal.
  """

  def __init__(self, signal_number: int, step: int):
    self.exit_code = 128 + signal_number
    name = signal.Signals(signal_number).name
    super().__init__(
      f'stopped by {name}; step {step} is saved, and the same command resumes '
      'from it'
    )


def first_line(error: BaseException) -> str:
  """What a library's error says, short enough to stand in a line of ours."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  line = lines[0][:300]  # It may quote the bytes of a damaged file.
  return ''.join(c if c.isprintable() else '?' for c in line)
