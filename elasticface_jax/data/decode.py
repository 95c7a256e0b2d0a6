# SPDX-License-Identifier: Apache-2.0
"""JPEG to pixels; and the one place where TensorFlow is imported.

TensorFlow takes three seconds to import and writes to stderr while it does, so
nobody here imports it at the top of a file: `tensorflow()` does it once,
quietly, when the first image is decoded or the first batch is read.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from elasticface_jax.errors import InputError

SIZE = 112  # Height and width of an aligned face.


class BadImage(ValueError):
  """Image `index` of those given does not decode, or has another size."""

  def __init__(self, index: int, problem: str):
    super().__init__(f'image {index}: {problem}')
    self.index = index
    self.problem = problem


@functools.cache
def tensorflow():
  """Imports TensorFlow, silent and without an accelerator of its own.

  Returns:
    The module `tensorflow`.

  Raises:
    InputError: if it is not installed.
  """
  # The oneDNN line is logged before logging is set up: only its switch helps.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    import tensorflow as tf
  except ModuleNotFoundError as error:
    raise InputError(
      f'reading images needs a package that is missing ({error.name}): '
      "pip install 'elasticface_jax[train]'"
    ) from error
  # It would take the memory of the devices that JAX trains on.
  tf.config.set_visible_devices([], 'GPU')
  tf.get_logger().setLevel('ERROR')
  return tf


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes one JPEG or PNG.

  Args:
    encoded: the file's bytes.

  Returns:
    RGB, uint8, ``[H, W, 3]``.

  Raises:
    BadImage: if the bytes are not a whole image.
  """
  if not encoded:
    raise BadImage(0, 'there is no image, the body is empty')
  tf = tensorflow()
  try:
    return _decode(tf, encoded).numpy()
  except tf.errors.InvalidArgumentError as error:
    raise BadImage(0, 'the bytes do not decode as JPEG or PNG') from error


def decode_faces(encoded: Sequence[bytes]) -> np.ndarray:
  """Decodes aligned faces, all of 112x112, several at a time.

  Args:
    encoded: JPEG or PNG bytes of n images.

  Returns:
    RGB, uint8, ``[n, 112, 112, 3]``.

  Raises:
    BadImage: the first that does not decode or is not 112x112.
  """
  tf = tensorflow()
  try:
    return _batch_decoder()(
      tf.constant(encoded, tf.string, [len(encoded)])
    ).numpy()
  except tf.errors.InvalidArgumentError:
    for index, one in enumerate(encoded):
      _check_face(index, one)
    raise


def _check_face(index: int, encoded: bytes):
  try:
    height, width, _ = decode_image(encoded).shape
  except BadImage as error:
    raise BadImage(index, error.problem) from error
  if (height, width) != (SIZE, SIZE):
    raise BadImage(index, f'the image is {width}x{height}, not {SIZE}x{SIZE}')


def _decode(tf, encoded):
  # The default method may differ between builds, and then so do the pixels.
  # Despite its name it reads PNG too.
  return tf.io.decode_jpeg(encoded, 3, dct_method='INTEGER_ACCURATE')


@functools.cache
def _batch_decoder():
  """A graph over a vector of strings: one call in which Python's lock is free.

  One call an image would hold the lock for a tenth of the time and tie the
  decoding of a whole host to one core's Python.
  """
  tf = tensorflow()
  face = tf.TensorSpec([SIZE, SIZE, 3], tf.uint8)

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
  def decode_batch(encoded):
    decode = functools.partial(_decode, tf)
    return tf.map_fn(decode, encoded, fn_output_signature=face)

  return decode_batch
