# SPDX-License-Identifier: Apache-2.0
import collections
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.training import checkpoint, metrics

CONFIG = {'seed': 3, 'log_every': 10, 'loss': {'margin': 0.5, 'kept': (1, 2)}}


@pytest.fixture
def state():
  return {
    'params': {'b': jnp.arange(4.0), 'a': jnp.ones((2, 3), jnp.int32)},
    'step': jnp.asarray(7, jnp.int32),
  }


def save(folder, state, steps):
  with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
    for step in steps:
      checkpoints.save(step, state)
    checkpoints.wait()
    return checkpoints.latest_step


def test_round_trip_keeps_the_newest(tmp_path, state):
  assert save(tmp_path, state, [1, 2, 3]) == 3
  step, saved = checkpoint.read(tmp_path)
  assert step == 3
  for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(state), strict=True):
    assert isinstance(a, np.ndarray) and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert checkpoint.read(tmp_path, 2)[0] == 2
  with pytest.raises(InputError, match='holds no step 1; it holds 2, 3'):
    checkpoint.read(tmp_path, 1)


def test_saving_a_step_again_is_an_error(tmp_path, state):
  save(tmp_path, state, [5])
  with pytest.raises(InputError, match='holds step 5, so step 4 would be lost'):
    save(tmp_path, state, [4])


def test_full_disk_is_reported_before_anything_is_written(
  tmp_path, state, monkeypatch
):
  save(tmp_path, state, [1])
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(100, 90, 10))
  with pytest.raises(InputError, match='10 bytes are free, 44 are') as error:
    save(tmp_path, state, [2])
  assert 'step 1 is kept' in str(error.value)
  assert 'free some space' in str(error.value)
  monkeypatch.undo()
  assert checkpoint.read(tmp_path)[0] == 1


def test_fingerprint_sees_names_shapes_dtypes_and_bytes(tmp_path, state):
  def fingerprint(name, state):
    save(tmp_path / name, state, [1])
    step, digest = checkpoint.fingerprint(tmp_path / name)
    assert step == 1
    return digest

  first = fingerprint('first', state)
  by_hand = hashlib.sha256()
  for name, array in (
    ("['params']['a']", state['params']['a']),
    ("['params']['b']", state['params']['b']),
    ("['step']", state['step']),
  ):
    array = np.asarray(array)
    by_hand.update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
    by_hand.update(array.tobytes())
  assert first == by_hand.hexdigest()

  swapped = {'step': state['step'], 'params': dict(state['params'])}
  assert fingerprint('swapped', swapped) == first
  for name, change in (
    ('b', lambda x: x + np.float32(1e-7)),
    ('b', lambda x: x.reshape(2, 2)),
    ('a', lambda x: x.view(np.float32)),
  ):
    changed = state['params'] | {name: change(state['params'][name])}
    folder = f'{name}{changed[name].dtype}{changed[name].ndim}'
    assert fingerprint(folder, state | {'params': changed}) != first
  renamed = {'c': state['params']['b'], 'a': state['params']['a']}
  assert fingerprint('renamed', state | {'params': renamed}) != first


def test_reads_only_the_fields_asked_for(tmp_path, state):
  save(tmp_path, state, [1])
  _, part = checkpoint.read(tmp_path, fields=('params',))
  assert part.keys() == {'params'}
  np.testing.assert_array_equal(part['params']['a'], state['params']['a'])


def test_folder_belongs_to_one_config_and_one_data(tmp_path):
  checkpoint.claim(tmp_path / 'w', CONFIG, 'f' * 64)
  # As read from JSON, and with another value of a field that changes no bit.
  again = json.loads(json.dumps(CONFIG)) | {'log_every': 20}
  checkpoint.claim(tmp_path / 'w', again, 'f' * 64)
  starts = json.loads((tmp_path / 'w' / 'manifest.json').read_text())['starts']
  assert len(starts) == 2 and starts[0]['versions']['jax'] == jax.__version__

  other = CONFIG | {'loss': {'margin': 0.4, 'kept': (1, 2)}, 'more': 1}
  with pytest.raises(InputError) as error:
    checkpoint.claim(tmp_path / 'w', other, 'f' * 64)
  assert 'loss.margin was 0.5, is 0.4; more was None, is 1' in str(error.value)
  with pytest.raises(InputError, match='other data'):
    checkpoint.claim(tmp_path / 'w', CONFIG, 'e' * 64)


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot make this folder'):
    checkpoint.claim(tmp_path / 'file' / 'w', CONFIG, 'f' * 64)


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
  lines = [f'{{"step": {n}}}' for n in (0, 1, 2, 3)] + ['{"step": 4, "lo']
  (tmp_path / metrics.FILE).write_text('\n'.join(lines))
  assert [row['step'] for row in metrics.read(tmp_path)] == [0, 1, 2, 3]
  with metrics.Writer(tmp_path, first_step=2, total_steps=9):
    assert [row['step'] for row in metrics.read(tmp_path)] == [0, 1, 2]
  with metrics.Writer(tmp_path, first_step=0, total_steps=9):
    assert metrics.read(tmp_path) == []
