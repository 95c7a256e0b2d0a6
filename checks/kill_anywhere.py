# SPDX-License-Identifier: Apache-2.0
r"""Kills a run with -9 at random moments, and checks that no bit is lost.

Trains a narrow network once without a break, then again with many breaks: while
a process starts and compiles, between two steps, while a checkpoint is being
written, and while pairs are verified. Every restart draws another number of
devices. The exit code is 0 if every restart resumes, and both runs end with the
same fingerprint and the same records of metrics and verification, each of them
once. Takes four minutes.

    python checks/kill_anywhere.py
    python checks/kill_anywhere.py --kills 4 --steps 12 --processes 2
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from training_runs import NARROW, fingerprint, finish, log_of, start

from elasticface_jax.training import metrics

DEVICES = (1, 2, 4)  # Of the run; with two processes, at least 2.
MOMENTS = ('start', 'step', 'save', 'evaluation')
PATIENCE = 300  # Seconds to wait for a moment.

CONFIG = NARROW | {'eval_every': 2, 'eval.synthetic_pairs': 100}


class Run:
  """The processes of one start of a run; they end with its context."""

  def __init__(self, workdir, steps, devices, processes):
    self.workdir = workdir
    self.log = log_of(workdir)
    changes = CONFIG | {'total_steps': steps}
    self.processes = start(
      workdir, changes, devices=devices, processes=processes
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()

  def step(self):
    """Returns the last step with metrics."""
    rows = metrics.read(self.workdir)
    return max((row['step'] for row in rows), default=0)

  def is_saving(self):
    """Returns whether a checkpoint is being written."""
    folder = self.workdir / 'checkpoints'
    return any('tmp' in path.name for path in folder.glob('*'))

  def is_verifying(self):
    """Returns whether pairs are being verified."""
    rows = metrics.read(self.workdir)
    if not rows or 'pairs' in rows[-1]:
      return False
    return rows[-1]['step'] % CONFIG['eval_every'] == 0

  def wait_for(self, moment, rng, before):
    """Waits for a moment after a step; False if the run ended before it."""
    begin = time.monotonic()
    first_step = None
    lasts = rng.uniform(0, 8) if moment == 'start' else 0
    while time.monotonic() < begin + PATIENCE:
      if all(p.poll() is not None for p in self.processes):
        return False
      step = self.step()
      first_step = step if first_step is None else first_step
      new = step > max(first_step, before)
      if moment == 'start' and time.monotonic() - begin > lasts:
        return True
      if moment == 'step' and new:
        time.sleep(rng.uniform(0, 0.3))
        return True
      if moment == 'save' and new and self.is_saving():
        time.sleep(rng.uniform(0, 0.1))
        return True
      if moment == 'evaluation' and new and self.is_verifying():
        time.sleep(rng.uniform(0, 0.3))
        return True
      time.sleep(0.002)
    raise SystemExit(f'no {moment} came in {PATIENCE} s; see {self.log}')

  def kill(self, rng):
    """Kills one process; the others have to end by themselves."""
    rng.choice(self.processes).send_signal(signal.SIGKILL)
    for process in self.processes:
      process.wait(timeout=PATIENCE)

  def finish(self):
    """Waits for the end of the run."""
    finish(self.workdir, self.processes)


def newest(workdir):
  """Returns the step of the newest checkpoint; 0 without one."""
  steps = [
    int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit()
  ]
  return max(steps, default=0)


def records(workdir):
  """Returns what the run recorded, in any order and without times."""
  times = ('images_per_second', 'seconds')
  rows = [
    {name: x for name, x in row.items() if name not in times}
    for row in metrics.read(workdir)
  ]
  return sorted(json.dumps(row, sort_keys=True) for row in rows)


def train(workdir, steps, devices, processes):
  """Trains to the last step without a break; returns the fingerprint."""
  with Run(workdir, steps, devices, processes) as run:
    run.finish()
  return fingerprint(workdir)


def kill_once(workdir, kill, devices, args, rng):
  """Starts or resumes a run and kills it at a moment."""
  moment = MOMENTS[kill % len(MOMENTS)]
  before = newest(workdir)
  with Run(workdir, args.steps, devices, args.processes) as run:
    # Distributed over the run, so that the last kills still find it running.
    target = kill * args.steps * 3 // (4 * args.kills)
    if not run.wait_for(moment, rng, target):
      run.finish()
      raise SystemExit(f'the run ended before kill {kill + 1}')
    step = run.step()
    run.kill(rng)
  print(
    f'kill {kill + 1:2}: {moment:10} {devices} devices, resumed from step '
    f'{before}, killed at {step}, newest checkpoint {newest(workdir)}',
    flush=True,
  )
  if newest(workdir) < before:
    raise SystemExit('a checkpoint was lost')


def main(argv=None):
  """Trains without and with kills; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  rng = random.Random(args.seed)
  counts = [n for n in DEVICES if n >= args.processes]

  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    expected = train(
      folder / 'uninterrupted', args.steps, counts[0], args.processes
    )
    print(f'without a break: {expected}', flush=True)
    killed = folder / 'killed'
    for kill in range(args.kills):
      kill_once(killed, kill, rng.choice(counts), args, rng)
    found = train(killed, args.steps, counts[-1], args.processes)
    print(f'after {args.kills} kills: {found}')
    starts = json.loads((killed / 'manifest.json').read_text())['starts']
    print(f'{len(starts)} starts in the manifest')
    same = records(killed) == records(folder / 'uninterrupted')
    print(f'{len(records(killed))} records, {"the same" if same else "OTHERS"}')
    return 0 if found == expected and same else 1


if __name__ == '__main__':
  sys.exit(main())
