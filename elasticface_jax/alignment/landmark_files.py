# SPDX-License-Identifier: Apache-2.0
"""Files of landmarks: one line for each image.

A line holds the image's name, x and y of 5 or of 68 points, and perhaps a
score of the detector. Fields are separated by tabs, commas or spaces: by
the first of these that the first line with points has. Lines before it that
hold no points are passed over: a header, and CelebA's count.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax.alignment.similarity import NotAligned
from elasticface_jax.alignment.template import POINTS, from_68
from elasticface_jax.errors import InputError

_SUFFIXES = ('.jpg', '.jpeg', '.png')
# Fields of a line: with and without a score, of 5 points and of 68.
_FIELDS = (11, 12, 137, 138)
_HEADER_LINES = 2
_REMEDY = (
  'a line holds the name of an image, x and y of 5 or 68 points, and perhaps a '
  'score, with tabs, commas or spaces between them'
)
_MISSING = 'there are no landmarks of it'


class Landmarks(NamedTuple):
  """Landmarks of images, by name.

  Attributes:
    path: the file.
    names: names of the images, in the order of the file.
    points: five of each, x before y in pixels, float64, ``[n, 5, 2]``.
    scores: of the detector, float64, ``[n]``; NaN where there is none.
    rows: row of each name. Names without the suffix of an image, which
      VGGFace2 lists, stand for the image with any.
  """

  path: str
  names: Sequence[str]
  points: np.ndarray
  scores: np.ndarray
  rows: dict[str, int]

  def find(self, name: str) -> np.ndarray:
    """Returns the landmarks of an image.

    Args:
      name: path of the image, in the folder that the file is about.

    Returns:
      float64, ``[5, 2]``.

    Raises:
      NotAligned: if there are none.
    """
    row = self._row(name)
    if row is None:
      kind = f'{_MISSING} in {self.path}'
      raise NotAligned(kind)
    return self.points[row]

  def find_file(self, path: str | os.PathLike) -> np.ndarray:
    """Returns the landmarks of an image that is given by its path.

    Args:
      path: the path, of which the file may have only the last parts.

    Returns:
      float64, ``[5, 2]``.

    Raises:
      NotAligned: if there are none.
    """
    parts = Path(path).parts
    for start in range(len(parts)):
      if self._row('/'.join(parts[start:])) is not None:
        return self.find('/'.join(parts[start:]))
    return self.find(str(path))

  def unused(self, names: Iterable[str]) -> list[str]:
    """Returns the names in the file that are not among those of images."""
    used = {self._row(name) for name in names}
    return [name for row, name in enumerate(self.names) if row not in used]

  def _row(self, name: str) -> int | None:
    stem, suffix = os.path.splitext(name)
    found = self.rows.get(name)
    if found is None and suffix.lower() in _SUFFIXES:
      found = self.rows.get(stem)
    return found


def read_landmarks(path: str | os.PathLike) -> Landmarks:
  """Reads a file of landmarks.

  Those of IJB (``ijbc_name_5pts_score.txt``), CelebA
  (``list_landmarks_celeba.txt``) and VGGFace2 (``loose_landmark_train.csv``)
  are read as they are, and any table with the same columns. 68 points are
  reduced to five, as by `from_68`.

  Args:
    path: the file, UTF-8.

  Returns:
    The landmarks. Whether they are those of faces is for `check` to say.

  Raises:
    InputError: if the file cannot be read, a line has another number of
      fields, a field is no number, or a name is there twice.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'points.txt')
    >>> _ = path.write_text('a/1.jpg 38 52 74 52 56 72 42 92 71 92 0.99')
    >>> read_landmarks(path).find('a/1.jpg')[2].tolist()
    [56.0, 72.0]
  """
  path = Path(path)
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; give a file of landmarks'
    ) from error
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not UTF-8 text; {_REMEDY}') from error
  rows = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
  rows, separator, num_fields = _without_header(path, rows)
  names, values = [], np.empty((len(rows), num_fields - 1))
  for place, (number, line) in enumerate(rows):
    fields = _split(line, separator)
    if len(fields) != num_fields:
      raise InputError(
        f'{path}: line {number} has {len(fields)} fields, and line '
        f'{rows[0][0]} {num_fields}; {_REMEDY}'
      )
    names.append(_normal(fields[0]))
    try:
      values[place] = fields[1:]
    except ValueError as error:
      raise InputError(
        f'{path}: line {number} has a field that is no number; {_REMEDY}'
      ) from error
  return Landmarks(str(path), names, *_arrays(values), _rows(path, rows, names))


def landmark_table(names: Iterable[str], points: np.ndarray) -> str:
  """Writes landmarks as a table with a header, which `read_landmarks` reads.

  Args:
    names: n names of images, without tabs and line breaks.
    points: x and y of five points, float, ``[n, 5, 2]``.

  Returns:
    The text, with tabs between the fields; numbers keep all of their digits.

  Examples:
    >>> print(landmark_table(['a.jpg'], np.zeros((1, 5, 2)))[-20:].split())
    ['0.0', '0.0', '0.0', '0.0', '0.0']
  """
  axes = [f'{axis}{n}' for n in range(1, len(POINTS) + 1) for axis in 'xy']
  rows = [['image', *axes]]
  for name, values in zip(names, points, strict=True):
    rows.append([name, *map(repr, values.ravel().tolist())])
  return ''.join('\t'.join(row) + '\n' for row in rows)


def _without_header(
  path: Path, rows: list[tuple[int, str]]
) -> tuple[list[tuple[int, str]], str | None, int]:
  """Leaves out the lines before the first one with points."""
  for start, (_, line) in enumerate(rows[: _HEADER_LINES + 1]):
    for separator in ('\t', ',', None):
      fields = _split(line, separator)
      if len(fields) in _FIELDS and all(map(_is_number, fields[1:])):
        _check_header(path, rows[:start], separator)
        return rows[start:], separator, len(fields)
  if not rows:
    raise InputError(f'{path}: it is empty; {_REMEDY}')
  number, line = rows[0]
  raise InputError(
    f'{path}: line {number} and those after it are no landmarks: '
    f'{line.strip()[:60]!r}; {_REMEDY}'
  )


def _check_header(
  path: Path, rows: list[tuple[int, str]], separator: str | None
) -> None:
  """Checks that columns are x and y in turns, where their names say so."""
  for number, line in rows:
    fields = [field.lower() for field in _split(line, separator)]
    axes = [
      'x' if 'x' in f and 'y' not in f.replace('eye', '') else 'y'
      for f in fields
      if ('x' in f) != ('y' in f.replace('eye', ''))
    ]
    if len(axes) >= 2 * len(POINTS) and axes[: 2 * len(POINTS)] != (
      ['x', 'y'] * len(POINTS)
    ):
      raise InputError(
        f'{path}: line {number} names columns that are not x and y of one '
        'point after the other; put them into this order'
      )


def _split(line: str, separator: str | None) -> list[str]:
  return [field.strip() for field in line.strip().split(separator)]


def _is_number(field: str) -> bool:
  try:
    float(field)
  except ValueError:
    return False
  return True


def _normal(name: str) -> str:
  name = name.strip('"').replace('\\', '/')
  return name.removeprefix('./')


def _arrays(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Divides the numbers of all lines into points and scores."""
  scores = np.full(len(values), np.nan)
  if values.shape[1] % 2:
    values, scores = values[:, :-1], values[:, -1]
  points = values.reshape(len(values), -1, 2)
  return (from_68(points) if points.shape[1] == 68 else points), scores


def _rows(
  path: Path, rows: list[tuple[int, str]], names: list[str]
) -> dict[str, int]:
  found, twice = {}, []
  for row, name in enumerate(names):
    if found.setdefault(name, row) != row:
      twice.append((found[name], row))
  if twice:
    first, second = twice[0]
    count = (
      f', the first of {len(twice):,} such lines' if len(twice) > 1 else ''
    )
    raise InputError(
      f'{path}: line {rows[second][0]} has {names[second]} again, after line '
      f'{rows[first][0]}{count}; each image has one face: remove either'
    )
  return found
