# SPDX-License-Identifier: Apache-2.0
"""The one exception for mistakes that a user can make and mend."""


class InputError(ValueError):
  """A wrong path, value or file: its message is all that the user sees.

  The message is one line that names the value, the file and the remedy. The
  command line prints it without a traceback and exits with 2; anything else
  that is raised is a defect of ours and keeps its traceback.
  """


def first_line(error: BaseException) -> str:
  """Returns the first line of a library's message, printable and short."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  line = lines[0][:300]  # A message may quote the bytes of a damaged file.
  return ''.join(c if c.isprintable() else '?' for c in line)
