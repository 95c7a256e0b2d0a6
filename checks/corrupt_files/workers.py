# SPDX-License-Identifier: Apache-2.0
"""Worker processes that run cases under limits of time and memory."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checks.corrupt_files.cases import Bench, Case

STARTUP = 300  # Seconds for a worker to import TensorFlow and read good data.
MEMORY = 4 << 30  # Bytes that a worker may allocate after its start.


def run_watched(
  numbers: range,
  seed: int,
  timeout: float,
  workers: int,
  make_kinds: Callable[[], Mapping[str, Any]],
) -> Iterator[Case]:
  """Runs cases in worker processes.

  Args:
    numbers: of the cases.
    seed: of all cases.
    timeout: seconds for each.
    workers: number of processes.
    make_kinds: returns the kinds; a function of a module, as it is called in
      the workers.

  Yields:
    The cases in order.
  """
  mine = threading.local()
  started = []
  with tempfile.TemporaryDirectory() as folder:

    def run(number):
      if not getattr(mine, 'worker', None) or not mine.worker.alive:
        mine.worker = Worker(folder, seed, make_kinds)
        started.append(mine.worker)
      return mine.worker.run(number, timeout)

    pool = ThreadPoolExecutor(workers)
    try:
      yield from pool.map(run, numbers)
    finally:
      pool.shutdown(cancel_futures=True)
      for worker in started:
        worker.close()


class Worker:
  """A process that runs cases and is killed if it does not answer.

  Args:
    folder: for its files.
    seed: of its bench.
    make_kinds: as in `run_watched`.

  Raises:
    SystemExit: if it does not start.
  """

  def __init__(
    self, folder: str, seed: int, make_kinds: Callable[[], Mapping[str, Any]]
  ):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
      target=_work, args=(theirs, folder, seed, make_kinds), daemon=True
    )
    self._process.start()
    theirs.close()
    _, problem = self._answer(STARTUP)
    if problem:
      raise SystemExit(f'a worker {problem} before the first case')

  @property
  def alive(self) -> bool:
    """True while it can run another case."""
    return not self._connection.closed

  def run(self, number: int, timeout: float) -> Case:
    """Runs one case; a worker that does not answer in time is killed."""
    case, problem = self._answer(timeout, number)
    return case or Case(number, (), 'FOUND', f'the process {problem}')

  def close(self) -> None:
    """Ends the process."""
    self._connection.close()
    self._process.kill()
    self._process.join()

  def _answer(self, timeout, *numbers: int) -> tuple[Case | None, str]:
    try:
      for number in numbers:
        self._connection.send(number)
      if self._connection.poll(timeout):
        return self._connection.recv(), ''
      problem = f'was not done in {timeout:g} s'
    except (EOFError, OSError):
      self._process.join()
      code = self._process.exitcode
      problem = f'ended with {code}'
      if code < 0:
        problem = f'died of {signal.Signals(-code).name}'
    self.close()
    return None, problem


def _work(connection, folder, seed, make_kinds):
  """Answers numbers with cases until the other end is closed: a process."""
  bench = Bench(Path(tempfile.mkdtemp(dir=folder)), seed, make_kinds())
  _limit_memory()
  # libjpeg and TensorFlow write about damaged images to stderr.
  with open(os.devnull, 'w') as nothing:
    os.dup2(nothing.fileno(), sys.stderr.fileno())
  connection.send(None)
  with contextlib.suppress(EOFError):
    while True:
      connection.send(bench.run(connection.recv()))


def _limit_memory():
  """Limits this process to `MEMORY` bytes more than it has."""
  sizes = Path('/proc/self/statm')
  if sizes.exists():
    now = int(sizes.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
