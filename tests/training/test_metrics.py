# SPDX-License-Identifier: Apache-2.0
"""Metrics: means that a restart does not change, and what a user sees."""

import json
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from elasticface_jax.errors import InputError
from elasticface_jax.training import events, metrics

from .. import clocks, terminals


@pytest.fixture
def clock(monkeypatch):
  clock = clocks.Clock()
  monkeypatch.setattr(metrics.time, 'perf_counter', clock)
  return clock


def measured(step):
  return {
    'loss': 10 / step + 0.1,
    'accuracy': (step * 0.37) % 1,
    'learning_rate': 0.1 if step < 6 else 0.01,
  }


def train(workdir, first, last, *, every=4, total=12, save=(), clock=None):
  """Logs steps as the training loop does."""
  workdir.mkdir(exist_ok=True)
  with metrics.Writer(workdir, first_step=first, total_steps=total) as writer:
    writer.compiling()
    for step in range(first + 1, last + 1):
      if clock:
        clock.pass_(60 if step == first + 1 else 0.5)
      log = step % every == 0 or step in (1, total)
      writer.step(step, measured(step), batch_size=8, log=log)
      if step in save:
        writer.keep(step)
        (workdir / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)


def rows_without_timings(workdir):
  rows = metrics.read(workdir)
  return [
    {k: v for k, v in row.items() if k != 'images_per_second'} for row in rows
  ]


def test_rows_are_means_since_the_row_before(tmp_path):
  train(tmp_path, 0, 12)
  rows = rows_without_timings(tmp_path)
  assert [row['step'] for row in rows] == [1, 4, 8, 12]
  for row, steps in zip(
    rows, ([1], [2, 3, 4], range(5, 9), range(9, 13)), strict=True
  ):
    for name in ('loss', 'accuracy'):
      mean = sum(measured(step)[name] for step in steps) / len(steps)
      assert row[name] == pytest.approx(mean, abs=1e-15)
    # A mean over its drop would be a rate that no step had.
    assert row['learning_rate'] == measured(row['step'])['learning_rate']


@pytest.mark.parametrize('checkpoints', [(6,), (3, 6), (6, 8), (4,), (3, 7, 9)])
@pytest.mark.parametrize('killed_at', [9, 10, 11])
def test_restarts_leave_the_same_file(tmp_path, checkpoints, killed_at):
  train(tmp_path / 'whole', 0, 12)
  # Killed after steps that are done again; then stopped after each checkpoint.
  parts = tmp_path / 'parts'
  train(parts, 0, killed_at, save=checkpoints)
  first = checkpoints[0]
  for step in (*checkpoints[1:], 12):
    train(parts, first, step, save=checkpoints)
    first = step
  assert rows_without_timings(parts) == rows_without_timings(tmp_path / 'whole')


def test_a_new_run_takes_nothing_of_one_without_a_checkpoint(tmp_path):
  train(tmp_path, 0, 7, save=(3, 6))
  train(tmp_path, 0, 12)
  train(tmp_path / 'whole', 0, 12)
  names = [row['step'] for row in metrics.read(tmp_path)]
  assert names == [1, 4, 8, 12]
  assert rows_without_timings(tmp_path) == rows_without_timings(
    tmp_path / 'whole'
  )


@pytest.mark.parametrize('damage', [b'', b'\0\0\0', b'{"3": {"ste'])
def test_sums_lost_in_a_crash_of_the_machine(tmp_path, damage):
  train(tmp_path, 0, 7, save=(6,))
  (tmp_path / metrics.PARTIAL).write_bytes(damage)
  train(tmp_path, 6, 12)
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 4, 8, 12]


def test_read_leaves_out_bytes_that_are_no_text(tmp_path):
  train(tmp_path, 0, 12)
  with (tmp_path / metrics.FILE).open('ab') as file:
    file.write(b'{"step": 13, "loss\xff\xfe\x00')
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 4, 8, 12]


def speeds(workdir):
  return {
    row['step']: row.get('images_per_second') for row in metrics.read(workdir)
  }


