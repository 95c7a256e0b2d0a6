# SPDX-License-Identifier: Apache-2.0
"""What the pipeline reads from, and how a name in a config becomes one."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from elasticface_jax.data.rec_source import RecSource
from elasticface_jax.data.synthetic import SyntheticFaces
from elasticface_jax.errors import InputError


class Source(Protocol):
  """Labelled faces by number: files and drawings look the same from outside.

  Attributes:
    num_images: number of images n.
    num_classes: number of classes C.
  """

  num_images: int
  num_classes: int

  @property
  def fingerprint(self) -> str:
    """SHA-256 that identifies images and labels, hexadecimal."""

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes images; called from several threads at once.

    The work that is worth several cores (decoding, drawing) must let go of
    Python's lock.

    Args:
      indices: which images, int64 in ``[0, num_images)``, ``[k]``.

    Returns:
      RGB images, uint8, ``[k, 112, 112, 3]``, and labels, int32 in ``[0, C)``,
      ``[k]``. The same index gives the same bytes, always.

    Raises:
      InputError: names the image that cannot be made.
    """


def open_source(
  source: str | os.PathLike,
  *,
  num_images: int,
  num_classes: int,
  seed: int,
) -> Source:
  """Opens what a config's `data.source` names.

  Args:
    source: path of a folder that holds ``train.rec``, or ``'synthetic'``.
    num_images: how many to draw; a folder has its own number.
    num_classes: of how many identities; a folder has its own number.
    seed: for the drawing; a folder needs none.

  Returns:
    The source.

  Raises:
    InputError: if there is no such source.
  """
  if source == 'synthetic':
    return SyntheticFaces(num_images, num_classes, seed)
  folder = Path(source)
  if not folder.is_dir():
    raise InputError(
      f'data.source={str(source)!r}: no such folder; give a folder that holds '
      "train.rec, or 'synthetic'"
    )
  return RecSource(folder)
