# SPDX-License-Identifier: Apache-2.0
"""The graph of TensorFlow gives the batches that the strict readers give.

Expected batches come from the order (`batch_indices`), labels as written, and
pixels that Pillow decodes and turns.
"""

import io
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from elasticface_jax import data
from elasticface_jax.data import order, pipeline
from elasticface_jax.data.sources import (
  checks,
  decode,
  encoded,
  exif,
  graph,
  index,
)
from elasticface_jax.data.tools import prepare
from elasticface_jax.errors import InputError

from .conftest import assert_interrupt_ends, encode
from .slow_storage import slow_storage
from .sources.test_golden import FACES, GOLDEN

BATCH = 8
RUN = 4  # Instead of 1,024, so that ten images have several runs.
WINDOWS = 0, 2 * RUN
FORMS = 'tfrecord', 'people'


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
  monkeypatch.setattr(order, 'RUN', RUN)


def read(source, first_step, last_step, *, window=0, rows=slice(None), **rest):
  return list(
    data.batches(
      source,
      seed=3,
      batch_size=BATCH,
      first_step=first_step,
      last_step=last_step,
      window=window,
      rows=rows,
      **rest,
    )
  )


def indices_of(source, step, window, rows=slice(None), batch_size=BATCH):
  return data.batch_indices(
    step,
    num_images=source.num_images,
    seed=3,
    batch_size=batch_size,
    window=window,
    rows=rows,
  )


def pixels(encoded):
  """Decodes and turns as OpenCV does, by Pillow."""
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
  return np.asarray(image.convert('RGB'))


def assert_batches(source, got, first_step, window=0, rows=slice(None)):
  """Compares batches with the encoded images of the source."""
  encoded, labels = source.read(np.arange(source.num_images))
  images = np.stack([pixels(one) for one in encoded])
  for step, batch in enumerate(got, first_step):
    indices = indices_of(source, step, window, rows)
    np.testing.assert_array_equal(batch.indices, indices)
    np.testing.assert_array_equal(batch.labels, labels[indices])
    np.testing.assert_array_equal(batch.images, images[indices])
    assert [x.dtype for x in batch] == [np.uint8, np.int32, np.int64]


