# SPDX-License-Identifier: Apache-2.0
r"""Margin softmax over blocks of classes: the matrix ``[B, C]`` never exists.

The classes are cut into blocks of equal size, the last padded. Logits exist
only as ``[B, C / num_blocks]``, one block at a time:

1. `block_targets` finds each sample's cosine with its own class, in the block
   that has it; that is ``B * D`` products and no logits.
2. `block_statistics` makes a block's logits and keeps three numbers a sample of
   all other classes: the largest cosine, and of the cosines as the loss changes
   them the largest and the sum of exponentials.
3. `margin_softmax` puts the blocks together, changes the target logit by its
   margin, and has the loss and all that the gradient needs, in ``[B]``.
4. `block_gradients` makes a block's logits again, and from them the gradient
   of its class centres, which it hands to ``update`` at once, and the block's
   part of the gradient of the embeddings.

Steps 2 and 4 go over all classes of a block or over a sample of them: which,
`sampling` says. "All others" are then all others of the sample.

`blockwise_margin_softmax` is these four on one device. The training step runs
the same four on its share of the blocks of every device.

The targets come first, so that margins may depend on them (the pairing of the
'+' losses), and so may the change of every other cosine (CurricularFace). What
a loss may do to fit in here, `changes` says.

A class may have several sub-centres; its row of the class centres is then all
of them, one after the other, and its cosine that of the nearest.

Letters: B samples, D embedding size, C classes, K blocks in all, k blocks on
this device, c = ceil(C / K) classes a block, s of them that take part, u
sub-centres of a class, in most losses one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.losses import rows
from elasticface_jax.losses.changes import (
  KINDS,
  Margin,
  change_others,
  change_target,
  check_kind,
)
from elasticface_jax.losses.logits import (
  check_floating,
  nearest,
  normalize,
  promote,
)
from elasticface_jax.losses.sampling import AllClasses, Sample
from elasticface_jax.losses.trees import RunningTree, tree_sum


class BlockStatistics(NamedTuple):
  """What is kept of other classes' logits of each block, ``[k, B]`` each."""

  largest_cosine: jax.Array
  largest: jax.Array  # Of the cosines as the loss changes them.
  total: jax.Array  # Sum of exp(scale * (changed cosine - largest)).


class MarginSoftmax(NamedTuple):
  """The loss and its parts, ``[B]`` each."""

  loss: jax.Array  # In nats.
  target_cosines: jax.Array  # Before the margin.
  margins: tuple[jax.Array, ...]
  largest_cosine: jax.Array  # With another class, as it is.
  largest_other: jax.Array  # The same, as the loss changes it.
  largest_probability: jax.Array  # Of that class.
  target_gradients: jax.Array  # d loss / d target cosine.
  margin_gradients: tuple[jax.Array, ...]  # d loss / d margin.


class Head(NamedTuple):
  """What the steps need to know of the softmax they are part of."""

  num_classes: int  # Without padding.
  scale: float
  kind: str = 'arc'  # A name in `changes.KINDS`.
  gradient: str = 'exact'  # Of the target; see `change_target`.

  def target(
    self, cosines: jax.Array, margins: tuple[jax.Array, ...]
  ) -> jax.Array:
    """The target's cosine after its margin, ``[B]``."""
    return change_target(
      cosines, margins, kind=self.kind, gradient=self.gradient
    )

  def others(
    self,
    cosines: jax.Array,
    target_cosines: jax.Array,
    margins: tuple[jax.Array, ...],
  ) -> jax.Array:
    """Other classes' cosines ``[B, s]``, as the loss changes them."""
    return change_others(cosines, target_cosines, margins, kind=self.kind)


