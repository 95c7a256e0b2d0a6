# SPDX-License-Identifier: Apache-2.0
"""PyTorch files, read and written without PyTorch, and without trusting them.

``torch.save`` writes a pickle of nested dictionaries, in which a tensor is a
reference to a storage, an offset and strides; the bytes of the storages are
apart from it. Since PyTorch 1.6 the file is a zip archive, ``X/data.pkl`` with
one member ``X/data/<key>`` for each storage. Before, and still on demand
(`_use_new_zipfile_serialization`), it is five pickles, then the storages. Both
are read here, by a machine that executes nothing (`pickles.Machine`).

Beside the tensors a checkpoint may hold any object: Lightning writes
hyper-parameters of many classes, and ``torch.save(net)`` pickles the whole
module. No class is imported: a `Placeholder` stands for such an object, which
has its name and nothing else. A tensor is made by known names alone.
"""

import abc
import dataclasses
import io
import json
import math
import os
import struct
import sys
import weakref
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from elasticface_jax import atomic, pickles
from elasticface_jax.errors import InputError

_DTYPES = {
  'torch.FloatStorage': np.dtype(np.float32),
  'torch.DoubleStorage': np.dtype(np.float64),
  'torch.HalfStorage': np.dtype(np.float16),
  'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'torch.LongStorage': np.dtype(np.int64),
  'torch.IntStorage': np.dtype(np.int32),
  'torch.ShortStorage': np.dtype(np.int16),
  'torch.CharStorage': np.dtype(np.int8),
  'torch.ByteStorage': np.dtype(np.uint8),
  'torch.BoolStorage': np.dtype(np.bool_),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Python objects take a hundred times the memory of their pickle. That of a
# network of ten thousand tensors, with its optimizer's state, has 5 MB.
_MAX_PICKLE = 1 << 24
_MAX_NDIM = 64  # NumPy's.
_MAX_STORAGE_KEY = 100  # Keys are numbers of twenty digits at most.
# Bounds of the work for a pickled module, whose parts may repeat without end.
_MAX_MODULES = 16
_MAX_PARTS = 1 << 17
_MAX_NAME = 1000
_ALIGNMENT = 64
# A member of more bytes gets a longer header; zipfile's own limit is higher.
_ZIP64_BYTES = 1 << 30
_METADATA = 'metadata.json'
AGAIN = 'copy or download it again'
_SAVE = 'save its state_dict() with torch'


class BadTensor(ValueError):
  """Error of a tensor that its file does not hold intact.

  Only the caller knows the key of the tensor, so the message is the rest of a
  sentence that begins with the file and the key.
  """


class _Source(abc.ABC):
  """Reader of the storages of a file, which it keeps open."""

  byteorder: str
  _last = None, b''

  def read(self, key: str, num_bytes: int) -> bytes:
    """Returns the bytes of a storage."""
    # The last one is kept, since many tensors may be parts of one storage.
    if self._last[0] != key:
      self._last = key, self._fetch(key, num_bytes)
    return self._last[1]

  @abc.abstractmethod
  def _fetch(self, key: str, num_bytes: int) -> bytes:
    """Reads the bytes of a storage from the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
  """A storage as its pickle describes it, unchecked, and where to read it."""

  source: _Source
  key: str
  dtype: np.dtype
  size: int

  def read(self) -> np.ndarray:
    num_bytes = self.size * self.dtype.itemsize
    data = self.source.read(self.key, num_bytes)
    if len(data) != num_bytes:
      raise BadTensor(f'has a storage that is cut off; {AGAIN}')
    if self.source.byteorder == sys.byteorder:
      return np.frombuffer(data, self.dtype)
    bits = np.frombuffer(data, f'u{self.dtype.itemsize}')
    return bits.byteswap().view(self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor in a file, whose values are read on demand.

  Attributes:
    shape: as in the file.
    dtype: of NumPy; bfloat16 is that of ml_dtypes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  _storage: _Storage = dataclasses.field(repr=False)
  _offset: int = dataclasses.field(repr=False)
  _strides: tuple[int, ...] = dataclasses.field(repr=False)

  def numpy(self) -> np.ndarray:
    """Reads the values.

    Returns:
      A new contiguous array of `shape` and `dtype`. It is never larger than
      the storage in the file; but many tensors may share a storage, so check
      shapes before you read them all.

    Raises:
      BadTensor: if the tensor is not within its storage, or the storage is
        missing, damaged or of another size.
    """
    if 0 in self.shape:
      try:
        return np.empty(self.shape, self.dtype)
      except ValueError as error:
        raise BadTensor('has a shape that no array can have') from error
    last = self._offset + sum(
      (n - 1) * stride
      for n, stride in zip(self.shape, self._strides, strict=True)
    )
    size = self._storage.size
    if math.prod(self.shape) > size or last >= size:
      raise BadTensor(f'is not within its storage of {size} values; {AGAIN}')
    strides = [
      stride * self.dtype.itemsize if n > 1 else 0
      for n, stride in zip(self.shape, self._strides, strict=True)
    ]
    values = self._storage.read()[self._offset :]
    view = np.lib.stride_tricks.as_strided(values, self.shape, strides)
    return view.copy()


@dataclasses.dataclass(eq=False, slots=True)
class Placeholder:
  """A stand-in for an object, a class or a function of a pickle.

  It has no behaviour; what the pickle gives it as arguments or items is lost.

  Attributes:
    name: the full name of its class, or of the function that would make it.
    state: its attributes as the pickle has them, maybe damaged.
  """

  name: str
  state: Any = dataclasses.field(default=None, repr=False)


def read(path: str | os.PathLike[str]) -> Any:
  """Reads a file of ``torch.save``, in either of its formats.

  Executes nothing and needs no torch. The values of a tensor are read from the
  open file when its `Tensor.numpy` is called. Of a module that was pickled as a
  whole, alone or in the outermost dictionary, its state_dict is read.

  Args:
    path: the file.

  Returns:
    Dictionaries (ordered ones, counters and those with a default too), lists
    (sets too), tuples, numbers, strings, bytes and None; `Tensor` for tensors
    and parameters, a tuple for ``torch.Size``, a string for devices and dtypes,
    NumPy scalars, `pickles.Array` for NumPy's arrays, and `Placeholder` for
    every other object. They may be nested to any depth, and lists and
    dictionaries may hold themselves. Items of a dictionary whose keys are
    neither strings, bytes nor integers are left out.

  Raises:
    InputError: if the file is missing, cut off, damaged, not ``torch.save``'s,
      a TorchScript archive, or one object that is no module.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'model.pth')
    >>> write(path, {'fc.bias': np.arange(3.0)}, {})
    >>> state_dict = read(path)
    >>> state_dict
    {'fc.bias': Tensor(shape=(3,), dtype=dtype('float64'))}
    >>> state_dict['fc.bias'].numpy()
    array([0., 1., 2.])
  """
  path = Path(path)
  head = _head(path)
  try:
    if head.startswith(b'PK'):
      archive = _Archive(path)
      data = io.BytesIO(archive.member('data.pkl'))
      return _without_modules(_Machine(archive).load(data))
    if head.startswith(b'\x80'):
      return _without_modules(_read_legacy(path))
    raise ValueError(_describe_other(head))
  except pickles.UnknownName as error:
    raise InputError(
      f'{path}: its pickle asks for {error.name}, which is no part of a '
      f'state_dict; if you trust the file, load it with torch and {_SAVE}'
    ) from error
  except pickles.BadPickle as error:
    raise InputError(
      f'{path}: its pickle is not that of a state_dict: {error}; if the file '
      f'is intact, load it with torch and {_SAVE}'
    ) from error
  except ValueError as error:
    raise InputError(f'{path}: {error}') from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Reads the metadata that `write` stores with the tensors.

  Args:
    path: the file.

  Returns:
    The metadata; None if the file has none, as one of ``torch.save``.

  Raises:
    InputError: if the file is missing, or a zip file that is damaged or not
      in the format of ``torch.save``.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'model.pth')
    >>> write(path, {}, {'colour_order': 'RGB'})
    >>> read_metadata(path)
    {'colour_order': 'RGB'}
  """
  path = Path(path)
  if not _head(path).startswith(b'PK'):
    return None
  try:
    archive = _Archive(path)
    if not archive.has(_METADATA):
      return None
    text = archive.member(_METADATA)
  except ValueError as error:
    raise InputError(f'{path}: {error}') from error
  try:
    metadata = json.loads(text)
  except (ValueError, RecursionError):
    metadata = None
  if not isinstance(metadata, dict):
    raise InputError(
      f'{path}: its {_METADATA} is no JSON of names and values; {AGAIN}'
    )
  return metadata


