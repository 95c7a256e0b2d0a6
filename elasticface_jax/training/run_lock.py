# SPDX-License-Identifier: Apache-2.0
"""Lock of a run folder: two runs never write to one.

``W/.lock`` is locked with flock, which the system gives back however a process
ends. Disks that several machines share may not pass such locks on (Lustre
without ``-o flock``, buckets mounted by FUSE), or have none. So the file also
names its holder, who counts in it every few seconds; whoever finds the name of
another machine, or no locks, waits to see whether that count still rises.
"""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.training import processes

FILE = '.lock'
BEAT_SECONDS = 10
# A disk may hold a write back for a while.
WATCH_SECONDS = 3 * BEAT_SECONDS


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
  """Holds a run folder for this run, and makes it if it is missing.

  In a run of several processes, all of them call it; the first one holds.
  What a killed run left unfinished in the folder is removed.

  Args:
    workdir: W.

  Raises:
    InputError: in all processes, if another run holds the folder; says which.
  """
  made = not workdir.exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'--workdir {workdir}: cannot make this folder ({error.strerror}); give '
      'one that can be written'
    ) from error
  lock = _Lock(workdir) if processes.is_first() else None
  refusal = processes.from_first(lock.take() if lock else '')
  if refusal:
    raise InputError(refusal)
  try:
    if lock:
      atomic.remove_parts(workdir)
    yield
  finally:
    if lock:
      lock.release(made)


class _Lock:
  """The lock file of one run folder."""

  def __init__(self, workdir: Path):
    self._workdir, self._path = workdir, workdir / FILE
    self._ended = threading.Event()
    self._beating = threading.Thread(target=self._beat, daemon=True)
    self._holder = {
      'host': platform.node(),
      'machine': _machine(),
      'process': os.getpid(),
      'since': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
      'count': 0,
    }

  def take(self) -> str:
    """Takes the lock; returns the message of a refusal, or nothing."""
    try:
      return self._take()
    except OSError as error:
      return f'{self._path}: {error.strerror}; a run has to write there'

  def _take(self) -> str:
    self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
    locked = True
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return self._refuse(self._read())
    except OSError:
      locked = False
    if not os.fstat(self._descriptor).st_nlink:  # Removed in between.
      os.close(self._descriptor)
      return self._take()
    found = self._read()
    # A lock of this machine would have been seen: its holder is gone.
    if found and not (locked and found['machine'] == self._holder['machine']):
      if found := self._watch(found):
        return self._refuse(found)
    self._write()
    self._beating.start()
    return ''

  def release(self, made: bool) -> None:
    """Gives the lock back.

    Args:
      made: whether the folder is new. It goes if a mistake in the config left
        nothing in it; otherwise the file stays.
    """
    self._ended.set()
    self._beating.join()
    os.ftruncate(self._descriptor, 0)
    if made and os.listdir(self._workdir) == [FILE]:
      self._path.unlink()
      self._workdir.rmdir()
    os.close(self._descriptor)

  def _refuse(self, holder: dict[str, Any] | None) -> str:
    os.close(self._descriptor)
    who = 'another run'
    if holder:
      who = (
        f'process {holder["process"]} on {holder["host"]}, since '
        f'{holder["since"]}'
      )
    return (
      f'--workdir {self._workdir} is in use by {who}: wait for it, stop it, or '
      'give another folder'
    )

  def _watch(self, found: dict[str, Any]) -> dict[str, Any] | None:
    """Waits for a sign of life; returns the holder if there is one."""
    print(
      f'{self._workdir} was held by process {found["process"]} on '
      f'{found["host"]}; waiting {WATCH_SECONDS} s to see whether it runs',
      flush=True,
    )
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
      time.sleep(WATCH_SECONDS / 30)
      now = self._read()
      if now != found:
        return now  # None after a release.
    return None

  def _beat(self) -> None:
    while not self._ended.wait(BEAT_SECONDS):
      self._holder['count'] += 1
      # A full disk must not end the run.
      with contextlib.suppress(OSError):
        self._write()

  def _write(self) -> None:
    # In place, since a renamed file would leave the locked one behind; padded,
    # so that no reader finds the end of a longer text.
    text = json.dumps(self._holder).ljust(512).encode()
    os.pwrite(self._descriptor, text, 0)
    os.fsync(self._descriptor)

  def _read(self) -> dict[str, Any] | None:
    # Opened anew: on network disks, that is when others' writes are seen.
    try:
      holder = json.loads(self._path.read_text())
    except (OSError, ValueError):
      return None
    return holder if self._holder.keys() == holder.keys() else None


def _machine() -> str:
  """Returns a name of this machine until it is started anew."""
  path = Path('/proc/sys/kernel/random/boot_id')  # The same in containers.
  try:
    return path.read_text().strip()
  except OSError:
    return platform.node()
