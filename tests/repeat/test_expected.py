# SPDX-License-Identifier: Apache-2.0
"""Run folders and packs as they are read, and data that changed."""

import base64
import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import config_rules, data, recipes
from elasticface_jax.errors import InputError
from elasticface_jax.repeat import expected, images, pack, software
from elasticface_jax.repeat.comparison import Comparison
from elasticface_jax.training.records import Records, Watch

START = {
  'versions': {'jax': '1.2', 'python': '3.12.1'},
  'platform': 'cpu',
  'device_kind': 'cpu',
  'cpu_threads': '32',
  'settings': {},
  'data_fingerprint': 'ab' * 32,
  'start_fingerprint': None,
  'step': 0,
}
TENSORS = ('backbone_opt/a', 'class_centers', 'params/a', 'params/b')


def sums(*digits):
  return ''.join(digit * 16 for digit in digits)


def run_of(**changes):
  config = recipes.load('quickstart').to_dict()
  made = expected.Expected(
    path='run',
    is_pack=False,
    config=config_rules.flatten(config),
    starts=[START],
    records=Records(TENSORS, {0: sums(*'0123'), 10: sums(*'4567')}),
    rows={1: {'loss': 3.0}, 5: {'loss': 2.5}, 10: {'loss': 2.0}},
    images=None,
    requirements=('jax==1.2', 'numpy==2.0.0'),
    fingerprints={10: 'cd' * 32},
  )
  return made._replace(**changes)


# Packs.


def content_of(run):
  return json.loads(json.dumps(pack.make(run)))


def written(tmp_path, content):
  path = tmp_path / 'pack'
  path.write_bytes(gzip.compress(json.dumps(content).encode()))
  return path


def test_pack_says_what_the_run_said(tmp_path):
  hashes = np.arange(7, dtype=np.uint32) << 29
  run = run_of(images=expected.Images(hashes, 7, 3, 1, True))
  pack.write(pack.make(run), tmp_path / 'pack')
  read = pack.read(tmp_path / 'pack')
  assert read.is_pack and read.path == str(tmp_path / 'pack')
  np.testing.assert_array_equal(read.images.hashes, hashes)
  assert read.images[1:] == run.images[1:]
  plain = lambda made: json.loads(json.dumps(made._asdict() | {'images': 0}))
  assert plain(read) == plain(run._replace(path=read.path, is_pack=True))
  first = (tmp_path / 'pack').read_bytes()
  pack.write(pack.make(run), tmp_path / 'pack')
  assert (tmp_path / 'pack').read_bytes() == first


def test_pack_of_some_records():
  steps = {step: sums(*'0123') for step in range(0, 50, 5)}
  run = run_of(records=Records(TENSORS, steps), fingerprints={35: 'cd' * 32})
  assert [*map(int, pack.make(run, every=20)['sums'])] == [0, 20, 35, 40, 45]


def test_hashes_of_a_large_set_are_of_blocks(tmp_path):
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**32, 200_000, np.uint32)
  run = run_of(images=expected.Images(hashes, len(hashes), 9, 1, True))
  pack.write(pack.make(run), tmp_path / 'pack')
  read = pack.read(tmp_path / 'pack').images
  assert read.block == 4 and len(read.hashes) == 50_000
  assert (tmp_path / 'pack').stat().st_size < 270_000
  changed = hashes.copy()
  changed[7] ^= 1
  again = expected.in_blocks(data.ImageHashes(changed, True, 9), 4)
  assert np.flatnonzero(read.hashes != again.hashes).tolist() == [1]


def test_run_without_a_record_is_refused():
  with pytest.raises(InputError, match='run has no record of a step'):
    pack.make(run_of(records=Records(), rows={}, fingerprints={}))


def change(field, value):
  def apply(content):
    content[field] = value

  return apply


def in_start(**values):
  return lambda content: content['starts'][0].update(values)


def in_images(**values):
  packed = {
    'num_images': 2,
    'num_classes': 1,
    'block': 1,
    'with_labels': True,
    'hashes': base64.b64encode(bytes(8)).decode(),
  }
  return change('images', packed | values)


