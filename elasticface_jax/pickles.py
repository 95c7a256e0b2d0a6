# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain data and NumPy arrays, read without trusting them.

A pickle is a program for a small machine with a stack, and Python's own machine
calls whatever function the program names. The one here knows the instructions
with which Python 2 and 3 write numbers, strings, lists, tuples and arrays, and
no others. It imports nothing and calls nothing that it finds in the pickle: the
few names that arrays need are strings, compared with a fixed set. What the
pickle can nest or repeat is never walked, hashed, printed or copied, so time
and memory are linear in its length, and no nesting is too deep.

A `pickle.Unpickler` with another `find_class` is no substitute: it calls the
functions that it lets through, takes extension codes from a cache, hashes keys
however deep they nest, and allocates the lengths that a pickle claims.

A reader of more than plain data subclasses `Machine` and defines there which
names are known, what they make, and what stands for all others.
"""

import codecs
import dataclasses
import io
import pickletools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np


class BadPickle(ValueError):
  """Error of a pickle that is damaged or holds more than plain data."""


class UnknownName(BadPickle):
  """Error of a pickle that asks for an unknown function or class.

  Attributes:
    name: its full name, short and printable.
  """

  def __init__(self, name: str):
    self.name: str = ascii(name[:100])[1:-1]
    super().__init__(
      f'it asks for {self.name}, which plain data never do; do not load it '
      'with anything else'
    )


@dataclasses.dataclass(eq=False)
class Array:
  """A NumPy array of a pickle, flattened: its shape is not kept.

  Attributes:
    dtype: of its items.
    data: bytes of the items or, if they are objects, a list of them.
  """

  dtype: np.dtype
  data: bytes | list[Any]

  @property
  def values(self) -> np.ndarray | list[Any]:
    """Items of the array, ``[n]``."""
    if self.dtype.hasobject:
      return self.data
    return np.frombuffer(self.data, self.dtype)


def load(data: bytes) -> Any:
  """Reads a pickle of any protocol, of Python 2 or 3, of NumPy 1 or 2.

  Args:
    data: the pickle.

  Returns:
    Its content: None, numbers, `bytes` (`bytearray` and Python 2's `str` too),
    `str`, lists, tuples, NumPy scalars, and an `Array` for each array.

  Raises:
    BadPickle: if it is cut off, damaged, or holds anything else.

  Examples:
    >>> import pickle
    >>> load(pickle.dumps(([b'a', b'b'], [True])))
    ([b'a', b'b'], [True])
  """
  return Machine().load(io.BytesIO(data))


def _instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
  data = stream.getvalue()  # No copy.
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


class Name(str):
  """A known global; its own type, so that no string can stand in for one."""


@dataclasses.dataclass(eq=False)
class _DType:
  """A dtype whose byte order the instruction BUILD may set."""

  dtype: np.dtype


_OBJECT = np.dtype('O')
_DTYPES = {
  name: np.dtype(name) for name in 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()
} | {'O4': _OBJECT, 'O8': _OBJECT}
# Python 2 writes the names as bytes.
_DTYPES |= {name.encode(): dtype for name, dtype in _DTYPES.items()}

# NumPy 2 writes `_core`.
_CORES = ('numpy.core', 'numpy._core')
_RECONSTRUCT = {f'{core}.multiarray._reconstruct' for core in _CORES}
_SCALAR = {f'{core}.multiarray.scalar' for core in _CORES}
_FROMBUFFER = {f'{core}.numeric._frombuffer' for core in _CORES}

_BYTEARRAY = {'__builtin__.bytearray', 'builtins.bytearray'}
_BYTES_DTYPE = re.compile('S[1-9][0-9]{0,9}')

# Bounds of the work for the keys of a dictionary. The hash of an int is no
# secret, so a pickle can choose many that collide.
_MAX_KEY_LENGTH = 1 << 14
_MAX_NUMBERED = 1 << 14
# Of a module and a name in it, together; the pickle may ask for both often.
_MAX_NAME_LENGTH = 300


class Machine:
  """The machine of a pickle: a stack, the stacks below its marks, and a memo.

  It reads one pickle. A subclass may know more names and define what they make.
  The arguments that its methods receive may nest and repeat without end, so it
  must bound how much of them it looks at.

  Attributes:
    names: the full names that a pickle may ask for.
  """

  names: frozenset[str] = frozenset(
    {
      # Bytes, and empty bytes, in protocols 0 to 2.
      '_codecs.encode',
      '__builtin__.bytes',
      # A `bytearray` before protocol 5, of Python 2 and 3.
      *_BYTEARRAY,
      'numpy.dtype',
      'numpy.ndarray',
      *_RECONSTRUCT,
      *_SCALAR,
      *_FROMBUFFER,
    }
  )

  def __init__(self):
    self.stack: list[Any] = []
    self.stacks_below: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.encoded: dict[str, bytes] = {}
    self.length = 0  # Of the stream, in bytes.

  def load(self, stream: io.BytesIO) -> Any:
    """Reads the pickle that begins at the position of the stream.

    Args:
      stream: its position afterwards is the end of the pickle.

    Returns:
      The content of the pickle.

    Raises:
      BadPickle: if it is cut off, damaged, or holds anything unknown.
    """
    # Protocols 2 to 5 begin with 0x80, 0 and 1 with a tuple's or list's mark.
    start = stream.tell()
    self.length = stream.getbuffer().nbytes
    if stream.getvalue()[start : start + 1] not in (b'\x80', b'(', b']'):
      raise BadPickle('it does not begin as a pickle does')
    for name, argument in _instructions(stream):
      try:
        self.step(name, argument)
      except BadPickle:
        raise
      except Exception as error:
        # A wrong program can ask the stack for anything in any state.
        raise BadPickle(
          f'it makes no sense ({type(error).__name__}); copy the file again'
        ) from error
    return self.stack[0]

  def make(self, name: str, arguments: tuple[Any, ...]) -> Any:
    """Makes the object that a known name and its arguments stand for.

    Args:
      name: the full name.
      arguments: as the pickle gives them, of any kind and number.

    Returns:
      The object.

    Raises:
      Exception: any, if these arguments make no sense.
    """
    match arguments:
      case (str() as text, 'latin1') if name == '_codecs.encode':
        return self._encode(text)
      case (str() as text, 'latin-1' | b'latin-1') if name in _BYTEARRAY:
        return self._encode(text)
      case (bytes() as data,) if name in _BYTEARRAY:
        return data
      case () if name in ('__builtin__.bytes', *_BYTEARRAY):
        return b''
      case (str() | bytes() as form, *_) if name == 'numpy.dtype':
        return _DType(_DTYPES.get(form) or self._bytes_dtype(form))
      case _ if name in _RECONSTRUCT:
        return Array(_OBJECT, [])  # BUILD fills it.
      case (bytes() as data, _DType() as dtype, *_) if name in _FROMBUFFER:
        return Array(dtype.dtype, data)
      case (_DType() as dtype, bytes() as data) if name in _SCALAR:
        return np.frombuffer(data, dtype.dtype)[0]
    raise TypeError

  def build(self, made: Any, state: Any) -> None:
    """Gives an object its state.

    Args:
      made: a result of `make`, or anything else.
      state: as the pickle gives it.

    Raises:
      Exception: any, if this makes no sense.
    """
    match made, state:
      case Array(), (_, _, _DType() as dtype, _, bytes() | list() as data):
        made.dtype, made.data = dtype.dtype, data
      case _DType(), (_, str() | bytes() as order, *_):
        if order in ('>', b'>'):
          made.dtype = made.dtype.newbyteorder('>')
      case _:
        raise TypeError

  def make_dict(self) -> dict[Any, Any]:
    """Makes a new dictionary; plain data have none, so it raises."""
    raise _never('EMPTY_DICT')

  def make_unknown(self, name: str) -> Any:
    """Makes what stands for a function or class that is not in `names`.

    Args:
      name: its full name, of bounded length.

    Returns:
      Never: plain data ask for none.

    Raises:
      UnknownName: always.
    """
    raise UnknownName(name)

  def set_item(self, items: Any, key: Any, value: Any) -> None:
    """Sets an item of a dictionary.

    Args:
      items: what the pickle gives it to, of any kind.
      key: of any kind.
      value: likewise.

    Raises:
      Exception: any, if `items` is no dictionary, or its keys could cost more
        than time linear in their length.
    """
    if type(items) is not dict:
      raise TypeError
    if type(key) is int:
      # Ints that count up from 0 cannot collide.
      bounded = len(items) < _MAX_NUMBERED or key == len(items)
    else:
      bounded = type(key) in (str, bytes) and len(key) <= _MAX_KEY_LENGTH
    if not bounded:
      raise BadPickle(
        'it holds a dictionary with other keys than strings and numbers, '
        'or with too long or too many of them'
      )
    items[key] = value

  def pop_marked(self) -> list[Any]:
    """Pops all items above the last mark."""
    items, self.stack = self.stack, self.stacks_below.pop()
    return items

  def known(self, module: Any, name: Any) -> Any:
    """Returns a `Name` that the pickle asks for, or what stands for it.

    Args:
      module: as the pickle gives it, of any kind.
      name: likewise.

    Raises:
      UnknownName: if `make_unknown` does, or the name is too long.
    """
    if not isinstance(module, str) or not isinstance(name, str):
      raise TypeError
    if len(module) + len(name) > _MAX_NAME_LENGTH:
      raise UnknownName(f'{module[:100]}.{name[:100]}')
    full_name = f'{module}.{name}'
    if full_name not in self.names:
      return self.make_unknown(full_name)
    return Name(full_name)

  def find(self, identity: Any) -> Any:
    """Finds an object by persistent id; plain data have none, so it raises."""
    raise _never('BINPERSID')

  def step(self, instruction: str, argument: Any) -> None:
    """Executes an instruction."""
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
        self.stacks_below.append(self.stack)
        self.stack = []
      case 'EMPTY_LIST':
        push([])
      case 'EMPTY_TUPLE':
        push(())
      case 'LIST':
        items = self.pop_marked()
        self.stack.append(items)
      case 'TUPLE':
        items = self.pop_marked()
        self.stack.append(tuple(items))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        items = [pop() for _ in range(int(instruction[-1]))]
        push(tuple(items[::-1]))
      case 'APPEND':
        item = pop()
        list.append(self.stack[-1], item)
      case 'APPENDS':
        items = self.pop_marked()
        list.extend(self.stack[-1], items)

      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self.memo[argument] = self.stack[-1]
      case 'MEMOIZE':
        self.memo[len(self.memo)] = self.stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        push(self.memo[argument])

      case 'EMPTY_DICT':
        push(self.make_dict())
      case 'SETITEM':
        value, key = pop(), pop()
        self.set_item(self.stack[-1], key, value)
      case 'SETITEMS':
        items = self.pop_marked()
        for key, value in zip(items[::2], items[1::2], strict=True):
          self.set_item(self.stack[-1], key, value)

      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        if self.stacks_below or len(self.stack) != 1:
          raise ValueError
      case _:
        self._step_by_name(instruction, argument)

  def _step_by_name(self, instruction: str, argument: Any) -> None:
    """Executes an instruction that asks for a name, or for what a name made."""
    push, pop = self.stack.append, self.stack.pop
    match instruction:
      case 'GLOBAL':
        push(self.known(*argument.split(' ', 1)))
      case 'STACK_GLOBAL':
        name, module = pop(), pop()
        push(self.known(module, name))
      case 'REDUCE':
        arguments, name = pop(), pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
          raise TypeError
        push(self.make(name, arguments))
      case 'BUILD':
        state = pop()
        self.build(self.stack[-1], state)
      case 'BINPERSID':
        push(self.find(pop()))
      case 'INST':
        self.known(*argument.split(' ', 1))
        raise _never(instruction)
      case _:
        raise _never(instruction)

  def _encode(self, text: str) -> bytes:
    # One copy of a text, however often the pickle asks.
    if text not in self.encoded:
      self.encoded[text] = text.encode('latin-1')
    return self.encoded[text]

  def _bytes_dtype(self, form: str | bytes) -> np.dtype:
    """Returns a dtype of byte strings, none longer than the pickle."""
    text = form if isinstance(form, str) else form.decode('latin-1')
    if not _BYTES_DTYPE.fullmatch(text) or int(text[1:]) > self.length:
      raise TypeError
    return np.dtype(text)


def _never(instruction: str) -> BadPickle:
  return BadPickle(f'it holds {instruction}, which plain data never do')
