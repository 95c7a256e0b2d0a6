# SPDX-License-Identifier: Apache-2.0
"""PyTorch files: their content as read, and damaged or hostile ones."""

import argparse
import collections
import contextlib
import datetime
import decimal
import enum
import functools
import io
import os
import pathlib
import pickle
import re
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from unittest import mock

import numpy as np
import pytest

from elasticface_jax import pickles
from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files
from elasticface_jax.interop.torch_files import (
  BadTensor,
  Placeholder,
  Tensor,
)

from .pickled import (
  DTYPES,
  FORMS,
  MAGIC,
  Module,
  Reduced,
  Storage,
  dense,
  dump,
  legacy_of,
  saved,
  tensor,
  torch,
  utils,
  zip_of,
)

forms = pytest.mark.parametrize('form', FORMS)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'net.pth'


@pytest.fixture
def read(path):
  """Reads a file of these bytes."""

  def read(data):
    path.write_bytes(data)
    return torch_files.read(path)

  return read


@pytest.fixture
def refused(read, path):
  """Reads a file of these bytes, which must end in one line; returns it."""

  def refused(data):
    with pytest.raises(InputError) as raised:
      read(data)
    message = str(raised.value)
    assert message.startswith(f'{path}: ') and message.isprintable()
    assert len(message) < 400 + len(str(path))
    return message

  return refused


def arrays():
  rng = np.random.default_rng(7)
  made = {
    name: rng.integers(0, 100, (2, 3, 4)).astype(dtype)
    for name, dtype in DTYPES.items()
  }
  return made | {
    'scalar': np.array(5),
    'empty': np.ones((2, 0, 3), np.float32),
    'nan': np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    'caf\xe9 \u2603': np.array([True, False]),
  }


def same(array, expected):
  assert array.dtype == expected.dtype and array.shape == expected.shape
  assert array.tobytes() == expected.tobytes()


def test_what_is_written_is_read(path):
  expected = arrays()
  torch_files.write(path, expected, {'step': 3, 'order': ['\xe9', None]})
  found = torch_files.read(path)
  assert list(found) == list(expected)
  for name, array in expected.items():
    assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
    same(found[name].numpy(), array)
    found[name].numpy()[...] = 0  # Each call returns a new copy.
    same(found[name].numpy(), array)
  assert torch_files.read_metadata(path) == {'step': 3, 'order': ['\xe9', None]}


def test_layout_and_byte_order_in_memory_do_not_matter(path):
  array = np.arange(24, dtype='f4').reshape(2, 3, 4)
  views = {
    'c': array.transpose(2, 0, 1),
    'f': np.asfortranarray(array),
    'step': array[:, ::2, ::-1],
    'big': array.astype('>f4'),
  }
  torch_files.write(path, views, {})
  for name, found in torch_files.read(path).items():
    same(found.numpy(), np.ascontiguousarray(views[name], 'f4'))


def test_same_content_same_bytes(tmp_path):
  paths = [tmp_path / 'a.pth', tmp_path / 'b.pt']
  for path in paths:
    torch_files.write(path, arrays(), {'step': 3})
  assert paths[0].read_bytes() == paths[1].read_bytes()
  with zipfile.ZipFile(paths[0]) as archive:
    for member in archive.infolist():
      assert member.date_time == (1980, 1, 1, 0, 0, 0)
  assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize('large', [False, True])
def test_storages_are_aligned(path, monkeypatch, large):
  # Tests the headers of files above 4 GB without such files.
  monkeypatch.setattr(torch_files, '_ZIP64_BYTES', 10 if large else 1 << 30)
  expected = arrays()
  torch_files.write(path, expected, {})
  data = path.read_bytes()
  with zipfile.ZipFile(path) as archive:
    assert archive.testzip() is None
    for i, array in enumerate(expected.values()):
      offset = archive.getinfo(f'archive/data/{i}').header_offset
      name, extra = struct.unpack('<HH', data[offset + 26 : offset + 30])
      start = offset + 30 + name + extra
      assert start % 64 == 0
      assert data[start : start + array.nbytes] == array.tobytes()
  for name, found in torch_files.read(path).items():
    same(found.numpy(), expected[name])


def test_a_file_is_complete_or_the_old_one(path, tmp_path, monkeypatch):
  torch_files.write(path, {}, {})
  torch_files.write(path, {'a': np.ones(3)}, {})
  assert list(torch_files.read(path)) == ['a']
  with pytest.raises(InputError, match='nowhere/a.pth: No such file'):
    torch_files.write(tmp_path / 'nowhere' / 'a.pth', {}, {})
  full = OSError(28, 'No space left on device')
  monkeypatch.setattr(torch_files, '_add', mock.Mock(side_effect=full))
  with pytest.raises(InputError, match='No space left on device; nothing is'):
    torch_files.write(path, {}, {})
  assert list(tmp_path.iterdir()) == [path]
  assert list(torch_files.read(path)) == ['a']


