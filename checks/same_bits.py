# SPDX-License-Identifier: Apache-2.0
r"""Checks that a run has one fingerprint on all devices and processes.

Trains variants of a narrow network with the trainer itself on 1, 2, 4 and 8
devices, with eight groups per device down to one, in two processes of two
devices and in four of one, and once killed with -9 and resumed on another
number of devices. The exit code is 0 if each variant has one fingerprint, and
no two variants have the same. Takes about 40 minutes for all variants.

    python checks/same_bits.py
    python checks/same_bits.py --only adaface bfloat16
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from training_runs import NARROW, fingerprint, finish, start

STEPS = 6
SIZES = NARROW | {
  'total_steps': STEPS,
  'data.batch_size': 32,
  'eval_every': 0,
  'eval.pairs': '()',
}
FIRST = 'elastic_arcface_plus'
VARIANTS = {
  FIRST: {'loss.name': FIRST},
  'adaface': {'loss.name': 'adaface'},
  'curricularface': {'loss.name': 'curricularface'},
  'sub-centres, sampled': {'head.subcenters': 3, 'head.sample_rate': 0.4},
  'adamw': {
    'optim.name': 'adamw',
    'optim.lr': 0.01,
    'optim.weight_decay': 0.1,
    'optim.warmup_steps': 2,
    'optim.decay_end': STEPS,
    'head.sample_rate': 0.4,
  },
  'bfloat16': {'model.dtype': 'bfloat16'},
  'remat': {'model.remat': True, 'model.dropout': 0.1},
  # Starts from the weights of the first.
  'freeze': {'start.freeze': True, 'start.checkpoint': FIRST},
}
# Number of devices in total, and of processes.
PLACES = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (4, 4))


def train(workdir: Path, changes, devices: int, processes: int) -> str:
  """Trains without a break; returns the fingerprint."""
  finish(workdir, start(workdir, changes, devices=devices, processes=processes))
  return fingerprint(workdir)


def train_killed(workdir: Path, changes) -> str:
  """Kills a run after its first checkpoint and resumes it on 8 devices."""
  (process,) = started = start(workdir, changes, devices=2)
  while not (workdir / 'checkpoints' / '2').is_dir():
    if process.poll() is not None:
      finish(workdir, started)
      raise SystemExit(f'{workdir.name} ended before it was killed')
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  if (workdir / 'checkpoints' / str(STEPS)).exists():
    raise SystemExit(f'{workdir.name} ended before it was killed')
  return train(workdir, changes, 8, 1)


def check(folder: Path, name: str, changes) -> set[str]:
  """Trains a variant in all places; returns its fingerprints."""
  changes = SIZES | changes
  if source := changes.get('start.checkpoint'):
    changes['start.checkpoint'] = folder / f'{source} on 1 in 1'
  found = set()
  for devices, processes in PLACES:
    workdir = folder / f'{name} on {devices} in {processes}'
    found.add(train(workdir, changes, devices, processes))
  found.add(train_killed(folder / f'{name} killed', changes))
  return found


def main(argv=None) -> int:
  """Trains all variants and compares fingerprints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--only', nargs='+', choices=VARIANTS, help='variants; all by default'
  )
  flags = parser.parse_args(argv)
  everything = []
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for name in flags.only or VARIANTS:
      if name == 'freeze' and FIRST not in (flags.only or VARIANTS):
        changes = SIZES | VARIANTS[FIRST]
        train(folder / f'{FIRST} on 1 in 1', changes, 1, 1)
      found = check(folder, name, VARIANTS[name])
      everything += found
      verdict = 'same bits' if len(found) == 1 else 'DIFFERENT BITS'
      print(f'{name}: {verdict}: {" ".join(sorted(found))}', flush=True)
  names = len(flags.only or VARIANTS)
  return 0 if len(everything) == len(set(everything)) == names else 1


if __name__ == '__main__':
  sys.exit(main())
