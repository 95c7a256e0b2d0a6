# SPDX-License-Identifier: Apache-2.0
"""Lock of a run folder: two runs never write to one.

``W/.lock`` is locked with flock, which the system gives back however a process
ends. Disks that several machines share may not pass such locks on (Lustre
without ``-o flock``, buckets mounted by FUSE), or have none. So the file also
names its holder, who counts in it every few seconds. Whoever finds the name of
another machine, or no locks, waits to see whether that count still rises; and a
holder who finds another name than its own, or no file, ends at its next step.
"""

import contextlib
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.training import processes

FILE = '.lock'
BEAT_SECONDS = 10
# A disk may hold a write back for a while.
WATCH_SECONDS = 3 * BEAT_SECONDS


class InUse(InputError):
  """A run folder that another run holds.

  Attributes:
    holder: that run, for a message.
  """

  def __init__(self, message: str, holder: str):
    super().__init__(message)
    self.holder = holder


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[Callable[[], None]]:
  """Holds a run folder for this run, and makes it if it is missing.

  In a run of several processes, all of them call it; the first one holds.
  What a killed run left unfinished in the folder is removed.

  Args:
    workdir: W.

  Yields:
    A function that raises an InputError if the folder is held no more.

  Raises:
    InputError: in all processes, if another run holds the folder, or it cannot
      be made or written to; in the first process it is `InUse` if one does.
  """
  lock = _Lock(workdir)
  try:
    refusals = processes.everywhere(lock.take(hold=processes.is_first()))
    for refusal in filter(None, refusals):
      if lock.refused_by:
        raise InUse(refusal, lock.refused_by)
      raise InputError(refusal)
    if processes.is_first():
      atomic.remove_parts(workdir)
    yield lock.check
  finally:
    lock.release()


def holder(workdir: Path) -> str:
  """Returns who holds a run folder, for a message; nothing if nobody does.

  It takes no lock for longer than a look, and does not wait: a run of another
  machine that was killed still counts as a holder.

  Args:
    workdir: W; may be missing.

  Examples:
    >>> import tempfile
    >>> workdir = Path(tempfile.mkdtemp(), 'w')
    >>> holder(workdir)
    ''
    >>> with hold(workdir):
    ...   holder(workdir).startswith(f'process {os.getpid()} on ')
    True
  """
  return _Lock(workdir).seen_holder()


class _Lock:
  """The lock file of one run folder.

  Attributes:
    refused_by: the run that holds it, where `take` found one.
  """

  def __init__(self, workdir: Path):
    self._workdir, self._path = workdir, workdir / FILE
    self._descriptor: int | None = None
    self._new = self._lost = False
    self.refused_by = ''
    self._ended = threading.Event()
    self._beating = threading.Thread(target=self._beat, daemon=True)
    self._holder = {
      'host': platform.node(),
      'process': os.getpid(),
      'since': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
      'token': secrets.token_hex(8),  # Containers share names and numbers.
      'count': 0,
    }

  def take(self, *, hold: bool) -> str:
    """Makes the folder and takes the lock.

    Args:
      hold: False to make the folder alone.

    Returns:
      The message of a refusal, or nothing.
    """
    self._new = hold and not self._workdir.exists()
    try:
      self._workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      return (
        f'--workdir {self._workdir}: cannot make this folder '
        f'({error.strerror}); give one that can be written'
      )
    try:
      return self._take() if hold else ''
    except OSError as error:
      return f'{self._path}: {error.strerror}; a run has to write there'

  def check(self) -> None:
    """Raises an InputError if another run has the folder, or it is gone."""
    if self._lost:
      raise InputError(
        f'{self._workdir} was taken by another run, or its {FILE} was removed: '
        'this run ends, and what it saved is intact; once no other run has the '
        'folder, the same command resumes'
      )

  def release(self) -> None:
    """Gives back what is held, if anything is.

    A folder that is new goes if nothing is in it, as after a mistake in the
    config; otherwise the lock file stays, empty.
    """
    self._ended.set()
    if self._descriptor is None:
      return
    if self._beating.ident is not None:
      self._beating.join()
    try:
      # The folder may be gone, or the disk full: that has no say any more.
      with contextlib.suppress(OSError):
        if self._is_there() and self._read() == self._holder:
          os.ftruncate(self._descriptor, 0)
          if self._new and os.listdir(self._workdir) == [FILE]:
            self._path.unlink()
            self._workdir.rmdir()
    finally:
      os.close(self._descriptor)

  def _take(self) -> str:
    self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
    locked = True
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return self._refused_by(self._read())
    except OSError:
      locked = False
    if not self._is_there():  # Removed in between.
      os.close(self._descriptor)
      return self._take()
    self._holder['machine'] = self._name_machine(self._descriptor)
    found = self._read()
    # A lock of this machine would have been seen: its holder is gone.
    if found and not (locked and found['machine'] == self._holder['machine']):
      if found := self._watch(found):
        return self._refused_by(found)
    self._write()
    self._beating.start()
    return ''

  def seen_holder(self) -> str:
    """Returns who holds the folder, without taking it; see `holder`."""
    found = self._read()
    if not found:
      return ''
    descriptor = os.open(self._path, os.O_RDONLY)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
      if found['machine'] == self._name_machine(descriptor):
        return ''  # It was killed.
    except OSError:
      pass  # Held, or there are no locks.
    finally:
      os.close(descriptor)
    return _called(found)

  def _refused_by(self, holder: dict[str, Any] | None) -> str:
    self.refused_by = _called(holder) if holder else 'another run'
    return (
      f'--workdir {self._workdir} is in use by {self.refused_by}: wait for it, '
      'stop it, or give another folder'
    )

  def _name_machine(self, descriptor: int) -> str:
    # Of a folder in containers of one machine, each mount has its own locks.
    return f'{_machine()} {os.fstat(descriptor).st_dev}'

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
      # A full disk must not end the run.
      with contextlib.suppress(OSError):
        found = self._read()
        if not self._is_there() or (found and found != self._holder):
          self._lost = True
          return
        self._holder['count'] += 1
        self._write()

  def _is_there(self) -> bool:
    """Returns whether the file of this name is still the one that is open."""
    try:
      there = os.stat(self._path)
    except FileNotFoundError:
      return False
    return os.path.samestat(there, os.fstat(self._descriptor))

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
    fields = self._holder.keys() | {'machine'}
    is_ours = isinstance(holder, dict) and holder.keys() == fields
    return holder if is_ours else None


def _called(holder: dict[str, Any]) -> str:
  """Returns the name of a holder for a message."""
  return (
    f'process {holder["process"]} on {holder["host"]}, since {holder["since"]}'
  )


def _machine() -> str:
  """Returns a name of this machine until it is started anew."""
  path = Path('/proc/sys/kernel/random/boot_id')  # The same in containers.
  try:
    return path.read_text().strip()
  except OSError:
    return platform.node()