@pytest.mark.parametrize(
  'edit',
  [
    change('form', 'another 1'),
    change('starts', []),
    change('starts', None),
    in_start(cpu_threads='1; rm'),
    in_start(cpu_threads=7),
    in_start(versions={'jax': '1\x1b[2J'}),
    in_start(platform='c\x1bpu'),
    in_start(step='2'),
    change('requirements', ['--index-url=http://x']),
    change('requirements', ['a==1\n-e .']),
    change('requirements', ['a @ file:///x']),
    change('tensors', ['params/\x1b[31m', 'b', 'c', 'd']),
    change('tensors', 3),
    change('sums', {'0': sums(*'012')}),
    change('sums', {'0': 'x' * 64}),
    change('sums', {'-1': sums(*'0123')}),
    change('metrics', [{'loss': 1.0}]),
    change('metrics', 7),
    change('fingerprints', {'10': '../..'}),
    change('config', []),
    in_images(hashes='!'),
    in_images(num_images=3),
    in_images(block=0),
    in_images(num_classes='1'),
    in_images(num_images=True),
  ],
)
def test_hostile_content_is_refused(tmp_path, edit):
  content = content_of(run_of())
  pack.read(written(tmp_path, content))
  edit(content)
  with pytest.raises(InputError) as error:
    pack.read(written(tmp_path, content))
  assert str(error.value).isprintable()


