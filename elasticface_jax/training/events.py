# SPDX-License-Identifier: Apache-2.0
"""Events for TensorBoard, written as they come."""

import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elasticface_jax import missing

with missing.needs(__name__):
  from tensorboardX import record_writer
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.summary import scalar

# A flush waits for the disk; TensorBoard looks every 30 seconds.
_SECONDS = 30


class Events:
  """A file of events, which the first of them makes.

  Differs from tensorboardX's `SummaryWriter`, which makes a file even if
  nothing is written to it, and whose thread dies when the disk is full: the
  training then waits for that thread without end (tensorboardX 2.6.5).
  """

  def __init__(self, folder: Path, *, first_step: int):
    """Makes nothing yet.

    Args:
      folder: for files of events; made when the first event is written.
      first_step: steps done before; TensorBoard shows no earlier event of a
        later step.
    """
    self._folder, self._first_step = folder, first_step
    self._file: record_writer.RecordWriter | None = None
    self._flushed = time.monotonic()

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Writes numbers, by their tags.

    Args:
      step: the training step.
      values: finite numbers.

    Raises:
      OSError: if they cannot be written.
    """
    if not values:
      return
    if self._file is None:
      self._open()
    for tag, value in values.items():
      summary = scalar(tag, value)
      _write(self._file, step=step, summary=summary)
    if time.monotonic() > self._flushed + _SECONDS:
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Writes what is left.

    Raises:
      OSError: if it cannot be written.
    """
    if self._file:
      self._file.close()

  def _open(self) -> None:
    self._folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files of a folder in the order of their times. A
    # quick resume may begin in the same second.
    self._file = record_writer.RecordWriter(
      str(
        self._folder / f'events.out.tfevents.{int(time.time())}'
        f'.{platform.node()}.from_step_{self._first_step}'
      )
    )
    _write(self._file, file_version='brain.Event:2')
    start = SessionLog(status=SessionLog.START)
    _write(self._file, step=self._first_step + 1, session_log=start)


def _write(file: record_writer.RecordWriter, **fields: Any) -> None:
  file.write(Event(wall_time=time.time(), **fields).SerializeToString())
