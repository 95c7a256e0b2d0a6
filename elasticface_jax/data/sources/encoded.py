# SPDX-License-Identifier: Apache-2.0
"""What all sources share whose images lie encoded in files."""

import abc
import contextlib
import functools
import hashlib

import numpy as np

from elasticface_jax.data.sources import decode
from elasticface_jax.errors import InputError

_SAMPLED_IMAGES = 1024


class BadFace(InputError):
  """An image that cannot be trained on: which, where, and why.

  Attributes:
    index: its number in the source.
    problem: what is wrong with it.
  """

  def __init__(self, index: int, place: str, problem: str, remedy: str):
    super().__init__(f'{place}: {problem}; {remedy}')
    self.index = int(index)
    self.problem = problem


class EncodedSource(abc.ABC):
  """Faces that lie encoded in files: a source, and the bytes behind it.

  The images have one canonical order, in which they are numbered; the same
  images in the same order make the same batches, whatever they lie in.

  Attributes:
    path: where they lie, as the user gave it.
    layout: how they lie there, in words.
    num_images: number of images n.
    num_classes: number of classes C.
  """

  path: str
  layout: str
  num_images: int
  num_classes: int

  @abc.abstractmethod
  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images as they lie there; safe to call from several threads.

    Args:
      indices: which images, int64 in ``[0, num_images)``, ``[k]``.

    Returns:
      k encoded images, and their labels as they stand: float64, ``[k]``, not
      yet held against C.

    Raises:
      BadFace: for the first that cannot be read.
    """

  @abc.abstractmethod
  def place(self, index: int) -> str:
    """Where image `index` lies, for a message: file and key, byte or name."""

  def bad(self, index: int, problem: str) -> BadFace:
    """Makes the error for image `index`; the caller raises it."""
    remedy = f'`elasticface inspect {self.path}` lists all that is bad'
    return BadFace(index, self.place(index), problem, remedy)

  def read_checked(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images whose labels have been held against C.

    Args:
      indices: as for `read`.

    Returns:
      k encoded images, and labels, int32 in ``[0, C)``, ``[k]``.

    Raises:
      BadFace: for the first that cannot be read, or else the first whose label
        is no class.
    """
    encoded, labels = self.read(indices)
    wrong = np.flatnonzero(~valid_labels(labels, self.num_classes))
    if wrong.size:
      raise self.bad(
        indices[wrong[0]],
        f'label {labels[wrong[0]]:g} is not an integer in '
        f'[0, {self.num_classes})',
      )
    return encoded, labels.astype(np.int32)

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads and decodes images; safe to call from several threads.

    Args:
      indices: as for `read`.

    Returns:
      RGB images, uint8, ``[k, 112, 112, 3]``, and labels, int32, ``[k]``.

    Raises:
      BadFace: for the first that cannot be read, has no valid label, does not
        decode or is not 112x112.
    """
    encoded, labels = self.read_checked(indices)
    try:
      images = decode.decode_faces(encoded)
    except decode.BadImage as error:
      raise self.bad(indices[error.index], error.problem) from error
    return images, labels

  def warm(self, indices: np.ndarray) -> None:
    """Reads images into the caches of the system, or of `files`.

    Args:
      indices: as for `read`.
    """
    with contextlib.suppress(BadFace):  # It is raised when its step comes.
      self.read(indices)

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 that tells one data set from another, hexadecimal.

    Of n, C, and label and bytes of 1,024 images, evenly spread: hashing 30 GB
    would take a minute of every start. So it is the same for a ``.rec``, a
    folder and shards that hold the same images in the same order, and an edit
    that moves no image and touches none of the 1,024 goes unnoticed;
    `elasticface inspect` hashes every one.
    """
    sha = hashlib.sha256(b'elasticface_jax data 1\n')
    sha.update(f'{self.num_images} {self.num_classes}\n'.encode())
    spread = np.linspace(0, self.num_images - 1, _SAMPLED_IMAGES)
    encoded, labels = self.read_checked(np.unique(spread.astype(np.int64)))
    for one, label in zip(encoded, labels.tolist(), strict=True):
      sha.update(content_digest(one, label))
    return sha.hexdigest()


def content_digest(encoded: bytes, label: int) -> bytes:
  """16 bytes that stand for an encoded image and its label (BLAKE2b)."""
  tag = int(label).to_bytes(8, 'little', signed=True)
  return hashlib.blake2b(encoded, digest_size=16, person=tag).digest()


def valid_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Which labels are integers in ``[0, num_classes)``; NaN is not.

  Args:
    labels: float, ``[n]``.
    num_classes: C.

  Returns:
    bool, ``[n]``.
  """
  return (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))
