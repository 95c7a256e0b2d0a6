# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the head, compared with its matrix products alone.

The head is timed as the trainer's step with a network of negligible cost:
margins, statistics, gradients, and class centres and what the optimiser keeps
updated in place.

Letters: B samples, D embedding size, K blocks of classes, k on this device, u
sub-centres of a class, s classes of a block that take part.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from elasticface_jax.benchmark import device, flops, timing
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import Run, thin_backbone
from elasticface_jax.exact import loops
from elasticface_jax.losses import _blocks, _sampling
from elasticface_jax.losses._arrays import normalize
from elasticface_jax.training.state import AXIS

HEAD, PRODUCTS, UPDATE = 'head', 'products', 'update'
_PRODUCTS = 5  # The logits are computed three times.
_RATE = 1e-6  # Of the update alone; small, so that values stay finite.


def recipes(
  recipe: Recipe, mesh: jax.sharding.Mesh, num_classes: Sequence[int]
) -> list[Recipe]:
  """Returns the recipes of the heads to measure, one for each class count.

  The recipe's `num_blocks` is for the first class count; the others get blocks
  of about the same size. The batch has one group for each device.
  """
  made = []
  for count in num_classes:
    share = recipe.num_blocks * count / num_classes[0] / mesh.size
    scaled = max(1, round(share)) * mesh.size
    made.append(
      dataclasses.replace(
        recipe,
        num_classes=count,
        num_blocks=scaled if made else recipe.num_blocks,
        group_size=max(1, recipe.batch_size // mesh.size),
        freeze=False,
      )
    )
  return made


def measure(
  recipe: Recipe, mesh: jax.sharding.Mesh, *, rounds: int, seconds: float
) -> dict[str, Any]:
  """Times one head.

  Args:
    recipe: from `recipes`.
    mesh: the devices.
    rounds: number of turns of the head and of the products.
    seconds: shortest time of each in a round.

  Returns:
    JSON-like.
  """
  backbone = thin_backbone(recipe.embedding_dim)
  run = Run(recipe, mesh, backbone=backbone, image_size=2)
  turns = {'rounds': rounds, 'seconds': seconds}
  spent = timing.in_turn({HEAD: run, PRODUCTS: _products(run)}, **turns)
  # Not compared with the others, so it takes no turns. Consumes the state.
  spent |= timing.in_turn({UPDATE: _update(run)}, **turns)
  median = {name: timing.spread(t)['median'] for name, t in spent.items()}
  kind = 'float32', recipe.precision
  bandwidth = mesh.size * device.copy_bytes_per_second(mesh.devices.flat[0])
  moved = update_bytes(run)
  return {
    'num_classes': recipe.num_classes,
    'num_blocks': recipe.num_blocks,
    'batch_size': recipe.batch_size,
    'embedding_dim': recipe.embedding_dim,
    'subcenters': recipe.subcenters,
    'sample_rate': recipe.sample_rate,
    'loss': recipe.loss['name'],
    HEAD: {
      'step_seconds': timing.spread(spent[HEAD]),
      'samples_per_second': recipe.batch_size / median[HEAD],
      **device.shares(
        {kind: flops.head_products(recipe, 3)}, median[HEAD], mesh
      ),
      **run.cost(),
      **logits_matrix(run),
    },
    PRODUCTS: {
      'step_seconds': timing.spread(spent[PRODUCTS]),
      'products': _PRODUCTS,
      **device.shares(
        {kind: flops.head_products(recipe, _PRODUCTS)}, median[PRODUCTS], mesh
      ),
    },
    UPDATE: {
      'step_seconds': timing.spread(spent[UPDATE]),
      'bytes': moved,
      'bytes_per_second': moved / median[UPDATE],
      'share_of_copy_bandwidth': moved / median[UPDATE] / bandwidth,
      'copy_bytes_per_second': bandwidth,
    },
    # Margins, exponentials, momentum: bound by memory traffic.
    'seconds_beside_products': timing.spread(spent[HEAD] - spent[PRODUCTS]),
    'time_ratios': {
      f'{HEAD} / {PRODUCTS}': timing.ratio(spent[HEAD], spent[PRODUCTS])
    },
    'peak_memory': device.peak_memory(mesh.devices.flat[0]),
  }


def logits_matrix(run: Run) -> dict[str, Any]:
  """Reports whether the program holds the logits of all classes of a device.

  It does if its text names an array of that shape and its temporary memory has
  room for one.

  Returns:
    JSON-like; bytes are per device.
  """
  recipe, layout = run.recipe, run.layout
  batch, count = recipe.batch_size, layout.local_blocks
  block = layout.block_size * recipe.subcenters
  sizes = {
    (batch, count * block),
    (batch, count, block),
    (batch, recipe.num_classes * recipe.subcenters),
  }
  sizes = {tuple(sorted(size)) for size in sizes}
  centers = layout.block_size, recipe.subcenters * recipe.embedding_dim
  found = False
  for shape in re.findall(r'\w\[([\d,]+)\]', run.compiled.as_text()):
    shape = tuple(map(int, shape.split(',')))
    # If D equals B, the class centres have the same shape.
    if len(shape) < 3 or shape[-2:] != centers:
      found |= tuple(sorted(n for n in shape if n > 1)) in sizes
  logits = 4 * batch * count * block
  temporary = device.memory(run.compiled)['temporary_bytes']
  return {
    'logits_matrix_bytes': logits,
    'holds_logits_matrix': found and temporary >= logits,
  }


def update_bytes(run: Run) -> int:
  """Returns the bytes that the update of class centres reads and writes.

  Centres of the classes that take part and what the optimiser keeps of them,
  each read and written.
  """
  recipe = run.recipe
  classes = _sampling.block_shares(
    recipe.num_classes, recipe.num_blocks, recipe.sample_rate
  )
  width = recipe.subcenters * recipe.embedding_dim
  arrays = 1 + len(jax.tree.leaves(run.task.abstract_state().head_opt))
  return 2 * arrays * 4 * width * int(classes.sum())


def _slots(run: Run) -> int:
  """Returns s, the slots for classes of a block in the head."""
  recipe, layout = run.recipe, run.layout
  if recipe.sample_rate == 1:
    return layout.block_size
  classes = _sampling.block_shares(
    recipe.num_classes, recipe.num_blocks, recipe.sample_rate
  )
  return min(layout.block_size, max(int(classes.max()), recipe.batch_size))


def _sharded(run: Run, function, in_specs, out_specs, **jit):
  """Returns `function` under shard_map on the run's devices, jitted."""
  return jax.jit(
    jax.shard_map(
      function,
      mesh=run.layout.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    ),
    **jit,
  )


def _products(run: Run):
  """Returns a function that runs the five products of each block alone.

  In loops like the head's. The results of a block overwrite those of the block
  before: nothing but products reads and writes memory, and the compiler cannot
  remove any of them.
  """
  recipe, count = run.recipe, _slots(run)
  dim = recipe.embedding_dim
  product = functools.partial(_blocks.product, precision=recipe.precision)

  def multiply(centers, embeddings, trip_count):
    centers = loops.with_spare(centers)

    def block(i):
      start, size = (i, 0, 0), (1, count, centers.shape[2])
      return jax.lax.dynamic_slice(centers, start, size).reshape(-1, dim)

    def forward(i, logits):
      del logits
      return product(embeddings, block(i), (1, 1))

    def to_embeddings(i, carry):
      _, parts = carry
      centers = block(i)
      logits = product(embeddings, centers, (1, 1))
      return logits, parts + product(logits, centers, (1, 0))

    def to_centers(i, carry):
      del carry
      logits = product(embeddings, block(i), (1, 1))
      return logits, product(logits, embeddings, (0, 0))

    width = count * recipe.subcenters
    logits = jnp.zeros((recipe.batch_size, width), jnp.float32)
    passes = (
      (forward, logits),
      (to_embeddings, (logits, jnp.zeros_like(embeddings))),
      (to_centers, (logits, jnp.zeros((width, dim)))),
    )
    made = [jax.lax.fori_loop(0, trip_count, *one) for one in passes]
    return jax.tree.map(lambda x: x[None], made)

  multiplied = _sharded(run, multiply, (P(AXIS), P(), P()), P(AXIS))
  shape = recipe.batch_size, dim
  embeddings = normalize(jax.random.normal(jax.random.key(0), shape))
  embeddings = jax.device_put(embeddings, run.layout.replicated())
  trip_count = run.layout.trip_counts().blocks

  def once():
    centers = run.state.class_centers
    jax.block_until_ready(multiplied(centers, embeddings, trip_count))

  return once


def _update(run: Run):
  """Returns a function that runs the update of centres alone.

  Consumes the run's state. One pass over all blocks: in a loop that computes
  nothing else, XLA's fusion on a CPU copies all blocks in every turn.
  """

  def descend(slots, factors):
    centers, opt = slots
    updates, opt = run.task.head_tx.update(
      jnp.zeros_like(centers), opt, centers, factors=factors
    )
    return centers - _RATE * updates, opt

  specs = P(AXIS), P()
  descended = _sharded(run, descend, specs, P(AXIS), donate_argnums=0)
  count = _slots(run)
  slots = run.state.class_centers, run.state.head_opt
  if count < run.layout.block_size:
    slots = jax.tree.map(lambda x: x[:, :count], slots)
  box, factors = [slots], run.task.bias_correction(run.state.step)
  run.state = None

  def once():
    box[0] = jax.block_until_ready(descended(box[0], factors))

  return once
