# SPDX-License-Identifier: Apache-2.0
"""Decoding of images, and the one place that imports TensorFlow.

TensorFlow takes three seconds to import and writes to stderr meanwhile. So no
file here imports it at the top: `tensorflow()` imports it once, silently, when
the first batch needs it.
"""

import functools
import io
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from elasticface_jax import missing
from elasticface_jax.data.sources import exif, jpeg, png
from elasticface_jax.errors import InputError, first_line

with missing.needs('elasticface_jax.data'):
  import simplejpeg
  from PIL import Image

SIZE = 112  # Height and width of an aligned face.
_MAX_SIDE = 8192
_EIGHT_BITS = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')
# Errors that Pillow raises for damaged files.
_PILLOW_ERRORS = (
  OSError,
  SyntaxError,
  Image.DecompressionBombError,
  Image.DecompressionBombWarning,
)
_JPEG = b'\xff\xd8'


class BadImage(ValueError):
  """Error for image `index` of a call: it does not decode, or has another size.

  Attributes:
    index: number of the image among those given.
    problem: the problem alone.
  """

  def __init__(self, index: int, problem: str):
    super().__init__(f'image {index}: {problem}')
    self.index = index
    self.problem = problem


class BadFace(InputError):
  """Error for an image that cannot be trained on.

  The message names its place, the problem and the remedy.

  Attributes:
    index: number of the image in the source.
    problem: the problem alone.
  """

  def __init__(self, index: int, place: str, problem: str, remedy: str):
    super().__init__(f'{place}: {problem}; {remedy}')
    self.index = int(index)
    self.problem = problem


@functools.cache
def tensorflow():
  """Imports TensorFlow, silent and without an accelerator of its own.

  Returns:
    The module `tensorflow`.
  """
  # The line about oneDNN is logged before logging is set up; only the switch
  # silences it.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  import tensorflow as tf

  # Otherwise it takes the memory of the devices that JAX trains on.
  tf.config.set_visible_devices([], 'GPU')
  tf.get_logger().setLevel('ERROR')
  return tf


class Decoded(NamedTuple):
  """A decoded image.

  Attributes:
    pixels: RGB, uint8, ``[H, W, 3]``, upright.
    turned: True if EXIF's orientation asked to turn or mirror them.
    mended: True if the file has damage outside of its pixels.
  """

  pixels: np.ndarray
  turned: bool
  mended: bool


def decode(encoded: bytes) -> Decoded:
  """Decodes one JPEG or PNG, and tells what was odd about it.

  Pixels are those of OpenCV, which insightface and MXNet use: turned as EXIF
  asks. Damage that leaves all pixels whole is passed over: bytes before the end
  marker that belong to no pixel, and texts with a wrong checksum.

  Args:
    encoded: the file's bytes.

  Returns:
    The pixels, and what was done.

  Raises:
    BadImage: if the bytes are not a complete image.
  """
  if not encoded:
    raise BadImage(0, 'there is no image, the body is empty')
  try:
    if encoded[:2] == _JPEG:
      pixels, mended = _decode_jpeg(encoded)
    elif encoded.startswith(png.SIGNATURE):
      pixels, mended = _decode_png(encoded)
    else:
      raise BadImage(0, 'neither a JPEG nor a PNG')
  except ValueError as error:
    if isinstance(error, BadImage):
      raise
    raise BadImage(0, f'a damaged image ({first_line(error)})') from error
  orientation = exif.orientation(encoded)
  if orientation == exif.UPRIGHT:
    return Decoded(pixels, False, mended)
  return Decoded(exif.upright(pixels, orientation), True, mended)


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes one JPEG or PNG.

  Args:
    encoded: the file's bytes.

  Returns:
    RGB, uint8, ``[H, W, 3]``.

  Raises:
    BadImage: if the bytes are not a complete image.
  """
  return decode(encoded).pixels


def decode_faces(encoded: Sequence[bytes]) -> np.ndarray:
  """Decodes aligned faces of 112x112, mostly without Python's lock.

  Args:
    encoded: JPEG or PNG bytes of n images.

  Returns:
    RGB, uint8, ``[n, 112, 112, 3]``.

  Raises:
    BadImage: the first that does not decode or is not 112x112.
  """
  faces = np.empty((len(encoded), SIZE, SIZE, 3), np.uint8)
  for index, one in enumerate(encoded):
    try:
      image = decode_image(one)
    except BadImage as error:
      raise BadImage(index, error.problem) from error
    if image.shape != faces.shape[1:]:
      height, width, _ = image.shape
      raise BadImage(index, f'the image is {width}x{height}, not {SIZE}x{SIZE}')
    faces[index] = image
  return faces


def _decode_jpeg(encoded: bytes) -> tuple[np.ndarray, bool]:
  try:
    return _strict_jpeg(encoded), False
  except ValueError as error:
    # Of stray bytes; and of much damage to pixels, which must stay an error.
    whole = None
    if 'extraneous bytes' in str(error):
      whole = jpeg.without_strays(encoded)
    if whole is None:
      raise
  return _strict_jpeg(whole), True


def _strict_jpeg(encoded: bytes) -> np.ndarray:
  _check_size(*simplejpeg.decode_jpeg_header(encoded)[:2])
  # By default it uses the slow, exact DCT and smooth upsampling, with the
  # pixels of OpenCV, Pillow and MXNet, and makes libjpeg's warnings errors.
  return simplejpeg.decode_jpeg(encoded, 'RGB')


def _decode_png(encoded: bytes) -> tuple[np.ndarray, bool]:
  try:
    return _strict_png(encoded), False
  except _PILLOW_ERRORS as error:
    whole = png.without_broken_notes(encoded)
    if whole is None:
      raise ValueError('not a complete PNG') from error
  try:
    return _strict_png(whole), True
  except _PILLOW_ERRORS as error:
    raise ValueError('not a complete PNG') from error


def _strict_png(encoded: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(encoded), formats=['PNG']) as image:
    _check_size(image.height, image.width)
    if image.mode not in _EIGHT_BITS:
      raise ValueError(f'a PNG of mode {image.mode}; it must have 8 bits')
    return np.asarray(image.convert('RGB'))


def _check_size(height: int, width: int):
  # A few bytes can announce gigabytes.
  if max(height, width) > _MAX_SIDE:
    raise ValueError(f'{width}x{height} pixels; {_MAX_SIDE} a side at most')
