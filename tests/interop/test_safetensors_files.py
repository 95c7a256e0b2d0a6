# SPDX-License-Identifier: Apache-2.0
"""Files of safetensors: what is written is read, by its own package too."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from elasticface_jax import interop
from elasticface_jax.errors import InputError
from elasticface_jax.interop import safetensors_files, torch_files
from elasticface_jax.interop.torch_files import BadTensor

DTYPES = [
  np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32,
  np.int16, np.int8, np.uint8, np.bool_,
]  # fmt: skip
METADATA = {
  'model': 'iresnet10', 'input_size': [112, 112], 'use_se': False,
  'odd': '"\\\n\x01\x7f\u2603', 'none': None, 'empty': '',
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'net.safetensors'


def arrays():
  rng = np.random.default_rng(0)
  made = {
    np.dtype(dtype).name: rng.integers(0, 100, (2, 3, 4)).astype(dtype)
    for dtype in DTYPES
  }
  return made | {
    'scalar': np.array(5),
    'empty': np.ones((2, 0, 3), np.float32),
    'nan': np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    'caf\xe9 \u2603': np.ones(2, np.float32),
  }


def same(found, expected):
  assert found.dtype == expected.dtype and found.shape == expected.shape
  assert found.tobytes() == expected.tobytes()


def test_what_is_written_is_read(path):
  safetensors_files.write(path, arrays(), METADATA)
  found = safetensors_files.read(path)
  assert found.keys() == arrays().keys()
  for name, array in arrays().items():
    assert found[name].shape == array.shape
    same(found[name].numpy(), array)
  with safetensors.safe_open(path, 'numpy') as file:
    for name, array in arrays().items():
      same(file.get_tensor(name), array)
    metadata = file.metadata()
  assert metadata == safetensors_files.read_metadata(path)
  assert metadata == METADATA | {
    'format': 'pt', 'input_size': '[112, 112]', 'use_se': 'false',
    'none': 'null',
  }  # fmt: skip


def test_layout_and_byte_order_in_memory_do_not_matter(path):
  array = np.arange(24, dtype='f4').reshape(2, 3, 4)
  views = {
    'c': array.transpose(2, 0, 1),
    'f': np.asfortranarray(array),
    'step': array[:, ::2, ::-1],
    'big': array.astype('>f4'),
    'repeated': np.broadcast_to(array[:1], (2, 3, 4)),
  }
  safetensors_files.write(path, views, {})
  for name, found in safetensors_files.read(path).items():
    np.testing.assert_array_equal(found.numpy(), views[name], name)


def test_equal_content_equal_bytes(tmp_path):
  # The package orders metadata anew each time: 8 of them in 40,320 ways.
  metadata = {letter: letter for letter in 'abcdefgh'}
  for number in range(4):
    safetensors_files.write(tmp_path / str(number), arrays(), metadata)
  first, *others = (path.read_bytes() for path in tmp_path.iterdir())
  assert all(other == first for other in others)


def test_a_file_is_complete_or_the_old_one(path, tmp_path, monkeypatch):
  safetensors_files.write(path, {'a': np.ones(3)}, {})
  with pytest.raises(InputError, match='nowhere/a: No such file'):
    safetensors_files.write(tmp_path / 'nowhere' / 'a', {}, {})

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.replace', full)
  with pytest.raises(InputError, match='No space left on device'):
    safetensors_files.write(path, {}, {})
  assert list(tmp_path.iterdir()) == [path]
  assert list(safetensors_files.read(path)) == ['a']


def test_is_told_by_its_content(path):
  safetensors_files.write(path, arrays(), {})
  assert safetensors_files.recognises(path)
  path.write_bytes(path.read_bytes()[:9])
  assert safetensors_files.recognises(path)  # And refused when it is read.
  torch_files.write(path, {}, {})
  assert not safetensors_files.recognises(path)
  for data in (b'', b'{', b'{"a": 1, "b": 2}', b'a' * 8 + b'{'):
    path.write_bytes(data)
    assert not safetensors_files.recognises(path)
  assert not safetensors_files.recognises(path.parent)
  assert not safetensors_files.recognises(path.parent / 'none')


def header_of(**parts):
  text = json.dumps(parts).encode()
  return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize(
  'data',
  [
    header_of(a={'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}),
    header_of(a={'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 4]})
    + bytes(4),
    header_of(a={'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]})
    + bytes(8),
    header_of(a={'dtype': 'F77', 'shape': [], 'data_offsets': [0, 4]})
    + bytes(4),
    header_of(a=3),
    struct.pack('<Q', 2**31) + b'{}',
    struct.pack('<Q', 4) + b'{"a"',
  ],
)
def test_damaged_headers(path, data):
  path.write_bytes(data)
  for read in (safetensors_files.read, interop.from_torch):
    with pytest.raises(
      InputError, match='it is no whole file of saf'
    ) as raised:
      read(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert str(raised.value).isprintable()


def test_every_cut_is_noticed(path):
  safetensors_files.write(path, {'a': np.ones(3), 'b': np.array(3)}, {'c': 1})
  data = path.read_bytes()
  for length in range(9, len(data)):
    path.write_bytes(data[:length])
    with pytest.raises(InputError, match='no whole file of safetensors'):
      safetensors_files.read(path)


def test_dtypes_that_are_not_read(path):
  narrow = np.ones(2, ml_dtypes.float8_e4m3fn)
  safetensors.numpy.save_file({'a': narrow, 'b': np.ones(2)}, path)
  found = safetensors_files.read(path)
  same(found['b'].numpy(), np.ones(2))
  with pytest.raises(BadTensor, match='is F8_E4M3, which is not read'):
    found['a'].numpy()


def test_missing_files(tmp_path):
  for path in (tmp_path / 'none', tmp_path):
    with pytest.raises(InputError, match='No such'):
      safetensors_files.read(path)
