# SPDX-License-Identifier: Apache-2.0
"""Shards hold the images of their source, after every kind of interruption."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_module

import elasticface_jax
from elasticface_jax import atomic, cli
from elasticface_jax.data import RecSource, batches
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.shards import ShardSource
from elasticface_jax.data.tools import prepare
from elasticface_jax.data.tools.prepare import prepare_shards
from elasticface_jax.errors import InputError

from ..conftest import LABELS, encode
from ..damage import flip_bit

FORMATS = ('array_record', 'tfrecord')
N, C, SHARDS = 50, 7, 4


class Crash(Exception):
  """Stands for the end of the process at some image."""


class Faces(EncodedSource):
  """Source of a list of images, which raises `Crash` at image `fail_at`."""

  path, layout = 'memory', 'a list'

  def __init__(self, images, labels, num_classes=C):
    self.images, self.labels = images, np.asarray(labels, np.float64)
    self.num_images, self.num_classes = len(images), num_classes
    self.read_so_far = []
    self.fail_at = None

  def read(self, indices):
    if self.fail_at in indices and len(indices) < N:
      raise Crash
    self.read_so_far += indices.tolist()
    return [self.images[i] for i in indices], self.labels[indices]

  def place(self, index):
    return f'memory: image {index}'


@pytest.fixture(scope='module')
def images():
  """JPEGs of different lengths, and one PNG among them."""
  rng = np.random.default_rng(3)
  made = []
  for size in rng.choice([1, 2, 7, 16, 28], N):
    coarse = rng.integers(0, 256, (112 // size, 112 // size, 3), np.uint8)
    made.append(coarse.repeat(size, axis=0).repeat(size, axis=1))
  encoded = [encode(one) for one in made]
  encoded[5] = encode(made[5], 'png')
  return encoded


@pytest.fixture
def source(images):
  return Faces(images, np.arange(N) % C)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Makes several chunks in every shard, and reads them in order."""
  monkeypatch.setattr(prepare, '_CHUNK', 5)
  monkeypatch.setattr(prepare, '_THREADS', 1)


def shards_of(folder, file_format):
  return [
    folder / f'aligned_faces-train.{file_format}-{i:05}-of-{SHARDS:05}'
    for i in range(SHARDS)
  ]


def records_of(path, file_format):
  """Reads images and labels of a shard without this package or TFDS."""
  if file_format == 'tfrecord':
    raw = [one.numpy() for one in tf.data.TFRecordDataset(str(path))]
  else:
    raw = array_record_module.ArrayRecordReader(str(path)).read_all()
  # Otherwise a shard written by another process could differ in its bytes.
  assert all(one.index(b'\x05image') < one.index(b'\x05label') for one in raw)
  spec = {
    'image': tf.io.FixedLenFeature([], tf.string),
    'label': tf.io.FixedLenFeature([], tf.int64),
  }
  parsed = [tf.io.parse_single_example(one, spec) for one in raw]
  return [(one['image'].numpy(), int(one['label'])) for one in parsed]


def contents(folder):
  """Reads all files except the index that `ShardSource` keeps."""
  return {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if not path.name.startswith('.')
  }


@pytest.fixture(scope='module')
def uninterrupted(images, tmp_path_factory):
  """``uninterrupted(file_format)``: shards of one call, only to read."""
  root = tmp_path_factory.mktemp('uninterrupted')

  @functools.cache
  def write(file_format):
    out = root / file_format
    source = Faces(images, np.arange(N) % C)
    prepare_shards(source, out, file_format=file_format, num_shards=SHARDS)
    return out

  return write


def crash(source, out, fail_at=30, **plan):
  """Prepares shards until the source crashes, and repairs the source."""
  source.fail_at = fail_at
  with pytest.raises(Crash):
    prepare_shards(source, out, **plan)
  source.fail_at = None


