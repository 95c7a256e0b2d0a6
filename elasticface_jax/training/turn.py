# SPDX-License-Identifier: Apache-2.0
"""One turn of a training step: a group goes forward, into the head, and back.

In turn r every device takes its r-th group. Nothing forces all groups to go
forward before the first goes back: the loss of a sample depends on its own
embedding, on the class centres, and at most on its own group. So the residuals
of the backward pass live no longer than the turn, and memory is that of one
group however many a device has.

The five parts of a turn, in `run`:

1. the backbone embeds the device's own group;
2. the target cosines, found on the devices that hold the classes, go to the
   group's owner, which computes the margins;
3. every device computes the logits of its blocks for the groups of all devices;
   their statistics go to the owner, which joins them to losses;
4. every device computes the logits again, for its blocks' part of the gradient
   of the embeddings; their sum goes to the owner;
5. the backbone's backward pass of the own group.

All arithmetic of the parts 2 to 5 is inside loops (`exact.loops`): between the
parts there is a collective on several devices and nothing on one, and XLA would
fuse across it. Between loops arrays are only moved, or added by a tree.

Letters: S samples of a group, n devices, D embedding size, k blocks here and K
in all.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import RunningTree, tree_reduce_scatter
from elasticface_jax.losses import _blocks
from elasticface_jax.losses._arrays import normalize
from elasticface_jax.losses._blocks import Cotangents, Samples
from elasticface_jax.losses._logits import norms
from elasticface_jax.training import augment
from elasticface_jax.training.loss import Given
from elasticface_jax.training.state import TrainState, TripCounts

if TYPE_CHECKING:
  from elasticface_jax.training.task import Task


class Shared(NamedTuple):
  """Values that all turns of a step share."""

  state: TrainState  # Before the step; the class centres of this device.
  keys: dict[str, jax.Array]  # Of the step.
  images: jax.Array  # Of this device's groups, uint8 [g, S, H, W, 3].
  labels: jax.Array  # Of the groups of each turn, int32 [g, n, S].
  drawn: dict[str, jax.Array]  # Augmentation of all groups, [G, S, ...].
  classes: Any  # Those that take part in this step (`losses._sampling`).
  centers: jax.Array  # Theirs, [k, s, u D].
  trips: TripCounts


class Group(NamedTuple):
  """Values of one group that outlive its turn, ``[S]`` or a scalar each."""

  samples: Samples
  cotangents: Cotangents
  loss: jax.Array  # With its regulariser.
  largest_cosine: jax.Array  # With another class.
  norms: jax.Array
  loss_state: Any  # As if this group were the batch.


class _Forward(NamedTuple):
  embeddings: jax.Array  # [S, D]
  pull_back: Any  # Maps the gradient of the embeddings to the parameters'.
  batch_stats: Any


class _Own(NamedTuple):
  """The device's own group, as far as its margins depend on it."""

  target_cosines: jax.Array  # [S]
  number: jax.Array  # Of the group in the batch.
  loss_state: Any  # Before the step.


def run(
  task: 'Task', shared: Shared, turn: jax.Array
) -> tuple[Group, dict[str, Any]]:
  """Runs one turn.

  Args:
    task: the assembled run.
    shared: values that all turns of the step share.
    turn: its number, r.

  Returns:
    Values of the device's own group that outlive the turn, and values to be
    summed over all groups: ``gradient`` of the parameters and ``batch_stats``,
    none where the backbone is frozen.
  """
  number = task.layout.first_group() + turn
  labels = loops.read(shared.labels, turn)

  # 1. The backbone, forward.
  forward = _forward(task, shared, turn, number)
  unit, own_norms = loops.isolate(
    lambda x: (normalize(x), norms(x)), forward.embeddings, shared.trips.once
  )

  # 2. Margins.
  units = task.layout.devices.gather(unit[None])
  targets = _target_cosines(task, shared, units, labels)
  own = _Own(targets, number, shared.state.loss_state)
  made = loops.isolate(
    lambda x: _make_margins(task, shared, *x),
    (own, own_norms),
    shared.trips.once,
  )
  samples = _share_samples(task, units, labels, targets, made.margins)

  # 3. Losses.
  softmax, cotangents, to_margins = _softmax(
    task, shared, samples, targets, made
  )
  kept = Group(
    samples=Samples(
      unit, labels[task.layout.devices.index()], targets, made.margins
    ),
    cotangents=cotangents,
    loss=softmax.loss,
    largest_cosine=softmax.largest_cosine,
    norms=own_norms,
    loss_state=made.state,
  )
  if task.freeze:
    return kept, {}

  # 4. The gradient of the embeddings.
  to_unit = _to_embeddings(task, shared, samples, cotangents)

  # 5. The backbone, backward.
  to_embeddings = loops.isolate(
    lambda x: _pull_through_margins(task, shared, *x),
    (forward.embeddings, own, to_unit, to_margins),
    shared.trips.once,
  )
  (gradient,) = forward.pull_back(to_embeddings)
  return kept, {'gradient': gradient, 'batch_stats': forward.batch_stats}


def shape_of_group(task: 'Task', state: TrainState) -> Group:
  """Returns the shapes of a `Group`, without tracing the backbone."""
  size, dim = task.layout.group_size, task.backbone.embedding_dim
  dtype = state.class_centers.dtype
  each = jax.ShapeDtypeStruct((size,), dtype)
  return Group(
    samples=Samples(
      unit_embeddings=jax.ShapeDtypeStruct((size, dim), dtype),
      labels=jax.ShapeDtypeStruct((size,), jnp.int32),
      target_cosines=each,
      margins=(each,) * len(task.loss.margin_names),
    ),
    cotangents=Cotangents(each, each, each),
    loss=each,
    largest_cosine=each,
    norms=each,
    loss_state=jax.eval_shape(lambda x: x, state.loss_state),
  )


