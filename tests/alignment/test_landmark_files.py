# SPDX-License-Identifier: Apache-2.0
"""Files of landmarks, as published and as people write them."""

import numpy as np
import pytest

from elasticface_jax import alignment
from elasticface_jax.errors import InputError

FIVE = np.arange(20.0).reshape(2, 5, 2) + 0.25
NUMBERS = [' '.join(map(str, five.ravel())) for five in FIVE]


@pytest.fixture
def read(tmp_path):
  def read(text, name='points.txt'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return alignment.read_landmarks(path)

  return read


def rows(separator, *, names=('a.jpg', 'b c.jpg'), score=''):
  return ''.join(
    separator.join([name, *numbers.split(), *([score] if score else [])]) + '\n'
    for name, numbers in zip(names, NUMBERS, strict=True)
  )


COLUMNS = [f'{axis}{n}' for n in range(5) for axis in 'xy']
CELEBA = (
  'lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x '
  'leftmouth_y rightmouth_x rightmouth_y\n'
)
VGGFACE2 = 'NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n'


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    (rows(' ', names='ab', score='0.5'), ['a', 'b']),  # IJB.
    (rows('\t'), ['a.jpg', 'b c.jpg']),
    (rows(','), ['a.jpg', 'b c.jpg']),
    ('\t'.join(['image', *COLUMNS]) + '\n' + rows('\t'), ['a.jpg', 'b c.jpg']),
    ('2\n' + CELEBA + rows('  ', names='ab'), ['a', 'b']),
    (VGGFACE2 + rows(',', names=('"n1/a"', '"n1/b"')), ['n1/a', 'n1/b']),
    ('\ufeff\n' + rows(' ', names=('./a', 'd\\b')) + '\n', ['a', 'd/b']),
    (rows(' ', names='ab').replace('\n', '\r\n'), ['a', 'b']),
  ],
)
def test_tables(read, text, names):
  found = read(text)
  assert found.names == names
  np.testing.assert_array_equal(found.points, FIVE)
  scores = [0.5, 0.5] if ' 0.5\n' in text else [np.nan] * 2
  np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize('score', ['', ' 0.7'])
def test_68_points_become_five(read, score):
  points = np.random.default_rng(0).normal(100, 30, (68, 2))
  found = read(f'a.png {" ".join(map(repr, points.ravel().tolist()))}{score}')
  np.testing.assert_array_equal(found.points, [alignment.from_68(points)])
  assert found.scores.tolist() == [0.7] or not score


def test_what_is_written_is_read(read):
  points = np.random.default_rng(0).normal(100, 30, (3, 5, 2))
  names = ['p/a b.jpg', 'p/c,d.jpg', 'é.jpg']
  found = read(alignment.landmark_table(names, points))
  assert found.names == names
  np.testing.assert_array_equal(found.points, points)


def test_names(read):
  found = read(rows('\t', names=('p/a.jpg', 'p/b')))
  for name in ('p/b.jpg', 'p/b.PNG', 'p/b'):
    np.testing.assert_array_equal(found.find(name), FIVE[1])
  for name in ('a.jpg', 'p/a.png', 'p/a', 'p/c.jpg', 'p/b.txt'):
    with pytest.raises(alignment.NotAligned, match='no landmarks of it in'):
      found.find(name)
  np.testing.assert_array_equal(found.find_file('/data/p/a.jpg'), FIVE[0])
  with pytest.raises(alignment.NotAligned):
    found.find_file('/data/q/a.jpg')
  assert found.unused(['p/b.jpg', 'p/x.jpg']) == ['p/a.jpg']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'it is empty'),
    ('\n\n', 'it is empty'),
    ('a.jpg 1 2 3', r"line 1 and those after it are no landmarks: 'a.jpg 1 2"),
    (rows(' ').replace('b c', 'b'), None),
    (rows(' '), 'line 2 has 12 fields, and line 1 11; a line holds the name'),
    (rows('\t').replace('11.25', 'x'), 'line 2 has a field that is no number'),
    (rows(' ', names='aa'), 'line 2 has a again, after line 1; each image'),
    (
      rows(' ', names='aa') + rows(' ', names='ab'),
      'line 2 has a again, after line 1, the first of 2 such lines',
    ),
    (
      'n,x1,x2,x3,x4,x5,y1,y2,y3,y4,y5\n' + rows(','),
      'line 1 names columns that are not x and y of one point after the other',
    ),
    (b'\xff\xfe' + rows(' ').encode('utf-16-le'), 'not UTF-8 text'),
  ],
)
def test_mistakes(read, text, message):
  if message is None:
    read(text)
    return
  with pytest.raises(InputError, match=f'points.txt: {message}'):
    read(text)


def test_missing_file(tmp_path):
  with pytest.raises(InputError, match='none.txt: No such file'):
    alignment.read_landmarks(tmp_path / 'none.txt')
  with pytest.raises(InputError, match='Is a directory'):
    alignment.read_landmarks(tmp_path)
