# SPDX-License-Identifier: Apache-2.0
"""Pairs from LFW's ``pairs.txt`` and a folder of images.

Each line of the list is a pair: ``name n1 n2`` for images n1 and n2 of one
person, ``name1 n1 name2 n2`` for images of two. The first line may announce the
number of pairs: ``folds k`` if each fold has k pairs of one person and then k
of two, and ``k`` alone for one fold. Fields are separated by tabs or, in a line
without tabs, by spaces. Image 1 of a person is ``name/name_0001.jpg`` in the
folder.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.sources.encoded import counted
from elasticface_jax.data.sources.images import SUFFIXES
from elasticface_jax.errors import InputError

_REMEDY = "give a list like LFW's pairs.txt"


class ListedPair(NamedTuple):
  """Line of a list of pairs.

  Attributes:
    place: file and line, for messages.
    first: name and number of the first image.
    second: name and number of the second image.
    same: True for a line of one person.
  """

  place: str
  first: tuple[str, int]
  second: tuple[str, int]
  same: bool


def read_pair_list(path: str | os.PathLike) -> list[ListedPair]:
  """Reads a list of pairs in the format of LFW's ``pairs.txt``.

  Args:
    path: the file.

  Returns:
    Its N pairs, in its order.

  Raises:
    InputError: if the file is missing or no text, a line is no pair, or the
      pairs differ from what the first line announces.
  """
  path = Path(path)
  try:
    text = path.read_text(encoding='utf-8-sig')
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {_REMEDY}') from error
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not UTF-8 text; {_REMEDY}') from error
  lines = [
    (number, line)
    for number, line in enumerate(text.split('\n'), start=1)
    if line.strip()
  ]
  header = _counts(lines[0][1]) if lines else None
  pairs = [
    _parse(f'{path}: line {number}', line)
    for number, line in lines[header is not None :]
  ]
  if not pairs:
    raise InputError(f'{path}: there are no pairs; {_REMEDY}')
  if header is not None:
    _check_counts(f'{path}: line {lines[0][0]}', *header, pairs)
  return pairs


def pairs_from_folder(
  folder: str | os.PathLike, pair_list: Sequence[ListedPair]
) -> tuple[list[bytes], np.ndarray]:
  """Reads the encoded images of listed pairs.

  The faces should be aligned to 112x112, like the training images. Other sizes
  are read too, but are only resized and cropped when decoded.

  Args:
    folder: as for `paired_files`.
    pair_list: from `read_pair_list`, N pairs.

  Returns:
    2N encoded images, pair after pair, and bool ``[N]``, for `write_pairs`.

  Raises:
    InputError: as `paired_files`, or if an image cannot be read.
  """
  paths = paired_files(folder, pair_list)
  try:
    encoded = {image: path.read_bytes() for image, path in paths.items()}
  except OSError as error:
    raise InputError(f'{error.filename}: {error.strerror}') from error
  return in_pairs(encoded, pair_list)


def in_pairs(
  encoded: Mapping[tuple[str, int], bytes], pair_list: Sequence[ListedPair]
) -> tuple[list[bytes], np.ndarray]:
  """Puts images into the order of listed pairs.

  Args:
    encoded: images by name and number of the person.
    pair_list: from `read_pair_list`, N pairs.

  Returns:
    As `pairs_from_folder`.
  """
  return [
    encoded[image] for pair in pair_list for image in (pair.first, pair.second)
  ], np.array([pair.same for pair in pair_list], bool)


def paired_files(
  folder: str | os.PathLike, pair_list: Sequence[ListedPair]
) -> dict[tuple[str, int], Path]:
  """Finds the image files of listed pairs.

  Args:
    folder: holds ``name/name_0001.jpg`` and so on; ``.jpeg`` and ``.png`` are
      found too, in upper or lower case.
    pair_list: from `read_pair_list`, N pairs.

  Returns:
    The file of each image, by name and number of the person.

  Raises:
    InputError: if there is no such folder, or images are missing or there
      twice. The message names the first of them, and the number of missing
      ones.
  """
  folder = Path(folder)
  if not folder.is_dir():
    found = 'is a file' if folder.exists() else 'no such folder'
    raise InputError(
      f'{folder}: {found}; give a folder that holds name/name_0001.jpg'
    )
  places = {}  # The first line that asks for each image.
  for pair in pair_list:
    for image in (pair.first, pair.second):
      places.setdefault(image, pair.place)
  try:
    return _find(folder, places)
  except OSError as error:
    raise InputError(f'{error.filename}: {error.strerror}') from error


def _find(
  folder: Path, places: dict[tuple[str, int], str]
) -> dict[tuple[str, int], Path]:
  list_images = functools.cache(_list_images)
  paths, missing = {}, []
  for (name, number), place in places.items():
    stem = f'{name}_{number:04d}'
    match list_images(folder / name).get(stem, []):
      case [path]:
        paths[name, number] = path
      case []:
        missing.append(f'{place}: {folder / name / stem}.jpg')
      case [one, other, *_]:
        raise InputError(
          f'{place}: {one} and {other.name} have one name; remove either'
        )
  if missing:
    raise InputError(
      f'{missing[0]} is missing, the first of '
      f'{counted(len(missing), "missing image")}; give a folder that holds '
      'them all'
    )
  return paths


def _list_images(folder: Path) -> dict[str, list[Path]]:
  """Lists a person's images by name without suffix; empty without a folder."""
  images = {}
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.suffix.lower() in SUFFIXES:
      images.setdefault(path.stem, []).append(path)
  return images


def _fields(line: str) -> list[str]:
  line = line.strip()
  if '\t' not in line:
    return line.split()
  return [field.strip() for field in line.split('\t')]


def _is_number(field: str) -> bool:
  return re.fullmatch('[0-9]{1,9}', field) is not None


def _counts(line: str) -> tuple[int, int] | None:
  """Reads folds, and pairs of each kind in a fold; None for another line."""
  numbers = _fields(line)
  if len(numbers) > 2 or not all(map(_is_number, numbers)):
    return None
  folds, size = ['1', *numbers][-2:]
  return int(folds), int(size)


def _parse(place: str, line: str) -> ListedPair:
  fields = _fields(line)
  same = len(fields) == 3
  if same:
    fields.insert(2, fields[0])
  if len(fields) == 4 and all(fields):
    name, first, other, second = fields
    if _is_number(first) and _is_number(second) and same == (name == other):
      if same and int(first) == int(second):
        raise InputError(
          f'{place}: {line.strip()[:100]!r} pairs an image with itself; remove '
          'the line, or name another image'
        )
      return ListedPair(place, (name, int(first)), (other, int(second)), same)
  raise InputError(
    f'{place}: {line.strip()[:100]!r} is neither `name n1 n2` nor `name1 n1 '
    'name2 n2` with two names; names with spaces need tabs between the fields'
  )


def _check_counts(place: str, folds: int, size: int, pairs: list[ListedPair]):
  if len(pairs) != 2 * folds * size:
    raise InputError(
      f'{place} announces {folds} x 2 x {size} pairs, but {len(pairs):,} '
      'follow; copy the list again, or remove that line'
    )
  for row, pair in enumerate(pairs):
    if pair.same != (row % (2 * size) < size):
      raise InputError(
        f'{pair.place}: a pair of {"one person" if pair.same else "two"}, but '
        f'{place} announces {folds} x ({size} of one + {size} of two), in this '
        'order; copy the list again, or remove that line'
      )
