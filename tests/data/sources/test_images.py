# SPDX-License-Identifier: Apache-2.0
"""Image files without labels, and the names of images and classes."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import data
from elasticface_jax.data.tools import prepare
from elasticface_jax.errors import InputError

from ..conftest import EVERY, LABELS, encode


@pytest.fixture
def flat(tmp_path, jpegs):
  """A folder of images without folders."""
  for name in ('b.jpg', 'a.JPEG', 'ä.Png', '10.jpg', '9.jpg', '.c.jpg'):
    (tmp_path / name).write_bytes(jpegs[0])
  (tmp_path / 'notes.txt').write_text('?')
  return tmp_path


def test_images_of_a_flat_folder_are_in_the_order_of_their_bytes(flat):
  expected = ['10.jpg', '9.jpg', 'a.JPEG', 'b.jpg', 'ä.Png']
  for path in (flat, str(flat)):
    assert data.list_images(path) == [flat / name for name in expected]


def test_one_file_is_a_list_of_one(flat):
  for name in ('b.jpg', 'ä.Png', '.c.jpg'):
    assert data.list_images(str(flat / name)) == [flat / name]


def test_a_name_that_is_no_text_is_kept(tmp_path, jpegs):
  name = os.fsdecode(b'\xe9.jpg')
  (tmp_path / name).write_bytes(jpegs[0])
  (image,) = data.list_images(tmp_path)
  assert data.read_image(image).shape == (112, 112, 3)


@pytest.mark.parametrize('name, words', [
  ('nothing', 'No such file or directory; give a .jpg'),
  ('notes.txt', 'is no image file by its name'),
  ('empty', 'there is no image in it'),
  ('nested', 'holds folders, such as deep; give a folder of images alone'),
])  # fmt: skip
def test_where_no_image_is(flat, name, words):
  (flat / 'empty').mkdir()
  (flat / 'empty' / 'notes.txt').write_text('?')
  (flat / 'nested' / 'deep').mkdir(parents=True)
  (flat / 'nested' / 'a.jpg').write_bytes(b'')
  with pytest.raises(InputError, match=words) as raised:
    data.list_images(flat / name)
  assert str(raised.value).startswith(str(flat / name))
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('form', ['jpeg', 'png'])
def test_read_image_has_any_size(tmp_path, form):
  pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
  encoded = encode(pixels, form)
  (tmp_path / 'a').write_bytes(encoded)
  for path in (tmp_path / 'a', str(tmp_path / 'a')):
    image = data.read_image(path)
    assert image.dtype == np.uint8 and image.shape == (20, 30, 3)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('content, words', [
  (None, 'No such file'),
  (b'', 'there is no image'),
  (b'text', 'neither a JPEG nor a PNG'),
  ('half', 'a damaged image'),
])  # fmt: skip
def test_read_image_names_the_file(tmp_path, jpegs, content, words):
  path = tmp_path / 'a.jpg'
  if content is not None:
    path.write_bytes(jpegs[0][:500] if content == 'half' else content)
  with pytest.raises(InputError, match=words) as raised:
    data.read_image(path)
  assert str(raised.value).startswith(f'{path}: ')
  assert '\n' not in str(raised.value)


def test_names_are_those_of_files_and_folders(written):
  source = data.open_encoded(written('people'))
  assert [source.image_name(i) for i in EVERY] == [
    f'person {label}/{number:03}.jpg' for number, label in enumerate(LABELS)
  ]
  assert source.class_name(2) == 'person 2'


def test_names_that_are_no_text_can_be_written(tmp_path, jpegs):
  folder = tmp_path / os.fsdecode(b'caf\xe9')
  folder.mkdir()
  (folder / 'ü.jpg').write_bytes(jpegs[0])
  source = data.open_encoded(tmp_path)
  assert source.class_name(0) == r'caf\xe9'
  assert source.image_name(0) == r'caf\xe9/ü.jpg'
  source.image_name(0).encode()


def test_names_in_a_rec_folder_are_keys(written):
  source = data.open_encoded(written('rec'))
  names = [source.image_name(i) for i in EVERY]
  assert names == [str(key) for key in range(1, 11)]
  assert [source.class_name(label) for label in (0, 4)] == ['0', '4']


@pytest.mark.parametrize('form', prepare.FILE_FORMATS)
def test_names_in_shards_are_their_places(written, form):
  source = data.open_encoded(written(form))
  names = [source.image_name(i) for i in EVERY]
  assert names[3] == f'aligned_faces-train.{form}-00001-of-00003:0'
  assert len(set(names)) == len(names)
  assert source.class_name(np.int32(3)) == '3'


def test_class_without_a_name_is_its_number(written):
  folder = written('tfrecord')
  path = folder / 'label.labels.txt'
  path.write_text('anna\n')
  source = data.open_encoded(folder)
  assert [source.class_name(label) for label in (0, 3)] == ['anna', '3']