def to_blocks(class_centers: jax.Array, num_blocks: int) -> jax.Array:
  """Cuts ``[C, u D]`` into ``[K, c, u D]``; the last block ends in zeros."""
  size = -(-class_centers.shape[0] // num_blocks)
  missing = num_blocks * size - class_centers.shape[0]
  padded = jnp.pad(class_centers, ((0, missing), (0, 0)))
  return padded.reshape(num_blocks, size, class_centers.shape[1])


def _product(a: jax.Array, b: jax.Array, dims: tuple) -> jax.Array:
  """Matrix product over `dims` in full float32: accelerators default lower."""
  return jax.lax.dot_general(
    a, b, ((dims[:1], dims[1:]), ((), ())), precision='highest'
  )


def _unit_rows(centers, dim):
  """Class centres ``[s, u D]`` to unit sub-centres ``[s u, D]``."""
  return normalize(centers.reshape(-1, dim))


def _hide(cosines, labels, numbers, head):
  """Marks the target ``[B, s]``, and takes out all that is no other class."""
  is_target = numbers[None] == labels[:, None]
  # Finite, so that a block of nothing but padding makes no NaN.
  nothing = jnp.asarray(jnp.finfo(cosines.dtype).min / 4, cosines.dtype)
  hidden = is_target | (numbers >= head.num_classes)[None]
  return is_target, lambda x: jnp.where(hidden, nothing, x)


def block_targets(
  unit_embeddings: jax.Array,
  centers: jax.Array,
  labels: jax.Array,
  *,
  first_block: jax.Array | int = 0,
  trip_count: jax.Array | int | None = None,
) -> jax.Array:
  """Finds the target cosines that this device's blocks have.

  Args:
    unit_embeddings: of norm 1, ``[B, D]``.
    centers: class centres of any norm, ``[k, c, u D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.
    first_block: number of this device's first block.
    trip_count: k; traced where bits must not depend on it (see `rows`).

  Returns:
    Cosines, ``[k, B]``; 0 where the class is in another block. The sum over
    all K blocks has one term that is not 0, so any order will do.
  """
  count, size, _ = centers.shape
  num_samples, dim = unit_embeddings.shape
  centers = rows.at_least_two(centers)

  def block_of(i):
    places = labels - (first_block + i) * size
    # Negative places would count from the end.
    places = jnp.where(places < 0, size, places)
    own = centers.at[i, places].get(mode='fill', fill_value=0)
    unit_own = _unit_rows(own, dim).reshape(num_samples, -1, dim)
    return jnp.sum(unit_embeddings[:, None] * unit_own, axis=2).max(axis=1)

  return rows.fill(block_of, count, trip_count)[:count]


def block_statistics(
  unit_embeddings: jax.Array,
  centers: jax.Array,
  labels: jax.Array,
  target_cosines: jax.Array,
  margins: tuple[jax.Array, ...],
  head: Head,
  *,
  classes: AllClasses | Sample,
  trip_count: jax.Array | int | None = None,
) -> BlockStatistics:
  """Goes over this device's blocks once, forward.

  Args:
    unit_embeddings: of norm 1, ``[B, D]``.
    centers: class centres of any norm, ``[k, c, u D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.
    target_cosines: before the margin, ``[B]``.
    margins: those of the head's kind, ``[B]`` each.
    head: the softmax.
    classes: those that take part.
    trip_count: k; traced where bits must not depend on it (see `rows`).

  Returns:
    Statistics of the k blocks, ``[k, B]`` each.
  """
  count = centers.shape[0]
  dim = unit_embeddings.shape[1]
  subcenters = centers.shape[2] // dim
  centers = rows.at_least_two(centers)

  def block_of(i):
    unit_centers = _unit_rows(classes.read(centers, i), dim)
    each = _product(unit_embeddings, unit_centers, (1, 1))
    cosines = nearest(each, subcenters)
    _, hide = _hide(cosines, labels, classes.numbers(i), head)
    others = hide(head.others(cosines, target_cosines, margins))
    largest = others.max(axis=1)
    exponents = head.scale * (others - largest[:, None])
    return BlockStatistics(
      largest_cosine=hide(cosines).max(axis=1),
      largest=largest,
      total=jnp.exp(exponents).sum(axis=1),
    )

  statistics = rows.fill(block_of, count, trip_count)
  return jax.tree.map(lambda x: x[:count], statistics)


def margin_softmax(
  statistics: BlockStatistics,
  target_cosines: jax.Array,
  margins: tuple[jax.Array, ...],
  head: Head,
) -> MarginSoftmax:
  """Puts all blocks together: the loss, and what its gradient needs.

  Args:
    statistics: of all K blocks, ``[K, B]`` each.
    target_cosines: before the margin, ``[B]``.
    margins: those of the head's kind, ``[B]`` each.
    head: the softmax.

  Returns:
    Loss and its parts.
  """
  # Differences of cosines first: logits as such would lose what the scale
  # multiplies.
  largest = statistics.largest.max(axis=0)
  to_largest = head.scale * (statistics.largest - largest[None])
  total = tree_sum(statistics.total * jnp.exp(to_largest))

  target, target_vjp = jax.vjp(head.target, target_cosines, margins)
  # The loss is log(1 + sum of the others / target), which keeps the digits of
  # a small loss.
  excess = head.scale * (largest - target) + jnp.log(total)
  others = jax.nn.sigmoid(excess)  # Probability of all other classes.
  to_cosine, to_margins = target_vjp(-head.scale * others)
  return MarginSoftmax(
    loss=jax.nn.softplus(excess),
    target_cosines=target_cosines,
    margins=margins,
    largest_cosine=statistics.largest_cosine.max(axis=0),
    largest_other=largest,
    largest_probability=others / total,
    target_gradients=to_cosine,
    margin_gradients=to_margins,
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
    centers: finds the class centres ``[s, u D]`` in one block's slots.
    update: gives one block's new slots from its slots and the gradient
      ``[s, u D]`` of its centres. It runs inside the loop, so gradients of all
      classes are never held at once.
    classes: those that take part; slots of others are left alone.
    trip_count: k; traced where bits must not depend on it (see `rows`).

  Returns:
    The gradient of the unit embeddings as `RunningTree` leaves the blocks'
    parts of it, ``[o, B, D]``, where o is the largest odd divisor of k; the
    new slots; and the square of the norm of each block's gradient, ``[k]``.
  """
  count = jax.tree.leaves(slots)[0].shape[0]
  dim = unit_embeddings.shape[1]
  target_gradients = softmax.target_gradients * cotangents
  other_gradients = head.scale * softmax.largest_probability * cotangents

  def body(i, carry):
    block, tree, slots, squares = carry
    block_centers = centers(block)
    unit_centers, unit_vjp = jax.vjp(
      lambda x: _unit_rows(x, dim), block_centers
    )
    each = _product(unit_embeddings, unit_centers, (1, 1))
    subcenters = block_centers.shape[1] // dim
    cosines, nearest_vjp = jax.vjp(lambda x: nearest(x, subcenters), each)
    changed, others_vjp = jax.vjp(
      lambda x: head.others(x, softmax.target_cosines, softmax.margins), cosines
    )
    is_target, hide = _hide(cosines, labels, classes.numbers(i), head)
    exponents = head.scale * (hide(changed) - softmax.largest_other[:, None])
    (to_others,) = others_vjp(other_gradients[:, None] * jnp.exp(exponents))
    (to_each,) = nearest_vjp(
      jnp.where(is_target, target_gradients[:, None], to_others)
    )
    part = _product(to_each, unit_centers, (1, 0))
    (gradient,) = unit_vjp(_product(to_each, unit_embeddings, (0, 0)))
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
  targets = block_targets(unit_embeddings, blocks, labels).sum(axis=0)
  statistics = block_statistics(
    unit_embeddings,
    blocks,
    labels,
    targets,
    margins,
    head,
    classes=AllClasses(0, blocks.shape[1]),
  )
  softmax = margin_softmax(statistics, targets, margins, head)
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
  to_margins = tuple(g * cotangents for g in softmax.margin_gradients)
  return tree_sum(parts), gradients, None, to_margins


_blockwise.defvjp(_forward, _backward)


def _checked(
  embeddings: jax.Array, class_centers: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Unit embeddings, class centres ``[C, u D]``, labels; or what is wrong."""
  embeddings = jnp.asarray(embeddings)
  class_centers = jnp.asarray(class_centers)
  labels = jnp.asarray(labels)
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels must be integer, not {labels.dtype}')
  if (
    embeddings.ndim != 2
    or class_centers.ndim not in (2, 3)
    or embeddings.shape[1] != class_centers.shape[-1]
    or labels.shape != embeddings.shape[:1]
  ):
    raise ValueError(
      'expected embeddings [B, D], class_centers [C, D] or [C, k, D] and '
      f'labels [B], not {embeddings.shape}, {class_centers.shape} and '
      f'{labels.shape}'
    )
  embeddings, class_centers = promote(embeddings), promote(class_centers)
  dtype = jnp.result_type(embeddings, class_centers)
  return (
    normalize(embeddings.astype(dtype)),
    class_centers.astype(dtype).reshape(class_centers.shape[0], -1),
    labels.astype(jnp.int32),  # Narrower ones cannot count all classes.
  )


def target_cosines(
  embeddings: jax.Array, class_centers: jax.Array, labels: jax.Array
) -> jax.Array:
  """Computes each embedding's cosine with its own class centre, and no other.

  What the margins of a block-wise loss may depend on: `pair_margins` and
  `curricularface_margins` take it.

  Args:
    embeddings: of any norm, any float dtype, ``[B, D]``.
    class_centers: of any norm, any float dtype, ``[C, D]``, or with k
      sub-centres ``[C, k, D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      0.

  Returns:
    Cosines, dimensionless, at least float32, ``[B]``.

  Raises:
    ValueError: if shapes disagree.
    TypeError: if ``embeddings`` or ``class_centers`` is not floating or
      ``labels`` not integer.

  Examples:
    >>> embeddings = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    >>> class_centers = jnp.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> print(target_cosines(embeddings, class_centers, jnp.array([0, 1])))
    [1.  0.8]
  """
  unit_embeddings, class_centers, labels = _checked(
    embeddings, class_centers, labels
  )
  return block_targets(unit_embeddings, class_centers[None], labels)[0]


def blockwise_margin_softmax(
  embeddings: jax.Array,
  class_centers: jax.Array,
  labels: jax.Array,
  margins: Margin | tuple[Margin, ...],
  *,
  kind: str = 'arc',
  scale: float = 64.0,
  num_blocks: int,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Margin softmax from embeddings and class centres, block by block.

  With :math:`\cos\theta_{ij}` the cosine of embedding i and class centre j, and
  :math:`f` and :math:`g` the changes of the target's and of other cosines that
  make the kind (`losses.changes`), sample i of class :math:`y_i` costs

  .. math::
    -\log \frac{e^{s f(\cos\theta_{i y_i})}}
      {e^{s f(\cos\theta_{i y_i})}
        + \sum_{j \ne y_i} e^{s g(\cos\theta_{ij})}}

  Equals the named losses applied to `cosines`, but memory grows with
  ``B * C / num_blocks`` and not with ``B * C``: the backward pass computes a
  block's logits again (four matrix products instead of three). Inside
  ``jax.shard_map`` it needs ``check_vma=False``, and the gradient of class
  centres is then this device's part, for you to sum.

  ============== ========================================= ====================
  kind           margins                                   loss
  ============== ========================================= ====================
  ``arc``        m in radians, as `sample_margins` draws   `arcface`, elastic
  ``cos``        m in cosine units, likewise               `cosface`, elastic
  ``combined``   (m1, m2, m3)                              `combined_margin`
  ``sphere``     factor m                                  `sphereface`
  ``x2``         (a, h, k)                                 `x2_softmax`
  ``adaface``    (a, b) of `adaface_margins`               `adaface`
  ``magface``    m of `magface_margins`                    `magface`
  ``curricular`` (m, t) of `curricularface_margins`        `curricularface`
  ============== ========================================= ====================

  Args:
    embeddings: of any norm, any float dtype, ``[B, D]``. Computed in at least
      float32.
    class_centers: of any norm, any float dtype, ``[C, D]``; with k sub-centres
      for each class ``[C, k, D]``, see `subcenter_cosines`.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. Out of range:
      a meaningless loss; mask it.
    margins: those of the kind, each a number or one a sample, ``[B]``; a tuple
      where there are several.
    kind: how margins change cosines, a name of the table.
    scale: inverse temperature s, dimensionless, > 0. A Python number, not
      traced.
    num_blocks: blocks of classes, static. C need not be a multiple, but then
      the class centres are copied once to pad them.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64 input), ``[B]``.
    Differentiable in embeddings, class centres and margins (but not in t),
    once.

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
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, eqs. 5-7;
    the others are with the named losses.
    Differs from the authors' code in: the authors hold ``[B, C]`` on every
    GPU. The value is the same.
  """
  unit_embeddings, class_centers, labels = _checked(
    embeddings, class_centers, labels
  )
  if not 1 <= num_blocks <= class_centers.shape[0]:
    raise ValueError(
      f'num_blocks must be in [1, {class_centers.shape[0]}], not {num_blocks}'
    )
  check_kind(kind, gradient)
  margins = margins if isinstance(margins, tuple) else (margins,)
  names = KINDS[kind].margins
  shapes = [jnp.shape(margin) for margin in margins]
  if len(margins) != len(names) or not all(
    shape in ((), labels.shape) for shape in shapes
  ):
    raise ValueError(
      f'margins of kind {kind!r} must be {", ".join(names)}, each a number or '
      f'[B] = {labels.shape}, not of shapes {shapes}'
    )
  margins = tuple(
    jnp.broadcast_to(jnp.asarray(margin, unit_embeddings.dtype), labels.shape)
    for margin in margins
  )
  blocks = to_blocks(class_centers, num_blocks)
  head = Head(class_centers.shape[0], float(scale), kind, gradient)
  return _blockwise(unit_embeddings, blocks, labels, margins, head)
