# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain data and NumPy arrays, read without trusting them.

A pickle is a program for a small machine with a stack, and Python's own machine
calls whatever function the program names. The one here knows the instructions
with which Python 2 and 3 write numbers, strings, lists, tuples and arrays, and
no others. It imports nothing and calls nothing that it finds in the pickle:
the few names that arrays need are words, compared with those it knows. What the
pickle can nest or repeat is never walked, hashed, printed or copied, so time
and memory are linear in its length, and no nesting is too deep.
"""

import codecs
import dataclasses
import io
import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np


class BadPickle(ValueError):
  """No pickle of plain data; the message says why, and what to do."""


@dataclasses.dataclass(eq=False)
class Array:
  """An array as it stands in a pickle, flat: nobody here needs its shape.

  Attributes:
    dtype: of its items.
    data: their bytes or, if they are objects, a list of them.
  """

  dtype: np.dtype
  data: bytes | list

  @property
  def values(self) -> np.ndarray | list:
    """The items, ``[n]``."""
    if self.dtype.hasobject:
      return self.data
    return np.frombuffer(self.data, self.dtype)


def load(data: bytes) -> Any:
  """Reads a pickle of any protocol, of Python 2 or 3, of NumPy 1 or 2.

  Args:
    data: the pickle.

  Returns:
    What it holds: None, numbers, `bytes` (Python 2's `str` too), `str`, lists,
    tuples, NumPy scalars, and an `Array` for each array.

  Raises:
    BadPickle: if it is cut off, damaged, or holds anything else.

  Examples:
    >>> import pickle
    >>> load(pickle.dumps(([b'a', b'b'], [True])))
    ([b'a', b'b'], [True])
  """
  # Protocols 2 to 5 begin with 0x80, 0 and 1 with the mark of a tuple or list.
  if data[:1] not in (b'\x80', b'(', b']'):
    raise BadPickle('it does not begin as a pickle does')
  machine = _Machine()
  for name, argument in _instructions(data):
    try:
      machine.step(name, argument)
    except BadPickle:
      raise
    except Exception as error:
      # A wrong program can ask the stack for anything in any state.
      raise BadPickle(f'it makes no sense ({type(error).__name__})') from error
  return machine.stack[0]


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
  stream = io.BytesIO(data)
  name = ''
  while name != 'STOP':
    start = stream.tell()
    try:
      if data[start : start + 1] == b'S':
        # Python 2 wrote any bytes there; pickletools takes ASCII only.
        line = stream.readline()[1:].strip()
        name, argument = 'STRING', codecs.escape_decode(line[1:-1])[0]
      else:
        instruction, argument, _ = next(pickletools.genops(stream))
        name = instruction.name
      if name == 'FRAME' and argument > len(data) - stream.tell():
        raise EOFError
    except Exception as error:
      raise BadPickle(
        f'it is cut off or damaged at byte {start}; copy the file again'
      ) from error
    yield name, argument


class _Name(str):
  """A name, which no string in the pickle can pass for."""


@dataclasses.dataclass(eq=False)
class _DType:
  """A dtype, which BUILD gives its byte order."""

  dtype: np.dtype


_OBJECT = np.dtype('O')
_DTYPES = {
  name: np.dtype(name) for name in 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()
} | {'O4': _OBJECT, 'O8': _OBJECT}
# As Python 2 writes them.
_DTYPES |= {name.encode(): dtype for name, dtype in _DTYPES.items()}

_NAMES = {
  # Bytes, and empty bytes, in protocols 0 to 2.
  '_codecs.encode',
  '__builtin__.bytes',
  'numpy.dtype',
  'numpy.ndarray',
}
# NumPy 2 writes `_core`.
for _core in ('numpy.core', 'numpy._core'):
  _NAMES |= {
    f'{_core}.multiarray._reconstruct',
    f'{_core}.multiarray.scalar',
    f'{_core}.numeric._frombuffer',
  }


class _Machine:
  """A stack, the stacks below its marks, and numbered notes of its items."""

  def __init__(self):
    self.stack = []
    self.below = []
    self.notes = {}
    self.encoded = {}

  def step(self, instruction: str, argument: Any):
    """Carries out an instruction."""
    push, pop = self.stack.append, self.stack.pop
    match instruction:
      case 'BINBYTES' | 'SHORT_BINBYTES' | 'BINBYTES8' | 'BYTEARRAY8':
        push(bytes(argument))
      case 'BINSTRING' | 'SHORT_BINSTRING':
        push(argument.encode('latin-1'))
      case (
        'STRING' | 'UNICODE' | 'BINUNICODE' | 'SHORT_BINUNICODE'
        | 'INT' | 'BININT' | 'BININT1' | 'BININT2' | 'LONG' | 'LONG1'
        | 'FLOAT' | 'BINFLOAT'
      ):  # fmt: skip
        push(argument)
      case 'NONE':
        push(None)
      case 'NEWTRUE' | 'NEWFALSE':
        push(instruction == 'NEWTRUE')

      case 'MARK':
        self.below.append(self.stack)
        self.stack = []
      case 'EMPTY_LIST':
        push([])
      case 'EMPTY_TUPLE':
        push(())
      case 'LIST':
        items = self._marked()
        self.stack.append(items)
      case 'TUPLE':
        items = self._marked()
        self.stack.append(tuple(items))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        items = [pop() for _ in range(int(instruction[-1]))]
        push(tuple(items[::-1]))
      case 'APPEND':
        item = pop()
        list.append(self.stack[-1], item)
      case 'APPENDS':
        items = self._marked()
        list.extend(self.stack[-1], items)

      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self.notes[argument] = self.stack[-1]
      case 'MEMOIZE':
        self.notes[len(self.notes)] = self.stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        push(self.notes[argument])

      case 'GLOBAL':
        push(_known(*argument.split(' ', 1)))
      case 'STACK_GLOBAL':
        name, module = pop(), pop()
        push(_known(module, name))
      case 'REDUCE':
        arguments, name = pop(), pop()
        push(self._make(name, arguments))
      case 'BUILD':
        state = pop()
        self._build(self.stack[-1], state)

      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        if self.below or len(self.stack) != 1:
          raise ValueError
      case _:
        raise BadPickle(f'it holds {instruction}, which plain data never do')

  def _marked(self) -> list:
    """Takes what lies above the last mark off the stack."""
    items, self.stack = self.stack, self.below.pop()
    return items

  def _make(self, name: Any, arguments: Any) -> Any:
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
      raise TypeError
    match name.rpartition('.')[-1], arguments:
      case 'encode', (str() as text, 'latin1'):
        # One copy of a text, however often the pickle asks.
        if text not in self.encoded:
          self.encoded[text] = text.encode('latin-1')
        return self.encoded[text]
      case 'bytes', ():
        return b''
      case 'dtype', (str() | bytes() as form, *_):
        return _DType(_DTYPES[form])
      case '_reconstruct', _:
        return Array(_OBJECT, [])  # BUILD fills it.
      case '_frombuffer', (bytes() as data, _DType() as dtype, *_):
        return Array(dtype.dtype, data)
      case 'scalar', (_DType() as dtype, bytes() as data):
        return np.frombuffer(data, dtype.dtype)[0]
    raise TypeError

  def _build(self, made: Any, state: Any):
    match made, state:
      case Array(), (_, _, _DType() as dtype, _, bytes() | list() as data):
        made.dtype, made.data = dtype.dtype, data
      case _DType(), (_, str() | bytes() as order, *_):
        if order in ('>', b'>'):
          made.dtype = made.dtype.newbyteorder('>')
      case _:
        raise TypeError


def _known(module: Any, name: Any) -> _Name:
  if not isinstance(module, str) or not isinstance(name, str):
    raise TypeError
  full_name = f'{module}.{name}'
  if full_name not in _NAMES:
    raise BadPickle(
      f'it asks for {ascii(full_name[:100])[1:-1]}, which plain data never do; '
      'do not load it with anything else'
    )
  return _Name(full_name)