def write(
  path: str | os.PathLike[str],
  state_dict: Mapping[str, np.ndarray],
  metadata: Mapping[str, Any],
  *,
  within: str = '',
) -> None:
  """Writes a file that ``torch.load(path, weights_only=True)`` reads.

  torch gets an ``OrderedDict`` of contiguous tensors on the CPU, with
  ``mmap=True`` too. Equal arguments give equal bytes. The file appears complete
  or not at all.

  Args:
    path: of the file; an existing one is replaced.
    state_dict: arrays by name, in order; floats (bfloat16 too), signed
      integers, uint8 or bool.
    metadata: for JSON; torch ignores it, and `read_metadata` returns it.
    within: key under which a dictionary around it holds the ``OrderedDict``;
      empty for none.

  Raises:
    InputError: if the file cannot be written.
    TypeError: if PyTorch has no such dtype.
    TypeError, ValueError: if JSON has no such metadata.
  """
  arrays = [_contiguous(name, array) for name, array in state_dict.items()]
  members = {
    'data.pkl': _pickle(state_dict, arrays, within),
    _METADATA: json.dumps(metadata, indent=2, allow_nan=False).encode(),
    'byteorder': sys.byteorder.encode(),
    **{
      f'data/{i}': array.reshape(-1).view(np.uint8)
      for i, array in enumerate(arrays)
    },
    'version': b'3\n',
  }
  with (
    atomic.file(path) as part,
    open(part, 'wb') as file,
    zipfile.ZipFile(file, 'w') as archive,
  ):
    for name, data in members.items():
      _add(file, archive, f'archive/{name}', memoryview(data))


