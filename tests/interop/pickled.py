# SPDX-License-Identifier: Apache-2.0
"""Files as torch.save writes them, written without torch."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import ml_dtypes
import numpy as np

DTYPES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
MAGIC = 0x1950A86A20F9469CFC6C


# Stand-ins under torch's names, for Python's pickler to write.
def module(name, **content):
  made = types.ModuleType(name)
  for key, value in content.items():
    with contextlib.suppress(AttributeError, TypeError):
      value.__module__, value.__qualname__ = name, key
    setattr(made, key, value)
  return made


class DType:
  def __reduce__(self):
    return 'float32'


def function():
  return lambda: None


utils = module(
  'torch._utils',
  _rebuild_tensor=function(),
  _rebuild_tensor_v2=function(),
  _rebuild_parameter=function(),
)
torch = module(
  'torch',
  Size=function(),
  device=function(),
  float32=DType(),
  _utils=utils,
  **{name: type(name, (), {}) for name in DTYPES},
)
STAND_INS = {
  'torch': torch,
  'torch._utils': utils,
}


class Storage:
  """Items of a storage, and its description in the pickle, maybe false."""

  def __init__(self, items, key='0', kind=None, size=None):
    self.items = np.asarray(items)
    by_dtype = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    self.kind = kind or by_dtype[self.items.dtype]
    self.key = key
    self.size = len(self.items) if size is None else size


class Reduced:
  """An object that is pickled as the call of a stand-in."""

  def __init__(self, *reduced):
    self.reduced = reduced

  def __reduce__(self):
    return self.reduced


def tensor(storage, shape, strides, offset=0):
  return Reduced(
    utils._rebuild_tensor_v2,
    (storage, offset, shape, strides, False, collections.OrderedDict()),
  )


def dense(array, key='0'):
  array = np.asarray(array)
  strides = tuple(stride // array.itemsize for stride in array.strides)
  return tensor(Storage(array.ravel(), key), array.shape, strides)


def dump(content, protocol=2, *, legacy=False):
  """Pickles content; returns the pickle, and its storages by key."""
  storages = {}

  class Pickler(pickle.Pickler):
    def persistent_id(self, one):
      if isinstance(one, Storage):
        storages[one.key] = one
        kind = getattr(torch, one.kind)
        identity = ('storage', kind, one.key, 'cuda:0', one.size)
        return (*identity, None) if legacy else identity

  stream = io.BytesIO()
  with mock.patch.dict(sys.modules, STAND_INS):
    Pickler(stream, protocol).dump(content)
  return stream.getvalue(), storages


def zip_of(data, storages=None, *, order='little', **others):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w') as archive:
    archive.writestr('net/data.pkl', data)
    archive.writestr('net/byteorder', order)
    for key, storage in (storages or {}).items():
      items = storage.items
      if order == 'big' and items.itemsize > 1:
        items = items.view(f'u{items.itemsize}').byteswap()
      archive.writestr(f'net/data/{key}', items.tobytes())
    for name, content in others.items():
      archive.writestr(f'net/{name.replace("__", ".")}', content)
    archive.writestr('net/version', '3\n')
  return stream.getvalue()


def legacy_of(data, storages=None):
  info = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
  parts = [pickle.dumps(one, 2) for one in (MAGIC, 1001, info)]
  storages = dict(sorted((storages or {}).items()))
  parts += [data, pickle.dumps(list(storages), 2)]
  for storage in storages.values():
    parts += [struct.pack('<q', storage.size), storage.items.tobytes()]
  return b''.join(parts)


def saved(content, form, protocol=2):
  legacy = form == 'legacy'
  return FORMS[form](*dump(content, protocol, legacy=legacy))


FORMS = {'zip': zip_of, 'legacy': legacy_of}


class Module:
  """Attributes of a module of torch."""

  def __init__(self, modules=None, *, buffers=None, unsaved=(), **parameters):
    self.training = False
    self._parameters = collections.OrderedDict(parameters)
    self._buffers = collections.OrderedDict(buffers or {})
    self._non_persistent_buffers_set = set(unsaved)
    self._backward_hooks = collections.OrderedDict()
    self._modules = collections.OrderedDict(modules or {})
