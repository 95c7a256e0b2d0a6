# SPDX-License-Identifier: Apache-2.0
"""Shards as training reads them, intact and damaged."""

import numpy as np
import pytest
import tensorflow as tf

from elasticface_jax import data
from elasticface_jax.data.sources import files, index
from elasticface_jax.data.tools import prepare
from elasticface_jax.errors import InputError

from ..conftest import EVERY, LABELS, NUM_CLASSES
from ..damage import (
  INFO,
  another_shard,
  cut_shard,
  info_is_no_json,
  info_with,
  moved,
  no_shard,
  other_split,
  second,
  text_shard,
)


@pytest.fixture(params=prepare.FILE_FORMATS)
def shards(request, copy):
  return copy(request.param)


@pytest.fixture
def records(copy):
  """Shards of TFRecord alone."""
  return copy('tfrecord')


def test_records_are_those_that_tensorflow_reads(records):
  source = data.ShardSource(records)
  paths = sorted(map(str, records.glob('*-of-*')))
  expected = [
    tf.train.Example.FromString(raw).features.feature
    for raw in tf.data.TFRecordDataset(paths).as_numpy_iterator()
  ]
  encoded, labels = source.read(EVERY)
  assert encoded == [e['image'].bytes_list.value[0] for e in expected]
  assert labels.tolist() == [e['label'].int64_list.value[0] for e in expected]


def test_index_is_eight_bytes_an_image(records):
  data.ShardSource(records)
  with np.load(records / index.NAME) as kept:
    assert kept['offsets'].nbytes == 8 * (10 + 3)  # And an end for each shard.


def test_storage_that_tensorflow_reaches(
  records, decoded, tmp_path, monkeypatch
):
  # As gs:// would be; blocks so small that records lie across them.
  monkeypatch.setattr(files, 'BLOCK_BYTES', 1000)
  cache = tmp_path / 'run'
  for _ in range(2):  # Without an index, and from the run's.
    source = data.open_encoded(f'file://{records}', cache=cache)
    images, labels = source.render(EVERY[::-1])
    np.testing.assert_array_equal(images, decoded[::-1])
    assert labels.tolist() == LABELS[::-1]
    assert (cache / index.NAME).is_file()
  assert source.fingerprint == data.ShardSource(records).fingerprint


def test_array_record_needs_a_disk(written):
  with pytest.raises(InputError, match='ArrayRecord is read from a disk'):
    data.open_encoded(f'file://{written("array_record")}')


def test_place_names_shard_and_record(shards):
  source = data.ShardSource(shards)
  assert source.place(3) == f'{second(shards)}: record 0'
  assert source.place(9).endswith('-00002-of-00003: record 3')


def test_flipped_bytes_are_found(shards):
  path = second(shards)
  intact = path.read_bytes()
  encoded, _ = data.ShardSource(shards).read(EVERY)
  rng = np.random.default_rng(0)
  found = 0
  # ArrayRecord fills up 64 kB with zeros.
  full = np.flatnonzero(np.frombuffer(intact, np.uint8))
  for at in rng.choice(full, 60):
    damaged = bytearray(intact)
    damaged[at] ^= 1 << rng.integers(0, 8)
    path.write_bytes(damaged)
    try:
      # Damage in what is no record's, as padding, changes nothing.
      assert data.ShardSource(shards).read(EVERY)[0] == encoded
    except InputError as error:
      found += 1
      assert '\n' not in str(error) and path.name in str(error)
  assert found > 40


@pytest.mark.parametrize('damage, words', [
  (cut_shard, ['-00001-of-00003', 'copy it again']),
  (text_shard, ['-00001-of-00003', 'copy']),
  (no_shard, ['-00001-of-00003']),
  (another_shard, ['-00001-of-00003', 'counts 3 records, the file has']),
  (info_with(fileFormat='riegeli'), ['riegeli']),
  (info_is_no_json, [INFO, 'cannot be read']),
  (other_split, ['no split `train`, only test']),
  (moved, ['holds no dataset_info.json; give ', 'aligned_faces/1.0.0']),
])  # fmt: skip
def test_refused_when_opened(shards, damage, words):
  damage(shards)
  with pytest.raises(InputError) as raised:
    data.open_encoded(shards)
  message = str(raised.value)
  assert '\n' not in message and str(shards) in message
  for word in words:
    assert word in message


def test_other_examples_are_named(records):
  path = second(records)
  good = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(good[0])
    writer.write(b'no example')
    writer.write(tf.train.Example().SerializeToString())
  source = data.ShardSource(records)
  for number in (4, 5):
    with pytest.raises(
      data.BadFace, match='no example of an image and a label'
    ):
      source.read(np.array([3, number]))
  report = data.inspect(records)
  assert report.num_problems == 2
  assert all(str(path) in problem for problem in report.problems)


def test_labels_are_compared_with_the_classes(records, jpegs):
  path = second(records)
  with tf.io.TFRecordWriter(str(path)) as writer:
    for label in (0, NUM_CLASSES, 1):
      example = tf.train.Example()
      example.features.feature['image'].bytes_list.value.append(jpegs[0])
      example.features.feature['label'].int64_list.value.append(label)
      writer.write(example.SerializeToString())
  with pytest.raises(InputError, match=r'record 1: label 5 is not an integer'):
    data.ShardSource(records).render(EVERY)