def _forward(task, shared, turn, number) -> _Forward:
  """Embeds the device's own group."""
  images = loops.read(shared.images, turn)
  drawn = loops.read(shared.drawn, number)

  def embed(params):
    return task.backbone.apply(
      params,
      shared.state.batch_stats,
      augment.apply(images, drawn, task.augmentations),
      train=not task.freeze,
      key=jax.random.fold_in(shared.keys['dropout'], number),
    )

  if task.freeze:
    return _Forward(embed(shared.state.params)[0], None, None)
  return _Forward(*jax.vjp(embed, shared.state.params, has_aux=True))


def _target_cosines(task, shared, units, labels):
  """Finds the target cosines of the own group, on any device."""
  devices, layout = task.layout.devices, task.layout
  first_class = layout.first_block() * layout.block_size
  groups = loops.with_spare((units, labels))

  def of_group(j):
    unit, labels = loops.read(groups, j)
    return _blocks.block_target_cosines(
      unit, shared.state.class_centers, labels, first_class=first_class
    )

  with jax.named_scope('devices'):
    found = loops.stack(of_group, layout.mesh.size, shared.trips.devices)
  # Each is found on one device and 0 on all others: the order does not matter.
  with jax.named_scope('over_devices'):
    return devices.exchange(found).sum(axis=0)


def _make_margins(task, shared, own, norms):
  """Computes the margins of the own group."""
  return task.loss.make(
    Given(
      key=shared.keys['margins'],
      first_sample=own.number * task.layout.group_size,
      target_cosines=own.target_cosines,
      norms=norms,
      state=own.loss_state,
    )
  )


def _share_samples(task, units, labels, targets, margins) -> Samples:
  """Sends targets and margins to all devices, ``[n, S]`` each."""
  everywhere = task.layout.devices.gather(jnp.stack([targets, *margins])[None])
  targets, *margins = jnp.moveaxis(everywhere, 1, 0)
  return Samples(units, labels, targets, tuple(margins))


def _softmax(task, shared, samples, targets, made):
  """Computes the losses of the own group over all blocks of all devices."""
  layout, head = task.layout, task.head
  groups = loops.with_spare(samples)

  def of_block(i):
    centers, numbers = _block(task, shared, i)
    of_group = lambda j: _blocks.block_statistics(
      loops.read(groups, j), centers, numbers, head
    )
    with jax.named_scope('devices'):
      return loops.stack(of_group, layout.mesh.size, shared.trips.devices)

  with jax.named_scope('blocks'):
    statistics = loops.stack(of_block, layout.local_blocks, shared.trips.blocks)
  # [k, n, S] each to [n, k, 3, S], and on to [K, S] each of the own group.
  by_group = jnp.moveaxis(jnp.stack(statistics, axis=2), 1, 0)
  own = layout.devices.exchange(by_group)
  own = own.reshape(layout.num_blocks, 3, -1)
  statistics = _blocks.BlockStatistics(*jnp.moveaxis(own, 1, 0))

  def join(given):
    statistics, targets, made = given
    softmax = _blocks.join_blocks(statistics, targets, made.margins, head)
    # The objective is the mean over the batch.
    weight = 1 / layout.batch_size
    to_margins = tuple(g * weight for g in softmax.margin_gradients)
    cotangents = _blocks.weigh(softmax, weight)
    softmax = softmax._replace(loss=softmax.loss + made.regularizer)
    return softmax, cotangents, to_margins

  return loops.isolate(join, (statistics, targets, made), shared.trips.once)


def _to_embeddings(task, shared, samples, cotangents):
  """Computes the gradient of the own group's unit embeddings, ``[S, D]``."""
  layout, head = task.layout, task.head
  devices, count = layout.devices, layout.mesh.size
  everywhere = devices.gather(jnp.stack(cotangents)[None])
  cotangents = Cotangents(*jnp.moveaxis(everywhere, 1, 0))
  groups = loops.with_spare((samples, cotangents))

  def add_block(i, tree):
    centers, numbers = _block(task, shared, i)

    def part_of(j):
      to_each = _blocks.block_cotangents(
        *loops.read(groups, j), centers, numbers, head
      )
      return _blocks.product(to_each, centers, (1, 0), head.precision)

    with jax.named_scope('devices'):
      parts = loops.stack(part_of, count, shared.trips.devices)
    return tree.add(i, parts)

  units = samples.unit_embeddings
  tree = RunningTree.start(layout.local_blocks, shared.trips.blocks, units)
  with jax.named_scope('blocks'):
    tree = jax.lax.fori_loop(0, shared.trips.blocks, add_block, tree)
  return tree_reduce_scatter(tree.sums(layout.local_blocks), devices)[0]


def _block(task, shared, i):
  """Reads the unit sub-centres and class numbers of a block."""
  centers = loops.read(shared.centers, i)
  unit = _blocks.unit_centers(centers, task.backbone.embedding_dim)
  return unit, shared.classes.ids(i)


def _pull_through_margins(task, shared, embeddings, own, to_unit, to_margins):
  """Computes the gradient of the embeddings, also through their norms."""

  def forward(embeddings):
    made = _make_margins(task, shared, own, norms(embeddings))
    return normalize(embeddings), made.margins, made.regularizer

  (_, _, regularizer), pull_back = jax.vjp(forward, embeddings)
  weights = jnp.full_like(regularizer, 1 / task.layout.batch_size)
  (to_embeddings,) = pull_back((to_unit, to_margins, weights))
  return to_embeddings
