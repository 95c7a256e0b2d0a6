# SPDX-License-Identifier: Apache-2.0
"""Verification pairs from insightface ``.bin`` files (``lfw.bin`` and others).

Such a file is a pickle of ``(images, same)``: 2N encoded images, of which 2i
and 2i+1 are pair i, and N booleans. A pickle can run any code, so no name in
it reaches any: the few names that real files hold (NumPy's, for arrays and
scalars) stand for small classes in this module, and every other is refused.
"""

import codecs
import dataclasses
import io
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elasticface_jax.data import decode
from elasticface_jax.data.synthetic import synthetic_pairs
from elasticface_jax.errors import InputError

_CHUNK = 256  # Images decoded in one call.


@dataclasses.dataclass(frozen=True, eq=False)
class PairSet:
  """Pairs of faces, and which of them show the same person.

  Attributes:
    name: the file's, without its ending.
    images: RGB, uint8, ``[2N, 112, 112, 3]``; pair i is rows 2i and 2i+1.
    same: bool, ``[N]``.
  """

  name: str
  images: np.ndarray
  same: np.ndarray


def open_pairs(
  pairs: str | os.PathLike, *, num_pairs: int, seed: int
) -> PairSet:
  """Opens what a config's `eval.pairs` names.

  Args:
    pairs: path of a ``.bin``, or ``'synthetic'``.
    num_pairs: how many to draw; a file has its own number.
    seed: for the drawing; a file needs none.

  Returns:
    The pairs.

  Raises:
    InputError: if there is no such file, or it is no pair set.
  """
  if pairs == 'synthetic':
    return PairSet('synthetic', *synthetic_pairs(num_pairs, seed))
  return read_pairs(pairs)


def read_pairs(path: str | os.PathLike) -> PairSet:
  """Reads and decodes an insightface ``.bin``.

  Images that are not 112x112 are resized to 112 on the short side (bicubic)
  and cropped at the centre.

  Args:
    path: the file.

  Returns:
    The pairs.

  Raises:
    InputError: if the file is missing, cut off, no pair set, asks for code to
      be run, or holds an image that does not decode.

  References:
    Differs from the authors' code in: the pickle is not trusted; other sizes
    are resized by TensorFlow's bicubic filter, not OpenCV's, and cropped.
  """
  path = Path(path)
  encoded, same = read_encoded(path)
  images = np.empty((len(encoded), decode.SIZE, decode.SIZE, 3), np.uint8)
  for start in range(0, len(encoded), _CHUNK):
    chunk = encoded[start : start + _CHUNK]
    try:
      images[start : start + _CHUNK] = decode.decode_faces(chunk)
    except decode.BadImage:
      for row, one in enumerate(chunk, start):
        images[row] = _decode_any_size(path, row, one)
  return PairSet(path.stem, images, same)


