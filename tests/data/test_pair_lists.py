# SPDX-License-Identifier: Apache-2.0
"""LFW's list of pairs: every spelling of it, and every mistake in it."""

import numpy as np
import pytest

from elasticface_jax.data import read_pairs
from elasticface_jax.data.pair_lists import pairs_from_folder, read_pair_list
from elasticface_jax.data.pairs import read_encoded, write_pairs
from elasticface_jax.errors import InputError

TABS = (
  '2\t2\n'
  'Ann\t1\t4\nBo van Dyk\t1\t2\nAnn\t2\tBo van Dyk\t1\nCy\t1\tAnn\t3\n'
  'Cy\t1\t2\nAnn\t2\t3\nCy\t2\tBo van Dyk\t2\nAnn\t1\tCy\t2\n'
)
PAIRS = [
  (('Ann', 1), ('Ann', 4), True),
  (('Bo van Dyk', 1), ('Bo van Dyk', 2), True),
  (('Ann', 2), ('Bo van Dyk', 1), False),
  (('Cy', 1), ('Ann', 3), False),
  (('Cy', 1), ('Cy', 2), True),
  (('Ann', 2), ('Ann', 3), True),
  (('Cy', 2), ('Bo van Dyk', 2), False),
  (('Ann', 1), ('Cy', 2), False),
]
IMAGES = {
  'Ann': ['0001.jpg', '0002.JPG', '0003.jpeg', '0004.png'],
  'Bo van Dyk': ['0001.Png', '0002.jpg', '0002.txt'],
  'Cy': ['0001.jpg', '0002.jpg', '0010.jpg'],
}


@pytest.fixture
def listed(tmp_path):
  def write(text):
    path = tmp_path / 'pairs.txt'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path

  return write


@pytest.fixture
def faces(tmp_path):
  """Folder in LFW's layout; every file contains its own name."""
  for name, files in IMAGES.items():
    (tmp_path / 'lfw' / name).mkdir(parents=True)
    for file in files:
      path = tmp_path / 'lfw' / name / f'{name}_{file}'
      path.write_text(path.name)
  return tmp_path / 'lfw'


def pairs_of(pair_list):
  return [pair[1:] for pair in pair_list]


@pytest.mark.parametrize('change', [
  lambda text: text,
  lambda text: text.partition('\n')[2],
  lambda text: text.replace('\n', '\r\n'),
  lambda text: text.replace('\n', '\n\n \n'),
  lambda text: text.replace('\n', '\t\n').replace('\t', ' \t '),
  lambda text: '\ufeff' + text,
  lambda text: text.rstrip(),
  lambda text: text.replace('\t1', '\t0001'),
])  # fmt: skip
def test_reads_lists(listed, change):
  assert pairs_of(read_pair_list(listed(change(TABS)))) == PAIRS


@pytest.mark.parametrize('space', ['\t', ' ', '   ', ' \t '])
def test_names_without_spaces_need_no_tabs(listed, space):
  text = TABS.replace('Bo van Dyk', 'Bo').replace('\t', space)
  names = {'Bo van Dyk': 'Bo'}
  assert pairs_of(read_pair_list(listed(text))) == [
    tuple((names.get(name, name), number) for name, number in pair[:2])
    + pair[2:]
    for pair in PAIRS
  ]


def test_one_number_is_one_fold(listed):
  lines = TABS.splitlines()[1:5]
  pair_list = read_pair_list(listed('\n'.join(['2', *lines])))
  assert pairs_of(pair_list) == PAIRS[:4]


def test_places_are_lines_of_the_file(listed):
  path = listed(TABS.replace('\n', '\n\n', 1))
  assert [pair.place for pair in read_pair_list(path)] == [
    f'{path}: line {number}' for number in range(3, 11)
  ]


@pytest.mark.parametrize('text, problem', [
  ('', 'there are no pairs'),
  ('\n \n', 'there are no pairs'),
  ('10\t300\n', 'there are no pairs'),
  (b'\xff\xd8\xff\xe0', 'not UTF-8 text'),
  ('\0\1', r"line 1: '\\x00\\x01' is neither"),
  ('Ann\n', "line 1: 'Ann' is neither"),
  ('Ann\t1\n', 'line 1: .* is neither'),
  ('Ann\t1\t2\nAnn\t1\tx\n', r"line 2: 'Ann\\t1\\tx' is neither"),
  ('Ann\t1\t2\nAnn 1 -2\n', "line 2: 'Ann 1 -2' is neither"),
  ('Ann\t1\t2.0\n', 'line 1: .* is neither'),
  ('Ann\t1\t1_0\n', 'line 1: .* is neither'),
  ('Ann\t1\t\u0661\n', 'line 1: .* is neither'),
  ('Ann\t1\t' + '9' * 5000, 'line 1: .* is neither'),
  ('Ann\t1\tBo\n', 'line 1: .* is neither'),
  ('Ann\t1\tBo\t1\t2\n', 'line 1: .* is neither'),
  ('Ann\t1\t\t2\n', 'line 1: .* is neither'),
  ('Ann\t1\tAnn\t2\n', 'line 1: .* two names'),
  ('Ann 1 Bo van Dyk 2\n', 'line 1: .* need tabs'),
  ('1 2 3 4 5\n', 'line 1: .* is neither'),
  ('2\t2\t3\nx', 'line 2: .* is neither'),
  ('Ann\t2\t02', "line 1: 'Ann.*' pairs an image with itself"),
  (TABS.replace('2\t2', '2\t3', 1), r'line 1 announces 2 x 2 x 3 .* 8 follow'),
  (TABS.replace('2\t2', '1\t2', 1), r'line 1 announces 1 x 2 x 2 .* 8 follow'),
  (TABS.replace('2\t2', '2', 1), r'line 1 announces 1 x 2 x 2 .* 8 follow'),
  (TABS.replace('2\t2', '0\t0', 1), r'line 1 announces 0 x 2 x 0 .* 8 follow'),
  (TABS.replace('2\t2', '4\t1', 1),
   'line 3: a pair of one person, but .*line 1 announces 4 x'),
  (TABS.replace('Cy\t1\t2', 'Cy\t1\tAnn\t2'),
   'line 6: a pair of two, but .*line 1 announces 2 x'),
])  # fmt: skip
def test_says_what_is_wrong(listed, text, problem):
  path = listed(text)
  with pytest.raises(InputError, match=problem) as raised:
    read_pair_list(path)
  assert str(raised.value).startswith(f'{path}: ')
  assert '\n' not in str(raised.value)
  assert len(str(raised.value)) < 1000


