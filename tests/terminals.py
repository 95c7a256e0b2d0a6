# SPDX-License-Identifier: Apache-2.0
"""A program on a terminal of any size."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def run_python(code, *arguments, rows, columns):
  """Returns all that a program in Python shows on a terminal.

  `pty.fork` would do it, but JAX does not allow a fork.
  """
  ours, its = pty.openpty()
  fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
  process = subprocess.Popen(
    [sys.executable, '-c', code, *map(str, arguments)],
    stdin=its,
    stdout=its,
    stderr=its,
  )
  os.close(its)
  shown = b''
  while True:
    try:
      shown += os.read(ours, 65536)
    except OSError:  # Linux's end of a terminal.
      break
  os.close(ours)
  assert process.wait() == 0, shown.decode()
  return shown.decode()
