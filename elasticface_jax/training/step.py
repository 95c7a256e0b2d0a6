# SPDX-License-Identifier: Apache-2.0
"""One training step over groups of samples and blocks of classes.

The bits of its result depend on the state, the batch and the keys, and not on
the number of devices. What it takes is told in `losses.rows` (loops) and
`losses.trees` (sums); the order of the story:

1. every device runs its groups forward,
2. all embeddings and their lengths go everywhere (``B * (D + 1)`` numbers),
3. every device finds the target cosines of the classes it has; these go
   everywhere, and every device has the margins of all samples,
4. every device makes its blocks' logits and keeps three numbers a sample,
5. all of these go everywhere, and every device has the loss of all samples,
6. every device makes its blocks' logits again, updates its class centres, and
   has its blocks' parts of the gradient of the embeddings,
7. their sum goes back to the device that has the group,
8. every device runs its groups backward,
9. the sum over all groups goes everywhere, and every device updates its copy
   of the backbone.

Letters: B samples in G groups of S, g groups here; D embedding size; K blocks
of classes, k here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from elasticface_jax.losses import blockwise, rows, sampling
from elasticface_jax.losses.by_name import Given
from elasticface_jax.losses.logits import normalize, norms
from elasticface_jax.losses.trees import (
  Devices,
  tree_sum,
  tree_sum_everywhere,
  tree_sum_scatter,
)
from elasticface_jax.training import augment, groups
from elasticface_jax.training.state import AXIS, Layout, specs

# Images that go through the network at a time in verification, and how many
# such rows all devices together take at least.
EMBED_ROW = 16
EMBED_ROWS = 8


def make_step(
  backbone: Any,
  loss: Any,
  backbone_tx: optax.GradientTransformation,
  head_tx: optax.GradientTransformation,
  rate: optax.Schedule,
  layout: Layout,
  *,
  flip: float,
  freeze: bool = False,
):
  """Makes the compiled training step.

  Args:
    backbone: a `models.Backbone`.
    loss: a `losses.MarginLoss`.
    backbone_tx: gives the backbone's update, without the rate.
    head_tx: the same for the class centres; runs on one block at a time.
    rate: learning rate from the step.
    layout: how the step is cut.
    flip: probability of a horizontal flip.
    freeze: whether to train the class centres alone. The backbone then is as
      in evaluation, running statistics and all, and stays.

  Returns:
    ``step(state, images, labels, keys) -> (state, measured)``. Images uint8
    ``[G, S, H, W, 3]`` and labels int32 ``[G, S]`` are spread over the
    devices by groups; keys are those of `state.make_keys`. The state given is
    consumed. Measured: a dict of scalars, replicated. It is a
    `functools.partial` of a jitted function, which
    ``step.func.lower(*step.args, state, ...)`` compiles ahead.
  """
  devices = layout.devices
  batch_size = layout.batch_size
  head = loss.head(layout.num_classes)

  def step(trip_counts, state, images, labels, keys):
    group_trips, block_trips = trip_counts
    count = images.shape[0]
    first_group = devices.index() * count
    keys = {
      name: jax.random.fold_in(key, state.step) for name, key in keys.items()
    }

    def own(samples):
      """What this device's groups have of a value for each sample."""
      grouped = samples.reshape(-1, layout.group_size)
      return jax.lax.dynamic_slice_in_dim(grouped, first_group, count)

    # 1. Images to embeddings, group by group.
    drawn = augment.draw(keys['augment'], batch_size, flip=flip)

    def embed_group(params, inputs):
      embeddings, batch_stats = backbone.apply(
        params,
        state.batch_stats,
        augment.apply(inputs['images'], inputs['drawn']),
        train=not freeze,
        key=jax.random.fold_in(keys['dropout'], inputs['group']),
      )
      outputs = {'unit': normalize(embeddings), 'norm': norms(embeddings)}
      return outputs, groups.flatten(batch_stats)

    inputs = {
      'images': images,
      'drawn': jax.tree.map(own, drawn),
      'group': first_group + jnp.arange(count),
    }
    if freeze:
      outputs = rows.on_each(
        lambda group: embed_group(state.params, group)[0], inputs, group_trips
      )
    else:
      outputs, batch_stats, residuals = groups.forward(
        embed_group, state.params, inputs, group_trips
      )

    # 2. and 3. Embeddings to margins.
    embeddings = devices.gather(outputs['unit']).reshape(batch_size, -1)
    labels = devices.gather(labels).reshape(batch_size)
    first_block = devices.index() * layout.local_blocks
    targets = blockwise.block_targets(
      embeddings,
      state.class_centers,
      labels,
      first_block=first_block,
      trip_count=block_trips,
    )
    targets = devices.gather(targets).sum(axis=0)

    def make_margins(norms):
      made = loss.make(
        Given(
          keys['margins'], targets, norms, state.loss_state, layout.group_size
        )
      )
      return (made.margins, made.regularizer), made.state

    gathered_norms = devices.gather(outputs['norm']).reshape(batch_size)
    (margins, regularizer), margins_vjp, loss_state = jax.vjp(
      make_margins, gathered_norms, has_aux=True
    )

    # 4. and 5. Margins to losses, block by block.
    classes = _choose_classes(
      keys['sampling'], labels, first_block, block_trips, layout
    )
    blocks = {'classes': classes, 'trip_count': block_trips}
    statistics = blockwise.block_statistics(
      embeddings, state.class_centers, labels, targets, margins, head, **blocks
    )
    softmax = blockwise.margin_softmax(
      jax.tree.map(devices.gather, statistics), targets, margins, head
    )

    # 6. The objective is the mean over the batch.
    weights = jnp.full(batch_size, 1 / batch_size, embeddings.dtype)
    learning_rate = rate(state.step)

    def descend(params, opt, gradients, tx):
      updates, opt = tx.update(gradients, opt, params)
      params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
      return params, opt

    parts, (class_centers, head_opt), squares = blockwise.block_gradients(
      embeddings,
      (state.class_centers, state.head_opt),
      labels,
      softmax,
      weights,
      head,
      centers=lambda slots: slots[0],
      update=lambda slots, gradient: descend(*slots, gradient, head_tx),
      **blocks,
    )

    # 7. to 9. Back through the groups.
    backbone_parts = {}
    gradient_norm = jnp.zeros(())
    if not freeze:
      to_margins = tuple(g * weights for g in softmax.margin_gradients)
      (to_norms,) = margins_vjp((to_margins, weights))
      to_unit = tree_sum_scatter(parts, devices)
      cotangents = {
        'unit': to_unit.reshape(count, layout.group_size, -1),
        'norm': own(to_norms),
      }
      gradients = groups.backward(residuals, cotangents, group_trips)
      gradient = groups.unflatten(
        tree_sum_everywhere(gradients, devices), state.params
      )
      gradient_norm = optax.tree.norm(gradient)
      params, backbone_opt = descend(
        state.params, state.backbone_opt, gradient, backbone_tx
      )
      mean_stats = tree_sum_everywhere(batch_stats, devices) / layout.num_groups
      backbone_parts = {
        'params': params,
        'batch_stats': groups.unflatten(mean_stats, state.batch_stats),
        'backbone_opt': backbone_opt,
      }

    measured = {
      'loss': (softmax.loss + regularizer).mean(),
      # Without the margin: with it, training accuracy reads as 0 for long.
      # Among the classes of this step: with fewer of them it reads higher.
      'accuracy': (targets > softmax.largest_cosine).mean(dtype=jnp.float32),
      'target_angle': jnp.arccos(jnp.clip(targets, -1, 1)).mean(),
      'embedding_norm': gathered_norms.mean(),
      'backbone_gradient_norm': gradient_norm,
      'head_gradient_norm': jnp.sqrt(tree_sum(devices.gather(squares))),
      'learning_rate': jnp.asarray(learning_rate, jnp.float32),
    }
    for name, margin in zip(loss.margin_names, margins, strict=True):
      measured |= {f'{name}_mean': margin.mean(), f'{name}_std': margin.std()}
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      class_centers=class_centers,
      head_opt=head_opt,
      loss_state=loss_state,
      **backbone_parts,
    )
    return state, measured

  spread_step = jax.shard_map(
    step,
    mesh=layout.mesh,
    in_specs=(P(), specs(), P(AXIS), P(AXIS), P()),
    out_specs=(specs(), P()),
    check_vma=False,
  )
  # Trip counts are no constants: known ones would be unrolled.
  return functools.partial(
    jax.jit(spread_step, donate_argnums=1), layout.trip_counts()
  )


