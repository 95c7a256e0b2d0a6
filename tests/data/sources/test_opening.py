# SPDX-License-Identifier: Apache-2.0
"""One data set in every storage format; and folders that are no data set."""

import shutil

import numpy as np
import pytest

from elasticface_jax import data
from elasticface_jax.data.sources import index
from elasticface_jax.data.tools import prepare
from elasticface_jax.errors import InputError

from ..conftest import EVERY, LABELS, NUM_CLASSES, encode


@pytest.fixture
def people(copy):
  """A folder of images for each class, for one test."""
  return copy('people')


@pytest.fixture(scope='module')
def kinds(written):
  """The data set in four formats, opened."""
  forms = ('rec', 'people', *prepare.FILE_FORMATS)
  return {form: data.open_encoded(written(form)) for form in forms}


def test_kind_is_seen_from_the_path(kinds):
  assert {name: type(source).__name__ for name, source in kinds.items()} == {
    'rec': 'RecSource',
    'people': 'FolderSource',
    'tfrecord': 'ShardSource',
    'array_record': 'ShardSource',
  }
  assert kinds['people'].layout == '5 folders of people'
  assert kinds['tfrecord'].layout == '3 shards of tfrecord'
  assert kinds['array_record'].layout == '3 shards of array_record'


def test_same_images_in_every_format(kinds, jpegs, decoded):
  order = np.random.default_rng(0).permutation(np.repeat(EVERY, 3))
  for source in kinds.values():
    assert (source.num_images, source.num_classes) == (10, NUM_CLASSES)
    encoded, labels = source.read(order)
    assert encoded == [jpegs[i] for i in order]
    assert labels.dtype == np.float64
    assert labels.tolist() == [LABELS[i] for i in order]
    images, labels = source.render(order)
    np.testing.assert_array_equal(images, decoded[order])
    assert labels.dtype == np.int32
  assert len({source.fingerprint for source in kinds.values()}) == 1


def test_same_batches_in_every_format(kinds):
  for window in (0, 2048):
    streams = [
      list(
        data.batches(
          source,
          seed=1,
          batch_size=7,
          first_step=2,
          last_step=6,
          window=window,
        )
      )
      for source in kinds.values()
    ]
    for batches in zip(*streams, strict=True):
      for batch in batches[1:]:
        for x, y in zip(batches[0], batch, strict=True):
          np.testing.assert_array_equal(x, y)


def test_opened_again_from_the_index_that_is_kept(kinds):
  for name, source in kinds.items():
    again = data.open_encoded(source.path)
    assert again.layout == source.layout
    assert again.read(EVERY)[0] == source.read(EVERY)[0], name


def test_inspection_finds_the_same_contents(kinds):
  reports = [data.inspect(source.path) for source in kinds.values()]
  assert all(report.ok for report in reports)
  for fact in ('contents', 'fingerprint', 'images', 'sizes', 'copies'):
    assert len({report.facts[fact] for report in reports}) == 1, fact
  for report in reports:
    np.testing.assert_array_equal(report.images_per_class, [3, 2, 4, 1])


# A folder of people.


def test_people_and_images_are_in_the_order_of_their_bytes(tmp_path, jpegs):
  names = ['10/b.jpg', '10/a.PNG', '9/x.jpeg', 'Ä/é.JPG', 'a b/ü 1.jpg']
  for name, jpeg in zip(names, jpegs, strict=False):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(jpeg)
  (tmp_path / 'b').mkdir()
  source = data.open_encoded(tmp_path)
  assert source.num_classes == 5  # A person without images is a class, too.
  places = [source.place(i) for i in range(5)]
  expected = ['10/a.PNG', '10/b.jpg', '9/x.jpeg', 'a b/ü 1.jpg', 'Ä/é.JPG']
  assert places == [f'{tmp_path}/{name}' for name in expected]
  encoded, labels = source.read(np.arange(5))
  assert labels.tolist() == [0, 0, 1, 2, 4]
  assert encoded == [jpegs[names.index(name)] for name in expected]


def test_other_files_are_left_out_and_counted(people):
  (people / 'person 1' / 'Thumbs.db').write_text('?')
  (people / 'person 2' / 'notes.txt').write_text('?')
  (people / 'person 2' / '.hidden.jpg').write_text('?')
  (people / '.cache').mkdir()
  (people / 'README').write_text('?')
  source = data.open_encoded(people)
  assert source.num_images == 10
  assert source.layout == '5 folders of people, 2 other files left out'


def test_a_change_of_the_folder_is_seen(people, jpegs):
  assert data.open_encoded(people).num_images == 10
  assert (people / index.NAME).is_file()
  (people / 'person 2' / 'new.jpg').write_bytes(jpegs[0])
  assert data.open_encoded(people).num_images == 11
  (people / 'person 9').mkdir()
  assert data.open_encoded(people).num_classes == 6
  (people / 'person 0' / '000.jpg').rename(people / 'person 9' / '000.jpg')
  _, labels = data.open_encoded(people).read(np.arange(11))
  assert labels.tolist() == [0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5]


def image_next_to_folders(root):
  (root / 'a.jpg').write_bytes(b'')


def nested(root):
  (root / 'person 1' / 'deep').mkdir()


def no_images(root):
  for path in root.glob('*/*'):
    path.unlink()


def empty(root):
  shutil.rmtree(root)
  root.mkdir()


def no_folder(root):
  shutil.rmtree(root)


def file(root):
  shutil.rmtree(root)
  root.write_text('text')


@pytest.mark.parametrize('damage, words', [
  (image_next_to_folders, ['the folders, 1 such as a.jpg', 'of their own']),
  (nested, ['person 1 holds folders', 'two levels above']),
  (no_images, ['5 folders without any JPEG or PNG']),
  (empty, ['neither train.rec, nor dataset_info.json, nor']),
  (no_folder, ['no such folder; give a folder with train.rec']),
  (file, ['is a file; give a folder']),
])  # fmt: skip
def test_folders_that_are_no_data_set(people, damage, words):
  damage(people)
  with pytest.raises(InputError) as raised:
    data.open_encoded(people)
  message = str(raised.value)
  assert message.startswith(str(people)) and '\n' not in message
  for word in words:
    assert word in message


def test_a_bad_image_is_named(people):
  source = data.open_encoded(people)
  (people / 'person 0' / '001.jpg').write_bytes(b'text')
  (people / 'person 1' / '004.jpg').unlink()
  small = encode(np.zeros((50, 60, 3), np.uint8))
  (people / 'person 3' / '006.jpg').write_bytes(small)
  for number, words in (
    (1, f'{people}/person 0/001.jpg: neither a JPEG nor a PNG'),
    (4, f'{people}/person 1/004.jpg: No such file'),
    (6, f'{people}/person 3/006.jpg: the image is 60x50, not 112x112'),
  ):
    with pytest.raises(data.BadFace, match=words) as raised:
      source.render(np.array([0, number, 9]))
    assert raised.value.index == number
    assert f'elasticface inspect {people}' in str(raised.value)
  report = data.inspect(people)
  assert report.num_problems == 2  # Opened anew, it has nine images.
