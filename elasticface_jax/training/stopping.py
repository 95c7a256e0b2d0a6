# SPDX-License-Identifier: Apache-2.0
"""Stopping in order: SIGTERM and Ctrl-C end the run after a whole step."""

import signal


class Stopped(Exception):
  """The run was asked to stop, and has saved its state."""

  def __init__(self, signal_number: int, step: int):
    self.exit_code = 128 + signal_number
    name = signal.Signals(signal_number).name
    super().__init__(
      f'stopped by {name}; step {step} is saved, the same command goes on'
    )


class Listener:
  """Remembers a signal until the loop asks; use as a context manager.

  A second one of the same kind acts at once, as without this class.
  """

  def __init__(self):
    self.received: int | None = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    self.received = number
    signal.signal(number, self._before[number])
