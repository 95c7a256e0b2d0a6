# SPDX-License-Identifier: Apache-2.0
r"""The public block-wise margin softmax, on one device.

It takes two passes over the blocks of classes, both made of the parts in
`losses._blocks`: the first joins the statistics of all blocks to the losses,
the second sums the gradients.

Letters: B samples, D embedding size, C classes, K blocks, c = ceil(C / K)
classes of a block, k sub-centres of a class.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import RunningTree, tree_sum
from elasticface_jax.losses import _blocks
from elasticface_jax.losses._arrays import (
  check_floating,
  check_integer,
  normalize,
  promote,
)
from elasticface_jax.losses._targets import KINDS, check_kind


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(unit_embeddings, blocks, labels, margins, head):
  return _forward(unit_embeddings, blocks, labels, margins, head)[0]


def _class_ids(i, blocks):
  size = blocks.shape[1]
  return i * size + jnp.arange(size, dtype=jnp.int32)


def _forward(unit_embeddings, blocks, labels, margins, head):
  targets = _blocks.block_target_cosines(unit_embeddings, blocks, labels)
  samples = _blocks.Samples(unit_embeddings, labels, targets, margins)
  dim = unit_embeddings.shape[1]

  def statistics_of(i):
    centers = _blocks.unit_centers(loops.read(blocks, i), dim)
    class_ids = _class_ids(i, blocks)
    return _blocks.block_statistics(samples, centers, class_ids, head)

  statistics = loops.stack(statistics_of, len(blocks))
  softmax = _blocks.join_blocks(statistics, targets, margins, head)
  return softmax.loss, (samples, blocks, softmax)


def _backward(head, residuals, weights):
  samples, blocks, softmax = residuals
  cotangents = _blocks.weigh(softmax, weights)
  dim = samples.unit_embeddings.shape[1]
  product = functools.partial(_blocks.product, precision=head.precision)

  def body(i, carry):
    centers, tree, blocks = carry
    unit, unit_vjp = jax.vjp(lambda x: _blocks.unit_centers(x, dim), centers)
    to_each = _blocks.block_cotangents(
      samples, cotangents, unit, _class_ids(i, blocks), head
    )
    part = product(to_each, unit, (1, 0))
    to_unit = product(to_each, samples.unit_embeddings, (0, 0))
    # The gradient takes the place of the centres, which are no longer needed.
    blocks = loops.write(blocks, i, *unit_vjp(to_unit))
    # Read one block ahead. If a block were read where it is used, XLA would
    # fuse reading and writing of the buffer, and copy all of it in every trip.
    return loops.read(blocks, i + 1), tree.add(i, part), blocks

  count = len(blocks)
  tree = RunningTree.start(count, count, samples.unit_embeddings)
  carry = loops.read(blocks, 0), tree, blocks
  _, tree, gradients = jax.lax.fori_loop(0, count, body, carry)
  to_margins = tuple(g * weights for g in softmax.margin_gradients)
  return tree_sum(tree.sums(count)), gradients, None, to_margins


_blockwise.defvjp(_forward, _backward)


def _validate_blockwise(
  embeddings: ArrayLike, class_centers: ArrayLike, labels: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns unit embeddings, class centres ``[C, k D]`` and int32 labels."""
  embeddings = jnp.asarray(embeddings)
  class_centers = jnp.asarray(class_centers)
  labels = jnp.asarray(labels)
  check_floating('embeddings', embeddings)
  check_floating('class_centers', class_centers)
  check_integer('labels', labels)
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
  # Both are float32 or float64 here.
  dtype = max(embeddings.dtype, class_centers.dtype, key=lambda x: x.itemsize)
  return (
    normalize(embeddings.astype(dtype)),
    class_centers.astype(dtype).reshape(class_centers.shape[0], -1),
    labels.astype(jnp.int32),  # Narrower ones cannot count all classes.
  )


