# SPDX-License-Identifier: Apache-2.0
"""The inputs of a trace, and its result: alike for both implementations.

Weights, images, labels and margins come from NumPy, so that they are the same
on every machine and with every version of jax and torch. Needs no torch.

Letters: T steps, B samples, C classes, D embedding size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from elasticface_jax import models, recipes
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.training import augment, state

# Of the flips, which the step draws itself: integer bits, the same everywhere.
SEED = 0
# Of each step; the last is the norm of all running statistics together.
QUANTITIES = (
  'loss',
  'backbone_gradient_norm',
  'head_gradient_norm',
  'statistics_norm',
)
CENTERS = 'class_centers'
# Means and standard deviations of the margins, those of the paper.
MARGINS = {
  'elastic_arcface': (0.5, 0.05),
  'elastic_arcface_plus': (0.5, 0.0175),
  'elastic_cosface': (0.35, 0.05),
  'elastic_cosface_plus': (0.35, 0.025),
}


class Given(NamedTuple):
  """Inputs of both implementations; floats are float32 values in any dtype."""

  params: Any  # Of the backbone, in our layout.
  batch_stats: Any  # Likewise.
  class_centers: np.ndarray  # [C, D]
  images: np.ndarray  # uint8 [T, B, 112, 112, 3]
  labels: np.ndarray  # int32 [T, B]
  margins: np.ndarray  # Not yet paired, [T, B].
  flips: np.ndarray  # bool [T, B]


class Trace(NamedTuple):
  """Measured quantities of each step, and the tensors after the last."""

  steps: Mapping[str, np.ndarray]  # By quantity, [T].
  # Weights, momenta and statistics, each by the names and in the layouts of
  # PyTorch, and class centres.
  tensors: Mapping[str, Mapping[str, np.ndarray]]


def make_recipe(
  model: str,
  *,
  width: int,
  embedding_dim: int,
  dtype: str,
  loss: str,
  batch_size: int,
  groups: int,
  num_classes: int,
) -> Recipe:
  """Returns the recipe of a trace; other hyperparameters are the paper's."""
  margin, std = MARGINS[loss]
  return Recipe(
    model={
      'name': model,
      'width': width,
      'embedding_dim': embedding_dim,
      'dtype': dtype,
    },
    loss=recipes.loss(loss, margin=margin, margin_std=std),
    batch_size=batch_size,
    group_size=batch_size // groups,
    num_classes=num_classes,
    num_blocks=4,
  )


def give(recipe: Recipe, steps: int) -> Given:
  """Draws the inputs of a trace.

  BatchNorms start at random scales and biases, not at 1 and 0: two of them in
  swapped places make a difference.

  Args:
    recipe: of the step; its dtype changes the flips alone.
    steps: T.
  """
  rng = np.random.default_rng(0)
  normal = lambda shape, mean, std: rng.normal(mean, std, shape).astype('f4')
  backbone = models.build(**recipe.model | {'dtype': 'float32'})
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(backbone.init, key)
  fan_in = shapes[0]['fc']['kernel'].shape[0]

  def draw(path, leaf):
    names = [entry.key for entry in path[1:]]
    if names[0] == 'fc':
      return normal(leaf.shape, 0, (3 * fan_in) ** -0.5)
    mean, std = {
      'kernel': (0, 0.1),
      'slope': (0.25, 0.05),
      'scale': (1, 0.1),
      'var': (1, 0.1),
    }.get(names[-1], (0, 0.1))
    return normal(leaf.shape, mean, std)

  params, batch_stats = jax.tree.map_with_path(draw, shapes)
  batches = steps, recipe.batch_size
  labels = rng.integers(recipe.num_classes, size=batches, dtype=np.int32)
  # A pattern of the class, and noise. Pixels have only values for which the
  # result is the same if a compiler multiplies where `augment.scale` divides.
  pixels = np.flatnonzero(scale(np.arange(256)) == _scale_fast(np.arange(256)))
  pixels = pixels.astype(np.uint8)
  count = len(pixels) // 2
  draw_levels = lambda *size: rng.integers(count, size=size, dtype=np.uint8)
  faces = draw_levels(recipe.num_classes, 7, 7, 3)
  noise = draw_levels(*batches, 112, 112, 3)
  images = faces[labels].repeat(16, axis=2).repeat(16, axis=3) + noise
  loss = recipe.loss
  return Given(
    params,
    batch_stats,
    normal((recipe.num_classes, recipe.embedding_dim), 0, 0.01),
    pixels[images],
    labels,
    normal(batches, loss['margin'], loss['margin_std']),
    np.stack([_flips(recipe, step) for step in range(steps)]),
  )


def scale(images: np.ndarray) -> np.ndarray:
  """Scales pixels as `augment.scale`, correctly rounded."""
  return (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def _scale_fast(images):
  centred = images.astype(np.float32) - np.float32(127.5)
  return centred * (np.float32(1) / np.float32(127.5))


def _flips(recipe, step):
  # In float64, other bits of the key are compared with the probability.
  with jax.enable_x64(recipe.dtype == 'float64'):
    key = jax.random.fold_in(state.make_keys(SEED)['augment'], step)
    drawn = augment.draw(key, recipe.batch_size, flip=recipe.flip)
    return np.asarray(drawn['flip'])


def sort_tensors(
  weights: Mapping[str, Any], momenta: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
  """Splits a state_dict into weights, momenta and statistics.

  Args:
    weights: all weights and buffers by name.
    momenta: by name.

  Returns:
    Tensors by kind and name, without weights that are not trained.
  """
  is_statistic = lambda name: '.running_' in name
  is_fixed = lambda name: name == 'features.weight' or '.num_batches' in name
  trained = [n for n in weights if not is_statistic(n) and not is_fixed(n)]
  return {
    'weights': {n: weights[n] for n in trained},
    'momenta': {n: momenta[n] for n in trained},
    'statistics': {n: x for n, x in weights.items() if is_statistic(n)},
  }


def norm(arrays) -> float:
  """Returns the Euclidean norm of all arrays together."""
  return float(
    np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in arrays))
  )
