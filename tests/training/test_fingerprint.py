# SPDX-License-Identifier: Apache-2.0
"""One fingerprint for a run on any devices and processes, killed or not."""

import signal
import time

import pytest

STEPS = 12
RUN = {
  'total_steps': STEPS,
  'checkpoint_every': 3,
  'eval__pairs': '()',
  'augment__resized_crop': 0.3,
  'augment__crop': 0.3,
  'augment__low_resolution': 0.5,
  'augment__photometric': 0.5,
  'augment__grey': 0.3,
  'augment__blur': 0.5,
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
  last = out.strip().splitlines()[-1]
  return last.removeprefix(f'fingerprint of step {STEPS}: ')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture
def expected(folder, train_here, run_here):
  """The fingerprint of an uninterrupted run on one device."""
  if not (folder / '1').exists():
    assert train_here(folder / '1', 1, **RUN).code == 0
  fingerprint = run_here('fingerprint', folder / '1').out.strip()
  assert len(fingerprint) == 64
  return fingerprint


@pytest.mark.slow
def test_of_any_device_count(folder, train_here, run_here, expected):
  # And 2 in what follows, up to the kill. An evaluation, on all devices, moves
  # no bits.
  verified = {'eval__pairs': "('synthetic',)", 'eval_every': 5}
  for devices, more in ((4, {}), (8, verified)):
    ended = train_here(folder / str(devices), devices, **RUN | more)
    assert printed(ended.out) == expected, devices
  assert 'step 5  synthetic: accuracy' in ended.out
  # Another step of the same run is another state.
  earlier = run_here('fingerprint', folder / '1', '--step', STEPS - 3)
  assert len(earlier.out.strip()) == 64 and earlier.out.strip() != expected


@pytest.mark.slow
def test_after_a_kill_and_on_another_device_count(
  folder, train, train_here, expected
):
  # Killed at any moment after a checkpoint.
  killed = folder / 'killed'
  process = train(killed, 2, **RUN)
  wait_for_checkpoint(killed, 3, process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (killed / 'checkpoints' / str(STEPS)).exists()
  ended = train_here(killed, 8, **RUN)
  assert 'resuming from step' in ended.out
  assert printed(ended.out) == expected

  # Each metric is written once, killed or not.
  rows = [(folder / f / 'metrics.jsonl').read_text() for f in ('1', 'killed')]
  steps = [[line.split(',')[0] for line in r.splitlines()] for r in rows]
  assert steps[0] == steps[1] and len(steps[0]) == STEPS


@pytest.mark.slow
def test_of_a_loss_with_a_state_that_resumes_elsewhere(tmp_path, train_here):
  # And of AdamW, whose bias correction and rate go on with the step.
  run = {
    'loss__name': 'adaface',
    'eval__pairs': '()',
    'optim__name': 'adamw',
    'optim__warmup_steps': 1,
    'optim__decay_steps': '()',
    'optim__decay_end': 4,
  }
  uninterrupted = train_here(tmp_path / 'uninterrupted', 1, **run)
  assert train_here(tmp_path / 'parts', 1, **run, total_steps=2).code == 0
  parts = train_here(tmp_path / 'parts', 4, **run)
  assert 'resuming from step 2' in parts.out
  last = [ended.out.splitlines()[-1] for ended in (uninterrupted, parts)]
  assert last[0] == last[1] and 'fingerprint of step 4' in last[0]


@pytest.mark.slow
def test_of_several_processes(folder, train_together, expected):
  workdir = folder / 'four'
  run = train_together(workdir, 4, 1, **RUN)
  outs = [finish(process) for process in run]
  assert printed(outs[0]) == expected
  # The others print nothing; all their output comes from the runtime.
  assert not any('step' in out for out in outs[1:])
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_after_the_loss_of_a_process(
  folder, train_here, train_together, expected, victim
):
  workdir = folder / f'lost {victim}'
  run = train_together(workdir, 2, 2, **RUN)
  wait_for_checkpoint(workdir, 3, run[victim])
  run[victim].send_signal(signal.SIGKILL)
  start = time.monotonic()
  _, err = run[1 - victim].communicate(timeout=120)
  assert run[1 - victim].returncode not in (0, 2)
  # Our message where a sum over processes fails, else that of the runtime.
  assert 'another process was lost' in err or 'another task died' in err, err
  assert time.monotonic() - start < 90  # A heartbeat counts 30 s.
  assert not (workdir / 'checkpoints' / str(STEPS)).exists()
  ended = train_here(workdir, 1, **RUN)
  assert 'resuming from step' in ended.out
  assert printed(ended.out) == expected
