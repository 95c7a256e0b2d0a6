# SPDX-License-Identifier: Apache-2.0
"""Ways take turns, and are compared round by round."""

import numpy as np
import pytest

from elasticface_jax.benchmark import timing


class Machine:
  """A clock that moves only when something is done."""

  def __init__(self):
    self.now = 0.0
    self.log = []
    self.slowness = 1.0
    self.cold = False

  def clock(self):
    return self.now

  def way(self, name, seconds):
    def call():
      self.log.append(name)
      self.now += seconds * self.slowness * (10 if self.cold else 1)
      self.cold = False

    return call

  def sleep(self, seconds):
    self.log.append('pause')
    # From one turn to the next this machine gets slower and slower.
    self.slowness *= 1.5
    # What others have used has to be won back.
    self.cold = True


def test_rounds_last_long_enough_and_change_their_order():
  machine = Machine()
  spent = timing.in_turn(
    {'a': machine.way('a', 1.0), 'b': machine.way('b', 4.0)},
    rounds=3,
    seconds=3.5,
    clock=machine.clock,
    sleep=machine.sleep,
  )
  turns = ' '.join(machine.log).split('pause')
  warm, *turns = [turn.split() for turn in turns]
  assert warm == ['a'] * 3 + ['b'] * 3
  # Four calls of a second are the first to last 3.5 seconds; one goes before.
  a, b = ['a'] * 5, ['b'] * 2
  assert turns == [a, b, b, a, a, b]
  growth = 1.5 ** np.arange(1, 7)
  np.testing.assert_allclose(spent['a'], growth[[0, 3, 4]])
  np.testing.assert_allclose(spent['b'], 4 * growth[[1, 2, 5]])


def test_ratios_are_those_of_each_round():
  # The machine is three times as slow in the second round: of no account.
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
