# SPDX-License-Identifier: Apache-2.0
"""ElasticFace in a plain optax loop: your model, your loop, our loss.

Trains a small network in jax.numpy on faces that are drawn here, and then
distinguishes identities that it has never seen. It runs in seconds on a CPU:

    python examples/optax_loop.py

Letters: B samples, C classes, D embedding size, P pixels.
"""

import jax
import jax.numpy as jnp
import optax

from elasticface_jax import losses

NUM_CLASSES, UNSEEN, IMAGES_EACH = 128, 32, 16
LATENT, PIXELS, HIDDEN, DIM = 8, 64, 128, 32
BATCH, STEPS = 128, 300
# The paper's 64, 0.5 and 0.05 are for 512 dims, 85,742 classes and 26 epochs. A
# toy problem gets the same result with them, but in five times as many steps.
SCALE, MARGIN, MARGIN_STD = 16.0, 0.3, 0.03


@jax.jit
def make_faces(key):
  """Draws images that mix an identity with a pose of twice its amplitude."""
  identity_key, pose_key, lens_key = jax.random.split(key, 3)
  count = NUM_CLASSES + UNSEEN
  identity = jax.random.normal(identity_key, (count, 1, LATENT))
  identity = jnp.tile(identity, (1, IMAGES_EACH, 1))
  pose = 2 * jax.random.normal(pose_key, (count, IMAGES_EACH, LATENT))
  lens = jax.random.normal(lens_key, (2 * LATENT, PIXELS)) / 4
  images = jnp.tanh(jnp.concatenate([identity, pose], axis=2) @ lens)
  labels = jnp.repeat(jnp.arange(count), IMAGES_EACH)
  return images.reshape(-1, PIXELS), labels


@jax.jit
def init(key):
  """Makes a plain dict of the model's parameters and the class centres."""
  hidden_key, out_key, centers_key = jax.random.split(key, 3)
  return {
    'hidden': jax.random.normal(hidden_key, (PIXELS, HIDDEN)) / PIXELS**0.5,
    'out': jax.random.normal(out_key, (HIDDEN, DIM)) / HIDDEN**0.5,
    # Only their direction matters, because the loss normalises them.
    'class_centers': jax.random.normal(centers_key, (NUM_CLASSES, DIM)),
  }


def embed(params, images):
  """Maps images ``[B, P]`` to embeddings ``[B, D]`` of any norm."""
  return jax.nn.relu(images @ params['hidden']) @ params['out']


@jax.jit
def same_is_nearest(params, images, labels):
  """Computes the share of images whose nearest other has their identity."""
  embeddings = embed(params, images)
  cosines = losses.cosines(embeddings, embeddings)
  others = cosines - 3 * jnp.eye(len(labels))  # Each is nearest to itself.
  return jnp.mean(labels[others.argmax(axis=1)] == labels)


def main():
  """Trains, prints, and returns the losses and the result on unseen faces."""
  data_key, init_key, batch_key, margin_key = jax.random.split(
    jax.random.key(0), 4
  )
  images, labels = make_faces(data_key)
  seen = NUM_CLASSES * IMAGES_EACH
  unseen = images[seen:], labels[seen:]
  params = init(init_key)
  optimizer = optax.adam(3e-3)

  @jax.jit
  def train_step(params, opt_state, step):
    # The key of each step follows from its number. With one key for all steps,
    # each would draw the same margins for the same places in the batch, which
    # is not ElasticFace. No key is carried, so none has to be saved: a resumed
    # run draws what an uninterrupted one draws.
    batch = jax.random.randint(
      jax.random.fold_in(batch_key, step), (BATCH,), 0, seen
    )

    def objective(params):
      cosines = losses.cosines(
        embed(params, images[batch]), params['class_centers']
      )
      loss = losses.elastic_arcface(
        cosines,
        labels[batch],
        key=jax.random.fold_in(margin_key, step),
        margin=MARGIN,
        margin_std=MARGIN_STD,
        scale=SCALE,
      )
      # The loss is per sample, so that you can weight or mask it. The paper
      # uses the mean, and its learning rate belongs to that.
      return loss.mean()

    loss, gradients = jax.value_and_grad(objective)(params)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss

  before = same_is_nearest(params, *unseen)
  opt_state, history = optimizer.init(params), []
  for step in range(STEPS):
    params, opt_state, loss = train_step(params, opt_state, step)
    history.append(loss)  # Not float() yet: it would wait for every step.
  history = [float(loss) for loss in history]
  after = same_is_nearest(params, *unseen)

  print(
    f'loss {history[0]:.2f} at first, {history[-1]:.2f} after {STEPS} steps'
  )
  print(
    f'{UNSEEN} unseen identities; nearest other image has the same identity:'
  )
  print(f'{before:.1%} untrained, {after:.1%} trained')
  return {'losses': history, 'before': before, 'after': after}


if __name__ == '__main__':
  main()
