# SPDX-License-Identifier: Apache-2.0
"""Comparison of a repetition with what is expected, as it comes."""

from collections.abc import Mapping
from typing import Any

from elasticface_jax.repeat.expected import Expected
from elasticface_jax.training import records

# Parts of the state in the order in which a difference is named: what a step
# computes with, before momentum. Within a part, in the order of the names.
_PARTS = (
  'params',
  'class_centers',
  'batch_stats',
  'loss_state',
  'backbone_opt',
  'head_opt',
  'step',
)


class Comparison:
  """Compares records of a repetition, and says the first difference.

  Attributes:
    compared: steps whose states were compared.
    rows: steps whose metrics were compared.
    differing: names of the tensors that differ, at the last of `compared`.
  """

  def __init__(self, run: Expected, steps: int):
    """Prepares the comparison.

    Args:
      run: what is expected.
      steps: newest step of the repetition.
    """
    self._run, self._steps = run, steps
    self.compared: list[int] = []
    self.rows: list[int] = []
    self.differing: list[str] = []
    self._row_difference: tuple[int, str] | None = None
    self._same_fingerprint = True
    self._last_row = 0

  def watch(self) -> records.Watch:
    """Returns the watch of the training that repeats the run."""
    return records.Watch(self.wanted(), self.state, self.metrics)

  def wanted(self) -> frozenset[int]:
    """Returns the steps whose states are compared."""
    return frozenset(s for s in self._run.records.sums if s <= self._steps)

  @property
  def same(self) -> bool:
    """True if nothing has differed so far."""
    return (
      not self.differing
      and self._row_difference is None
      and self._same_fingerprint
    )

  def state(self, step: int, sums: Mapping[str, str]) -> bool:
    """Compares the state of a step; returns True where it differs.

    Args:
      step: its number; one without an expected record is passed over.
      sums: checksums of all tensors, by name.
    """
    if step not in self.wanted() or step in self.compared:
      return False
    self.compared.append(step)
    expected = self._run.records.of_step(step)
    self.differing = sorted(
      (
        name
        for name in expected.keys() | sums.keys()
        if expected.get(name) != sums.get(name)
      ),
      key=_place,
    )
    return bool(self.differing)

  def metrics(self, row: Mapping[str, Any]) -> None:
    """Compares a record of metrics.

    Its values are means since the record before it; so it is passed over where
    the run, at other intervals, has that one elsewhere.

    Args:
      row: the step and its values.
    """
    step, before = row['step'], self._last_row
    self._last_row = step
    expected = self._run.rows.get(step)
    if expected is None or self._before(step) != before:
      return
    self.rows.append(step)
    if self._row_difference:
      return
    for name, value in expected.items():
      now = row.get(name)
      if repr(now) != repr(value):  # NaN is equal to itself.
        self._row_difference = step, f'{name} was {value!r}, is {now!r}'
        self._announce()
        break

  def _announce(self) -> None:
    """Says that the metrics differ, where a later record names tensors."""
    step, text = self._row_difference
    later = [s for s in self.wanted() if s >= step]
    if later:
      print(
        f'the metrics differ: {self._span(step)}, {text}; training goes on to '
        f'the record of step {min(later):,}, which tells tensors apart'
      )

  def fingerprints(self, step: int, was: str, now: str) -> str:
    """Compares SHA-256 of the last state, and returns the result in words."""
    if was == now:
      return f'fingerprint of step {step}: {now}, as that of the run'
    self._same_fingerprint = False
    return f'different bits: fingerprint of step {step} was {was}, is {now}'

  def _before(self, step: int) -> int:
    return max((s for s in self._run.rows if s < step), default=0)

  def report(self) -> str:
    """Returns the result in words."""
    if self.same:
      return f'same bits: {self._what_was_compared()}'
    if not self.differing:
      step, text = self._row_difference
      # Unless a state was compared after it, the metrics tell of the tensors.
      seen = self.compared and self.compared[-1] >= step
      alone = ' in the metrics alone' if seen else ''
      return (
        f'different bits{alone}: {self._span(step)}, {text}; '
        f'{self._what_was_compared()}, and all tensors are the same'
      )
    return f'different bits: {self._states()}{self._narrowed()}'

  def _states(self) -> str:
    step, total = self.compared[-1], len(self._run.records.tensors)
    more = len(self.differing) - 1
    text = f'step {step:,}: {self.differing[0]} differs'
    if step == 0:
      text = f'the initial state: {self.differing[0]} differs'
    if more:
      text += f', and {more:,} more'
    text += f' of {total:,} tensors'
    if len(self.compared) > 1:
      before = self.compared[-2]
      text += f'; the record before it, of step {before:,}, is the same'
    return text

  def _narrowed(self) -> str:
    """Returns what the metrics say of the steps between two records."""
    if not self.rows or self.compared[-1] == 0:
      return ''
    if self._row_difference is None:
      return f'; the metrics up to step {self.rows[-1]:,} are the same'
    step, text = self._row_difference
    return f'; first in the metrics: {self._span(step)}, {text}'

  def _span(self, step: int) -> str:
    first = self._before(step) + 1
    return f'step {step:,}' if first == step else f'steps {first:,} to {step:,}'

  def _what_was_compared(self) -> str:
    parts = []
    if self.compared:
      count = len(self._run.records.tensors)
      parts.append(f'{count:,} tensors at {_steps(self.compared)}')
    if self.rows:
      parts.append(f'the metrics at {_steps(self.rows)}')
    return ' and '.join(parts) + ' were compared'


def _place(name: str) -> tuple[int, str]:
  part = name.split('/')[0]
  return (_PARTS.index(part) if part in _PARTS else len(_PARTS)), name


def _steps(steps: list[int]) -> str:
  """Names steps, all of a few or the ends of many.

  Examples:
    >>> _steps([0]), _steps([0, 10]), _steps([0, 10, 20, 30])
    ('step 0', 'steps 0 and 10', '4 steps from 0 to 30')
  """
  if len(steps) == 1:
    return f'step {steps[0]:,}'
  if len(steps) == 2:
    return f'steps {steps[0]:,} and {steps[1]:,}'
  return f'{len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}'