def read_encoded(path: Path) -> tuple[list[bytes], np.ndarray]:
  """Reads a ``.bin`` without decoding its images.

  Args:
    path: the file.

  Returns:
    2N encoded images, and bool ``[N]``.

  Raises:
    InputError: as `read_pairs`, but for the images.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise InputError(
      f'{path}: {error.strerror}; give a pair set like lfw.bin'
    ) from error
  form = 'a pickle of (images, same), the insightface .bin form'
  # Protocols 2 to 5 begin with 0x80, 0 and 1 with the mark of a tuple or list.
  if data[:1] not in (b'\x80', b'(', b']'):
    raise InputError(f'{path}: not {form}')
  try:
    images, same = _Unpickler(io.BytesIO(data), encoding='bytes').load()
    images = [_image_bytes(image) for image in _items(images)]
    same = np.array([bool(one) for one in _items(same)], bool)
  except _RefusedNameError as error:
    raise InputError(
      f'{path}: not {form}: it asks for {error}, which no pair set needs; '
      'do not load it with anything else'
    ) from error
  except (EOFError, pickle.UnpicklingError) as error:
    raise InputError(
      f'{path}: the pickle is cut off or damaged; copy the file again'
    ) from error
  except Exception as error:
    # Bytes that are no pickle can raise almost anything.
    raise InputError(f'{path}: not {form} ({type(error).__name__})') from error
  if len(images) != 2 * len(same) or not images:
    raise InputError(
      f'{path}: {len(images)} images for {len(same)} pairs; there must be two '
      'for each, and at least one pair'
    )
  return images, same


def write_pairs(
  path: str | os.PathLike, encoded: Sequence[bytes], same: Sequence[bool]
):
  """Writes the form that `read_pairs` and insightface's own scripts read.

  Args:
    path: the file.
    encoded: JPEG or PNG bytes of 2N images, pair after pair.
    same: N booleans.

  Raises:
    InputError: if the lengths do not agree.
  """
  if len(encoded) != 2 * len(same):
    raise InputError(f'{len(encoded)} images for {len(same)} pairs')
  content = [bytes(one) for one in encoded], [bool(one) for one in same]
  Path(path).write_bytes(pickle.dumps(content, protocol=4))


def _decode_any_size(path: Path, row: int, encoded: bytes) -> np.ndarray:
  try:
    image = decode.decode_image(encoded)
  except decode.BadImage as error:
    raise InputError(
      f'{path}: image {row} (pair {row // 2}): {error.problem}; get the file '
      'again from where it came'
    ) from error
  size = decode.SIZE
  height, width, _ = image.shape
  if (height, width) == (size, size):
    return image
  tf = decode.tensorflow()
  short = min(height, width)
  target = [round(side * size / short) for side in (height, width)]
  resized = tf.image.resize(image, target, method='bicubic').numpy()
  top, left = ((side - size) // 2 for side in target)
  crop = resized[top : top + size, left : left + size]
  return np.clip(np.rint(crop), 0, 255).astype(np.uint8)


# Stand-ins for what NumPy's pickles name. They build arrays of numbers and of
# lists from plain data and can do nothing else, whatever arguments they get.


class _DType:
  """``numpy.dtype``: only bool, integers, floats and objects."""

  def __init__(self, name, *_):
    name = name.decode() if isinstance(name, bytes) else name
    if not re.fullmatch('[<>=|]?([biuf][1248]|O[48]?|bool)', name):
      raise ValueError(name)
    self.is_object = name.lstrip('<>=|').startswith('O')
    self.dtype = np.dtype('O' if self.is_object else name)

  def __setstate__(self, state):
    """Byte order: a byte has none, and zero is zero in both."""

  def decode(self, data: bytes) -> np.ndarray:
    return np.frombuffer(data, self.dtype)


class _Array:
  """``numpy.ndarray``, flat: neither images nor booleans need a shape."""

  def __init__(self, *_):
    self.items = []

  def __setstate__(self, state):
    _, _, dtype, _, data = state
    self.items = data if dtype.is_object else dtype.decode(data)


class _FromBuffer(_Array):
  """``_frombuffer``: an array in the form of pickle protocol 5."""

  def __init__(self, data, dtype, *_):
    self.items = dtype.decode(data)


def _scalar(dtype, data):
  return dtype.decode(data)[0]


def _encode(text, encoding):
  """``_codecs.encode``: bytes in the form of pickle protocol 2."""
  return codecs.latin_1_encode(text)[0]


_STAND_INS = {
  '_codecs.encode': _encode,
  'numpy.dtype': _DType,
  'numpy.ndarray': _Array,
}
# NumPy 2 writes `_core`.
for _core in ('numpy.core', 'numpy._core'):
  _STAND_INS |= {
    f'{_core}.multiarray._reconstruct': _Array,
    f'{_core}.multiarray.scalar': _scalar,
    f'{_core}.numeric._frombuffer': _FromBuffer,
  }


class _RefusedNameError(Exception):
  """A name that is not in the table above."""


class _Unpickler(pickle._Unpickler):
  """Python's own unpickler, the slow one.

  The fast one keeps its memo in an array: four stray bytes in a damaged file
  make it ask for 64 GB. This one's is a dict.
  """

  def find_class(self, module, name):
    full_name = f'{module}.{name}'
    if full_name not in _STAND_INS:
      raise _RefusedNameError(full_name)
    return _STAND_INS[full_name]


def _items(sequence) -> list:
  items = sequence.items if isinstance(sequence, _Array) else sequence
  if not isinstance(items, list | tuple | np.ndarray):
    raise TypeError(type(items))
  return list(items)


def _image_bytes(image) -> bytes:
  if isinstance(image, _Array):
    image = np.asarray(image.items)
  if isinstance(image, np.ndarray) and image.dtype == np.uint8:
    return image.tobytes()
  if isinstance(image, bytes | bytearray):
    return bytes(image)
  raise TypeError(type(image))
