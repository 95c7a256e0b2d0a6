# SPDX-License-Identifier: Apache-2.0
"""A run has one fingerprint: any device count, killed or not."""

import signal
import time

import pytest

# The size that the promise is made for.
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
DEVICES = (1, 2, 4, 8)


def finish(process, code=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, err[-2000:]
  return out


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.mark.slow
def test_same_for_any_device_count_and_after_kill(folder, train, elasticface):
  for devices in DEVICES:
    finish(train(folder / str(devices), devices, **RUN))

  # Killed at a moment that the run does not know, after a checkpoint; it goes
  # on with another number of devices.
  killed = folder / 'killed'
  process = train(killed, 2, **RUN)
  while not (killed / 'checkpoints' / '5').is_dir():
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (killed / 'checkpoints' / '20').exists()
  assert 'going on from step' in finish(train(killed, 8, **RUN))

  prints = {
    str(name): finish(elasticface('fingerprint', folder / str(name))).strip()
    for name in (*DEVICES, 'killed')
  }
  assert len(set(prints.values())) == 1, prints
  assert len(prints['1']) == 64

  # Another step of the same run is another state.
  earlier = elasticface('fingerprint', folder / '1', '--step', 15)
  assert finish(earlier).strip() != prints['1']

  # Each metric is written once, killed or not.
  rows = [(folder / f / 'metrics.jsonl').read_text() for f in ('8', 'killed')]
  steps = [[line.split(',')[0] for line in r.splitlines()] for r in rows]
  assert steps[0] == steps[1] and len(steps[0]) == RUN['total_steps']
