# SPDX-License-Identifier: Apache-2.0
"""Checks that a step takes the memory that `elasticface plan` says.

Plans a step for this machine's CPU, then runs it twice in a process of its own,
with the program from JAX's compilation cache, and samples the memory of the
process that no file backs. Takes two minutes and 5 GB.

    python checks/planned_memory.py
    python checks/planned_memory.py --model iresnet50 --batch-size 64

Prints the plan's peak and the measured one. The exit code is 0 if they differ
by no more than 10 %, and the plan has 2 GB or more. What differs: XLA's kernels
for convolutions on a CPU take workspaces that its account does not have, as
those of cuDNN are not in that for a GPU. glibc is told to return freed blocks
(`MALLOC_MMAP_THRESHOLD_`); by default it keeps some, which adds up to 15 %.
"""

# ruff: noqa: E402

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from elasticface_jax import recipes, runtime

runtime.set_environment()

import jax

from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import Run
from elasticface_jax.planning import compilations, hardware, plan
from elasticface_jax.training import state

ALLOWED = 0.1
LEAST = 2e9
_SAMPLE_SECONDS = 0.005


def anonymous_bytes() -> int:
  """Returns the memory of this process that no file backs, on Linux."""
  status = Path('/proc/self/status').read_text()
  (line,) = (x for x in status.splitlines() if x.startswith('RssAnon:'))
  return 1024 * int(line.split()[1])


def measure(recipe: Recipe) -> int:
  """Runs a step twice; returns the bytes that it needs, those held included."""
  run = Run(recipe, state.make_mesh(1))
  held = sum(x.nbytes for x in jax.live_arrays())
  before = peak = anonymous_bytes()
  over = threading.Event()

  def sample():
    nonlocal peak
    while not over.is_set():
      peak = max(peak, anonymous_bytes())
      time.sleep(_SAMPLE_SECONDS)

  thread = threading.Thread(target=sample)
  thread.start()
  run()
  run()
  over.set()
  thread.join()
  return peak - before + held


def measure_apart(arguments: list[str], cache: str) -> int:
  """Runs `measure` in a process of its own, from a compilation cache."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': cache,
    'MALLOC_MMAP_THRESHOLD_': str(2**20),
  }
  command = [sys.executable, __file__, *arguments, '--measure']
  for _ in range(2):  # The first one compiles.
    done = subprocess.run(
      command, env=environment, capture_output=True, text=True, check=True
    )
  return int(done.stdout.split()[-1])


def main(arguments: list[str]) -> int:
  """Prints both figures; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='iresnet18')
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--group-size', type=int, help='default: the batch')
  parser.add_argument('--measure', action='store_true', help='measure alone')
  flags = parser.parse_args(arguments)
  recipe = Recipe(
    model=recipes.section('model') | {'name': flags.model},
    batch_size=flags.batch_size,
    group_size=flags.group_size or flags.batch_size,
    num_classes=10_000,
    num_blocks=4,
  )
  if flags.measure:
    print(measure(recipe))
    return 0
  with tempfile.TemporaryDirectory() as folder:
    made = plan.make(
      recipe,
      hardware.parse('cpu:1'),
      compilations.Compilations(Path(folder), lambda *_: None),
    )
    measured = measure_apart(arguments, folder)
  difference = measured / made.peak_bytes - 1
  print(
    f'{flags.model}, {recipe.batch_size} images in groups of '
    f'{recipe.group_size}: planned {made.peak_bytes / 1e9:.3f} GB, measured '
    f'{measured / 1e9:.3f} GB ({difference:+.1%})'
  )
  return int(abs(difference) > ALLOWED or made.peak_bytes < LEAST)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
