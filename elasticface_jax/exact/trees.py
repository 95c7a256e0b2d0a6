# SPDX-License-Identifier: Apache-2.0
"""Sums whose order no hardware can change.

Floating-point addition is not associative, so a sum that is to give the same
bits on 1 and on 8 devices needs one order for all of them. That order is a
binary tree over the parts (groups of samples, blocks of classes), whose number
the config fixes and the device count does not change: neighbours are added,
then neighbours of those sums, and so on; an odd last part moves up unchanged.

Letters: P parts in all, n devices, p = P / n = o * 2^m parts on each device,
o odd.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax.exact import loops

Tree = Any  # A pytree of arrays.


class Devices(NamedTuple):
  """The mesh axis that parts are sharded over; by default, one device."""

  axis_name: str | None = None
  size: int = 1

  def index(self) -> jax.Array | int:
    """Returns this device's index on the axis."""
    return jax.lax.axis_index(self.axis_name) if self.axis_name else 0

  def gather(self, parts: jax.Array) -> jax.Array:
    """Gathers the parts of all devices, in order, on every device.

    Args:
      parts: ``[p, ...]``.

    Returns:
      ``[n * p, ...]``.
    """
    if self.size == 1:
      return parts
    return jax.lax.all_gather(parts, self.axis_name, tiled=True)

  def exchange(self, parts: jax.Array) -> jax.Array:
    """Sends part i to device i, and receives one from each device.

    Args:
      parts: by receiver, ``[n, ...]``.

    Returns:
      By sender, ``[n, ...]``.
    """
    if self.size == 1:
      return parts
    return jax.lax.all_to_all(parts, self.axis_name, 0, 0)


def _add_neighbours(parts: jax.Array) -> jax.Array:
  """Adds one level of the tree: ``[P, ...]`` to ``[ceil(P / 2), ...]``."""
  even = parts.shape[0] // 2 * 2
  sums = parts[0:even:2] + parts[1:even:2]
  return jnp.concatenate([sums, parts[even:]])


def tree_sum(parts: jax.Array) -> jax.Array:
  """Adds parts along the first dim as a fixed binary tree.

  Args:
    parts: the summands, any float dtype, ``[P, ...]``.

  Returns:
    Their sum, same dtype, ``[...]``.

  Examples:
    >>> print(tree_sum(jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])))
    15.0
  """
  while parts.shape[0] > 1:
    parts = _add_neighbours(parts)
  return parts[0]


def _local_levels(parts: jax.Array) -> jax.Array:
  """Adds the levels of the tree that stay inside one device.

  Neighbours on a device are neighbours in the full tree only while the number
  of parts on a device is even, so the local work stops there. With the usual
  power of two, one part is left to send; with an odd number, more bytes move.
  """
  while parts.shape[0] % 2 == 0:
    parts = _add_neighbours(parts)
  return parts


def _factors_of_two(count: int) -> int:
  """Returns m, for ``count = o * 2^m``, o odd."""
  return (count & -count).bit_length() - 1


def _trailing_zeros(number: jax.Array | int) -> jax.Array:
  """Counts how often 2 divides a number > 0."""
  number = jnp.asarray(number)
  return jax.lax.population_count(~number & (number - 1))


