# SPDX-License-Identifier: Apache-2.0
"""Records of a run: the checksum of each tensor of its state, step by step.

``W/fingerprints.jsonl`` has the names of the tensors in its first line, and
then a line for step 0, for each checkpoint and for every ``fingerprint_every``
steps: the checksums of all tensors, 16 hexadecimal digits each, in the order of
the names. A record costs one reading of the state on its devices, for which the
loop waits. Without ``checkpoint_checksums`` there are those of
``fingerprint_every`` and step 0 only, and none where that is 0.

`elasticface repeat` compares them with those of the run that it trains.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticface_jax import atomic
from elasticface_jax.errors import InputError

FILE = 'fingerprints.jsonl'
DIGITS = 16  # Of the checksum of a tensor.


class Records(NamedTuple):
  """Recorded checksums of the states of a run.

  Attributes:
    tensors: names, such as ``params/conv1/kernel``.
    sums: by step, the checksums of all tensors one after the other.
  """

  tensors: tuple[str, ...] = ()
  sums: Mapping[int, str] = {}

  def of_step(self, step: int) -> dict[str, str]:
    """Returns the checksum of each tensor at a recorded step, by name.

    Examples:
      >>> Records(('a', 'b'), {3: 16 * '0' + 16 * '1'}).of_step(3)
      {'a': '0000000000000000', 'b': '1111111111111111'}
    """
    text = self.sums[step]
    starts = range(0, len(text), DIGITS)
    pieces = [text[i : i + DIGITS] for i in starts]
    return dict(zip(self.tensors, pieces, strict=True))


class Watch(NamedTuple):
  """Follower of a run, step by step; the default one does nothing.

  Attributes:
    steps: steps with a record, besides those of the config.
    state: called with the step and the checksums of a record; returns whether
      the run ends there, with its state saved.
    metrics: called with each record of metrics.
  """

  steps: frozenset[int] = frozenset()
  state: Callable[[int, Mapping[str, str]], bool] = lambda step, sums: False
  metrics: Callable[[Mapping[str, Any]], None] = lambda row: None


def fold(sums: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """Returns one checksum for each tensor, however many blocks it has.

  Args:
    sums: by name, a checksum for each block, as `checksums.of_devices` returns
      them.

  Returns:
    By name, the checksum of a tensor of one block; else the BLAKE2b hash of
    those of all blocks, 64 bits.

  Examples:
    >>> fold({'params/a': ['85f0b427354e1af2'], 'head_opt': ['00', '01']})
    {'params/a': '85f0b427354e1af2', 'head_opt': '220f2ba5e26b4694'}
  """
  return {
    name: blocks[0] if len(blocks) == 1 else _hash(''.join(blocks))
    for name, blocks in sums.items()
  }


def _hash(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()


def read(workdir: Path) -> Records:
  """Reads the records of a run, without a last one cut off by a crash.

  Args:
    workdir: the run folder.

  Returns:
    The records; none if the run is of a version that kept none.

  Raises:
    InputError: names the first line before the last that is no record.
  """
  path = workdir / FILE
  if not path.exists():
    return Records()
  tensors, sums = (), {}
  # A crash of the machine may leave any bytes at the end.
  lines = path.read_text(errors='replace').splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      if number == 1:
        tensors = tuple(map(str, row['tensors']))
      else:
        sums[int(row['step'])] = checked(row['sums'], len(tensors))
    except (KeyError, TypeError, ValueError) as error:
      if number < len(lines):
        raise InputError(
          f'{path}: line {number} is no record; was it edited? Restore it, or '
          'remove the file: the run then goes on without its records'
        ) from error
  return Records(tensors, sums)


def checked(sums: str, count: int) -> str:
  """Returns the checksums of a record.

  Args:
    sums: checksums one after the other.
    count: number of tensors.

  Raises:
    ValueError: if it is not that many.
  """
  if len(sums) != DIGITS * count or set(sums) - set('0123456789abcdef'):
    raise ValueError('no checksums')
  return sums


class Writer:
  """Writes the records of a run; see the module."""

  def __init__(
    self,
    workdir: Path,
    *,
    first_step: int,
    every: int,
    with_checkpoints: bool,
    also: frozenset[int] = frozenset(),
    write: bool = True,
  ):
    """Drops the records that are made again.

    Args:
      workdir: the run folder.
      first_step: steps done before; records of later steps are dropped, and all
        records where it is 0.
      every: steps between records; 0 for those of checkpoints only.
      with_checkpoints: whether each checkpoint has a record.
      also: further steps with one.
      write: False in processes that are not the first.

    Raises:
      InputError: if the file cannot be read or written.
    """
    self._path = workdir / FILE
    self._every, self._also = every, also
    self._with_checkpoints = with_checkpoints
    self._tensors: tuple[str, ...] = ()
    self._writes = write
    if not write:
      return
    found = read(workdir)
    kept = {
      step: sums for step, sums in found.sums.items() if step <= first_step > 0
    }
    if kept:
      self._tensors = found.tensors
    if found.tensors or self._path.exists():
      with atomic.file(self._path) as part:
        part.write_text(self._head() + ''.join(map(_line, *_columns(kept))))

  def due(self, step: int, saving: bool) -> bool:
    """Tells whether a step has a record, in all processes alike.

    Args:
      step: its number; 0 before the first.
      saving: whether a checkpoint is saved.
    """
    if step in self._also or (saving and self._with_checkpoints):
      return True
    if step == 0:
      return self._every > 0 or self._with_checkpoints
    return self._every > 0 and step % self._every == 0

  def write(self, step: int, sums: Mapping[str, str]) -> None:
    """Writes a record, before the checkpoint of its step is complete.

    Args:
      step: its number.
      sums: checksums of all tensors, from `fold`.

    Raises:
      InputError: if it cannot be written.
    """
    if not self._writes:
      return
    head = ''
    if not self._tensors:
      self._tensors = tuple(sums)
      head = self._head()
    text = ''.join(sums[name] for name in self._tensors)
    try:
      # `read` leaves out a line that a crash cuts off.
      with self._path.open('a') as file:
        file.write(head + _line(step, text))
    except OSError as error:
      raise InputError(
        f'{self._path} cannot be written ({error.strerror}); make room, and '
        'the same command resumes from the newest checkpoint'
      ) from error

  def _head(self) -> str:
    if not self._tensors:
      return ''
    return json.dumps({'tensors': self._tensors}) + '\n'


def _columns(sums: Mapping[int, str]) -> tuple[list[int], list[str]]:
  return [*sums.keys()], [*sums.values()]


def _line(step: int, sums: str) -> str:
  return json.dumps({'step': step, 'sums': sums}) + '\n'
