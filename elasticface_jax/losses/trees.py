# SPDX-License-Identifier: Apache-2.0
"""Sums whose order no hardware can change.

Floating-point addition is not associative, so a sum that is to give the same
bits on 1 and on 8 devices needs one order for all of them. Here it is a binary
tree over the parts (groups of samples, blocks of classes), which the config
counts and the device count does not: neighbours are added, then neighbours of
those sums, and so on; an odd last part moves up unchanged.

Letters: P parts in all, n devices, p = P / n = o * 2^m parts on each device,
o odd.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.losses import rows


class Devices(NamedTuple):
  """The mesh axis that parts are spread over; by default, one device."""

  axis_name: str | None = None
  size: int = 1

  def index(self) -> jax.Array | int:
    """This device's place on the axis."""
    return jax.lax.axis_index(self.axis_name) if self.axis_name else 0

  def gather(self, parts: jax.Array) -> jax.Array:
    """The parts of all devices, in order, on every device."""
    if self.axis_name is None:
      return parts
    return jax.lax.all_gather(parts, self.axis_name, tiled=True)


def _add_neighbours(parts: jax.Array) -> jax.Array:
  """One level of the tree: ``[P, ...]`` to ``[ceil(P / 2), ...]``."""
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
  """The levels of the tree that stay inside one device.

  Neighbours here are neighbours in the whole tree only while the number of
  parts on a device is even, so the work stops there. With the usual power of
  two, one part is left to send; with an odd number, more bytes move.
  """
  while parts.shape[0] % 2 == 0:
    parts = _add_neighbours(parts)
  return parts


def _factors_of_two(count: int) -> int:
  """m, for ``count = o * 2^m``, o odd."""
  return (count & -count).bit_length() - 1


def _trailing_zeros(number: jax.Array | int) -> jax.Array:
  """Of the binary digits of a number > 0: how often 2 divides it."""
  number = jnp.asarray(number)
  return jax.lax.population_count(~number & (number - 1))


class RunningTree(NamedTuple):
  """The local levels of the tree, while its parts come one after another.

  A binary counter: sums of 1, 2, 4, ... parts wait, one of each, for a
  neighbour of their own size. So m + o parts are held where a buffer of all
  would hold p. Made for the carry of a loop over parts; all shapes but that of
  the buffer, and so the arithmetic, are the same for any p (see `rows`).

  Examples:
    >>> tree = RunningTree.start(6, 6, jnp.zeros(()))
    >>> for i in range(6):
    ...   tree = tree.add(i, jnp.float32(i))
    >>> print(tree.sums(6))
    [1. 5. 9.]
  """

  nodes: jax.Array  # m sums that wait, then o that are done.
  levels: jax.Array  # m, traced where p is.

  @classmethod
  def start(
    cls, count: int, trip_count: jax.Array | int, part: jax.Array
  ) -> 'RunningTree':
    """No parts yet.

    Args:
      count: p.
      trip_count: p again; traced where bits must not depend on it.
      part: an array of a part's shape and dtype, or its `ShapeDtypeStruct`.

    Returns:
      The tree before its first part.
    """
    m = _factors_of_two(count)
    nodes = rows.empty(m + (count >> m), part)
    return cls(nodes, _trailing_zeros(trip_count))

  def add(self, index: jax.Array | int, part: jax.Array) -> 'RunningTree':
    """The tree with part number `index`; they come in order, from 0."""
    full = jnp.minimum(_trailing_zeros(index + 1), self.levels)

    def merge(level, total):
      return rows.read(self.nodes, level) + total

    total = jax.lax.fori_loop(0, full, merge, part)
    done = self.levels + (index >> self.levels)
    place = jnp.where(full < self.levels, full, done)
    return RunningTree(rows.write(self.nodes, place, total), self.levels)

  def sums(self, count: int) -> jax.Array:
    """What the local levels leave of all `count` parts, ``[o, ...]``.

    The bits of `tree_sum`, `tree_sum_scatter` and `tree_sum_everywhere` of
    these sums equal those of the parts.
    """
    m = _factors_of_two(count)
    return self.nodes[m : m + (count >> m)]


def tree_sum_scatter(parts: jax.Array, devices: Devices) -> jax.Array:
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
  parts = _local_levels(parts)
  if devices.axis_name is not None:
    p, r, n = *parts.shape[:2], devices.size
    rows = parts.reshape(p, n, r // n, *parts.shape[2:])
    # [p, n, R/n, ...], n the receiver -> [n, p, R/n, ...], n the sender.
    rows = jax.lax.all_to_all(rows, devices.axis_name, 1, 0)
    parts = rows.reshape(n * p, r // n, *parts.shape[2:])
  return tree_sum(parts)


def tree_sum_everywhere(parts: jax.Array, devices: Devices) -> jax.Array:
  """Adds the parts of all devices; every device gets the whole sum.

  All-to-all, local tree, all-gather: the bytes of a ring all-reduce, in an
  order that does not depend on the ring.

  Args:
    parts: this device's summands, in the order of the mesh axis, ``[p, R]``.
    devices: where the parts are.

  Returns:
    The sum, ``[R]``.
  """
  # Before padding: a copy of one row is cheaper than of all.
  parts = _local_levels(parts)
  size = parts.shape[1]
  parts = jnp.pad(parts, ((0, 0), (0, -size % devices.size)))
  return devices.gather(tree_sum_scatter(parts, devices))[:size]