def _head(path: Path) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read(512)
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; give a file of torch.save'
    ) from error


def _describe_other(head: bytes) -> str:
  text = head[:512].lstrip().lower()
  if not head:
    return f'it is empty; {AGAIN}'
  if text.startswith(b'version https://git-lfs'):
    return 'it is a pointer of Git LFS; fetch the file itself with git lfs pull'
  if text.startswith((b'<!doctype', b'<html', b'<?xml')):
    return 'it is a web page; download the file itself'
  if text.startswith(b'{'):
    return (
      'it is JSON, as the index of a network in several safetensors files; '
      'join these with safetensors, and give the one file'
    )
  if head[257:262] == b'ustar':
    return (
      'it is a tar file, as torch wrote them before 2017; unpack it or, if '
      f'you trust it, load it with torch and {_SAVE}'
    )
  return 'it is not a file of torch.save or of safetensors; give one of these'


_REBUILD = {
  'torch._utils._rebuild_tensor',
  'torch._utils._rebuild_tensor_v2',
}
_SETS = {
  f'{module}.{name}'
  for module in ('builtins', '__builtin__')
  for name in ('set', 'frozenset')
}


class _Machine(pickles.Machine):
  """The pickle machine with the names that a training checkpoint asks for."""

  names = pickles.Machine.names | {
    *_DTYPES,
    *_REBUILD,
    *_SETS,
    'collections.OrderedDict',
    'collections.Counter',
    'collections.defaultdict',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_parameter_with_state',
    'torch._tensor._rebuild_from_type_v2',
    'torch.Size',
    'torch.device',
    'torch.float64',
    'torch.float32',
    'torch.float16',
    'torch.bfloat16',
    'torch.int64',
    'torch.int32',
    'torch.int16',
    'torch.int8',
    'torch.uint8',
    'torch.bool',
  }

  def __init__(self, source: _Source):
    super().__init__()
    self.source = source
    self.storages: dict[str, _Storage] = {}

  def make_dict(self) -> dict:
    return {}

  def make_unknown(self, name: str) -> Placeholder:
    return Placeholder(name)

  def make(self, name: str, arguments: tuple) -> Any:
    match name, arguments:
      case 'collections.OrderedDict', ():
        return {}
      case 'collections.Counter', (dict() as counts,):
        return counts
      case 'collections.defaultdict', _:
        return {}  # Its items follow.
      case _, () if name in _SETS:
        return []
      case _, (list() as items,) if name in _SETS:
        return items
      case _, (_Storage() as storage, offset, size, strides, *_) if (
        name in _REBUILD
      ):
        return _tensor(storage, offset, size, strides)
      case _, (Placeholder() as storage, *_) if name in _REBUILD:
        return Placeholder(storage.name)
      case (
        'torch._utils._rebuild_parameter'
        | 'torch._utils._rebuild_parameter_with_state',
        (Tensor() | Placeholder() as tensor, *_),
      ):
        return tensor
      # A tensor with attributes, or of a subclass: function, class, arguments.
      case (
        'torch._tensor._rebuild_from_type_v2',
        (pickles.Name() as function, _, tuple() as given, *_),
      ) if function in _REBUILD:
        return self.make(function, given)
      case 'torch._tensor._rebuild_from_type_v2', (function, *_):
        return Placeholder(function.name)
      case 'torch.Size', (tuple() as size,):
        return size
      case 'torch.device', (str() as kind,):
        return kind
      case 'torch.device', (str() as kind, int() as index):
        return f'{kind[:20]}:{index}'
    try:
      return super().make(name, arguments)
    except TypeError:
      if name not in pickles.Machine.names:
        raise
      return Placeholder(name)  # NumPy's other dtypes, such as of strings.

  def build(self, made: Any, state: Any) -> None:
    match made, state:
      case dict(), dict():
        pass  # Attributes of an OrderedDict: versions of modules, `_metadata`.
      case Placeholder(), _:
        made.state = state
      case pickles.Array(), (_, _, Placeholder(), *_):
        pass
      case _:
        super().build(made, state)

  def set_item(self, items: Any, key: Any, value: Any) -> None:
    if isinstance(items, Placeholder):
      return
    # Others would have to be hashed however deep they nest, and no state_dict
    # has them.
    if type(items) is dict and type(key) not in (str, bytes, int):
      return
    super().set_item(items, key, value)

  def step(self, instruction: str, argument: Any) -> None:
    stack = self.stack
    match instruction:
      # What makes an object of a class, or calls a function.
      case 'REDUCE' if isinstance(stack[-2], Placeholder):
        stack[-2:] = [Placeholder(stack[-2].name)]
      case 'NEWOBJ':
        stack[-2:] = [Placeholder(stack[-2].name)]
      case 'NEWOBJ_EX':
        stack[-3:] = [Placeholder(stack[-3].name)]
      case 'OBJ':
        (kind, *_) = self.pop_marked()
        self.stack.append(Placeholder(kind.name))
      case 'INST':
        self.pop_marked()
        self.stack.append(self.known(*argument.split(' ', 1)))
      # What fills it.
      case 'APPEND' if isinstance(stack[-2], Placeholder):
        stack.pop()
      case 'APPENDS' if isinstance(self.stacks_below[-1][-1], Placeholder):
        self.pop_marked()
      # Sets are lists: their items would have to be hashed.
      case 'EMPTY_SET':
        stack.append([])
      case 'ADDITEMS':
        items = self.pop_marked()
        self.stack[-1].extend(items)
      case 'FROZENSET':
        items = self.pop_marked()
        self.stack.append(items)
      # Of objects that hold themselves.
      case 'POP' if stack:
        stack.pop()
      case 'POP' | 'POP_MARK':
        self.pop_marked()
      case _:
        super().step(instruction, argument)

  def find(self, identity: Any) -> Any:
    match identity:
      # A class with its source, which torch wrote beside modules before 1.6.
      case ('module', Placeholder() as kind, *_):
        return kind
      case ('storage', Placeholder() as kind, *_):
        if isinstance(self.source, _Tail):
          # Its items have an unknown size, and others follow.
          raise pickles.UnknownName(kind.name)
        return kind
      # The location, like 'cuda:0', is that of the writer. The older format has
      # one more entry, for views, which torch has not written since 2018.
      case (
        ('storage', pickles.Name(), str(), _, int())
        | ('storage', pickles.Name(), str(), _, int(), None)
      ):  # fmt: skip
        name, key, _, size = identity[1:5]
        if len(key) > _MAX_STORAGE_KEY or not 0 <= size < 1 << 63:
          raise ValueError
        storage = _Storage(self.source, key, _DTYPES[name], size)
        known = self.storages.setdefault(key, storage)
        if (known.dtype, known.size) != (storage.dtype, size):
          raise pickles.BadPickle(f'it describes storage {key!a} in two ways')
        return known
    raise pickles.BadPickle('it refers to a storage in an unknown way')


