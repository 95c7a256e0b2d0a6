# SPDX-License-Identifier: Apache-2.0
"""Processes of `accelerator.py`, their turns, and what is written of them."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import accelerator_report as report

from elasticface_jax import runtime

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name('accelerator_worker.py')
ROUNDS, SECONDS = 5, 0.5


class Failed(Exception):
  """A worker that ended, or did not answer in time; says why."""


class Worker:
  """A process of `accelerator_worker.py`, which starts at once.

  Attributes:
    name: in the report.
    log: file with what it wrote to stderr.
    ready: what it said when it was built; None until `wait`.
  """

  def __init__(self, name: str, job: dict, log: Path, variables: dict):
    self.name = name
    self.ready = None
    self._lines = queue.Queue()
    self.log = log
    with log.open('w') as errors:
      self._process = subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(job)],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,  # Compilers of torch have children.
      )
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    for line in self._process.stdout:
      # A library that writes to the descriptor itself is not listened to.
      with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(line), dict):
          self._lines.put(found)
    self._lines.put(None)

  def message(self, until: float) -> dict:
    """Returns the next message; raises Failed if there is none in time."""
    try:
      found = self._lines.get(timeout=max(0, until - time.monotonic()))
    except queue.Empty:
      self.close()
      raise Failed('cut off by the time limit') from None
    if found is None:
      self._lines.put(None)
      raise Failed(f'ended with {self._process.wait()}: {self.tail()}')
    return found

  def wait(self, until: float, at_step: int | None = None) -> dict:
    """Waits until it is built, or until its training has done a step."""
    while self.ready is None:
      found = self.message(until)
      if at_step is not None and found.get('step') == at_step:
        return found
      self.ready = found.get('ready')
    return self.ready

  def ask(self, until: float, **request) -> object:
    """Sends a request and returns its answer."""
    try:
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
    except (OSError, ValueError):  # The latter if it was closed before.
      raise Failed(f'ended: {self.tail()}') from None
    return self.message(until)['done']

  def tail(self) -> str:
    """Returns the last lines that it wrote to stderr."""
    lines = self.log.read_text(errors='replace').strip().splitlines()
    return ' | '.join(lines[-6:])[-1500:]

  def close(self):
    """Kills it and all that it started; does not wait for the device."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._reader.join(5)
    with contextlib.suppress(OSError):  # Of a request that was not read.
      self._process.stdin.close()
    self._process.stdout.close()


