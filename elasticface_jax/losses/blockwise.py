# SPDX-License-Identifier: Apache-2.0
r"""Margin softmax over blocks of classes: the matrix ``[B, C]`` never exists.

The classes are cut into blocks of equal size, the last padded. Logits exist
only as ``[B, C / num_blocks]``, one block at a time:

1. `block_statistics` makes a block's logits and keeps three numbers a sample:
   the target's cosine (in the block that owns it), and the largest and the
   sum of exponentials of all others.
2. `margin_softmax` puts the blocks together, changes the target logit by its
   margin, and has the loss and all that the gradient needs, in ``[B]``.
3. `block_gradients` makes a block's logits again, and from them the gradient
   of its class centres, which it hands to ``update`` at once, and the block's
   part of the gradient of the embeddings.

Steps 1 and 3 go over all classes of a block or over a sample of them: which,
`sampling` says. "All others" are then all others of the sample.

`blockwise_margin_softmax` is these three on one device. The training step runs
the same three on its share of the blocks of every device.

A margin changes the target logit alone, so step 1 does not wait for it. A loss
that also changes the other logits, element by element, given the target's
(CurricularFace) fits into `_other_cosines`, with the target's cosine found in a
pass before; one that needs two classes at once does not fit.

Letters: B samples, D embedding size, C classes, K blocks in all, k blocks on
this device, c = ceil(C / K) classes a block, s of them that take part.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.losses import rows
from elasticface_jax.losses.logits import (
  arc_target,
  check_floating,
  cos_target,
  normalize,
  promote,
)
from elasticface_jax.losses.sampling import AllClasses, Sample
from elasticface_jax.losses.trees import RunningTree, tree_sum


class BlockStatistics(NamedTuple):
  """What is kept of the logits of each block, ``[k, B]`` each."""

  target: jax.Array  # Cosine of the target class; 0 where it is elsewhere.
  largest: jax.Array  # Of the other cosines.
  total: jax.Array  # Sum of exp(scale * (other cosine - largest)).


class MarginSoftmax(NamedTuple):
  """The loss and its parts, ``[B]`` each."""

  loss: jax.Array  # In nats.
  target_cosines: jax.Array  # Before the margin.
  largest_other: jax.Array  # Largest cosine with another class.
  largest_probability: jax.Array  # Of that class.
  margins: jax.Array
  target_gradients: jax.Array  # d loss / d target cosine.
  margin_gradients: jax.Array  # d loss / d margin.


class Head(NamedTuple):
  """What the three steps need to know of the softmax they are part of."""

  num_classes: int  # Without padding.
  scale: float
  kind: str = 'arc'  # 'arc': margin on the angle; 'cos': on the cosine.
  gradient: str = 'exact'  # Of 'arc'; see `arcface_logits`.

  def target(self, cosines: jax.Array, margins: jax.Array) -> jax.Array:
    """The target's cosine after its margin, ``[B]``."""
    if self.kind == 'arc':
      return arc_target(cosines, margins, gradient=self.gradient)
    if self.kind == 'cos':
      return cos_target(cosines, margins)
    raise ValueError(f"kind must be 'arc' or 'cos', not {self.kind!r}")


