# SPDX-License-Identifier: Apache-2.0
"""Single image files: one of them, or a flat folder of them without labels."""

import os
from pathlib import Path

import numpy as np

from elasticface_jax.data.sources import decode
from elasticface_jax.errors import InputError

SUFFIXES = ('.jpg', '.jpeg', '.png')  # In upper or lower case.
_REMEDY = 'give a .jpg, .jpeg or .png, or a folder of them'


def list_images(path: str | os.PathLike) -> list[Path]:
  """Lists the image files of a flat folder, or the one file.

  Args:
    path: a folder of images, or an image file. Names end in ``.jpg``,
      ``.jpeg`` or ``.png`` in any case. Other files of a folder, and names that
      begin with a dot, are left out.

  Returns:
    The files, sorted by the bytes of their names.

  Raises:
    InputError: if there is no image, or the folder holds folders too.

  Examples:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ('b.jpg', 'a.PNG', 'notes.txt'):
    ...   _ = (folder / name).write_bytes(b'')
    >>> [image.name for image in list_images(folder)]
    ['a.PNG', 'b.jpg']
  """
  path = Path(path)
  if path.is_file():
    if path.suffix.lower() not in SUFFIXES:
      raise InputError(f'{path} is no image file by its name; {_REMEDY}')
    return [path]
  try:
    entries = [one for one in path.iterdir() if not one.name.startswith('.')]
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {_REMEDY}') from error
  images = [one for one in entries if one.suffix.lower() in SUFFIXES]
  folders = sorted(one.name for one in entries if one.is_dir())
  if folders:
    raise InputError(
      f'{path} holds folders, such as {folders[0]}; give a folder of images '
      'alone, or a data set'
    )
  if not images:
    raise InputError(f'{path}: there is no image in it; {_REMEDY}')
  return sorted(images, key=lambda image: os.fsencode(image.name))


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Reads and decodes an image file of any size.

  Args:
    path: the file, JPEG or PNG.

  Returns:
    RGB, uint8, ``[H, W, 3]``: the pixels with which training would see it.

  Raises:
    InputError: if it cannot be read, or is no complete JPEG or PNG.

  Examples:
    >>> import tempfile
    >>> from PIL import Image
    >>> path = Path(tempfile.mkdtemp(), 'grey.png')
    >>> Image.new('L', (3, 2), 7).save(path)
    >>> read_image(path).shape
    (2, 3, 3)
  """
  path = Path(path)
  try:
    return decode.decode_image(path.read_bytes())
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {_REMEDY}') from error
  except decode.BadImage as error:
    raise InputError(f'{path}: {error.problem}; {_REMEDY}') from error


def printable(name: bytes) -> str:
  r"""Returns a file's name as text that can be written as UTF-8.

  Examples:
    >>> printable('é.jpg'.encode()), printable(b'\xe9.jpg')
    ('é.jpg', '\\xe9.jpg')
  """
  return name.decode('utf-8', 'backslashreplace')