def two_epochs(source):
  return -(-2 * source.num_images // BATCH)


def as_form(rec, form, out):
  """Writes a golden folder in a form that a graph reads."""
  if form == 'tfrecord':
    prepare.prepare_shards(rec, out, num_shards=min(3, rec.num_images))
    return data.open_encoded(out)
  encoded, labels = rec.read(np.arange(rec.num_images))
  for label in range(rec.num_classes):
    (out / f'{label:03}').mkdir(parents=True)
  for number, (one, label) in enumerate(zip(encoded, labels, strict=True)):
    suffix = 'png' if one.startswith(b'\x89PNG') else 'jpg'
    path = out / f'{int(label):03}' / f'{number:03}.{suffix}'
    path.write_bytes(one)
  return data.open_encoded(out)


@pytest.fixture(params=FORMS)
def source(request, copy):
  return data.open_encoded(copy(request.param))


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', FACES)
def test_golden_folders_over_two_epochs(name, form, window, tmp_path):
  rec = data.RecSource(shutil.copytree(GOLDEN / name, tmp_path / 'rec'))
  source = as_form(rec, form, tmp_path / form)
  assert data.has_graph(source) and not data.has_graph(rec)
  got = read(source, 0, two_epochs(source), window=window)
  assert_batches(source, got, 0, window)


@pytest.mark.parametrize('window', WINDOWS)
def test_any_readers_and_any_start(source, window):
  last = two_epochs(source)
  whole = read(source, 0, last, window=window)
  assert_batches(source, whole, 0, window)
  for first in (last // 2, last * 9 // 10):
    assert_equal(read(source, first, last, window=window), whole[first:])
  for count in (2, 4):
    part = BATCH // count
    parts = [
      read(source, 0, last, window=window, rows=rows)
      for rows in (slice(i * part, (i + 1) * part) for i in range(count))
    ]
    joined = [
      tuple(map(np.concatenate, zip(*step, strict=True)))
      for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def assert_equal(got, expected):
  assert len(got) == len(expected)
  for one, other in zip(got, expected, strict=True):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize('batch_size', [1, 3, 25])
def test_batches_of_any_size(source, window, batch_size):
  rows = np.arange(batch_size)[::2]  # Any ascending ones.
  got = list(
    data.batches(
      source,
      seed=3,
      batch_size=batch_size,
      first_step=5,
      last_step=9,
      window=window,
      rows=rows,
    )
  )
  assert len(got) == 4
  for step, batch in enumerate(got, 5):
    expected = indices_of(source, step, window, rows, batch_size)
    np.testing.assert_array_equal(batch.indices, expected)


def test_threads_change_nothing(source):
  assert_equal(read(source, 0, 5, threads=1), read(source, 0, 5, threads=7))


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize('form', ['rec', 'array_record', *FORMS])
def test_data_set_of_every_source(written, form, window):
  source = data.open_encoded(written(form))
  steps = data.dataset(
    source,
    seed=3,
    batch_size=BATCH,
    first_step=1,
    last_step=4,
    window=window,
    rows=slice(2, 7),
  )
  assert steps.element_spec == (
    tf.TensorSpec((5, 112, 112, 3), tf.uint8),
    tf.TensorSpec((5,), tf.int32),
    tf.TensorSpec((5,), tf.int64),
  )
  assert len(list(steps)) == 3
  got = [data.Batch(*step) for step in steps.as_numpy_iterator()]
  assert_batches(source, got, 1, window, slice(2, 7))


def test_data_set_of_no_steps(source):
  for window in WINDOWS:
    assert read(source, 3, 3, window=window) == []


def test_no_python_in_the_graph(source):
  for window in WINDOWS:
    steps = data.dataset(
      source,
      seed=0,
      batch_size=BATCH,
      first_step=0,
      last_step=9,
      window=window,
    )
    text = str(ops_of(steps))
    assert 'RandomIndexShuffle' in text and 'DecodeJpeg' in text
    assert 'PyFunc' not in text and 'Generator' not in text


def ops_of(steps):
  """Returns the types of all operations in the functions of a data set."""
  made = tf.function(lambda: iter(steps).get_next()).get_concrete_function()
  graph_def = made.graph.as_graph_def()
  functions = [f for data_set in lineage(steps) for f in data_set._functions()]
  return {node.op for node in graph_def.node} | {
    node.op
    for function in functions
    for inner in (
      function.function.graph.as_graph_def(),
      *(f for f in function.function.graph.as_graph_def().library.function),
    )
    for node in (inner.node if hasattr(inner, 'node') else inner.node_def)
  }


def lineage(steps):
  yield steps
  for one in steps._inputs():
    yield from lineage(one)


def test_rows_ascend_in_windows(source):
  with pytest.raises(ValueError, match='rows must ascend'):
    read(source, 0, 1, window=2 * RUN, rows=np.array([3, 1]))
  rows = np.array([3, 1])
  assert_batches(source, read(source, 0, 2, rows=rows), 0, rows=rows)


# Every kind of image.


def oriented(number):
  """Returns a JPEG or PNG with an orientation, of distinct quarters."""
  image = np.zeros((112, 112, 3), np.uint8)
  image[:56, :56], image[:56, 56:], image[56:, :56] = 250, 120, 60
  out, tags = io.BytesIO(), Image.Exif()
  tags[0x112] = number
  form = 'PNG' if number % 2 else 'JPEG'
  Image.fromarray(image).save(out, form, exif=tags)
  return out.getvalue()


@pytest.fixture
def kinds(tmp_path, pixels):
  """A folder with images of every orientation, mode and subsampling."""
  images = [oriented(number) for number in range(1, 9)]
  for mode in ('L', '1', 'P', 'RGBA', 'LA'):
    out = io.BytesIO()
    Image.fromarray(pixels[0]).convert(mode).save(out, 'PNG')
    images.append(out.getvalue())
  for keywords in (
    {'progressive': True},
    {'subsampling': 0},
    {'subsampling': 1},
    {'restart_marker_blocks': 3},
    {'quality': 10},
  ):
    out = io.BytesIO()
    Image.fromarray(pixels[1]).save(out, 'JPEG', **keywords)
    images.append(out.getvalue())
  out = io.BytesIO()
  Image.fromarray(pixels[2]).convert('L').save(out, 'JPEG')
  images.append(out.getvalue())
  # Damage outside of the pixels, which is passed over.
  images.append(images[0] + b'after the end')
  images.append(images[-2][:-2] + bytes(3) + images[-2][-2:])
  head = images[-3].index(b'\xff\xdb')
  images.append(images[-3][:head] + bytes(3) + images[-3][head:])
  for number, one in enumerate(images):
    path = tmp_path / f'person {number % 3}' / f'{number:02}.jpg'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(one)
  return data.open_encoded(tmp_path)


@pytest.mark.parametrize('form', FORMS)
def test_every_kind_of_image(kinds, form, tmp_path_factory):
  source = kinds
  if form == 'tfrecord':
    source = as_form(kinds, form, tmp_path_factory.mktemp('kinds') / form)
  assert set(source.checks().orientations) == set(range(1, 9))
  assert_batches(source, read(source, 0, 6), 0)


def test_names_of_odd_bytes(jpegs, tmp_path):
  person = os.fsencode(tmp_path) + b'/set \xff/ \xfe\n*'
  os.makedirs(person)
  for number, one in enumerate(jpegs):
    with open(person + b'/%d \xfd[%%20:.jpg' % number, 'wb') as file:
      file.write(one)
  source = data.open_encoded(os.path.dirname(os.fsdecode(person)))
  assert_batches(source, read(source, 0, 3), 0)


def test_path_through_a_link_and_back(copy):
  path = copy('people')
  far = path.parent / 'far' / 'away'
  far.mkdir(parents=True)
  (path.parent / 'link').symlink_to(far)
  path.rename(far.parent / 'people')
  source = data.open_encoded(path.parent / 'link' / '..' / 'people')
  steps = data.dataset(
    source, seed=3, batch_size=BATCH, first_step=0, last_step=2
  )
  got = [data.Batch(*step) for step in steps.as_numpy_iterator()]
  assert_batches(source, got, 0)


def test_turned_as_by_exif(pixels):
  stored = pixels[:8].copy()
  turned = graph.upright(tf.constant(stored), tf.range(1, 9)).numpy()
  for one, other, orientation in zip(turned, stored, range(1, 9), strict=True):
    np.testing.assert_array_equal(one, exif.upright(other, orientation))


def four_colours(pixels):
  out = io.BytesIO()
  Image.fromarray(pixels).convert('CMYK').save(out, 'JPEG')
  return out.getvalue()


def without_its_end(pixels):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue()[:-12]  # The strict decoder takes it.


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', [four_colours, without_its_end])
def test_images_that_tensorflow_decodes_otherwise(copy, pixels, form, kind):
  people = copy('people')
  (people / 'person 1' / '003.jpg').write_bytes(kind(pixels[0]))
  strict = source = data.open_encoded(people)
  if form == 'tfrecord':
    source = as_form(source, form, people.parent / form)
  assert source.checks().other().tolist() == [3]
  images, labels = strict.render(np.arange(10))
  steps = data.dataset(
    source, seed=3, batch_size=BATCH, first_step=0, last_step=3
  )
  for got in (read(source, 0, 3), list(steps.as_numpy_iterator())):
    assert len(got) == 3
    for step, batch in enumerate(got):
      indices = indices_of(source, step, 0)
      for x, y in zip(batch, (images, labels), strict=False):
        np.testing.assert_array_equal(x, y[indices])


# Damage before and after the check, and files that change in mid-run.


def step_with(source, number, window=0):
  """Returns the first step whose batch has an image."""
  return next(
    step
    for step in range(99)
    if number in indices_of(source, step, window).tolist()
  )


def fails_at(source, number, window=0):
  """Reads until an image stops it, at its step; returns the message."""
  step = step_with(source, number, window)
  stream = data.batches(
    source,
    seed=3,
    batch_size=BATCH,
    first_step=max(0, step - 1),
    last_step=step + 1,
    window=window,
  )
  if step:
    next(stream)
  with pytest.raises(data.BadFace) as raised:
    next(stream)
  assert '\n' not in str(raised.value)
  return str(raised.value)


@pytest.mark.parametrize('checked, window', [(True, 0), (False, 2 * RUN)])
def test_damaged_file(copy, jpegs, checked, window):
  people = copy('people')
  path = people / 'person 3' / '006.jpg'
  if checked:
    data.open_encoded(people).checks()
  for damaged, problem in (
    (jpegs[6][:-200], 'a damaged image'),
    (jpegs[6][:-200] + jpegs[6][-100:], 'a damaged image'),
    (b'', 'there is no image'),
    (encode(np.zeros((112, 96, 3), np.uint8)), 'the image is 96x112'),
    (b'GIF89a', 'neither a JPEG nor a PNG'),
  ):
    path.write_bytes(damaged)
    source = data.open_encoded(people)
    if not checked:
      (people / index.CHECKS).unlink(missing_ok=True)
      assert source.checks().bad().tolist() == [6]
    message = fails_at(source, 6, window)
    assert message.startswith(f'{path}: {problem}')
    assert '`elasticface inspect' in message


def test_file_that_is_another_intact_one_than_was_checked(copy, jpegs):
  people = copy('people')
  source = data.open_encoded(people)
  assert not source.checks().bad().size
  path = people / 'person 3' / '006.jpg'
  path.write_bytes(jpegs[2])
  message = fails_at(source, 6)
  kept = people / index.CHECKS
  assert message.startswith(f'{path}: the image is not the one that was che')
  assert f'restore that, or remove {kept}' in message
  kept.unlink()  # As the message says.
  source = data.open_encoded(people)
  assert_batches(source, read(source, 0, 4), 0)


@pytest.mark.parametrize('window', WINDOWS)
def test_damaged_record(copy, window):
  shards = copy('tfrecord')
  source = data.open_encoded(shards)
  source.checks()
  path = sorted(shards.glob('*.tfrecord-*'))[1]
  intact = path.read_bytes()
  damaged = bytearray(intact)
  damaged[len(intact) // 2] ^= 1
  path.write_bytes(damaged)
  opened = data.open_encoded(shards)
  bad = [number for number in (3, 4, 5) if is_bad(opened, number)]
  assert len(bad) == 1
  message = fails_at(opened, bad[0], window)
  assert message.startswith(f'{path}: record {bad[0] - 3}: the bytes are dama')


def is_bad(source, number):
  try:
    source.read(np.array([number]))
  except data.BadFace:
    return True
  return False


def other_label(record):
  example = tf.train.Example.FromString(record)
  example.features.feature['label'].int64_list.value[0] = 5
  return example.SerializeToString()


@pytest.mark.parametrize('spoil, problem', [
  (lambda record: b'no example', 'no example of an image and a label'),
  (lambda record: b'', 'no example of an image and a label'),
  (other_label, 'label 5 is not an integer in [0, 5)'),
])  # fmt: skip
def test_record_that_is_no_face(copy, spoil, problem):
  shards = copy('tfrecord')
  path = sorted(shards.glob('*.tfrecord-*'))[1]
  good = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in (good[0], spoil(good[1]), good[2]):
      writer.write(record)
  message = fails_at(data.open_encoded(shards), 4)
  assert message.startswith(f'{path}: record 1: {problem}')


def cut(path):
  os.truncate(path, path.stat().st_size // 3)


def replace(path):
  other = path.with_name('other')
  other.write_bytes(bytes(path.stat().st_size))
  os.replace(other, path)


def remove(path):
  path.unlink()


def overwrite(path):
  size = path.stat().st_size
  with open(path, 'r+b') as file:
    file.write(bytes(size))


@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize('change', [cut, replace, remove, overwrite])
def test_shard_that_changes_in_mid_run(copy, decoded, change, window):
  shards = copy('tfrecord')
  stream = data.batches(
    data.open_encoded(shards),
    seed=3,
    batch_size=BATCH,
    first_step=0,
    last_step=10**6,
    window=window,
  )
  next(stream)
  path = sorted(shards.glob('*.tfrecord-*'))[1]
  change(path)
  with pytest.raises(data.BadFace) as raised:
    for batch in stream:  # What was read before.
      np.testing.assert_array_equal(batch.images, decoded[batch.indices])
  message = str(raised.value)
  assert message.startswith(f'{path}: record') and '\n' not in message
  assert 'the file' in message or 'the bytes' in message


@pytest.mark.parametrize('window', WINDOWS)
def test_trouble_that_passes_is_no_end(source, window, monkeypatch, capfd):
  expected = read(source, 0, 6, window=window)
  known = source.checks()
  broken = checks.Checks(known.hashes.copy(), known.orientations)
  broken.hashes[4] += 1  # Only for the graph, as if a read had failed.
  calls = []

  def once_broken(*args):
    calls.append(args)
    return broken if len(calls) == 3 else known  # The graph's.

  monkeypatch.setattr(type(source), 'checks', once_broken)
  monkeypatch.setattr(pipeline, '_STEPS_OF_TROUBLE', 2)
  assert_equal(read(source, 0, 6, window=window), expected)
  step = 1 + step_with(source, 4, window)
  (line,) = capfd.readouterr().err.splitlines()
  # In windows it comes at the first step of the window.
  words = f'warning: step {1 if window else step} is read again after an error'
  assert line.startswith(words)


def test_damage_in_a_window_stops_its_own_step(copy):
  # Windows of all images and batches of one: each is read long before.
  source = data.open_encoded(copy('people'))
  source.checks()
  order = dict(seed=0, batch_size=1, window=4 * RUN)
  expected = [
    int(data.batch_indices(step, num_images=10, **order)[0])
    for step in range(10)
  ]
  os.remove(source.place(expected[4]))
  got = []
  with pytest.raises(data.BadFace, match='No such file'):
    for batch in data.batches(source, first_step=0, last_step=10, **order):
      got += batch.indices.tolist()
  assert got == expected[:4]


# Checks.


def test_checks_are_made_once_and_anew_after_a_change(copy, jpegs):
  people = copy('people')
  source = data.open_encoded(people)
  assert not source.has_checks
  calls = []
  found = source.checks(lambda done, total: calls.append((done, total)))
  assert calls[-1] == (10, 10) and source.has_checks
  again = data.open_encoded(people)
  assert again.has_checks
  again.checks(lambda done, total: pytest.fail('checked again'))
  (people / 'person 1' / 'new.jpg').write_bytes(jpegs[0])
  grown = data.open_encoded(people)
  assert not grown.has_checks
  assert len(grown.checks().hashes) == 11
  assert found.hashes.nbytes + found.orientations.nbytes == 5 * 10


def test_storage_that_fails_is_no_damage(copy, monkeypatch):
  source = data.open_encoded(copy('tfrecord'))
  read = data.ShardSource.read

  def fails(self, indices):
    if 7 in indices:
      raise InputError('no network')
    return read(self, indices)

  with monkeypatch.context() as broken:
    broken.setattr(data.ShardSource, 'read', fails)
    with pytest.raises(InputError, match='no network'):
      source.checks()
  assert not source.has_checks
  assert not source.checks().bad().size


def test_image_that_is_repaired_in_place_is_checked_again(copy, jpegs):
  people = copy('people')
  path = people / 'person 3' / '006.jpg'
  path.write_bytes(jpegs[6][:-99])
  assert data.open_encoded(people).checks().bad().tolist() == [6]
  path.write_bytes(jpegs[6])
  for _ in range(2):  # The second time as kept.
    source = data.open_encoded(people)
    assert source.has_checks and not source.checks().bad().size
  assert_batches(source, read(source, 0, 3), 0)


def test_kept_checks_of_other_rules_are_made_again(copy, monkeypatch):
  source = data.open_encoded(copy('people'))
  source.checks()
  monkeypatch.setattr(encoded, 'VERSION', 2)
  calls = []
  again = data.open_encoded(source.path)
  again.checks(lambda done, total: calls.append(done))
  assert calls


def test_prepared_shards_bring_their_index_and_checks(copy, tmp_path):
  shards = copy('tfrecord')
  made = data.open_encoded(shards).checks()
  moved = tmp_path / 'elsewhere'
  shutil.copytree(shards, moved, copy_function=shutil.copyfile)
  source = data.open_encoded(moved)
  assert source.has_checks
  for one, other in zip(source.checks(), made, strict=True):
    np.testing.assert_array_equal(one, other)
  fresh = checks.examine(source, lambda done, total: None)
  for one, other in zip(fresh, made, strict=True):
    np.testing.assert_array_equal(one, other)


def test_hashes_are_of_the_bytes_alone():
  # Kept files hold them: other versions of TensorFlow must find the same.
  assert checks.hashes([b'abc', b'']).tolist() == [1961358185, 797982799]


# Remote storage.


@pytest.fixture
def storage():
  try:
    return slow_storage.start(latency=0.01)
  except slow_storage.CannotCompile as error:
    pytest.skip(str(error))


def test_runs_of_neighbours_are_one_read(written, decoded, storage, tmp_path):
  shards = written('tfrecord')
  remote = data.open_encoded(slow_storage.address(shards), cache=tmp_path)
  expected = read(data.open_encoded(shards), 0, two_epochs(remote))
  assert_equal(read(remote, 0, two_epochs(remote)), expected)
  storage.reset()
  epochs = dict(seed=0, batch_size=10, first_step=0, last_step=2)
  for batch in data.batches(remote, window=2 * RUN, **epochs):
    np.testing.assert_array_equal(batch.images, decoded[batch.indices])
  # Two epochs of three runs, of which two lie across shards of 3, 3 and 4. A
  # seek costs one more read, of a byte.
  paths = list(shards.glob('*.tfrecord-*'))
  files = {path.stat().st_ino for path in paths}
  runs = [one for one in storage.ranges() if one.got > 1 and one.inode in files]
  assert len(runs) <= 2 * (3 + 2)
  read_once = sum(path.stat().st_size for path in paths)
  assert 2 * read_once <= sum(one.got for one in runs) <= 2.5 * read_once


def test_a_window_is_read_ahead(written, storage, tmp_path):
  remote = data.open_encoded(
    slow_storage.address(written('tfrecord')), cache=tmp_path
  )
  remote.checks()
  stream = data.batches(
    remote,
    seed=0,
    batch_size=2,
    first_step=0,
    last_step=1000,
    window=2 * RUN,
  )
  next(stream)
  storage.reset()
  for _ in range(50):
    next(stream)
  # Far more than these steps took were in flight together, or before.
  assert storage.counts().peak > 1


def test_remote_shards_that_change(copy, storage, tmp_path):
  shards = copy('tfrecord')
  remote = data.open_encoded(slow_storage.address(shards), cache=tmp_path)
  stream = data.batches(
    remote, seed=3, batch_size=BATCH, first_step=0, last_step=10**6
  )
  next(stream)
  cut(sorted(shards.glob('*.tfrecord-*'))[1])
  with pytest.raises(data.BadFace, match='-00001-of-00003: record'):
    list(stream)


_IN_MID_STREAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from elasticface_jax import data
source = data.open_encoded(sys.argv[1])
steps = dict(seed=0, batch_size=64, first_step=0, last_step=10**6)
made = data.batches(source, **steps), iter(data.dataset(source, **steps))
for step in range(10**6):
  for stream in made:
    next(stream)
  if step == 3:
    print('reading', flush=True)
"""


def test_interrupt_ends_the_process(written):
  assert_interrupt_ends(_IN_MID_STREAM, written('tfrecord'))


@pytest.mark.parametrize('change, words', [
  ({'last_step': 2**40}, r'more than 2\*\*32 epochs'),
  ({'first_step': -2}, 'step -2 of batches of 4 images: steps count from 0'),
  ({'batch_size': 0}, 'a batch has 1 image or more'),
])  # fmt: skip
def test_steps_that_there_are_not(source, change, words):
  steps = dict(seed=0, batch_size=4, first_step=0, last_step=2) | change
  with pytest.raises(InputError, match=words):
    data.dataset(source, **steps)
  with pytest.raises(InputError, match=words):
    next(data.batches(source, **steps))


@pytest.mark.parametrize('form', ['rec', *FORMS])
@pytest.mark.parametrize('window', WINDOWS)
def test_number_of_steps_is_known(written, form, window):
  source = data.open_encoded(written(form))
  steps = dict(seed=0, batch_size=4, first_step=2, last_step=9)
  assert len(data.dataset(source, window=window, **steps)) == 7


def test_default_method_of_the_decoder_gives_other_pixels(jpegs, decoded):
  # Why the graph names one.
  default = tf.io.decode_jpeg(jpegs[0], 3).numpy()
  assert (default != decoded[0]).any()
  assert (decode.decode_image(jpegs[0]) == decoded[0]).all()
