# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elasticface_jax.training import checksums
from elasticface_jax.training.state import AXIS, make_mesh

DTYPES = ['float32', 'bfloat16', 'int32', 'uint8', 'bool', 'float64', 'int64']


def arrays():
  rng = np.random.default_rng(0)
  values = {
    dtype: (100 * rng.normal(size=(3, 5))).astype(np.dtype(dtype))
    for dtype in DTYPES
  }
  return {
    'params': values | {'scalar': np.float32(2), 'empty': np.zeros((0, 3))},
    'class_centers': rng.normal(size=(8, 3, 7)).astype(np.float32),
    'head_opt': [rng.normal(size=(8, 3, 7)).astype(np.float32), np.int32(3)],
  }


def by_definition(array):
  """The two sums of the docstring, in Python's integers."""
  bits = np.ascontiguousarray(array).reshape(-1)
  words = bits.view(f'<u{min(bits.dtype.itemsize, 4)}').tolist()
  mask = 2**32 - 1

  def mix(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      x = (x ^ (x >> shift)) * factor & mask
    return x ^ (x >> 16)

  first = [mix(x ^ (0x9E3779B1 * i & mask)) for i, x in enumerate(words)]
  second = [mix(y + 0x9E3779B1 & mask) for y in first]
  return f'{sum(first) & mask:08x}{sum(second) & mask:08x}'


def test_definition_names_and_blocks():
  state = arrays()
  sums = checksums.of_arrays(state)
  for dtype in DTYPES:
    assert sums[f'params/{dtype}'] == [by_definition(state['params'][dtype])]
  blocks = [by_definition(block) for block in state['class_centers']]
  assert sums['class_centers'] == blocks and len(blocks) == 8
  assert len(sums['head_opt/0']) == 8 and len(sums['head_opt/1']) == 1


@pytest.mark.parametrize('devices', [1, 4])
def test_equal_on_any_devices(devices):
  mesh = make_mesh(devices)

  def put(name, leaf):
    blocked = name.split('/')[0] in checksums.BLOCKED and np.ndim(leaf)
    return jax.device_put(
      leaf, NamedSharding(mesh, P(AXIS) if blocked else P())
    )

  with jax.enable_x64(True):
    state = arrays()
    leaves = checksums.by_name(state)
    on_devices = jax.tree.unflatten(
      jax.tree.structure(state), [put(*item) for item in leaves.items()]
    )
    assert checksums.of_devices(on_devices) == checksums.of_arrays(state)


def test_every_flipped_bit_changes_the_checksum():
  values = np.random.default_rng(1).normal(size=50).astype(np.float32)
  seen = {checksums.of_arrays({'a': values})['a'][0]}
  for place in range(50):
    for bit in range(32):
      changed = values.copy().view(np.uint32)
      changed[place] ^= np.uint32(1 << bit)
      seen.add(checksums.of_arrays({'a': changed})['a'][0])
  assert len(seen) == 1 + 50 * 32


@pytest.mark.parametrize(
  'change',
  [np.negative, np.flip, np.zeros_like, lambda x: np.roll(x, 512)],
  ids=['negative', 'flip', 'zeros', 'roll'],
)
def test_damage_of_many_values_changes_both_sums(change):
  values = np.random.default_rng(2).normal(size=4096).astype(np.float32)
  before, after = (
    checksums.of_arrays({'a': x})['a'][0] for x in (values, change(values))
  )
  assert before[:8] != after[:8] and before[8:] != after[8:]


def test_pieces_of_numpy_are_one_sum(monkeypatch):
  whole = checksums.of_arrays(arrays())
  monkeypatch.setattr(checksums, '_PIECE', 4)
  assert checksums.of_arrays(arrays()) == whole


def test_state_of_another_kind_of_tree_has_the_same_names():
  state = {'a': (jnp.zeros(2), {'b': jnp.ones(2)})}
  as_read = {'a': {'0': np.zeros(2), '1': {'b': np.ones(2)}}}
  assert [*checksums.by_name(state)] == [*checksums.by_name(as_read)]
  assert ml_dtypes.bfloat16  # Registers its dtype with NumPy.