@pytest.mark.parametrize('array', [np.ones(2, 'c8'), np.array(['a']), {}])
def test_writes_only_what_torch_has(path, array):
  with pytest.raises(TypeError, match='fc.bias is .*PyTorch has no storage'):
    torch_files.write(path, {'fc.bias': array}, {})
  assert not path.exists()


@pytest.mark.parametrize('metadata', [{'a': np.nan}, {'a': path}])
def test_metadata_are_json(path, metadata):
  with pytest.raises((TypeError, ValueError)):
    torch_files.write(path, {}, metadata)
  assert not path.exists()


def checkpoint():
  weights = collections.OrderedDict()
  weights['conv.weight'] = dense(np.arange(12, dtype='f4').reshape(3, 4), '10')
  weights['bn.num_batches_tracked'] = dense(np.array(7), '2')
  weights._metadata = collections.OrderedDict({'': {'version': 1}})
  return {
    'epoch': 3,
    'state_dict': weights,
    'head': Reduced(
      utils._rebuild_parameter,
      (dense(np.ones(2, 'f8'), '1'), True, collections.OrderedDict()),
    ),
    'old': Reduced(
      utils._rebuild_tensor, (Storage(np.ones(2, 'f2'), '3'), 0, (2,), (1,))
    ),
    'optimizer': {
      'state': {0: {'step': 4}, 140_000_000_000_000: {'buf': None}},
      'param_groups': [
        {'lr': 0.1, 'betas': (0.9, 0.999), 'nesterov': False, 'params': [0, 1]}
      ],
    },
    'scheduler': {'milestones': collections.Counter({8: 1, 14: 1}), 'gamma': 1},
    'sizes': [
      Reduced(torch.Size, ((2, 3),)),
      Reduced(torch.device, ('cuda', 0)),
      Reduced(torch.device, ('cpu',)),
      torch.float32,
      np.float64(0.5),
      np.arange(3),
      b'\x00\xff',
      2**70,
      -1,
    ],
  }


@forms
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_training_checkpoint(read, form, protocol):
  found = read(saved(checkpoint(), form, protocol))
  weights = found['state_dict']
  assert type(weights) is dict
  assert list(weights) == ['conv.weight', 'bn.num_batches_tracked']
  same(weights['conv.weight'].numpy(), np.arange(12, dtype='f4').reshape(3, 4))
  same(weights['bn.num_batches_tracked'].numpy(), np.array(7))
  same(found['head'].numpy(), np.ones(2))
  same(found['old'].numpy(), np.ones(2, 'f2'))
  assert found['optimizer'] == checkpoint()['optimizer']
  assert found['scheduler'] == {'milestones': {8: 1, 14: 1}, 'gamma': 1}
  size, cuda, cpu, dtype, half, array, data, big, less = found['sizes']
  assert (size, cuda, cpu) == ((2, 3), 'cuda:0', 'cpu')
  assert (dtype, half, data) == ('torch.float32', 0.5, b'\x00\xff')
  assert (big, less) == (2**70, -1)
  assert array.values.tolist() == [0, 1, 2]


@forms
def test_every_dtype(read, form):
  expected = {k: v for k, v in arrays().items() if k in DTYPES}
  content = {k: dense(v, k) for k, v in expected.items()}
  for name, found in read(saved(content, form)).items():
    same(found.numpy(), expected[name])


def test_big_endian(read):
  expected = {k: v for k, v in arrays().items() if k in DTYPES}
  data, storages = dump({k: dense(v, k) for k, v in expected.items()})
  for name, found in read(zip_of(data, storages, order='big')).items():
    same(found.numpy(), expected[name])


