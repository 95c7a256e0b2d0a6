# SPDX-License-Identifier: Apache-2.0
"""What a file computes beside what it should."""

import os
from collections.abc import Callable

import jax
import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.models.iresnet import IMAGE_SHAPE

Embed = Callable[[np.ndarray], np.ndarray]

# Of the largest number in an embedding, or of 1 if all are smaller.
TOLERANCE = 1e-4
BATCHES = (1, 7)


def compare(path: str | os.PathLike, found: Embed, expected: Embed) -> None:
  """Compares embeddings of random images, on the CPU.

  There all numbers are float32, where GPUs and TPUs convolve in less by
  default.

  Args:
    path: of the file, for the message.
    found: what the file computes: float32 images, RGB in [-1, 1],
      ``[B, 112, 112, 3]``, to embeddings, for batches of different sizes.
    expected: what it should.

  Raises:
    RuntimeError: if they differ by more than `TOLERANCE`.
    InputError: if jax may not use the CPU.
  """
  try:
    cpu = jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    raise InputError(
      f'{path}: what is exported is checked on the CPU, and JAX_PLATFORMS='
      f'{jax.config.jax_platforms} leaves it out; add cpu to it'
    ) from error
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (max(BATCHES), *IMAGE_SHAPE)).astype(np.float32)
  with jax.default_device(cpu):
    right = np.asarray(expected(images))
    limit = TOLERANCE * max(1, np.abs(right).max())
    for count in BATCHES:
      gap = np.abs(np.asarray(found(images[:count])) - right[:count]).max()
      # What is no number is no small one.
      if not gap <= limit:
        raise RuntimeError(
          f'{path}: embeddings of {count} random images differ by {gap:.2g} '
          f'from those of the network, which is more than {limit:.2g}; '
          'nothing is written'
        )