def test_speed_leaves_out_the_compiler(tmp_path, clock, capsys):
  train(tmp_path, 0, 12, clock=clock)
  assert speeds(tmp_path) == {1: None, 4: 16, 8: 16, 12: 16}
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'compiling the training step'
  assert lines[1] == 'step 1/12  loss 10.100  accuracy 0.370'
  assert lines[2].endswith('images/s 16  0:00:04 left')


@pytest.mark.parametrize(('first', 'none'), [(3, 4), (7, 8), (6, None)])
def test_speed_leaves_out_the_compiler_after_a_restart(
  tmp_path, clock, first, none
):
  train(tmp_path, 0, first, save=(first,), clock=clock)
  train(tmp_path, first, 12, clock=clock)
  found = speeds(tmp_path)
  assert found.pop(1) is None and found.pop(none, None) is None
  assert set(found.values()) == {16}


def test_speed_leaves_out_evaluations(tmp_path, clock):
  with metrics.Writer(tmp_path, first_step=0, total_steps=4) as writer:
    writer.evaluation(0, 'lfw', {'seconds': 30.0})  # Before the first step.
    for step in range(1, 5):
      clock.pass_(0.5)
      writer.step(step, measured(step), batch_size=8, log=step in (2, 4))
      clock.pass_(20)
      writer.evaluation(step, 'lfw', {'seconds': 20.0})
  trained = [r for r in metrics.read(tmp_path) if 'loss' in r]
  assert [r['images_per_second'] for r in trained] == [16, 16]
  assert metrics.evaluated(tmp_path, 2) == {'lfw'}
  assert metrics.evaluated(tmp_path, 5) == set()


STEPS = """
import sys, time
from pathlib import Path
from elasticface_jax.training import metrics

with metrics.Writer(Path(sys.argv[1]), first_step=0, total_steps=3) as writer:
  writer.compiling()
  time.sleep(0.15)
  for step in (1, 2, 3):
    values = {'loss': 10.0 - step, 'accuracy': 0.5}
    writer.step(step, values, batch_size=8, log=step != 2)
    time.sleep(0.15)
"""


@pytest.mark.parametrize(('rows', 'columns'), [(0, 0), (0, 80), (2, 80)])
def test_lines_on_a_terminal_without_rows(tmp_path, rows, columns):
  shown = terminals.run_python(STEPS, tmp_path, rows=rows, columns=columns)
  lines = shown.splitlines()
  assert lines[0] == 'compiling the training step'
  assert lines[1].startswith('step 1/3  loss 9.000')
  assert lines[2].startswith('step 3/3  loss 7.500') and 'left' in lines[2]
  assert len(lines) == 3


@pytest.mark.parametrize(('rows', 'columns'), [(40, 100), (24, 80)])
def test_bar_on_a_terminal(tmp_path, rows, columns):
  shown = terminals.run_python(STEPS, tmp_path, rows=rows, columns=columns)
  frames = shown.split('\r')
  assert any(f.startswith('compiling:   0%') for f in frames)
  # Each step has its own figures, not those of the row before.
  for text in ('1/3 [00:00, loss 9.000', '2/3 [00:00, loss 8.000', 'images/s'):
    assert text in shown
  assert 'compiling' not in frames[-2]


def test_lines_reach_a_pipe_at_once(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', STEPS + 'time.sleep(60)', str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    env={k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'},
  )
  try:
    # At its end it would write them anyway.
    assert select.select([process.stdout], [], [], 30)[0]
    assert process.stdout.readline() == 'compiling the training step\n'
    assert process.stdout.readline().startswith('step 1/3')
  finally:
    process.kill()
    process.communicate()


def events_in(folder):
  """Yields the events of all files, by their format."""
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size, crc = struct.unpack('<QI', data[:12])
      assert crc == masked_crc32c(data[:8])
      yield Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]