@forms
def test_views_of_one_storage(read, form):
  items = np.arange(120, dtype='f4')
  full = items.reshape(2, 3, 4, 5)
  views = {
    'full': full,
    'channels last': full.transpose(0, 3, 1, 2),
    'slice': full[1:, ::2, 1:3, 4],
    'last': full[1, 2, 3, 4:],
    'scalar': full[1, 2, 3, 4, ...],
    'diagonal': full[0, 0].diagonal(),
    'one': full[:1, None, :, :1, 2:],
  }
  storage = Storage(items)
  content = {
    name: tensor(
      storage,
      view.shape,
      tuple(stride // 4 for stride in view.strides),
      (view.__array_interface__['data'][0] - items.ctypes.data) // 4,
    )
    for name, view in views.items()
  }
  # The stride of a dim of one is any number.
  content['odd'] = tensor(storage, (1, 2), (2**70, 1))
  views['odd'] = items[None, :2]
  for name, found in read(saved(content, form)).items():
    same(found.numpy(), views[name])


@forms
@pytest.mark.parametrize(
  'shape, strides, offset',
  [
    ((7,), (1,), 0),
    ((6,), (1,), 1),
    ((2, 3), (3, 2), 0),
    ((), (), 6),
    ((1,), (1,), 2**62),
    # More indices than any memory has, all of one value.
    ((2**40,), (0,), 0),
    ((7, 1), (0, 0), 0),
    ((2**31,) * 64, (0,) * 64, 0),
    ((2, 2), (2**61, 1), 0),
  ],
)
def test_tensors_outside_of_their_storage(read, form, shape, strides, offset):
  storage = Storage(np.arange(6, dtype='f4'))
  content = {'bad': tensor(storage, shape, strides, offset)}
  found = read(saved(content, form))['bad']
  with pytest.raises(BadTensor, match='is not within its storage of 6 values'):
    found.numpy()


def test_empty_tensors_of_any_shape(read):
  storage = Storage(np.zeros(0, 'f4'))
  content = {
    'large': tensor(storage, (0, 2**40), (1, 1)),
    'larger': tensor(storage, (0, 2**62), (1, 1)),
    'longer': tensor(storage, (0, 2**80), (1, 1)),
  }
  found = read(saved(content, 'zip'))
  assert found['large'].numpy().shape == (0, 2**40)
  for name in ('larger', 'longer'):
    with pytest.raises(BadTensor, match='no array can have'):
      found[name].numpy()


@forms
@pytest.mark.parametrize(
  'shape, strides, offset',
  [
    ((-1,), (1,), 0),
    ((2,), (-1,), 1),
    ((2,), (1,), -1),
    ((2, 2), (1,), 0),
    ((1,) * 65, (1,) * 65, 0),
    ((2.0,), (1,), 0),
    (2, 1, 0),
    (None, (1,), 0),
    ((True,), (1,), 0),
    ('ab', 'ab', 0),
  ],
)
def test_invalid_shapes(refused, form, shape, strides, offset):
  storage = Storage(np.arange(6, dtype='f4'))
  content = [tensor(storage, shape, strides, offset)]
  assert 'it makes no sense' in refused(saved(content, form))


def test_only_what_is_asked_for_is_read(read, path):
  content = {'good': dense([1.0], '0'), 'bad': dense([123.456, 2.0], '1')}
  data = saved(content, 'zip')
  found = read(data.replace(np.float64(123.456).tobytes(), b'12345678'))
  same(found['good'].numpy(), np.array([1.0]))
  with pytest.raises(BadTensor, match='is lost: its data/1 is cut off or dama'):
    found['bad'].numpy()
  path.unlink()  # The file is open.
  same(found['good'].numpy(), np.array([1.0]))


@forms
def test_a_file_that_shrinks_after_it_is_read(read, path, form):
  found = read(saved({'a': dense(np.ones(100_000))}, form))['a']
  os.truncate(path, 100_000)
  with pytest.raises(BadTensor, match='cut off'):
    found.numpy()


def lie(read, size, items=6, **storage):
  storage = Storage(np.zeros(items, 'f4'), size=size, **storage)
  data, storages = dump([tensor(storage, (2,), (1,))])
  return read(zip_of(data, storages))[0]


@pytest.mark.parametrize('size', [7, 2**40, 2**62])
def test_storages_of_another_size_than_the_pickle_says(read, size):
  with pytest.raises(BadTensor, match=f"'data/0', which has 24 .* {size * 4};"):
    lie(read, size).numpy()


def test_storage_of_another_dtype(read):
  with pytest.raises(BadTensor, match="'data/0', which has 24 bytes, not 48;"):
    lie(read, 6, kind='DoubleStorage').numpy()


@pytest.mark.parametrize('size', [-1, 2**63, 2**2000, 1.5, 'a', None])
def test_storages_of_invalid_size(read, size):
  storage = Storage(np.zeros(6, 'f4'))
  storage.size = size
  data, storages = dump([tensor(storage, (2,), (1,))])
  with pytest.raises(InputError, match='no sense|in an unknown way'):
    read(zip_of(data, storages))


def test_storage_that_is_missing(read):
  data, _ = dump([dense(np.zeros(6, 'f4'), '../data.pkl\n')])
  (found,) = read(zip_of(data))
  with pytest.raises(
    BadTensor, match=r"'data/\.\./data\.pkl\\n', which is mis"
  ):
    found.numpy()


def test_legacy_storages(read, refused):
  storage = Storage(np.arange(6, dtype='f4'), 'k')
  data, storages = dump([tensor(storage, (2,), (1,))], legacy=True)
  (found,) = read(legacy_of(data))
  with pytest.raises(BadTensor, match="is in storage 'k', which is missing"):
    found.numpy()
  intact = legacy_of(data, storages)
  storage.size = 5
  assert "'k' has 5 values, not 6" in refused(legacy_of(data, storages))
  storage.size = 6
  assert "cut off in storage 'k'" in refused(intact[:-1])
  unknown = {'other': Storage(np.zeros(1))}
  assert 'list of storages' in refused(legacy_of(data, storages | unknown))
  assert 'version is not 1001' in refused(
    pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2) + intact
  )


