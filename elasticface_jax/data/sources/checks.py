# SPDX-License-Identifier: Apache-2.0
"""Checks of images: each is decoded once, strictly, and the result is kept.

TensorFlow's decoder, which decodes images in a graph (`graph`), takes most
damage to pixels without a word and does not turn images as EXIF asks. So before
a graph reads them, all images are decoded by `decode`, once. A hash of each
image's bytes and its orientation are kept next to the index. The graph compares
the hashes: it decodes exactly the bytes that were found to be whole.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from elasticface_jax.data.sources import decode, exif, jpeg

if TYPE_CHECKING:
  from elasticface_jax.data.sources.encoded import EncodedSource

VERSION = 1  # Of what is kept, and of the rules for it.
_CHUNK = 256  # Images that a thread checks at a time.
_AHEAD = 4  # Chunks a thread.
_REQUESTS = 16  # Of threads that mostly wait, where storage is remote.
# In place of the orientation:
BAD = 0  # The image cannot be trained on.
OTHER = 9  # TensorFlow decodes it to other pixels, or not at all.


class Checks(NamedTuple):
  """Results for all images of a source.

  Attributes:
    hashes: of the encoded images, int32, ``[n]``.
    orientations: 1 to 8 as EXIF defines them, `BAD` or `OTHER`; uint8, ``[n]``.
  """

  hashes: np.ndarray
  orientations: np.ndarray

  def bad(self) -> np.ndarray:
    """Returns the numbers of the images that cannot be trained on, int64."""
    return np.flatnonzero(self.orientations == BAD)

  def other(self) -> np.ndarray:
    """Returns the numbers of those that a graph cannot decode, int64."""
    return np.flatnonzero(self.orientations == OTHER)


def joined(parts: Sequence[Checks]) -> Checks:
  """Returns the checks of images whose parts follow one another."""
  return Checks(*map(np.concatenate, zip(*parts, strict=True)))


def hashes(encoded: Sequence[bytes]) -> np.ndarray:
  """Returns hashes of encoded images, int32, ``[k]``."""
  return hash_tensor(decode.tensorflow().constant(list(encoded))).numpy()


def hash_tensor(encoded: Any) -> Any:
  """Computes hashes of encoded images, in a graph or eagerly.

  Args:
    encoded: string tensor, ``[k]``.

  Returns:
    The first 32 bits of their FarmHash64, int32 tensor, ``[k]``.
  """
  tf = decode.tensorflow()
  long = tf.raw_ops.Fingerprint(data=encoded, method='farmhash64')
  return tf.bitcast(long[:, :4], tf.int32)


def decode_tensor(encoded: Any) -> Any:
  """Decodes one JPEG or PNG, in a graph or eagerly; not turned.

  Args:
    encoded: string tensor, scalar.

  Returns:
    RGB, uint8 tensor, ``[H, W, 3]``.
  """
  # Of PNG, too. By its default method the pixels would be others than those of
  # Pillow, OpenCV and MXNet.
  decode_jpeg = decode.tensorflow().io.decode_jpeg
  return decode_jpeg(encoded, 3, dct_method='INTEGER_ACCURATE')


def of_intact(encoded: Sequence[bytes]) -> Checks:
  """Returns the checks of images that are known to decode, ``[k]``."""
  return Checks(
    hashes(encoded), np.array([*map(_orientation, encoded)], np.uint8)
  )


def examine(
  source: 'EncodedSource', progress: Callable[[int, int], None]
) -> Checks:
  """Reads and decodes all images of a source, on all cores.

  Args:
    source: the images.
    progress: called now and then with the number of images done and of all.

  Returns:
    The checks of all images.
  """
  n = source.num_images
  found = Checks(np.zeros(n, np.int32), np.zeros(n, np.uint8))

  def check_some(images):
    some = check(source, images)
    for whole, part in zip(found, some, strict=True):
      whole[images] = part

  for_all(check_some, n, progress)
  return found


def for_all(
  function: Callable[[np.ndarray], None],
  n: int,
  progress: Callable[[int, int], None],
) -> None:
  """Calls a function for all images, on all cores.

  Args:
    function: takes numbers of images, int64, ``[k]``.
    n: number of images.
    progress: called now and then with the number of images done and of all.
  """
  decode.tensorflow()  # Not by several threads at once.
  workers = max(_REQUESTS, os.cpu_count())
  pool = ThreadPoolExecutor(workers)

  def call_from(start):
    images = np.arange(start, min(start + _CHUNK, n))
    function(images)
    return images[-1] + 1

  try:
    # A bounded number at a time, so that Ctrl-C need not wait for long.
    stride = _CHUNK * workers * _AHEAD
    for begin in range(0, n, stride):
      for done in pool.map(
        call_from, range(begin, min(begin + stride, n), _CHUNK)
      ):
        progress(int(done), n)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def checked_again(source: 'EncodedSource', known: Checks) -> Checks:
  """Checks the bad images of an earlier check again, as some may be mended."""
  bad = known.bad()
  found = Checks(*(array.copy() for array in known))
  for whole, part in zip(found, check(source, bad), strict=True):
    whole[bad] = part
  return found


def check(source: 'EncodedSource', images: np.ndarray) -> Checks:
  """Reads and decodes some images.

  Args:
    source: the images.
    images: their numbers, int64, ``[k]``.

  Returns:
    Their checks, ``[k]``.
  """
  encoded, _ = read_all(source, images)
  found = Checks(hashes(encoded), np.full(len(images), BAD, np.uint8))
  for i, one in enumerate(encoded):
    try:
      decode.decode_faces([one])
    except decode.BadImage:
      continue
    found.orientations[i] = _orientation(one)
  return found


def _orientation(encoded: bytes) -> int:
  """Returns the orientation of an image that decodes, or `OTHER`."""
  orientation = exif.orientation(encoded)
  if jpeg.is_plain(encoded):
    return orientation
  tf = decode.tensorflow()
  try:
    stored = decode_tensor(tf.constant(encoded)).numpy()
  except tf.errors.OpError:
    return OTHER
  upright = exif.upright(stored, orientation)
  same = np.array_equal(upright, decode.decode_image(encoded))
  return orientation if same else OTHER


def read_all(
  source: 'EncodedSource', images: np.ndarray
) -> tuple[list[bytes], np.ndarray]:
  """Reads images; an empty one in place of each that is damaged.

  Other errors are those of the storage: they stop the checks, because what is
  kept would hold images to be damaged for ever.

  Args:
    source: the images.
    images: their numbers, int64, ``[k]``.

  Returns:
    k encoded images, and their labels as stored, float64, ``[k]``; NaN for one
    that is damaged.
  """
  try:
    return source.read(images)
  except decode.BadFace:
    if len(images) == 1:
      return [b''], np.array([np.nan])
    half = len(images) // 2
    (a, b), (c, d) = (
      read_all(source, part) for part in (images[:half], images[half:])
    )
    return a + c, np.concatenate([b, d])
