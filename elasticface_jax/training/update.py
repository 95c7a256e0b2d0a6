# SPDX-License-Identifier: Apache-2.0
"""Updates of class centres and backbone after the turns of a training step.

Letters: B samples, D embedding size, k blocks on this device, s classes of a
block that take part, u sub-centres of a class.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import tree_all_reduce
from elasticface_jax.losses import _blocks
from elasticface_jax.training.state import TripCounts

if TYPE_CHECKING:
  from elasticface_jax.training.task import Task


class Scalars(NamedTuple):
  """Scalars of a step, which are computed outside of its loops."""

  learning_rate: jax.Array
  factors: tuple[jax.Array, ...]  # Of the optimiser's running means.


def _descend(params, opt, gradient, tx, scalars):
  learning_rate, factors = scalars
  updates, opt = tx.update(gradient, opt, params, factors=factors)
  params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
  return params, opt


def class_centers(
  task: 'Task',
  slots: tuple[jax.Array, Any],
  classes: Any,
  samples: _blocks.Samples,
  cotangents: _blocks.Cotangents,
  scalars: Scalars,
  trips: TripCounts,
) -> tuple[tuple[jax.Array, Any], jax.Array]:
  """Updates the class centres of this device, block by block.

  The logits are computed once more, from all samples, a part of them at a time.
  A block is updated where its gradient is computed, so that the gradient of all
  classes is never held.

  Args:
    task: the assembled run.
    slots: class centres and their optimiser state of the classes that take
      part, ``[k, s, ...]`` each, with a spare slot.
    classes: those that take part (`losses._sampling`).
    samples: all of the batch, B.
    cotangents: likewise.
    scalars: of this step.
    trips: trip counts of the step.

  Returns:
    The new slots, and the square of the norm of each block's gradient,
    ``[k]``.
  """
  layout, head = task.layout, task.head
  dim = task.backbone.embedding_dim
  parts = loops.with_spare(
    jax.tree.map(
      lambda x: x.reshape(-1, layout.head_rows, *x.shape[1:]),
      (samples, cotangents),
    )
  )

  def to_centers(unit, numbers):
    def add(q, total):
      samples, cotangents = loops.read(parts, q)
      to_each = _blocks.block_cotangents(
        samples, cotangents, unit, numbers, head
      )
      return total + _blocks.product(
        to_each, samples.unit_embeddings, (0, 0), head.precision
      )

    # A loop even over a single part: XLA would otherwise move arithmetic on the
    # samples alone out of the loop over blocks, to where its neighbours differ.
    with jax.named_scope('rows'):
      return jax.lax.fori_loop(0, trips.rows, add, jnp.zeros_like(unit))

  def body(i, carry):
    (centers, opt), slots, squares = carry
    unit, unit_vjp = jax.vjp(lambda x: _blocks.unit_centers(x, dim), centers)
    (gradient,) = unit_vjp(to_centers(unit, classes.ids(i)))
    moved = _descend(centers, opt, gradient, task.head_tx, scalars)
    slots = loops.write(slots, i, moved)
    # Not a dot product: accelerators compute that in less than float32.
    squares = loops.write(squares, i, jnp.sum(jnp.square(gradient)))
    # Reads one block ahead. With the read where it is used, XLA would fuse
    # reading and writing of the buffer, and copy all of it in every trip.
    return loops.read(slots, i + 1), slots, squares

  square = jax.ShapeDtypeStruct((), slots[0].dtype)
  carry = (
    loops.read(slots, 0),
    slots,
    loops.empty(layout.local_blocks, square),
  )
  with jax.named_scope('blocks'):
    _, slots, squares = jax.lax.fori_loop(0, trips.blocks, body, carry)
  return slots, squares[: layout.local_blocks]


def backbone(
  task: 'Task',
  state: Any,
  sums: dict[str, Any],
  scalars: Scalars,
  trips: TripCounts,
) -> tuple[dict[str, Any], jax.Array]:
  """Updates the parameters and running statistics of the backbone.

  Args:
    task: the assembled run.
    state: before the step.
    sums: ``gradient`` and ``batch_stats`` as the `RunningTree` over this
      device's groups leaves them, ``[o, ...]`` each.
    scalars: of this step.
    trips: trip counts of the step.

  Returns:
    The fields of the state that change, and the norm of the gradient before it
    is clipped.
  """
  sums = tree_all_reduce(sums, task.layout.devices)

  def move(values):
    params, opt = _descend(
      values['params'],
      values['backbone_opt'],
      values['gradient'],
      task.backbone_tx,
      scalars,
    )
    return {
      'params': params,
      'backbone_opt': opt,
      'batch_stats': jax.tree.map(
        lambda x: x / task.layout.num_groups, values['batch_stats']
      ),
      'norm': optax.tree.norm(values['gradient']),
      # Not returned unchanged: see `update_in_place`.
      'gradient': jax.tree.map(jnp.negative, values['gradient']),
    }

  norm = jnp.zeros((), jax.tree.leaves(sums['gradient'])[0].dtype)
  moved = loops.update_in_place(
    move,
    {
      'params': state.params,
      'backbone_opt': state.backbone_opt,
      'norm': norm,
    }
    | sums,
    trips.once,
  )
  del moved['gradient']
  norm = moved.pop('norm')
  return moved, norm
