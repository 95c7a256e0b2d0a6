# SPDX-License-Identifier: Apache-2.0
r"""Margin softmax over blocks of classes: the matrix ``[B, C]`` never exists.

The classes are cut into blocks of equal size, the last padded. Logits exist
only as ``[B, C / num_blocks]``, one block at a time. All that is done with them
are two functions of one block:

- `block_statistics` makes a block's logits and keeps three numbers a sample of
  all other classes: the largest cosine, and of the cosines as the loss changes
  them the largest and the sum of exponentials.
- `block_cotangents` makes a block's logits again, and from them the gradient
  of the cosines, whose products with the class centres and the embeddings are
  the gradients of the embeddings and of the class centres.

Round these stand `target_cosines_of`, which finds each sample's cosine with its
own class by ``B * D`` products and no logits, and `join_blocks`, which puts the
statistics of all blocks together, changes the target logit by its margin, and
has the loss and all that the gradient needs, in ``[B]``.

`blockwise_margin_softmax` is these four on one device, in two passes over the
blocks. The training step (`training.turn`) runs the same four for one group of
samples after another on the blocks of every device.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import RunningTree, tree_sum
from elasticface_jax.losses._logits import (
  check_floating,
  nearest,
  normalize,
  promote,
)
from elasticface_jax.losses._targets import (
  KINDS,
  Margin,
  change_others,
  change_target,
  check_kind,
)

# Of the products of embeddings and class centres. README has what each costs in
# accuracy.
PRECISIONS = 'highest', 'high', 'default'


class Samples(NamedTuple):
  """What the blocks need to know of each sample."""

  unit_embeddings: jax.Array  # Of norm 1, [B, D].
  labels: jax.Array  # Integer in [0, C), [B].
  target_cosines: jax.Array  # Before the margin, [B].
  margins: tuple[jax.Array, ...]  # Those of the head's kind, [B] each.


class BlockStatistics(NamedTuple):
  """What is kept of other classes' logits in a block, ``[B]`` each."""

  largest_cosine: jax.Array
  largest: jax.Array  # Of the cosines as the loss changes them.
  total: jax.Array  # Sum of exp(scale * (changed cosine - largest)).


class MarginSoftmax(NamedTuple):
  """The loss and the parts of its gradient, ``[B]`` each."""

  loss: jax.Array  # In nats.
  largest_cosine: jax.Array  # With another class, as it is.
  largest_other: jax.Array  # The same, as the loss changes it.
  # d loss / d target cosine, d that changed cosine, and d each margin.
  target_gradients: jax.Array
  largest_gradients: jax.Array
  margin_gradients: tuple[jax.Array, ...]


class Cotangents(NamedTuple):
  """What the gradients of all cosines follow from, ``[B]`` each."""

  largest_other: jax.Array  # As in `MarginSoftmax`.
  to_target: jax.Array  # d objective / d target cosine.
  to_largest: jax.Array  # d objective / d largest changed cosine.


