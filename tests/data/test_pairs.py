# SPDX-License-Identifier: Apache-2.0
"""Pair sets: every form that occurs is read, and no file runs code."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from elasticface_jax.data import inspect_pairs, open_pairs, read_pairs
from elasticface_jax.data.pairs import write_pairs
from elasticface_jax.errors import InputError

from .conftest import encode

SAME = [True, False, False, True, True]


@pytest.fixture
def lfw(tmp_path, jpegs):
  write_pairs(tmp_path / 'lfw.bin', jpegs, SAME)
  return tmp_path / 'lfw.bin'


def test_reads_what_was_written(lfw, decoded):
  pairs = read_pairs(lfw)
  assert pairs.name == 'lfw'
  np.testing.assert_array_equal(pairs.images, decoded)
  assert pairs.images.dtype == np.uint8
  assert pairs.same.dtype == bool
  assert pairs.same.tolist() == SAME


def test_others_read_what_was_written(lfw, jpegs):
  assert pickle.loads(lfw.read_bytes()) == (jpegs, SAME)


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('images', ['bytes', 'arrays', 'object array'])
@pytest.mark.parametrize('same', ['list', 'array', 'scalars', 'ints'])
def test_reads_every_form(tmp_path, jpegs, decoded, protocol, images, same):
  objects = np.empty(len(jpegs), object)
  objects[:] = jpegs
  content = (
    {
      'bytes': jpegs,
      'arrays': [np.frombuffer(one, np.uint8) for one in jpegs],
      'object array': objects,
    }[images],
    {
      'list': SAME,
      'array': np.array(SAME),
      'scalars': [np.bool_(one) for one in SAME],
      'ints': np.array(SAME, '>i4'),
    }[same],
  )
  path = tmp_path / 'a.bin'
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  pairs = read_pairs(path)
  np.testing.assert_array_equal(pairs.images, decoded)
  assert pairs.same.tolist() == SAME


def test_reads_numpy_1_names(tmp_path, jpegs, decoded):
  images = [np.frombuffer(one, np.uint8) for one in jpegs]
  data = pickle.dumps((images, np.array(SAME)), protocol=2)
  assert b'numpy._core' in data
  path = tmp_path / 'a.bin'
  path.write_bytes(data.replace(b'numpy._core', b'numpy.core'))
  np.testing.assert_array_equal(read_pairs(path).images, decoded)


def test_reads_python_2_strings(tmp_path, jpegs, decoded):
  # BINSTRING, which Python 3 never writes, is Python 2's form of bytes.
  strings = b''.join(b'T' + struct.pack('<I', len(one)) + one for one in jpegs)
  flags = b''.join(b'\x88' if one else b'\x89' for one in SAME)
  data = b'\x80\x02](' + strings + b'e](' + flags + b'e\x86.'
  with pytest.raises(UnicodeDecodeError):
    pickle.loads(data)
  path = tmp_path / 'a.bin'
  path.write_bytes(data)
  pairs = read_pairs(path)
  np.testing.assert_array_equal(pairs.images, decoded)
  assert pairs.same.tolist() == SAME


def test_reads_png(tmp_path, pixels):
  write_pairs(tmp_path / 'a.bin', [encode(one, 'png') for one in pixels], SAME)
  np.testing.assert_array_equal(read_pairs(tmp_path / 'a.bin').images, pixels)


@pytest.mark.parametrize('height, width', [(224, 224), (56, 56), (168, 112)])
def test_fits_other_sizes(tmp_path, height, width):
  # A ramp in x and y: resizing keeps it, the crop takes its middle.
  y, x = np.mgrid[:height, :width]
  image = np.stack([y * 200 // height, x * 200 // width, 0 * x], -1)
  encoded = encode(image.astype(np.uint8), 'png')
  write_pairs(tmp_path / 'a.bin', [encoded] * 2, [True])
  images = read_pairs(tmp_path / 'a.bin').images
  assert images.shape == (2, 112, 112, 3)
  scale = 112 / min(height, width)
  margin = (height * scale - 112) / 2
  y, x = np.mgrid[:112, :112]
  expected = np.stack(
    [(y + margin) * 200 / (height * scale), x * 200 / 112, 0 * x], -1
  )
  assert np.abs(images[0] - expected).max() < 3


class Evil:
  def __init__(self, call, *arguments):
    self.reduced = call, arguments

  def __reduce__(self):
    return self.reduced


@pytest.mark.parametrize('protocol', range(6))
def test_runs_nothing(tmp_path, jpegs, protocol):
  trap = tmp_path / 'trap'
  data = pickle.dumps(
    (jpegs, SAME, Evil(os.mkdir, str(trap))), protocol=protocol
  )
  (tmp_path / 'a.bin').write_bytes(data)
  with pytest.raises(InputError, match=r'asks for posix\.mkdir') as raised:
    read_pairs(tmp_path / 'a.bin')
  assert '\n' not in str(raised.value)
  assert not trap.exists()
  pickle.loads(data)
  assert trap.exists()  # The trap works.


@pytest.mark.parametrize('name', [
  b'builtins eval', b'numpy load', b'numpy.core.multiarray fromfile',
  b'numpy ndarray.tofile', b'elasticface_jax.data.pairs write_pairs',
])  # fmt: skip
def test_refuses_every_other_name(tmp_path, name):
  path = tmp_path / 'a.bin'
  path.write_bytes(b'\x80\x04c' + name.replace(b' ', b'\n') + b'\n.')
  with pytest.raises(InputError) as raised:
    read_pairs(path)
  assert f'asks for {name.replace(b" ", b".").decode()}, ' in str(raised.value)


def test_strange_array_types_are_refused(tmp_path):
  path = tmp_path / 'a.bin'
  path.write_bytes(pickle.dumps(([np.zeros(3, 'V8')] * 2, [True])))
  with pytest.raises(InputError, match='not a pickle of'):
    read_pairs(path)


@pytest.mark.parametrize('content, problem', [
  (b'', 'not a pickle of'),
  (b'path,label\n', 'not a pickle of'),
  (b'\xff\xd8\xff\xe0', 'not a pickle of'),
  (pickle.dumps({'a': 1}), 'not a pickle of'),
  (pickle.dumps(([1, 2], [True])), 'not a pickle of'),
  (pickle.dumps(([b'', b''], [True], 3)), 'not a pickle of'),
  (pickle.dumps(('ab', [True])), 'not a pickle of'),
  (pickle.dumps(([], [])), '0 images for 0 pairs'),
  (pickle.dumps(([b'a', b'b', b'c'], [True])), '3 images for 1 pairs'),
  (pickle.dumps(([b'a', b'b'], [True, False])), '2 images for 2 pairs'),
  (pickle.dumps(([b'a', b'b'], [True])), r'image 0 \(pair 0\).*decode'),
])  # fmt: skip
def test_says_what_is_wrong(tmp_path, content, problem):
  path = tmp_path / 'a.bin'
  path.write_bytes(content)
  with pytest.raises(InputError, match=problem) as raised:
    read_pairs(path)
  assert str(raised.value).startswith(f'{path}: ')
  assert '\n' not in str(raised.value)


def test_missing_file(tmp_path):
  with pytest.raises(InputError, match=r'lfw\.bin: No such file'):
    read_pairs(tmp_path / 'lfw.bin')


def test_undecodable_image_is_named(tmp_path, jpegs):
  write_pairs(tmp_path / 'a.bin', [*jpegs[:7], b'junk', *jpegs[8:]], SAME)
  with pytest.raises(InputError, match=r'image 7 \(pair 3\)'):
    read_pairs(tmp_path / 'a.bin')
  report = inspect_pairs(tmp_path / 'a.bin')
  assert not report.ok
  assert 'image 7 (pair 3)' in str(report)


def test_will_not_write_half_a_pair(tmp_path, jpegs):
  with pytest.raises(InputError, match='3 images for 2 pairs'):
    write_pairs(tmp_path / 'a.bin', jpegs[:3], [True, False])


def test_damage_ends_in_one_line(tmp_path, lfw):
  data = lfw.read_bytes()
  rng = np.random.default_rng(0)
  path = tmp_path / 'hurt.bin'
  refused = 0
  for round_ in range(300):
    hurt = bytearray(data)
    at, to = sorted(rng.integers(0, len(data) + 1, 2))
    if round_ % 3 == 0:
      del hurt[at:]
    elif round_ % 3 == 1:
      del hurt[at:to]
    else:
      for position in rng.integers(0, len(data), 8):
        hurt[position] = rng.integers(0, 256)
    path.write_bytes(hurt)
    try:
      read_pairs(path)
    except InputError as error:
      assert '\n' not in str(error)
      refused += 1
  assert refused > 200


def test_stray_memo_index_costs_no_memory(tmp_path):
  # LONG_BINPUT 2**24: the C unpickler makes room for twice as many objects.
  path = tmp_path / 'a.bin'
  path.write_bytes(b'\x80\x04]r\x00\x00\x00\x01.')
  tracemalloc.start()
  with pytest.raises(InputError):
    read_pairs(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1 << 20


def test_open_pairs(lfw):
  assert open_pairs(lfw, num_pairs=20, seed=0).same.tolist() == SAME
  drawn = open_pairs('synthetic', num_pairs=20, seed=0)
  assert drawn.name == 'synthetic'
  assert drawn.images.shape == (40, 112, 112, 3)
