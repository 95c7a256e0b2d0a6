# SPDX-License-Identifier: Apache-2.0
"""Stopping in order: SIGTERM and Ctrl-C end the run after a whole step.

Where `jax.distributed` runs, its own notice is used: it catches SIGTERM in any
process, tells all of them, and finds a step that none has passed. A handler of
ours would take that signal away from it, so there is one or the other.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Listener:
  """Remembers a signal until the loop asks; use as a context manager.

  A second one of the same kind acts at once, as without this class.
  """

  def __init__(self):
    self._received: int | None = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    self._received = number
    signal.signal(number, self._before[number])

  def heard(self, step: int) -> int | None:
    """The signal that asks to stop after this step; None if none does."""
    return self._received


class DistributedListener:
  """The same for a run of `jax.distributed`: all processes stop together.

  Ctrl-C in one process counts as the notice for all.
  """

  def __enter__(self):
    self._before = signal.signal(signal.SIGINT, self._pass_on)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGINT, self._before)

  def _pass_on(self, number, frame):
    signal.signal(number, self._before)
    os.kill(os.getpid(), signal.SIGTERM)

  def heard(self, step: int) -> int | None:
    """SIGTERM at the step at which all stop; ask at every step."""
    if multihost_utils.reached_preemption_sync_point(step):
      return signal.SIGTERM
    return None


def listener() -> Listener | DistributedListener:
  """The one that fits this run."""
  if jax.distributed.is_initialized():
    return DistributedListener()
  return Listener()
