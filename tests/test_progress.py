# SPDX-License-Identifier: Apache-2.0
"""Progress of commands: a bar where it can be seen, lines elsewhere."""

import pytest

from elasticface_jax import terminal

from . import clocks, terminals

WORK = """
import time
from elasticface_jax import terminal

terminal._SECONDS = 0.1
with terminal.progress('images') as progress:
  for done in (0, 1024, 2048, 7024):
    time.sleep(0.15 if done == 2048 else 0)
    progress(done, 7024)
"""


@pytest.fixture
def clock(monkeypatch):
  clock = clocks.Clock()
  monkeypatch.setattr(terminal.time, 'monotonic', clock)
  return clock


def work(clock, seconds_per_call, total=7024, unit='images'):
  with terminal.progress(unit) as progress:
    for done in range(0, total, 1024):
      progress(done, total)
      clock.now += seconds_per_call
    progress(total, total)


def test_lines_in_a_pipe_come_every_ten_seconds(clock, capsys):
  work(clock, 6)
  out, err = capsys.readouterr()
  assert not out
  assert err.splitlines() == [
    '2,048 of 7,024 images',
    '4,096 of 7,024 images',
    '6,144 of 7,024 images',
    '7,024 of 7,024 images',
  ]


@pytest.mark.parametrize(('total', 'unit'), [(7024, 'images'), (3000, 'files')])
def test_quick_work_prints_nothing_in_a_pipe(clock, capsys, total, unit):
  work(clock, 0.5, total, unit)
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(('rows', 'columns'), [(0, 0), (0, 80), (1, 80)])
def test_lines_on_a_terminal_without_rows(rows, columns):
  lines = terminals.run_python(WORK, rows=rows, columns=columns).splitlines()
  assert lines == ['2,048 of 7,024 images', '7,024 of 7,024 images']


@pytest.mark.parametrize(('rows', 'columns'), [(40, 80), (24, 120)])
def test_bar_on_a_terminal(rows, columns):
  shown = terminals.run_python(WORK, rows=rows, columns=columns)
  assert '100%' in shown and '7024/7024' in shown and ' of ' not in shown


def test_streams_that_are_no_terminals(tmp_path):
  with open(tmp_path / 'file', 'w') as file:
    assert not terminal.shows_bars(file)
  assert not terminal.shows_bars(file)  # Closed.


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0:00:00'), (59.6, '0:01:00'), (3725, '1:02:05'), (90061, '25:01:01')],
)
def test_duration(seconds, text):
  assert terminal.duration(seconds) == text
