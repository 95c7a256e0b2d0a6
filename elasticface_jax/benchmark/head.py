# SPDX-License-Identifier: Apache-2.0
"""The head alone, beside its matrix products alone, for a number of classes.

The head is the trainer's step behind a network that costs next to nothing, so
what is timed is what a step does: margins, statistics, gradients, and class
centres and momentum updated in place.

Letters: B samples, D embedding size, K blocks of classes, k here, u
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
from elasticface_jax.training import optimizer
from elasticface_jax.training.state import AXIS

HEAD, PRODUCTS, UPDATE = 'head', 'products', 'update'
_PRODUCTS = 5  # With the logits computed three times.
_RATE = 1e-6  # Of the update alone, so that it changes little.


def recipes(
  recipe: Recipe, mesh: jax.sharding.Mesh, num_classes: Sequence[int]
) -> list[Recipe]:
  """The heads to measure, one for each number of classes.

  A recipe's `num_blocks` are for the first of the numbers; the others get
  blocks of about that size. The batch is not cut more than devices ask for.
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
      )
    )
  return made


def measure(
  recipe: Recipe, mesh: jax.sharding.Mesh, *, rounds: int, seconds: float
) -> dict[str, Any]:
  """Times one head.

  Args:
    recipe: of `recipes`.
    mesh: the devices.
    rounds: how often head and products take their turn.
    seconds: of each in a round, at least.

  Returns:
    JSON-like.
  """
  backbone = thin_backbone(recipe.embedding_dim)
  run = Run(recipe, mesh, backbone=backbone, image_size=2)
  turns = {'rounds': rounds, 'seconds': seconds}
  spent = timing.in_turn({HEAD: run, PRODUCTS: _products(run)}, **turns)
  # Compared with nothing, so it takes no turns; and it takes the run's state.
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
    # Margins, exponentials, momentum: what reads and writes memory.
    'seconds_beside_products': timing.spread(spent[HEAD] - spent[PRODUCTS]),
    'time_ratios': {
      f'{HEAD} / {PRODUCTS}': timing.ratio(spent[HEAD], spent[PRODUCTS])
    },
    'peak_memory': device.peak_memory(mesh.devices.flat[0]),
  }


def logits_matrix(run: Run) -> dict[str, Any]:
  """Looks for the logits of all classes of a device in the program.

  Such an array is in its text, and there is room for it.

  Returns:
    JSON-like; bytes are those of one device.
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
    # Where D is B, the class centres look alike.
    if len(shape) < 3 or shape[-2:] != centers:
      found |= tuple(sorted(n for n in shape if n > 1)) in sizes
  logits = 4 * batch * count * block
  temporary = device.memory(run.compiled)['temporary_bytes']
  return {
    'logits_matrix_bytes': logits,
    'holds_logits_matrix': found and temporary >= logits,
  }


def update_bytes(run: Run) -> int:
  """What the update of class centres has to read and to write.

  Centres and momentum of the classes that take part, each read and written.
  """
  recipe = run.recipe
  classes = _sampling.block_shares(
    recipe.num_classes, recipe.num_blocks, recipe.sample_rate
  )
  width = recipe.subcenters * recipe.embedding_dim
  return 2 * 2 * 4 * width * int(classes.sum())


def _slots(run: Run) -> int:
  """s, as the head has it."""
  recipe, layout = run.recipe, run.layout
  if recipe.sample_rate == 1:
    return layout.block_size
  classes = _sampling.block_shares(
    recipe.num_classes, recipe.num_blocks, recipe.sample_rate
  )
  return min(layout.block_size, max(int(classes.max()), recipe.batch_size))


def _spread(run: Run, function, in_specs, out_specs, **jit):
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
  """Makes the five products of each block, in loops as the head's, alone.

  What each gives is overwritten by the next block's, so nothing but products
  reads and writes memory, and none of them is left out.
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

  do = _spread(run, multiply, (P(AXIS), P(), P()), P(AXIS))
  shape = recipe.batch_size, dim
  embeddings = normalize(jax.random.normal(jax.random.key(0), shape))
  embeddings = jax.device_put(embeddings, run.layout.replicated())
  trip_count = run.layout.trip_counts().blocks

  def once():
    jax.block_until_ready(do(run.state.class_centers, embeddings, trip_count))

  return once


def _update(run: Run):
  """The update of class centres and momentum alone; takes the run's state.

  In one pass: a loop over blocks that computes nothing else is fused on a CPU
  so that it copies all blocks in every turn.
  """
  sgd = optimizer.momentum_sgd(momentum=0.9, weight_decay=5e-4)

  def descend(slots):
    centers, momentum = slots
    updates, momentum = sgd.update(jnp.zeros_like(centers), momentum, centers)
    return centers - _RATE * updates, momentum

  do = _spread(run, descend, (P(AXIS),), P(AXIS), donate_argnums=0)
  count = _slots(run)
  slots = run.state.class_centers, run.state.head_opt
  if count < run.layout.block_size:
    slots = jax.tree.map(lambda x: x[:, :count], slots)
  box = [slots]
  run.state = None

  def once():
    box[0] = jax.block_until_ready(do(box[0]))

  return once
