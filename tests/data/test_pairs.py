# SPDX-License-Identifier: Apache-2.0
"""Pair sets: both formats are read and written, damage ends in one line."""

import functools
import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from elasticface_jax.data import inspect_pairs, open_pairs, read_pairs
from elasticface_jax.data.pairs import read_encoded, write_pairs
from elasticface_jax.data.sources import decode
from elasticface_jax.errors import InputError

from .conftest import encode
from .damage import damaged_bytes

SAME = [True, False, False, True, True]


@pytest.fixture(params=['.bin', '.npz'])
def lfw(request, tmp_path, jpegs):
  path = tmp_path / f'lfw{request.param}'
  write_pairs(path, jpegs, SAME)
  return path


def test_reads_what_was_written(lfw, jpegs, decoded):
  pairs = read_pairs(lfw)
  assert pairs.name == 'lfw'
  np.testing.assert_array_equal(pairs.images, decoded)
  assert pairs.images.dtype == np.uint8
  assert pairs.same.dtype == bool
  assert pairs.same.tolist() == SAME
  encoded, same = read_encoded(lfw)
  assert encoded == jpegs
  assert same.tolist() == SAME
  assert inspect_pairs(lfw).ok


def test_others_read_what_was_written(tmp_path, jpegs):
  write_pairs(tmp_path / 'a.bin', jpegs, SAME)
  assert pickle.loads((tmp_path / 'a.bin').read_bytes()) == (jpegs, SAME)
  write_pairs(tmp_path / 'a.npz', jpegs, np.array(SAME))
  with np.load(tmp_path / 'a.npz', allow_pickle=False) as file:
    assert file['version'] == 1
    assert file['same'].tolist() == SAME
    joined, ends = file['data'].tobytes(), file['offsets']
  assert joined == b''.join(jpegs)
  assert [joined[: ends[n]] for n in range(11)] == [
    b''.join(jpegs[:n]) for n in range(11)
  ]


def test_contents_give_the_format(lfw, decoded):
  other = {'.bin': '.npz', '.npz': '.bin'}[lfw.suffix]
  renamed = lfw.rename(lfw.with_suffix(other))
  np.testing.assert_array_equal(read_pairs(renamed).images, decoded)