@contextlib.contextmanager
def no_file_larger_than(size):
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize('file_format', FORMATS)
def test_shards_hold_the_source_in_order(source, tmp_path, file_format):
  out, seen = tmp_path / 'sub' / 'out', []
  made = prepare_shards(
    source,
    out,
    file_format=file_format,
    num_shards=SHARDS,
    progress=lambda *step: seen.append(step),
  )
  shards = [records_of(p, file_format) for p in shards_of(out, file_format)]
  assert sorted(map(len, shards)) == [12, 12, 13, 13]
  assert sum(shards, []) == list(
    zip(source.images, source.labels.tolist(), strict=True)
  )
  assert made.fingerprint == source.fingerprint == ShardSource(out).fingerprint
  assert made[:5] == (out, N, C, file_format, SHARDS)
  assert str(made).startswith(f'{out}: 50 images of 7 classes in 4 shards')
  assert seen[0] == (0, 2 * N) and seen[-1] == (2 * N, 2 * N)
  assert seen == sorted(seen)
  assert not (tmp_path / 'sub' / 'out.incomplete').exists()


def test_tfds_reads_tfrecord(source, tmp_path):
  out = tmp_path / 'out'
  prepare_shards(source, out, file_format='tfrecord', num_shards=SHARDS)
  builder = tfds.builder_from_directory(out)
  assert builder.info.features['label'].num_classes == C
  assert builder.info.disable_shuffling
  split = builder.as_dataset(
    split='train',
    read_config=tfds.ReadConfig(interleave_cycle_length=1),
    as_supervised=True,
  )
  images, labels = zip(*split.as_numpy_iterator(), strict=True)
  np.testing.assert_array_equal(labels, source.labels)
  expected, _ = source.render(np.arange(N))
  # TFDS decodes with TensorFlow's default method, which is not the exact one.
  difference = np.stack(images).astype(int) - expected
  assert np.abs(difference).mean() < 1
  np.testing.assert_array_equal(images[5], expected[5])  # A PNG is exact.


def test_tfds_reads_array_record(source, tmp_path):
  out = tmp_path / 'out'
  prepare_shards(source, out, file_format='array_record', num_shards=SHARDS)
  builder = tfds.builder_from_directory(out)
  assert builder.info.splits['train'].num_examples == N
  rows = builder.as_data_source(
    split='train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  assert [(row['image'], row['label']) for row in rows] == list(
    zip(source.images, source.labels, strict=True)
  )
  decoded = builder.as_data_source(split='train')
  np.testing.assert_array_equal(
    decoded[33]['image'], source.render(np.array([33]))[0][0]
  )


def documented(language, word):
  """Returns the block of docs/data.md in a language that has a word."""
  root = pathlib.Path(elasticface_jax.__file__).parent.parent
  text = (root / 'docs' / 'data.md').read_text()
  blocks = text.split(f'```{language}\n')[1:]
  (block,) = (b for b in (b.split('```')[0] for b in blocks) if word in b)
  return block


