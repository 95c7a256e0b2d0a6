# SPDX-License-Identifier: Apache-2.0
"""Pickles: plain data are read, and no pickle runs code or fills memory."""

import copyreg
import functools
import gc
import io
import os
import pickle
import struct
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

from elasticface_jax import pickles
from elasticface_jax.pickles import Array, BadPickle, UnknownName

PLAIN = (
  [b'', b'\x00\xff', b'x' * 300, b'y' * 70_000],
  ['', 'plain', 'caf\xe9 \u2603 \\ \n'],
  [None, True, False, 0, 255, 256, 70_000, -1, 2**31, -(2**70), 2**2000],
  [0.0, -1.5, 1e300],
  [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], ((), [()])],
  list(range(3000)),
  tuple(range(3000)),
)


def plain(loaded):
  """Converts arrays to lists, and NumPy scalars to Python's."""
  if isinstance(loaded, Array):
    return plain(list(loaded.values))
  if isinstance(loaded, list | tuple):
    return type(loaded)(map(plain, loaded))
  return loaded.item() if isinstance(loaded, np.generic) else loaded


@pytest.mark.parametrize('protocol', range(6))
def test_plain_data_come_back(protocol):
  loaded = pickles.load(pickle.dumps(PLAIN, protocol))
  assert loaded == PLAIN
  assert str(loaded) == str(PLAIN)  # True is no 1, and a tuple no list.


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('dtype', [
  '?', 'i1', 'u1', '<i2', '>i2', '<u4', '>i4', '<i8', '>u8',
  '<f2', '<f4', '>f4', '<f8', '>f8', 'O',
])  # fmt: skip
def test_arrays_come_back_flat(protocol, dtype):
  array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
  content = [array, array, array[0], array[:0], array.flat[4]]
  loaded = pickles.load(pickle.dumps(content, protocol))
  assert loaded[0] is loaded[1]
  flat = [one.ravel().tolist() for one in content[:-1]]
  assert plain(loaded) == [*flat, 0]


def test_names_of_numpy_1():
  data = pickle.dumps([np.arange(3, dtype='u1'), np.float64(2)], 2)
  assert b'numpy._core' in data
  loaded = pickles.load(data.replace(b'numpy._core', b'numpy.core'))
  assert plain(loaded) == [[0, 1, 2], 2.0]


# Written by hand as Python 2 writes [b'\xff\n\'', b'"', u'\xe9', 1L, True].
PYTHON_2 = [
  b'(lp0\nS"\\xff\\n\'"\np1\naS\'"\'\np2\naV\xe9\np3\naL1L\naI01\na.',
  b'](U\x03\xff\n\'T\x01\x00\x00\x00"X\x02\x00\x00\x00\xc3\xa9L1L\nI01\ne.',
  b'\x80\x02]q\x01(U\x03\xff\n\'U\x01"X\x02\x00\x00\x00\xc3\xa9\x8a\x01\x01\x88e.',
]


@pytest.mark.parametrize(
  'data', [*PYTHON_2, b"(lS'\xff\\n\\''\n" + PYTHON_2[0][19:]]
)
def test_strings_of_python_2_are_bytes(data):
  expected = [b"\xff\n'", b'"', '\xe9', 1, True]
  assert pickles.load(data) == expected
  assert pickle.loads(data, encoding='bytes') == expected


@pytest.mark.parametrize('dtype, order, data', [
  (b'u1', b'|', b'\x01\x00\xff'),
  (b'i2', b'<', b'\x01\x00\x00\x00\xff\x00'),
  (b'i2', b'>', b'\x00\x01\x00\x00\x00\xff'),
])  # fmt: skip
def test_arrays_of_python_2(dtype, order, data):
  data = (
    b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\n'
    b'q\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x03\x85cnumpy\ndtype\nq\x04U\x02'
    + dtype + b'K\x00K\x01\x87Rq\x05(K\x03U\x01' + order
    + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U' + bytes([len(data)])
    + data + b'tb.'
  )  # fmt: skip
  assert pickle.loads(data, encoding='bytes').tolist() == [1, 0, 255]
  assert plain(pickles.load(data)) == [1, 0, 255]


