# SPDX-License-Identifier: Apache-2.0
"""Augmentation and scaling of stored uint8 images, on the device.

Random values are drawn for the full batch, before it is cut into groups, so
that they depend only on the step and the sample's place in the batch.
"""

import jax
import jax.numpy as jnp


def scale(images: jax.Array) -> jax.Array:
  """Maps uint8 ``[0, 255]`` to float32 ``[-1, 1]``, as the reference."""
  return (images.astype(jnp.float32) - 127.5) / 127.5


def draw(key: jax.Array, batch_size: int, *, flip: float) -> dict:
  """Draws one step's augmentation of every sample.

  Args:
    key: typed PRNG key of the step.
    batch_size: B, of all devices together.
    flip: probability of a horizontal flip.

  Returns:
    ``{'flip': bool [B]}``.
  """
  return {'flip': jax.random.bernoulli(key, flip, (batch_size,))}


def apply(images: jax.Array, drawn: dict) -> jax.Array:
  """Augments and scales: uint8 ``[B, H, W, 3]`` to float32 in [-1, 1]."""
  flip = drawn['flip'][:, None, None, None]
  return scale(jnp.where(flip, images[:, :, ::-1], images))
