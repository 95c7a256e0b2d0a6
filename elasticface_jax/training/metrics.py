# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: JSON lines, TensorBoard events, a progress bar.

``W/metrics.jsonl`` has a record for every ``log_every`` steps and one for every
evaluation of a pair set. A run that was stopped and resumed leaves the same
file as an uninterrupted run, except for timings.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import tqdm
from tensorboardX import SummaryWriter

from elasticface_jax import atomic

FILE = 'metrics.jsonl'


def read(workdir: Path) -> list[dict]:
  """Reads all records of a run, without a last one cut off by a crash."""
  path = workdir / FILE
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:
      break
  return records


def evaluated(workdir: Path, step: int) -> set[str]:
  """Returns the names of the pair sets with a record of a step."""
  rows = [row for row in read(workdir) if row['step'] == step]
  return {row['pairs'] for row in rows if 'pairs' in row}


class Writer:
  """Writes a run's metrics; use as a context manager."""

  def __init__(self, workdir: Path, *, first_step: int, total_steps: int):
    """Opens the files.

    Args:
      workdir: the run folder.
      first_step: steps done before; records of later steps are dropped, since
        these steps are done again, and all records where it is 0.
      total_steps: last step of the run, for the progress bar.
    """
    self._path = workdir / FILE
    kept = [row for row in read(workdir) if row['step'] <= first_step > 0]
    with atomic.file(self._path) as part:
      part.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    # Appended to from here on: `read` leaves out a line that a crash cuts off.
    self._file = self._path.open('a')
    self._events = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=first_step + 1
    )
    # Disabled where there is no terminal; `line` prints there instead.
    self._bar = tqdm.tqdm(
      initial=first_step,
      total=total_steps,
      unit='step',
      disable=None,
      dynamic_ncols=True,
    )
    self._step, self._time = first_step, time.perf_counter()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()
    self._file.close()
    self._events.close()

  def step(
    self, step: int, measured: Mapping, *, batch_size: int, log: bool
  ) -> None:
    """Logs one step.

    Args:
      step: its number, from 1.
      measured: floats by name, from the training step.
      batch_size: for images per second.
      log: whether to write a record of this step.
    """
    self._bar.update(1)
    if not log:
      return
    now = time.perf_counter()
    rate = (step - self._step) * batch_size / (now - self._time)
    self._step, self._time = step, now
    self._write(step, {**measured, 'images_per_second': rate}, prefix='train/')
    shown = {
      'loss': f'{measured["loss"]:.3f}',
      'accuracy': f'{measured["accuracy"]:.3f}',
      'images/s': f'{rate:.0f}',
    }
    self._bar.set_postfix(shown, refresh=False)
    if self._bar.disable:
      left = (self._bar.total - step) * batch_size / rate
      self.line(
        f'step {step}/{self._bar.total}  '
        + '  '.join(f'{name} {value}' for name, value in shown.items())
        + f'  {_clock(left)} left'
      )

  def evaluation(self, step: int, pairs: str, result: Mapping) -> None:
    """Logs the verification of one pair set, a JSON-like mapping."""
    self._write(step, {'pairs': pairs, **result}, prefix=f'verify/{pairs}/')
    # Time spent on pairs is not time per step.
    self._time += result.get('seconds', 0)

  def line(self, text: str) -> None:
    """Prints a line without breaking the progress bar."""
    self._bar.write(text)

  def _write(self, step: int, record: Mapping, *, prefix: str) -> None:
    self._file.write(json.dumps({'step': step, **record}) + '\n')
    self._file.flush()
    for name, value in record.items():
      if isinstance(value, float) and math.isfinite(value):
        self._events.add_scalar(prefix + name, value, step)


class NullWriter:
  """The writer of all processes but the first, which writes nothing."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def step(self, *_, **__) -> None:
    """Ignores the step."""

  def evaluation(self, *_) -> None:
    """Ignores the verification."""

  def line(self, text: str) -> None:
    """Ignores the text."""


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
