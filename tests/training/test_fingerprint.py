# SPDX-License-Identifier: Apache-2.0
"""One fingerprint for a run on any devices and processes, killed or not."""

import signal
import time

import pytest

# A run of the size that the promise is made for.
RUN = {
  'total_steps': 20,
  'group_size': 8,
  'data__batch_size': 64,
  'data__synthetic__num_images': 256,
  'model__width': 4,
  'model__embedding_dim': 32,
  'head__num_blocks': 8,
  'checkpoint_every': 5,
  'eval__pairs': '()',
}


def finish(process, code=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, err[-2000:]
  return out


def wait_for_checkpoint(folder, step, process):
  while not (folder / 'checkpoints' / str(step)).is_dir():
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)


def printed(out):
  """Returns the fingerprint that a run prints at its end."""
  return out.strip().splitlines()[-1].removeprefix('fingerprint of step 20: ')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture
def expected(folder, train, elasticface):
  """The fingerprint of an uninterrupted run on one device."""
  if not (folder / '1').exists():
    finish(train(folder / '1', 1, **RUN))
  fingerprint = finish(elasticface('fingerprint', folder / '1')).strip()
  assert len(fingerprint) == 64
  return fingerprint


@pytest.mark.slow
def test_of_any_device_count(folder, train, elasticface, expected):
  for devices in (4, 8):  # And 2 in what follows, up to the kill.
    out = finish(train(folder / str(devices), devices, **RUN))
    assert printed(out) == expected, devices
  # Another step of the same run is another state.
  earlier = elasticface('fingerprint', folder / '1', '--step', 15)
  assert finish(earlier).strip() != expected


@pytest.mark.slow
def test_after_a_kill_and_on_another_device_count(folder, train, expected):
  # Killed at any moment after a checkpoint.
  killed = folder / 'killed'
  process = train(killed, 2, **RUN)
  wait_for_checkpoint(killed, 5, process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (killed / 'checkpoints' / '20').exists()
  out = finish(train(killed, 8, **RUN))
  assert 'going on from step' in out
  assert printed(out) == expected

  # Each metric is written once, killed or not.
  rows = [(folder / f / 'metrics.jsonl').read_text() for f in ('1', 'killed')]
  steps = [[line.split(',')[0] for line in r.splitlines()] for r in rows]
  assert steps[0] == steps[1] and len(steps[0]) == RUN['total_steps']


@pytest.mark.slow
def test_of_a_loss_with_a_state_that_resumes_elsewhere(tmp_path, train):
  run = {'loss__name': 'adaface', 'eval__pairs': '()'}
  at_once = finish(train(tmp_path / 'at_once', 1, **run))
  finish(train(tmp_path / 'parts', 2, **run, total_steps=2))
  parts = finish(train(tmp_path / 'parts', 4, **run))
  assert 'going on from step 2' in parts
  assert at_once.splitlines()[-1] == parts.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'devices'), [(2, 2), (4, 1)])
def test_of_several_processes(
  folder, train_together, expected, processes, devices
):
  workdir = folder / f'{processes} x {devices}'
  run = train_together(workdir, processes, devices, **RUN)
  outs = [finish(process) for process in run]
  assert printed(outs[0]) == expected
  # The others print nothing; all their output comes from the runtime.
  assert not any('step' in out for out in outs[1:])
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == RUN['total_steps']


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_after_the_loss_of_a_process(
  folder, train, train_together, expected, victim
):
  workdir = folder / f'lost {victim}'
  run = train_together(workdir, 2, 2, **RUN)
  wait_for_checkpoint(workdir, 5, run[victim])
  run[victim].send_signal(signal.SIGKILL)
  start = time.monotonic()
  _, err = run[1 - victim].communicate(timeout=120)
  assert run[1 - victim].returncode not in (0, 2)
  # Our message where a sum over processes fails, else that of the runtime.
  assert 'another process was lost' in err or 'another task died' in err, err
  assert time.monotonic() - start < 90  # A heartbeat counts 30 s.
  assert not (workdir / 'checkpoints' / '20').exists()
  out = finish(train(workdir, 1, **RUN))
  assert 'going on from step' in out
  assert printed(out) == expected
