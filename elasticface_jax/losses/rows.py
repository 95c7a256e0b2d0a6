# SPDX-License-Identifier: Apache-2.0
"""Rows of loop buffers: groups and blocks, one at a time, always alike.

A loop over the rows of a buffer must compile to the same arithmetic whether a
device holds eight rows or one, or the last bit of the result would tell how
many devices there are. Two things see to that, and both are needed: the trip
count is a traced value (a constant 1 is unrolled and fused with its
surroundings), and every buffer is longer than a row, most by having at least
two (so that reading a row is never reading the whole buffer, which XLA folds
away).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # A pytree of arrays.


def at_least_two(rows: Tree) -> Tree:
  """Appends a row of zeros to buffers of one row; costs a copy of those."""

  def pad(x):
    if x.shape[0] > 1:
      return x
    return jnp.concatenate([x, jnp.zeros_like(x)])

  return jax.tree.map(pad, rows)


def empty(count: int, like: Tree) -> Tree:
  """Buffers for `count` rows, each of the shape and dtype of `like`."""
  return jax.tree.map(
    lambda x: jnp.zeros((max(count, 2), *x.shape), x.dtype), like
  )


def read(rows: Tree, index: jax.Array) -> Tree:
  """Row `index` of every buffer."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), rows
  )


def write(rows: Tree, index: jax.Array, row: Tree) -> Tree:
  """The buffers with row `index` replaced; in place inside a loop."""
  return jax.tree.map(
    lambda x, r: jax.lax.dynamic_update_index_in_dim(x, r, index, 0), rows, row
  )


def fill(
  function: Callable[[jax.Array], Tree],
  count: int,
  trip_count: jax.Array | int | None = None,
) -> Tree:
  """Buffers whose rows a function makes, one after the other, in a loop.

  Args:
    function: from the index of a row to the row.
    count: rows.
    trip_count: the same number; traced where bits must not depend on it.

  Returns:
    ``[max(count, 2), ...]`` each.
  """
  like = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32))
  return jax.lax.fori_loop(
    0,
    count if trip_count is None else trip_count,
    lambda i, buffers: write(buffers, i, function(i)),
    empty(count, like),
  )


def on_each(
  function: Callable[[Tree], Tree], inputs: Tree, trip_count: jax.Array | int
) -> Tree:
  """Calls a function on one row after the other, in a loop.

  Args:
    function: from a row to a row.
    inputs: ``[count, ...]`` each.
    trip_count: the same number; traced where bits must not depend on it.

  Returns:
    ``[count, ...]`` each.
  """
  count = jax.tree.leaves(inputs)[0].shape[0]
  inputs = at_least_two(inputs)
  outputs = fill(lambda i: function(read(inputs, i)), count, trip_count)
  return jax.tree.map(lambda x: x[:count], outputs)


class EndToEnd:
  """Buffers of rows too large for a second one where one is all there are.

  Rows lie end to end along their first dim, with one entry to spare.

  Args:
    count: rows.
    like: pytree with the shape and dtype of a row.
  """

  def __init__(self, count: int, like: Tree):
    self._like = like
    self._count = count

  def empty(self) -> Tree:
    """The buffers, ``[count * n + 1, ...]`` for rows ``[n, ...]``."""

    def zeros(x):
      n, *rest = x.shape or (1,)
      return jnp.zeros((self._count * n + 1, *rest), x.dtype)

    return jax.tree.map(zeros, self._like)

  def write(self, buffers: Tree, index: jax.Array, row: Tree) -> Tree:
    """The buffers with row `index` replaced; in place inside a loop."""

    def put(x, row):
      row = row.reshape(row.shape or (1,))
      start = index * len(row)
      return jax.lax.dynamic_update_slice_in_dim(x, row, start, 0)

    return jax.tree.map(put, buffers, row)

  def read(self, buffers: Tree, index: jax.Array) -> Tree:
    """Row `index` of every buffer."""

    def get(x, like):
      n = like.shape[0] if like.shape else 1
      row = jax.lax.dynamic_slice_in_dim(x, index * n, n)
      return row.reshape(like.shape)

    return jax.tree.map(get, buffers, self._like)


def read_places(rows: Tree, index: jax.Array, places: jax.Array) -> Tree:
  """Of row `index` of every buffer, only `places`; zeros where there is none.

  Reads what it gives, and not the row.

  Args:
    rows: buffers, ``[k, c, ...]`` each.
    index: of the row.
    places: in the row, rising, each once; c or more is no place, ``[s]``.

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
    rows,
  )


def write_places(
  rows: Tree, index: jax.Array, places: jax.Array, values: Tree
) -> Tree:
  """The inverse of `read_places`; in place inside a loop.

  All other places keep their bits, and values for no place are dropped.
  """
  return jax.tree.map(
    lambda x, v: x.at[index, places].set(
      v, mode='drop', indices_are_sorted=True, unique_indices=True
    ),
    rows,
    values,
  )
