# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, checkpoints and metrics out."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.training.checkpoint import Checkpoints
from elasticface_jax.training.metrics import Writer
from elasticface_jax.training.state import Layout, TrainState
from elasticface_jax.training.stopping import Listener, Stopped


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
    step_fn: from `make_step`.
    keys: from `make_keys`.
    batches: gives the batches from a step on, in order: images uint8
      ``[B, H, W, 3]``, labels int32 ``[B]``, indices int64 ``[B]``.
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
  rows = (layout.num_groups, layout.group_size)
  waiting = None  # The step whose numbers are still on the device.

  def take_in(log):
    step, measured, indices = waiting
    measured = {name: float(x) for name, x in measured.items()}
    if not math.isfinite(measured['loss']):
      latest = checkpoints.latest_step
      kept = 'none' if latest is None else f'step {latest}'
      raise InputError(
        f'the loss is {measured["loss"]} at step {step} (last checkpoint: '
        f'{kept}; images {_some(indices)}): lower optim.lr, or look at these '
        'images'
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
    Listener() as listener,
    Writer(workdir, first_step=first, total_steps=total_steps) as log,
    contextlib.closing(batches(first)) as feed,
  ):
    if first == 0 and eval_every:
      verify(0)  # What the untrained network does: the curve's beginning.
    for step, batch in enumerate(feed, first + 1):
      images, labels = jax.device_put(
        (
          batch.images.reshape(*rows, *batch.images.shape[1:]),
          batch.labels.reshape(rows),
        ),
        layout.spread(),
      )
      state, measured = step_fn(state, images, labels, keys)
      # One step late, so that the device never waits for the host; and never
      # more, since fake CPU devices deadlock far ahead.
      if waiting:
        take_in(log)
      waiting = step, measured, batch.indices

      evaluation = due(step, eval_every, total_steps)
      saving = due(step, checkpoint_every, total_steps) or listener.received
      if evaluation or saving:
        # No state is saved, and no accuracy told, of a loss not looked at.
        take_in(log)
        waiting = None
      if evaluation:
        verify(step)
      if saving:
        checkpoints.save(step, state)
      if listener.received and step < total_steps:
        checkpoints.wait()
        raise Stopped(listener.received, step)
    checkpoints.wait()
  return state


def _some(indices: np.ndarray, most: int = 16) -> str:
  text = ' '.join(str(i) for i in indices[:most])
  more = len(indices) - most
  return text + (f' and {more} more' if more > 0 else '')
