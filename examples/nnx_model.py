# SPDX-License-Identifier: Apache-2.0
"""AdaFace on a flax.nnx model: a loss with a state, in your own loop.

AdaFace gives more margin to embeddings of large norm, which are those of good
images. To know which norms are large, it keeps their running mean and standard
deviation: a small state that each step takes and returns. Some of the images
drawn here are poor, and the norms of their embeddings show it. It runs in
seconds on a CPU:

    python examples/nnx_model.py

Letters: B samples, C classes, D embedding size, P pixels.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from elasticface_jax import losses

NUM_CLASSES, PIXELS, HIDDEN, DIM = 64, 64, 128, 32
BATCH, STEPS = 128, 250


class Model(nnx.Module):
  """A small network with the class centres that it is trained against."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(PIXELS, HIDDEN, rngs=rngs)
    self.out = nnx.Linear(HIDDEN, DIM, rngs=rngs)
    self.class_centers = nnx.Param(
      jax.random.normal(rngs.params(), (NUM_CLASSES, DIM))
    )

  def __call__(self, images):
    """Maps images ``[B, P]`` to embeddings ``[B, D]`` of any norm."""
    return self.out(nnx.relu(self.hidden(images)))


def draw_batch(faces, key):
  """Draws images ``[B, P]``: faces in noise, clearer with higher quality."""
  label_key, quality_key, noise_key = jax.random.split(key, 3)
  labels = jax.random.randint(label_key, (BATCH,), 0, NUM_CLASSES)
  quality = jax.random.uniform(quality_key, (BATCH,), minval=0.2)
  noise = jax.random.normal(noise_key, (BATCH, PIXELS))
  return quality[:, None] * faces[labels] + 0.5 * noise, labels, quality


@nnx.jit
def train_step(model, optimizer, loss_state, images, labels):
  """Runs one step; returns the loss and the new state of the loss."""

  def objective(model):
    embeddings = model(images)
    loss, new_state = losses.adaface(
      losses.cosines(embeddings, model.class_centers[...]),
      labels,
      # The norms before normalisation; cosines do not contain them.
      losses.norms(embeddings),
      loss_state,
      # Published: 0.4, 0.01 and 64. A toy problem is smaller and ends early,
      # and the running mean of the norms has to converge before that.
      margin=0.2,
      ema_rate=0.05,
      scale=16.0,
    )
    return loss.mean(), new_state  # No gradient flows into the state.

  (loss, loss_state), gradients = nnx.value_and_grad(objective, has_aux=True)(
    model
  )
  optimizer.update(model, gradients)
  return loss, loss_state


def measure(model, images, labels, quality):
  """Measures accuracy, mean norm, and correlation of norm and quality."""
  embeddings = model(images)
  nearest = losses.cosines(embeddings, model.class_centers[...]).argmax(axis=1)
  norms = losses.norms(embeddings)
  return {
    'accuracy': float(jnp.mean(nearest == labels)),
    'norm': float(jnp.mean(norms)),
    'correlation': float(jnp.corrcoef(norms, quality)[0, 1]),
  }


def main():
  """Trains, prints, and returns losses, state and measurements."""
  faces_key, init_key, batch_key, test_key = jax.random.split(
    jax.random.key(0), 4
  )
  faces = jax.random.normal(faces_key, (NUM_CLASSES, PIXELS))
  model = Model(nnx.Rngs(init_key))
  optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
  # Two floats. Save them with the model, or AdaFace starts again from its
  # initial mean norm of 20.
  loss_state = losses.adaface_init()

  draw = jax.jit(draw_batch)
  test = draw(faces, test_key)
  before = measure(model, *test)
  history = []
  for step in range(STEPS):
    images, labels, _ = draw(faces, jax.random.fold_in(batch_key, step))
    loss, loss_state = train_step(model, optimizer, loss_state, images, labels)
    history.append(loss)
  history = [float(loss) for loss in history]
  after = measure(model, *test)

  print(
    f'loss {history[0]:.2f} at first, {history[-1]:.2f} after {STEPS} steps'
  )
  print(f'state: mean {loss_state.mean:.2f}, deviation {loss_state.std:.2f}')
  print('on new images, untrained and trained:')
  for name in before:
    print(f'{name:12}{before[name]:6.2f}{after[name]:6.2f}')
  return {
    'losses': history,
    'state': loss_state,
    'before': before,
    'after': after,
  }


if __name__ == '__main__':
  main()