def test_events(tmp_path):
  folder = tmp_path / 'tensorboard'
  with metrics.Writer(tmp_path, first_step=0, total_steps=9):
    pass
  assert not folder.exists()  # Nothing is written: no file.
  train(tmp_path, 0, 6, save=(6,))
  with metrics.Writer(tmp_path, first_step=6, total_steps=6):
    pass
  assert len(list(folder.iterdir())) == 1
  train(tmp_path, 6, 12)
  first, second = sorted(folder.iterdir())
  assert first.name.endswith('.from_step_0')
  assert second.name.endswith('.from_step_6')
  found = list(events_in(folder))
  starts = [e.step for e in found if e.HasField('session_log')]
  assert starts == [1, 7]
  tags = {
    (e.step, v.tag): v.simple_value for e in found for v in e.summary.value
  }
  steps = {step for step, tag in tags if tag == 'train/loss'}
  assert steps == {1, 4, 8, 12}
  losses = {r['step']: r['loss'] for r in metrics.read(tmp_path)}
  assert tags[8, 'train/loss'] == pytest.approx(losses[8])


def test_a_full_disk_ends_in_one_line(tmp_path):
  old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(InputError, match='cannot be written .* make room'):
      with metrics.Writer(tmp_path, first_step=0, total_steps=9) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        for step in range(1, 2000):
          writer.evaluation(step, 'lfw', {'accuracy': 0.5})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, old)
  assert len(metrics.read(tmp_path)) > 10


def test_a_disk_that_is_full_for_events_alone(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  # A thread of its own would die, and the run would wait for it for ever.
  monkeypatch.setattr(events, '_write', full)
  with pytest.raises(InputError, match='cannot be written .No space left'):
    train(tmp_path, 0, 12)


def test_sums_on_a_full_disk_are_named(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  with metrics.Writer(tmp_path, first_step=0, total_steps=9) as writer:
    writer.step(1, measured(1), batch_size=8, log=False)
    monkeypatch.setattr(json, 'dumps', full)
    with pytest.raises(InputError, match=f'{metrics.PARTIAL}: No space left'):
      writer.keep(1)


def kept_sums(workdir):
  path = workdir / metrics.PARTIAL
  return sorted(map(int, json.loads(path.read_text()))) if path.exists() else []


def test_sums_of_steps_that_are_done_again_are_dropped(tmp_path):
  train(tmp_path, 0, 11, save=(2, 6, 10))
  assert kept_sums(tmp_path) == [2, 6, 10]
  # At other intervals, step 6 ends one: its old sums must not be in the next.
  train(tmp_path, 2, 7, every=3, save=(6,))
  assert kept_sums(tmp_path) == [2]
  train(tmp_path, 6, 9, every=3)
  (row,) = [row for row in metrics.read(tmp_path) if row['step'] == 9]
  mean = sum(measured(step)['loss'] for step in (7, 8, 9)) / 3
  assert row['loss'] == pytest.approx(mean, abs=1e-15)
  train(tmp_path, 0, 3)
  assert kept_sums(tmp_path) == []


def test_sums_of_checkpoints_that_are_gone_are_dropped(tmp_path):
  train(tmp_path, 0, 11, save=(2, 5, 6, 7))
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  train(tmp_path, 7, 11, save=(9, 10))
  assert kept_sums(tmp_path) == [5, 6, 7, 9, 10]


@pytest.mark.parametrize(
  'line', ['# note', 'null', '5', '[]', '{}', '{"step": "two"}']
)
def test_line_that_is_no_record_is_named_and_not_dropped(tmp_path, line):
  lines = ['{"step": 1}', line, '{"step": 2}']
  path = tmp_path / metrics.FILE
  path.write_text('\n'.join(lines))
  with pytest.raises(InputError, match=f'{metrics.FILE}: line 2 is no record'):
    metrics.Writer(tmp_path, first_step=2, total_steps=3)
  assert path.read_text() == '\n'.join(lines)
  path.write_text('\n'.join(lines[:2]))  # Cut off by a crash.
  assert metrics.read(tmp_path) == [{'step': 1}]
