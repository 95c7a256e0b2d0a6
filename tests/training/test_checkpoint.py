# SPDX-License-Identifier: Apache-2.0
import collections
import hashlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.training import checkpoint, metrics


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


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
  lines = [f'{{"step": {n}}}' for n in (0, 1, 2, 3)] + ['{"step": 4, "lo']
  (tmp_path / metrics.FILE).write_text('\n'.join(lines))
  assert [row['step'] for row in metrics.read(tmp_path)] == [0, 1, 2, 3]
  with metrics.Writer(tmp_path, first_step=2, total_steps=9):
    assert [row['step'] for row in metrics.read(tmp_path)] == [0, 1, 2]
  with metrics.Writer(tmp_path, first_step=0, total_steps=9):
    assert metrics.read(tmp_path) == []


def flip(path, byte, bit):
  data = bytearray(path.read_bytes())
  data[byte] ^= 1 << bit
  path.write_bytes(data)


def like(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.fixture
def damaged(tmp_path):
  """Steps 1 and 2 of incompressible values; a bit of step 2 is flipped."""
  values = np.random.default_rng(0).normal(size=(2, 3, 512))
  state = {'class_centers': jnp.asarray(values, jnp.float32)}
  save(tmp_path, state, [1, 2])
  files = (tmp_path / 'checkpoints' / '2').rglob('d/*')
  flip(max(files, key=lambda path: path.stat().st_size), 5000, 6)
  return tmp_path, state


MESSAGE = (
  r'/2 is damaged \(class_centers, block . is not what was saved\); '
  'remove it to resume from step 1, which is intact .*--step 1$'
)


def test_flipped_bit_is_found_when_a_step_is_restored(damaged):
  workdir, state = damaged
  with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
    with pytest.raises(InputError, match=MESSAGE):
      checkpoints.restore(like(state))
  with checkpoint.Checkpoints(workdir, keep=2, compare=False) as checkpoints:
    found = checkpoints.restore(like(state))['class_centers']
  assert (found != state['class_centers']).any()  # Without a word.


def test_flipped_bit_is_found_when_a_step_is_read(damaged):
  workdir, _ = damaged
  for read in (checkpoint.read, checkpoint.fingerprint):
    with pytest.raises(InputError, match=MESSAGE):
      read(workdir)
  assert checkpoint.read(workdir, 1)[0] == 1


def lose_everything(step):
  shutil.rmtree(step)
  step.mkdir()


def lose_markers(step):
  (step / '_CHECKPOINT_METADATA').unlink()


def cut_markers(step):
  path = step / '_CHECKPOINT_METADATA'
  path.write_text(path.read_text()[:40])


def lose_names(step):
  (step / 'default' / '_METADATA').unlink()


def lose_values(step):
  shutil.rmtree(step / 'default')


@pytest.mark.parametrize(
  'damage',
  [lose_everything, lose_markers, cut_markers, lose_names, lose_values],
)
def test_step_that_is_not_complete(tmp_path, state, damage, capsys):
  save(tmp_path, state, [1, 2])
  damage(tmp_path / 'checkpoints' / '2')
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    with pytest.raises(InputError, match='2 is damaged .* resume from step 1,'):
      checkpoints.restore(like(state))
  assert checkpoint.read(tmp_path)[0] == 1
  assert '/2 is not complete, and passed over' in capsys.readouterr().err
  with pytest.raises(InputError, match='holds no step 2; it holds 1$'):
    checkpoint.read(tmp_path, 2)
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(like(state))['step'] == 7


def test_only_step_that_is_damaged(tmp_path, state):
  save(tmp_path, state, [1])
  lose_values(tmp_path / 'checkpoints' / '1')
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    with pytest.raises(InputError, match='no other: remove it to start again'):
      checkpoints.restore(like(state))
  with pytest.raises(InputError, match='holds no complete checkpoint'):
    checkpoint.read(tmp_path)


@pytest.mark.parametrize(
  'key', ['init_timestamp_nsecs', 'custom_metadata', 'checksums', 'run']
)
def test_damaged_key_that_closes_the_folder_is_named(tmp_path, state, key):
  save(tmp_path, state, [1, 2])
  path = tmp_path / 'checkpoints' / '2' / '_CHECKPOINT_METADATA'
  path.write_text(path.read_text().replace(f'"{key}"', f'"x{key[1:]}"'))
  message = r'2.* damaged .*remove .*checkpoints/2 to |/2 is not complete'
  for read in (checkpoint.read, checkpoint.fingerprint):
    try:
      assert read(tmp_path)[0] == 1  # Passed over, with a warning.
    except InputError as error:
      assert re.search(message, str(error)), error
  with pytest.raises(InputError, match=r'2(/_CHECK\w+)? is damaged'):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
      checkpoints.restore(like(state))


def hide_a_leaf(step):
  path = step / 'default' / '_METADATA'
  path.write_text(path.read_text().replace('"b"', '"a"'))


def lose_a_leaf(step):
  path = step / 'default' / '_METADATA'
  content = json.loads(path.read_text())
  for tree in (content['tree_metadata'],):
    for name in [name for name in tree if "'step'" in name]:
      del tree[name]
  path.write_text(json.dumps(content))


@pytest.mark.parametrize('damage', [hide_a_leaf, lose_a_leaf])
def test_leaf_that_is_hidden_is_missed(tmp_path, state, damage):
  save(tmp_path, state, [1, 2])
  damage(tmp_path / 'checkpoints' / '2')
  for read in (checkpoint.read, checkpoint.fingerprint):
    with pytest.raises(InputError, match='checkpoints/2 (is damaged|holds no)'):
      read(tmp_path)


@pytest.mark.parametrize(
  ('name', 'leaf', 'message'),
  [
    ('b', jnp.zeros(4, jnp.bfloat16), r'float32\[4\] for params/b.*bfloat16'),
    ('b', jnp.zeros(5), r'float32\[4\] for params/b, .*float32\[5\]'),
    ('c', jnp.zeros(4), r'nothing for params/c, .*float32\[4\]'),
  ],
)
def test_nothing_is_cast_or_left_out(tmp_path, state, name, leaf, message):
  save(tmp_path, state, [1])
  other = state | {'params': state['params'] | {name: leaf}}
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    with pytest.raises(InputError, match=message):
      checkpoints.restore(like(other))


def test_step_without_checksums_is_read_with_a_warning(tmp_path, state, capsys):
  with checkpoint.Checkpoints(tmp_path / 'off', keep=2, compare=False) as off:
    off.save(1, state)
  checkpoint.read(tmp_path / 'off')
  assert not capsys.readouterr().err  # It was asked for.
  save(tmp_path / 'old', state, [1])
  path = tmp_path / 'old' / 'checkpoints' / '1' / '_CHECKPOINT_METADATA'
  content = json.loads(path.read_text())
  path.write_text(json.dumps(content | {'custom_metadata': {}}))
  checkpoint.read(tmp_path / 'old')
  assert 'was saved without checksums' in capsys.readouterr().err