# Attributes that every module has.
_PARTS = {'_parameters', '_modules'}


def _without_modules(content: Any) -> Any:
  """Puts its state_dict in place of a module, alone or in a dictionary."""
  if isinstance(content, Placeholder):
    if not _is_module(content):
      raise ValueError(
        f'it is one object, {ascii(content.name)[1:-1]}, and no state_dict; if '
        f'you trust it, load it with torch and {_SAVE}'
      )
    return _state_dict(content)
  if type(content) is dict:
    modules = {
      key: value
      for key, value in content.items()
      if isinstance(value, Placeholder) and _is_module(value)
    }
    if len(modules) <= _MAX_MODULES:
      content |= {key: _state_dict(value) for key, value in modules.items()}
  return content


def _is_module(made: Placeholder) -> bool:
  return type(made.state) is dict and _PARTS <= made.state.keys()


def _state_dict(module: Placeholder) -> dict[str, Any]:
  """Collects the tensors of a pickled module, in the order of torch."""
  found = {}
  left = [('', module)]
  parts = 0
  while left:
    place, one = left.pop()
    if not _is_module(one):
      continue
    parameters, modules = one.state['_parameters'], one.state['_modules']
    buffers = one.state.get('_buffers', {})
    unsaved = one.state.get('_non_persistent_buffers_set', [])
    kinds = [type(part) for part in (parameters, modules, buffers, unsaved)]
    if kinds != [dict, dict, dict, list]:
      raise ValueError(f'its module {place[:-1]!a} is damaged; {AGAIN}')
    tensors = parameters | buffers
    parts += 1 + len(tensors) + len(unsaved) + len(modules)
    names = [name for name in (*tensors, *modules) if type(name) is str]
    if parts > _MAX_PARTS or max(map(len, [place, *names])) > _MAX_NAME:
      raise ValueError(
        'its module has parts without number, or too long names; load it with '
        f'torch and {_SAVE}'
      )
    unsaved = {name for name in unsaved if type(name) is str}
    for name, tensor in tensors.items():
      is_tensor = isinstance(tensor, Tensor | Placeholder)
      if is_tensor and type(name) is str and name not in unsaved:
        found[f'{place}{name}'] = tensor
    below = [
      (f'{place}{name}.', part)
      for name, part in modules.items()
      if isinstance(part, Placeholder) and type(name) is str
    ]
    left += below[::-1]
  return found


