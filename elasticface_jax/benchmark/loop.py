# SPDX-License-Identifier: Apache-2.0
"""What the training loop adds to its steps: metrics, progress, the next batch.

The loop is the trainer's, with a feed that has its batches ready and nowhere to
save to; what it is compared with is the same step called again and again, with
the batch on the device. Both wait for each step one step late.
"""

import contextlib
import dataclasses
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from elasticface_jax.benchmark import timing
from elasticface_jax.benchmark.step import Run, thin_backbone
from elasticface_jax.missing import needs

BARE, LOOP = 'bare steps', 'loop'
LOG_EVERY = 50  # Steps, as the recipes for MS1MV2.


class _Batch(NamedTuple):
  images: np.ndarray
  labels: np.ndarray


class _NoCheckpoints:
  """Where nothing is saved."""

  latest_step = None

  def save(self, step, state):
    """Saves nothing."""

  def wait(self):
    """Waits for nothing."""


class _Terminal(io.StringIO):
  """Where the progress bar believes that somebody watches."""

  def isatty(self):
    return True


def check() -> None:
  """Imports what the loop needs.

  Raises:
    MissingPackage: if it is not installed.
  """
  with needs('benchmark loop'):
    from elasticface_jax.training import loop  # noqa: F401


def measure(run: Run, *, steps: int, rounds: int) -> dict[str, Any]:
  """Times the loop and bare steps in turn.

  Args:
    run: the step.
    steps: of each way, in all rounds together.
    rounds: how often they take their turn.

  Returns:
    JSON-like: the ratio for this step; and what the loop adds at most, measured
    with a step so short that nothing overlaps.
  """
  check()
  count = math.ceil(steps / rounds)
  spent = _in_turn(run, count, rounds)
  recipe = run.recipe
  mesh = run.layout.mesh
  thin = Run(
    dataclasses.replace(
      recipe, num_classes=2 * mesh.size, num_blocks=mesh.size, sample_rate=1.0
    ),
    mesh,
    backbone=thin_backbone(8),
  )
  alone = _in_turn(thin, count, rounds)
  return {
    'recipe': dataclasses.asdict(recipe),
    'steps_of_a_round': count,
    'log_every': LOG_EVERY,
    'ways': {
      name: {'step_seconds': timing.spread(times)}
      for name, times in spent.items()
    },
    'time_ratios': {f'{LOOP} / {BARE}': timing.ratio(spent[LOOP], spent[BARE])},
    'added_seconds_per_step_at_most': timing.spread(alone[LOOP] - alone[BARE]),
  }


def _in_turn(run: Run, count: int, rounds: int) -> dict[str, np.ndarray]:
  with tempfile.TemporaryDirectory() as folder:
    ways = {
      BARE: lambda: _bare(run, count),
      LOOP: lambda: _looped(run, count, Path(folder)),
    }
    _bare(run, 2)
    _looped(run, 2, Path(folder))
    return timing.take_turns(ways, rounds=rounds)


def _bare(run: Run, count: int) -> float:
  """Seconds of a step."""
  waiting = ()
  start = time.perf_counter()
  for _ in range(count):
    measured = run.dispatch()
    jax.block_until_ready(waiting)
    waiting = measured
  jax.block_until_ready((waiting, run.state))
  return (time.perf_counter() - start) / count


def _looped(run: Run, count: int, workdir: Path) -> float:
  """The same in the loop, from the first batch to the last step's numbers."""
  from elasticface_jax.training import loop

  batch = _Batch(*run.host_batch)
  first = int(run.state.step)
  moments = []

  def feed(_):
    moments.append(time.perf_counter())
    for _ in range(count):
      yield batch
    moments.append(time.perf_counter())

  with contextlib.redirect_stderr(_Terminal()):
    run.state = loop.train(
      workdir=workdir,
      state=run.state,
      step_fn=run.step_fn,
      keys=run.keys,
      batches=feed,
      batch_indices=lambda _: np.arange(len(batch.labels)),
      evaluate=lambda _: {},
      checkpoints=_NoCheckpoints(),
      layout=run.layout,
      total_steps=first + count,
      log_every=LOG_EVERY,
      eval_every=0,
      checkpoint_every=0,
    )
  start, end = moments
  return (end - start) / count
