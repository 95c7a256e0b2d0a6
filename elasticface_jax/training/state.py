# SPDX-License-Identifier: Apache-2.0
"""The train state: global arrays, their layout and their shardings."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from elasticface_jax.errors import InputError
from elasticface_jax.exact import loops
from elasticface_jax.exact.trees import Devices
from elasticface_jax.losses import _sampling

AXIS = 'devices'

# More rows make the products of the head no faster, and cost memory.
HEAD_ROWS = 1024

# The random streams of a run; each use folds in the step. Append new streams at
# the end, and never reorder, insert or remove one: the root key is split by
# position, so all streams behind it would change, and the bits of every run.
STREAMS = ('init', 'margins', 'augment', 'dropout', 'sampling')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Arrays that a run carries from step to step.

  K blocks of c classes each; the padding of the last block stays zero.
  """

  step: Any  # Steps done, int32 scalar.
  params: Any  # Of the backbone.
  batch_stats: Any  # Of the backbone.
  backbone_opt: Any  # Momentum or moments of the backbone.
  class_centers: Any  # [K, c, u D], u sub-centres of a class, most often 1.
  head_opt: Any  # Those of the class centres, [K, c, u D] each.
  loss_state: Any  # Of the loss; an empty tuple for most.


class TripCounts(NamedTuple):
  """Trip counts of the loops of a step, arguments of it (see `exact.loops`)."""

  turns: Any  # Groups of a device, g.
  blocks: Any  # Blocks of a device, k.
  devices: Any  # Groups of a turn: one of each device, n.
  rows: Any  # Parts of the batch for the gradient of the class centres.
  once: Any  # 1


