# SPDX-License-Identifier: Apache-2.0
"""One training step over groups of samples and blocks of classes.

The bits of its result depend on the state, the batch and the keys, and not on
the number of devices; `exact.loops` and `exact.trees` explain how. A step is

- the random draws for the full batch,
- a loop of turns (`turn.run`), in each of which every device takes one of its
  groups forward, through the head, and back,
- an update of the class centres, of the backbone and of the loss's state
  (`update`),
- its metrics.

Letters: B samples in G groups of S, g groups on this device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import RunningTree, tree_sum
from elasticface_jax.losses import _sampling
from elasticface_jax.training import augment, turn, update
from elasticface_jax.training.state import AXIS, TrainState, TripCounts, specs

if TYPE_CHECKING:
  from elasticface_jax.training.task import Task


def make_step(task: 'Task') -> Callable:
  """Makes the jitted training step.

  Args:
    task: the assembled run.

  Returns:
    ``step(trips, state, images, labels, keys) -> (state, measured)``, with
    trips from ``layout.trip_counts()``, images uint8 ``[G, S, H, W, 3]`` and
    labels int32 ``[G, S]`` sharded over the devices by groups, keys from
    `state.make_keys`. The state given is consumed. `measured` is a dict of
    scalars, replicated.
  """
  return jax.jit(
    jax.shard_map(
      functools.partial(_step, task),
      mesh=task.layout.mesh,
      in_specs=(P(), specs(), P(AXIS), P(AXIS), P()),
      out_specs=(specs(), P()),
      check_vma=False,
    ),
    donate_argnums=1,
  )


def _step(
  task: 'Task',
  trips: TripCounts,
  state: TrainState,
  images: jax.Array,
  labels: jax.Array,
  keys: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Computes one device's share of a step."""
  devices = task.layout.devices
  keys = {n: jax.random.fold_in(key, state.step) for n, key in keys.items()}
  labels = devices.gather(labels)  # [G, S]
  classes = _choose_classes(task, keys['sampling'], labels, trips)
  slots = state.class_centers, state.head_opt
  taken = classes.take(slots, trips.blocks)

  groups, sums = _turns(
    task,
    turn.Shared(
      state=state,
      keys=keys,
      images=loops.with_spare(images),
      labels=_by_turn(task, labels),
      drawn=_draw(task, keys['augment']),
      classes=classes,
      centers=taken[0],
      trips=trips,
    ),
  )
  groups = jax.tree.map(devices.gather, groups)  # [G, S, ...]
  samples, cotangents = jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:]), (groups.samples, groups.cotangents)
  )

  scalars = update.Scalars(
    task.rate(state.step), task.bias_correction(state.step)
  )
  taken, squares = update.class_centers(
    task, taken, classes, samples, cotangents, scalars, trips
  )
  class_centers, head_opt = classes.put(slots, taken, trips.blocks)
  moved, gradient_norm = {}, jnp.zeros(())
  if not task.freeze:
    moved, gradient_norm = update.backbone(task, state, sums, scalars, trips)
  # Without the unit embeddings: `isolate` copies its inputs.
  rest = samples._replace(unit_embeddings=())
  loss_state, measured = loops.isolate(
    lambda given: _measure(task, *given),
    (groups._replace(samples=rest, cotangents=()), devices.gather(squares)),
    trips.once,
  )
  measured['backbone_gradient_norm'] = gradient_norm
  measured['learning_rate'] = jnp.asarray(scalars.learning_rate, jnp.float32)
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    class_centers=class_centers,
    head_opt=head_opt,
    loss_state=loss_state,
    **moved,
  )
  return state, measured


def _turns(task: 'Task', shared: turn.Shared) -> tuple[turn.Group, Any]:
  """Runs the loop of turns.

  Returns:
    The groups of this device, ``[g, ...]`` each; and the sums over them as
    `RunningTree` leaves them.
  """
  count = task.layout.local_groups
  state = shared.state
  like = {'gradient': state.params, 'batch_stats': state.batch_stats}

  def body(r, carry):
    groups, tree = carry
    group, parts = turn.run(task, shared, r)
    return loops.write(groups, r, group), tree.add(r, parts)

  carry = (
    loops.empty(count, turn.shape_of_group(task, state)),
    RunningTree.start(count, shared.trips.turns, {} if task.freeze else like),
  )
  # Scopes have the names of their trip counts, for profiles and for checks.
  with jax.named_scope('turns'):
    groups, tree = jax.lax.fori_loop(0, shared.trips.turns, body, carry)
  return jax.tree.map(lambda x: x[:count], groups), tree.sums(count)


def _by_turn(task: 'Task', labels: jax.Array) -> jax.Array:
  """Sorts groups, ``[G, S]``, by the turn that takes them, ``[g, n, S]``."""
  by_device = labels.reshape(task.layout.mesh.size, -1, labels.shape[1])
  return by_device.swapaxes(0, 1)


def _draw(task: 'Task', key: jax.Array) -> dict[str, jax.Array]:
  """Draws the augmentation of the batch, ``[G, S, ...]``."""
  layout = task.layout
  drawn = augment.draw(
    key, layout.batch_size, flip=task.flip, others=task.augmentations
  )
  return jax.tree.map(
    lambda x: x.reshape(-1, layout.group_size, *x.shape[1:]), drawn
  )


def _choose_classes(
  task: 'Task', key: jax.Array, labels: jax.Array, trips: TripCounts
) -> _sampling.AllClasses | _sampling.SampledClasses:
  """Chooses the classes of this device's blocks that take part in a step."""
  layout = task.layout
  first_block = layout.first_block()
  if layout.sample_rate == 1:
    return _sampling.AllClasses(first_block, layout.block_size)
  return _sampling.draw(
    key,
    labels.reshape(-1),
    num_classes=layout.num_classes,
    num_blocks=layout.num_blocks,
    sample_rate=layout.sample_rate,
    count=layout.local_blocks,
    first_block=first_block,
    trip_count=trips.blocks,
  )


def _measure(
  task: 'Task', groups: turn.Group, squares: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
  """Reduces the groups of a step to the next loss state and the metrics.

  Args:
    task: the assembled run.
    groups: all of the batch, ``[G, ...]`` each; samples ``[B]``.
    squares: of the norms of all blocks' gradients, ``[K]``.

  Returns:
    The loss's next state, the mean of those of all groups; and scalars by name.
  """
  loss_state = jax.tree.map(
    lambda x: (tree_sum(x) / len(x)).astype(x.dtype), groups.loss_state
  )
  targets = groups.samples.target_cosines
  measured = {
    'loss': groups.loss.reshape(-1).mean(),
    # Without the margin, with which training accuracy would be 0 for long.
    # Among the classes of this step: it is higher with fewer of them.
    'accuracy': (targets > groups.largest_cosine.reshape(-1)).mean(
      dtype=jnp.float32
    ),
    'target_angle': jnp.arccos(jnp.clip(targets, -1, 1)).mean(),
    'embedding_norm': groups.norms.reshape(-1).mean(),
    'head_gradient_norm': jnp.sqrt(tree_sum(squares)),
  }
  for name, margin in zip(
    task.loss.margin_names, groups.samples.margins, strict=True
  ):
    measured |= {f'{name}_mean': margin.mean(), f'{name}_std': margin.std()}
  return loss_state, measured
