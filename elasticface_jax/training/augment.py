# SPDX-License-Identifier: Apache-2.0
"""Augmentation and scaling of stored uint8 images, on the device.

Random values are drawn for the full batch, before it is cut into groups, so
that they depend only on the step and the sample's place in the batch. The
arithmetic on them is done for one group at a time, as all of a turn.

An augmentation changes a sample with its probability, independently of the
others, in the order of `from_config`, and the flip comes last. Those with
probability 0 are not in the compiled step. A sample that is not chosen keeps
its bits.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elasticface_jax.training.augmentations import (
  Augmentation,
  Blur,
  Crop,
  Grey,
  LowResolution,
  Photometric,
  ResizedCrop,
)


def from_config(section: Mapping[str, Any]) -> tuple[Augmentation, ...]:
  """Makes the augmentations of a config, but for the flip.

  Args:
    section: ``augment`` of `configs/`, with every field.

  Returns:
    Those with a probability above 0, in the order in which they are applied.
  """
  rectangle = section['crop_area'], section['crop_aspect']
  every = (
    ResizedCrop(section['resized_crop'], *rectangle),
    Crop(section['crop'], *rectangle),
    LowResolution(section['low_resolution'], section['low_resolution_side']),
    Photometric(
      section['photometric'],
      section['brightness'],
      section['contrast'],
      section['saturation'],
    ),
    Grey(section['grey']),
    Blur(section['blur'], section['blur_sigma']),
  )
  return tuple(x for x in every if x.probability > 0)


def scale(images: jax.Array) -> jax.Array:
  """Maps uint8 ``[0, 255]`` to float32 ``[-1, 1]``, as the reference."""
  return (images.astype(jnp.float32) - 127.5) / 127.5


def draw(
  key: jax.Array,
  batch_size: int,
  *,
  flip: float,
  others: Sequence[Augmentation] = (),
) -> dict[str, jax.Array]:
  """Draws one step's augmentation of every sample.

  Args:
    key: typed PRNG key of the step.
    batch_size: B, of all devices together.
    flip: probability of a horizontal flip.
    others: the augmentations besides. None moves the draws of another.

  Returns:
    ``flip``, bool ``[B]``; and by the name of each other one the uniforms in
    [0, 1) that it takes, float32 ``[B, 1 + numbers]``: the first chooses the
    sample.
  """
  drawn = {'flip': jax.random.bernoulli(key, flip, (batch_size,))}
  for other in others:
    own_key = jax.random.fold_in(key, zlib.crc32(other.name.encode()))
    shape = batch_size, 1 + other.numbers
    drawn[other.name] = jax.random.uniform(own_key, shape, jnp.float32)
  return drawn


def apply(
  images: jax.Array,
  drawn: Mapping[str, jax.Array],
  others: Sequence[Augmentation] = (),
) -> jax.Array:
  """Augments and scales.

  Args:
    images: uint8 ``[B, H, W, 3]``, RGB.
    drawn: from `draw`, or the part of it for these images.
    others: the augmentations of the draw, in the order to be applied.

  Returns:
    Float32 ``[B, H, W, 3]`` in [-1, 1].

  Examples:
    >>> images = jax.random.bits(jax.random.key(0), (2, 112, 112, 3), 'uint8')
    >>> others = [Blur(0.2, sigma=(0.1, 2.0)), Grey(probability=1.0)]
    >>> drawn = draw(jax.random.key(1), 2, flip=0.5, others=others)
    >>> seen = apply(images, drawn, others)
    >>> seen.shape, bool((seen[..., 0] == seen[..., 2]).all())
    ((2, 112, 112, 3), True)
  """
  for other in others:
    uniforms = drawn[other.name]
    chosen = uniforms[:, 0] < other.probability
    changed = jax.vmap(other)(images, uniforms[:, 1:])
    images = jnp.where(chosen[:, None, None, None], changed, images)
  flip = drawn['flip'][:, None, None, None]
  return scale(jnp.where(flip, images[:, :, ::-1], images))