class Head(NamedTuple):
  """What the steps need to know of the softmax they are part of."""

  num_classes: int  # Without padding.
  scale: float
  kind: str = 'arc'  # A name in `changes.KINDS`.
  gradient: str = 'exact'  # Of the target; see `change_target`.
  precision: str = 'highest'  # A name in `PRECISIONS`.

  def target(
    self, cosines: jax.Array, margins: tuple[jax.Array, ...]
  ) -> jax.Array:
    """Computes the target's cosine after its margin, ``[B]``."""
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
  """Cuts ``[C, u D]`` into ``[K, c, u D]``; the last block ends in zeros."""
  size = -(-class_centers.shape[0] // num_blocks)
  missing = num_blocks * size - class_centers.shape[0]
  padded = jnp.pad(class_centers, ((0, missing), (0, 0)))
  return padded.reshape(num_blocks, size, class_centers.shape[1])


def product(
  a: jax.Array, b: jax.Array, dims: tuple[int, int], precision: str
) -> jax.Array:
  """Multiplies matrices, summing over dim ``dims[0]`` of a, ``dims[1]`` of b.

  Accelerators multiply float32 matrices in bfloat16 or TF32 unless told
  otherwise.

  Args:
    a: at least float32, two dims.
    b: likewise.
    dims: those summed over.
    precision: a name in `PRECISIONS`.

  Returns:
    The other dim of a, and that of b.
  """
  return jax.lax.dot_general(
    a, b, ((dims[:1], dims[1:]), ((), ())), precision=precision
  )


def unit_centers(centers: jax.Array, dim: int) -> jax.Array:
  """Normalises class centres ``[s, u D]`` to sub-centres ``[s u, D]``."""
  return normalize(centers.reshape(-1, dim))


def _hide(cosines, labels, numbers, head):
  """Marks the target ``[B, s]``, and takes out all that is no other class."""
  is_target = numbers[None] == labels[:, None]
  # Finite, so that a block of nothing but padding makes no NaN.
  nothing = jnp.asarray(jnp.finfo(cosines.dtype).min / 4, cosines.dtype)
  hidden = is_target | (numbers >= head.num_classes)[None]
  return is_target, lambda x: jnp.where(hidden, nothing, x)


def target_cosines_of(
  unit_embeddings: jax.Array,
  centers: jax.Array,
  labels: jax.Array,
  *,
  first_class: jax.Array | int = 0,
) -> jax.Array:
  """Computes the target cosines of the classes whose centres are given.

  Args:
    unit_embeddings: of norm 1, ``[B, D]``.
    centers: class centres of any norm, ``[k, c, u D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.
    first_class: number of the first of these classes.

  Returns:
    Cosines, ``[B]``; 0 where the class is another. Reads B rows of the centres
    and no more.
  """
  num_samples, dim = unit_embeddings.shape
  rows = centers.reshape(-1, centers.shape[-1])
  places = labels - first_class
  # Negative places would count from the end.
  places = jnp.where(places < 0, len(rows), places)
  own = rows.at[places].get(mode='fill', fill_value=0)
  unit_own = unit_centers(own, dim).reshape(num_samples, -1, dim)
  return jnp.sum(unit_embeddings[:, None] * unit_own, axis=2).max(axis=1)


def block_statistics(
  samples: Samples, unit_centers: jax.Array, numbers: jax.Array, head: Head
) -> BlockStatistics:
  """Goes over a block forward.

  Args:
    samples: B of them.
    unit_centers: sub-centres of norm 1, ``[s u, D]``.
    numbers: of the classes; C and more for padding, ``[s]``.
    head: the softmax.

  Returns:
    Statistics of the block.
  """
  each = product(samples.unit_embeddings, unit_centers, (1, 1), head.precision)
  cosines = nearest(each, len(unit_centers) // len(numbers))
  _, hide = _hide(cosines, samples.labels, numbers, head)
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
    largest_cosine=statistics.largest_cosine.max(axis=0),
    largest_other=largest,
    target_gradients=to_cosine,
    largest_gradients=head.scale * (others / total),
    margin_gradients=to_margins,
  )


def weigh(softmax: MarginSoftmax, weights: jax.Array) -> Cotangents:
  """Weighs the gradients of the losses by d objective / d loss, ``[B]``."""
  return Cotangents(
    softmax.largest_other,
    softmax.target_gradients * weights,
    softmax.largest_gradients * weights,
  )


def block_cotangents(
  samples: Samples,
  cotangents: Cotangents,
  unit_centers: jax.Array,
  numbers: jax.Array,
  head: Head,
) -> jax.Array:
  """Goes over a block again, for the gradient of its cosines.

  Args:
    samples: as for `block_statistics`.
    cotangents: of the softmax over all blocks.
    unit_centers: as for `block_statistics`.
    numbers: likewise.
    head: the softmax.

  Returns:
    d objective / d cosine of each embedding with each sub-centre,
    ``[B, s u]``. Its product with the unit sub-centres is the block's part of
    the gradient of the unit embeddings; its transpose with the unit embeddings
    is the gradient of the unit sub-centres.
  """
  each = product(samples.unit_embeddings, unit_centers, (1, 1), head.precision)
  subcenters = len(unit_centers) // len(numbers)
  cosines, nearest_vjp = jax.vjp(lambda x: nearest(x, subcenters), each)
  changed, others_vjp = jax.vjp(
    lambda x: head.others(x, samples.target_cosines, samples.margins), cosines
  )
  is_target, hide = _hide(cosines, samples.labels, numbers, head)
  exponents = head.scale * (hide(changed) - cotangents.largest_other[:, None])
  (to_others,) = others_vjp(cotangents.to_largest[:, None] * jnp.exp(exponents))
  (to_each,) = nearest_vjp(
    jnp.where(is_target, cotangents.to_target[:, None], to_others)
  )
  return to_each


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(unit_embeddings, blocks, labels, margins, head):
  return _forward(unit_embeddings, blocks, labels, margins, head)[0]


def _numbers(i, blocks):
  size = blocks.shape[1]
  return i * size + jnp.arange(size, dtype=jnp.int32)


def _forward(unit_embeddings, blocks, labels, margins, head):
  targets = target_cosines_of(unit_embeddings, blocks, labels)
  samples = Samples(unit_embeddings, labels, targets, margins)
  dim = unit_embeddings.shape[1]

  def statistics_of(i):
    centers = unit_centers(loops.read(blocks, i), dim)
    return block_statistics(samples, centers, _numbers(i, blocks), head)

  statistics = loops.stack(statistics_of, len(blocks))
  softmax = join_blocks(statistics, targets, margins, head)
  return softmax.loss, (samples, blocks, softmax)


def _backward(head, residuals, weights):
  samples, blocks, softmax = residuals
  cotangents = weigh(softmax, weights)
  dim = samples.unit_embeddings.shape[1]

  def body(i, carry):
    centers, tree, blocks = carry
    unit, unit_vjp = jax.vjp(lambda x: unit_centers(x, dim), centers)
    to_each = block_cotangents(
      samples, cotangents, unit, _numbers(i, blocks), head
    )
    part = product(to_each, unit, (1, 0), head.precision)
    to_unit = product(to_each, samples.unit_embeddings, (0, 0), head.precision)
    # Centres that are done give their place to their gradient.
    blocks = loops.write(blocks, i, *unit_vjp(to_unit))
    # Read one block ahead. Read where it is used, XLA would fuse reading and
    # writing of the buffer, and copy all of it in every trip.
    return loops.read(blocks, i + 1), tree.add(i, part), blocks

  count = len(blocks)
  tree = RunningTree.start(count, count, samples.unit_embeddings)
  carry = loops.read(blocks, 0), tree, blocks
  _, tree, gradients = jax.lax.fori_loop(0, count, body, carry)
  to_margins = tuple(g * weights for g in softmax.margin_gradients)
  return tree_sum(tree.sums(count)), gradients, None, to_margins


_blockwise.defvjp(_forward, _backward)


def _checked(
  embeddings: jax.Array, class_centers: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns unit embeddings, class centres ``[C, u D]`` and labels."""
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
  return target_cosines_of(unit_embeddings, class_centers[None], labels)


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
  make the kind (`losses._targets`), sample i of class :math:`y_i` costs

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