# An audit hook cannot be removed, so it ignores events while this is None. It
# hears all threads, and what earlier tests left to the garbage collector.
watched = None


def watch(event, arguments):
  if watched is not None and threading.get_ident() == watcher:
    watched.append(event)


watcher = threading.get_ident()


sys.addaudithook(watch)


def load_watched(data):
  """Loads a pickle, and fails if Python raises any audit event meanwhile."""
  global watched, watcher
  watcher = threading.get_ident()
  for good in PYTHON_2:  # Late imports happen here, unwatched.
    pickles.load(good)
  gc.disable()
  watched = []
  try:
    return pickles.load(data)
  finally:
    seen, watched = watched, None
    gc.enable()
    assert seen == []


class Evil:
  def __init__(self, *reduced):
    self.reduced = reduced

  def __reduce__(self):
    return self.reduced


def short(text):
  """Returns the instruction for a short string in protocol 4."""
  return b'\x8c' + bytes([len(text)]) + text.encode()


def attacks(folder):
  """Returns programs that make a folder when Python runs them."""
  line = b'S' + repr(folder).encode() + b'\n'
  name = short('posix') + short('mkdir') + b'\x93'
  call = short(folder) + b'\x85R'
  evil = Evil(os.mkdir, (folder,))
  objects = np.empty(2, object)
  objects[:] = [b'', evil]
  return {
    'REDUCE': b'\x80\x02cposix\nmkdir\n(' + line + b'tR.',
    'REDUCE of protocol 0': b'(cposix\nmkdir\n(' + line + b'tRl.',
    'STACK_GLOBAL': b'\x80\x04' + name + call + b'.',
    'dots': b'\x80\x04\x8c\x02os'
    + short('path.os.mkdir')
    + b'\x93'
    + call
    + b'.',
    'INST': b'(' + line + b'iposix\nmkdir\n.',
    'OBJ': b'(cposix\nmkdir\n' + line + b'o.',
    'EXT1': b'\x80\x02\x82\xf0' + call + b'.',
    'EXT2': b'\x80\x02\x83\xf0\x00' + call + b'.',
    'EXT4': b'\x80\x02\x84\xf0\x00\x00\x00' + call + b'.',
    'thrown away': b'\x80\x04(' + name + call + b'1N.',
    'images': pickle.dumps(([b'', evil], [True])),
    'object array': pickle.dumps((objects, [True])),
    'array in an array': pickle.dumps(([objects, objects], objects)),
    'state': pickle.dumps(Evil(OSError, (), {'a': evil})),
    'items': pickle.dumps(Evil(list, (), None, iter([evil]))),
    'dict': pickle.dumps({'a': evil}),
    'set': pickle.dumps({evil}),
  }


@pytest.fixture
def extension():
  copyreg.add_extension('posix', 'mkdir', 0xF0)
  yield
  copyreg.remove_extension('posix', 'mkdir', 0xF0)


@pytest.mark.parametrize('name', attacks(''))
def test_runs_nothing(tmp_path, extension, name):
  folder = str(tmp_path / 'made')
  attack = attacks(folder)[name]
  # Before and after Python keeps the function of an extension in a cache.
  for _ in range(2):
    with pytest.raises(BadPickle) as raised:
      load_watched(attack)
    assert '\n' not in str(raised.value)
    assert not os.path.exists(folder)
    pickle.loads(attack)
    os.rmdir(folder)  # It exists: the attack works.


DTYPE = b'cnumpy\ndtype\n'
ENCODE = b'c_codecs\nencode\n'
SCALAR = b'cnumpy.core.multiarray\nscalar\n'
ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n)R'


