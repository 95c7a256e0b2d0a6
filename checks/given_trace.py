# SPDX-License-Identifier: Apache-2.0
"""Some steps of training on given numbers, to be followed by other code.

`torch_trace.py` does the same steps in PyTorch. What is given here - weights,
images, labels, margins - comes from NumPy, so that it is the same on every
machine, with every version of jax and torch. Needs no torch.

Letters: T steps, B samples, C classes, D embedding size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elasticface_jax import interop, models, recipes
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import make_task
from elasticface_jax.training import augment, loss, state

# Of the flips, which the step draws itself: bits of integers, alike everywhere.
SEED = 0
# Of each step. The last is the norm of all running statistics together.
QUANTITIES = (
  'loss',
  'backbone_gradient_norm',
  'head_gradient_norm',
  'statistics_norm',
)
CENTERS = 'class_centers'
# Means and standard deviations of the margins; those of the paper.
MARGINS = {
  'elastic_arcface': (0.5, 0.05),
  'elastic_arcface_plus': (0.5, 0.0175),
  'elastic_cosface': (0.35, 0.05),
  'elastic_cosface_plus': (0.35, 0.025),
}


class Given(NamedTuple):
  """What both sides start from; floats are float32 numbers in any dtype."""

  params: Any  # Of the backbone; ours.
  batch_stats: Any  # Likewise.
  class_centers: np.ndarray  # [C, D]
  images: np.ndarray  # uint8 [T, B, 112, 112, 3]
  labels: np.ndarray  # int32 [T, B]
  margins: np.ndarray  # Not yet paired, [T, B].
  flips: np.ndarray  # bool [T, B]


class Trace(NamedTuple):
  """What came of it."""

  steps: Mapping[str, np.ndarray]  # By quantity, [T].
  # Weights, momenta and statistics after the last step, each by the names and
  # in the layouts of PyTorch, and class centres.
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
  """The recipe of a trace; numbers not named here are the paper's."""
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
  """Makes what a trace starts from.

  BatchNorms start at random scales and biases, not at 1 and 0: so two that
  change places show.

  Args:
    recipe: its dtype changes the flips, and nothing else.
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
  # What a class has in common, and noise. Among the pixels are only those that
  # come out the same if a compiler multiplies where `augment.scale` divides.
  pixels = np.flatnonzero(scale(np.arange(256)) == _scale_fast(np.arange(256)))
  pixels = pixels.astype(np.uint8)
  count = len(pixels) // 2
  draw_levels = lambda *size: rng.integers(count, size=size, dtype=np.uint8)
  faces = draw_levels(recipe.num_classes, 7, 7, 3)
  noise = draw_levels(*batches, 112, 112, 3)
  images = faces[labels].repeat(16, axis=2).repeat(16, axis=3) + noise
  numbers = dict(recipe.loss)
  return Given(
    params,
    batch_stats,
    normal((recipe.num_classes, recipe.embedding_dim), 0, 0.01),
    pixels[images],
    labels,
    normal(batches, numbers['margin'], numbers['margin_std']),
    np.stack([_flips(recipe, step) for step in range(steps)]),
  )


def scale(images: np.ndarray) -> np.ndarray:
  """As `augment.scale`, correctly rounded."""
  return (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def _scale_fast(images):
  centred = images.astype(np.float32) - np.float32(127.5)
  return centred * (np.float32(1) / np.float32(127.5))


def _flips(recipe, step):
  # In float64 other bits of the key are compared with the probability.
  with jax.enable_x64(recipe.dtype == 'float64'):
    key = jax.random.fold_in(state.make_keys(SEED)['augment'], step)
    drawn = augment.draw(key, recipe.batch_size, flip=recipe.flip)
    return np.asarray(drawn['flip'])


class GivenMargins:
  """A loss whose margins are given, and paired as if they had been drawn.

  Its state counts the steps.
  """

  def __init__(self, named: loss.MarginLoss, margins: np.ndarray):
    self._named = named
    self._margins = margins
    self.head = named.head
    self.margin_names = named.margin_names

  def init(self):
    return jnp.zeros((), jnp.int32)

  def make(self, given: loss.Given) -> loss.Made:
    def drawn(key, shape, *, first_sample, **hyperparameters):
      margins = jnp.asarray(self._margins)[given.state]
      return jax.lax.dynamic_slice_in_dim(margins, first_sample, shape[0])

    with mock.patch.object(loss, 'sample_margins', drawn):
      made = self._named.make(given)
    return made._replace(state=given.state + 1)


def train(recipe: Recipe, given: Given) -> Trace:
  """Our side: the trainer's own step, on one device."""
  with jax.enable_x64(recipe.dtype == 'float64'):
    return _train(recipe, given)