def _tensor(storage: _Storage, offset: Any, size: Any, strides: Any) -> Tensor:
  if not len(size) == len(strides) <= _MAX_NDIM:
    raise ValueError
  if not all(type(n) is int and n >= 0 for n in (offset, *size, *strides)):
    raise ValueError
  return Tensor(tuple(size), storage.dtype, storage, offset, tuple(strides))


class _Archive(_Source):
  """The zip format, in which each storage is a member."""

  def __init__(self, path: Path):
    try:
      self._zip = zipfile.ZipFile(path)
    except Exception as error:
      # zipfile raises many kinds on damaged files.
      raise ValueError(
        f'the zip file is cut off or damaged; {AGAIN}'
      ) from error
    self._size = path.stat().st_size
    tops = [
      name.removesuffix('data.pkl')
      for name in self._zip.namelist()
      if name.count('/') == 1 and name.endswith('/data.pkl')
    ]
    if len(tops) != 1:
      raise ValueError('it is a zip file, but not of torch.save; give a .pth')
    (self._top,) = tops
    if self.has('constants.pkl'):
      raise ValueError(
        'it is a TorchScript archive, which is a program; if you trust it, '
        f'load it with torch.jit and {_SAVE}'
      )
    if self._zip.getinfo(f'{self._top}data.pkl').file_size > _MAX_PICKLE:
      raise ValueError(
        f'its data.pkl is larger than {_MAX_PICKLE >> 20} MiB, which no '
        f'state_dict needs; {_SAVE}'
      )
    order = self.member('byteorder') if self.has('byteorder') else b'little'
    if order not in (b'little', b'big'):
      raise ValueError(f'its byteorder is neither little nor big; {AGAIN}')
    self.byteorder = order.decode()

  def has(self, name: str) -> bool:
    return self._top + name in self._zip.NameToInfo

  def member(self, name: str) -> bytes:
    info = self._zip.getinfo(self._top + name)
    # Uncompressed, it cannot be larger than the file.
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError(
        f'its {name} is compressed, which torch never does; {AGAIN}'
      )
    try:
      if max(info.file_size, info.compress_size) > self._size:
        raise EOFError
      return self._zip.read(info)
    except Exception as error:
      # A wrong checksum, the end of the file, a header that is no header.
      raise ValueError(f'its {name} is cut off or damaged; {AGAIN}') from error

  def _fetch(self, key: str, num_bytes: int) -> bytes:
    name = f'data/{key}'
    if not self.has(name):
      raise BadTensor(f'is in {name!a}, which is missing; {AGAIN}')
    found = self._zip.getinfo(self._top + name).file_size
    if found != num_bytes:
      raise BadTensor(
        f'is in {name!a}, which has {found} bytes, not {num_bytes}; {AGAIN}'
      )
    try:
      return self.member(name)
    except ValueError as error:
      raise BadTensor(f'is lost: {error}') from error


