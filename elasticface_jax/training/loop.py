# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, checkpoints and metrics out."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elasticface_jax.errors import InputError, Stopped
from elasticface_jax.training import metrics, processes, stopping
from elasticface_jax.training.checkpoint import Checkpoints, write_json
from elasticface_jax.training.state import Layout, TrainState


def due(step: int, every: int, total_steps: int) -> bool:
  """Whether something done every so many steps is due; at the end, always."""
  return step == total_steps or (every > 0 and step % every == 0)


def train(
  *,
  workdir: Path,
  state: TrainState,
  step_fn: Callable,
  keys: Mapping[str, jax.Array],
  batches: Callable[[int], Iterator],
  batch_indices: Callable[[int], np.ndarray],
  evaluate: Callable[[TrainState], Mapping[str, Any]],
  checkpoints: Checkpoints,
  layout: Layout,
  total_steps: int,
  log_every: int,
  eval_every: int,
  checkpoint_every: int,
) -> TrainState:
  """Trains from the state's step to the end.

  Args:
    workdir: where metrics go.
    state: where to start; consumed.
    step_fn: the `step` of a `Task`.
    keys: from its `make_keys`.
    batches: gives this process's part of the batches from a step on, in
      order: images uint8 ``[b, H, W, 3]``, labels int32 ``[b]``.
    batch_indices: which images the whole batch of a step holds, ``[B]``.
    evaluate: gives one JSON-like result for each pair set.
    checkpoints: where states go.
    layout: of the step.
    total_steps: where to end.
    log_every: steps between rows of metrics.
    eval_every: steps between evaluations, from 0 on; 0 for the end only.
    checkpoint_every: steps between checkpoints; 0 for the end only.

  Returns:
    The state at the end.

  Raises:
    InputError: if the loss is not finite, or a disk is full.
    Stopped: after SIGTERM or Ctrl-C, with the state saved.
  """
  first = int(state.step)
  waiting = None  # The step whose numbers are still on the device.

  def take_in(log):
    step, measured = waiting
    measured = {name: float(x) for name, x in measured.items()}
    if not math.isfinite(measured['loss']):
      raise InputError(
        _not_finite(
          workdir, step, measured['loss'], batch_indices(step - 1), checkpoints
        )
      )
    log.step(
      step,
      measured,
      batch_size=layout.batch_size,
      log=due(step, log_every, total_steps) or step == 1,
    )

  def verify(step):
    for name, result in evaluate(state).items():
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
    if first == 0 and eval_every:
      verify(0)  # What the untrained network does: the curve's beginning.
    for step, batch in enumerate(feed, first + 1):
      images, labels = layout.put(batch.images), layout.put(batch.labels)
      state, measured = step_fn(state, images, labels, keys)
      # One step late, so that the device never waits for the host; and never
      # more, since fake CPU devices deadlock far ahead.
      if waiting:
        take_in(log)
      waiting = step, measured

      stop = listener.heard(step)
      evaluation = due(step, eval_every, total_steps)
      saving = due(step, checkpoint_every, total_steps) or stop
      if evaluation or saving:
        # No state is saved, and no accuracy told, of a loss not looked at.
        take_in(log)
        waiting = None
      if evaluation:
        verify(step)
      if saving:
        checkpoints.save(step, state)
      if stop and step < total_steps:
        checkpoints.wait()
        raise Stopped(stop, step)
    checkpoints.wait()
  return state


def _writer(workdir: Path, first: int, total_steps: int):
  """Opens the metrics of a run; in all processes but the first, nothing."""
  if processes.is_first():
    return metrics.Writer(workdir, first_step=first, total_steps=total_steps)
  return metrics.Silence()


def _not_finite(
  workdir: Path,
  step: int,
  loss: float,
  indices: np.ndarray,
  checkpoints: Checkpoints,
) -> str:
  """Says where a run broke, and keeps the batch's images for a look."""
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