@pytest.mark.parametrize('program', [
  # Names, and strings that look like them, are no objects with attributes.
  DTYPE + b'}b', DTYPE + b'N}\x86b', ENCODE + b'N}U\x0c__defaults__)s\x86b',
  b'](Nb', b'U\x00Nb', b'U\x0bnumpy.dtypeU\x02u1\x85R', b'NU\x02u1\x85R',
  b'X\x0b\x00\x00\x00numpy.dtypeU\x02u1\x85R', DTYPE + b'U\x02u1R',
  DTYPE + b')\x81', DTYPE + b')}\x92', b'(' + DTYPE + b'o', b'(inumpy\ndtype\n',
  b'Pid\n', b'NQ', b'\x97', b'N\x98', b'}', b'(d', b'\x8f', b'(\x91',
  # Codecs by name are code that is imported.
  ENCODE + b'X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R',
  SCALAR + b'U\x01aX\x08\x00\x00\x00punycode\x86R',
  # A dtype can be large, strange, and an object of any class.
  *(DTYPE + b'U' + bytes([len(name)]) + name + b'\x85R'
    for name in (b'V8', b'S999999999', b'(999999999,)u1', b'M8', b'c16', b'u3',
                 b'', b'O', b'u1,u1')),
  DTYPE + b'K\x01\x85R', DTYPE + b')\x85R', DTYPE + b']\x85R',
  ARRAY + b'Nb', ARRAY + b'(K\x01)NNU\x00tb', ARRAY + b'NN\x86b',
  SCALAR + DTYPE + b'U\x02i4\x85RU\x03abc\x86R',
  SCALAR + DTYPE + b'U\x02O8\x85RU\x08abcdefgh\x86R',
  # Programs that leave the stack in no valid state.
  b'', b'0', b'2', b'NN', b'(N', b't', b'e', b'a', b'Na', b'NNa', b'N(Ne', b'b',
  b'R', b'h\x01', b'q\x01', b'\x94', b'\x85', b'N\x86', b'\x93', b'KK\x93',
  b'](N',
])  # fmt: skip
def test_refuses(program):
  with pytest.raises(BadPickle) as raised:
    load_watched(b'\x80\x02' + program + b'.')
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', [
  'builtins.eval', 'numpy.load', 'numpy.ndarray.tofile', 'numpy.dtype.type',
  'numpy.core.multiarray.fromfile', 'elasticface_jax.data.pairs.write_pairs',
  'os\n.system\x1b[2J', '\u2028.\ud800', '.', 'x' * 120 + '.' + 'y' * 120,
])  # fmt: skip
def test_says_which_name(name):
  module, _, attribute = name.rpartition('.')
  data = [one.encode('utf-8', 'surrogatepass') for one in (module, attribute)]
  program = b'\x80\x04' + b''.join(
    b'\x8c' + bytes([len(one)]) + one for one in data
  )
  with pytest.raises(UnknownName, match='it asks for ') as raised:
    load_watched(program + b'\x93.')
  message = str(raised.value)
  assert f'asks for {raised.value.name}, which' in message
  assert message.isprintable()
  if name.isprintable():
    assert f'asks for {name[:100]}, which' in message


# 2**50 items in 600 bytes.
LAUGHS = functools.reduce(lambda laughs, _: [laughs, laughs], range(50), 'ha')
LAUGHS = pickle.dumps(LAUGHS, 2)[2:-1]
# A long string and a long tuple, which `GET` repeats.
LONG = b'X' + struct.pack('<I', 100_000) + b'a' * 100_000 + b'q\x09'
WIDE = b'(' + b'N' * 20_000 + b'tq\x09'
GET = b'h\x09'
U1 = DTYPE + b'U\x02u1\x85R'


