# SPDX-License-Identifier: Apache-2.0
"""Exit codes of commands, and the one line that explains a failure."""

import sys
from collections.abc import Callable

from elasticface_jax.errors import InputError, Stopped

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it.


def run(command: Callable[[], None], who: str = '') -> int:
  """Runs a command and prints one line if it fails.

  Args:
    command: the command; anything but a user's error, a system's error about a
      file or a stop on request is a defect, and passes through.
    who: stands after the program's name, such as ``' (process 1 of 2)'``.

  Returns:
    The exit code.
  """
  try:
    command()
    return 0
  except InputError as error:
    return fail(error, who=who)
  except Stopped as error:
    return fail(error, error.exit_code, who)
  except KeyboardInterrupt:
    return fail('interrupted', INTERRUPTED, who)
  except OSError as error:
    if not error.filename:
      raise
    return fail(f'{error.filename}: {error.strerror}', who=who)


def fail(message: object, code: int = USER_ERROR, who: str = '') -> int:
  """Prints a message as one line on stderr.

  Args:
    message: the text; line breaks become spaces.
    code: the exit code.
    who: as for `run`.

  Returns:
    The exit code.
  """
  line = ' '.join(str(message).split())
  print(f'elasticface{who}: {line}', file=sys.stderr)
  return code