class RunningTree(NamedTuple):
  """The local levels of the tree, computed as its parts arrive one by one.

  A binary counter: one sum of each size 1, 2, 4, ... waits for a neighbour of
  its own size, so m + o sums are held, where a buffer of all parts would hold
  p. It is meant as the carry of a loop over parts. The shapes of a part, and
  so the arithmetic, are the same for any p. It needs no spare slot (see
  `loops`), since its additions have a loop of their own.

  Examples:
    >>> tree = RunningTree.start(6, 6, jnp.zeros(()))
    >>> for i in range(6):
    ...   tree = tree.add(i, jnp.float32(i))
    >>> print(tree.sums(6))
    [1. 5. 9.]
  """

  nodes: Tree  # m sums that wait, then o that are complete, [m + o, ...] each.
  levels: jax.Array  # m, traced where p is.

  @classmethod
  def start(
    cls, count: int, trip_count: jax.Array | int, like: Tree
  ) -> 'RunningTree':
    """Starts a tree without parts.

    Args:
      count: p.
      trip_count: p again, traced where bits must not depend on it.
      like: pytree with the shapes and dtypes of a part.

    Returns:
      The tree before its first part.
    """
    m = _factors_of_two(count)
    nodes = jax.tree.map(
      lambda x: jax.lax.empty((m + (count >> m), *x.shape), x.dtype), like
    )
    return cls(nodes, _trailing_zeros(trip_count))

  def add(self, index: jax.Array | int, part: Tree) -> 'RunningTree':
    """Adds part number `index`; they come in order, from 0."""
    full = jnp.minimum(_trailing_zeros(index + 1), self.levels)

    def merge(level, total):
      return jax.tree.map(jnp.add, loops.read(self.nodes, level), total)

    with jax.named_scope('merge'):
      total = jax.lax.fori_loop(0, full, merge, part)
    done = self.levels + (index >> self.levels)
    place = jnp.where(full < self.levels, full, done)
    return RunningTree(loops.write(self.nodes, place, total), self.levels)

  def sums(self, count: int) -> Tree:
    """Returns the o sums that the local levels leave of `count` parts.

    The bits of `tree_sum`, `tree_reduce_scatter` and `tree_all_reduce` of
    these sums equal those of the parts.

    Args:
      count: p.

    Returns:
      ``[o, ...]`` each.
    """
    m = _factors_of_two(count)
    return jax.tree.map(lambda x: x[m:], self.nodes)


def tree_reduce_scatter(parts: jax.Array, devices: Devices) -> jax.Array:
  """Adds the parts of all devices; every device keeps its rows of the sum.

  The bits equal those of `tree_sum` over all P parts on one device, for any
  number of devices.

  Args:
    parts: this device's summands, in the order of the mesh axis,
      ``[p, R, ...]``; R is a multiple of ``devices.size``.
    devices: where the parts are.

  Returns:
    Rows ``[d * R / n, (d + 1) * R / n)`` of the sum on device d,
    ``[R / n, ...]``.
  """
  with jax.named_scope('over_devices'):
    parts = _local_levels(parts)
    p, r, *rest = parts.shape
    n = devices.size
    if n > 1:
      rows = parts.reshape(p, n, r // n, *rest)
      rows = devices.exchange(jnp.moveaxis(rows, 1, 0))  # [n, p, R / n, ...]
      parts = rows.reshape(n * p, r // n, *rest)
    return tree_sum(parts)


def tree_all_reduce(parts: Tree, devices: Devices) -> Tree:
  """Adds the parts of all devices; every device gets the full sum.

  All-to-all, local tree, all-gather: the bytes of a ring all-reduce, in an
  order that does not depend on the ring. Arrays that end in the same dim are
  sent together as one matrix, and vectors as one vector: a network has
  hundreds of arrays and needs about six messages. A single flat vector would
  need one, but TPUs take longer to lay matrices out as a vector than to send
  them.

  Args:
    parts: this device's summands, in the order of the mesh axis, pytree of
      ``[p, ...]``.
    devices: where the parts are.

  Returns:
    The sums, ``[...]`` each.
  """
  # Before the concatenation, which copies: one part is cheaper than p of them.
  parts = jax.tree.map(_local_levels, parts)
  if devices.size == 1:
    return jax.tree.map(tree_sum, parts)
  leaves, structure = jax.tree.flatten(parts)
  messages: dict[Any, list[int]] = {}
  for i, leaf in enumerate(leaves):
    width = leaf.shape[-1:] if leaf.ndim > 2 else ()
    messages.setdefault((width, leaf.dtype), []).append(i)
  for (width, _), members in messages.items():
    stacked = [leaves[i].reshape(len(leaves[i]), -1, *width) for i in members]
    sums = _all_reduce_rows(jnp.concatenate(stacked, axis=1), devices)
    ends = np.cumsum([x.shape[1] for x in stacked])
    for i, rows in zip(members, jnp.split(sums, ends[:-1]), strict=True):
      leaves[i] = rows.reshape(leaves[i].shape[1:])
  return jax.tree.unflatten(structure, leaves)


def _all_reduce_rows(parts: jax.Array, devices: Devices) -> jax.Array:
  """Computes `tree_all_reduce` of ``[p, R, ...]``."""
  count = parts.shape[1]
  padding = [(0, 0)] * parts.ndim
  padding[1] = 0, -count % devices.size
  sums = tree_reduce_scatter(jnp.pad(parts, padding), devices)
  return devices.gather(sums)[:count]
