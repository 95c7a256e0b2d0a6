# SPDX-License-Identifier: Apache-2.0
"""The check that processes end in time, and what it says of those that stay."""

import importlib
import os
import random
import re
import sys
import time

import pytest

from .. import thin
from .test_scripts import CHECKS

# Of the processes here, each of which imports next to nothing.
_BEGIN = 'import os, signal, subprocess, sys, time; '
_STEP = _BEGIN + 'print("step 1", flush=True); '
_END = _BEGIN + 'print("the program ends", flush=True); '
_SLEEP = [sys.executable, '-S', '-c', 'import time; time.sleep(100)']


@pytest.fixture
def script(load_script, monkeypatch):
  monkeypatch.syspath_prepend(CHECKS)
  script = load_script(CHECKS / 'ends_cleanly.py')
  monkeypatch.setattr(script, 'TAG', f'ENDS_CLEANLY_{os.getpid()}')
  # Nobody waits long for its moment.
  monkeypatch.setattr(script.random.Random, 'uniform', lambda *_: 0.01)
  return script


@pytest.fixture
def ends(script, monkeypatch, tmp_path):
  """``ends(ending, code)``: the faults of a process that runs this code.

  Patience is long, as other tests may keep the cores busy; with
  ``stays=True``, for processes that are meant to stay, it is short.
  """

  def run(ending, code, *, stays=False, limit=20):
    monkeypatch.setattr(script, 'HANGS', 1 if stays else 60)
    monkeypatch.setattr(
      script, 'command', lambda *_, **__: [sys.executable, '-S', '-c', code]
    )
    case = script.Case('batches', 'rec', ending)
    end = script.end_one(case, tmp_path, tmp_path, random.Random(0))
    begin = time.monotonic()
    while script.descendants(''):  # Under any tag: it kills what stays.
      assert time.monotonic() < begin + 5
    return script.faults_of(case, end, limit=0.9 if stays else limit)

  return run


@pytest.mark.parametrize(
  ('ending', 'code'),
  [
    ('Ctrl-C', _STEP + 'time.sleep(100)'),
    (
      'SIGTERM',
      _STEP.replace(
        'print', 'signal.signal(15, lambda *_: sys.exit(143)); print'
      )
      + 'time.sleep(100)',
    ),
    ('exception', _BEGIN + 'print("the step raises now", flush=True); 1 / 0'),
    ('end', _END),
    ('left open', _END),
  ],
)
def test_a_clean_end(ends, ending, code):
  assert ends(ending, code) == []


def test_a_process_that_ignores_its_signal(ends):
  ignores = _BEGIN + 'signal.signal(signal.{}, signal.SIG_IGN); '
  rest = _STEP.removeprefix(_BEGIN) + 'time.sleep(100)'
  for ending, name in (('Ctrl-C', 'SIGINT'), ('SIGTERM', 'SIGTERM')):
    still, code, late = ends(ending, ignores.format(name) + rest, stays=True)
    assert still.startswith('after 1 s still there: python')
    assert code.startswith('exit code None and not')
    assert late.startswith('took ')


def test_a_child_that_is_left(ends):
  leaves = f'subprocess.Popen({_SLEEP!r}, start_new_session=True)'
  still, late = ends('end', _END + leaves, stays=True)
  assert still.startswith('after 1 s still there: python')
  assert late.startswith('took ')


def test_a_thread_that_is_not_joined(ends):
  thread = 'import threading; threading.Thread(target=time.sleep, args=(9,))'
  still, code, _ = ends('end', f'{_END}{thread}.start()', stays=True)
  assert still.startswith('after 1 s still there: python')
  assert code == 'exit code None and not 0'


def test_time_of_a_core(script, ends, monkeypatch):
  found = []
  monkeypatch.setattr(
    script, 'faults_of', lambda _, end, **__: found.append(end)
  )
  ends('end', _END + 'time.sleep(0.5)')
  ends('end', _END + 'any(time.process_time() > 0.5 for _ in iter(int, 1))')
  idle, busy = found
  assert idle.seconds >= 0.5 and idle.cpu < 0.2
  assert busy.seconds >= busy.cpu > 0.3


def test_other_faults(ends):
  assert ends('end', _END + 'sys.exit(3)') == ['exit code 3 and not 0']
  assert ends('end', _END + 'os.abort()') == ['exit code -6 and not 0']
  stay = 'threads stay: [], [3, 4, 5]'
  assert ends('left open', f'{_END}print("{stay}")') == [stay]
  (late,) = ends('end', _END + 'time.sleep(0.95)', limit=0.9)
  assert late.startswith('took ')
  with pytest.raises(SystemExit, match='no line .*step 1.* came.*last words'):
    ends('Ctrl-C', _BEGIN + 'print("last words")')


def test_the_verdict(script, monkeypatch, capsys):
  monkeypatch.setattr(
    script.small_sources,
    'write',
    lambda *_: dict.fromkeys(script.small_sources.NAMES),
  )
  seconds = iter([0.1, 0.3, 0.2, 0.1, 2.5, 0.1])
  monkeypatch.setattr(
    script, 'end_one', lambda *_: script.End(next(seconds), None, 0.1, 143, ())
  )
  arguments = ['--times=3', '--only=train rec SIGTERM']
  assert script.main(arguments) == 0
  assert (
    'train    rec     SIGTERM        3   0.20   0.30' in capsys.readouterr().out
  )
  assert script.main(arguments) == 1
  assert (
    'train rec SIGTERM: took 2.50 s, computed 0.10 s' in capsys.readouterr().out
  )
  with pytest.raises(SystemExit, match='nothing to end'):
    script.main(['--only=trian'])


@pytest.mark.slow
def test_processes_of_this_project(script, monkeypatch, capsys):
  training_runs = importlib.import_module('training_runs')
  monkeypatch.setattr(training_runs, 'PROGRAM', (sys.executable, thin.__file__))
  monkeypatch.setitem(script.CONFIG, 'model.name', thin.NAME)
  monkeypatch.setattr(script, 'HANGS', 60)
  # Other tests keep the cores busy, so times say little here; codes do, and
  # what is left. Runs that a signal stops are in tests/training.
  for only in (
    'train shards exception',
    'batches shards left open',
  ):
    assert script.main(['--times=1', '--limit=60', f'--only={only}']) == 0
  assert re.findall(r'  (\d+)$', capsys.readouterr().out, re.M) == ['1', '0']