def test_same_pairs_same_bytes(tmp_path, lfw, jpegs):
  # The same images in other lists: neither time nor place enters a file.
  again = tmp_path / f'again{lfw.suffix}'
  write_pairs(again, tuple(bytearray(one) for one in jpegs), np.array(SAME))
  assert again.read_bytes() == lfw.read_bytes()


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('images', [
  'bytes', 'arrays', 'object array', 'bytearrays', 'array of bytearrays',
  'array of strings', 'arrays of a string', 'strings of NumPy',
])  # fmt: skip
@pytest.mark.parametrize('same', ['list', 'array', 'scalars', 'ints'])
def test_reads_every_pickle(tmp_path, jpegs, decoded, protocol, images, same):
  objects = np.empty(len(jpegs), object)
  objects[:] = jpegs
  mutable = np.empty(len(jpegs), object)
  mutable[:] = [bytearray(one) for one in jpegs]
  content = (
    {
      'bytes': jpegs,
      'arrays': [np.frombuffer(one, np.uint8) for one in jpegs],
      'object array': objects,
      'bytearrays': list(mutable),
      'array of bytearrays': mutable,
      'array of strings': np.array(jpegs),
      'arrays of a string': [np.array(one) for one in jpegs],
      'strings of NumPy': list(np.array(jpegs)),
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


def test_reads_python_2_bytearrays(tmp_path, jpegs, decoded):
  # Python 2 names the codec otherwise than Python 3 does.
  images = [bytearray(one) for one in jpegs]
  codec = b'X\x07\x00\x00\x00latin-1'
  text = b''.join(
    b'c__builtin__\nbytearray\n(X' + struct.pack('<I', len(one)) + one + codec
    + b'tR' for one in (j.decode('latin-1').encode() for j in jpegs)
  )  # fmt: skip
  flags = b''.join(b'I01\n' if one else b'I00\n' for one in SAME)
  data = b'\x80\x02](' + text + b'e](' + flags + b'e\x86.'
  assert pickle.loads(data)[0] == images
  path = tmp_path / 'a.bin'
  path.write_bytes(data)
  np.testing.assert_array_equal(read_pairs(path).images, decoded)


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


def test_repeated_images_cost_nothing(tmp_path, jpegs):
  # NumPy writes an array once and then refers to it. So may a hostile file, a
  # hundred thousand times.
  array = np.frombuffer(jpegs[0] * 100, np.uint8)
  path = tmp_path / 'a.bin'
  path.write_bytes(pickle.dumps(([array] * 20_000, [True] * 10_000)))
  tracemalloc.start()
  encoded, same = read_encoded(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert encoded == [jpegs[0] * 100] * 20_000
  assert len(same) == 10_000
  assert peak < 20 * path.stat().st_size


def test_memory_that_is_not_there(tmp_path, jpegs, monkeypatch):
  write_pairs(tmp_path / 'a.bin', jpegs, SAME)
  monkeypatch.setattr(decode, 'SIZE', 10**7)
  with pytest.raises(InputError, match='10 images take 3,000,000 GB of memory'):
    read_pairs(tmp_path / 'a.bin')


def test_a_strip_is_no_face(tmp_path, jpegs):
  # 112 on its short side, it would take a gigabyte.
  strip = encode(np.zeros((1, 8000, 3), np.uint8))
  write_pairs(tmp_path / 'a.npz', [jpegs[0], strip], [True])
  with pytest.raises(InputError, match=r'image 1 \(pair 0\).*8000x1, too long'):
    read_pairs(tmp_path / 'a.npz')


# 2**50 items in 600 bytes.
LAUGHS = functools.reduce(lambda laughs, _: [laughs, laughs], range(50), 'ha')


@pytest.mark.parametrize('content, problem', [
  (b'', 'a.bin: it is empty; copy the file again'),
  (b'path,label\n', 'not a pickle of .* does not begin as a pickle'),
  (b'\xff\xd8\xff\xe0', 'not a pickle of .* does not begin as a pickle'),
  (pickle.dumps({'a': 1}), 'not a pickle of'),
  (pickle.dumps(([1, 2], [True])), 'not a pickle of'),
  (pickle.dumps(([b'', b''], [True], 3)), 'not a pickle of'),
  (pickle.dumps(('ab', [True])), 'not a pickle of'),
  (pickle.dumps(([b'a', b'b'], 'a')), 'not a pickle of'),
  (pickle.dumps(([b'a', b'b'], ['False'])), 'neither True nor False'),
  (pickle.dumps(([b'a', b'b'], [-1])), 'neither True nor False'),
  (pickle.dumps(([b'a', b'b'], [float('nan')])), 'neither True nor False'),
  (pickle.dumps(([b'a', b'b'], [None])), 'neither True nor False'),
  (pickle.dumps(([b'a', b'b'], [[]])), 'neither True nor False'),
  (pickle.dumps(([np.zeros(3, 'V8')] * 2, [True])), 'not a pickle of'),
  (pickle.dumps(([np.zeros(3, 'i4')] * 2, [True])), 'not a pickle of'),
  (pickle.dumps((np.zeros(2, 'u1'), [True])), 'not a pickle of'),
  (pickle.dumps(([np.zeros(2, 'O')] * 2, [True])), 'not a pickle of'),
  (pickle.dumps(([['a']] * 2, [True])), 'not a pickle of'),
  (pickle.dumps(LAUGHS), 'not a pickle of'),
  (pickle.dumps((LAUGHS, [True])), 'not a pickle of'),
  (pickle.dumps(([b'a', b'b'], LAUGHS)), 'neither True nor False'),
  (pickle.dumps(([], [])), '0 images for 0 pairs'),
  (pickle.dumps(([b'a', b'b', b'c'], [True])), '3 images for 1 pair;'),
  (pickle.dumps(([b'a', b'b'], [True, False])), '2 images for 2 pairs'),
  (pickle.dumps(([b'a', b'b'], [True])), r'image 0 \(pair 0\): '),
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
  with pytest.raises(InputError, match='Is a directory'):
    read_pairs(tmp_path)


@pytest.mark.parametrize('name', ['train.rec', 'train.idx'])
def test_a_training_set_is_no_pair_set(written, name):
  with pytest.raises(InputError, match='give the folder that holds train.rec'):
    read_pairs(written('rec') / name)


def test_resized_images_are_counted(tmp_path, jpegs):
  photo = encode(np.zeros((160, 160, 3), np.uint8))
  strip = encode(np.zeros((160, 150, 3), np.uint8))
  whole = '10 images are not 112x112 (160x160)'
  for number, images, words in (
    (0, jpegs, None),
    (1, [*jpegs[:9], photo], '1 of 10 images is not 112x112 (160x160): '),
    (10, [photo] * 10, whole.replace('10', '10 of 10', 1)),
    (3, [*jpegs[:7], photo, photo, strip], '(most of them 160x160): resized'),
  ):
    path = tmp_path / f'{number}.npz'
    write_pairs(path, images, SAME)
    assert read_pairs(path).num_resized == number
    report = inspect_pairs(path)
    assert report.ok and len(report.notes) == (number > 0)
    if words:
      assert words in report.notes[0]
      assert report.notes[0].endswith(
        'resized and cropped at the centre; give aligned faces'
      )
  assert open_pairs('synthetic', num_pairs=20, seed=0).num_resized == 0


def test_undecodable_image_is_named(tmp_path, jpegs):
  write_pairs(tmp_path / 'a.bin', [*jpegs[:7], b'junk', *jpegs[8:]], SAME)
  with pytest.raises(InputError, match=r'image 7 \(pair 3\)'):
    read_pairs(tmp_path / 'a.bin')
  report = inspect_pairs(tmp_path / 'a.bin')
  assert not report.ok
  assert 'image 7 (pair 3)' in str(report)


def npz(save=np.savez, **changes):
  """Makes a small file in our format, or with other arrays; None leaves out."""
  arrays = {
    'version': np.int64(1),
    'data': np.frombuffer(b'abcdef', np.uint8),
    'offsets': np.array([0, 2, 2, 5, 6]),
    'same': np.array([True, False]),
  } | changes
  out = io.BytesIO()
  save(out, **{k: v for k, v in arrays.items() if v is not None})
  return out.getvalue()


def npy(shape, content, dtype='|u1'):
  header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}"
  header += ' ' * (-(len(header) + 11) % 64) + '\n'
  length = struct.pack('<H', len(header))
  return b'\x93NUMPY\x01\x00' + length + header.encode() + content


def with_data(data):
  """Makes a small file in our format in which ``data.npy`` is these bytes."""
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(npz())) as file,
    zipfile.ZipFile(out, 'w') as o,
  ):
    for name in file.namelist():
      o.writestr(name, data if name == 'data.npy' else file.read(name))
  return out.getvalue()


def with_more(name, data):
  out = io.BytesIO(npz())
  with zipfile.ZipFile(out, 'a') as file, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # It warns of the repeated name.
    file.writestr(name, data)
  return out.getvalue()


def replaced(old, new):
  assert old in npz() and len(old) == len(new)
  return npz().replace(old, new)


@pytest.mark.parametrize('content', [
  npz(), npz(same=np.array([1, 0], bool)), with_data(npy('(6,)', b'abcdef')),
])  # fmt: skip
def test_reads_our_format(tmp_path, content):
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  encoded, same = read_encoded(path)
  assert encoded == [b'ab', b'', b'cde', b'f']
  assert same.tolist() == [True, False]


class Trap:
  def __reduce__(self):
    return os.mkdir, ('trap',)


TRAPS = np.array([Trap(), Trap()])
BAD_BOOL = np.array([1, 2], np.uint8).view(bool)
ENTRY = npz().index(b'PK\x01\x02')  # The first entry of the directory.


@pytest.mark.parametrize('content, problem', [
  (b'PK', 'cut off or damaged'),
  (b'PK\x03\x04 and more', 'cut off or damaged'),
  (b'PK\x05\x06' + bytes(18), 'must hold version, data, offsets, same'),
  *((npz(**{name: None}), 'must hold version, data')
    for name in ('version', 'data', 'offsets', 'same')),
  (npz(more=1), 'nothing else'),
  (with_more('data.npy', b''), 'nothing else'),
  (with_more('more', b''), 'nothing else'),
  (npz(np.savez_compressed), 'not compressed'),
  (npz(np.savez_compressed, data=np.zeros(10**8, 'u1')), 'not compressed'),
  # Objects are pickles.
  *((npz(**{name: TRAPS}), 'cut off or damaged')
    for name in ('version', 'data', 'offsets', 'same')),
  *((npz(data=np.zeros(6, dtype)), '`data` must have dtype uint8 and 1 dim')
    for dtype in ('i1', 'u2', 'f4', 'S1', 'V1', [('a', 'u1')])),
  (npz(data=np.zeros((6, 1), 'u1')), '`data` must have'),
  (npz(data=np.uint8(6)), '`data` must have'),
  (with_data(b''), '`data` must have'),
  (with_data(b'abcdef'), '`data` must have'),
  *((npz(offsets=np.zeros(5, dtype)), '`offsets` must have dtype int64')
    for dtype in ('>i8', 'i4', 'u8', 'f8')),
  (npz(same=np.array([1, 0])), '`same` must have dtype bool'),
  (npz(same=BAD_BOOL), '`same` holds bytes that are neither'),
  (npz(version=np.array([1])), '`version` must have dtype int64 and 0 dim'),
  (npz(version=1.0), '`version` must have dtype int64 and 0 dim'),
  (npz(version=2), 'version 2, and this program reads version 1; update'),
  *((npz(offsets=np.array(offsets)), '`offsets` must rise from 0 to 6')
    for offsets in ([1, 2, 2, 5, 6], [0, 2, 2, 5, 5], [0, 2, 2, 5, 7],
                    [0, 5, 2, 5, 6], [-1, 0, 2, 5, 6], [0, 7, 7, 7, 6],
                    # Differences of 64 bits that are all positive.
                    [0, 2**63 - 1, -(2**63), -1, 6])),
  (npz(offsets=np.zeros(0, int)), '`offsets` must rise'),
  (npz(data=np.zeros(0, 'u1'), offsets=np.zeros(0, int)), 'must rise from 0'),
  (npz(same=np.zeros(0, bool)), '4 images for 0 pairs'),
  (npz(same=np.zeros(3, bool)), '4 images for 3 pairs'),
  (npz(offsets=np.array([0, 2, 5, 6])), '3 images for 2 pairs'),
  (npz(data=np.zeros(0, 'u1'), offsets=np.zeros(1, int),
       same=np.zeros(0, bool)), '0 images for 0 pairs'),
  # A header that promises what the file does not hold.
  *((with_data(npy(shape, b'abcdef')), 'cut off|must have') for shape in (
    '(7,)', '(10000000000,)', '(1000000000000000,)', '(99999999999999999999,)',
    '(-6,)', '(4294967296, 4294967296, 6)', '6', 'None', '(6.0,)', '[6]',
    '__import__("os").mkdir("trap")', '(' * 90 + ')' * 90, '-' * 5000 + '1',
    '(' + '6,' * 9000 + ')')),
  (with_data(npy('(6,)', b'abcdef', '|O')), 'cut off or damaged'),
  (with_data(npy('(3,)', b'abcdef')), '`offsets` must rise from 0 to 3'),
  # Bytes that the checksum, the lengths or the directory do not fit.
  (replaced(b'abcdef', b'abcdeg'), 'cut off or damaged'),
  (replaced(b"'shape': (2,)", b"'shape': (1,)"), 'cut off or damaged'),
  *((npz()[:ENTRY + at] + new + npz()[ENTRY + at + len(new):], 'cut|must hold')
    for at, new in ((8, b'\x01'), (10, b'\x08'), (16, b'\x00\x00\x00\x00'),
                    (20, b'\xff\xff\xff\x7f'), (24, b'\xff\xff\xff\x7f'),
                    (42, b'\xff\xff\xff\x7f'), (46, b'V'))),
])  # fmt: skip
def test_says_what_is_wrong_with_our_format(
  tmp_path, monkeypatch, content, problem
):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  with pytest.raises(InputError, match=problem) as raised:
    read_pairs(path)
  assert str(raised.value).startswith(f'{path}: ')
  assert '\n' not in str(raised.value)
  assert os.listdir() == ['a.npz']


def test_compressed_arrays_are_not_unpacked(tmp_path):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_BZIP2) as file:
    for name in zipfile.ZipFile(io.BytesIO(npz())).namelist():
      file.writestr(name, npy('(10000000,)', bytes(10**7)))
  # The directory says that they are no longer unpacked than packed.
  data, entry = bytearray(out.getvalue()), -1
  while (entry := data.find(b'PK\x01\x02', entry + 1)) >= 0:
    data[entry + 24 : entry + 28] = data[entry + 20 : entry + 24]
  (tmp_path / 'a.npz').write_bytes(data)
  tracemalloc.start()
  with pytest.raises(InputError, match='not compressed'):
    read_pairs(tmp_path / 'a.npz')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 10**6


def test_every_cut_is_noticed(tmp_path):
  path, data = tmp_path / 'a.npz', npz()
  for length in range(0, len(data), 5):
    path.write_bytes(data[:length])
    with pytest.raises(InputError, match='cut off|not a pickle|is empty'):
      read_pairs(path)


# Writing.


@pytest.mark.parametrize('name', ['a', 'a.BIN', 'a.npy', 'a.bin.gz', '.npz'])
def test_the_suffix_is_the_format(tmp_path, jpegs, name):
  with pytest.raises(InputError, match=f'{name}: the suffix chooses'):
    write_pairs(tmp_path / name, jpegs, SAME)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['.bin', '.npz'])
