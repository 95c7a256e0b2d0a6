# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the training loop: metrics, progress and placement of batches.

The trainer's loop, with a feed of ready batches and without checkpoints, is
compared with the same step called repeatedly on a batch that is on the device.
Both wait for each step one step late.
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
LOG_EVERY = 50  # Steps, as in the recipes for MS1MV2.


class _Batch(NamedTuple):
  images: np.ndarray
  labels: np.ndarray


class _NoCheckpoints:
  """A checkpoint manager that saves nothing."""

  latest_step = None

  def save(self, step, state, sums):
    """Saves nothing."""

  def wait(self):
    """Waits for nothing."""


def check() -> None:
  """Checks that the packages of the loop are there.

  Raises:
    MissingPackage: if one is not installed.
  """
  with needs('benchmark loop'):
    from elasticface_jax.training import loop  # noqa: F401


def measure(run: Run, *, steps: int, rounds: int) -> dict[str, Any]:
  """Times the loop and bare steps in turn.

  Args:
    run: the step.
    steps: of each variant, in all rounds together.
    rounds: number of turns of each.

  Returns:
    JSON-like: the ratio for this step; and the largest time that the loop adds,
    measured with a step so short that nothing overlaps.
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
    'variants': {
      name: {'step_seconds': timing.spread(times)}
      for name, times in spent.items()
    },
    'time_ratios': {f'{LOOP} / {BARE}': timing.ratio(spent[LOOP], spent[BARE])},
    'added_seconds_per_step_at_most': timing.spread(alone[LOOP] - alone[BARE]),
  }


def _in_turn(run: Run, count: int, rounds: int) -> dict[str, np.ndarray]:
  with tempfile.TemporaryDirectory() as folder:
    variants = {
      BARE: lambda: _bare(run, count),
      LOOP: lambda: _looped(run, count, Path(folder)),
    }
    _bare(run, 2)
    _looped(run, 2, Path(folder))
    return timing.take_turns(variants, rounds=rounds)


def _bare(run: Run, count: int) -> float:
  """Returns the seconds of a bare step."""
  waiting = ()
  start = time.perf_counter()
  for _ in range(count):
    measured = run.dispatch()
    jax.block_until_ready(waiting)
    waiting = measured
  jax.block_until_ready((waiting, run.state))
  return (time.perf_counter() - start) / count


def _looped(run: Run, count: int, workdir: Path) -> float:
  """Returns the seconds of a step in the loop, from first batch to metrics."""
  from elasticface_jax.training import loop, records

  batch = _Batch(*run.host_batch)
  first = int(run.state.step)
  moments = []

  def feed(_):
    moments.append(time.perf_counter())
    for _ in range(count):
      yield batch
    moments.append(time.perf_counter())

  # Lines as into a file; those of a terminal are a bar on stderr.
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
    run.state = loop.train(
      workdir=workdir,
      state=run.state,
      step_fn=run.step_fn,
      keys=run.keys,
      batches=feed,
      batch_indices=lambda _: np.arange(len(batch.labels)),
      evaluate=lambda *_: {},
      pair_sets=(),
      checkpoints=_NoCheckpoints(),
      recorder=records.Writer(
        workdir, first_step=first, every=0, with_checkpoints=False
      ),
      watch=records.Watch(),
      check_held=lambda: None,
      layout=run.layout,
      total_steps=first + count,
      log_every=LOG_EVERY,
      eval_every=0,
      checkpoint_every=0,
    )
  start, end = moments
  return (end - start) / count
