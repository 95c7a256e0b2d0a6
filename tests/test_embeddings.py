# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images: computed in chunks, and found in folders."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from elasticface_jax import embeddings
from elasticface_jax.errors import InputError

SILENT = lambda done, total: None


class Network:
  """A network that embeds by the mean of each colour."""

  title, embedding_dim, eval_rows = 'means', 3, 1

  def __init__(self):
    self.sizes = []

  def embed(self, images):
    self.sizes.append(len(images))
    return images.mean((1, 2)).astype(np.float32)


def test_files_are_read_in_order_and_ahead():
  network, seen = Network(), []
  computed = embeddings.Computed(network)
  paths = [Path(f'{i}.jpg') for i in range(150)]
  found = computed.of_files(
    paths,
    lambda i: np.full((112, 112, 3), i, np.uint8),
    lambda *progress: seen.append(progress),
  )
  np.testing.assert_array_equal(
    found, np.repeat(np.arange(150.0), 3).reshape(150, 3)
  )
  assert network.sizes == [64, 64, 22]
  assert seen == [(0, 150), (64, 150), (128, 150), (150, 150)]
  images = np.zeros((3, 112, 112, 3), np.uint8)
  assert not computed.of_images(images, SILENT).any()
  assert computed.of_files([], None, SILENT).shape == (0, 3)


def test_file_that_cannot_be_read_ends_all():
  read = []

  def fail(i):
    read.append(i)
    if i == 70:
      raise InputError('70.jpg: it is damaged')
    return np.zeros((112, 112, 3), np.uint8)

  paths = [Path(f'{i}.jpg') for i in range(1000)]
  with pytest.raises(InputError, match='70.jpg'):
    embeddings.Computed(Network()).of_files(paths, fail, SILENT)
  assert len(read) < 300


@pytest.fixture
def write(tmp_path):
  def write(name, array, names=None, same=None, data=None):
    folder = tmp_path / name
    folder.mkdir()
    np.save(folder / 'embeddings.npy', array)
    if names is not None:
      rows = ''.join(f'{one}\t0\n' for one in names)
      (folder / 'images.tsv').write_text(f'image\tlabel\n{rows}')
    if same is not None:
      np.save(folder / 'same.npy', same)
    if data is not None:
      (folder / 'metadata.json').write_text(json.dumps({'data': data}))
    return folder

  return write


def test_rows_are_found_by_name(write):
  first = np.arange(6, dtype=np.float32).reshape(3, 2)
  a = write('a', first, ['1.jpg', 'x/1.jpg', r'a\tb.jpg'])
  b = write('b', -first[:2].astype(np.float16), ['y/1.jpg', '2.jpg'])
  folders = [embeddings.open_folder(path) for path in (a, b)]
  saved = embeddings.Saved(folders)
  assert saved.title == 'a, b'
  paths = 'in/y/1.jpg', 'in/x/1.jpg', '1.jpg', 'in/z/1.jpg', 'in/a\tb.jpg'
  found = saved.of_files([Path(path) for path in paths], None, SILENT)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [-first[0], *first[[1, 0, 0, 2]]])
  with pytest.raises(InputError, match="a, b: no embedding of '3.jpg'; images"):
    saved.of_files([Path('in/3.jpg')], None, SILENT)


def test_saved_rows_are_in_memory_once(write):
  rows = np.ones((20_000, 256), np.float32)
  names = [f'{i}.jpg' for i in range(len(rows))]
  saved = embeddings.Saved([embeddings.open_folder(write('a', rows, names))])
  saved.of_files(names[:1], None, SILENT)
  tracemalloc.start()
  try:
    found = saved.of_files(names, None, SILENT)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert found.shape == rows.shape
  # Places of the images take memory too.
  assert peak < 1.9 * rows.nbytes