def test_lines_of_the_documentation_read_the_shards(
  folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data').mkdir()
  folder.rename(tmp_path / 'data' / 'ms1mv2')
  for line in documented('sh', 'aligned_faces/1.0.0').splitlines():
    command, *words = line.split()
    assert command == 'elasticface' and cli.main(words) == 0
  made = {}
  exec(documented('python norun', 'tensorflow_datasets'), made)
  labels = [
    [int(row['label']) for row in made[name]]
    for name in ('dataset', 'rows', 'named')
  ]
  assert labels == [LABELS] * 3


@pytest.mark.parametrize('file_format', FORMATS)
def test_metadata_name_no_page(source, tmp_path, file_format):
  out = tmp_path / 'out'
  prepare_shards(source, out, file_format=file_format, num_shards=2)
  info = tfds.builder_from_directory(out).info
  assert info.homepage == 'none'
  assert 'http' not in (out / 'dataset_info.json').read_text()
  # Shards of an older version say nothing there.
  text = json.loads((out / 'dataset_info.json').read_text())
  assert text.pop('location') == {'urls': ['none']}
  (out / 'dataset_info.json').write_text(json.dumps(text))
  assert ShardSource(out).fingerprint == source.fingerprint


def test_labels_that_state_no_number_of_classes(source, tmp_path):
  out = tmp_path / 'out'
  prepare_shards(source, out, num_shards=2)
  names = json.loads((out / 'features.json').read_text())
  label = names['featuresDict']['features']['label']
  label.clear()
  label |= {
    'pythonClassName': 'tensorflow_datasets.core.features.scalar.Scalar',
    'tensor': {'shape': {}, 'dtype': 'int64', 'encoding': 'none'},
  }
  (out / 'features.json').write_text(json.dumps(names))
  with pytest.raises(InputError, match='50 images of 0 classes; prepare it'):
    ShardSource(out)


@pytest.mark.parametrize('file_format', FORMATS)
def test_batches_are_those_of_the_source(source, tmp_path, file_format):
  out = tmp_path / 'out'
  prepare_shards(source, out, file_format=file_format, num_shards=3)
  plan = {'seed': 1, 'batch_size': 16, 'first_step': 2, 'last_step': 7}
  for one, other in zip(
    batches(source, **plan), batches(ShardSource(out), **plan), strict=True
  ):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('fail_at', [0, 13, 24, 25, 49])
def test_resumes_after_the_last_complete_shard(
  source, images, uninterrupted, tmp_path, file_format, fail_at
):
  plan = {'file_format': file_format, 'num_shards': SHARDS}
  crash(source, tmp_path / 'out', fail_at, **plan)
  starts = [0, 12, 25, 37]
  done = max(start for start in starts if start <= fail_at)
  left = {path.name for path in (tmp_path / 'out.incomplete').iterdir()}
  shards = shards_of(tmp_path / 'out.incomplete', file_format)
  assert left == {
    'prepared.json',
    *(path.name for path in shards[: starts.index(done)]),
  }
  assert not (tmp_path / 'out').exists()

  again = Faces(images, source.labels)
  prepare_shards(again, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out') == contents(uninterrupted(file_format))
  # Once for the fingerprint, and those without a complete shard once more.
  assert sorted(again.read_so_far) == sorted([*range(N), *range(done, N)])


def test_what_a_kill_may_leave_is_cleared_away(source, uninterrupted, tmp_path):
  plan = {'file_format': 'tfrecord', 'num_shards': SHARDS}
  crash(source, tmp_path / 'out', **plan)
  work = tmp_path / 'out.incomplete'
  _, _, renamed, half = shards_of(work, 'tfrecord')
  for path in (
    renamed,  # Not in the record yet.
    half.with_name(f'{half.name}.host.7.part{half.suffix}'),
    work / 'prepared.json.host.7.part.json',
    work / 'dataset_info.json',
    work / 'incomplete.0123.features.json',
    work / '.elasticface_index.npz',
  ):
    path.write_bytes(b'half')
  prepare_shards(source, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out') == contents(uninterrupted('tfrecord'))


_KILLED = """
import os, sys, threading, time
import tensorflow_datasets
from elasticface_jax.data import RecSource, prepare_shards

class Slow(RecSource):
  def read(self, indices):
    if len(indices) < 10 and 5 in indices:
      os.write(1, b'half\\n')
      time.sleep(600)
    return super().read(indices)

folder, out, *formats = sys.argv[1:]
def prepare(form):
  prepare_shards(
    Slow(folder), f'{out}.{form}', file_format=form, num_shards=3
  )

threads = [threading.Thread(target=prepare, args=(form,)) for form in formats]
for thread in threads:
  thread.start()
for thread in threads:
  thread.join()
"""


@pytest.mark.slow
def test_resumes_after_kill_9(folder, tmp_path):
  root = pathlib.Path(elasticface_jax.__file__).parent.parent
  child = subprocess.Popen(
    [sys.executable, '-c', _KILLED, folder, tmp_path / 'out', *FORMATS],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(root)},
  )
  try:
    for _ in FORMATS:
      assert child.stdout.readline() == b'half\n'
  finally:
    child.kill()
    child.communicate()
  assert child.returncode == -signal.SIGKILL
  for form in FORMATS:
    out = tmp_path / f'out.{form}'
    first, second = (
      f'aligned_faces-train.{form}-0000{n}-of-00003' for n in (0, 1)
    )
    left = {path.name for path in (tmp_path / f'{out}.incomplete').iterdir()}
    assert first in left and second not in left
    assert any(atomic.is_part(name, of=second) for name in left)

    plan = {'file_format': form, 'num_shards': 3}
    prepare_shards(RecSource(folder), out, **plan)
    prepare_shards(RecSource(folder), tmp_path / f'other.{form}', **plan)
    assert contents(out) == contents(tmp_path / f'other.{form}')


@pytest.mark.parametrize('file_format', FORMATS)
def test_full_disk_is_one_line_and_no_loss(
  source, uninterrupted, tmp_path, file_format
):
  plan = {'file_format': file_format, 'num_shards': SHARDS}
  shards = shards_of(uninterrupted(file_format), file_format)
  limit = min(path.stat().st_size for path in shards) // 2
  work = tmp_path / 'out.incomplete'
  with (
    no_file_larger_than(limit),
    pytest.raises(InputError, match='File too large.*prepare again') as caught,
  ):
    prepare_shards(source, tmp_path / 'out', **plan)
  shard = f'aligned_faces-train.{file_format}-00000-of-00004'
  assert str(caught.value).startswith(f'{work / shard}: ')
  assert '\n' not in str(caught.value)
  assert [path.name for path in work.iterdir()] == ['prepared.json']
  prepare_shards(source, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out') == contents(uninterrupted(file_format))


def test_no_room_for_the_record(source, tmp_path):
  with (
    no_file_larger_than(10),
    pytest.raises(InputError, match='File too large.*prepare again'),
  ):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)


@pytest.mark.parametrize(
  ('file_format', 'where'),
  [
    ('tfrecord', 0),  # The length of the first record.
    ('tfrecord', 8),  # Its checksum.
    ('tfrecord', 0.5),
    ('array_record', 0.2),
  ],
)
def test_flipped_byte_is_found_and_repaired(
  source, uninterrupted, tmp_path, file_format, where
):
  plan = {'file_format': file_format, 'num_shards': SHARDS}
  crash(source, tmp_path / 'out', **plan)
  damaged = shards_of(tmp_path / 'out.incomplete', file_format)[1]
  size = damaged.stat().st_size
  flip_bit(damaged, int(where * size) if isinstance(where, float) else where)

  with pytest.raises(InputError, match='prepare again') as caught:
    prepare_shards(source, tmp_path / 'out', **plan)
  assert str(caught.value).startswith(f'{damaged}: ')
  assert not (tmp_path / 'out').exists()
  prepare_shards(source, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out') == contents(uninterrupted(file_format))


def test_sound_record_of_another_image_is_found(source, images, tmp_path):
  other = Faces([images[-1], *images[1:]], source.labels)
  plan = {'file_format': 'tfrecord', 'num_shards': SHARDS}
  prepare_shards(other, tmp_path / 'other', **plan)
  crash(source, tmp_path / 'out', **plan)
  # Of the size that was noted, but not with the content.
  record = tmp_path / 'out.incomplete' / 'prepared.json'
  name = 'aligned_faces-train.tfrecord-00000-of-00004'
  swapped = (tmp_path / 'other' / name).read_bytes()
  size = (tmp_path / 'out.incomplete' / name).stat().st_size
  record.write_text(record.read_text().replace(f'{size}', f'{len(swapped)}'))
  (tmp_path / 'out.incomplete' / name).write_bytes(swapped)
  with pytest.raises(InputError, match=f'{name}: .*other images than written'):
    prepare_shards(source, tmp_path / 'out', **plan)


def test_error_that_names_no_shard_is_left_as_it_is(
  source, tmp_path, monkeypatch
):
  def fail(path):
    raise InputError(f'{path}: no tea; put the kettle on')

  monkeypatch.setattr(prepare, 'ShardSource', fail)
  with pytest.raises(
    InputError, match='incomplete: no tea; put the kettle on$'
  ):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)


def test_cut_shard_is_written_anew(source, uninterrupted, tmp_path):
  plan = {'file_format': 'array_record', 'num_shards': SHARDS}
  crash(source, tmp_path / 'out', **plan)
  shard = next((tmp_path / 'out.incomplete').glob('*-00001-of-*'))
  shard.write_bytes(shard.read_bytes()[:-100])
  prepare_shards(source, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out') == contents(uninterrupted('array_record'))


@pytest.mark.parametrize(
  ('change', 'field'),
  [
    ({'labels': np.zeros(N)}, 'fingerprint'),
    ({'num_classes': C + 1}, 'fingerprint'),
    ({'num_shards': 5}, 'num_shards 4, not 5'),
    ({'file_format': 'tfrecord'}, 'file_format array_record, not tfrecord'),
  ],
)
def test_another_source_or_plan_is_refused(source, tmp_path, change, field):
  plan = {'file_format': 'array_record', 'num_shards': SHARDS}
  crash(source, tmp_path / 'out', **plan)
  before = contents(tmp_path / 'out.incomplete')
  faces = {'labels': source.labels, 'num_classes': C} | change
  other = Faces(source.images, faces['labels'], faces['num_classes'])
  plan |= {key: change[key] for key in plan if key in change}
  with pytest.raises(
    InputError, match=f'out.incomplete was begun with {field}.*; remove'
  ):
    prepare_shards(other, tmp_path / 'out', **plan)
  assert contents(tmp_path / 'out.incomplete') == before


def test_source_that_changes_meanwhile_is_refused(source, images, tmp_path):
  source.fingerprint  # noqa: B018 What is kept from when it was opened.
  source.images = [*images[:-1], images[0]]
  with pytest.raises(InputError, match='memory changed while it was read'):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)
  assert not (tmp_path / 'out').exists()


def test_files_of_others_are_left_alone(source, tmp_path):
  work = tmp_path / 'out.incomplete'
  work.mkdir()
  (work / 'thesis.tex').write_text('...')
  with pytest.raises(InputError, match=f'{work} was not begun by'):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)
  (work / 'thesis.tex').rename(tmp_path / 'thesis.tex')
  crash(source, tmp_path / 'out', num_shards=SHARDS)
  (tmp_path / 'thesis.tex').rename(work / 'thesis.tex')
  with pytest.raises(InputError, match='thesis.tex does not belong there'):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)
  assert (work / 'thesis.tex').read_text() == '...'


