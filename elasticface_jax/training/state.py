# SPDX-License-Identifier: Apache-2.0
"""The train state: global arrays, and where on the mesh they live."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from elasticface_jax.errors import InputError
from elasticface_jax.losses.trees import Devices

AXIS = 'devices'

# The random streams of a run; each use folds in the step. Order matters: the
# root key is split by position.
STREAMS = ('init', 'margins', 'augment', 'dropout')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run carries from step to step.

  K blocks of c classes each; the last block's padding is trained on nothing.
  """

  step: Any  # Steps done, int32 scalar.
  params: Any  # Of the backbone.
  batch_stats: Any  # Of the backbone.
  backbone_opt: Any  # Momentum of the backbone.
  class_centers: Any  # [K, c, D]
  head_opt: Any  # Momentum of the class centres, [K, c, D].


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a step is cut: groups of samples and blocks of classes.

  Both are fixed by the config; the mesh only decides where they run.
  """

  batch_size: int
  group_size: int
  num_classes: int
  num_blocks: int
  mesh: jax.sharding.Mesh

  def __post_init__(self):
    n = self.mesh.size
    for field, value in (
      ('data.batch_size', self.batch_size),
      ('group_size', self.group_size),
    ):
      if value < 1:
        raise InputError(f'{field}={value} must be at least 1')
    if self.batch_size % self.group_size:
      raise InputError(
        f'data.batch_size={self.batch_size} is not a multiple of '
        f'group_size={self.group_size}: change one of them'
      )
    if not 1 <= self.num_blocks <= self.num_classes:
      raise InputError(
        f'head.num_blocks={self.num_blocks} must be between 1 and the '
        f'{self.num_classes} classes of the data'
      )
    for what, count in (
      (f'groups (data.batch_size / group_size = {self.num_groups})', None),
      (f'blocks (head.num_blocks = {self.num_blocks})', self.num_blocks),
    ):
      if (count or self.num_groups) % n:
        raise InputError(
          f'{n} devices do not divide the {what}: change the config, or run '
          'on fewer devices'
        )

  @property
  def num_groups(self) -> int:
    """Groups of a batch."""
    return self.batch_size // self.group_size

  @property
  def block_size(self) -> int:
    """Classes of a block, c."""
    return -(-self.num_classes // self.num_blocks)

  @property
  def devices(self) -> Devices:
    """The mesh axis, as the sums want it."""
    return Devices(AXIS, self.mesh.size)

  def spread(self) -> NamedSharding:
    """Sharding of arrays whose first dim is groups or blocks."""
    return NamedSharding(self.mesh, P(AXIS))

  def trip_counts(self) -> tuple[np.ndarray, np.ndarray]:
    """Groups and blocks of a device: arguments of the step (`losses.rows`)."""
    n = self.mesh.size
    return (
      np.asarray(self.num_groups // n, np.int32),
      np.asarray(self.num_blocks // n, np.int32),
    )


def make_mesh() -> jax.sharding.Mesh:
  """One axis over all devices of all processes."""
  return jax.make_mesh(
    (jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)
  )


def make_keys(seed: int) -> dict[str, jax.Array]:
  """The random streams of a run, by name, from one root key."""
  keys = jax.random.split(jax.random.key(seed), len(STREAMS))
  return dict(zip(STREAMS, keys, strict=True))


def specs() -> TrainState:
  """What is replicated and what is spread, as a prefix of the state."""
  return TrainState(P(), P(), P(), P(), P(AXIS), P(AXIS))


def shardings(mesh: jax.sharding.Mesh) -> TrainState:
  """The same as shardings on a mesh."""
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    specs(),
    is_leaf=lambda s: isinstance(s, P),
  )


def init(key, backbone, backbone_tx, head_tx, layout: Layout) -> TrainState:
  """The state before the first step.

  Class centres are drawn from N(0, 0.01^2) as in the reference; their padding
  is zero. The draw of a class does not depend on the number of blocks.
  """
  backbone_key, head_key = jax.random.split(key)
  params, batch_stats = backbone.init(backbone_key)
  shape = (layout.num_blocks, layout.block_size, backbone.embedding_dim)
  centers = 0.01 * jax.random.normal(head_key, shape, jnp.float32)
  classes = jnp.arange(shape[0] * shape[1]).reshape(shape[:2])
  real = classes < layout.num_classes
  centers = jnp.where(real[:, :, None], centers, 0)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    backbone_opt=backbone_tx.init(params),
    class_centers=centers,
    head_opt=head_tx.init(centers),
  )
