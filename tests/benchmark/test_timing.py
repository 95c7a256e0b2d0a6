# SPDX-License-Identifier: Apache-2.0
"""Variants take turns and are compared by round."""

import numpy as np
import pytest

from elasticface_jax.benchmark import timing


class Machine:
  """A clock that moves only in calls."""

  def __init__(self):
    self.now = 0.0
    self.log = []
    self.slowness = 1.0
    self.cold = False

  def clock(self):
    return self.now

  def variant(self, name, seconds):
    def call():
      self.log.append(name)
      self.now += seconds * self.slowness * (10 if self.cold else 1)
      self.cold = False

    return call

  def sleep(self, seconds):
    self.log.append('pause')
    # From one turn to the next this machine gets slower and slower.
    self.slowness *= 1.5
    # The caches hold the data of others.
    self.cold = True


def test_rounds_last_long_enough_and_change_their_order():
  machine = Machine()
  spent = timing.in_turn(
    {'a': machine.variant('a', 1.0), 'b': machine.variant('b', 4.0)},
    rounds=3,
    seconds=3.5,
    clock=machine.clock,
    sleep=machine.sleep,
  )
  turns = ' '.join(machine.log).split('pause')
  warm, *turns = [turn.split() for turn in turns]
  assert warm == ['a'] * 3 + ['b'] * 3
  # Four calls of a second are the first to last 3.5 seconds; one precedes them.
  a, b = ['a'] * 5, ['b'] * 2
  assert turns == [a, b, b, a, a, b]
  growth = 1.5 ** np.arange(1, 7)
  np.testing.assert_allclose(spent['a'], growth[[0, 3, 4]])
  np.testing.assert_allclose(spent['b'], 4 * growth[[1, 2, 5]])


def test_ratios_are_those_of_each_round():
  # The machine is three times as slow in the second round, for both.
  ours = np.array([1.0, 3.0, 1.0])
  others = np.array([2.0, 6.3, 1.5])
  ratio = timing.ratio(others, ours)
  assert ratio['median'] == pytest.approx(2.0)
  assert ratio['min'] == pytest.approx(1.5)
  assert ratio['max'] == pytest.approx(2.1)


def test_spread():
  assert timing.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {
    'min': 1.0,
    'lower_quartile': 2.0,
    'median': 3.0,
    'upper_quartile': 4.0,
    'max': 5.0,
  }


def test_format_of_a_spread():
  found = timing.spread([0.010, 0.012, 0.016, 0.020, 0.030])
  assert timing.format_spread(found, 1e3) == '16.0 (12.0-20.0)'
  assert timing.format_spread(found) == '0.016 (0.012-0.020)'
  assert timing.format_spread(found, ends='range') == '0.016 (0.010-0.030)'
  assert timing.format_spread(found, 1e6, digits=0) == '16,000 (12,000-20,000)'