def test_two_at_once_are_refused(source, tmp_path):
  (tmp_path / 'out.incomplete').mkdir()
  other = os.open(tmp_path / 'out.incomplete', os.O_RDONLY)
  fcntl.flock(other, fcntl.LOCK_EX)
  try:
    with pytest.raises(InputError, match='another process is writing it'):
      prepare_shards(source, tmp_path / 'out')
  finally:
    os.close(other)
  prepare_shards(source, tmp_path / 'out')


def test_existing_folder_is_refused(source, tmp_path):
  with pytest.raises(InputError, match=f'{tmp_path} exists; remove it'):
    prepare_shards(source, tmp_path)


@pytest.mark.parametrize(
  ('index', 'image', 'label', 'problem'),
  [
    (31, b'', 3, 'there is no image'),
    (31, b'\xff\xd8junk', 3, 'a damaged image'),
    (31, None, C, r'label 7 is not an integer in \[0, 7\)'),
    (31, None, 2.5, 'label 2.5 is not an integer'),
    (31, None, np.nan, 'label nan is not an integer'),
  ],
)
def test_bad_image_stops_it(source, tmp_path, index, image, label, problem):
  source.images = list(source.images)
  source.images[index] = source.images[index] if image is None else image
  source.labels[index] = label
  with pytest.raises(
    InputError,
    match=f'^memory: image 31: {problem}.*`elasticface inspect memory`',
  ):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)
  assert not (tmp_path / 'out').exists()