@pytest.mark.parametrize('images, same', [(3, 2), (4, 1), (0, 0), (2, 0)])
def test_will_not_write_half_a_pair(tmp_path, jpegs, suffix, images, same):
  with pytest.raises(InputError, match=f'{images} images for {same} pair'):
    write_pairs(tmp_path / f'a{suffix}', jpegs[:images], SAME[:same])
  assert not list(tmp_path.iterdir())


def test_will_not_overwrite(lfw, jpegs):
  before = lfw.read_bytes()
  with pytest.raises(InputError, match=f'{lfw} exists'):
    write_pairs(lfw, jpegs[:2], [True])
  assert lfw.read_bytes() == before
  assert list(lfw.parent.iterdir()) == [lfw]


def test_will_not_write_into_nowhere(tmp_path, jpegs):
  (tmp_path / 'file').touch()
  for folder, problem in ('none', 'No such file'), ('file', 'Not a directory'):
    path = tmp_path / folder / 'a.bin'
    with pytest.raises(InputError, match=f'{path}: {problem}'):
      write_pairs(path, jpegs, SAME)


@pytest.mark.parametrize('suffix', ['.bin', '.npz'])
@pytest.mark.parametrize(
  'stop', [OSError(28, 'No space left'), KeyboardInterrupt()]
)
def test_a_write_that_stops_leaves_nothing(
  tmp_path, jpegs, monkeypatch, suffix, stop
):
  def write_a_bit(*args, **_):
    file = args[0] if suffix == '.npz' else args[1]
    file.write(b'PK')
    file.flush()
    assert len(list(tmp_path.iterdir())) == 1
    raise stop

  monkeypatch.setattr(np, 'savez', write_a_bit)
  monkeypatch.setattr(pickle, 'dump', write_a_bit)
  with pytest.raises((InputError, KeyboardInterrupt)) as raised:
    write_pairs(tmp_path / f'a{suffix}', jpegs, SAME)
  assert not list(tmp_path.iterdir())
  if isinstance(stop, OSError):
    assert 'No space left; nothing is written' in str(raised.value)