def test_one_storage_two_sizes(refused):
  content = [dense(np.zeros(2)), dense(np.zeros(3))]
  assert "describes storage '0' in two ways" in refused(saved(content, 'zip'))


def tar():
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w') as archive:
    for name in ('pickle', 'storages', 'tensors'):
      archive.addfile(tarfile.TarInfo(name))
  return stream.getvalue()


def other_zip(**members):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name.replace('__', '/'), content)
  return stream.getvalue()


EMPTY = pickle.dumps({}, 2)


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'it is empty; copy or download it again'),
    (b'hello', 'it is not a file of torch.save'),
    (b'\x00' * 1000, 'it is not a file of torch.save'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'\n <!DOCTYPE html><html>', 'a web page; download the file itself'),
    (b'<HTML>', 'a web page; download the file itself'),
    (tar(), 'a tar file, as torch wrote them before 2017'),
    (zip_of(EMPTY, constants__pkl=b''), 'a TorchScript archive'),
    (other_zip(a=b'a'), 'a zip file, but not of torch.save'),
    (other_zip(**{'data.pkl': b'a'}), 'a zip file, but not of torch.save'),
    (
      other_zip(**{'a/data.pkl': EMPTY, 'b/data.pkl': EMPTY}),
      'a zip file, but not of torch.save',
    ),
    (other_zip(**{'a/data.pkl': EMPTY}), 'data.pkl is compressed'),
    (zip_of(EMPTY)[:-1], 'the zip file is cut off'),
    (b'PK\x03\x04', 'the zip file is cut off'),
    (zip_of(EMPTY, order='middle'), 'byteorder is neither little nor big'),
    (zip_of(EMPTY[:-1]), 'cut off or damaged at byte'),
    (zip_of(b''), 'does not begin as a pickle does'),
    (EMPTY, 'a pickle, but not of torch.save'),
    (pickle.dumps([1.0, 'a']), 'a pickle, but not of torch.save'),
    (pickle.dumps(5, 2) * 5, 'a pickle, but not of torch.save'),
    (pickle.dumps(MAGIC), 'cut off|does not begin'),
    (b'\x80\x02' + b'\xff' * 100, 'cut off or damaged at byte 2'),
  ],
)
def test_other_files(refused, data, message):
  assert re.search(message, refused(data))


def test_missing_files(tmp_path):
  for path in (tmp_path / 'none.pth', tmp_path):
    for function in (torch_files.read, torch_files.read_metadata):
      with pytest.raises(InputError, match='No such file|Is a directory'):
        function(path)


def short(text):
  return b'\x8c' + bytes([len(text)]) + text.encode()


def attacks(folder):
  """Returns programs that make a folder when Python runs them."""
  line = b'S' + repr(folder).encode() + b'\n'
  name = short('posix') + short('mkdir') + b'\x93'
  call = short(folder) + b'\x85'
  evil = Reduced(os.mkdir, (folder,))
  return {
    'GLOBAL': b'\x80\x02cposix\nmkdir\n(' + line + b'tR.',
    'STACK_GLOBAL': b'\x80\x04' + name + call + b'R.',
    'INST': b'\x80\x02(' + line + b'iposix\nmkdir\n.',
    'OBJ': b'\x80\x02(cposix\nmkdir\n' + line + b'o.',
    'NEWOBJ': b'\x80\x02cposix\nmkdir\n' + call + b'\x81.',
    'value': pickle.dumps({'a': evil}, 2),
    'key': pickle.dumps({1: [2, {'a': (evil, evil)}]}, 4),
    'state': pickle.dumps(Reduced(OSError, (), {'a': evil}), 2),
    'items': pickle.dumps(
      Reduced(collections.OrderedDict, (), None, None, iter([('a', evil)])), 2
    ),
    'metadata': pickle.dumps(
      Reduced(collections.OrderedDict, (), {'_metadata': evil}), 2
    ),
    'identity': b'\x80\x02cposix\nmkdir\n(' + line + b'tRQ.',
    'eval': pickle.dumps(
      Reduced(eval, (f'__import__("os").mkdir({folder!r})',))
    ),
  }


