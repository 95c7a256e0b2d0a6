# SPDX-License-Identifier: Apache-2.0
"""Hashes of all images and labels of a data set, 4 bytes each.

The fingerprint of a source covers 1,024 of its images. These cover all of them,
and tell which one is another: ``h XOR (label + 1) K`` with h of
`checks.hashes`, K odd, modulo 2^32. They do not depend on the storage format.
Two images have the same hash with a probability of 2^-32: they find accidents,
and are no protection against intent.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.feed import is_read_in_graph
from elasticface_jax.data.sources import checks
from elasticface_jax.data.sources.encoded import EncodedSource, valid_labels
from elasticface_jax.errors import InputError

FILE = 'image_hashes.npz'

_K = 0x9E3779B1
_K_INVERSE = pow(_K, -1, 2**32)


class ImageHashes(NamedTuple):
  """Hashes of all images of a source.

  Attributes:
    hashes: uint32, ``[n]``; empty if they are not known.
    with_labels: whether they are of the labels too.
    num_classes: C.
  """

  hashes: np.ndarray
  with_labels: bool
  num_classes: int

  @classmethod
  def of(
    cls, hashes: np.ndarray, labels: np.ndarray, num_classes: int
  ) -> 'ImageHashes':
    """Makes them from hashes of images, int32, and labels, ``[n]`` each."""
    return cls(with_labels(hashes, labels), True, num_classes)

  def write(self, folder: Path) -> None:
    """Writes them to the file `FILE` of a folder."""
    with atomic.file(folder / FILE) as part:
      np.savez(part, **self._asdict())

  @staticmethod
  def remove(folder: Path) -> None:
    """Removes the file of a folder, if there is one."""
    (folder / FILE).unlink(missing_ok=True)

  @classmethod
  def read(cls, folder: Path) -> 'ImageHashes | None':
    """Reads them from a folder; None if it has none.

    Raises:
      InputError: if the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
      return None
    try:
      with np.load(path, allow_pickle=False) as arrays:
        hashes = arrays['hashes']
        with_labels = bool(arrays['with_labels'])
        num_classes = int(arrays['num_classes'])
      if hashes.dtype != np.uint32 or hashes.ndim != 1:
        raise ValueError(hashes.dtype)
    except Exception as error:  # A damaged file can raise almost anything.
      raise InputError(
        f'{path} is damaged; restore it, or remove it: images are then '
        'compared by the fingerprint of the data alone'
      ) from error
    return cls(hashes, with_labels, num_classes)


def read_hashes(
  source: EncodedSource,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads all images of a source, without decoding.

  Args:
    source: the images.
    progress: called now and then with the number of images done and of all.

  Returns:
    Hashes of the images alone, and labels, int32, ``[n]`` each. One that cannot
    be read has the hash of no bytes; a label that is no class is -1.
  """
  hashes = np.zeros(source.num_images, np.int32)
  labels = np.zeros(source.num_images, np.int32)

  def read(images):
    encoded, stored = checks.read_all(source, images)
    valid = valid_labels(stored, source.num_classes)
    hashes[images] = checks.hashes(encoded)
    labels[images] = np.where(valid, stored, -1)

  checks.for_all(read, source.num_images, progress)
  return hashes, labels


def checked_hashes(source: EncodedSource) -> ImageHashes:
  """Returns the hashes that a graph compares with what it reads, if one reads.

  No image is read for them. Without labels where these are in the records.

  Args:
    source: the images.
  """
  if not is_read_in_graph(source):
    return ImageHashes(np.zeros(0, np.uint32), False, source.num_classes)
  hashes, labels = source.checks().hashes, source.known_labels()
  if labels is None:
    return ImageHashes(hashes.view(np.uint32), False, source.num_classes)
  return ImageHashes.of(hashes, labels, source.num_classes)


def with_labels(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Mixes labels into hashes of images.

  Args:
    hashes: int32, ``[k]``.
    labels: integers, ``[k]``; -1 leaves a hash as it is.

  Returns:
    uint32, ``[k]``.

  Examples:
    >>> mixed = with_labels(np.array([5, 5], np.int32), np.array([-1, 2]))
    >>> mixed.tolist()
    [5, 3668339990]
    >>> label_of(int(mixed[1]), 5)
    2
  """
  tags = (np.asarray(labels, np.int64) + 1) * _K % 2**32
  return hashes.view(np.uint32) ^ tags.astype(np.uint32)


def label_of(mixed: int, image: int) -> int:
  """Returns the label in a hash, given the hash of the image alone.

  Args:
    mixed: of `with_labels`.
    image: of the image, as an unsigned integer.
  """
  return ((mixed ^ image) * _K_INVERSE) % 2**32 - 1