def to_blocks(class_centers: jax.Array, num_blocks: int) -> jax.Array:
  """Cuts ``[C, D]`` into ``[K, c, D]``, the last block filled with zeros."""
  size = -(-class_centers.shape[0] // num_blocks)
  missing = num_blocks * size - class_centers.shape[0]
  padded = jnp.pad(class_centers, ((0, missing), (0, 0)))
  return padded.reshape(num_blocks, size, class_centers.shape[1])


def _product(a: jax.Array, b: jax.Array, dims: tuple) -> jax.Array:
  """Matrix product over `dims` in full float32: accelerators default lower."""
  return jax.lax.dot_general(
    a, b, ((dims[:1], dims[1:]), ((), ())), precision='highest'
  )


def _other_cosines(unit_embeddings, unit_centers, labels, numbers, head):
  """Cosines ``[B, s]``, the target's place in them, and all others."""
  cosines = _product(unit_embeddings, unit_centers, (1, 1))
  is_target = numbers[None] == labels[:, None]
  # Finite, so that a block of nothing but padding makes no NaN.
  nothing = jnp.asarray(jnp.finfo(cosines.dtype).min / 4, cosines.dtype)
  hidden = is_target | (numbers >= head.num_classes)[None]
  return cosines, is_target, jnp.where(hidden, nothing, cosines)


def block_statistics(
  unit_embeddings: jax.Array,
  centers: jax.Array,
  labels: jax.Array,
  head: Head,
  *,
  classes: AllClasses | Sample,
  trip_count: jax.Array | int | None = None,
) -> BlockStatistics:
  """Goes over this device's blocks once, forward.

  Args:
    unit_embeddings: of norm 1, ``[B, D]``.
    centers: class centres of any norm, ``[k, c, D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.
    head: the softmax.
    classes: those that take part.
    trip_count: k; traced where bits must not depend on it (see `rows`).

  Returns:
    Statistics of the k blocks, ``[k, B]`` each.
  """
  count = centers.shape[0]
  centers = rows.at_least_two(centers)

  def block_of(i):
    unit_centers = normalize(classes.read(centers, i))
    cosines, is_target, others = _other_cosines(
      unit_embeddings, unit_centers, labels, classes.numbers(i), head
    )
    largest = others.max(axis=1)
    exponents = head.scale * (others - largest[:, None])
    return BlockStatistics(
      target=jnp.where(is_target, cosines, 0).sum(axis=1),
      largest=largest,
      total=jnp.exp(exponents).sum(axis=1),
    )

  statistics = rows.fill(block_of, count, trip_count)
  return jax.tree.map(lambda x: x[:count], statistics)


def margin_softmax(
  statistics: BlockStatistics,
  margins: Callable[[jax.Array], jax.Array],
  head: Head,
) -> MarginSoftmax:
  """Puts all blocks together: the loss, and what its gradient needs.

  Args:
    statistics: of all K blocks, ``[K, B]`` each.
    margins: gives the margins ``[B]`` from the target cosines ``[B]``.
    head: the softmax.

  Returns:
    Loss and its parts.
  """
  # The target has one owner and a sum of zeros is exact: any order will do.
  target_cosines = statistics.target.sum(axis=0)
  # Differences of cosines first: logits as such would lose what the scale
  # multiplies.
  largest = statistics.largest.max(axis=0)
  to_largest = head.scale * (statistics.largest - largest[None])
  total = tree_sum(statistics.total * jnp.exp(to_largest))

  drawn = margins(target_cosines)
  target, target_vjp = jax.vjp(head.target, target_cosines, drawn)
  # The loss is log(1 + sum of the others / target), which keeps the digits of
  # a small loss.
  excess = head.scale * (largest - target) + jnp.log(total)
  others = jax.nn.sigmoid(excess)  # Probability of all other classes.
  to_cosine, to_margin = target_vjp(-head.scale * others)
  return MarginSoftmax(
    loss=jax.nn.softplus(excess),
    target_cosines=target_cosines,
    largest_other=largest,
    largest_probability=others / total,
    margins=drawn,
    target_gradients=to_cosine,
    margin_gradients=to_margin,
  )


def block_gradients(
  unit_embeddings: jax.Array,
  slots: Any,
  labels: jax.Array,
  softmax: MarginSoftmax,
  cotangents: jax.Array,
  head: Head,
  *,
  centers: Callable[[Any], jax.Array],
  update: Callable[[Any, jax.Array], Any],
  classes: AllClasses | Sample,
  trip_count: jax.Array | int | None = None,
) -> tuple[jax.Array, Any, jax.Array]:
  """Goes over this device's blocks once, backward.

  Args:
    unit_embeddings: of norm 1, ``[B, D]``.
    slots: pytree of what is kept for each class, ``[k, c, ...]`` each: the
      class centres, in training their momentum too.
    labels: class of each sample, ``[B]``.
    softmax: what `margin_softmax` returned for the same embeddings.
    cotangents: d objective / d loss, ``[B]``.
    head: the softmax.
    centers: finds the class centres ``[s, D]`` in one block's slots.
    update: gives one block's new slots from its slots and the gradient
      ``[s, D]`` of its centres. It runs inside the loop, so gradients of all
      classes are never held at once.
    classes: those that take part; slots of others are left alone.
    trip_count: k; traced where bits must not depend on it (see `rows`).

  Returns:
    The gradient of the unit embeddings as `RunningTree` leaves the blocks'
    parts of it, ``[o, B, D]``, where o is the largest odd divisor of k; the
    new slots; and the square of the norm of each block's gradient, ``[k]``.
  """
  count = jax.tree.leaves(slots)[0].shape[0]
  target_gradients = softmax.target_gradients * cotangents
  other_gradients = head.scale * softmax.largest_probability * cotangents

  def body(i, carry):
    block, tree, slots, squares = carry
    unit_centers, normalize_vjp = jax.vjp(normalize, centers(block))
    _, is_target, others = _other_cosines(
      unit_embeddings, unit_centers, labels, classes.numbers(i), head
    )
    exponents = head.scale * (others - softmax.largest_other[:, None])
    to_cosines = jnp.where(
      is_target,
      target_gradients[:, None],
      other_gradients[:, None] * jnp.exp(exponents),
    )
    part = _product(to_cosines, unit_centers, (1, 0))
    (gradient,) = normalize_vjp(_product(to_cosines, unit_embeddings, (0, 0)))
    slots = classes.write(slots, i, update(block, gradient))
    return (
      classes.read(slots, i + 1),
      tree.add(i, part),
      slots,
      rows.write(squares, i, jnp.vdot(gradient, gradient)),
    )

  number = jax.ShapeDtypeStruct((), unit_embeddings.dtype)
  trip_count = count if trip_count is None else trip_count
  slots = rows.at_least_two(slots)
  carry = (
    # A block is read one turn ahead. Read where it is used, XLA would fuse the
    # reading of one buffer into the writing of another, and then copy all
    # blocks in every turn to keep them apart.
    classes.read(slots, 0),
    RunningTree.start(count, trip_count, unit_embeddings),
    slots,
    rows.empty(count, number),
  )
  _, tree, *carry = jax.lax.fori_loop(0, trip_count, body, carry)
  return tree.sums(count), *jax.tree.map(lambda x: x[:count], carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(unit_embeddings, blocks, labels, margins, head):
  return _forward(unit_embeddings, blocks, labels, margins, head)[0]


def _forward(unit_embeddings, blocks, labels, margins, head):
  classes = AllClasses(0, blocks.shape[1])
  statistics = block_statistics(
    unit_embeddings, blocks, labels, head, classes=classes
  )
  softmax = margin_softmax(statistics, lambda _: margins, head)
  return softmax.loss, (unit_embeddings, blocks, labels, softmax)


def _backward(head, residuals, cotangents):
  unit_embeddings, blocks, labels, softmax = residuals
  # The slots are the centres themselves; each is overwritten by its gradient.
  parts, gradients, _ = block_gradients(
    unit_embeddings,
    blocks,
    labels,
    softmax,
    cotangents,
    head,
    centers=lambda block: block,
    update=lambda block, gradient: gradient,
    classes=AllClasses(0, blocks.shape[1]),
  )
  to_margins = softmax.margin_gradients * cotangents
  return tree_sum(parts), gradients, None, to_margins


_blockwise.defvjp(_forward, _backward)


def blockwise_margin_softmax(
  embeddings: jax.Array,
  class_centers: jax.Array,
  labels: jax.Array,
  margins: jax.Array | float,
  *,
  kind: str = 'arc',
  scale: float = 64.0,
  num_blocks: int,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Margin softmax from embeddings and class centres, block by block.

  With :math:`\cos\theta_{ij}` the cosine of embedding i and class centre j,
  and :math:`f(\theta)` either :math:`\cos(\theta + m_i)` (``'arc'``) or
  :math:`\cos\theta - m_i` (``'cos'``), sample i of class :math:`y_i` costs

  .. math::
    -\log \frac{e^{s f(\theta_{i y_i})}}
      {e^{s f(\theta_{i y_i})} + \sum_{j \ne y_i} e^{s \cos\theta_{ij}}}

  Equals the named losses applied to `cosines`, but memory grows with
  ``B * C / num_blocks`` and not with ``B * C``: the backward pass computes a
  block's logits again (four matrix products instead of three).

  Args:
    embeddings: of any norm, any float dtype, ``[B, D]``. Computed in at least
      float32.
    class_centers: of any norm, any float dtype, ``[C, D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      a meaningless loss; mask it.
    margins: margin of each sample, in radians for ``'arc'`` and in units of
      cosine for ``'cos'``, ``[B]`` or scalar. Draw them with `sample_margins`.
    kind: ``'arc'`` or ``'cos'``.
    scale: inverse temperature s, dimensionless, > 0. A Python number, not
      traced.
    num_blocks: blocks of classes, static. C need not be a multiple, but then
      the class centres are copied once to pad them.
    gradient: of ``'arc'``: ``'exact'`` or ``'straight_through'``; see
      `arcface_logits`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64 input), ``[B]``.
    Differentiable in embeddings, class centres and margins, once.

  Raises:
    ValueError: if shapes disagree, ``num_blocks`` is not in ``[1, C]``, or
      ``kind`` or ``gradient`` is unknown.
    TypeError: if ``embeddings`` or ``class_centers`` is not floating or
      ``labels`` not integer.

  Examples:
    >>> embeddings = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    >>> class_centers = jnp.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> loss = blockwise_margin_softmax(
    ...   embeddings, class_centers, jnp.array([0, 1]), 0.5,
    ...   scale=4.0, num_blocks=3)
    >>> print(jnp.array_str(loss, precision=3))
    [0.03  1.137]

  References:
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, eqs. 5-7.
    Differs from the authors' code in: the authors hold ``[B, C]`` on every
    GPU. The value is the same.
  """
  embeddings = jnp.asarray(embeddings)
  class_centers = jnp.asarray(class_centers)
  labels = jnp.asarray(labels)
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels must be integer, not {labels.dtype}')
  if (
    embeddings.ndim != 2
    or class_centers.ndim != 2
    or embeddings.shape[1] != class_centers.shape[1]
    or labels.shape != embeddings.shape[:1]
    or jnp.shape(margins) not in ((), labels.shape)
  ):
    raise ValueError(
      'expected embeddings [B, D], class_centers [C, D], labels [B] and '
      f'margins [B] or scalar, not {embeddings.shape}, {class_centers.shape}, '
      f'{labels.shape} and {jnp.shape(margins)}'
    )
  if not 1 <= num_blocks <= class_centers.shape[0]:
    raise ValueError(
      f'num_blocks must be in [1, {class_centers.shape[0]}], not {num_blocks}'
    )
  if gradient not in ('exact', 'straight_through'):
    raise ValueError(
      f"gradient must be 'exact' or 'straight_through', not {gradient!r}"
    )
  embeddings, class_centers = promote(embeddings), promote(class_centers)
  dtype = jnp.result_type(embeddings, class_centers)
  unit_embeddings = normalize(embeddings.astype(dtype))
  margins = jnp.broadcast_to(jnp.asarray(margins, dtype), labels.shape)
  blocks = to_blocks(class_centers.astype(dtype), num_blocks)
  head = Head(class_centers.shape[0], float(scale), kind, gradient)
  labels = labels.astype(jnp.int32)  # Narrower ones cannot count all classes.
  return _blockwise(unit_embeddings, blocks, labels, margins, head)
