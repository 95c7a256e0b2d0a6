# SPDX-License-Identifier: Apache-2.0
"""Aligned faces, as backbones take them: their shape, and its checks."""

import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SHAPE = (112, 112, 3)


def check_faces(images: np.ndarray) -> np.ndarray:
  """Checks pixels of aligned faces, as a network takes them.

  Args:
    images: RGB, uint8, ``[M, 112, 112, 3]``.

  Returns:
    The images, as an array.

  Raises:
    TypeError: if they are not uint8.
    ValueError: if they have another shape.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8:
    raise TypeError(
      f'images are {images.dtype}; give pixels as they are in a file, uint8'
    )
  if images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
    raise ValueError(f'images have shape {images.shape}, not [M, 112, 112, 3]')
  return images


def check_scaled(images: jax.Array, *, train: bool) -> None:
  """Checks the images that a backbone is applied to.

  Args:
    images: RGB in [-1, 1], any float dtype, ``[B, 112, 112, 3]``.
    train: whether the last BatchNorm uses the statistics of these B images.

  Raises:
    TypeError: if the images are integers.
    ValueError: if they have another shape, or if there are fewer than 2 in
      training.
  """
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise TypeError(
      f'images are {images.dtype}; scale them to [-1, 1] first: '
      'x.astype(float32) / 127.5 - 1'
    )
  if images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
    raise ValueError(f'images have shape {images.shape}, not [B, 112, 112, 3]')
  if train and images.shape[0] < 2:
    raise ValueError(
      f'images have shape {images.shape}; training needs 2 or more: less '
      'their own mean, the embeddings of one are 0, and so are all gradients'
    )