@forms
@pytest.mark.parametrize('name', attacks(''))
def test_runs_nothing(tmp_path, read, form, name):
  folder = str(tmp_path / 'made')
  attack = attacks(folder)[name]
  # Also in place of the older format's first pickle.
  for data in (FORMS[form](attack), attack):
    try:
      shown = repr(read(data))
    except InputError as error:
      shown = str(error)
    assert shown.isprintable()
    assert not os.path.exists(folder)
    if name not in ('metadata', 'identity') and data != attack:
      assert re.search(r'posix.mkdir|builtin\w*.eval|exceptions.OSError', shown)


@pytest.mark.parametrize('name', attacks(''))
def test_the_attacks_work(tmp_path, name):
  if name == 'NEWOBJ':
    return  # Python makes no object of a function.
  folder = str(tmp_path / 'made')

  class Unpickler(pickle.Unpickler):
    def persistent_load(self, identity):
      return identity

  with contextlib.suppress(Exception):
    Unpickler(io.BytesIO(attacks(folder)[name])).load()
  assert os.path.exists(folder)


SIZE = b'ctorch\nSize\n'
ORDERED = b'ccollections\nOrderedDict\n'
TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'


@pytest.mark.parametrize(
  'program',
  [
    # Known names do no more than they should.
    ORDERED + b'NR', ORDERED + b')R)b', ORDERED + b'}b', ORDERED + b')\x81',
    ORDERED + b'](](KKee\x85R', SIZE + b'K\x02R', SIZE + b'K\x02\x85R',
    SIZE + b']\x85R', TENSOR + b')R', TENSOR + b'(NK\x00))tR',
    TENSOR + b'(ctorch\nFloatStorage\nK\x00))tR',
    b'ctorch._utils\n_rebuild_parameter\nN\x85R',
    b'ctorch\ndevice\nK\x01\x85R', b'ctorch\nFloatStorage\n)R',
    b'ctorch\nfloat32\n)R', b'ctorch\nfloat32\n}b',
    b'ccollections\nCounter\n)R',
    # Invalid references.
    b'NQ', b')Q', b'U\x07storageQ', b'(X\x07\x00\x00\x00storageNU\x010NK\x01tQ',
    b"(X\x07\x00\x00\x00storagectorch\nSize\nX\x01\x00\x00\x000NK\x01tQ",
    b"(X\x06\x00\x00\x00modulectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01tQ",
    b'Pid\n',
    # No dictionaries, and half an item.
    b'}(K\x01u', b']K\x01K\x01s', b'NK\x01K\x01s',
    # No classes, no objects, nothing to take from the stack.
    b'N)\x81', b'N)}\x92', b'(No', b')\x81', b'0', b'1', b'(\x91\x90',
    b'N(N\x90', b'ca\nb\nN\x81b', b'(ia\n.', b'\x82\x01', b'2', b'Na', b'N(e',
    b'ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nN)NtR',
    b'ctorch._tensor\n_rebuild_from_type_v2\n(NN)NtR',
  ],
)  # fmt: skip
def test_wrong_programs(refused, program):
  refused(zip_of(b'\x80\x02' + program + b'.'))


def test_large_pickle_is_not_read(refused):
  data = b'\x80\x02' + b']0' * (1 << 23) + b'N.'
  assert 'larger than 16 MiB' in refused(zip_of(data))


def test_member_longer_than_the_file(read):
  items = 1 << 28
  storage = Storage(np.zeros(6, 'f4'), size=items)
  data, storages = dump({'a': tensor(storage, (2,), (1,))})
  data = bytearray(zip_of(data, storages))
  # The size of data/0 in the directory, twice.
  start = data.index(b'net/data/0', data.index(b'PK\x01\x02')) - 46 + 20
  assert struct.unpack_from('<II', data, start) == (24, 24)
  struct.pack_into('<II', data, start, 4 * items, 4 * items)
  found = read(bytes(data))['a']
  tracemalloc.start()
  try:
    with pytest.raises(BadTensor, match='is lost: its data/0 is cut off'):
      found.numpy()
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 1 << 20