def test_image_of_another_size_stops_it(source, tmp_path):
  source.images = list(source.images)
  source.images[31] = encode(np.zeros((112, 96, 3), np.uint8))
  with pytest.raises(InputError, match='image 31: the image is 96x112'):
    prepare_shards(source, tmp_path / 'out', num_shards=SHARDS)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'file_format': 'parquet'}, '--format parquet: must be one of'),
    ({'num_shards': 0}, '50 images cannot fill 0 shards'),
    ({'num_shards': 51}, '50 images cannot fill 51 shards'),
  ],
)
def test_bad_options_are_named(source, tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    prepare_shards(source, tmp_path / 'out', **options)
  assert list(tmp_path.iterdir()) == []


class Many(Faces):
  """Source of many images of 900 or 1,100 bytes, which are no images."""

  def __init__(self, num_images):
    self.num_images, self.num_classes = num_images, C

  def read(self, indices):
    return [bytes(900 + 200 * (i % 2)) for i in indices], indices % C


@pytest.mark.parametrize(
  ('num_images', 'num_shards'), [(1, 1), (200_000, 1), (1_000_000, 4)]
)
def test_shards_are_of_a_quarter_of_a_gigabyte(num_images, num_shards):
  ranges = prepare.shard_ranges(Many(num_images), None)
  assert len(ranges) == num_shards
  assert [i for images in ranges for i in (images[0], images[-1])] == sorted(
    i for images in ranges for i in (images[0], images[-1])
  )
  assert sum(map(len, ranges)) == num_images
  assert len({len(images) for images in ranges}) <= 2
