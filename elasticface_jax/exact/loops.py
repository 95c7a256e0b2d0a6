# SPDX-License-Identifier: Apache-2.0
"""Loops whose compiled arithmetic does not depend on their length.

A device holds some groups of samples and some blocks of classes; how many
depends on the number of devices. A loop over them must compile to the same
arithmetic whether there are eight or one, or the last bits of the result would
depend on the number of devices. Two things see to that, and both are needed:

- the trip count is a traced value: a constant 1 is unrolled, and the body fused
  with its surroundings;
- inputs and outputs are *slots* of buffers that have at least two, so that
  reading a slot is never reading the full buffer, which XLA folds away.

A loop is also a fusion barrier: XLA fuses nothing across its edge. `isolate`
and `update_in_place` are loops of one trip that serve as such a barrier alone,
around arithmetic whose neighbours (a collective on several devices, nothing on
one) depend on the number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # A pytree of arrays.


def with_spare(buffers: Tree) -> Tree:
  """Appends a second slot to buffers that have one; copies those."""

  def pad(x):
    if x.shape[0] > 1:
      return x
    return jnp.concatenate([x, jax.lax.empty(x.shape, x.dtype)])

  return jax.tree.map(pad, buffers)


def empty(count: int, like: Tree) -> Tree:
  """Allocates buffers of at least two slots.

  Args:
    count: number of slots; each is to be written before it is read.
    like: pytree with the shape and dtype of a slot.

  Returns:
    ``[max(count, 2), ...]`` each, with unspecified contents.
  """
  return jax.tree.map(
    lambda x: jax.lax.empty((max(count, 2), *x.shape), x.dtype), like
  )


def read(buffers: Tree, index: jax.Array) -> Tree:
  """Reads slot `index` of every buffer."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), buffers
  )


def write(buffers: Tree, index: jax.Array, values: Tree) -> Tree:
  """Replaces slot `index` of every buffer; in place inside a loop."""
  return jax.tree.map(
    lambda x, v: jax.lax.dynamic_update_index_in_dim(x, v, index, 0),
    buffers,
    values,
  )


def stack(
  function: Callable[[jax.Array], Tree],
  count: int,
  trip_count: jax.Array | int | None = None,
) -> Tree:
  """Calls a function on 0, 1, 2, ... in a loop and stacks what it returns.

  Args:
    function: maps an index to the contents of a slot.
    count: number of calls.
    trip_count: `count` again, traced where bits must not depend on it.

  Returns:
    ``[count, ...]`` each.

  Examples:
    >>> print(stack(lambda i: i * i, 4))
    [0 1 4 9]
  """
  like = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32))
  buffers = jax.lax.fori_loop(
    0,
    count if trip_count is None else trip_count,
    lambda i, buffers: write(buffers, i, function(i)),
    empty(count, like),
  )
  return jax.tree.map(lambda x: x[:count], buffers)


def map_slots(
  function: Callable[[Tree], Tree], inputs: Tree, trip_count: jax.Array | int
) -> Tree:
  """Calls a function on one slot after another, in a loop.

  Args:
    function: maps the contents of a slot to those of another.
    inputs: ``[count, ...]`` each.
    trip_count: count, traced where bits must not depend on it.

  Returns:
    ``[count, ...]`` each.
  """
  count = jax.tree.leaves(inputs)[0].shape[0]
  inputs = with_spare(inputs)
  return stack(lambda i: function(read(inputs, i)), count, trip_count)


def isolate(
  function: Callable[[Tree], Tree], inputs: Tree, once: jax.Array
) -> Tree:
  """Calls a function in a loop of one trip, a fusion barrier.

  Args:
    function: pure. All that its arithmetic depends on is in `inputs`, except
      keys and scalars: XLA may move arithmetic on other arrays that it closes
      over out of the loop.
    inputs: small arrays: they are copied.
    once: 1, as a traced int32.

  Returns:
    ``function(inputs)``.
  """
  inputs = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
  with jax.named_scope('once'):
    outputs = map_slots(function, inputs, once)
  return jax.tree.map(lambda x: x[0], outputs)


def update_in_place(
  function: Callable[[Tree], Tree], values: Tree, once: jax.Array
) -> Tree:
  """Calls a function in a loop of one trip, as `isolate`, without copies.

  Args:
    function: pure. It replaces all of its arguments by others of the same
      structure, shapes and dtypes; XLA may take a value that it returns
      unchanged out of the loop.
    values: arrays of any size.
    once: 1, as a traced int32.

  Returns:
    ``function(values)``.
  """
  with jax.named_scope('once'):
    return jax.lax.fori_loop(
      0, once, lambda _, values: function(values), values
    )


def read_entries(buffers: Tree, index: jax.Array, places: jax.Array) -> Tree:
  """Gathers some entries of slot `index` of every buffer.

  Reads the entries alone and never the full slot.

  Args:
    buffers: ``[k, c, ...]`` each.
    index: of the slot.
    places: indices of the entries, increasing and distinct; c or more is out
      of range and reads as zeros, ``[s]``.

  Returns:
    ``[s, ...]`` each.
  """
  return jax.tree.map(
    lambda x: x.at[index, places].get(
      mode='fill',
      fill_value=0,
      indices_are_sorted=True,
      unique_indices=True,
    ),
    buffers,
  )


def write_entries(
  buffers: Tree, index: jax.Array, places: jax.Array, values: Tree
) -> Tree:
  """Scatters what `read_entries` gathered; in place inside a loop.

  All other entries keep their bits; values of places out of range are dropped.
  """
  return jax.tree.map(
    lambda x, v: x.at[index, places].set(
      v, mode='drop', indices_are_sorted=True, unique_indices=True
    ),
    buffers,
    values,
  )
