# SPDX-License-Identifier: Apache-2.0
"""Exit codes of commands, and the one line that explains a failure."""

import contextlib
import errno
import gc
import os
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator

from elasticface_jax import terminal
from elasticface_jax.errors import InputError, Stopped

DIFFERENT = 1  # Of `repeat`, as of cmp and diff; of a traceback, too.
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
NO_READER = 141  # 128 + SIGPIPE, as of programs that end by it, without a word.


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
  except BrokenPipeError:
    terminal.discard(sys.stdout)
    return NO_READER
  except OSError as error:
    if error.filename:
      return fail(f'{error.filename}: {error.strerror}', who=who)
    if error.errno not in (errno.ENOSPC, errno.EIO):
      raise
    terminal.discard(sys.stdout)
    return fail(f'the output cannot be written: {error.strerror}', who=who)


@contextlib.contextmanager
def interruptible_process() -> Iterator[None]:
  """Makes Ctrl-C end the process in one line, also while modules are imported.

  An interrupt inside of an import may come out as any exception, be printed as
  ignored, or be lost, as extension modules turn it into errors of their own. So
  there the process ends at once, and so it does at a second interrupt, and once
  the body is over; files then are as after a kill, which all writes survive.
  Elsewhere a `KeyboardInterrupt` is raised as usual. The handler stays to the
  end of the process.

  Raises:
    SystemExit: after an interrupt in the body.
  """
  interrupted = over = False

  def interrupt(number, frame):
    nonlocal interrupted
    if interrupted or over or _is_importing(frame):
      _end(say=not (interrupted and over))
    interrupted = True
    # Objects that the interrupt leaves half made complain as they are deleted.
    sys.unraisablehook = lambda _: None
    warnings.simplefilter('ignore')
    raise KeyboardInterrupt

  # A shell's background job ignores it, and shall go on to.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupt)
  try:
    yield
  except KeyboardInterrupt as error:
    raise SystemExit(fail('interrupted', INTERRUPTED)) from error
  except Exception as error:
    # Compiled code may have turned the interrupt into an error of its own.
    if not interrupted:
      raise
    raise SystemExit(fail('interrupted', INTERRUPTED)) from error
  finally:
    over = True
    # All that is alive goes with the process. Its last collections of garbage
    # would look through the objects of JAX and TensorFlow for 0.8 s.
    gc.freeze()


def _is_importing(frame: types.FrameType | None) -> bool:
  while frame is not None:
    if frame.f_code.co_filename.startswith('<frozen importlib'):
      return True
    frame = frame.f_back
  return False


def _end(*, say: bool) -> None:
  """Ends the process, from a handler that may have interrupted a print."""
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  if say:
    with contextlib.suppress(OSError):
      os.write(2, b'elasticface: interrupted\n')
  os._exit(INTERRUPTED)


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
  try:
    print(f'elasticface{who}: {line}', file=sys.stderr)
  except (OSError, ValueError):  # The exit code says it, if nothing else can.
    terminal.discard(sys.stderr)
  return code
