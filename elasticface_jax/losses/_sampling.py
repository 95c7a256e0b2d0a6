# SPDX-License-Identifier: Apache-2.0
r"""Classes of each block that take part in a step: all of them, or a sample.

With very many classes, most of a step's work is on negatives that contribute
little. Partial FC omits most of them: each step draws some of the classes of
every block, always including those of the batch. The softmax runs over the
sampled classes, and no other class centre is read, updated or decayed.

`AllClasses` and `SampledClasses` have the same methods: `take` gathers the
classes that take part from buffers ``[k, c, ...]``, once a step; `ids` returns
their class ids; `put` writes them back.

Letters: B samples, C classes, K blocks in all, k blocks on this device, c
classes of a block, s classes of a block that take part.

References:
  `Partial FC: Training 10 Million Identities on a Single Machine
  <https://arxiv.org/abs/2010.05222>`_, ICCVW 2021, and `Killing Two Birds with
  One Stone <https://arxiv.org/abs/2203.15565>`_, CVPR 2022.
  Differs from the authors' code in: blocks come from the config and the draw
  from the step's key, so that any number of devices draws the same classes.
  There, each GPU draws from its own shard, and the number of classes is
  rounded down.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax.exact import loops

Tree = Any  # A pytree of arrays.

# Rows of a TPU's tile, and classes of a block from which on they matter.
_ROWS, _TILED = 8, 64


class AllClasses(NamedTuple):
  """Every class of every block; s = c, padding included."""

  first_block: jax.Array | int  # Index of the first block on this device.
  block_size: int  # c

  def ids(self, index: jax.Array) -> jax.Array:
    """Returns the class ids of a block; C and above are padding.

    Args:
      index: index of the block, from 0 on each device.

    Returns:
      Class ids, int32 ``[s]``.
    """
    first = (self.first_block + index) * self.block_size
    return first + jnp.arange(self.block_size, dtype=jnp.int32)

  def take(self, buffers: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers, with a spare slot where k is 1.

    Args:
      buffers: ``[k, c, ...]`` each.
      trip_count: k, as a traced int32.

    Returns:
      ``[max(k, 2), s, ...]`` each (see `exact.loops`).
    """
    del trip_count
    return loops.with_spare(buffers)

  def put(self, buffers: Tree, slots: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers with the entries of `take` replaced by `slots`."""
    del trip_count
    return jax.tree.map(lambda x, s: s[: len(x)], buffers, slots)


class SampledClasses(NamedTuple):
  """Some classes of every block, in increasing order.

  A block may have more slots than sampled classes: the last slots then hold no
  class. They read as zeros, and values put there are dropped.
  """

  places: jax.Array  # In the block; c and above: no class. int32 [k, s]
  classes: jax.Array  # Class ids; C: no class. int32 [k, s]

  def ids(self, index: jax.Array) -> jax.Array:
    """Returns the class ids of block `index` of this device."""
    return loops.read(self.classes, index)

  def take(self, buffers: Tree, trip_count: jax.Array) -> Tree:
    """Copies the entries of the sampled classes; needs memory for the copy."""

    def gather_block(i):
      return loops.read_entries(buffers, i, loops.read(self.places, i))

    return loops.with_spare(
      loops.stack(gather_block, len(self.places), trip_count)
    )

  def put(self, buffers: Tree, slots: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers with these entries replaced, in place in a jit."""

    def body(i, buffers):
      places = loops.read(self.places, i)
      return loops.write_entries(buffers, i, places, loops.read(slots, i))

    return jax.lax.fori_loop(0, trip_count, body, buffers)


def block_size(num_classes: int, num_blocks: int) -> int:
  """Computes the number of classes of a block, the padding included.

  Blocks of more than a few classes are a multiple of 8. A TPU stores the last
  two dims of an array in tiles of 8 by 128, and makes another dim the last but
  one if that avoids padding: all class centres and their momentum would be
  transposed before a step, and back after it.

  Args:
    num_classes: C.
    num_blocks: K.

  Returns:
    c.

  Examples:
    >>> block_size(85_742, 16), block_size(100, 10)
    (5360, 10)
  """
  size = -(-num_classes // num_blocks)
  # Smaller ones cost little to transpose, and more to pad.
  return size if size < _TILED else -(-size // _ROWS) * _ROWS


def block_shares(
  num_classes: int, num_blocks: int, sample_rate: float
) -> np.ndarray:
  """Computes the number of classes to draw from each block.

  It is the rate times the block's classes without padding, rounded up; in the
  last, padded block too, so that its classes are drawn as often as others. A
  block with more classes of the batch than that draws all of them (`draw`).

  Args:
    num_classes: C.
    num_blocks: K.
    sample_rate: share of the classes, in (0, 1].

  Returns:
    Numbers of classes, int32 ``[K]``.

  Examples:
    >>> print(block_shares(10, 4, 0.5))
    [2 2 2 1]
  """
  size = block_size(num_classes, num_blocks)
  # The decimal as written: the float 0.1 times 30 is more than 3.
  rate = Fraction(str(sample_rate))
  share = {n: math.ceil(rate * n) for n in (0, num_classes % size, size)}
  real = np.clip(num_classes - size * np.arange(num_blocks), 0, size)
  return np.asarray([share[n] for n in real.tolist()], np.int32)


def draw(
  key: jax.Array,
  labels: jax.Array,
  *,
  num_classes: int,
  num_blocks: int,
  sample_rate: float,
  count: int,
  first_block: jax.Array | int = 0,
  trip_count: jax.Array | int | None = None,
) -> SampledClasses:
  """Draws the classes of one step, block by block.

  Each block takes the batch's own classes first, then others at random, each
  with the same probability, until it has its share (`block_shares`). If the
  batch has more classes there than that, the block takes exactly those.

  Args:
    key: typed PRNG key of the step. Block b draws from ``fold_in(key, b)``.
    labels: class of each sample of the global batch, int32 in ``[0, C)``,
      ``[B]``.
    num_classes: C.
    num_blocks: K.
    sample_rate: share of a block's classes, in (0, 1].
    count: k, blocks on this device.
    first_block: index of the first of these.
    trip_count: k; traced where bits must not depend on it (see `exact.loops`).

  Returns:
    The classes of the k blocks. The number of slots s is the larger of the
    share and B, because one block may hold the classes of the whole batch; at
    most c. So choose blocks large enough that B does not decide.
  """
  size = block_size(num_classes, num_blocks)
  shares = block_shares(num_classes, num_blocks, sample_rate)
  slots = min(size, max(int(shares.max()), labels.shape[0]))
  shares = jnp.asarray(shares)
  each = jnp.arange(size, dtype=jnp.int32)

  def draw_block(i):
    block = first_block + i
    first = block * size
    own = labels - first
    # Negative places would count from the end.
    own = jnp.where(own < 0, size, own)
    is_own = jnp.zeros(size, bool).at[own].set(True, mode='drop')
    # Uniform in [0, 1); lower for the batch's own classes, higher for padding.
    scores = jax.random.uniform(
      jax.random.fold_in(key, block), (size,), jnp.float32
    )
    scores = jnp.where(is_own, -1, scores)
    scores = jnp.where(first + each < num_classes, scores, 2)
    _, places = jax.lax.sort_key_val(scores, each)
    taken = each < jnp.maximum(shares[block], is_own.sum())
    # Slots without a class: past the end, each at a different place.
    places = jnp.sort(jnp.where(taken, places, size + each)[:slots])
    classes = jnp.where(places < size, first + places, num_classes)
    return SampledClasses(places, classes)

  return loops.stack(draw_block, count, trip_count)