def use(path):
  """Reads everything in a file; returns the errors, of two kinds only."""
  try:
    content = torch_files.read(path)
    torch_files.read_metadata(path)
  except InputError as error:
    return [error]
  errors = []
  heap = [content]
  for _ in range(1000):
    if not heap:
      break
    one = heap.pop()
    if isinstance(one, dict):
      heap += one.values()
    elif isinstance(one, list | tuple):
      heap += one
    elif isinstance(one, Tensor):
      try:
        one.numpy()
      except BadTensor as error:
        errors.append(error)
  return errors


def small(form, path):
  if form == 'ours':
    torch_files.write(path, {'a': np.ones(3), 'b': np.array(3)}, {'step': 1})
    data = path.read_bytes()
    path.unlink()
    return data
  return saved(
    {'a': dense(np.ones((2, 3)), '1'), 'b': [dense(np.array(3), '2'), 0.5]},
    form,
  )


@pytest.mark.parametrize('form', [*FORMS, 'ours'])
def test_every_cut_is_noticed(path, form):
  data = small(form, path)
  path.write_bytes(data)
  assert use(path) == []
  for length in range(len(data)):
    path.write_bytes(data[:length])
    (error,) = use(path)
    assert isinstance(error, InputError)
    assert str(error).isprintable()


def damage(data, rng, begin, end, count):
  """Returns a copy with random bytes at some places in ``[begin, end)``."""
  damaged = bytearray(data)
  for place in rng.integers(begin, end, count):
    damaged[place] = rng.integers(0, 256)
  return damaged


def is_noticed(path, data):
  """Tells whether reading a file of these bytes raises, in printable lines."""
  path.write_bytes(data)
  errors = use(path)
  for error in errors:
    assert str(error).isprintable()
  return bool(errors)


@pytest.mark.parametrize('form', [*FORMS, 'ours'])
def test_damage_raises_nothing_else(path, form):
  rng = np.random.default_rng(3)
  data = small(form, path)
  noticed = sum(
    is_noticed(path, damage(data, rng, 0, len(data), 1 if trial % 2 else 8))
    for trial in range(1000)
  )
  assert noticed > 300


def with_checksums(data):
  """Corrects the checksums of a zip file, so that its pickle is read."""
  data = bytearray(data)
  start = data.index(b'PK\x01\x02')
  while data[start : start + 4] == b'PK\x01\x02':
    size, name, extra, note = struct.unpack(
      '<I4xHHH', data[start + 20 : start + 34]
    )
    (header,) = struct.unpack('<I', data[start + 42 : start + 46])
    lengths = struct.unpack('<HH', data[header + 26 : header + 30])
    begin = header + 30 + sum(lengths)
    checksum = struct.pack('<I', zlib.crc32(data[begin : begin + size]))
    data[start + 16 : start + 20] = data[header + 14 : header + 18] = checksum
    start += 46 + name + extra + note
  return bytes(data)


@pytest.mark.parametrize('form', ['zip', 'ours'])
def test_damage_with_correct_checksums(path, form):
  rng = np.random.default_rng(5)
  data = small(form, path)
  assert with_checksums(data) == data
  begin = data.index(b'data.pkl') + len('data.pkl')
  end = data.index(b'byteorder')
  noticed = 0
  for trial in range(500):
    damaged = damage(data, rng, begin, end - 30, 1 + trial % 3)
    noticed += is_noticed(path, with_checksums(damaged))
  assert noticed > 100


def test_files_without_metadata(path):
  for form in FORMS:
    path.write_bytes(saved({}, form))
    assert torch_files.read_metadata(path) is None


@pytest.mark.parametrize(
  'text', [b'', b'[]', b'{', b'\xff', b'[' * 100_000, b'{"a": ' + b'9' * 5000]
)
def test_invalid_metadata(path, text):
  path.write_bytes(zip_of(EMPTY, metadata__json=text))
  with pytest.raises(InputError, match='metadata.json is no JSON of names'):
    torch_files.read_metadata(path)
  assert torch_files.read(path) == {}


def test_metadata_of_another_zip_file(path):
  path.write_bytes(other_zip(a=b'a'))
  with pytest.raises(InputError, match='not of torch.save'):
    torch_files.read_metadata(path)


def test_names_are_in_full():
  for name in torch_files._Machine.names:
    assert '.' in name
  assert not torch_files._Machine.names <= pickles.Machine.names


class Mode(enum.Enum):
  ONE = 1


class Attributes(dict):
  """As Lightning's AttributeDict, with items and attributes."""


class Items(list):
  pass


class Strange:
  """An object that holds itself, in its arguments too."""

  def __init__(self):
    self.itself = self
    self.arrays = np.array(['a', 'b']), np.array(['2024'], 'M8[Y]')

  def __reduce__(self):
    return Strange, (), self.__dict__


