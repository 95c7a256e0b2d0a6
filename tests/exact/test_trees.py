# SPDX-License-Identifier: Apache-2.0
"""Tree sums in one order, bit for bit, on any number of devices.

The parts have magnitudes from 1e-3 to 1e3, so that another order gives other
bits.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from elasticface_jax.exact.trees import (
  Devices,
  RunningTree,
  _local_levels,
  tree_all_reduce,
  tree_reduce_scatter,
  tree_sum,
)

# Some give odd counts on a device: 24 on 8 is 3, 40 is 5.
COUNTS = (8, 16, 24, 40)
# Parts and rows; 1 and 13 rows are not a multiple of the devices.
SHAPES = [*((count, rows) for count in COUNTS for rows in (13, 16)), (8, 1)]


def make_parts(count, *shape):
  rng = np.random.default_rng(count)
  parts = rng.normal(size=(count, *shape))
  parts *= 10 ** rng.uniform(-3, 3, (count, *shape))
  return parts.astype(np.float32)


def pairwise(parts):
  """Sums the same tree from the top: its left side is a full tree."""
  if len(parts) == 1:
    return parts[0]
  left = 1
  while left * 2 < len(parts):
    left *= 2
  return pairwise(parts[:left]) + pairwise(parts[left:])


def one_after_another(parts):
  return functools.reduce(np.add, parts)


def test_tree_sum_is_the_pairwise_sum():
  all_parts = {count: make_parts(count, 64) for count in range(1, 18)}
  sums = jax.jit(functools.partial(jax.tree.map, tree_sum))(all_parts)
  for count, parts in all_parts.items():
    want = pairwise(parts)
    assert sums[count].dtype == want.dtype == np.float32
    np.testing.assert_array_equal(sums[count], want)
    # Another order gives other bits.
    if count > 3:
      assert np.any(want != one_after_another(parts))
      assert np.any(want != pairwise(np.roll(parts, 1, axis=0)))


def test_tree_sum_keeps_dtype_and_shape():
  for dtype in (jnp.bfloat16, jnp.float32):
    for shape in ((), (1,), (2, 3)):
      got = jax.eval_shape(tree_sum, jnp.ones((5, *shape), dtype))
      assert got.dtype == dtype and got.shape == shape


def one_by_one(parts, trip_count):
  tree = RunningTree.start(len(parts), trip_count, parts[0])
  body = lambda i, tree: tree.add(i, parts[i])
  tree = jax.lax.fori_loop(0, trip_count, body, tree)
  return tree.sums(len(parts)), tree.nodes


def test_a_running_tree_is_the_local_levels():
  parts = {count: make_parts(count, 64) for count in (*range(1, 18), 64)}
  trip_counts = {count: np.int32(count) for count in parts}
  map_all = lambda f: jax.jit(functools.partial(jax.tree.map, f))
  got = map_all(one_by_one)(parts, trip_counts)
  want = map_all(_local_levels)(parts)
  for count, (sums, nodes) in got.items():
    np.testing.assert_array_equal(sums, want[count], strict=True)
    odd = len(sums)
    assert odd % 2 == 1
    # One waiting sum of each size, and the complete ones.
    assert len(nodes) == math.log2(count // odd) + odd


def test_a_running_tree_needs_no_traced_count():
  parts = make_parts(12, 3)
  tree = RunningTree.start(12, 12, parts[0])
  for i, part in enumerate(parts):
    tree = tree.add(i, part)
  np.testing.assert_array_equal(tree.sums(12), _local_levels(parts))


@functools.cache
def on_devices(count):
  """Returns the parts, and their sums and copies on `count` devices."""
  devices = Devices('devices', count)
  mesh = jax.make_mesh(
    (count,),
    ('devices',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  sharded, replicated = PartitionSpec('devices'), PartitionSpec()

  def sums(parts):
    scattered = {
      name: tree_reduce_scatter(x, devices)
      for name, x in parts.items()
      if x.shape[1] == 16
    }
    # Each device returns its copy.
    copies = {
      name: tree_all_reduce(x, devices)[None]
      for name, x in parts.items()
      if x.ndim == 2
    }
    gathered = devices.gather(parts[8, 16])
    return scattered, copies, gathered, devices.index()[None]

  parts = {shape: make_parts(*shape) for shape in (*SHAPES, (24, 16, 3))}
  results = jax.jit(
    jax.shard_map(
      sums,
      mesh=mesh,
      in_specs=(sharded,),
      out_specs=(sharded, sharded, replicated, sharded),
      check_vma=False,
    )
  )(parts)
  return parts, *jax.tree.map(np.asarray, results)


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_sums_over_devices_are_the_tree_sum(count):
  parts, scattered, copies, gathered, places = on_devices(count)
  assert len(scattered) == len(COUNTS) + 1
  for name, got in scattered.items():
    np.testing.assert_array_equal(got, pairwise(parts[name]))
  assert len(copies) == len(SHAPES)
  for name, got in copies.items():
    assert got.shape == (count, name[1])
    want = pairwise(parts[name])
    np.testing.assert_array_equal(got, np.stack([want] * count))
  np.testing.assert_array_equal(gathered, parts[8, 16])
  np.testing.assert_array_equal(places, np.arange(count))


def test_a_power_of_two_of_parts_sends_one():
  mesh = jax.make_mesh(
    (8,), ('devices',), axis_types=(AxisType.Auto,), devices=jax.devices()
  )
  for count, sent in ((8, 1), (32, 1), (48, 3)):
    program = jax.make_jaxpr(
      jax.shard_map(
        lambda parts: tree_reduce_scatter(parts, Devices('devices', 8)),
        mesh=mesh,
        in_specs=PartitionSpec('devices'),
        out_specs=PartitionSpec('devices'),
        check_vma=False,
      )
    )(make_parts(count, 16))
    # Each device receives `sent` parts of two rows from 8 devices.
    (exchange,) = re.findall(r':f32\[(\S+)\] = all_to_all', str(program))
    assert math.prod(map(int, exchange.split(','))) == 8 * sent * 2


def test_another_order_over_devices_would_show():
  for count in COUNTS:
    parts = make_parts(count, 16)
    want = pairwise(parts)
    # A tree on each device, then a tree over the devices: wrong where the
    # number of parts on a device is not a power of two.
    for devices in (2, 4, 8):
      local = [pairwise(x) for x in np.split(parts, devices)]
      size = count // devices
      assert np.array_equal(pairwise(local), want) == (size & (size - 1) == 0)
    halves = np.split(parts, 2)
    assert np.any(pairwise(halves[0] + halves[1]) != want)


def test_one_device_needs_no_mesh():
  parts = make_parts(12, 16)
  want = pairwise(parts)
  one = Devices()
  assert one.index() == 0
  np.testing.assert_array_equal(one.gather(parts), parts)
  np.testing.assert_array_equal(tree_reduce_scatter(parts, one), want)
  np.testing.assert_array_equal(tree_all_reduce(parts, one), want)


@pytest.mark.parametrize('count', [1, 2, 8])
def test_arrays_of_a_tree_are_sent_together(count):
  shapes = {'kernel': (3, 5, 8), 'matrix': (7, 8), 'bias': (8,), 'scalar': ()}
  parts = {name: make_parts(24, *shape) for name, shape in shapes.items()}
  parts['narrow'] = make_parts(24, 5).astype(jnp.bfloat16)
  mesh = jax.make_mesh(
    (count,),
    ('devices',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  reduce = jax.jit(
    jax.shard_map(
      lambda parts: tree_all_reduce(parts, Devices('devices', count)),
      mesh=mesh,
      in_specs=PartitionSpec('devices'),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  )
  got = reduce(parts)
  for name, x in parts.items():
    assert got[name].dtype == x.dtype and got[name].shape == x.shape[1:]
    np.testing.assert_array_equal(got[name], pairwise(x))
  # Arrays that end in 8; vectors and scalars; and those of another dtype.
  sent = reduce.lower(parts).as_text().count('stablehlo.all_to_all')
  assert sent == (3 if count > 1 else 0)
