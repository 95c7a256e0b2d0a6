# SPDX-License-Identifier: Apache-2.0
"""Assembly of a config, a backbone and a number of classes into a run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elasticface_jax import config_rules
from elasticface_jax.losses._blocks import Head
from elasticface_jax.training import augment, loss, optimizer, state, step


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A training run without its data and its place on disk.

  Attributes:
    backbone: a `models.Backbone`.
    loss: a `loss.MarginLoss`.
    layout: groups of samples and blocks of classes.
    backbone_tx: gives the backbone's update, without the rate.
    head_tx: likewise for the class centres; runs on one block at a time.
    rate: learning rate from the step.
    bias_correction: factors of the optimiser's running means from the step.
    flip: probability of a horizontal flip.
    augmentations: the others, in their order; those of probability 0 left out.
    freeze: whether to train the class centres alone. The backbone then runs as
      in evaluation, running statistics included, and does not change.
    precision: of the head's products, a name in `losses._blocks.PRECISIONS`.
  """

  backbone: Any
  loss: Any
  layout: state.Layout
  backbone_tx: optax.GradientTransformation
  head_tx: optax.GradientTransformation
  rate: optax.Schedule
  bias_correction: Callable[[jax.Array], tuple[jax.Array, ...]]
  flip: float
  augmentations: tuple[augment.Augmentation, ...]
  freeze: bool
  precision: str

  @functools.cached_property
  def head(self) -> Head:
    """The softmax over all classes."""
    return self.loss.head(self.layout.num_classes, self.precision)

  def make_keys(self, seed: int) -> dict[str, jax.Array]:
    """Makes the random streams of a run, replicated over all processes."""
    # device_put cannot replicate keys.
    replicated = self.layout.replicated()
    return jax.jit(state.make_keys, out_shardings=replicated)(seed)

  def _init(self, key: jax.Array) -> state.TrainState:
    return state.init(
      key,
      self.backbone,
      self.loss,
      self.backbone_tx,
      self.head_tx,
      self.layout,
    )

  def init(self, key: jax.Array) -> state.TrainState:
    """Makes the state before the first step, with its shardings."""
    shardings = state.shardings(self.layout.mesh)
    return jax.jit(self._init, out_shardings=shardings)(key)

  def abstract_state(self) -> state.TrainState:
    """Returns the shapes, dtypes and shardings of the state."""
    like = jax.eval_shape(self._init, jax.eval_shape(lambda: jax.random.key(0)))
    shardings = state.shardings(self.layout.mesh)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      like,
      jax.tree.broadcast(shardings, like),
    )

  @functools.cached_property
  def _jitted(self) -> Callable:
    return step.make_step(self)

  def step(
    self,
    train_state: state.TrainState,
    images: jax.Array,
    labels: jax.Array,
    keys: dict[str, jax.Array],
  ) -> tuple[state.TrainState, dict[str, jax.Array]]:
    """Runs one training step.

    Args:
      train_state: before the step; consumed.
      images: uint8 ``[G, S, H, W, 3]``, as ``layout.put`` places them.
      labels: int32 ``[G, S]``, likewise.
      keys: from `make_keys`.

    Returns:
      The state after it, and its metrics: scalars by name.
    """
    # Trip counts are arguments: constant ones would be unrolled.
    trips = self.layout.trip_counts()
    return self._jitted(trips, train_state, images, labels, keys)

  def lower(
    self, image_shape: tuple[int, ...] = (112, 112, 3)
  ) -> jax.stages.Lowered:
    """Lowers the step for arrays, and devices, that need not exist.

    Args:
      image_shape: of one image.

    Returns:
      The lowered step; its first argument is ``layout.trip_counts()``.
    """
    layout = self.layout
    shaped = lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    )
    replicated = functools.partial(shaped, sharding=layout.replicated())
    labels = jax.ShapeDtypeStruct(
      (layout.num_groups, layout.group_size), jnp.int32
    )
    images = jax.ShapeDtypeStruct((*labels.shape, *image_shape), jnp.uint8)
    return self._jitted.lower(
      jax.tree.map(replicated, layout.trip_counts()),
      self.abstract_state(),
      shaped(images, layout.sharded()),
      shaped(labels, layout.sharded()),
      jax.tree.map(replicated, jax.eval_shape(state.make_keys, 0)),
    )


def from_config(
  config: Mapping[str, Any],
  backbone: Any,
  num_classes: int,
  mesh: jax.sharding.Mesh,
) -> Task:
  """Assembles the run of a config.

  Args:
    config: nested mapping with the fields ``data.batch_size``,
      ``group_size``, ``augment``, ``head``, ``start.freeze``, ``loss`` and
      ``optim`` of `configs/`.
    backbone: a `models.Backbone`.
    num_classes: C, of the data.
    mesh: the devices.

  Returns:
    The task; computes nothing.

  Raises:
    InputError: if the fields do not fit together, or on these devices.
  """
  head, optim = config['head'], config['optim']
  config_rules.check_values(config_rules.flatten(config))
  named_loss = loss.by_name(config['loss'])
  layout = state.Layout(
    batch_size=config['data']['batch_size'],
    group_size=config['group_size'],
    num_classes=num_classes,
    num_blocks=head['num_blocks'],
    subcenters=head['subcenters'],
    sample_rate=head['sample_rate'],
    mesh=mesh,
  )
  head_tx = optimizer.from_config(optim)
  return Task(
    backbone=backbone,
    loss=named_loss,
    layout=layout,
    backbone_tx=optax.chain(
      optax.clip_by_global_norm(optim['backbone_clip_norm']), head_tx
    ),
    head_tx=head_tx,
    rate=optimizer.learning_rate(
      base=optim['lr'],
      batch_size=layout.batch_size,
      warmup_steps=optim['warmup_steps'],
      decay_steps=optim['decay_steps'],
      decay_factor=optim['decay_factor'],
      decay_end=optim['decay_end'],
      decay_power=optim['decay_power'],
    ),
    bias_correction=optimizer.bias_correction(optim),
    flip=config['augment']['flip'],
    augmentations=augment.from_config(config['augment']),
    freeze=config['start']['freeze'],
    precision=head['precision'],
  )
