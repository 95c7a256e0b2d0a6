# SPDX-License-Identifier: Apache-2.0
"""Comparison of embeddings: of an exported file, and of a converted one."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.models.faces import IMAGE_SHAPE

Embed = Callable[[np.ndarray], np.ndarray]

# Relative to the largest absolute value of the embeddings, or to 1 if larger.
TOLERANCE = 1e-4
BATCHES = (1, 7)


class Agreement(NamedTuple):
  """Nearness of embeddings to others of the same images.

  Attributes:
    count: number of images.
    gap: largest absolute difference of two values.
    largest: largest absolute value.
    cosine: smallest cosine of two embeddings of an image.
  """

  count: int
  gap: float
  largest: float
  cosine: float

  @property
  def is_close(self) -> bool:
    """True if the difference is at most `TOLERANCE` of the largest value."""
    return self.gap <= TOLERANCE * self.largest  # False for NaN.


def agreement(
  found: Embed, expected: Embed, batches: Iterable[np.ndarray]
) -> Agreement:
  """Compares the embeddings of given images.

  Args:
    found: a function from images to embeddings, ``[B, D]``.
    expected: another.
    batches: of images, of any sizes; one at least.

  Examples:
    >>> images = np.array([[1.0, 2.0], [3.0, 0.0]])
    >>> found = agreement(lambda x: 2 * x, lambda x: x, [images])
    >>> found.count, found.gap, found.is_close
    (2, 3.0, False)
  """
  counts, gaps, sizes, cosines = [], [], [], []
  for images in batches:
    ours, theirs = (
      np.asarray(embed(images), np.float64) for embed in (found, expected)
    )
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    # Embeddings of zeros have no direction, and those of an image agree if
    # both are zero.
    products = np.where(lengths == 0, 1, (ours * theirs).sum(1))
    counts.append(len(images))
    gaps.append(np.abs(ours - theirs).max())
    sizes.append(np.abs(theirs).max())
    cosines.append((products / np.where(lengths == 0, 1, lengths)).min())
  # NumPy's, since Python's pass over NaN.
  gap, largest, cosine = np.max(gaps), np.max(sizes), np.min(cosines)
  return Agreement(sum(counts), float(gap), float(largest), float(cosine))


def on_cpu(path: str | os.PathLike[str]) -> Any:
  """Returns the CPU, on which networks are compared.

  It computes in float32, where GPUs and TPUs convolve in less by default.

  Args:
    path: of the file that is compared, for the message.

  Raises:
    InputError: if jax may not use the CPU.
  """
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    raise InputError(
      f'{path}: networks are compared on the CPU, which JAX_PLATFORMS='
      f'{jax.config.jax_platforms} leaves out; add cpu to it'
    ) from error


def compare(
  path: str | os.PathLike[str],
  found: Embed,
  expected: Embed,
  *,
  batches: Sequence[int] = BATCHES,
) -> None:
  """Compares embeddings of random images, on the CPU.

  Args:
    path: of the file, for the message.
    found: the file's function from float32 images, RGB in [-1, 1],
      ``[B, 112, 112, 3]``, to embeddings, for batches of different sizes.
    expected: the model's function, likewise.
    batches: numbers of images to compare; `found` takes these.

  Raises:
    RuntimeError: if they differ by more than `TOLERANCE`.
    InputError: if jax may not use the CPU.
  """
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (max(batches), *IMAGE_SHAPE)).astype(np.float32)
  with jax.default_device(on_cpu(path)):
    wanted = np.asarray(expected(images))
    limit = TOLERANCE * max(1, np.abs(wanted).max())
    for count in batches:
      gap = np.abs(np.asarray(found(images[:count])) - wanted[:count]).max()
      # Written so that NaN fails.
      if not gap <= limit:
        raise RuntimeError(
          f'{path}: embeddings of {count} random images differ by {gap:.2g} '
          f'from those of the network, which is more than {limit:.2g}; '
          'nothing is written'
        )
