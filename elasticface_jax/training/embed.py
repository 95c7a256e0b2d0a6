# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images with a trained backbone, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from elasticface_jax.errors import InputError
from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import Devices
from elasticface_jax.training import augment
from elasticface_jax.training.state import AXIS

# Batches that all devices together take at a time, at least.
_BATCHES = 8


def make_embed(
  backbone: Any, mesh: jax.sharding.Mesh, *, rows: int
) -> Callable[[Any, Any, np.ndarray], np.ndarray]:
  """Makes the compiled function that embeds images for verification.

  The bits do not depend on the number of devices: images go through the
  network in batches of a fixed size, one after another.

  Args:
    backbone: a `models.Backbone`.
    mesh: its devices share the images.
    rows: images of a batch, 128 on an accelerator; memory grows with it.

  Returns:
    ``embed(params, batch_stats, images) -> embeddings``: uint8
    ``[M, H, W, 3]`` to float32 numpy ``[M, D]``: the sum of the embeddings of
    the image and of its mirror image, not normalised. Every process gives all
    images and gets all embeddings.

  Raises:
    InputError: if `rows` is less than 1.
  """
  if rows < 1:
    raise InputError(f'eval.rows={rows} must be at least 1')
  devices = Devices(AXIS, mesh.size)
  count = -(-_BATCHES // mesh.size)  # Batches that a device takes at a time.

  def embed_batch(params, batch_stats, images):
    images = augment.scale(images)
    plain, _ = backbone.apply(params, batch_stats, images, train=False)
    mirrored, _ = backbone.apply(
      params, batch_stats, images[:, :, ::-1], train=False
    )
    return plain + mirrored

  def embed(params, batch_stats, images, trip_count):
    embeddings = loops.map_slots(
      lambda batch: embed_batch(params, batch_stats, batch), images, trip_count
    )
    return devices.gather(embeddings[None])

  compiled = jax.jit(
    jax.shard_map(
      embed,
      mesh=mesh,
      in_specs=(P(), P(), P(AXIS), P()),
      out_specs=P(),
      check_vma=False,
    )
  )
  sharded = jax.sharding.NamedSharding(mesh, P(AXIS))
  size = mesh.size * count * rows

  def embed_all(params, batch_stats, images):
    chunks = []
    for start in range(0, len(images), size):
      chunk = images[start : start + size]
      # Batches are dealt to the devices in turn, so that the last images take
      # as few trips as possible.
      trip_count = -(-len(chunk) // (mesh.size * rows))
      padded = np.zeros((size, *chunk.shape[1:]), chunk.dtype)
      padded[: len(chunk)] = chunk
      dealt = padded.reshape(count, mesh.size, rows, *chunk.shape[1:])
      dealt = dealt.swapaxes(0, 1).reshape(-1, rows, *chunk.shape[1:])
      on_devices = jax.make_array_from_callback(
        dealt.shape, sharded, dealt.__getitem__
      )
      embeddings = compiled(
        params, batch_stats, on_devices, np.asarray(trip_count, np.int32)
      )
      # [n, count, rows, D]; batches past the trip count are unspecified.
      embeddings = np.asarray(embeddings).swapaxes(0, 1).reshape(size, -1)
      chunks.append(embeddings[: len(chunk)])
    return np.concatenate(chunks)

  return embed_all