@pytest.mark.parametrize('program', [
  b'B\xff\xff\xff\xffabc', b'T\xff\xff\xff\x7fabc', b'T\xff\xff\xff\xffabc',
  b'X\xff\xff\xff\xffabc', b'\x8b\xff\xff\xff\x7fab', b'\x8b\xff\xff\xff\xffab',
  # BINBYTES8, BYTEARRAY8, BINUNICODE8, FRAME.
  *(code + struct.pack('<Q', length) + b'N.'
    for code in (b'\x8e', b'\x96', b'\x8d', b'\x95')
    for length in (4, 2**40, 2**63)),
  b'Nr\xff\xff\xff\xff]b', b'Np' + b'9' * 4000 + b'\n]b',
  b'I' + b'9' * 500_000 + b'\n', b'L' + b'9' * 500_000 + b'L\n',
  DTYPE + LAUGHS + b'\x85R', LAUGHS + b'U\x01a\x93',
  U1 + b'N' + LAUGHS + b'\x86b',
  LONG + b'](' + 5000 * (ENCODE + GET + b'V' + b'latin1\n\x86R') + b'eb',
  LONG + b'](' + 5000 * (SCALAR + U1 + GET + b'\x86R') + b'eb',
  WIDE + b'](' + 5000 * (DTYPE + GET + b'R') + b'eb',
  WIDE + b'](' + 5000 * (ARRAY[:-2] + GET + b'R') + b'eb',
])  # fmt: skip
def test_lengths_and_repeats_cost_little(program):
  data = b'\x80\x02' + program + b'.'
  started = time.process_time()
  tracemalloc.start()
  try:
    with pytest.raises(BadPickle):
      load_watched(data)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < (1 << 20) + 100 * len(data)
  assert time.process_time() - started < 10


DEEP = b'N' + b'\x85' * 200_000


@pytest.mark.parametrize('program', [
  DEEP + b'U\x01a\x93', DTYPE + DEEP + b'R', DTYPE + DEEP + b'\x85R',
  U1 + b'N' + DEEP + b'\x86b', ARRAY + b'NN' + DEEP + b'\x87b',
  b'}' + DEEP + b'Ns', b'(' * 100_000,
])  # fmt: skip
def test_no_nesting_is_too_deep(program):
  # The hash of such a tuple can overflow the stack, which ends the process.
  with pytest.raises(BadPickle):
    load_watched(b'\x80\x02' + program + b'.')