# Damage of every kind at every place.


@pytest.mark.parametrize('suffix', ['.bin', '.npz'])
def test_damage_ends_in_one_line(tmp_path, suffix):
  flat = [np.full((112, 112, 3), 25 * n, np.uint8) for n in range(10)]
  encoded = [encode(one, 'jpeg') for one in flat]
  path = tmp_path / f'a{suffix}'
  write_pairs(path, encoded, SAME)
  intact, data = read_pairs(path), path.read_bytes()
  seams = [data.index(one) for one in encoded] + [len(data)] * 5
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(250):
    path.write_bytes(damaged_bytes(data, rng, seams))
    try:
      pairs = read_pairs(path)
    except InputError as error:
      assert str(error).startswith(f'{path}: ')
      assert '\n' not in str(error)
      refused += 1
      continue
    assert pairs.images.shape == intact.images.shape
    assert pairs.same.shape == intact.same.shape
    if suffix == '.npz':  # Its checksums find every change.
      np.testing.assert_array_equal(pairs.images, intact.images)
      np.testing.assert_array_equal(pairs.same, intact.same)
  assert 150 < refused < 250


def test_open_pairs(lfw):
  assert open_pairs(lfw, num_pairs=20, seed=0).same.tolist() == SAME
  drawn = open_pairs('synthetic', num_pairs=20, seed=0)
  assert drawn.name == 'synthetic'
  assert drawn.images.shape == (40, 112, 112, 3)
