# SPDX-License-Identifier: Apache-2.0
"""Files of safetensors: tensors by name, and nothing that could be executed.

The package reads and checks the header; the values of a tensor are read when
they are asked for.
"""

import dataclasses
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from elasticface_jax import atomic
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.interop.torch_files import AGAIN, BadTensor

# Of the dtypes of a state_dict; the format has narrower ones, unknown to NumPy.
_DTYPES = {
  'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL',
}  # fmt: skip
_LENGTH = struct.Struct('<Q')


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor in a file, whose values are read on demand.

  Attributes:
    shape: as in the file.
    dtype: its name in the format, such as ``'BF16'``.
  """

  shape: tuple[int, ...]
  dtype: str
  _file: Any = dataclasses.field(repr=False)
  _name: str = dataclasses.field(repr=False)

  def numpy(self) -> np.ndarray:
    """Reads the values.

    Returns:
      A new contiguous array of `shape`; bfloat16 is that of ml_dtypes.

    Raises:
      BadTensor: if NumPy has no such dtype.
    """
    if self.dtype not in _DTYPES:
      raise BadTensor(
        f'is {self.dtype}, which is not read; save it as float32 or bfloat16'
      )
    return self._file.get_tensor(self._name)


def recognises(path: str | os.PathLike[str]) -> bool:
  """Tells by its first bytes whether a file is of safetensors.

  Args:
    path: the file. Its name does not matter.

  Returns:
    True if a header of JSON follows after its length, though the rest may be
    cut off; False also if there is no such file.
  """
  try:
    with open(path, 'rb') as file:
      head = file.read(_LENGTH.size + 1)
  except OSError:
    return False
  # No zip file, pickle or text has a brace there and such a number before it.
  return head[_LENGTH.size :] == b'{' and head[4 : _LENGTH.size] == bytes(4)


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
  """Reads a file of safetensors.

  Args:
    path: the file.

  Returns:
    Its tensors by name, in the order of the file. Their values are read from
    the file when `Tensor.numpy` is called: do not change the file meanwhile.

  Raises:
    InputError: if the file is missing, cut off, damaged, or of another kind.

  Examples:
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), 'model.safetensors')
    >>> write(path, {'fc.bias': np.arange(3.0)}, {})
    >>> state_dict = read(path)
    >>> state_dict
    {'fc.bias': Tensor(shape=(3,), dtype='F64')}
    >>> state_dict['fc.bias'].numpy()
    array([0., 1., 2.])
  """
  file = _open(path)
  tensors = {}
  for name in file.keys():
    part = file.get_slice(name)
    shape, dtype = tuple(part.get_shape()), part.get_dtype()
    tensors[name] = Tensor(shape, dtype, file, name)
  return tensors


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """Reads the metadata of a file of safetensors.

  Args:
    path: the file.

  Returns:
    Texts by name; none if the file has none.

  Raises:
    InputError: as `read`.

  Examples:
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), 'model.safetensors')
    >>> write(path, {}, {'colour_order': 'RGB', 'input_size': [112, 112]})
    >>> read_metadata(path)['input_size']
    '[112, 112]'
  """
  return _open(path).metadata() or {}


def write(
  path: str | os.PathLike[str],
  state_dict: Mapping[str, np.ndarray],
  metadata: Mapping[str, Any],
) -> None:
  """Writes a file that every reader of safetensors loads, torch's too.

  Equal arguments give equal bytes. The file appears complete or not at all.

  Args:
    path: of the file; an existing one is replaced.
    state_dict: arrays by name; the file has them in an order of its own.
    metadata: values for JSON by name. A string is stored as it is, everything
      else as JSON. ``format`` is added, which transformers needs.

  Raises:
    InputError: if the file cannot be written.
  """
  # safetensors 0.8 writes other arrays in the order of memory under the shape
  # of the view: other numbers, without a word.
  arrays = {
    name: np.ascontiguousarray(array).reshape(np.shape(array))
    for name, array in state_dict.items()
  }
  texts = {'format': 'pt'} | {
    name: value if isinstance(value, str) else json.dumps(value)
    for name, value in metadata.items()
  }
  data = safetensors.numpy.save(arrays, texts)
  header, rest = _ordered(data)
  with atomic.file(path) as part, open(part, 'wb') as file:
    file.write(header)
    file.write(rest)


def _ordered(data: bytes) -> tuple[bytes, memoryview]:
  """Returns a file's header with its metadata in order, and the rest.

  The package writes metadata in a random order, other bytes each time.
  """
  (length,) = _LENGTH.unpack_from(data)
  end = _LENGTH.size + length
  header = json.loads(data[_LENGTH.size : end])
  header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  # Spaces pad a header.
  return data[: _LENGTH.size] + text.ljust(length), memoryview(data)[end:]


def _open(path: str | os.PathLike[str]) -> Any:
  try:
    return safetensors.safe_open(os.fspath(path), 'numpy')
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror or first_line(error)}; give a file of '
      'safetensors'
    ) from error
  except safetensors.SafetensorError as error:
    raise InputError(
      f'{path}: it is no whole file of safetensors ({first_line(error)}); '
      f'{AGAIN}'
    ) from error