@dataclasses.dataclass(frozen=True)
class Layout:
  """Division of a step into groups of samples and blocks of classes.

  Both are fixed by the config; the mesh only decides where they run.
  """

  batch_size: int
  group_size: int
  num_classes: int
  num_blocks: int
  subcenters: int  # Centres of each class; 1 for most.
  sample_rate: float  # Share of a block's classes in a step; 1 for all.
  mesh: jax.sharding.Mesh

  def __post_init__(self):
    n = self.mesh.size
    if not 1 <= self.num_blocks <= self.num_classes:
      raise InputError(
        f'head.num_blocks={self.num_blocks} must be between 1 and the '
        f'{self.num_classes} classes of the data'
      )
    for name, fields, count in (
      ('groups', 'data.batch_size / group_size', self.num_groups),
      ('blocks', 'head.num_blocks', self.num_blocks),
    ):
      if count % n:
        raise InputError(
          f'{n} devices do not divide the {name} ({fields} = {count}): change '
          'the config, or run on fewer devices'
        )

  @property
  def num_groups(self) -> int:
    """Number of groups in a batch."""
    return self.batch_size // self.group_size

  @property
  def block_size(self) -> int:
    """Number of classes in a block, c."""
    return _sampling.block_size(self.num_classes, self.num_blocks)

  @property
  def local_groups(self) -> int:
    """Number of groups on a device, g."""
    return self.num_groups // self.mesh.size

  @property
  def local_blocks(self) -> int:
    """Number of blocks on a device, k."""
    return self.num_blocks // self.mesh.size

  def first_group(self) -> jax.Array | int:
    """Returns the number of this device's first group, inside the step."""
    return self.devices.index() * self.local_groups

  def first_block(self) -> jax.Array | int:
    """Returns the number of this device's first block, inside the step."""
    return self.devices.index() * self.local_blocks

  @property
  def head_rows(self) -> int:
    """Number of samples whose logits with a block are held at once.

    For the gradient of the class centres: the samples of as many groups as
    divide the batch and have at most `HEAD_ROWS` of them.
    """
    most = max(1, HEAD_ROWS // self.group_size)
    counts = range(1, min(most, self.num_groups) + 1)
    return self.group_size * max(n for n in counts if self.num_groups % n == 0)

  @property
  def devices(self) -> Devices:
    """The mesh axis, as `exact.trees` takes it."""
    return Devices(AXIS, self.mesh.size)

  def sharded(self) -> NamedSharding:
    """Sharding of arrays whose first dim is groups or blocks."""
    return NamedSharding(self.mesh, P(AXIS))

  def replicated(self) -> NamedSharding:
    """Sharding of arrays that every device holds in full."""
    return NamedSharding(self.mesh, P())

  def local_samples(self) -> np.ndarray:
    """Returns the indices of this process's samples in a batch, int64."""
    share = self.sharded().addressable_devices_indices_map((self.num_groups,))
    groups = np.concatenate(
      sorted(
        (np.arange(self.num_groups)[place] for place in share.values()),
        key=lambda groups: groups[0],
      )
    )
    samples = groups[:, None] * self.group_size + np.arange(self.group_size)
    return samples.reshape(-1)

  def put(self, samples: np.ndarray) -> jax.Array:
    """Assembles the batch of all processes from this one's samples.

    Args:
      samples: at the indices of `local_samples`, ``[b, ...]``.

    Returns:
      All samples, sharded by groups, ``[G, S, ...]``.
    """
    rest = samples.shape[1:]
    return jax.make_array_from_process_local_data(
      self.sharded(),
      samples.reshape(-1, self.group_size, *rest),
      (self.num_groups, self.group_size, *rest),
    )

  def trip_counts(self) -> TripCounts:
    """Returns the trip counts of the step.

    They are the same in all processes, which loops with collectives rely on:
    `run_folder.claim` compares the values that they follow from.
    """
    counts = (
      self.local_groups,
      self.local_blocks,
      self.mesh.size,
      self.batch_size // self.head_rows,
      1,
    )
    return TripCounts(*(np.asarray(count, np.int32) for count in counts))


def make_mesh(count: int | None = None) -> jax.sharding.Mesh:
  """Makes a mesh of one axis over the first devices, by default over all."""
  devices = jax.devices()[:count]
  return jax.make_mesh(
    (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def make_keys(seed: int) -> dict[str, jax.Array]:
  """Makes the random streams of a run, by name, from one root key."""
  root = jax.random.key(seed, impl='threefry2x32')
  keys = jax.random.split(root, len(STREAMS))
  return dict(zip(STREAMS, keys, strict=True))


def specs() -> TrainState:
  """Returns the partition specs of the state, as a prefix of its tree."""
  return TrainState(
    step=P(),
    params=P(),
    batch_stats=P(),
    backbone_opt=P(),
    class_centers=P(AXIS),
    head_opt=P(AXIS),
    loss_state=P(),
  )


def shardings(mesh: jax.sharding.Mesh) -> TrainState:
  """Returns `specs` as NamedShardings on a mesh."""
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    specs(),
    is_leaf=lambda s: isinstance(s, P),
  )


def init(
  key, backbone, loss, backbone_tx, head_tx, layout: Layout
) -> TrainState:
  """Makes the state before the first step.

  Class centres are drawn from N(0, 0.01^2) as in the reference, each from a key
  of its own, block by block on the device of the block: no device ever holds
  more than its share, and the draw does not depend on the number of blocks.
  Their padding is zero.
  """
  backbone_key, head_key = jax.random.split(key)
  params, batch_stats = backbone.init(backbone_key)
  size, count = layout.block_size, layout.local_blocks
  width = layout.subcenters * backbone.embedding_dim

  def draw_center(key, number):
    key = jax.random.fold_in(key, number)
    center = jax.random.normal(key, (width,), jnp.float32)
    return jnp.where(number < layout.num_classes, 0.01 * center, 0)

  def draw(key, trip_count):
    first = layout.first_block()

    def draw_block(i):
      numbers = (first + i) * size + jnp.arange(size)
      return jax.vmap(draw_center, (None, 0))(key, numbers)

    return loops.stack(draw_block, count, trip_count)

  centers = jax.shard_map(
    draw,
    mesh=layout.mesh,
    in_specs=(P(), P()),
    out_specs=P(AXIS),
    check_vma=False,
  )(head_key, layout.trip_counts().blocks)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    backbone_opt=backbone_tx.init(params),
    class_centers=centers,
    head_opt=head_tx.init(centers),
    loss_state=loss.init(),
  )


def take_over(
  state: TrainState,
  layout: Layout,
  *,
  params: Any,
  batch_stats: Any,
  class_centers: np.ndarray | None = None,
) -> TrainState:
  """Puts trained weights into a state before its first step.

  Args:
    state: from `init`, on the layout's mesh.
    layout: of the run.
    params: of the backbone, NumPy arrays, in every process.
    batch_stats: likewise.
    class_centers: of all classes, ``[C, u D]``; None to keep the drawn ones.

  Returns:
    The state, with the dtypes and shardings of the one given.
  """

  def put(old, new):
    # Not device_put: the mesh may span several processes.
    new = np.asarray(new, old.dtype)
    return jax.make_array_from_callback(
      old.shape, old.sharding, new.__getitem__
    )

  changes = {
    'params': jax.tree.map(put, state.params, params),
    'batch_stats': jax.tree.map(put, state.batch_stats, batch_stats),
  }
  if class_centers is not None:
    shape = state.class_centers.shape
    blocks = np.zeros((shape[0] * shape[1], shape[2]), class_centers.dtype)
    blocks[: layout.num_classes] = class_centers
    changes['class_centers'] = put(state.class_centers, blocks.reshape(shape))
  return dataclasses.replace(state, **changes)
