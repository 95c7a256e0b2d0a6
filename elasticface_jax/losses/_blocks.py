# SPDX-License-Identifier: Apache-2.0
r"""Parts of a block-wise margin softmax, which never holds ``[B, C]``.

The classes are divided into blocks of equal size, the last padded. Logits exist
only as ``[B, C / num_blocks]``, one block at a time. Two functions make them:

- `block_statistics` makes a block's logits and keeps three values per sample:
  the largest cosine with another class, and of these cosines as the loss
  changes them the largest and the sum of exponentials.
- `block_cotangents` makes a block's logits again, and from them the gradient of
  the cosines. Its products with the class centres and with the embeddings are
  the gradients of the embeddings and of the class centres.

Two more work on all blocks. `block_target_cosines` computes each sample's
cosine with its own class in ``B * D`` products, without logits. `join_blocks`
combines the statistics of all blocks, changes the target logit by its margin,
and returns the loss and all that the gradient needs, in ``[B]``.

Two callers put these four together: `losses._blockwise`, the public loss, on
one device in two passes over the blocks; and the training step
(`training.turn`), for one group of samples after another, on the blocks of all
devices.

The target cosines come first, so that margins can depend on them (the pairing
of the '+' losses), and so can the change of every other cosine
(CurricularFace). `losses._targets` states which losses can run block by block.

A class may have several sub-centres. Its entry in the class centres then holds
all of them, one after the other, and its cosine is that of the nearest.

Letters: B samples, D embedding size, C classes, K blocks in all, k blocks on
this device, c classes of a block, s of them that take part, u
sub-centres of a class, in most losses one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.exact.trees import tree_sum
from elasticface_jax.losses._arrays import nearest_subcenters, normalize
from elasticface_jax.losses._targets import change_others, change_target

# Precisions of the products of embeddings and class centres;
# checks/head_precision.py measures what each costs in accuracy.
PRECISIONS = 'highest', 'high', 'default'


class Samples(NamedTuple):
  """Values of each sample that a block needs."""

  unit_embeddings: jax.Array  # Norm 1, [B, D].
  labels: jax.Array  # Integer in [0, C), [B].
  target_cosines: jax.Array  # Before the margin, [B].
  margins: tuple[jax.Array, ...]  # Margins of the head's kind, [B] each.


class BlockStatistics(NamedTuple):
  """Statistics of other classes' cosines in a block, ``[B]`` each."""

  largest_cosine: jax.Array
  largest: jax.Array  # Largest cosine as the loss changes it.
  total: jax.Array  # Sum of exp(scale * (changed cosine - largest)).


class SoftmaxParts(NamedTuple):
  """Loss and parts of its gradient over all blocks, ``[B]`` each."""

  loss: jax.Array  # In nats.
  largest_cosine: jax.Array  # With another class, before any change.
  largest_other: jax.Array  # Largest cosine with another class, as changed.
  target_gradients: jax.Array  # d loss / d target cosine.
  largest_gradients: jax.Array  # d loss / d largest_other.
  margin_gradients: tuple[jax.Array, ...]  # d loss / d each margin.


class Cotangents(NamedTuple):
  """Values from which the gradients of all cosines follow, ``[B]`` each."""

  largest_other: jax.Array  # As in `SoftmaxParts`.
  to_target: jax.Array  # d objective / d target cosine.
  to_largest: jax.Array  # d objective / d largest_other.


class Head(NamedTuple):
  """Hyperparameters of the softmax."""

  num_classes: int  # Without padding.
  scale: float
  kind: str = 'arc'  # A name in `_targets.KINDS`.
  gradient: str = 'exact'  # Gradient of the target; see `change_target`.
  precision: str = 'highest'  # A name in `PRECISIONS`.

  def target(
    self, cosines: jax.Array, margins: tuple[jax.Array, ...]
  ) -> jax.Array:
    """Computes the target cosines after their margins, ``[B]``."""
    return change_target(
      cosines, margins, kind=self.kind, gradient=self.gradient
    )

  def others(
    self,
    cosines: jax.Array,
    target_cosines: jax.Array,
    margins: tuple[jax.Array, ...],
  ) -> jax.Array:
    """Computes other classes' cosines ``[B, s]`` as the loss changes them."""
    return change_others(cosines, target_cosines, margins, kind=self.kind)


