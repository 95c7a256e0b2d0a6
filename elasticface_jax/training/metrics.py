# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: JSON lines, TensorBoard events, a progress bar.

``W/metrics.jsonl`` has a record for every ``log_every`` steps and one for every
evaluation of a pair set. The record of a step has the means over the steps
since the record before it, since a single batch says little; its learning rate
is that of the step. A run that was stopped and resumed leaves the same file as
an uninterrupted run, except for timings: the sums of an interval that a
checkpoint cuts are kept in ``W/metrics_partial.json``.
"""

import collections
import json
import math
import operator
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from elasticface_jax import atomic, missing, terminal
from elasticface_jax.errors import InputError
from elasticface_jax.training.events import Events

with missing.needs(__name__):
  import tqdm

FILE = 'metrics.jsonl'
PARTIAL = 'metrics_partial.json'

# A mean over a drop would be a rate that no step had.
_NOT_AVERAGED = ('learning_rate',)


def read(workdir: Path) -> list[dict]:
  """Reads all records of a run, without a last one cut off by a crash.

  Args:
    workdir: the run folder.

  Raises:
    InputError: names the first line before it that is no record.
  """
  path = workdir / FILE
  if not path.exists():
    return []
  records = []
  # A crash of the machine may leave any bytes at the end.
  lines = path.read_text(errors='replace').splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      records.append({**record, 'step': operator.index(record['step'])})
    except (KeyError, TypeError, ValueError) as error:
      if number < len(lines):
        # Left out, it would be lost when the file is written anew.
        raise InputError(
          f'{path}: line {number} is no record; was it edited? Restore it, or '
          'remove that line'
        ) from error
  return records


def evaluated(workdir: Path, step: int) -> set[str]:
  """Returns the names of the pair sets with a record at a step.

  Args:
    workdir: the run folder.
    step: the step.

  Examples:
    >>> import tempfile
    >>> workdir = Path(tempfile.mkdtemp())
    >>> with Writer(workdir, first_step=0, total_steps=8) as writer:
    ...   writer.evaluation(8, 'lfw', {'accuracy': 0.75})
    >>> evaluated(workdir, 8)
    {'lfw'}
    >>> evaluated(workdir, 4)
    set()
  """
  return {
    row['pairs']
    for row in read(workdir)
    if row['step'] == step and 'pairs' in row
  }


class Writer:
  """Writes a run's metrics; use as a context manager."""

  def __init__(self, workdir: Path, *, first_step: int, total_steps: int):
    """Opens the files.

    Args:
      workdir: the run folder.
      first_step: steps done before; records of later steps are dropped, since
        these steps are done again, and all records where it is 0.
      total_steps: last step of the run, for the progress bar.

    Raises:
      InputError: if a file cannot be written.
    """
    self._path = workdir / FILE
    kept = [row for row in read(workdir) if row['step'] <= first_step > 0]
    with atomic.file(self._path) as part:
      part.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    # Appended to from here on: `read` leaves out a line that a crash cuts off.
    self._file = self._path.open('a')
    self._events = Events(workdir / 'tensorboard', first_step=first_step)
    self._interval = _Interval(workdir / PARTIAL, first_step)
    self._clock = _Clock()
    # Where a bar would not be seen, `step` prints lines instead.
    self._bar = tqdm.tqdm(
      initial=first_step,
      total=total_steps,
      disable=not terminal.shows_bars(sys.stderr),
      dynamic_ncols=True,
      # With our own time left: tqdm's counts the time of the compiler.
      bar_format='{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} '
      '[{elapsed}{postfix}]',
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    self._bar.close()
    for file in (self._file, self._events):
      try:
        file.close()
      except OSError as error:
        if kind is None:  # Else the first error is the one to be seen.
          raise self._not_written(error) from error

  def compiling(self) -> None:
    """Says that the training step is compiled now, which may take minutes."""
    if self._bar.disable:
      self.line('compiling the training step')
    else:
      self._bar.set_description_str('compiling: ')

  def step(
    self, step: int, measured: Mapping, *, batch_size: int, log: bool
  ) -> dict[str, float] | None:
    """Logs one step, when it has ended.

    The first step after a start has no ``images_per_second``: most of its time
    is the compiler's.

    Args:
      step: its number, from 1.
      measured: floats by name, from the training step.
      batch_size: for images per second.
      log: whether to write a record of this step.

    Returns:
      The record, if one is written.

    Raises:
      InputError: if the record cannot be written.
    """
    self._interval.add(measured)
    self._clock.step(step)
    record = None
    if log:
      means = self._interval.end(step)
      speed = {}
      if pace := self._clock.pace_since_record():
        speed = {'images_per_second': batch_size / pace}
      self._clock.record(step)
      self._write(step, {**means, **speed}, prefix='train/')
      record = {'step': step, **means}
      measured = means
    self._show(step, measured, batch_size, log)
    return record

  def keep(self, step: int) -> None:
    """Keeps what a run that resumes from this step needs.

    To be called before the checkpoint of the step is saved, after its metrics
    were given to `step`.

    Raises:
      InputError: if it cannot be written.
    """
    self._interval.keep(step)

  def evaluation(self, step: int, pairs: str, result: Mapping) -> None:
    """Logs the verification of one pair set, a JSON-like mapping."""
    self._write(step, {'pairs': pairs, **result}, prefix=f'verify/{pairs}/')
    self._clock.leave_out(result.get('seconds', 0))

  def line(self, text: str) -> None:
    """Prints a line without breaking the progress bar."""
    self._bar.write(text)
    sys.stdout.flush()  # A pipe would keep it for later.

  def _show(
    self, step: int, measured: Mapping, batch_size: int, log: bool
  ) -> None:
    """Shows a step in the bar, or in a line where it has a record."""
    shown = [f'{name} {measured[name]:.3f}' for name in ('loss', 'accuracy')]
    if pace := self._clock.pace():
      left = terminal.duration((self._bar.total - step) * pace)
      shown += [f'images/s {batch_size / pace:.0f}', f'{left} left']
    if not self._bar.disable:
      self._bar.set_description_str('', refresh=False)
      self._bar.set_postfix_str(', '.join(shown), refresh=False)
      self._bar.update(1)
    elif log:
      self.line('  '.join([f'step {step}/{self._bar.total}', *shown]))

  def _write(self, step: int, record: Mapping, *, prefix: str) -> None:
    try:
      self._file.write(json.dumps({'step': step, **record}) + '\n')
      self._file.flush()
      self._events.add(
        step,
        {
          prefix + name: value
          for name, value in record.items()
          if isinstance(value, float) and math.isfinite(value)
        },
      )
    except OSError as error:
      raise self._not_written(error) from error

  def _not_written(self, error: OSError) -> InputError:
    return InputError(
      f'the metrics in {self._path.parent} cannot be written '
      f'({error.strerror}); make room, and the same command resumes from the '
      'newest checkpoint'
    )


class NullWriter:
  """The writer of all processes but the first, which writes nothing."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def compiling(self) -> None:
    """Says nothing."""

  def step(self, *_, **__) -> None:
    """Ignores the step."""

  def keep(self, step: int) -> None:
    """Keeps nothing."""

  def evaluation(self, *_) -> None:
    """Ignores the verification."""

  def line(self, text: str) -> None:
    """Ignores the text."""


class _Interval:
  """Means over the steps since the last record, also across a restart.

  A run may resume from any of its checkpoints. For each that lies between two
  records, the file has the sums up to there: a kilobyte. Sums are float64 in
  the order of the steps, so that those of a resumed run have the same bits.
  """

  def __init__(self, path: Path, first_step: int):
    self._path = path
    found = _read_kept(path)
    # Later ones are of steps that are done again, maybe at other intervals.
    self._kept = {
      step: sums for step, sums in found.items() if int(step) <= first_step
    }
    if self._kept != found:
      self._write()
    cut = self._kept.get(str(first_step), {'steps': 0, 'sums': {}})
    self._steps, self._sums = cut['steps'], dict(cut['sums'])
    self._newest: dict[str, float] = {}

  def add(self, measured: Mapping) -> None:
    self._steps += 1
    self._newest = dict(measured)
    for name, value in measured.items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def end(self, step: int) -> dict[str, float]:
    """Returns the means, and begins a new interval."""
    means = {name: value / self._steps for name, value in self._sums.items()}
    for name in _NOT_AVERAGED:
      if name in means:
        means[name] = self._newest[name]
    self._steps, self._sums = 0, {}
    return means

  def keep(self, step: int) -> None:
    number, before = str(step), dict(self._kept)
    if self._steps:
      self._kept[number] = {'steps': self._steps, 'sums': dict(self._sums)}
    else:
      self._kept.pop(number, None)
    if self._kept != before:
      self._write()

  def _write(self) -> None:
    # Of checkpoints that are gone, nobody resumes. The newest is not there yet,
    # and the one before it may still be written.
    folder = self._path.parent / 'checkpoints'
    newest = sorted(self._kept, key=int)[-2:]
    self._kept = {
      step: sums
      for step, sums in self._kept.items()
      if step in newest or (folder / step).exists()
    }
    with atomic.file(self._path) as part:
      part.write_text(json.dumps(self._kept))


def _read_kept(path: Path) -> dict[str, dict]:
  try:
    kept = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    # A crash of the machine may leave an empty file; the next record then has
    # means over fewer steps.
    return {}
  return kept if isinstance(kept, dict) else {}


class _Clock:
  """Seconds per step, without those of the compiler and of evaluations.

  It starts when the first step after a start has ended.
  """

  def __init__(self):
    # The ends of the last two steps with a record: (step, time).
    self._marks = collections.deque(maxlen=2)
    self._last = None

  def step(self, step: int) -> None:
    self._last = step, time.perf_counter()
    if not self._marks:
      self._marks.append(self._last)

  def record(self, step: int) -> None:
    if self._marks[-1][0] < step:
      self._marks.append(self._last)

  def leave_out(self, seconds: float) -> None:
    self._marks = collections.deque(
      ((step, end + seconds) for step, end in self._marks), maxlen=2
    )

  def pace_since_record(self) -> float | None:
    """Returns seconds per step; None before there are two ends of steps."""
    return self._between(self._marks[-1])

  def pace(self) -> float | None:
    """Returns the same over up to two intervals, which is less noisy."""
    return self._between(self._marks[0])

  def _between(self, mark: tuple[int, float]) -> float | None:
    step, end = self._last
    return (end - mark[1]) / (step - mark[0]) if step > mark[0] else None
