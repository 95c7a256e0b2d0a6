# SPDX-License-Identifier: Apache-2.0
"""What a run measures: JSON lines, TensorBoard events, a progress bar.

``W/metrics.jsonl`` has a row for every ``log_every`` steps and one for every
evaluation of a pair set. A run that was stopped and goes on leaves the file
that an uninterrupted run would leave, times apart.
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
  """All rows of a run; a last row cut off by a crash is left out."""
  path = workdir / FILE
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


class Writer:
  """Writes a run's metrics; use as a context manager."""

  def __init__(self, workdir: Path, *, first_step: int, total_steps: int):
    """Opens the files.

    Args:
      workdir: the run folder.
      first_step: steps done before; rows of later steps are dropped, since
        those steps are about to be done again, and all where it is 0.
      total_steps: where the run ends, for the progress bar.
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
    # Silent where nobody watches; `line` speaks there instead.
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
    """Takes in one step, a number for each name.

    Args:
      step: its number, from 1.
      measured: what the training step measured.
      batch_size: for images a second.
      log: whether this step has a row.
    """
    self._bar.update(1)
    if not log:
      return
    now = time.perf_counter()
    rate = (step - self._step) * batch_size / (now - self._time)
    self._step, self._time = step, now
    self._write(step, {**measured, 'images_per_second': rate}, prefix='train/')
    told = {
      'loss': f'{measured["loss"]:.3f}',
      'accuracy': f'{measured["accuracy"]:.3f}',
      'images/s': f'{rate:.0f}',
    }
    self._bar.set_postfix(told, refresh=False)
    if self._bar.disable:
      left = (self._bar.total - step) * batch_size / rate
      self.line(
        f'step {step}/{self._bar.total}  '
        + '  '.join(f'{name} {value}' for name, value in told.items())
        + f'  {_clock(left)} left'
      )

  def evaluation(self, step: int, pairs: str, result: Mapping) -> None:
    """Takes in the verification of one pair set, as JSON-like numbers."""
    self._write(step, {'pairs': pairs, **result}, prefix=f'verify/{pairs}/')
    # Time spent on pairs is not time per step.
    self._time += result.get('seconds', 0)

  def line(self, text: str) -> None:
    """Prints a line without breaking the progress bar."""
    self._bar.write(text)

  def _write(self, step: int, row: Mapping, *, prefix: str) -> None:
    self._file.write(json.dumps({'step': step, **row}) + '\n')
    self._file.flush()
    for name, value in row.items():
      if isinstance(value, float) and math.isfinite(value):
        self._events.add_scalar(prefix + name, value, step)


class Silence:
  """What a process writes that is not the first: nothing."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def step(self, *_, **__) -> None:
    """Is told of a step."""

  def evaluation(self, *_) -> None:
    """Is told of a verification."""

  def line(self, text: str) -> None:
    """Is told something."""


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
