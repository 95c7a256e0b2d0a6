# SPDX-License-Identifier: Apache-2.0
"""Forward and backward over groups of samples, one group at a time.

A group is what shares BatchNorm statistics. The backbone runs on one group at
a time in a loop, so that its arithmetic is the same however many groups a
device holds (see `losses.rows` for what that takes). The head stands between
forward and backward, so what backward needs is kept: the residuals of
`jax.vjp`, flattened, a row for each group, end to end. Memory grows with the
groups on a device, as it does for one merged batch.

Letters: g groups on this device, P parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.losses import rows

Tree = Any  # A pytree of arrays.


class Residuals(NamedTuple):
  """What the backward loop needs of the forward loop."""

  kept: list[jax.Array]  # A row for each group.
  rows: rows.EndToEnd  # How they lie there.
  shared: list[jax.Array | None]  # Parameters themselves; None: in `kept`.
  structure: jax.tree_util.PyTreeDef  # Of the function that `jax.vjp` gave.


def _split(leaves: list, params: Tree) -> tuple[list, list]:
  """Sorts residuals into those to keep and those that are parameters.

  A convolution's residuals include its kernel. A row of that for each group
  would be a copy of all parameters for each group.
  """
  known = {id(p) for p in jax.tree.leaves(params)}
  shared = [leaf if id(leaf) in known else None for leaf in leaves]
  kept = [x for x, s in zip(leaves, shared, strict=True) if s is None]
  return kept, shared


def forward(
  function: Callable[[Tree, Tree], tuple[Tree, Tree]],
  params: Tree,
  inputs: Tree,
  trip_count: jax.Array,
) -> tuple[Tree, Tree, Residuals]:
  """Runs ``function(params, group_inputs) -> (outputs, aux)`` on every group.

  Args:
    function: differentiated with respect to ``params``.
    params: pytree.
    inputs: pytree, ``[g, ...]`` each.
    trip_count: g, as a traced int32.

  Returns:
    Outputs and aux, ``[g, ...]`` each, and the residuals for `backward`.
  """
  count = jax.tree.leaves(inputs)[0].shape[0]
  inputs = rows.at_least_two(inputs)
  traced = {}  # What is not an array leaves the trace through here.

  def run(i):
    group_inputs = rows.read(inputs, i)
    outputs, vjp, aux = jax.vjp(
      lambda p: function(p, group_inputs), params, has_aux=True
    )
    leaves, traced['structure'] = jax.tree.flatten(vjp)
    kept, traced['shared'] = _split(leaves, params)
    return outputs, aux, kept

  *like, like_kept = jax.eval_shape(run, jax.ShapeDtypeStruct((), jnp.int32))
  long = rows.EndToEnd(count, like_kept)

  def body(i, buffers):
    made, kept = buffers
    *row, row_kept = run(i)
    return rows.write(made, i, row), long.write(kept, i, row_kept)

  (outputs, aux), kept = jax.lax.fori_loop(
    0, trip_count, body, (rows.empty(count, like), long.empty())
  )
  residuals = Residuals(kept, long, traced['shared'], traced['structure'])
  return *jax.tree.map(lambda x: x[:count], (outputs, aux)), residuals


def backward(
  residuals: Residuals, cotangents: Tree, trip_count: jax.Array
) -> jax.Array:
  """Pulls every group's cotangents back to the parameters.

  Args:
    residuals: from `forward`.
    cotangents: of its outputs, ``[g, ...]`` each.
    trip_count: g, as a traced int32.

  Returns:
    The gradient of each group, flattened in the order of the parameters'
    leaves, ``[g, P]``: one array, so that one collective moves it.
  """
  count = jax.tree.leaves(cotangents)[0].shape[0]
  cotangents = rows.at_least_two(cotangents)

  def run(i):
    kept = iter(residuals.rows.read(residuals.kept, i))
    leaves = [next(kept) if s is None else s for s in residuals.shared]
    vjp = jax.tree.unflatten(residuals.structure, leaves)
    (gradients,) = vjp(rows.read(cotangents, i))
    return flatten(gradients)

  like = jax.eval_shape(run, jax.ShapeDtypeStruct((), jnp.int32))
  long = rows.EndToEnd(count, like)
  gradients = jax.lax.fori_loop(
    0, trip_count, lambda i, x: long.write(x, i, run(i)), long.empty()
  )
  return gradients[:-1].reshape(count, -1)


def flatten(tree: Tree) -> jax.Array:
  """All leaves in one vector, ``[P]``."""
  return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def unflatten(vector: jax.Array, like: Tree) -> Tree:
  """The inverse of `flatten`, with the shapes of `like`."""
  leaves, structure = jax.tree.flatten(like)
  ends = []
  for leaf in leaves:
    ends.append((ends[-1] if ends else 0) + leaf.size)
  parts = jnp.split(vector, ends[:-1])
  parts = [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(structure, parts)
