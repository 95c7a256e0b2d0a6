# SPDX-License-Identifier: Apache-2.0
"""A trace in JAX: the trainer's own step on given inputs."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from checks.torch_trace.given import (
  CENTERS,
  QUANTITIES,
  SEED,
  Given,
  Trace,
  norm,
  sort_tensors,
)
from elasticface_jax import interop
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import make_task
from elasticface_jax.training import loss, state


def train(recipe: Recipe, given: Given) -> Trace:
  """Trains with the trainer's step on one device."""
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

  def in_torch_names(params, centers):
    tensors = interop.to_torch(params, current.batch_stats)
    centers = np.asarray(centers).reshape(-1, recipe.embedding_dim)
    return tensors | {CENTERS: centers[: recipe.num_classes]}

  momenta = [
    optax.tree.get(opt, 'trace')
    for opt in (current.backbone_opt, current.head_opt)
  ]
  weights = in_torch_names(current.params, current.class_centers)
  return Trace(
    {name: np.array(values) for name, values in steps.items()},
    sort_tensors(weights, in_torch_names(*momenta)),
  )


class GivenMargins:
  """A loss with given margins, which are paired as if they had been drawn.

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
    def take(key, shape, *, first_sample, **hyperparameters):
      margins = jnp.asarray(self._margins)[given.state]
      return jax.lax.dynamic_slice_in_dim(margins, first_sample, shape[0])

    with mock.patch.object(loss, 'sample_margins', take):
      made = self._named.make(given)
    return made._replace(state=given.state + 1)
