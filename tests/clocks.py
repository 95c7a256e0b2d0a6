# SPDX-License-Identifier: Apache-2.0
"""A clock that a test sets."""


class Clock:
  """A function without arguments, as those of `time`."""

  def __init__(self):
    self.now = 100.0

  def pass_(self, seconds):
    self.now += seconds

  def __call__(self):
    return self.now
