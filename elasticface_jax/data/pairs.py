# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of verification pairs.

There are two formats, and the first bytes of a file distinguish them. An
insightface ``.bin`` (``lfw.bin`` and others) is a pickle of ``(images, same)``:
2N encoded images, of which 2i and 2i+1 are pair i, and N booleans. Our ``.npz``
holds the same in four arrays, uncompressed and without a pickle:

- ``version``: int64, 1;
- ``data``: uint8, all encoded images one after the other;
- ``offsets``: int64, ``[2N + 1]``; image i is
  ``data[offsets[i]:offsets[i + 1]]``;
- ``same``: bool, ``[N]``.
"""

import dataclasses
import io
import itertools
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from elasticface_jax import atomic, pickles
from elasticface_jax.data.sources import decode
from elasticface_jax.data.sources.encoded import counted
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.synthetic import synthetic_pairs
from elasticface_jax.errors import InputError

SUFFIXES = ('.bin', '.npz')
_CHUNK = 256  # Images decoded in one call.
_VERSION = 1
_ARRAYS = {
  'version': (np.int64, 0),
  'data': (np.uint8, 1),
  'offsets': (np.int64, 1),
  'same': (np.bool_, 1),
}
# A longer strip is no face, and would take gigabytes at 112 on its short side.
_MAX_ASPECT = 16


@dataclasses.dataclass(frozen=True, eq=False)
class PairSet:
  """Pairs of faces, each marked as one person or two.

  Attributes:
    name: name of the file, without its suffix.
    images: RGB, uint8, ``[2N, 112, 112, 3]``; pair i is images 2i and 2i+1.
    same: True for pairs of one person, bool, ``[N]``.
    num_resized: number of images that were not 112x112; they were resized and
      cropped at the centre.
  """

  name: str
  images: np.ndarray
  same: np.ndarray
  num_resized: int = 0


def open_pairs(
  pairs: str | os.PathLike, *, num_pairs: int, seed: int
) -> PairSet:
  """Opens an entry of a config's `eval.pairs`.

  Args:
    pairs: path of a ``.bin`` or ``.npz``, or ``'synthetic'``.
    num_pairs: number of synthetic pairs; ignored for a file.
    seed: seed of synthetic pairs; ignored for a file.

  Returns:
    The pairs.

  Raises:
    InputError: if there is no such file, or it is no pair set.
  """
  if pairs == 'synthetic':
    return PairSet('synthetic', *synthetic_pairs(num_pairs, seed))
  return read_pairs(pairs)


def read_pairs(path: str | os.PathLike) -> PairSet:
  """Reads and decodes an insightface ``.bin``, or our ``.npz``.

  Images that are not 112x112 are resized to 112 on the short side (bicubic)
  and cropped at the centre.

  Args:
    path: the file.

  Returns:
    The pairs.

  Raises:
    InputError: if the file is missing, cut off or no pair set, asks to run
      code, or holds an image that does not decode.

  References:
    Differs from the authors' code in: the pickle is not trusted; other sizes
    are resized by TensorFlow's bicubic filter, not OpenCV's, and cropped.
  """
  path = Path(path)
  encoded, same = read_encoded(path)
  shape = (len(encoded), decode.SIZE, decode.SIZE, 3)
  try:
    images = np.empty(shape, np.uint8)
  except MemoryError as error:
    raise InputError(
      f'{path}: {counted(len(encoded), "image")} take '
      f'{np.prod(shape) / 1e9:,.0f} GB of memory; give a smaller pair set'
    ) from error
  num_resized = 0
  for start in range(0, len(encoded), _CHUNK):
    chunk = encoded[start : start + _CHUNK]
    try:
      images[start : start + _CHUNK] = decode.decode_faces(chunk)
    except decode.BadImage:
      for row, one in enumerate(chunk, start):
        images[row], resized = _decode_any_size(path, row, one)
        num_resized += resized
  return PairSet(path.stem, images, same, num_resized)


def is_pair_set(path: str | os.PathLike) -> bool:
  """Returns True for a file, or for a missing path with a pair set's suffix.

  Args:
    path: of a pair set or a data set.

  Returns:
    True if it is to be read as a pair set, whose errors then name what is
    wrong; False for a folder, an address, and any other name.

  Examples:
    >>> is_pair_set('missing/lfw.bin'), is_pair_set('missing/ms1mv2')
    (True, False)
  """
  if is_remote(path):
    return False
  path = Path(path)
  return path.is_file() or (path.suffix in SUFFIXES and not path.exists())


def read_encoded(
  path: str | os.PathLike,
) -> tuple[list[bytes], np.ndarray]:
  """Reads a pair set of either format without decoding its images.

  Args:
    path: the file.

  Returns:
    2N encoded images, and bool ``[N]``.

  Raises:
    InputError: as for `read_pairs`, except for images that do not decode.
  """
  path = Path(path)
  if path.suffix in ('.rec', '.idx') and path.is_file():
    raise InputError(
      f'{path} is a file of a training set; give the folder that holds '
      'train.rec, train.idx and property, or a pair set, .bin or .npz'
    )
  try:
    data = path.read_bytes()
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; give a pair set like lfw.bin or lfw.npz'
    ) from error
  if not data:
    raise InputError(f'{path}: it is empty; copy the file again')
  if data.startswith(b'PK'):
    read, form = _read_npz, 'the .npz format of a pair set'
  else:
    read = _read_bin
    form = 'a pickle of (images, same), the insightface .bin format'
  try:
    encoded, same = read(data)
  except (TypeError, ValueError) as error:
    remedy = '; give a pair set like lfw.bin or lfw.npz'
    if ';' in str(error):  # It says what to do.
      remedy = ''
    raise InputError(f'{path}: not {form}: {error}{remedy}') from error
  _check_lengths(path, encoded, same)
  return encoded, same


def write_pairs(
  path: str | os.PathLike, encoded: Sequence[bytes], same: Sequence[bool]
):
  """Writes a pair set, atomically.

  Args:
    path: the file, which must not exist yet. The suffix chooses the format:
      ``.bin``, which insightface's scripts read, or ``.npz``, without a pickle.
    encoded: JPEG or PNG bytes of 2N images, pair after pair.
    same: N booleans.

  Raises:
    InputError: if the numbers do not agree, there are no pairs, the suffix is
      another, or the file exists or cannot be written.
  """
  path = Path(path)
  write = {'.bin': _write_bin, '.npz': _write_npz}.get(path.suffix)
  if write is None:
    raise InputError(
      f'{path}: the suffix chooses the format: give .bin, which insightface '
      'reads too, or .npz, which is no pickle'
    )
  _check_lengths(path, encoded, same)
  if os.path.lexists(path):
    raise InputError(f'{path} exists; give another name, or remove it')
  with atomic.file(path) as part, open(part, 'wb') as file:
    write(file, [bytes(one) for one in encoded], [bool(one) for one in same])


def _check_lengths(path: Path, encoded: Sequence, same: Sequence):
  if len(encoded) != 2 * len(same) or not len(same):
    raise InputError(
      f'{path}: {counted(len(encoded), "image")} for '
      f'{counted(len(same), "pair")}; each pair needs two images, and there '
      'must be at least one pair'
    )


def _read_bin(data: bytes) -> tuple[list[bytes], np.ndarray]:
  images, same = pickles.load(data)
  flags = np.array([_flag(one) for one in _items(same)], bool)
  return [_image(one) for one in _items(images)], flags


def _items(sequence) -> list:
  if isinstance(sequence, pickles.Array):
    if sequence.dtype.kind == 'S':
      return _padded(sequence)
    sequence = sequence.values
  if not isinstance(sequence, list | tuple | np.ndarray):
    raise TypeError(f'{type(sequence).__name__} in place of a list')
  return list(sequence)


def _padded(array: pickles.Array) -> list[bytes]:
  """Splits an array of strings; each is filled up with zeros to one length."""
  size = array.dtype.itemsize
  if len(array.data) % size:
    raise ValueError('an array of strings that is cut off')
  starts = range(0, len(array.data), size)
  # As NumPy does. A PNG or JPEG does not end with a zero.
  return [array.data[i : i + size].rstrip(b'\0') for i in starts]


def _image(image) -> bytes:
  if isinstance(image, pickles.Array) and (
    image.dtype == np.uint8 or image.dtype.kind == 'S'
  ):
    image = image.data
  if not isinstance(image, bytes):
    raise TypeError(f'{type(image).__name__} in place of an image')
  return image


def _flag(one) -> bool:
  # Otherwise -1 and the string 'False' would be true.
  if one not in (0, 1):
    raise ValueError('a pair whose flag is neither True nor False')
  return bool(one)


def _read_npz(data: bytes) -> tuple[list[bytes], np.ndarray]:
  try:
    arrays = _load_npz(data)
  except Exception as error:
    # zipfile, NumPy and the parser of its headers each raise their own.
    raise ValueError('it is cut off or damaged; copy the file again') from error
  if arrays is None:
    raise ValueError(
      f'it must hold {", ".join(_ARRAYS)}, not compressed, and nothing else'
    )
  for name, (dtype, ndim) in _ARRAYS.items():
    array = arrays[name]
    if not isinstance(array, np.ndarray) or (
      (array.dtype, array.ndim) != (dtype, ndim)
    ):
      raise ValueError(
        f'`{name}` must have dtype {dtype.__name__} and {ndim} dimension(s)'
      )
  version, joined, offsets, same = arrays.values()
  if version != _VERSION:
    raise ValueError(
      f'it has version {version}, and this program reads version {_VERSION}; '
      'update the program'
    )
  if same.view(np.uint8).max(initial=0) > 1:
    raise ValueError('`same` holds bytes that are neither 0 nor 1')
  # Compared, not subtracted: a difference may overflow.
  if (offsets[1:] < offsets[:-1]).any() or (
    offsets[:1].tolist() + offsets[-1:].tolist() != [0, len(joined)]
  ):
    raise ValueError(
      f'`offsets` must rise from 0 to {len(joined)}, the length of `data`'
    )
  edges = itertools.pairwise(offsets.tolist())
  return [joined[start:end].tobytes() for start, end in edges], same


def _load_npz(data: bytes) -> dict[str, np.ndarray] | None:
  """Returns the arrays; None if there are others, or a size is uncertain."""
  with np.load(io.BytesIO(data), allow_pickle=False) as archive:
    members = archive.zip.infolist()
    names = sorted(one.filename for one in members)
    # Four stored arrays cannot be larger than the file.
    stored = all(
      one.compress_type == zipfile.ZIP_STORED
      and one.compress_size == one.file_size
      for one in members
    )
    if not stored or names != sorted(f'{name}.npy' for name in _ARRAYS):
      return None
    # Reading verifies the checksum of each.
    return {name: archive[name] for name in _ARRAYS}


def _write_bin(file: BinaryIO, encoded: list[bytes], same: list[bool]):
  pickle.dump((encoded, same), file, protocol=4)


def _write_npz(file: BinaryIO, encoded: list[bytes], same: list[bool]):
  np.savez(
    file,
    version=np.int64(_VERSION),
    data=np.frombuffer(b''.join(encoded), np.uint8),
    offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    same=np.array(same, bool),
  )


def _decode_any_size(
  path: Path, row: int, encoded: bytes
) -> tuple[np.ndarray, bool]:
  """Returns the face at 112x112, and True if it had another size."""
  place = f'{path}: image {row} (pair {row // 2})'
  try:
    image = decode.decode_image(encoded)
  except decode.BadImage as error:
    raise InputError(
      f'{place}: {error.problem}; download or copy the file again'
    ) from error
  size = decode.SIZE
  height, width, _ = image.shape
  if (height, width) == (size, size):
    return image, False
  short, long = sorted((height, width))
  if long > _MAX_ASPECT * short:
    raise InputError(
      f'{place}: the image is {width}x{height}, too long for a face; give '
      'aligned faces'
    )
  tf = decode.tensorflow()
  target = [round(side * size / short) for side in (height, width)]
  resized = tf.image.resize(image, target, method='bicubic').numpy()
  top, left = ((side - size) // 2 for side in target)
  crop = resized[top : top + size, left : left + size]
  return np.clip(np.rint(crop), 0, 255).astype(np.uint8), True