def _read_legacy(path: Path) -> Any:
  """Reads five pickles, and finds the storages behind them."""
  source = _Tail(path)
  stream = io.BytesIO(source.pread(_MAX_PICKLE, 0))
  magic = _Machine(source).load(stream)
  if type(magic) is not int or magic != _MAGIC:
    raise ValueError(f'it is a pickle, but not of torch.save; {_SAVE}')
  protocol = _Machine(source).load(stream)
  if type(protocol) is not int or protocol != _PROTOCOL:
    raise ValueError(f'its version is not {_PROTOCOL}; {_SAVE}')
  _Machine(source).load(stream)  # Sizes of C's types where it was written.
  machine = _Machine(source)
  content = machine.load(stream)
  keys = _Machine(source).load(stream)
  source.locate(keys, machine.storages, stream.tell())
  return content


class _Tail(_Source):
  """The format before zip files: the storages follow the pickles."""

  byteorder = 'little'  # On any machine.

  def __init__(self, path: Path):
    self._fd = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._fd)
    self._offsets = {}

  def pread(self, count: int, offset: int) -> bytes:
    """Reads up to `count` bytes, fewer where the file ends."""
    parts = []
    # One system call reads 2 GB at most.
    while count and (part := os.pread(self._fd, count, offset)):
      parts.append(part)
      count -= len(part)
      offset += len(part)
    return b''.join(parts)

  def locate(
    self, keys: Any, storages: dict[str, _Storage], offset: int
  ) -> None:
    """Locates the storages; each is its number of items, then the items."""
    size = os.fstat(self._fd).st_size
    if not isinstance(keys, list) or not all(
      isinstance(key, str) and key in storages for key in keys
    ):
      raise ValueError(f'its list of storages is damaged; {AGAIN}')
    for key in keys:
      storage = storages[key]
      num_bytes = storage.size * storage.dtype.itemsize
      count = int.from_bytes(self.pread(8, offset), 'little', signed=True)
      self._offsets[key] = offset + 8
      offset += 8 + num_bytes
      if offset > size:
        raise ValueError(f'it is cut off in storage {key!a}; {AGAIN}')
      if count != storage.size:
        raise ValueError(
          f'its storage {key!a} has {count} values, not {storage.size}; {AGAIN}'
        )

  def _fetch(self, key: str, num_bytes: int) -> bytes:
    if key not in self._offsets:
      raise BadTensor(f'is in storage {key!a}, which is missing; {AGAIN}')
    return self.pread(num_bytes, self._offsets[key])