def to_blocks(class_centers: jax.Array, num_blocks: int) -> jax.Array:
  """Splits ``[C, u D]`` into ``[K, c, u D]``; zeros pad the last block."""
  size = -(-class_centers.shape[0] // num_blocks)
  missing = num_blocks * size - class_centers.shape[0]
  padded = jnp.pad(class_centers, ((0, missing), (0, 0)))
  return padded.reshape(num_blocks, size, class_centers.shape[1])


def product(
  a: jax.Array, b: jax.Array, dims: tuple[int, int], precision: str
) -> jax.Array:
  """Multiplies matrices: contracts dim ``dims[0]`` of a, ``dims[1]`` of b.

  By default accelerators multiply float32 matrices in bfloat16 or TF32.

  Args:
    a: matrix, at least float32.
    b: matrix, at least float32.
    dims: contracted dims of a and of b.
    precision: a name in `PRECISIONS`.

  Returns:
    The product: the other dim of a by the other dim of b.
  """
  return jax.lax.dot_general(
    a, b, ((dims[:1], dims[1:]), ((), ())), precision=precision
  )


def unit_centers(centers: jax.Array, dim: int) -> jax.Array:
  """Normalises class centres ``[s, u D]`` to sub-centres ``[s u, D]``."""
  return normalize(centers.reshape(-1, dim))


def _mask_target(cosines, labels, class_ids, head):
  """Returns the mask of the target ``[B, s]``, and a function that hides.

  The function replaces the target and the padding in ``[B, s]`` by a value
  below all others.
  """
  is_target = class_ids[None] == labels[:, None]
  # Finite, so that a block of padding alone makes no NaN.
  lowest = jnp.asarray(jnp.finfo(cosines.dtype).min / 4, cosines.dtype)
  hidden = is_target | (class_ids >= head.num_classes)[None]
  return is_target, lambda x: jnp.where(hidden, lowest, x)


def block_target_cosines(
  unit_embeddings: jax.Array,
  centers: jax.Array,
  labels: jax.Array,
  *,
  first_class: jax.Array | int = 0,
) -> jax.Array:
  """Computes the target cosines of the samples whose class is in these blocks.

  Args:
    unit_embeddings: embeddings of norm 1, ``[B, D]``.
    centers: class centres of any norm, ``[k, c, u D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.
    first_class: id of the first of these classes.

  Returns:
    Cosines, ``[B]``; 0 where the class is in other blocks. Reads only B of the
    centres.
  """
  num_samples, dim = unit_embeddings.shape
  classes = centers.reshape(-1, centers.shape[-1])
  places = labels - first_class
  # Negative places would count from the end.
  places = jnp.where(places < 0, len(classes), places)
  own = classes.at[places].get(mode='fill', fill_value=0)
  unit_own = unit_centers(own, dim).reshape(num_samples, -1, dim)
  return jnp.sum(unit_embeddings[:, None] * unit_own, axis=2).max(axis=1)


def block_statistics(
  samples: Samples, centers: jax.Array, class_ids: jax.Array, head: Head
) -> BlockStatistics:
  """Computes the statistics of a block: its forward pass.

  Args:
    samples: the B samples.
    centers: sub-centres of norm 1, ``[s u, D]``.
    class_ids: ids of the block's classes; C and above for padding, ``[s]``.
    head: the softmax.

  Returns:
    Statistics of the block.
  """
  each = product(samples.unit_embeddings, centers, (1, 1), head.precision)
  cosines = nearest_subcenters(each, len(centers) // len(class_ids))
  _, hide = _mask_target(cosines, samples.labels, class_ids, head)
  others = hide(head.others(cosines, samples.target_cosines, samples.margins))
  largest = others.max(axis=1)
  exponents = head.scale * (others - largest[:, None])
  return BlockStatistics(
    largest_cosine=hide(cosines).max(axis=1),
    largest=largest,
    total=jnp.exp(exponents).sum(axis=1),
  )


def join_blocks(
  statistics: BlockStatistics,
  target_cosines: jax.Array,
  margins: tuple[jax.Array, ...],
  head: Head,
) -> SoftmaxParts:
  """Combines all blocks: the loss, and the parts that its gradient needs.

  Args:
    statistics: statistics of all K blocks, ``[K, B]`` each.
    target_cosines: target cosines before the margin, ``[B]``.
    margins: margins of the head's kind, ``[B]`` each.
    head: the softmax.

  Returns:
    The loss and its parts.
  """
  # Cosines are subtracted before the scale: differences of logits would
  # multiply the rounding errors by it.
  largest = statistics.largest.max(axis=0)
  to_largest = head.scale * (statistics.largest - largest[None])
  total = tree_sum(statistics.total * jnp.exp(to_largest))

  target, target_vjp = jax.vjp(head.target, target_cosines, margins)
  # The loss as log(1 + sum of the others / target) keeps the digits of a small
  # loss.
  excess = head.scale * (largest - target) + jnp.log(total)
  others = jax.nn.sigmoid(excess)  # Probability of all other classes.
  to_cosine, to_margins = target_vjp(-head.scale * others)
  return SoftmaxParts(
    loss=jax.nn.softplus(excess),
    largest_cosine=statistics.largest_cosine.max(axis=0),
    largest_other=largest,
    target_gradients=to_cosine,
    largest_gradients=head.scale * (others / total),
    margin_gradients=to_margins,
  )


def weigh(softmax: SoftmaxParts, weights: jax.Array) -> Cotangents:
  """Multiplies the gradients of the losses by d objective / d loss, ``[B]``."""
  return Cotangents(
    softmax.largest_other,
    softmax.target_gradients * weights,
    softmax.largest_gradients * weights,
  )


def block_cotangents(
  samples: Samples,
  cotangents: Cotangents,
  centers: jax.Array,
  class_ids: jax.Array,
  head: Head,
) -> jax.Array:
  """Computes the gradient of a block's cosines: its backward pass.

  Args:
    samples: the B samples.
    cotangents: cotangents of the softmax over all blocks.
    centers: sub-centres of norm 1, ``[s u, D]``.
    class_ids: ids of the block's classes; C and above for padding, ``[s]``.
    head: the softmax.

  Returns:
    d objective / d cosine of each embedding with each sub-centre,
    ``[B, s u]``. Its product with the unit sub-centres is the block's part of
    the gradient of the unit embeddings; its transpose with the unit embeddings
    is the gradient of the unit sub-centres.
  """
  each = product(samples.unit_embeddings, centers, (1, 1), head.precision)
  subcenters = len(centers) // len(class_ids)
  cosines, nearest_vjp = jax.vjp(
    lambda x: nearest_subcenters(x, subcenters), each
  )
  changed, others_vjp = jax.vjp(
    lambda x: head.others(x, samples.target_cosines, samples.margins), cosines
  )
  is_target, hide = _mask_target(cosines, samples.labels, class_ids, head)
  exponents = head.scale * (hide(changed) - cotangents.largest_other[:, None])
  (to_others,) = others_vjp(cotangents.to_largest[:, None] * jnp.exp(exponents))
  (to_each,) = nearest_vjp(
    jnp.where(is_target, cotangents.to_target[:, None], to_others)
  )
  return to_each
