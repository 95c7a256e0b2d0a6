# SPDX-License-Identifier: Apache-2.0
r"""Trains a million identities on a CPU, resumes, and states the memory.

Batch 64, embedding size 128, a narrow backbone on drawn faces: the head is what
counts. Trains some steps, stops, goes on in a new process, and compares the
largest resident memory of each with what class centres, their momentum and one
gradient of all of them would take. Exits with 0 if it stays under 2.5 times
that.

    python checks/many_classes.py
    python checks/many_classes.py --classes 85742 --blocks 16
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from train_command import train_command

DIM = 128
LIMIT = 2.5


def train(workdir, steps, args):
  """Trains up to a step; peak resident bytes, and what was told."""
  config = {
    'total_steps': steps,
    'data.synthetic.num_images': args.classes,
    'data.synthetic.num_classes': args.classes,
    'model.width': 8,
    'model.embedding_dim': DIM,
    'head.num_blocks': args.blocks,
    'head.sample_rate': args.sample_rate,
    'log_every': 1,
    'eval_every': 0,
    'checkpoint_every': 0,
    'keep_checkpoints': 1,
    'eval.pairs': '()',
  }
  with open(workdir.with_suffix('.log'), 'w+') as log:
    process = subprocess.Popen(train_command(workdir, config), stdout=log)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
      raise SystemExit('the run failed')
    log.seek(0)
    return usage.ru_maxrss * 1024, log.read()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--classes', type=int, default=1_000_000)
  parser.add_argument('--blocks', type=int, default=64)
  parser.add_argument('--sample_rate', type=float, default=1.0)
  parser.add_argument('--steps', type=int, default=4)
  args = parser.parse_args()
  needed = 3 * args.classes * DIM * 4
  print(f'centres, momentum and gradient: {needed / 1e9:.2f} GB')
  ok = True
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder) / 'run'
    for name, steps in (('start', args.steps), ('resume', 2 * args.steps)):
      peak, told = train(workdir, steps, args)
      print(f'{name}: peak {peak / 1e9:.2f} GB, {peak / needed:.2f} times that')
      print(re.sub('(?m)^', '  ', told.strip()))
      ok &= peak < LIMIT * needed
    ok &= f'resuming from step {args.steps}' in told
    shutil.rmtree(workdir)
  return 0 if ok else 1


if __name__ == '__main__':
  sys.exit(main())
