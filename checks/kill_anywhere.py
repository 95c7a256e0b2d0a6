# SPDX-License-Identifier: Apache-2.0
r"""Kills a run with -9 at random moments, and shows that no bit is lost.

Trains a narrow network once without a break, then once more with many breaks:
while a process starts and compiles, between two steps, while a checkpoint is
being written, while pairs are verified. Every restart draws another number of
devices. Exits with 0 if every restart goes on and both runs end with the same
fingerprint.

    python checks/kill_anywhere.py
    python checks/kill_anywhere.py --kills 4 --steps 12 --processes 2
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from train_command import NARROW, fingerprint, finish, log_of, start

from elasticface_jax.training import metrics

DEVICES = (1, 2, 4)  # Of the run; with two processes, at least 2.
MOMENTS = ('start', 'step', 'save', 'evaluation')
PATIENCE = 300  # Seconds that a moment is waited for.

CONFIG = NARROW | {'eval_every': 2, 'eval.synthetic_pairs': 100}


class Run:
  """The processes of one start of a run."""

  def __init__(self, workdir, steps, devices, processes):
    self.workdir = workdir
    self.log = log_of(workdir)
    changes = CONFIG | {'total_steps': steps}
    self.processes = start(
      workdir, changes, devices=devices, processes=processes
    )

  def step(self):
    rows = metrics.read(self.workdir)
    return max((row['step'] for row in rows), default=0)

  def is_saving(self):
    folder = self.workdir / 'checkpoints'
    return any('tmp' in path.name for path in folder.glob('*'))

  def is_verifying(self):
    rows = metrics.read(self.workdir)
    if not rows or 'pairs' in rows[-1]:
      return False
    return rows[-1]['step'] % CONFIG['eval_every'] == 0

  def wait_for(self, moment, rng, before):
    """Waits for a moment; False if the run ended before it."""
    end = time.monotonic() + PATIENCE
    first_step = None
    lasts = rng.uniform(0, 8) if moment == 'start' else 0
    begin = time.monotonic()
    while time.monotonic() < end:
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
    finish(self.workdir, self.processes)


def newest(workdir):
  steps = [
    int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit()
  ]
  return max(steps, default=0)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  counts = [n for n in DEVICES if n >= args.processes]

  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    whole = folder / 'whole'
    Run(whole, args.steps, counts[0], args.processes).finish()
    expected = fingerprint(whole)
    print(f'without a break: {expected}', flush=True)

    broken = folder / 'broken'
    for kill in range(args.kills):
      moment = MOMENTS[kill % len(MOMENTS)]
      devices = rng.choice(counts)
      before = newest(broken)
      run = Run(broken, args.steps, devices, args.processes)
      # Spread over the run, so that the last ones still find it running.
      target = kill * args.steps * 3 // (4 * args.kills)
      if not run.wait_for(moment, rng, target):
        run.finish()
        raise SystemExit(f'the run ended before kill {kill + 1}')
      step = run.step()
      run.kill(rng)
      print(
        f'kill {kill + 1:2}: {moment:10} {devices} devices, went on from step '
        f'{before}, killed at {step}, holds {newest(broken)}',
        flush=True,
      )
      if newest(broken) < before:
        raise SystemExit('a checkpoint was lost')
    Run(broken, args.steps, counts[-1], args.processes).finish()
    got = fingerprint(broken)
    print(f'{args.kills} kills later: {got}')
    starts = json.loads((broken / 'manifest.json').read_text())['starts']
    print(f'{len(starts)} starts in the manifest')
    return 0 if got == expected else 1


if __name__ == '__main__':
  sys.exit(main())
