# SPDX-License-Identifier: Apache-2.0
r"""Trains a million identities on a CPU, resumes, and checks the memory.

Batch 64, embedding size 128, a narrow backbone on drawn faces: the head
dominates. Trains some steps, stops, resumes in a new process, and compares the
largest resident memory of each with the memory of the class centres, their
momentum and one gradient of all of them. The exit code is 0 if it stays below
2.5 times that. Takes three minutes.

    python checks/many_classes.py
    python checks/many_classes.py --classes 85742 --blocks 16
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from training_runs import train_command

DIM = 128
LIMIT = 2.5


def train(workdir, steps, args):
  """Trains up to a step; returns the peak resident bytes and the output."""
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


def main(argv=None):
  """Trains and resumes; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--classes', type=int, default=1_000_000)
  parser.add_argument('--blocks', type=int, default=64)
  parser.add_argument('--sample-rate', type=float, default=1.0)
  parser.add_argument(
    '--steps', type=int, default=4, help='before the stop, and after it'
  )
  args = parser.parse_args(argv)
  needed = 3 * args.classes * DIM * 4
  print(f'centres, momentum and gradient: {needed / 1e9:.2f} GB')
  within = True
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder) / 'run'
    for name, steps in (('start', args.steps), ('resume', 2 * args.steps)):
      peak, output = train(workdir, steps, args)
      print(f'{name}: peak {peak / 1e9:.2f} GB, {peak / needed:.2f} times that')
      print(re.sub('(?m)^', '  ', output.strip()))
      within &= peak < LIMIT * needed
    # The message of a run that resumes.
    resumed = re.search(rf'\bfrom step {args.steps}\b', output)
  return 0 if within and resumed else 1


if __name__ == '__main__':
  sys.exit(main())
