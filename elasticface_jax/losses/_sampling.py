# SPDX-License-Identifier: Apache-2.0
r"""Which classes of a block take part in a step: all of them, or a sample.

With very many classes, most of a step's work is on negatives that teach it
little. Partial FC leaves most of them out: each step draws some of the classes
of every block, those of the batch itself always among them. The softmax runs
over the classes drawn, and no other class centre is read, moved or decayed.

`AllClasses` and `Sample` are the two answers, with the same methods: `take`
cuts the classes that take part out of buffers ``[k, c, ...]``, once a step;
`numbers` says which they are; `put` brings them back.

Letters: B samples, C classes, K blocks in all, k blocks on this device, c
classes a block, s classes of a block that take part.

References:
  `Partial FC: Training 10 Million Identities on a Single Machine
  <https://arxiv.org/abs/2010.05222>`_, ICCVW 2021, and `Killing Two Birds with
  One Stone <https://arxiv.org/abs/2203.15565>`_, CVPR 2022.
  Differs from the authors' code in: blocks are those of the config and the
  draw follows from the step's key, so that any number of devices takes the
  same classes. There, each GPU draws from its own share, and a share of
  classes is rounded down.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax.exact import loops

Tree = Any  # A pytree of arrays.


class AllClasses(NamedTuple):
  """Every class of every block; s = c, padding included."""

  first_block: jax.Array | int  # Number of the first block on this device.
  block_size: int  # c

  def numbers(self, index: jax.Array) -> jax.Array:
    """Returns the classes of block `index` of this device, C and more padding.

    Args:
      index: of the block, from 0 on each device.

    Returns:
      int32 ``[s]``.
    """
    first = (self.first_block + index) * self.block_size
    return first + jnp.arange(self.block_size, dtype=jnp.int32)

  def take(self, buffers: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers themselves, with a spare slot if they have one.

    Args:
      buffers: ``[k, c, ...]`` each.
      trip_count: k, as a traced int32.

    Returns:
      ``[max(k, 2), s, ...]`` each (see `loops`).
    """
    del trip_count
    return loops.with_spare(buffers)

  def put(self, buffers: Tree, slots: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers with what `take` gave replaced by `slots`."""
    del trip_count
    return jax.tree.map(lambda x, s: s[: len(x)], buffers, slots)


class Sample(NamedTuple):
  """Some classes of every block, in rising order.

  Blocks may have more slots than classes drawn: the last ones are of no
  class. These read zeros, and what is put there is dropped.
  """

  places: jax.Array  # In the block; c and more: no class. int32 [k, s]
  classes: jax.Array  # Class numbers; C: no class. int32 [k, s]

  def numbers(self, index: jax.Array) -> jax.Array:
    """Returns the classes of block `index` of this device."""
    return loops.read(self.classes, index)

  def take(self, buffers: Tree, trip_count: jax.Array) -> Tree:
    """Copies the entries of the sampled classes; costs that much memory."""

    def block_of(i):
      return loops.read_entries(buffers, i, loops.read(self.places, i))

    return loops.with_spare(loops.stack(block_of, len(self.places), trip_count))

  def put(self, buffers: Tree, slots: Tree, trip_count: jax.Array) -> Tree:
    """Returns the buffers with those entries replaced, in place in a jit."""

    def body(i, buffers):
      places = loops.read(self.places, i)
      return loops.write_entries(buffers, i, places, loops.read(slots, i))

    return jax.lax.fori_loop(0, trip_count, body, buffers)


def counts(num_classes: int, num_blocks: int, sample_rate: float) -> np.ndarray:
  """Classes to draw from each block, if the batch has no more of its own.

  The rate's share of the real classes of the block, rounded up; of the last,
  padded block too, so that its classes are drawn as often as others.

  Args:
    num_classes: C.
    num_blocks: K.
    sample_rate: in (0, 1].

  Returns:
    int32 ``[K]``.

  Examples:
    >>> print(counts(10, 4, 0.5))
    [2 2 2 1]
  """
  size = -(-num_classes // num_blocks)
  # As it is written: the float 0.1 times 30 is more than 3.
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
) -> Sample:
  """Draws the classes of one step, block by block.

  The batch's own classes are taken first, then others at random, each with the
  same probability, until the block has its share (`counts`). If the batch has
  more than that, exactly its own are taken.

  Args:
    key: typed PRNG key of the step. Block b draws from ``fold_in(key, b)``.
    labels: class of each sample of the whole batch, int32 in ``[0, C)``,
      ``[B]``.
    num_classes: C.
    num_blocks: K.
    sample_rate: share of a block's classes, in (0, 1].
    count: k, blocks on this device.
    first_block: number of the first of these.
    trip_count: k; traced where bits must not depend on it (see `loops`).

  Returns:
    The classes of the k blocks. The number of slots s is the larger of the
    share and B, as all the batch may be of one block; no more than c. So
    blocks should be large enough that B is not what decides.
  """
  size = -(-num_classes // num_blocks)
  shares = counts(num_classes, num_blocks, sample_rate)
  slots = min(size, max(int(shares.max()), labels.shape[0]))
  shares = jnp.asarray(shares)
  each = jnp.arange(size, dtype=jnp.int32)

  def sample_of(i):
    block = first_block + i
    first = block * size
    own = labels - first
    # Negative places would count from the end.
    own = jnp.where(own < 0, size, own)
    is_own = jnp.zeros(size, bool).at[own].set(True, mode='drop')
    # Uniform in [0, 1); below that for the batch's own, above for padding.
    scores = jax.random.uniform(
      jax.random.fold_in(key, block), (size,), jnp.float32
    )
    scores = jnp.where(is_own, -1, scores)
    scores = jnp.where(first + each < num_classes, scores, 2)
    _, places = jax.lax.sort_key_val(scores, each)
    taken = each < jnp.maximum(shares[block], is_own.sum())
    # No class: past the end, each another place.
    places = jnp.sort(jnp.where(taken, places, size + each)[:slots])
    classes = jnp.where(places < size, first + places, num_classes)
    return Sample(places, classes)

  return loops.stack(sample_of, count, trip_count)