def environment(folder: Path, flags: str, tiny: bool) -> dict[str, str]:
  """Returns the variables of a child: nothing of a user's moves its bits."""
  # A program that is kept would hide what the compiler may choose otherwise.
  left_out = () if tiny else ('JAX_COMPILATION_CACHE_DIR',)
  kept = {k: v for k, v in os.environ.items() if k not in left_out}
  if tiny:
    kept.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'programs'))
    kept['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  return kept | {
    'PYTHONPATH': os.pathsep.join(
      [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    ),
    'PJRT_NPROC': runtime.CPU_THREADS,
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'TORCHINDUCTOR_CACHE_DIR': str(folder / 'inductor'),
    # Several compile side by side.
    'TORCHINDUCTOR_COMPILE_THREADS': '4',
    'TRITON_CACHE_DIR': str(folder / 'triton'),
    'XLA_FLAGS': flags,
    # Several processes share the device.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  }


def formatted(function: Callable, value: object) -> str:
  """Formats a result; a value that nobody thought of costs no other."""
  try:
    return function(value)
  except Exception as error:
    return f'not formatted, as {type(error).__name__}: {error}'


class Session:
  """One run of the script: its clock, its document, its processes.

  Attributes:
    document: what is written as JSON.
    out: where.
    tiny: whether a CPU tries the script.
    folder: for caches and logs; removed at the end.
    flags: of XLA, for programs without flags of their own.
  """

  def __init__(
    self, out: Path, limit: float, tiny: bool, folder: Path, flags: str
  ):
    self.out, self._begin = out, time.monotonic()
    self._end = self._begin + limit
    self.tiny, self.folder, self.flags = tiny, folder, flags
    self.document = {
      'command': ' '.join(sys.argv),
      'tiny': tiny,
      'phases': {},
      'promises': {},
    }
    self._workers = []
    self._early = {}
    self.phase, self.until = None, self._end

  def say(self, text: str) -> None:
    """Prints a line with the seconds so far."""
    print(f'[{time.monotonic() - self._begin:5.0f} s] {text}', flush=True)

  def left(self) -> float:
    """Returns the seconds left of all."""
    return self._end - time.monotonic()

  def write(self) -> None:
    """Writes the document and the report, each in one piece."""
    text = json.dumps(self.document, indent=1, default=str)
    texts = {'json': text, 'md': formatted(report.markdown, self.document)}
    for ending, text in texts.items():
      path = self.out / f'accelerator.{ending}'
      part = path.with_suffix('.part')
      part.write_text(text + '\n')
      part.replace(path)

  def note(self, name: str, value: object) -> None:
    """Records a result of the phase, writes all, and prints it in short."""
    found = self.document['phases'].setdefault(self.phase, {})
    found[name] = value
    self.write()
    self.say(f'{self.phase}, {name}: {formatted(report.short, value)}')

  def note_failure(self, name: str, worker: Worker, error: Failed) -> None:
    """Records why a worker failed, and keeps the end of what it printed."""
    logs = self.out / 'logs'
    logs.mkdir(exist_ok=True)
    kept = re.sub(r'\W+', '_', f'{self.phase}_{name}')
    text = worker.log.read_text(errors='replace')[-100_000:]
    (logs / f'{kept}.log').write_text(text)
    self.note(name, {'failed': str(error)})

  def promise(self, name: str, held: bool, text: str) -> None:
    """Records whether a promise held."""
    self.document['promises'][name] = {'held': held, 'found': text}
    self.note('promise', f'{"held" if held else "BROKEN"}: {text}')

  def environment(self, flags: str) -> dict[str, str]:
    """Returns the variables of a child: `environment` of this session."""
    return environment(self.folder, flags, self.tiny)

  def start(self, name: str, job: dict, flags: str = '') -> Worker:
    """Starts a worker, or takes one that was started early."""
    if name in self._early:
      return self._early.pop(name)
    log = self.folder / f'{time.monotonic_ns()}.log'
    variables = self.environment(flags)
    if job['kind'].startswith('torch'):
      # Recipes import jax, which then leaves the GPU and its libraries alone.
      variables['JAX_PLATFORMS'] = 'cpu'
    worker = Worker(name, job, log, variables)
    self._workers.append(worker)
    return worker

  def start_early(self, name: str, job: dict) -> None:
    """Starts a worker that a later phase will ask for by its name."""
    self._early[name] = self.start(name, job)

  def ready(self, workers: list[Worker]) -> list[Worker]:
    """Waits for workers, notes those that fail, and returns the others."""
    alive = []
    # One that is late leaves the others time to take turns.
    until = self.until - (2 if self.tiny else 20)
    for worker in workers:
      try:
        worker.wait(until)
      except Failed as error:
        self.note_failure(worker.name, worker, error)
      else:
        self.note(worker.name, worker.ready)
        alive.append(worker)
    return alive

  def take_turns(self, workers: list[Worker]) -> dict[str, list[float]]:
    """Times the variants of all workers in turn; returns seconds a call.

    One that fails is noted and left out from then on.
    """
    rounds, seconds = (2, 0.05) if self.tiny else (ROUNDS, SECONDS)
    turns = [
      (w.name if len(w.ready['variants']) == 1 else variant, w, variant)
      for w in workers
      for variant in w.ready['variants']
    ]
    spent = {name: [] for name, *_ in turns}
    for i in range(rounds):
      for name, worker, variant in turns[:: 1 - 2 * (i % 2)]:
        if name not in spent:
          continue
        # The last rounds are given up before the whole phase is.
        if self.until < time.monotonic() + 3 and all(spent.values()):
          break
        try:
          found = worker.ask(
            self.until, do='time', variant=variant, seconds=seconds
          )
        except Failed as error:
          self.note_failure(name, worker, error)
          del spent[name]
        else:
          spent[name].append(found['seconds'])
    least = min(map(len, spent.values()), default=0)
    spent = {name: times[:least] for name, times in spent.items() if least}
    self.note('seconds', spent)
    return spent

  def close(self, *, early: bool = False) -> None:
    """Ends all workers, but for those that a later phase will ask for."""
    kept = [] if early else [*self._early.values()]
    for worker in self._workers:
      if worker not in kept:
        worker.close()
    self._workers = kept