def _contiguous(name: str, array: np.ndarray) -> np.ndarray:
  array = np.asarray(array)
  dtype = array.dtype.newbyteorder('=')
  if dtype not in _STORAGES:
    raise TypeError(f'{name} is {dtype}, which PyTorch has no storage for')
  return array.astype(dtype, order='C', copy=False)


def _pickle(
  names: Iterable[str], arrays: Sequence[np.ndarray], within: str
) -> bytes:
  """Pickles an ``OrderedDict`` of tensors, each in its own storage."""
  ordered_dict = b'ccollections\nOrderedDict\n)R'
  # An empty dictionary and a key, whose value follows.
  before, after = (b'}' + _text(within), b's') if within else (b'', b'')
  parts = [b'\x80\x02', before, ordered_dict, b'(']
  for i, (name, array) in enumerate(zip(names, arrays, strict=True)):
    strides = [
      math.prod(max(n, 1) for n in array.shape[axis + 1 :])
      for axis in range(array.ndim)
    ]
    storage = _STORAGES[array.dtype].encode().replace(b'.', b'\n')
    parts += [
      _text(name),
      b'ctorch._utils\n_rebuild_tensor_v2\n(',
      b'(' + _text('storage') + b'c' + storage + b'\n',
      _text(str(i)) + _text('cpu') + _int(array.size) + b'tQ',
      _int(0),  # Offset in the storage.
      _ints(array.shape) + _ints(strides),
      b'\x89' + ordered_dict,  # It requires no gradient, and has no hooks.
      b'tR',
    ]
  return b''.join([*parts, b'u', after, b'.'])


def _text(text: str) -> bytes:
  data = text.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def _int(value: int) -> bytes:
  return b'\x8a\x08' + value.to_bytes(8, 'little', signed=True)


def _ints(values: Iterable[int]) -> bytes:
  return b'(' + b''.join(map(_int, values)) + b't'


def _add(
  file: BinaryIO, archive: zipfile.ZipFile, name: str, data: memoryview
) -> None:
  """Adds a member whose bytes begin at a multiple of 64 in the file."""
  info = zipfile.ZipInfo(name)  # Its fixed date is 1980.
  info.create_system = 3  # Unix, wherever this runs.
  large = data.nbytes > _ZIP64_BYTES
  header = 30 + len(name) + 4 + (20 if large else 0)
  padding = -(file.tell() + header) % _ALIGNMENT
  info.extra = struct.pack('<2sH', b'FB', padding) + b'Z' * padding
  with archive.open(info, 'w', force_zip64=large) as member:
    member.write(data)