def target_cosines(
  embeddings: ArrayLike, class_centers: ArrayLike, labels: ArrayLike
) -> jax.Array:
  """Computes the cosine of each embedding with its own class centre alone.

  The margins of a block-wise loss may depend on it: `pair_margins` and
  `curricularface_margins` take it.

  Args:
    embeddings: any norm, any float dtype, ``[B, D]``.
    class_centers: any norm, any float dtype, ``[C, D]``, or with k sub-centres
      ``[C, k, D]``.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``.

  Returns:
    Cosines, dimensionless, at least float32, ``[B]``; 0 where the label is out
    of range.

  Raises:
    ValueError: if the shapes disagree.
    TypeError: if ``embeddings`` or ``class_centers`` is not floating or
      ``labels`` not integer.

  Examples:
    >>> embeddings = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    >>> class_centers = jnp.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> print(target_cosines(embeddings, class_centers, jnp.array([0, 1])))
    [1.  0.8]
  """
  unit_embeddings, class_centers, labels = _validate_blockwise(
    embeddings, class_centers, labels
  )
  return _blocks.block_target_cosines(
    unit_embeddings, class_centers[None], labels
  )


def blockwise_margin_softmax(
  embeddings: ArrayLike,
  class_centers: ArrayLike,
  labels: ArrayLike,
  margins: ArrayLike | tuple[ArrayLike, ...],
  *,
  kind: str = 'arc',
  scale: float = 64.0,
  num_blocks: int,
  gradient: str = 'exact',
) -> jax.Array:
  r"""Computes any of the losses from embeddings and class centres by blocks.

  With :math:`\cos\theta_{ij}` the cosine of embedding i and class centre j, and
  :math:`f` and :math:`g` the functions that the kind applies to the target
  cosine and to the others, the loss of sample i of class :math:`y_i` is

  .. math::
    -\log \frac{e^{s f(\cos\theta_{i y_i})}}
      {e^{s f(\cos\theta_{i y_i})}
        + \sum_{j \ne y_i} e^{s g(\cos\theta_{ij})}}

  This equals the named losses applied to `cosines`, but memory grows with
  ``B * C / num_blocks`` and not with ``B * C``: the backward pass computes a
  block's logits again (four matrix products instead of three). Inside
  ``jax.shard_map`` it needs ``check_vma=False``, and the gradient of the class
  centres is then this device's part: sum it over the devices.

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
    embeddings: any norm, any float dtype, ``[B, D]``. Computed in at least
      float32.
    class_centers: any norm, any float dtype, ``[C, D]``; with k sub-centres for
      each class ``[C, k, D]``, see `subcenter_cosines`.
    labels: class of each sample, integer in ``[0, C)``, ``[B]``. The loss of a
      label out of range is meaningless; mask it.
    margins: margins of the kind, each a scalar or ``[B]``; a tuple where there
      are several.
    kind: the functions of the cosines, a name in the table.
    scale: inverse temperature s, dimensionless, > 0. A Python float, not
      traced.
    num_blocks: number of blocks of classes, static. C need not be a multiple,
      but then the class centres are copied once to pad them.
    gradient: ``'exact'`` or ``'straight_through'``; see `arcface`.

  Returns:
    Loss of each sample in nats, float32 (float64 for float64 input), ``[B]``.
    Differentiable once, in embeddings, class centres and margins (but not in
    t).

  Raises:
    ValueError: if the shapes disagree, ``num_blocks`` is not in ``[1, C]``, or
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
    `ElasticFace <https://arxiv.org/abs/2109.09416>`_, CVPRW 2022, Eqs. 5-7;
    the named losses have the others.
    Differs from the authors' code in: the authors hold ``[B, C]`` on every
    GPU. The value is the same.
  """
  unit_embeddings, class_centers, labels = _validate_blockwise(
    embeddings, class_centers, labels
  )
  if not 1 <= num_blocks <= class_centers.shape[0]:
    raise ValueError(
      f'num_blocks must be in [1, {class_centers.shape[0]}], not {num_blocks}'
    )
  check_kind(kind, gradient)
  margins = margins if isinstance(margins, tuple) else (margins,)
  margins = tuple(
    jnp.asarray(margin, unit_embeddings.dtype) for margin in margins
  )
  names = KINDS[kind].margins
  shapes = [margin.shape for margin in margins]
  if len(margins) != len(names) or not all(
    shape in ((), labels.shape) for shape in shapes
  ):
    raise ValueError(
      f'margins of kind {kind!r} must be {", ".join(names)}, each a scalar or '
      f'[B] = {labels.shape}, not of shapes {shapes}'
    )
  margins = tuple(jnp.broadcast_to(margin, labels.shape) for margin in margins)
  blocks = _blocks.to_blocks(class_centers, num_blocks)
  head = _blocks.Head(class_centers.shape[0], float(scale), kind, gradient)
  return _blockwise(unit_embeddings, blocks, labels, margins, head)
