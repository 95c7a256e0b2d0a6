# SPDX-License-Identifier: Apache-2.0
"""Checksums of a train state, equal on any devices, hosts and in NumPy.

A checkpoint keeps one for each leaf, and one for each block of classes. They
find damage, such as a flipped bit on a disk; they are no protection against
intent. The word x at place i becomes ``y = mix(x ^ K i)``, and then
``z = mix(y + K)``; the checksum is the sums of all y and of all z, modulo 2^32,
together 64 bits. `mix` is a bijection, so a change in one word always changes
the first sum, and other damage goes unnoticed with a probability of 2^-64.
Sums of integers do not depend on their order, hence neither on the devices. On
these it costs one reading of the state, which is not moved to the host for it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Parts of the state whose first dim is blocks of classes.
BLOCKED = ('class_centers', 'head_opt')

_K = 0x9E3779B1  # Golden ratio; the others are of MurmurHash3's last step.
_PIECE = 1 << 14  # Words that NumPy takes at a time.


def by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a state by names that its kind of tree leaves equal.

  Args:
    tree: a `state.TrainState`, or nested dicts as read from a checkpoint.

  Returns:
    Leaves by path, such as ``params/conv1/kernel``.

  Examples:
    >>> by_name({'params': {'fc': {'bias': 1}}, 'backbone_opt': [2]})
    {'backbone_opt/0': 2, 'params/fc/bias': 1}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def of_devices(state: Any) -> dict[str, list[str]]:
  """Computes the checksums of arrays on their devices.

  In a run of several processes, all of them call it.

  Args:
    state: pytree of jax arrays.

  Returns:
    By name as in `by_name`, a checksum for each block, of 16 hexadecimal
    digits; one for a leaf that has no blocks.
  """
  named = by_name(state)
  shardings = [leaf.sharding for leaf in named.values()]
  meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
  everywhere = NamedSharding(meshes[0], P()) if meshes else None
  sums = jax.jit(_of_named, out_shardings=everywhere)(named)
  return {name: _texts(np.asarray(x)) for name, x in sums.items()}


def of_arrays(state: Any) -> dict[str, list[str]]:
  """Computes the checksums of NumPy arrays.

  Args:
    state: pytree of NumPy arrays.

  Returns:
    As `of_devices`.

  Examples:
    >>> of_arrays({'step': np.int32(3)})
    {'step': ['85f0b427354e1af2']}
  """
  sums = {}
  for name, leaf in by_name(state).items():
    leaf = np.ascontiguousarray(leaf)
    blocks = leaf if _is_blocked(name, leaf) else leaf[None]
    sums[name] = _texts(np.stack([_of_block(block) for block in blocks]))
  return sums


def _is_blocked(name: str, leaf: Any) -> bool:
  return name.split('/')[0] in BLOCKED and np.ndim(leaf) > 1


def _texts(sums: np.ndarray) -> list[str]:
  return [f'{y:08x}{z:08x}' for y, z in sums.tolist()]


def _of_named(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Computes the sums of each block of each leaf, uint32 ``[K, 2]``."""
  sums = {}
  for name, leaf in named.items():
    words = _words_on_device(leaf if _is_blocked(name, leaf) else leaf[None])
    # Not a reshape: on a TPU it would copy the array to another layout.
    places = jnp.zeros((), jnp.uint32)
    for dim in range(1, words.ndim):
      stride = math.prod(words.shape[dim + 1 :]) % 2**32
      iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
      places = places + iota * jnp.uint32(stride)
    # One reduction of pairs: of two, XLA would keep all mixed words in memory.
    zero = jnp.zeros((), jnp.uint32)
    pair = jax.lax.reduce(
      _mixed(words, places),
      (zero, zero),
      lambda a, b: (a[0] + b[0], a[1] + b[1]),
      tuple(range(1, words.ndim)),
    )
    sums[name] = jnp.stack(pair, axis=-1)
  return sums


def _words_on_device(leaf: jax.Array) -> jax.Array:
  """Returns the bits of an array as uint32, one or two words for each."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  narrow = {1: jnp.uint8, 2: jnp.uint16}
  bits = narrow.get(leaf.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)


def _of_block(block: np.ndarray) -> np.ndarray:
  """Computes the sums of one block, uint32 ``[2]``."""
  bits = block.reshape(-1).view(f'<u{min(block.dtype.itemsize, 4)}')
  total = np.zeros(2, np.uint32)
  for start in range(0, len(bits), _PIECE):
    words = bits[start : start + _PIECE].astype(np.uint32)
    places = np.arange(start, start + len(words)).astype(np.uint32)
    mixed = _mixed(words, places)
    total += np.array([x.sum(dtype=np.uint32) for x in mixed])
  return total


def _mixed(words: Any, places: Any) -> tuple[Any, Any]:
  """Returns y and z of the module's docstring, of either kind of array."""
  first = _mix(words ^ (places * np.uint32(_K)))
  return first, _mix(first + np.uint32(_K))


def _mix(x: Any) -> Any:
  """Mixes each uint32; a bijection (MurmurHash3's finalizer)."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))
