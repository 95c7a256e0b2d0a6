# SPDX-License-Identifier: Apache-2.0
"""The stand-in for remote storage: right bytes, real latency, exact counts."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from .slow_storage import slow_storage

NUM_RECORDS = 40
_FRAME = 16  # Bytes of TFRecord around a record.


@pytest.fixture
def storage():
  try:
    return slow_storage.start()
  except slow_storage.CannotCompile as error:
    pytest.skip(str(error))


@pytest.fixture(scope='module')
def records():
  rng = np.random.default_rng(0)
  return [rng.bytes(length) for length in rng.integers(100, 900, NUM_RECORDS)]


@pytest.fixture(scope='module')
def shard(tmp_path_factory, records):
  path = tmp_path_factory.mktemp('slow storage') / 'faces [1]' / 'a.tfrecord'
  path.parent.mkdir()
  with tf.io.TFRecordWriter(str(path)) as out:
    for record in records:
      out.write(record)
  return path


@pytest.fixture(scope='module')
def offsets(records):
  lengths = (len(record) + _FRAME for record in records)
  return [0, *itertools.accumulate(lengths)]


def at(path, offset, buffer_size):
  """The records of a shard from a byte on."""
  variant = tf.raw_ops.TFRecordDatasetV2(
    filenames=[slow_storage.address(path)],
    compression_type='',
    buffer_size=buffer_size,
    byte_offsets=[offset],
  )
  return tf.data.experimental.from_variant(
    variant, tf.TensorSpec([], tf.string)
  )


def ranges(storage):
  return [(r.offset, r.asked, r.got) for r in storage.ranges()]


def test_files_are_those_of_the_disk(storage, shard):
  address, content = slow_storage.address(shard), shard.read_bytes()
  with tf.io.gfile.GFile(address, 'rb') as file:
    assert file.read() == content
    file.seek(1000)
    assert file.read(77) == content[1000:1077]
  assert tf.io.read_file(address).numpy() == content
  assert {r.inode for r in storage.ranges()} == {shard.stat().st_ino}
  found = tf.io.gfile.stat(address)
  assert found.length == len(content)
  assert found.mtime_nsec == shard.stat().st_mtime_ns
  folder = slow_storage.address(shard.parents[1])
  assert tf.io.gfile.listdir(folder) == ['faces [1]']
  assert tf.io.gfile.isdir(folder) and not tf.io.gfile.isdir(address)
  assert tf.io.gfile.exists(address)
  assert not tf.io.gfile.exists(address + 'x')
  assert tf.io.gfile.glob(f'{folder}/faces*/*.tfrecord') == [address]
  assert tf.io.gfile.glob(f'{folder}/none*') == []


def test_what_it_has_not(storage, shard):
  address = slow_storage.address(shard)
  with pytest.raises(tf.errors.NotFoundError, match='No such file'):
    tf.io.read_file(address + 'x')
  with pytest.raises(tf.errors.NotFoundError, match='No such file'):
    tf.io.gfile.stat(address + 'x')
  with pytest.raises(tf.errors.FailedPreconditionError, match='directory'):
    tf.io.read_file(slow_storage.address(shard.parent))
  with pytest.raises(tf.errors.UnimplementedError):
    tf.io.gfile.remove(address)
  with pytest.raises(tf.errors.UnimplementedError):
    tf.io.write_file(address, 'text')
  assert shard.exists()


def test_records_are_those_of_the_disk(storage, shard, records, offsets):
  stock = tf.data.TFRecordDataset([slow_storage.address(shard)])
  assert [*stock.as_numpy_iterator()] == records
  assert storage.counts().stats == 0

  storage.reset()
  start, end = offsets[5], offsets[13]
  numbers = tf.data.Dataset.range(1)
  run = numbers.flat_map(lambda _: at(shard, start, end - start).take(8))
  assert [*run.as_numpy_iterator()] == records[5:13]
  # It looks whether there is a byte before the place that it seeks.
  assert ranges(storage) == [
    (start - 1, 1, 1),
    (start, end - start, end - start),
  ]


def test_a_request_takes_its_time_and_is_counted(storage, shard):
  address, latency = slow_storage.address(shard), 0.5
  storage.set_latency(latency)
  begin = time.monotonic()
  tf.io.gfile.stat(address)
  at(shard, 0, 1 << 20).take(1).get_single_element()
  tf.io.gfile.glob(address + '*')
  # Three requests; the file was opened for nothing.
  assert 3 * latency <= time.monotonic() - begin < 4 * latency
  size = shard.stat().st_size
  assert ranges(storage) == [(0, 1 << 20, size)]
  assert storage.counts() == (1, 1, 1, 1, size, 1)


def test_a_signal_does_not_shorten_it(storage, shard):
  storage.set_latency(0.5)
  before = signal.signal(signal.SIGUSR1, lambda *_: None)
  timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
  timer.start()
  try:
    begin = time.monotonic()
    tf.io.gfile.exists(slow_storage.address(shard))
    assert time.monotonic() - begin >= 0.5
  finally:
    timer.join()
    signal.signal(signal.SIGUSR1, before)


def test_requests_overlap(storage, shard, records, offsets):
  pairs = np.diff(offsets), np.array(offsets[:-1])
  numbers = tf.data.Dataset.from_tensor_slices(pairs)
  read = lambda size, start: at(shard, start, size).take(1).get_single_element()
  found = numbers.map(read, num_parallel_calls=20, deterministic=True)
  iterator = iter(found)
  begin = time.monotonic()
  assert [record.numpy() for record in iterator] == records
  seconds = time.monotonic() - begin
  counts = storage.counts()
  # Two requests a record, and none to seek the first; in series 4 seconds.
  assert counts.reads == 2 * NUM_RECORDS - 1 and counts.peak == 20
  assert 4 * slow_storage.SECONDS <= seconds < 2


def test_without_a_compiler(monkeypatch, tmp_path):
  monkeypatch.setenv('CC', 'no-such-compiler')
  with pytest.raises(slow_storage.CannotCompile, match='no C compiler'):
    slow_storage.compile_to(tmp_path)
  monkeypatch.setenv('CC', 'false')
  with pytest.raises(slow_storage.CannotCompile, match='cannot build'):
    slow_storage.compile_to(tmp_path)