def _train(recipe, given):
  task = make_task(recipe, state.make_mesh(1))
  layout = task.layout
  margins = given.margins.astype(recipe.dtype)
  task = dataclasses.replace(task, loss=GivenMargins(task.loss, margins))
  start = jax.tree.map(lambda x: jnp.asarray(x, recipe.dtype), given[:3])
  padding = layout.num_blocks * layout.block_size - layout.num_classes
  blocks = jnp.pad(start[2], ((0, padding), (0, 0))).reshape(
    layout.num_blocks, layout.block_size, -1
  )
  current = state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=start[0],
    batch_stats=start[1],
    backbone_opt=task.backbone_tx.init(start[0]),
    class_centers=blocks,
    head_opt=task.head_tx.init(blocks),
    loss_state=task.loss.init(),
  )
  current = jax.device_put(current, state.shardings(layout.mesh))
  steps = {name: [] for name in QUANTITIES}
  for images, labels in zip(given.images, given.labels, strict=True):
    batch = layout.put(images), layout.put(labels)
    current, measured = task.step(current, *batch, state.make_keys(SEED))
    measured['statistics_norm'] = norm(jax.tree.leaves(current.batch_stats))
    for name, values in steps.items():
      values.append(float(measured[name]))

  def theirs(params, centers):
    tensors = interop.to_torch(params, current.batch_stats)
    centers = np.asarray(centers).reshape(-1, recipe.embedding_dim)
    return tensors | {CENTERS: centers[: recipe.num_classes]}

  momenta = [
    optax.tree.get(opt, 'trace')
    for opt in (current.backbone_opt, current.head_opt)
  ]
  weights = theirs(current.params, current.class_centers)
  return Trace(
    {name: np.array(values) for name, values in steps.items()},
    sort_tensors(weights, theirs(*momenta)),
  )


def sort_tensors(
  weights: Mapping[str, Any], momenta: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
  """Leaves out of a state_dict, and of one of momenta, what is not trained."""
  is_statistic = lambda name: '.running_' in name
  left_out = lambda name: name == 'features.weight' or '.num_batches' in name
  trained = [n for n in weights if not is_statistic(n) and not left_out(n)]
  return {
    'weights': {n: weights[n] for n in trained},
    'momenta': {n: momenta[n] for n in trained},
    'statistics': {n: x for n, x in weights.items() if is_statistic(n)},
  }


def norm(arrays) -> float:
  """Euclidean norm of arrays together."""
  return float(
    np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in arrays))
  )


def relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
  """Relative differences of a quantity, [T]."""
  return np.abs(np.asarray(found) / np.asarray(expected) - 1)


# What the tests compare with PyTorch's traces on file.
GOLDEN_GROUPS, GOLDEN_STEPS = (1, 4), 20


def golden_recipe(groups: int, dtype: str) -> Recipe:
  """The recipe of the traces on file."""
  return make_recipe(
    'iresnet10',
    width=4,
    embedding_dim=16,
    dtype=dtype,
    loss='elastic_arcface_plus',
    batch_size=16,
    groups=groups,
    num_classes=30,
  )


def pack(flips: np.ndarray) -> list[str]:
  """Flips in few characters, a string for each step."""
  return [np.packbits(row).tobytes().hex() for row in flips]


def digests(tensors) -> dict[str, dict[str, list[float]]]:
  """Of each tensor its norm and its product with fixed random numbers.

  The norm does not see the order of numbers; the product does.
  """
  rng = np.random.default_rng(1)
  return {
    kind: {
      name: [norm([x]), float(np.sum(rng.normal(size=x.shape) * x))]
      for name, x in sorted(of_kind.items())
    }
    for kind, of_kind in tensors.items()
  }