class Slots:
  __slots__ = ('value',)

  def __init__(self):
    self.value = (self,)


def hyper_parameters():
  """Returns what Lightning and its users write beside a state_dict."""
  attributes = Attributes(lr=0.1, mode=Mode.ONE)
  attributes.more = {'path': pathlib.PurePosixPath('a/b')}
  return {
    'args': argparse.Namespace(arch='ir_101', head={'m': 0.4}),
    'attributes': attributes,
    'items': Items([1, Mode.ONE]),
    'partial': functools.partial(print, 1, end=''),
    'path': pathlib.PurePosixPath('a', 'b'),
    'date': datetime.datetime(2024, 1, 2),
    'mode': Mode.ONE,
    'class': Mode,
    'function': os.path.join,
    'complex': 1 + 2j,
    'range': range(3),
    'slice': slice(1, 2),
    'queue': collections.deque([1, 2]),
    'error': ValueError('a'),
    'decimal': decimal.Decimal('0.5'),
    'array': np.array(['a', 'b']),
    'string': np.str_('a'),
    'dates': np.array(['2024'], 'M8[Y]'),
    'random': np.random.default_rng(0),
    'strange': Strange(),
    'slots': Slots(),
    'callbacks': {Mode: {'best': 1}, (1, 2): 3, None: 4, 0.5: 5, True: 6},
    'sets': [{1, 'a'}, frozenset({2}), set()],
    'counts': collections.defaultdict(list, a=[1]),
  }


@forms
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_objects_beside_the_tensors(read, form, protocol):
  content = checkpoint() | {'hyper_parameters': hyper_parameters()}
  found = read(saved(content, form, protocol))
  weights = found['state_dict']
  same(weights['conv.weight'].numpy(), np.arange(12, dtype='f4').reshape(3, 4))
  found = found['hyper_parameters']
  assert list(found) == list(hyper_parameters())
  first, second, third = found['sets']
  assert (sorted(map(str, first)), second, third) == (['1', 'a'], [2], [])
  assert (found['callbacks'], found['counts']) == ({}, {'a': [1]})
  names = {
    'args': 'argparse.Namespace',
    'attributes': f'{__name__}.Attributes',
    'partial': 'functools.partial',
    'path': r'pathlib(._local)?.PurePosixPath',
    'date': 'datetime.datetime',
    'mode': f'{__name__}.Mode',
    'function': 'posixpath.join',
    'queue': 'collections.deque',
    'slots': f'{__name__}.Slots',
    'strange': f'{__name__}.Strange',
  }
  for key, name in names.items():
    assert isinstance(found[key], Placeholder), key
    assert re.fullmatch(name, found[key].name), found[key].name
  # Their attributes are there, and nothing that they could do.
  assert found['args'].state == {'arch': 'ir_101', 'head': {'m': 0.4}}
  assert not callable(found['partial'])


def network():
  norm = Module(
    weight=dense(np.ones(3, 'f4'), '1'),
    buffers={
      'running_mean': dense(np.zeros(3, 'f4'), '2'),
      'cache': dense(np.zeros(2, 'f4'), '3'),
    },
    unsaved={'cache'},
  )
  conv = Module(weight=dense(np.full((2, 3), 5, 'f4'), '4'), bias=None)
  block = Module({'bn': norm, 'none': None, 'conv': conv})
  return Module({'block': block, 'again': norm}, scale=dense([2.0], '5'))


@forms
@pytest.mark.parametrize('inside', [False, True])
def test_a_pickled_module_is_read_as_its_state_dict(read, form, inside):
  content = {'epoch': 3, 'net': network()} if inside else network()
  found = read(saved(content, form))
  found = found['net'] if inside else found
  assert list(found) == [
    'scale', 'block.bn.weight', 'block.bn.running_mean', 'block.conv.weight',
    'again.weight', 'again.running_mean',
  ]  # fmt: skip
  same(found['block.conv.weight'].numpy(), np.full((2, 3), 5, 'f4'))
  assert found['again.weight'] is found['block.bn.weight']


@forms
def test_one_object_is_no_state_dict(refused, form):
  message = refused(saved(argparse.Namespace(a=1), form))
  assert 'is one object, argparse.Namespace, and no state_dict' in message


def test_a_module_of_the_older_format_has_its_source(read):
  # Its class is in a reference, with its source.
  data = (
    b'\x80\x02(X\x06\x00\x00\x00modulecbackbones.iresnet\nIResNet\nX\x01\x00\x00'
    b'\x00aX\x01\x00\x00\x00btQ)\x81}(X\x0b\x00\x00\x00_parameters}'
    b'X\x08\x00\x00\x00_modules}ub.'
  )
  assert read(legacy_of(data)) == {}