def test_folders_that_do_not_fit_together(write):
  rows = np.zeros((1, 2), np.float32)
  opened = [
    embeddings.open_folder(write(name, array, names))
    for name, array, names in (
      ('a', rows, ['1.jpg']),
      ('b', rows, ['1.jpg']),
      ('c', rows, None),
      ('d', np.zeros((1, 3), np.float32), ['2.jpg']),
    )
  ]
  a, b, c, d = opened
  for folders, message in (
    ([a, b], "'1.jpg' has an embedding in .*a and in .*b; leave one out"),
    ([a, c], 'c has no images.tsv'),
    ([a, d], 'embeddings of 2 and 3 values; give folders of one network'),
  ):
    with pytest.raises(InputError, match=message):
      embeddings.Saved(folders).of_files(
        [Path('1.jpg'), Path('2.jpg')][: len(folders)], None, SILENT
      )


def test_names_may_begin_with_a_mark(write):
  folder = write('a', np.zeros((1, 2), np.float32))
  (folder / 'images.tsv').write_text('image\n1.jpg\n', 'utf-8-sig')
  assert embeddings.open_folder(folder).names == ['1.jpg']


def test_pair_sets_are_no_folders_of_images(write):
  rows, same = np.ones((2, 2), np.float64), np.array([True])
  pairs = embeddings.open_folder(write('pairs', rows, same=same))
  images = embeddings.open_folder(
    write('images', rows[:1].astype(np.float32), ['1.jpg'])
  )
  found = embeddings.Saved([pairs, images]).of_files(['1.jpg'], None, SILENT)
  assert found.tolist() == [[1, 1]] and found.dtype == np.float32
  with pytest.raises(InputError, match='pairs has no images.tsv'):
    embeddings.Saved([pairs, pairs]).of_files(['1.jpg'], None, SILENT)


def test_name_of_a_pair_set(write, monkeypatch):
  rows, same = np.zeros((4, 2), np.float32), np.array([True, False])
  named = write('a', rows, same=same, data='data/lfw.bin')
  opened = embeddings.open_folder(named)
  assert opened.name == 'lfw' and opened.same.tolist() == [True, False]
  opened = embeddings.open_folder(write('b', rows, same=same))
  assert opened.name == 'b' and opened.names is None
  folder = write('c_0.5', rows, same=same)
  assert embeddings.open_folder(folder).name == 'c_0.5'
  monkeypatch.chdir(folder)
  assert embeddings.open_folder('.').name == 'c_0.5'


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('embeddings.npy', None, 'holds no embeddings.npy'),
    ('embeddings.npy', b'\x93NUMPY', 'embeddings.npy is damaged'),
    ('embeddings.npy', b'PK\x03\x04', 'archive of arrays, .npz; write'),
    ('embeddings.npy', np.zeros(4), r'float64 of shape \[4\], not floating'),
    ('embeddings.npy', np.zeros((4, 2), int), 'int64 of shape'),
    ('same.npy', np.zeros(2), 'same.npy holds float64 .* not bool'),
    ('same.npy', np.ones(3, bool), '3 pairs, embeddings.npy 4 rows'),
    ('metadata.json', b'{', 'is not JSON .*; was it edited. Embed again, or'),
    ('metadata.json', b'[]', 'was it edited. Embed again, or remove that'),
    ('images.tsv', b'', 'images.tsv is empty'),
    ('images.tsv', b'\xff\xfe', 'is empty or no text'),
    ('images.tsv', b'name\na\n', 'no column `image`'),
    ('images.tsv', b'n\timage\n1\ta\n2 b\n3\tc\n4\td\n', 'line 3 has 1 field'),
    ('images.tsv', b'image\na\n', 'names 1 image, embeddings.npy has 4 rows'),
  ],
)
def test_damaged_folders(write, name, content, message):
  folder = write('a', np.zeros((4, 2), np.float32), same=np.ones(2, bool))
  if content is None:
    (folder / name).unlink()
  elif isinstance(content, bytes):
    (folder / name).write_bytes(content)
  else:
    np.save(folder / name, content)
  with pytest.raises(InputError, match=message) as error:
    embeddings.open_folder(folder)
  assert '\n' not in str(error.value) and str(folder) in str(error.value)
