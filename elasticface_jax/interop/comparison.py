# SPDX-License-Identifier: Apache-2.0
"""Comparison of an exported file with its model."""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.models.iresnet import IMAGE_SHAPE

Embed = Callable[[np.ndarray], np.ndarray]

# Relative to the largest absolute value of the embeddings, or to 1 if larger.
TOLERANCE = 1e-4
BATCHES = (1, 7)


def compare(
  path: str | os.PathLike[str],
  found: Embed,
  expected: Embed,
  *,
  batches: Sequence[int] = BATCHES,
) -> None:
  """Compares embeddings of random images, on the CPU.

  A CPU computes in float32, where GPUs and TPUs convolve in less by default.

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
  try:
    cpu = jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    raise InputError(
      f'{path}: exported files are checked on the CPU, which JAX_PLATFORMS='
      f'{jax.config.jax_platforms} leaves out; add cpu to it'
    ) from error
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (max(batches), *IMAGE_SHAPE)).astype(np.float32)
  with jax.default_device(cpu):
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
