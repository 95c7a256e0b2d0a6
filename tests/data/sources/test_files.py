# SPDX-License-Identifier: Apache-2.0
"""Positioned reads, local and remote, and the cached index."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elasticface_jax.data.sources import files, index
from elasticface_jax.data.sources.files import BlockCache, LocalFile, RemoteFile
from elasticface_jax.errors import InputError


@pytest.fixture
def content(tmp_path):
  data = np.random.default_rng(0).bytes(2 * files.BLOCK_BYTES + 12_345)
  (tmp_path / 'data').write_bytes(data)
  return data


def open_both(tmp_path):
  # TensorFlow reads file:// as it reads gs://, through the same layer.
  return (
    LocalFile(tmp_path / 'data'),
    RemoteFile(f'file://{tmp_path}/data', BlockCache()),
  )


def test_reads_are_those_of_the_file(tmp_path, content):
  block = files.BLOCK_BYTES
  for file in open_both(tmp_path):
    assert file.size == len(content)
    for offset in (0, 1, block - 3, block, 2 * block + 12_000, len(content)):
      for count in (0, 1, 10, 5_000, block, 3 * block):
        assert file.read(count, offset) == content[offset : offset + count]


def test_threads_read_the_same(tmp_path, content):
  offsets = np.random.default_rng(1).integers(0, len(content), 400).tolist()
  for file in open_both(tmp_path):
    with ThreadPoolExecutor(8) as pool:
      got = list(pool.map(lambda offset, f=file: f.read(99, offset), offsets))
    assert got == [content[offset : offset + 99] for offset in offsets]


def test_missing_files_are_named(tmp_path):
  with pytest.raises(InputError, match='nothing: No such file'):
    LocalFile(tmp_path / 'nothing')
  with pytest.raises(InputError, match='nothing'):
    RemoteFile(f'file://{tmp_path}/nothing', BlockCache())


def test_failing_disk_names_the_file(tmp_path, content, monkeypatch):
  file = LocalFile(tmp_path / 'data')

  def fail(*_):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(os, 'pread', fail)
  with pytest.raises(InputError, match='data: Input/output error'):
    file.read(10, 0)


def test_a_block_is_fetched_once_and_the_last_ones_are_kept():
  fetched, gate = [], threading.Event()

  def fetch(key):
    gate.wait()
    fetched.append(key)
    return str(key).encode()

  cache = BlockCache(max_blocks=3)
  get = lambda key: cache.get(key, lambda: fetch(key))
  with ThreadPoolExecutor(8) as pool:
    asked = [pool.submit(get, 5) for _ in range(8)]
    gate.set()
    assert {future.result() for future in asked} == {b'5'}
  assert fetched == [5]
  for key in (6, 7, 5, 8, 5, 6):  # 8 puts 6 out, then 6 puts 7 out.
    assert get(key) == str(key).encode()
  assert fetched == [5, 6, 7, 8, 6]


def test_a_failed_fetch_is_tried_again():
  cache = BlockCache()
  with pytest.raises(OSError, match='lost'):
    cache.get(1, lambda: (_ for _ in ()).throw(OSError('lost')))
  assert cache.get(1, lambda: b'there') == b'there'


class Built:
  """Function that builds an index and counts its calls."""

  def __init__(self):
    self.times = 0

  def __call__(self):
    self.times += 1
    return {'offsets': np.arange(7), 'layout': np.array('a text')}


def kept(folders, build, stamp=''):
  return index.Kept(folders, {'form': stamp}).arrays(index.NAME, build)


def test_an_index_is_built_once_for_a_stamp(tmp_path):
  build = Built()
  for stamp, times in (('a', 1), ('a', 1), ('b', 2), ('b', 2), ('a', 3)):
    arrays = kept([tmp_path], build, stamp)
    assert build.times == times
    assert set(arrays) == {'offsets', 'layout'}
    np.testing.assert_array_equal(arrays['offsets'], np.arange(7))
    assert str(arrays['layout']) == 'a text'
  assert os.listdir(tmp_path) == [index.NAME]


def test_a_damaged_index_is_built_again(tmp_path):
  build = Built()
  kept([tmp_path], build)
  path = tmp_path / index.NAME
  intact = path.read_bytes()
  rng = np.random.default_rng(0)
  for _ in range(200):
    damaged = bytearray(intact)
    for at in rng.integers(0, len(intact), 3):
      damaged[at] ^= 1 << rng.integers(0, 8)
    path.write_bytes(damaged[: rng.integers(1, len(intact) + 1)])
    arrays = kept([tmp_path], build)
    np.testing.assert_array_equal(arrays['offsets'], np.arange(7))
    assert set(arrays) == {'offsets', 'layout'}
  assert build.times > 100


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_read_only_data_use_the_other_folder(tmp_path):
  data, other = tmp_path / 'data', tmp_path / 'other'
  data.mkdir()
  data.chmod(stat.S_IRUSR | stat.S_IXUSR)
  assert_kept_in(other, data)


def test_data_that_cannot_be_written_use_the_other_folder(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  assert_kept_in(tmp_path / 'other', tmp_path / 'file' / 'data')


def assert_kept_in(other, data):
  build = Built()
  for _ in range(2):
    kept([data, other], build)
  assert build.times == 1
  assert (other / index.NAME).is_file()
  kept([data], build)  # Nowhere to keep it: built, and used.
  assert build.times == 2