def test_missing_list(tmp_path):
  with pytest.raises(InputError, match=r'pairs\.txt: No such file'):
    read_pair_list(tmp_path / 'pairs.txt')
  with pytest.raises(InputError, match='Is a directory'):
    read_pair_list(tmp_path)


def test_finds_the_images(listed, faces):
  encoded, same = pairs_from_folder(faces, read_pair_list(listed(TABS)))
  assert [one.decode() for one in encoded] == [
    'Ann_0001.jpg', 'Ann_0004.png',
    'Bo van Dyk_0001.Png', 'Bo van Dyk_0002.jpg',
    'Ann_0002.JPG', 'Bo van Dyk_0001.Png', 'Cy_0001.jpg', 'Ann_0003.jpeg',
    'Cy_0001.jpg', 'Cy_0002.jpg', 'Ann_0002.JPG', 'Ann_0003.jpeg',
    'Cy_0002.jpg', 'Bo van Dyk_0002.jpg', 'Ann_0001.jpg', 'Cy_0002.jpg',
  ]  # fmt: skip
  assert same.dtype == bool
  assert same.tolist() == [pair[2] for pair in PAIRS]


def test_numbers_have_four_digits_or_more(listed, faces):
  (faces / 'Cy' / 'Cy_12345.jpg').write_text('five')
  pair_list = read_pair_list(listed('Cy\t10\t12345\n'))
  encoded, _ = pairs_from_folder(faces, pair_list)
  assert encoded == [b'Cy_0010.jpg', b'five']


def test_counts_missing_images(listed, faces):
  (faces / 'Ann' / 'Ann_0002.JPG').unlink()
  (faces / 'Cy' / 'Cy_0001.jpg').unlink()
  path = listed(TABS.partition('\n')[2] + 'Di\t1\t2\n')
  with pytest.raises(InputError) as raised:
    pairs_from_folder(faces, read_pair_list(path))
  assert str(raised.value).startswith(
    f'{path}: line 3: {faces}/Ann/Ann_0002.jpg is missing, the first of 4 '
  )
  assert '\n' not in str(raised.value)


def test_an_image_that_is_there_twice(listed, faces):
  (faces / 'Cy' / 'Cy_0001.png').write_text('which?')
  with pytest.raises(
    InputError, match=r'line 5: .*Cy_0001\.jpg and Cy_0001\.png'
  ):
    pairs_from_folder(faces, read_pair_list(listed(TABS)))


def test_folders_that_are_none(listed, faces):
  pair_list = read_pair_list(listed(TABS))
  with pytest.raises(InputError, match='none: no such folder'):
    pairs_from_folder(faces / 'none', pair_list)
  image = faces / 'Cy' / 'Cy_0001.jpg'
  image.unlink()
  image.mkdir()
  with pytest.raises(InputError, match=r'Cy_0001\.jpg: Is a directory'):
    pairs_from_folder(faces, pair_list)


@pytest.mark.parametrize('suffix', ['.bin', '.npz'])
def test_from_list_to_pixels(tmp_path, listed, faces, jpegs, decoded, suffix):
  files = sorted(
    path for path in faces.rglob('*_0*') if path.suffix.lower() != '.txt'
  )
  for path, jpeg in zip(files, jpegs, strict=False):
    path.write_bytes(jpeg)
  pairs = pairs_from_folder(faces, read_pair_list(listed(TABS)))
  write_pairs(tmp_path / f'a{suffix}', *pairs)
  encoded, same = read_encoded(tmp_path / f'a{suffix}')
  assert encoded == pairs[0]
  assert same.tolist() == pairs[1].tolist()
  images = read_pairs(tmp_path / f'a{suffix}').images
  np.testing.assert_array_equal(images[0], decoded[0])
  np.testing.assert_array_equal(images[4], decoded[1])