def repeated():
  """2**50 modules in one kilobyte."""
  return functools.reduce(
    lambda made, _: Module({'a': made, 'b': made}), range(50), Module()
  )


def circular():
  made = Module()
  made._modules['a'] = made
  return made


def wide():
  """A thousand modules of a thousand tensors, in ten kilobytes."""
  one = Module(**{f'p{i}': None for i in range(1000)})
  return Module({f'm{i}': one for i in range(1000)})


def broken(**attributes):
  made = Module()
  made.__dict__.update(attributes)
  return made


@pytest.mark.parametrize(
  'module, words',
  [
    (repeated(), 'parts without number'),
    (circular(), 'parts without number'),
    (wide(), 'parts without number'),
    (Module(**{'a' * 2000: None}), 'too long names'),
    (Module({'a': broken(_parameters=None)}), "module 'a' is damaged"),
    (broken(_buffers=[1]), "module '' is damaged"),
    (broken(_non_persistent_buffers_set=3), "module '' is damaged"),
    (broken(_modules=Mode.ONE), "module '' is damaged"),
  ],
  ids=lambda value: value if isinstance(value, str) else None,
)
def test_modules_cost_little(refused, module, words):
  data = saved(module, 'zip')
  started = time.process_time()
  assert words in refused(data)
  assert time.process_time() - started < 10


def test_names_of_other_kinds_in_a_module(read):
  made = Module({'a': 3, b'b': Module(c=dense([1.0])), 4: Module()}, d='text')
  made._parameters[b'e'] = made._parameters[5] = dense([1.0])
  assert read(saved(made, 'zip')) == {}


DEEP = b'N' + b'\x85' * 200_000
# A long tuple, which `GET` repeats.
WIDE = b'(' + b'N' * 20_000 + b'tq\x09'


@pytest.mark.parametrize(
  'program',
  [
    # A class, and objects of it again and again; a long name.
    b'](ca\nb\nq\x01)\x81' + b'h\x01)\x81' * 10_000 + b'e.',
    b'](' + b'ca\nb\n' * 10_000 + b'e.',
    b'](ca\nb\nq\x01' + b'h\x01}}\x92' * 5_000 + b'e.',
    b'](' + b'((ca\nb\nNNo' * 2_000,
    b'X\xff\x00\x00\x00' + b'm' * 255 + b'q\x01X\x20\x00\x00\x00' + b'n' * 32
    + b'q\x02](' + b'h\x01h\x02\x93' * 10_000 + b'e.',
    # What one object is given is not kept twice.
    WIDE + b'](' + b'ca\nb\nh\x09R' * 10_000 + b'e.',
    WIDE + b'ca\nb\n(' + b'h\x09' * 10_000 + b'e.',
  ],
)  # fmt: skip
def test_objects_cost_little(read, program):
  data = zip_of(b'\x80\x04' + program)
  started = time.process_time()
  tracemalloc.start()
  try:
    with contextlib.suppress(InputError):
      read(data)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < (1 << 20) + 100 * len(data)
  assert time.process_time() - started < 20


def test_keys_and_items_of_sets_are_not_hashed(read):
  # The hash of such a tuple can overflow the stack, which ends the process.
  program = b'\x80\x04(' + DEEP + b'q\x09\x8f(h\x09\x90(h\x09\x91}h\x09Nst.'
  _, first, second, items = read(zip_of(program))
  assert (len(first), len(second), items) == (1, 1, {})


def test_names_are_short(refused):
  program = b'c' + b'a' * 200 + b'\n' + b'b' * 200 + b'\n.'
  assert f'asks for {"a" * 100}, which' in refused(
    zip_of(b'\x80\x02' + program)
  )


@pytest.mark.parametrize('form', FORMS)
def test_tensors_of_unknown_kinds(read, form):
  program = (
    b'\x80\x02}(U\x01actorch._utils\n_rebuild_sparse_tensor\n)R'
    b'U\x01bctorch._utils\n_rebuild_tensor_v2\n((U\x07storage'
    b'ctorch\nComplexFloatStorage\nU\x010U\x03cpuK\x02tQK\x00)))tRu.'
  )
  program = program.replace(b'U\x07storage', b'X\x07\x00\x00\x00storage')
  if form == 'legacy':
    with pytest.raises(InputError, match='asks for torch.ComplexFloatStorage'):
      read(legacy_of(program))
    return
  found = read(zip_of(program))
  assert {key: value.name for key, value in found.items()} == {
    b'a': 'torch._utils._rebuild_sparse_tensor',
    b'b': 'torch.ComplexFloatStorage',
  }
