# SPDX-License-Identifier: Apache-2.0
"""The losses under jax's transformations: vmap, jit, grad and shard_map.

Computes the loss at several margins and seeds in one call, the same losses on
several devices as on one, and many classes without the matrix of all cosines.
It runs in seconds on a CPU, which simulates eight devices, or on accelerators
where there are any:

    python examples/transforms.py

Letters: B samples, C classes, D embedding size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from elasticface_jax import losses

BATCH, DIM, NUM_CLASSES, MANY_CLASSES = 64, 32, 100, 20_000


@functools.partial(jax.jit, static_argnums=1)
def make_batch(key, num_classes):
  """Draws class centres, and embeddings near them with their labels."""
  centers_key, labels_key, noise_key = jax.random.split(key, 3)
  class_centers = jax.random.normal(centers_key, (num_classes, DIM))
  labels = jax.random.randint(labels_key, (BATCH,), 0, num_classes)
  noise = jax.random.normal(noise_key, (BATCH, DIM))
  return class_centers[labels] + 0.5 * noise, class_centers, labels


def margins_and_seeds(embeddings, class_centers, labels, margins, keys):
  """Computes the mean loss for every key and margin, ``[keys, margins]``."""
  cosines = losses.cosines(embeddings, class_centers)

  def loss(key, margin):
    return losses.elastic_arcface(
      cosines, labels, key=key, margin=margin
    ).mean()

  each_margin = jax.vmap(loss, in_axes=(None, 0))
  return jax.vmap(each_margin, in_axes=(0, None))(keys, margins)


def on_one_device(embeddings, class_centers, labels, key):
  """Computes ElasticFace-Arc, ``[B]``."""
  cosines = losses.cosines(embeddings, class_centers)
  return losses.elastic_arcface(cosines, labels, key=key)


def on_devices(mesh):
  """Makes `on_one_device` for a batch that is sharded over a mesh."""

  def local(embeddings, class_centers, labels, key):
    # Every device has the same key and only its own samples. Without their
    # indices in the global batch, each would draw the margins of the first
    # device; with the device's index folded into the key, the margins would
    # depend on the number of devices.
    first = jax.lax.axis_index('batch') * labels.shape[0]
    cosines = losses.cosines(embeddings, class_centers)
    return losses.elastic_arcface(cosines, labels, key=key, first_sample=first)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(P('batch'), P(), P('batch'), P()),
    out_specs=P('batch'),
  )


def block_by_block(embeddings, class_centers, labels, key):
  """Computes ElasticFace-Arc with a tenth of the cosines in memory at once."""
  # The margins that `elastic_arcface` draws from this key.
  margins = losses.sample_margins(key, labels.shape, mean=0.5, std=0.05)
  return losses.blockwise_margin_softmax(
    embeddings, class_centers, labels, margins, kind='arc', num_blocks=10
  )


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(loss, embeddings, class_centers, labels, key):
  """Computes losses ``[B]``, and the class centres' gradient of their mean."""

  def objective(class_centers):
    each = loss(embeddings, class_centers, labels, key)
    return each.mean(), each

  # jax.grad goes around shard_map and not inside. Inside, jax sums the gradient
  # of replicated arrays over the devices, so that the gradient of a local mean
  # would be too large by the number of devices.
  gradient, each = jax.grad(objective, has_aux=True)(class_centers)
  return each, gradient


def differences(results, others):
  """Returns the largest relative differences of losses and of gradients."""
  # They may be on different devices, so they are compared on the host.
  pairs = zip(jax.device_get(results), jax.device_get(others), strict=True)
  return [float(abs(a - b).max() / abs(a).max()) for a, b in pairs]


def main(devices=None):
  """Runs all three on the devices (by default all); prints and returns."""
  batch_key, many_key, margin_key, seeds_key = jax.random.split(
    jax.random.key(0), 4
  )
  batch = make_batch(batch_key, NUM_CLASSES)

  margins = jnp.array([0.3, 0.4, 0.5, 0.6])
  keys = jax.random.split(seeds_key, 3)
  table = jax.jit(margins_and_seeds)(*batch, margins, keys)
  print(f'mean loss at margins {margins}, three seeds:')
  print(jnp.array_str(table, precision=3, suppress_small=True))

  # The number of devices must divide the batch.
  devices = devices or jax.devices()
  count = math.gcd(BATCH, len(devices))
  mesh = jax.make_mesh(
    (count,),
    ('batch',),
    # By default axes are Explicit, and indexing a sharded dim is an error.
    axis_types=(AxisType.Auto,),
    devices=devices[:count],
  )
  one = with_gradient(on_one_device, *batch, margin_key)
  sharded = with_gradient(on_devices(mesh), *batch, margin_key)
  by_devices = differences(one, sharded)

  many = make_batch(many_key, MANY_CLASSES)
  at_once = with_gradient(on_one_device, *many, margin_key)
  blocks = with_gradient(block_by_block, *many, margin_key)
  by_blocks = differences(at_once, blocks)

  print('largest relative difference of losses and of gradients:')
  for name, (of_losses, of_gradients) in {
    f'batch on {count} of the devices and on one': by_devices,
    f'{MANY_CLASSES:,} classes in blocks and at once': by_blocks,
  }.items():
    print(f'{name:40}{of_losses:9.1e}{of_gradients:9.1e}')
  return {
    'table': table,
    'losses': sharded[0],
    'by_devices': by_devices,
    'by_blocks': by_blocks,
  }


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)  # Before the first use of jax.
  main()
