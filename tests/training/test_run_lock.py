# SPDX-License-Identifier: Apache-2.0
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.training import run_lock

HOLD = """
import sys, time
from pathlib import Path
from elasticface_jax.training import run_lock
with run_lock.hold(Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds ``tmp_path / 'w'``."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, tmp_path / 'w'],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


def test_second_run_is_refused_at_once_and_told_by_whom(tmp_path, holder):
  name = os.uname().nodename
  with pytest.raises(InputError) as error:
    with run_lock.hold(tmp_path / 'w'):
      raise AssertionError
  assert f'w is in use by process {holder.pid} on {name}, since 20' in str(
    error.value
  )
  assert 'wait for it, stop it, or give another folder' in str(error.value)
  assert isinstance(error.value, run_lock.InUse)
  assert error.value.holder == run_lock.holder(tmp_path / 'w')
  assert error.value.holder.startswith(f'process {holder.pid} on {name}, since')


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_does_not_block(tmp_path, holder, number, capsys):
  holder.send_signal(number)
  holder.wait()
  part = tmp_path / 'w' / f'config.json.{os.uname().nodename}.71.part.json'
  for path in (part, tmp_path / 'w' / 'notes.part2'):
    path.write_text('half')
  assert run_lock.holder(tmp_path / 'w') == ''
  with run_lock.hold(tmp_path / 'w'):
    assert not capsys.readouterr().out  # No need to wait.
    assert sorted(os.listdir(tmp_path / 'w')) == ['.lock', 'notes.part2']
  with run_lock.hold(tmp_path / 'w'):
    pass


def of_another_machine(workdir, count=0):
  """Writes the lock file of a run on another machine."""
  workdir.mkdir(exist_ok=True)
  holder = {
    'host': 'elsewhere',
    'machine': 'other',
    'process': 7,
    'since': '2026-01-02T03:04:05Z',
    'token': '0',
    'count': count,
  }
  (workdir / run_lock.FILE).write_text(json.dumps(holder))


@pytest.fixture
def no_locks(monkeypatch):
  """A disk without locks."""

  def flock(*_):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.parametrize('disk', ['locks_of_this_machine', 'no_locks'])
def test_run_on_another_machine(tmp_path, monkeypatch, capsys, request, disk):
  if disk == 'no_locks':
    request.getfixturevalue('no_locks')
  monkeypatch.setattr(run_lock, 'WATCH_SECONDS', 0.3)
  of_another_machine(tmp_path)
  assert run_lock.holder(tmp_path).startswith('process 7 on elsewhere, since')
  with run_lock.hold(tmp_path):  # It gives no sign of life.
    out = capsys.readouterr().out
    assert 'was held by process 7 on elsewhere; waiting 0.3 s' in out

  of_another_machine(tmp_path)
  counts = iter(range(1, 100))
  sleep = lambda _: of_another_machine(tmp_path, next(counts))
  monkeypatch.setattr(run_lock.time, 'sleep', sleep)
  with pytest.raises(InputError, match='in use by process 7 on elsewhere'):
    with run_lock.hold(tmp_path):
      raise AssertionError


def test_holder_counts(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, 'BEAT_SECONDS', 0.01)
  with run_lock.hold(tmp_path):
    read = lambda: json.loads((tmp_path / run_lock.FILE).read_text())
    first = read()
    while read()['count'] <= first['count'] + 1:
      pass
    assert read() | {'count': 0} == first | {'count': 0}
    assert first['process'] == os.getpid()
  assert (tmp_path / run_lock.FILE).read_text() == ''


def take_over(workdir):
  of_another_machine(workdir)


def remove(workdir):
  (workdir / run_lock.FILE).unlink()


@pytest.mark.parametrize('happens', [take_over, remove, shutil.rmtree])
def test_holder_that_lost_its_folder_ends(tmp_path, monkeypatch, happens):
  monkeypatch.setattr(run_lock, 'BEAT_SECONDS', 0.01)
  with run_lock.hold(tmp_path / 'w') as check_held:
    check_held()
    happens(tmp_path / 'w')
    with pytest.raises(InputError, match='w was taken by another run, or its'):
      while True:
        check_held()
  # What is another's by now stays.
  there = (tmp_path / 'w' / run_lock.FILE).exists()
  assert there == (happens is take_over)


@pytest.mark.parametrize('place', ['_watch', '_write'])
def test_interrupted_start_holds_nothing(tmp_path, monkeypatch, place):
  def interrupt(*_):
    raise KeyboardInterrupt

  of_another_machine(tmp_path)
  monkeypatch.setattr(run_lock, 'WATCH_SECONDS', 0.01)
  with monkeypatch.context() as patch:
    patch.setattr(run_lock._Lock, place, interrupt)
    with pytest.raises(KeyboardInterrupt), run_lock.hold(tmp_path):
      raise AssertionError
  with run_lock.hold(tmp_path):
    pass


def test_locks_of_another_mount_are_not_trusted(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, 'WATCH_SECONDS', 0.3)
  with run_lock.hold(tmp_path):
    held = (tmp_path / run_lock.FILE).read_text()
  elsewhere = json.loads(held) | {'machine': f'{run_lock._machine()} 0'}
  (tmp_path / run_lock.FILE).write_text(json.dumps(elsewhere))
  watched = []
  monkeypatch.setattr(run_lock._Lock, '_watch', lambda _, x: watched.append(x))
  with run_lock.hold(tmp_path):
    assert watched == [elsewhere]


def test_folder_that_cannot_be_made_or_written(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot make this folder'):
    with run_lock.hold(tmp_path / 'file' / 'w'):
      raise AssertionError

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'pwrite', full)
  for _ in range(2):  # The first try leaves no lock behind.
    with pytest.raises(InputError, match=r'w/\.lock: No space left on dev'):
      with run_lock.hold(tmp_path / 'w'):
        raise AssertionError


def test_mistake_in_a_new_run_leaves_no_folder(tmp_path):
  for left in ([], ['notes']):
    with contextlib.suppress(KeyError):
      with run_lock.hold(tmp_path / 'w'):
        for name in left:
          (tmp_path / 'w' / name).touch()
        raise KeyError
    assert (tmp_path / 'w').exists() == bool(left)
