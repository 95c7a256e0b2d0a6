# SPDX-License-Identifier: Apache-2.0
"""Batches of a data set in a plain loop, on several devices.

They come from a `tf.data.Dataset` whose elements are the batches of steps, so
that a loop may begin at any step. A map of our own makes images smaller and
darker, under a key that follows from the step. `jax.shard_map` divides the
batch among the devices, which a CPU simulates. It draws faces into a folder
first and runs in seconds; with a path it takes a folder of people or shards:

    python examples/tf_data.py
    python examples/tf_data.py data/ms1mv2_shards

Letters: B samples, C classes, D embedding size, P pixels.
"""

import functools
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from elasticface_jax import data, losses

SEED = 0
DRAWN, NUM_CLASSES = 768, 32
SIDE, HIDDEN, DIM = 28, 128, 64
BATCH, STEPS = 64, 120
# The paper's are for 512 dims, 85,742 classes and 26 epochs.
SCALE, MARGIN, MARGIN_STD = 16.0, 0.2, 0.02


def draw_faces(folder):
  """Writes drawn faces into one folder for each person."""
  faces = data.SyntheticFaces(DRAWN, NUM_CLASSES, seed=SEED)
  for label in range(NUM_CLASSES):
    person = Path(folder, f'person_{label:03}')
    person.mkdir()
    images, _ = faces.render(np.arange(label, DRAWN, NUM_CLASSES))
    for number, image in enumerate(images):
      Image.fromarray(image).save(person / f'{number:03}.jpg', quality=95)


def smaller(step, batch):
  """Makes the images of a step what the network takes; runs in the graph."""
  import tensorflow as tf

  images, labels, _ = batch
  images = tf.cast(images, tf.float32) / 127.5 - 1
  images = tf.image.resize(images, (SIDE, SIDE), method='area')
  # No random operation that keeps a state: a loop that begins in the middle
  # would draw other numbers than one that came there.
  shape = (BATCH, 1, 1, 1)
  dark = tf.random.stateless_uniform(shape, (SEED, step), maxval=0.2)
  return tf.reshape(images - dark, (BATCH, 3 * SIDE**2)), labels


def batches_from(source, first_step, last_step=STEPS):
  """Yields images, float32 ``[B, P]``, and labels, int32 ``[B]``, by steps."""
  made = data.dataset(
    source,
    seed=SEED,
    batch_size=BATCH,
    first_step=first_step,
    last_step=last_step,
  )
  # `enumerate` gives the map the number of the step.
  made = made.enumerate(first_step).map(smaller, num_parallel_calls=2)
  return made.prefetch(2).as_numpy_iterator()


def init(key, num_classes):
  """Makes a plain dict of the model's parameters and the class centres."""
  keys = jax.random.split(key, 3)
  pixels = 3 * SIDE**2
  return {
    'hidden': jax.random.normal(keys[0], (pixels, HIDDEN)) / pixels**0.5,
    'out': jax.random.normal(keys[1], (HIDDEN, DIM)) / HIDDEN**0.5,
    'class_centers': jax.random.normal(keys[2], (num_classes, DIM)),
  }


def local_losses(params, images, labels, key):
  """Computes the losses of one device's samples."""
  embeddings = jax.nn.relu(images @ params['hidden']) @ params['out']
  # All devices have one key. With the numbers of its samples in the batch each
  # draws their margins, as a single device would.
  first = jax.lax.axis_index('batch') * len(labels)
  return losses.elastic_arcface(
    losses.cosines(embeddings, params['class_centers']),
    labels,
    key=key,
    margin=MARGIN,
    margin_std=MARGIN_STD,
    scale=SCALE,
    first_sample=first,
  )


def make_step(mesh, optimizer):
  """Makes ``step(params, opt_state, images, labels, key)``."""
  on_devices = jax.shard_map(
    local_losses,
    mesh=mesh,
    in_specs=(P(), P('batch'), P('batch'), P()),
    out_specs=P('batch'),
  )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, images, labels, key):
    objective = lambda params: on_devices(params, images, labels, key).mean()
    loss, gradients = jax.value_and_grad(objective)(params)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss

  return step


def train(source, devices):
  """Trains on some devices; returns the loss of each step."""
  mesh = jax.make_mesh(
    (len(devices),), ('batch',), axis_types=(AxisType.Auto,), devices=devices
  )
  sharded = NamedSharding(mesh, P('batch'))
  init_key, margin_key = jax.random.split(jax.random.key(SEED))
  optimizer = optax.adam(1e-3)
  params = jax.device_put(
    init(init_key, source.num_classes), NamedSharding(mesh, P())
  )
  opt_state = optimizer.init(params)
  step = make_step(mesh, optimizer)
  history = []
  for number, batch in enumerate(batches_from(source, first_step=0)):
    images, labels = jax.device_put(batch, sharded)
    key = jax.random.fold_in(margin_key, number)
    params, opt_state, loss = step(params, opt_state, images, labels, key)
    # One step late, so that the next batch is made meanwhile; not never, since
    # the steps of simulated devices that wait in a queue can block each other.
    history.append(loss)
    if number:
      history[-2] = float(history[-2])
  return [float(loss) for loss in history]


def main(path=None, devices=None):
  """Trains on a data set or drawn faces; prints and returns the losses."""
  devices = devices or jax.devices()
  with tempfile.TemporaryDirectory() as folder:
    if path is None:
      draw_faces(folder)
    source = data.open_encoded(path or folder)
    history = train(source, devices)
  print(
    f'{source.num_images:,} images of {source.num_classes:,} classes on '
    f'{len(devices)} device(s)'
  )
  print(
    f'loss {history[0]:.2f} at first, {history[-1]:.2f} after {STEPS} steps'
  )
  return {'losses': history}


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 4)  # Before the first use of jax.
  main(*sys.argv[1:])