def test_damaged_file_is_refused(tmp_path, monkeypatch):
  path = written(tmp_path, content_of(run_of()))
  whole = path.read_bytes()
  for part in (b'', whole[: len(whole) // 2], whole[:-1], b'x' + whole):
    path.write_bytes(part)
    with pytest.raises(InputError, match='is no pack of a run, or is damaged'):
      pack.read(path)
  for flipped in range(12, len(whole), 97):
    path.write_bytes(
      whole[:flipped] + bytes([whole[flipped] ^ 1]) + whole[flipped + 1 :]
    )
    with pytest.raises(InputError):
      pack.read(path)
  path.write_bytes(gzip.compress(b'[' * 100_000))
  with pytest.raises(InputError, match='is no pack'):
    pack.read(path)
  monkeypatch.setattr(pack, 'MAX_BYTES', 2**20)
  path.write_bytes(gzip.compress(bytes(2**21)))
  with pytest.raises(InputError, match='more than 1 MB'):
    pack.read(path)


# Data.

NUM = 2_100  # More than the fingerprint covers.


def jpeg(k, quality=95):
  file = io.BytesIO()
  image = Image.new('RGB', (112, 112), (k % 251, k // 251, 7))
  image.save(file, 'JPEG', quality=quality)
  return file.getvalue()


def write_rec(folder, encoded, num_classes=21):
  per_class = len(encoded) // num_classes
  data.write_rec_folder(
    folder,
    [(one, k // per_class) for k, one in enumerate(encoded)],
    num_classes,
  )
  return data.open_encoded(folder)


@pytest.fixture(scope='module')
def faces():
  return [jpeg(k) for k in range(NUM)]


@pytest.fixture(scope='module')
def trained_on(faces, tmp_path_factory):
  """What a run that was trained on these images, in a .rec, has recorded."""
  source = write_rec(tmp_path_factory.mktemp('rec') / 'a', faces)
  kept = data.ImageHashes.of(*data.read_hashes(source), source.num_classes)
  start = START | {'data_fingerprint': source.fingerprint}
  return run_of(starts=[start], images=expected.in_blocks(kept, 1))


def refusal(run, source):
  with pytest.raises(InputError) as error:
    images.check(run, source, 'PATH', anyway=False)
  message = str(error.value)
  assert message.startswith('PATH is not what the run was trained on: ')
  assert images.check(run, source, 'PATH', anyway=True) in message
  return message


def first_step(run, image):
  size = run.config['data.batch_size']
  for step in range(1 + NUM // size):
    indices = data.batch_indices(
      step, num_images=NUM, seed=run.config['seed'], batch_size=size
    )
    if image in indices:
      return step + 1
  raise AssertionError


def test_same_images_in_another_layout(trained_on, faces, tmp_path):
  for k, one in enumerate(faces):
    person = tmp_path / f'{k // 100:03}'
    person.mkdir(exist_ok=True)
    (person / f'{k:05}.jpg').write_bytes(one)
  source = data.open_encoded(tmp_path)
  assert images.check(trained_on, source, 'PATH', anyway=False) == ''
  # The checks of a folder, which train uses, have the same hashes.
  checked = data.checked_hashes(source)
  assert checked.with_labels
  np.testing.assert_array_equal(checked.hashes, trained_on.images.hashes)
  # An edit in place changes no time of a folder, and is found.
  (tmp_path / '012' / '01234.jpg').write_bytes(jpeg(1234, quality=50))
  same = refusal(trained_on, data.open_encoded(tmp_path))
  assert (
    'image 1,234 (012/01234.jpg) is not the one that it was trained on; it '
    f'comes first in step {first_step(trained_on, 1234)}; give --data'
  ) in same


@pytest.mark.parametrize('sampled', [True, False])
def test_changed_image_of_a_rec(trained_on, faces, tmp_path, sampled):
  sample = np.unique(np.linspace(0, NUM - 1, 1024).astype(int))
  others = np.setdiff1d(np.arange(NUM), sample)
  number = int((sample if sampled else others)[400])
  changed = [*faces]
  changed[number] = jpeg(number, quality=50)
  source = write_rec(tmp_path / 'b', changed)
  start = trained_on.starts[0]
  assert (source.fingerprint != start['data_fingerprint']) == sampled
  message = refusal(trained_on, source)
  assert f'image {number:,} ({number + 1}) is not the one' in message
  assert f'first in step {first_step(trained_on, number)};' in message
  # With two, that which training comes to first is named.
  changed[7] = jpeg(7, quality=50)
  message = refusal(trained_on, write_rec(tmp_path / 'c', changed))
  first = min(number, 7, key=lambda k: first_step(trained_on, k))
  if first_step(trained_on, number) != first_step(trained_on, 7):
    assert f'image {first:,} (' in message
  assert '; 1 more differ; give' in message
  # A pack of a large set names the block.
  blocks = data.ImageHashes(trained_on.images.hashes, True, 21)
  large = trained_on._replace(images=expected.in_blocks(blocks, 50))
  message = refusal(large, source)
  begin = number // 50 * 50
  assert f'one of the images {begin:,} to {begin + 49:,} (' in message


def test_changed_label_and_numbers(trained_on, faces, tmp_path):
  labels = np.arange(NUM) // 100
  labels[700] = 6  # The first of class 7.
  data.write_rec_folder(
    tmp_path / 'a', zip(faces, labels.tolist(), strict=True), 21
  )
  message = refusal(trained_on, data.open_encoded(tmp_path / 'a'))
  assert 'the label of image 700 (701) was 7, is 6; it comes first' in message
  message = refusal(trained_on, write_rec(tmp_path / 'b', faces[:2000], 20))
  assert (
    'it had 2,100 images, has 2,000, and it had 21 classes, has 20' in message
  )


def test_run_without_hashes_is_compared_by_its_fingerprint(
  trained_on, faces, tmp_path
):
  run = trained_on._replace(images=None)
  source = write_rec(tmp_path / 'a', faces)
  assert 'covers 1,024 of them' in images.check(run, source, 'P', anyway=False)
  source = write_rec(tmp_path / 'b', [jpeg(0, 50), *faces[1:]])
  assert 'its fingerprint was' in refusal(run, source)
  drawn = data.SyntheticFaces(64, 8, 0)
  assert 'its fingerprint was' in refusal(run, drawn)
  start = START | {'data_fingerprint': drawn.fingerprint}
  assert images.check(run._replace(starts=[start]), drawn, 'P', False) == ''


def test_hashes_are_kept_whole(tmp_path):
  made = data.ImageHashes.of(
    np.array([-5, 7], np.int32), np.array([0, -1], np.int32), 3
  )
  assert data.ImageHashes.read(tmp_path) is None
  made.write(tmp_path)
  read = data.ImageHashes.read(tmp_path)
  np.testing.assert_array_equal(read.hashes, made.hashes)
  assert read[1:] == (True, 3)
  (tmp_path / 'image_hashes.npz').write_bytes(b'PK')
  with pytest.raises(InputError, match='is damaged; restore it'):
    data.ImageHashes.read(tmp_path)


# Software.


def test_notes_refuse_nothing():
  here = START | {'versions': {'jax': '1.2', 'python': '3.11'}}
  notes = software.check([START], here, 'run', anyway=False)
  assert notes == ['python was 3.12.1, is 3.11']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'versions': {'python': '3.12.1'}}, 'jax was 1.2, is not installed'),
    ({'platform': 'gpu'}, 'platform was cpu, is gpu'),
    ({'cpu_threads': '8'}, 'cpu_threads was 32, is 8'),
    ({'settings': {'JAX_USE_X': '1'}}, 'JAX_USE_X was not set, is 1'),
  ],
)
def test_what_decides_bits_is_refused(changes, words):
  with pytest.raises(InputError, match=words):
    software.check([START], START | changes, 'run', anyway=False)
  assert software.check([START], START | changes, 'run', anyway=True) == [words]


def test_starts_after_the_last_step_do_not_count():
  later = START | {'step': 10, 'platform': 'gpu'}
  run = run_of(starts=[START, later])
  assert run.started(10) == [START] and run.started(11) == [START, later]


# The comparison.


def as_dict(*digits):
  return dict(zip(TENSORS, (digit * 16 for digit in digits), strict=True))


def test_comparison_names_what_differs():
  comparison = Comparison(run_of(), 10)
  watch = comparison.watch()
  assert watch.steps == {0, 10}
  assert not watch.state(0, as_dict(*'0123'))
  assert not watch.state(3, as_dict(*'0000'))  # Not recorded.
  for step, loss in ((1, 3.0), (5, 2.5), (10, 2.0)):
    watch.metrics({'step': step, 'loss': loss, 'new': 1})
  # One bit of one checksum is enough.
  other = {'params/a': '6' * 15 + '7', 'backbone_opt/a': 'f' * 16}
  assert watch.state(10, as_dict(*'4567') | other)
  assert comparison.report() == (
    'different bits: step 10: params/a differs, and 1 more of 4 tensors; the '
    'record before it, of step 0, is the same; the metrics up to step 10 are '
    'the same'
  )


def test_metrics_at_other_intervals_are_passed_over():
  comparison = Comparison(run_of(), 10)
  for step, loss in ((1, 3.0), (2, 9.0), (5, 9.0), (10, float('nan'))):
    comparison.metrics({'step': step, 'loss': loss})
  assert comparison.rows == [1, 10] and not comparison.same
  assert 'steps 6 to 10, loss was 2.0, is nan' in comparison.report()
  rows = {1: {'loss': float('nan')}}
  comparison = Comparison(run_of(rows=rows), 10)
  comparison.metrics({'step': 1, 'loss': float('nan')})
  assert comparison.same


def test_metrics_after_the_last_record():
  comparison = Comparison(run_of(), 5)
  assert not comparison.state(0, as_dict(*'0123'))
  comparison.metrics({'step': 1, 'loss': 3.0})
  comparison.metrics({'step': 5, 'loss': 2.25})
  assert comparison.report() == (
    'different bits: steps 2 to 5, loss was 2.5, is 2.25; 4 tensors at step 0 '
    'and the metrics at steps 1 and 5 were compared, and all tensors are the '
    'same'
  )


def test_other_fingerprint_in_spite_of_equal_checksums():
  comparison = Comparison(run_of(), 10)
  comparison.state(0, as_dict(*'0123'))
  assert comparison.fingerprints(10, 'a', 'a').endswith('as that of the run')
  assert comparison.same
  text = comparison.fingerprints(10, 'a', 'b')
  assert text == 'different bits: fingerprint of step 10 was a, is b'
  assert not comparison.same


def test_watch_that_nobody_set_ends_nothing():
  assert not Watch().state(1, {}) and Watch().steps == frozenset()
