# SPDX-License-Identifier: Apache-2.0
r"""Ends runs in every way, at random moments, and times how long they take.

Starts `elasticface train` of a narrow network on shards, on a folder of images
and on a .rec, and a plain loop over the same batches without the trainer. Each
ends by Ctrl-C, by SIGTERM, by an exception in a step, and by its end; the
plain loop also with an iterator that nobody closed. The exit code is 0 if each
process is gone in time, with the exit code that the documentation states, and
nothing that it started is left. Takes an hour.

    python checks/ends_cleanly.py
    python checks/ends_cleanly.py --times 2 --limit 4 --only 'train shards'
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import ending_children
import small_sources
import training_runs

from elasticface_jax import data

CHILDREN = ending_children.__file__
NUM_CLASSES, IMAGES_OF_EACH = 20, 10
PATIENCE = 300  # Seconds to wait for a moment.
HANGS = 20  # Seconds after which a process is killed.
TAG = 'ENDS_CLEANLY'  # A variable, by which all that a process starts is found.

CONFIG = training_runs.NARROW | {
  # The signal's own alone: steps take milliseconds, and saves would queue.
  'checkpoint_every': 0,
  'eval_every': 0,
  'eval.pairs': (),
}

SIGNALS = {'Ctrl-C': signal.SIGINT, 'SIGTERM': signal.SIGTERM}
# Exit codes by program and ending. A plain loop dies of the signal itself at
# Ctrl-C: Python does so after a KeyboardInterrupt that nobody catches.
CODES = {
  'train': {'Ctrl-C': 130, 'SIGTERM': 143, 'exception': 1, 'end': 0},
  'plain': {
    'Ctrl-C': -signal.SIGINT,
    'SIGTERM': 143,
    'exception': 1,
    'end': 0,
    'left open': 0,
  },
}
# Starts of the line after which the clock runs, or the signal may come.
LINES = {
  'Ctrl-C': ('step 1',),
  'SIGTERM': ('step 1',),
  'exception': (ending_children.RAISES,),
  'end': ('fingerprint of step', ending_children.ENDS),
  'left open': (ending_children.ENDS,),
}
SAVED = 'is saved, and the same command resumes'
# Words in the output of a process that did not end as it should.
SIGNS = (
  ending_children.THREADS_STAY,
  'Exception ignored',
  'Fatal Python error',
  'terminate called',
)


class Case(NamedTuple):
  """A program, what it reads, and its ending.

  Attributes:
    reader: ``'train'``, or the function of `data` that a plain loop reads.
    source: one of `small_sources.NAMES`.
    ending: one of `CODES`.
  """

  reader: str
  source: str
  ending: str

  @property
  def program(self):
    return 'train' if self.reader == 'train' else 'plain'


class End(NamedTuple):
  """Measurements of the end of one process.

  Attributes:
    seconds: from the signal, or the line before the end, until the process and
      all that it started are gone.
    after_save: from the last byte of the checkpoint that a signal makes; None
      where none is made.
    cpu: seconds of a core that the process took in this time; far below
      `seconds` on an idle machine, it waited for something.
    code: exit code; None if it had to be killed.
    faults: what is wrong with it but for time and code, in words.
  """

  seconds: float
  after_save: float | None
  cpu: float
  code: int | None
  faults: tuple[str, ...]


def command(case, source, workdir, steps):
  """Returns the command of a process that takes these steps, or is stopped."""
  if case.program == 'plain':
    reads = case.reader, str(source), case.ending, str(steps)
    return [sys.executable, CHILDREN, 'reads', *reads]
  total = steps if case.ending == 'end' else 10**6
  changes = CONFIG | {'data.source': source, 'total_steps': total}
  train = training_runs.train_command(workdir, changes)
  if case.ending != 'exception':
    return train
  return [sys.executable, CHILDREN, 'raises', str(steps), *train[1:]]


def end_one(case, source, folder, rng):
  """Starts a process, ends it in its way, and returns its `End`."""
  tag = uuid.uuid4().hex
  workdir, log = folder / tag, folder / f'{tag}.log'
  environment = {
    TAG: tag,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'PYTHONUNBUFFERED': '1',
  }
  with log.open('w') as out:
    process = subprocess.Popen(
      command(case, source, workdir, steps=rng.randint(2, 40)),
      # Names that the environment has stay, such as a cache that is warm.
      env=environment | os.environ | {TAG: tag},
      stdout=out,
      stderr=out,
      # A group of its own, to which Ctrl-C is sent as a terminal does it.
      start_new_session=True,
    )
  try:
    wait_for_line(process, log, LINES[case.ending])
    begin = time.time()
    if case.ending in SIGNALS:
      time.sleep(rng.uniform(0, 1.5))
      begin = time.time()
      send = os.killpg if case.ending == 'Ctrl-C' else os.kill
      send(process.pid, SIGNALS[case.ending])
    return wait_for_end(process, tag, begin, workdir, log)
  finally:
    for pid in descendants(tag):
      os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_for_line(process, log, starts):
  """Waits until a process has printed a line that starts in one of these ways.

  Raises:
    SystemExit: if it ends without one.
  """
  give_up = time.time() + PATIENCE
  while time.time() < give_up:
    ended = process.poll() is not None  # Before reading, so that none is lost.
    if any(line.startswith(starts) for line in log.read_text().splitlines()):
      return
    if ended:
      break
    time.sleep(0.005)
  last = log.read_text().splitlines()[-3:]
  raise SystemExit(f'{process.args}: no line {starts} came: {last}')


def wait_for_end(process, tag, begin, workdir, log):
  """Waits until a process and all that it started are gone."""
  faults = []
  before = cpu = cpu_seconds(process.pid, 0)
  while process.poll() is None or descendants(tag):
    cpu = cpu_seconds(process.pid, cpu)
    if time.time() > begin + HANGS:
      alive = [f'{name} ({pid})' for pid, name in descendants(tag).items()]
      faults.append(f'after {HANGS} s still there: {", ".join(alive)}')
      break
    time.sleep(0.005)
  end = time.time()
  text = log.read_text()
  faults += [
    line for line in text.splitlines() if any(sign in line for sign in SIGNS)
  ]
  saved = [path.stat().st_ctime for path in workdir.glob('checkpoints/**/*')]
  after_save = None
  if SAVED in text:
    after_save = end - max(saved)
  return End(
    end - begin, after_save, cpu - before, process.returncode, tuple(faults)
  )


def cpu_seconds(pid, default):
  """Returns the time that a process has computed; the default if it is gone."""
  try:
    text = Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return default
  fields = text.rpartition(')')[2].split()  # A name may have spaces.
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def descendants(tag):
  """Returns names by id of the processes that run under a tag."""
  found = {}
  for path in Path('/proc').glob('[0-9]*'):
    # Others come and go, and those of other users cannot be read.
    with contextlib.suppress(OSError):
      if f'{TAG}={tag}'.encode() in (path / 'environ').read_bytes():
        found[int(path.name)] = (path / 'comm').read_text().strip()
  return found


def faults_of(case, end, limit):
  """Returns what is wrong with an end, in words."""
  faults = list(end.faults)
  expected = CODES[case.program][case.ending]
  if end.code != expected:
    faults.append(f'exit code {end.code} and not {expected}')
  if end.seconds > limit:
    faults.append(f'took {end.seconds:.2f} s, computed {end.cpu:.2f} s')
  return faults


def row_of(case, ends):
  """Returns a line of the table."""
  cells = []
  for times in (
    [end.seconds for end in ends],
    [end.after_save for end in ends if end.after_save is not None],
    [end.cpu for end in ends],
  ):
    if times:
      cells.append(f'{statistics.median(times):6.2f} {max(times):6.2f}')
    else:
      cells.append(f'{"-":>6} {"-":>6}')
  codes = ' '.join(map(str, sorted({end.code for end in ends}, key=str)))
  return (
    f'{case.reader:8} {case.source:7} {case.ending:10} {len(ends):5} '
    f'{"  ".join(cells)}  {codes}'
  )


def all_cases():
  """Returns all that can be started and ended here."""
  readers = ['train', 'batches']
  if hasattr(data, 'dataset'):
    readers.append('dataset')
  return [
    Case(reader, source, ending)
    for reader in readers
    for source in small_sources.NAMES
    # A graph reads what TensorFlow can read.
    if (reader, source) != ('dataset', 'rec')
    for ending in CODES['train' if reader == 'train' else 'plain']
  ]


def main(argv=None):
  """Ends processes and prints a table; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--times', type=int, default=10)
  parser.add_argument('--limit', type=float, default=2.0, help='seconds')
  parser.add_argument(
    '--only', default='', help="words that a case has, such as 'train SIGTERM'"
  )
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  rng = random.Random(args.seed)
  # A shell's background job ignores it, and so would all that are started.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  cases = [
    case
    for case in all_cases()
    if set(args.only.split()) <= set(' '.join(case).split())
  ]
  if not cases or args.times < 1:
    raise SystemExit(f'nothing to end: --only {args.only!r}')
  failed = []
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    sources = small_sources.write(
      folder / 'sources', NUM_CLASSES, IMAGES_OF_EACH
    )
    print(f'{"":33} from its cause  from the save   of a core')
    print(
      f'{"reader":8} {"source":7} {"ending":10} times '
      'median    max  median    max  median    max  codes'
    )
    for case in cases:
      ends = []
      for _ in range(args.times):
        ends.append(end_one(case, sources[case.source], folder, rng))
        failed += [(case, x) for x in faults_of(case, ends[-1], args.limit)]
      print(row_of(case, ends), flush=True)
  for case, fault in failed:
    print(f'{" ".join(case)}: {fault}')
  print('FAILED' if failed else f'all ended within {args.limit} s')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
