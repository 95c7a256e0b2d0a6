# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, checkpoints and metrics out."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elasticface_jax.errors import InputError, Stopped
from elasticface_jax.training import (
  checksums,
  metrics,
  processes,
  records,
  stopping,
)
from elasticface_jax.training.checkpoint import Checkpoints, write_json
from elasticface_jax.training.state import Layout, TrainState


def due(step: int, every: int, total_steps: int) -> bool:
  """Tells whether something periodic is due; at the last step it always is."""
  return step == total_steps or (every > 0 and step % every == 0)


def train(
  *,
  workdir: Path,
  state: TrainState,
  step_fn: Callable,
  keys: Mapping[str, jax.Array],
  batches: Callable[[int], Iterator],
  batch_indices: Callable[[int], np.ndarray],
  evaluate: Callable[[TrainState, Sequence[str]], Mapping[str, Any]],
  pair_sets: Sequence[str],
  checkpoints: Checkpoints,
  recorder: records.Writer,
  watch: records.Watch,
  check_held: Callable[[], None],
  layout: Layout,
  total_steps: int,
  log_every: int,
  eval_every: int,
  checkpoint_every: int,
) -> TrainState:
  """Trains from the state's step to the end.

  Args:
    workdir: folder of the metrics.
    state: the state to start from; consumed.
    step_fn: the `step` of a `Task`.
    keys: from its `make_keys`.
    batches: returns this process's part of the batches from a step on, in
      order: images uint8 ``[b, H, W, 3]``, labels int32 ``[b]``.
    batch_indices: returns the indices of all images in a step's batch, ``[B]``.
    evaluate: returns one JSON-like result for each of some pair sets.
    pair_sets: the names of all.
    checkpoints: of the run folder.
    recorder: of the state's checksums.
    watch: what follows the run.
    check_held: raises if another run has taken the folder.
    layout: of the step.
    total_steps: step to end at.
    log_every: steps between records of metrics.
    eval_every: steps between evaluations, from 0 on; 0 for the end only.
    checkpoint_every: steps between checkpoints; 0 for the end only.

  Returns:
    The state at the end, or where the watch ends the run.

  Raises:
    InputError: if the loss is not finite, or a disk is full.
    Stopped: after SIGTERM or Ctrl-C, with the state saved.
  """
  first = int(state.step)
  pending = None  # The step whose metrics are still on the device.

  def log_pending(log):
    step, measured = pending
    measured = {name: float(x) for name, x in measured.items()}
    if not math.isfinite(measured['loss']):
      raise InputError(
        _not_finite(
          workdir, step, measured['loss'], batch_indices(step - 1), checkpoints
        )
      )
    row = log.step(
      step,
      measured,
      batch_size=layout.batch_size,
      log=due(step, log_every, total_steps) or step == 1,
    )
    if row:
      watch.metrics(row)

  def record(step):
    sums = checksums.of_devices(state)
    folded = records.fold(sums)
    recorder.write(step, folded)
    return sums, watch.state(step, folded)

  def verifies_at(step):
    if step == 0:
      return eval_every > 0
    return due(step, eval_every, total_steps)

  def verify(step, names):
    try:
      results = evaluate(state, names)
    except InputError:
      # All processes have it. A state that cannot be verified is saved first.
      checkpoints.wait()
      raise
    for name, result in results.items():
      log.evaluation(step, name, result)
      log.line(
        f'step {step}  {name}: accuracy {100 * result["accuracy"]:.2f} % '
        f'± {100 * result["accuracy_std"]:.2f}'
      )

  with (
    stopping.listener() as listener,
    _writer(workdir, first, total_steps) as log,
    contextlib.closing(batches(first)) as feed,
  ):
    if first == 0 and recorder.due(0, saving=False) and record(0)[1]:
      return state
    # At step 0 the untrained network, the first point of the curve; later what
    # an earlier start saved and did not come to verify.
    if verifies_at(first):
      verify(first, _unverified(workdir, first, pair_sets))
    if first < total_steps:
      log.compiling()
    for step, batch in enumerate(feed, first + 1):
      images, labels = layout.put(batch.images), layout.put(batch.labels)
      state, measured = step_fn(state, images, labels, keys)
      # One step late, so that the device never waits for the host; not more,
      # since fake CPU devices deadlock with many steps in flight.
      if pending:
        log_pending(log)
      pending = step, measured

      check_held()
      stop = listener.heard(step)
      saving = due(step, checkpoint_every, total_steps) or stop
      recording = recorder.due(step, saving)
      if verifies_at(step) or saving or recording:
        # No state is saved or verified before its loss is known to be finite.
        log_pending(log)
        pending = None
      # Before the save, so that each checkpoint has its record after a kill.
      sums, ends = record(step) if recording else (None, False)
      if saving or ends:
        log.keep(step)
        checkpoints.save(step, state, sums)
      if ends:
        break
      if verifies_at(step) and not (stop and step < total_steps):
        verify(step, pair_sets)
      if stop and step < total_steps:
        checkpoints.wait()
        raise Stopped(stop, step)
    checkpoints.wait()
  return state


def _unverified(
  workdir: Path, step: int, pair_sets: Sequence[str]
) -> list[str]:
  """Returns the pair sets without a record of a step, in all processes."""
  missing = []
  if processes.is_first():
    done = metrics.evaluated(workdir, step)
    missing = [name for name in pair_sets if name not in done]
  return json.loads(processes.everywhere(json.dumps(missing))[0])


def _writer(workdir: Path, first: int, total_steps: int):
  """Opens the metrics of a run; processes but the first write none."""
  if processes.is_first():
    return metrics.Writer(workdir, first_step=first, total_steps=total_steps)
  return metrics.NullWriter()


def _not_finite(
  workdir: Path,
  step: int,
  loss: float,
  indices: np.ndarray,
  checkpoints: Checkpoints,
) -> str:
  """Returns the message for a loss that is not finite; lists its images."""
  checkpoints.wait()
  latest = checkpoints.latest_step
  path = workdir / 'not_finite.json'
  if processes.is_first():
    write_json(
      path,
      {
        'step': step,
        'loss': str(loss),
        'images': indices.tolist(),
        'last_checkpoint': latest,
      },
    )
  some = ' '.join(str(i) for i in indices[:8])
  more = f' and {len(indices) - 8} more' if len(indices) > 8 else ''
  return (
    f'the loss is {loss} at step {step} (last checkpoint: '
    f'{"none" if latest is None else f"step {latest}"}; images {some}{more}, '
    f'all in {path}): lower optim.lr, or look at these images'
  )
