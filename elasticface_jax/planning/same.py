# SPDX-License-Identifier: Apache-2.0
"""Comparison of the arithmetic of programs for different numbers of devices.

Names, memory spaces, schedules, data movement, and additions by the trees over
devices are left aside. Programs whose arithmetic is the same cannot give
different bits because of it; whether a device gives the same bits twice is
another question, which takes the device.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def differing(accounts: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Compares the arithmetic of programs with that of the first.

  Args:
    accounts: of `account.of`, by the name of the hardware.

  Returns:
    A line for each instruction that one of two lacks, in the order of the
    program; none if the arithmetic is the same.
  """
  (first, expected), *others = accounts.items()
  found = []
  for name, other in others:
    both = expected['arithmetic'], other['arithmetic']
    found += _only(first, *both) + _only(name, *reversed(both))
  return found


def _only(
  name: str, here: Mapping[str, Sequence], there: Mapping[str, Sequence]
) -> list[str]:
  lines = []
  for signature, (count, scope) in here.items():
    missing = count - there.get(signature, (0, ''))[0]
    if missing > 0:
      lines.append(f'only on {name}: {missing} x {signature}, from {scope}')
  return lines


def num_instructions(account: Mapping[str, Any]) -> int:
  """Returns how many instructions of a program compute with floats."""
  return sum(count for count, _ in account['arithmetic'].values())