def test_depth_alone_is_no_harm():
  loaded = pickles.load(b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.')
  for _ in range(99_999):
    (loaded,) = loaded
  assert loaded == []


def test_a_list_may_hold_itself():
  loaded = pickles.load(pickle.dumps([itself := []], 2)[:-1] + b'h\x01a.')
  assert itself == [] and loaded[0] == []


@pytest.mark.parametrize('protocol', range(6))
def test_byte_arrays_and_arrays_of_strings(protocol):
  content = [bytearray(b'\xff\0a'), bytearray(), np.array([b'ab', b'c\0d'])]
  first, empty, array = load_watched(pickle.dumps(content, protocol))
  assert (first, empty) == (b'\xff\0a', b'')
  assert array.dtype == 'S3' and array.values.tolist() == [b'ab', b'c\0d']


BYTEARRAY = b'cbuiltins\nbytearray\n'


@pytest.mark.parametrize('program', [
  # Of a number, Python would allocate so many bytes; of a list, copy it.
  BYTEARRAY + b'J\xff\xff\xff\x7f\x85R', BYTEARRAY + b'K\x01\x85R',
  BYTEARRAY + b'](K\x01e\x85R', BYTEARRAY + b'U\x01aU\x05utf-8\x86R',
  BYTEARRAY + b'X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R',
  BYTEARRAY + b'X\x01\x00\x00\x00a\x85R', BYTEARRAY + b'R', BYTEARRAY + b'}b',
  *(DTYPE + b'U' + bytes([len(name)]) + name + b'\x85R'
    for name in (b'S', b'S0', b'S-1', b'S1e9', b'S1,S1', b'S 1', b'S99', b'U1',
                 b'S\xb2', b'|S1', b'S01')),
])  # fmt: skip
def test_refuses_other_byte_arrays(program):
  with pytest.raises(BadPickle):
    load_watched(b'\x80\x02' + program + b'.')


@pytest.mark.parametrize('protocol', range(6))
def test_every_cut_is_noticed(protocol):
  content = [b'abc', 'd', [1, 2.0], np.arange(3, dtype='u1'), np.float32(1)]
  data = pickle.dumps(content, protocol)
  for length in range(len(data)):
    with pytest.raises(BadPickle, match='cut off|does not begin'):
      load_watched(data[:length])


class More(pickles.Machine):
  """A machine that knows dictionaries, references, and one name."""

  names = pickles.Machine.names | {'datetime.date'}

  def make_dict(self):
    return {}

  def make(self, name, arguments):
    if name == 'datetime.date':
      return ('date', arguments)
    return super().make(name, arguments)

  def build(self, made, state):
    if not isinstance(made, dict):
      super().build(made, state)

  def find(self, identity):
    return ('found', identity)


def load_more(data):
  return More().load(io.BytesIO(data))


@pytest.mark.parametrize('protocol', range(2, 6))
def test_a_subclass_may_know_dictionaries(protocol):
  content = {
    'a': {},
    b'b': {1: {'x': None}, -(2**70): [{}]},
    '': {'a': 1},
    'many': {i: str(i) for i in range(3000)},
    'one': {5: np.float32(2)},
  }
  loaded = load_more(pickle.dumps(content, protocol))
  assert loaded == content
  assert str(loaded) == str(content)  # In the same order.
  with pytest.raises(BadPickle, match='it holds EMPTY_DICT'):
    pickles.load(pickle.dumps(content, protocol))


def test_a_subclass_may_know_names_and_references():
  date = b'cdatetime\ndate\n'
  program = b'\x80\x02](' + date + b'K\x07\x85RU\x01aQ' + date + b'}}be.'
  assert load_more(program) == [
    ('date', (7,)), ('found', b'a'), 'datetime.date', {},
  ]  # fmt: skip
  with pytest.raises(UnknownName, match='asks for datetime.date, which'):
    pickles.load(program)
  with pytest.raises(BadPickle, match='it holds BINPERSID'):
    pickles.load(b'\x80\x02NQ.')
  with pytest.raises(BadPickle):
    load_more(b'\x80\x02' + date + b'}b.')  # A name has no state.
  with pytest.raises(BadPickle):
    load_more(b'\x80\x02U\x0ddatetime.dateK\x07\x85R.')


def test_one_pickle_after_the_other():
  stream = io.BytesIO(b'..' + pickle.dumps([1], 4) + pickle.dumps({2: 3}, 2))
  stream.seek(2)
  assert pickles.Machine().load(stream) == [1]
  assert More().load(stream) == {2: 3}
  assert stream.read() == b''


@pytest.mark.parametrize('name', ['posix.mkdir', 'builtins.eval'])
def test_the_message_names_the_function_of_inst(name):
  program = '\n'.join(['(i' + name.replace('.', '\n'), '.']).encode()
  with pytest.raises(UnknownName, match=f'asks for {name}, which'):
    load_watched(program)


PRIME = (1 << 61) - 1  # The hash of an int is its remainder.


@pytest.mark.parametrize('program', [
  # Keys that cannot be hashed, or whose hash walks them.
  *(b'}' + key + b'Ns'
    for key in (b'N', b')', b']', b'}', b'\x88', b'G' + b'\0' * 8, DTYPE, U1,
                b'K\x01\x85', DEEP, LAUGHS)),
  # A long key, and another that is equal to it, again and again.
  LONG + b'}' + GET + b'Ns' + LONG[:-2] + b'q\x080(' + 5000 * b'h\x08N' + b'u',
  # Ints that all have the same hash.
  b'}(' + b''.join(
    pickle.dumps(i * PRIME, 2)[2:-1] + b'N' for i in range(1, 30_000)
  ) + b'u',
  # No dictionaries.
  b'NK\x01Ns', b']K\x01Ns', b'](K\x01Nu', ARRAY + b'K\x01Ns', U1 + b'K\x01Ns',
  b'K\x01Ns', b'}(K\x01u', b'}K\x01s', b'}u', b'(u',
])  # fmt: skip
def test_keys_cost_little(program):
  data = b'\x80\x02' + program + b'.'
  started = time.process_time()
  with pytest.raises(BadPickle):
    load_more(data)
  assert time.process_time() - started < 10


def test_many_keys_of_the_usual_kinds():
  content = [
    dict.fromkeys(range(100_000)),
    dict.fromkeys(map(str, range(100_000))),
    dict.fromkeys(range(140_000_000_000_000, 140_000_000_160_000, 16)),
  ]
  assert load_more(pickle.dumps(content, 2)) == content
