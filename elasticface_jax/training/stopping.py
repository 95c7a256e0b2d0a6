# SPDX-License-Identifier: Apache-2.0
"""Orderly stops: SIGTERM, SIGHUP and Ctrl-C end a run after a complete step.

Where `jax.distributed` runs, its own notice is used: it catches SIGTERM in any
process, notifies all of them, and finds a step that none has passed. A handler
of ours would take that signal away from it, so a run has one or the other.
"""

import itertools
import os
import signal

import jax
from jax.experimental import multihost_utils

# SIGHUP comes when a terminal closes or its connection is lost.
_SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
# Calls of the runtime, of all runs in this process. After a notice it waits for
# a higher number than any before, and the steps of a second run begin at 1.
_calls = itertools.count(1)


class Listener:
  """Remembers a signal until the loop asks; use as a context manager.

  A second signal of the same kind acts at once, as without this class. One that
  is ignored, as SIGHUP under nohup, stays so.
  """

  def __init__(self):
    self._received: int | None = None
    self._before = {}

  def __enter__(self):
    for number in _SIGNALS:
      if signal.getsignal(number) != signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    self._received = number
    signal.signal(number, self._before[number])

  def heard(self, step: int) -> int | None:
    """Returns the signal to stop for after this step; None for none."""
    return self._received


class DistributedListener:
  """Listener of a run of `jax.distributed`: all processes stop together.

  Ctrl-C or a hangup of one process stops all of them.
  """

  def __enter__(self):
    self._before = {}
    for number in (signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(number) != signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._pass_on)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _pass_on(self, number, frame):
    signal.signal(number, self._before[number])
    os.kill(os.getpid(), signal.SIGTERM)

  def heard(self, step: int) -> int | None:
    """Returns SIGTERM at the step at which all stop; call it at every step."""
    if multihost_utils.reached_preemption_sync_point(next(_calls)):
      return signal.SIGTERM
    return None


def listener() -> Listener | DistributedListener:
  """Returns the listener for this kind of run."""
  if jax.distributed.is_initialized():
    return DistributedListener()
  return Listener()
