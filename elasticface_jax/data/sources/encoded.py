# SPDX-License-Identifier: Apache-2.0
"""Base class of sources that read encoded images from files."""

import abc
import contextlib
import functools
import hashlib
from collections.abc import Callable

import numpy as np

from elasticface_jax.data.sources import decode, graph, index
from elasticface_jax.data.sources.checks import (
  BAD,
  VERSION,
  Checks,
  checked_again,
  examine,
  hashes,
)
from elasticface_jax.data.sources.decode import BadFace

_SAMPLED_IMAGES = 1024


class EncodedSource(abc.ABC):
  """Source of faces that are encoded in files, with access to the bytes.

  The images are numbered in one canonical order. The same images in the same
  order make the same batches, in every storage format.

  Attributes:
    path: file, folder or address, as the user gave it.
    layout: description of the storage format, for reports.
    num_images: number of images n.
    num_classes: number of classes C.
  """

  path: str
  layout: str
  num_images: int
  num_classes: int
  _kept: index.Kept
  _checks: Checks | None = None

  @abc.abstractmethod
  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images without decoding; safe to call from several threads.

    Args:
      indices: numbers of the images, int64 in ``[0, num_images)``, ``[k]``.

    Returns:
      k encoded images, and their labels as stored: float64, ``[k]``, not yet
      compared with C.

    Raises:
      BadFace: for the first that cannot be read.
    """

  @abc.abstractmethod
  def place(self, index: int) -> str:
    """Names the place of an image, for a message: file and key or byte."""

  def image_name(self, index: int) -> str:
    """Names an image: its path in the folder, its key, or else its number.

    Args:
      index: number of the image, in ``[0, num_images)``.

    Returns:
      A name that no other image of the source has. Bytes of a file's name that
      are no UTF-8 are escaped.
    """
    return str(int(index))

  def class_name(self, label: int) -> str:
    """Names a class: its folder, or else its number.

    Args:
      label: in ``[0, num_classes)``.

    Returns:
      The name, escaped as that of an image.
    """
    return str(int(label))

  def known_labels(self) -> np.ndarray | None:
    """Returns the labels of all images, int64 ``[n]``, if none has to be read.

    None where they are in the records of the images.
    """
    return None

  @property
  def in_graph(self) -> bool:
    """True if a TensorFlow graph can read the images without Python."""
    return False

  def graph_reader(self, parallel: int) -> graph.GraphReader:
    """Makes the reader for a graph, where `in_graph` is true.

    Args:
      parallel: number of reads at a time from a disk.
    """
    raise NotImplementedError

  @property
  def has_checks(self) -> bool:
    """True if `checks` need not decode the images any more."""
    if self._checks is None:
      self._checks = self._kept_checks()
    return self._checks is not None

  def checks(
    self, progress: Callable[[int, int], None] = lambda done, total: None
  ) -> Checks:
    """Returns what decoding all images once has shown.

    The first call decodes them, unless the result of an earlier one is kept.
    It takes 0.1 ms an image and core; kept are 5 bytes an image.

    Args:
      progress: called now and then with the number of images done and of all.
    """
    if not self.has_checks:
      self._checks = examine(self, progress)
      self.keep_checks(self._checks)
    return self._checks

  def _kept_checks(self) -> Checks | None:
    """Reads kept checks; bad images are checked again, for some are mended."""
    kept = self._kept.read(index.CHECKS)
    if kept is None or int(kept.pop('version', 0)) != VERSION:
      return None
    found = Checks(**kept)
    if not found.bad().size:
      return found
    mended = checked_again(self, found)
    if mended.bad().size < found.bad().size:
      self.keep_checks(mended)
    return mended

  def keep_checks(self, found: Checks) -> None:
    """Keeps checks of all images that were made elsewhere."""
    version = {'version': np.array(VERSION)}
    self._kept.write(index.CHECKS, found._asdict() | version)

  def bad(self, index: int, problem: str) -> BadFace:
    """Returns the error for an image; the caller raises it."""
    remedy = f'`elasticface inspect {self.path}` lists all bad images'
    return BadFace(index, self.place(index), problem, remedy)

  def read_checked(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images and checks their labels against C.

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

  def fresh(self) -> 'EncodedSource':
    """Returns the source, without blocks of files that may have changed."""
    return self

  def render_again(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads and decodes images of which a graph could not make one.

    Args:
      indices: as for `read`.

    Returns:
      As `render`; where there was no more than passing trouble, or an image
      that a graph cannot decode.

    Raises:
      BadFace: for the first that cannot be trained on, or is not the one that
        was checked.
    """
    images, labels = self.render(indices)
    encoded, _ = self.read(indices)
    known = self.checks()
    changed = (hashes(encoded) != known.hashes[indices]) | (
      known.orientations[indices] == BAD
    )
    for number in indices[changed]:
      path = self._kept.path(index.CHECKS)
      raise BadFace(
        number,
        self.place(number),
        'the image is not the one that was checked',
        f'restore that, or {f"remove {path} and " if path else ""}start again',
      )
    return images, labels

  def warm(self, indices: np.ndarray) -> None:
    """Reads images into the caches of the system or of `files`.

    Args:
      indices: as for `read`.
    """
    with contextlib.suppress(BadFace):  # Raised again at its own step.
      self.read(indices)

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 that identifies the data set, hexadecimal.

    It covers n, C, and the labels and bytes of 1,024 evenly spaced images,
    because hashing 30 GB would take a minute of every start. A ``.rec``, a
    folder and shards with the same images in the same order have the same
    fingerprint. An edit that moves no image and touches none of the 1,024 goes
    unnoticed; `elasticface inspect` hashes every image.
    """
    sha = hashlib.sha256(b'elasticface_jax data 1\n')
    sha.update(f'{self.num_images} {self.num_classes}\n'.encode())
    spread = np.linspace(0, self.num_images - 1, _SAMPLED_IMAGES)
    encoded, labels = self.read_checked(np.unique(spread.astype(np.int64)))
    for one, label in zip(encoded, labels.tolist(), strict=True):
      sha.update(content_digest(one, label))
    return sha.hexdigest()


def content_digest(encoded: bytes, label: int) -> bytes:
  """Returns the BLAKE2b hash of an encoded image and its label, 16 bytes."""
  tag = int(label).to_bytes(8, 'little', signed=True)
  return hashlib.blake2b(encoded, digest_size=16, person=tag).digest()


def valid_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns True for labels that are integers in ``[0, num_classes)``.

  Args:
    labels: float, ``[n]``; NaN is not valid.
    num_classes: C.

  Returns:
    bool, ``[n]``.
  """
  return (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))


def counted(number: int, noun: str) -> str:
  """Returns a count with its noun.

  Examples:
    >>> counted(1, 'shard'), counted(5_822_653, 'image'), counted(2, 'class')
    ('1 shard', '5,822,653 images', '2 classes')
  """
  plural = '' if number == 1 else 'es' if noun.endswith('s') else 's'
  return f'{number:,} {noun}{plural}'