def _choose_classes(
  key: jax.Array,
  labels: jax.Array,
  first_block: jax.Array,
  trip_count: jax.Array,
  layout: Layout,
) -> sampling.AllClasses | sampling.Sample:
  """The classes of this device's blocks that a step is about."""
  if layout.sample_rate == 1:
    return sampling.AllClasses(first_block, layout.block_size)
  return sampling.draw(
    key,
    labels,
    num_classes=layout.num_classes,
    num_blocks=layout.num_blocks,
    sample_rate=layout.sample_rate,
    count=layout.local_blocks,
    first_block=first_block,
    trip_count=trip_count,
  )


def make_embed(backbone: Any, mesh: jax.sharding.Mesh):
  """Makes the compiled embedding of images, as verification wants it.

  The bits do not depend on the number of devices: images go through the
  network in rows of a fixed size, one row after the other.

  Args:
    backbone: a `models.Backbone`.
    mesh: its devices share the images.

  Returns:
    ``embed(params, batch_stats, images) -> embeddings``: uint8
    ``[M, H, W, 3]`` to float32 numpy ``[M, D]``: the sum of the embeddings of
    the image and of its mirror image, not normalised. Every process gives all
    images and gets all embeddings.
  """
  devices = Devices(AXIS, mesh.size)
  count = -(-EMBED_ROWS // mesh.size)  # Rows of a device at a time.

  def embed_row(params, batch_stats, images):
    images = augment.scale(images)
    plain, _ = backbone.apply(params, batch_stats, images, train=False)
    mirrored, _ = backbone.apply(
      params, batch_stats, images[:, :, ::-1], train=False
    )
    return plain + mirrored

  def embed(params, batch_stats, images, trip_count):
    embeddings = rows.on_each(
      lambda row: embed_row(params, batch_stats, row), images, trip_count
    )
    return devices.gather(embeddings)

  compiled = jax.jit(
    jax.shard_map(
      embed,
      mesh=mesh,
      in_specs=(P(), P(), P(AXIS), P()),
      out_specs=P(),
      check_vma=False,
    )
  )
  shape = (count * mesh.size, EMBED_ROW)
  size = shape[0] * shape[1]
  spread = jax.sharding.NamedSharding(mesh, P(AXIS))
  trip_count = np.asarray(count, np.int32)

  def embed_all(params, batch_stats, images):
    chunks = []
    for start in range(0, len(images), size):
      chunk = images[start : start + size]
      padded = np.zeros((size, *chunk.shape[1:]), chunk.dtype)
      padded[: len(chunk)] = chunk
      padded = padded.reshape(*shape, *chunk.shape[1:])
      given = jax.make_array_from_callback(
        padded.shape, spread, padded.__getitem__
      )
      embeddings = compiled(params, batch_stats, given, trip_count)
      embeddings = np.asarray(embeddings).reshape(size, -1)
      chunks.append(embeddings[: len(chunk)])
    return np.concatenate(chunks)

  return embed_all
