# SPDX-License-Identifier: Apache-2.0
"""Columns of the text files in which benchmarks are published.

They have no header, and their fields are separated by spaces or tabs. IJB-C's
list of pairs has 15.7 million lines: numbers are read in parts, so that memory
is that of the result.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from elasticface_jax.errors import InputError

_PART = 1 << 24  # Bytes that are read at once.


def read_integers(path: str | os.PathLike[str], columns: int) -> np.ndarray:
  r"""Reads a file of integers.

  Args:
    path: the file.
    columns: integers in each line.

  Returns:
    int32, ``[lines, columns]``.

  Raises:
    InputError: names the line that has something else, or the file if it is
      missing or empty.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'pairs.txt')
    >>> _ = path.write_text('1 20 1\n1 30 0\n')
    >>> print(read_integers(path, 3))
    [[ 1 20  1]
     [ 1 30  0]]
  """
  parts, line = [], 1
  for part in _parts(path):
    values = _fast(part, columns)
    if values is None:
      values = _slow(part, columns, path, line)
    line += len(values)
    parts.append(values)
  return np.concatenate(parts)


def read_fields(
  path: str | os.PathLike[str], columns: int
) -> Iterator[list[str]]:
  r"""Reads a file line by line.

  Args:
    path: the file, UTF-8.
    columns: fields in each line.

  Yields:
    The fields of a line.

  Raises:
    InputError: names the line that has more or fewer fields, or the file if it
      is missing or empty.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'names.txt')
    >>> _ = path.write_text('a.jpg 0.5\n')
    >>> list(read_fields(path, 2))
    [['a.jpg', '0.5']]
  """
  number = 0
  for part in _parts(path):
    try:
      text = part.decode()
    except UnicodeDecodeError as error:
      raise InputError(
        f'{path}: not UTF-8 text; give the published file'
      ) from (error)
    for line in text.removesuffix('\n').split('\n'):
      number += 1
      fields = line.split()
      if len(fields) != columns:
        wrong_line(path, number, line, f'{columns} fields')
      yield fields


def wrong_line(
  path: str | os.PathLike[str], number: int, line: str, expected: str
) -> NoReturn:
  """Raises an error about a line.

  Args:
    path: the file.
    number: number of the line, from 1.
    line: its text.
    expected: the content that it should have.

  Raises:
    InputError: always.

  Examples:
    >>> try:
    ...   wrong_line('a.txt', 3, '1 x', '2 integers')
    ... except InputError as error:
    ...   print(error)
    a.txt: line 3 is '1 x'; expected 2 integers, with a space between
  """
  shown = repr(line if len(line) <= 60 else line[:57] + '...')
  raise InputError(
    f'{path}: line {number} is {shown}; expected {expected}, with a space '
    'between'
  )


def _parts(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """Yields the bytes of a file in parts of whole lines."""
  path = Path(path)
  try:
    with path.open('rb') as file:
      rest = b''
      while part := file.read(_PART):
        whole, newline, rest_of_part = (rest + part).rpartition(b'\n')
        rest = rest_of_part
        if newline:
          yield whole + newline
      if rest:
        yield rest + b'\n'
      if not file.tell():
        raise InputError(f'{path}: an empty file; give the published one')
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; give the folder of the published files'
    ) from error


def _fast(part: bytes, columns: int) -> np.ndarray | None:
  """Parses lines of digits with one space between; None if there is more."""
  if b'\r' in part:
    part = part.replace(b'\r\n', b'\n')
  text = np.frombuffer(part, np.uint8)
  is_separator = (text == ord(' ')) | (text == ord('\n'))
  if not (is_separator | ((text >= ord('0')) & (text <= ord('9')))).all():
    return None
  ends = np.flatnonzero(is_separator)
  if len(ends) % columns or (np.diff(ends, prepend=-1) == 1).any():
    return None
  kinds = text[ends].reshape(-1, columns)
  if (kinds[:, -1] != ord('\n')).any() or (kinds[:, :-1] != ord(' ')).any():
    return None
  values = np.fromstring(part, np.int64, sep=' ')
  if len(values) != len(ends) or (values >= 1 << 31).any():
    return None
  return values.astype(np.int32).reshape(-1, columns)


def _slow(
  part: bytes, columns: int, path: str | os.PathLike[str], first: int
) -> np.ndarray:
  """Parses lines with any blanks between, and finds the wrong one."""
  rows = []
  lines = part.removesuffix(b'\n').split(b'\n')
  for number, line in enumerate(lines, first):
    try:
      row = [int(field) for field in line.split()]
    except ValueError:
      row = []
    if len(row) != columns or any(abs(value) >= 1 << 31 for value in row):
      shown = line.decode(errors='replace')
      wrong_line(path, number, shown, f'{columns} integers below 2^31')
    rows.append(row)
  return np.array(rows, np.int32)
