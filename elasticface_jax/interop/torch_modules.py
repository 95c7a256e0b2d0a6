# SPDX-License-Identifier: Apache-2.0
"""Names of arcface_torch's MobileFaceNet and ViT, from PyTorch and back.

Our modules carry their names, so that all follows from our own parameters: a
path is a name. Only the order of axes differs, and ``num_batches_tracked``,
which changes nothing there, is not counted here.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.models.mobilefacenet import LAST
from elasticface_jax.models.vit import HEADS

Tree = dict[str, Any]

# Keys of the first weights.
FIRST = {
  'mobilefacenet': 'layers.0.layers.0.weight',
  'vit': 'patch_embed.proj.weight',
}
# PyTorch's name of an array, by ours.
_ARRAYS = {
  'kernel': 'weight',
  'scale': 'weight',
  'slope': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# The axes of kernels of convolutions and of linear layers, by number of dims.
_THEIR_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
_OUR_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}
_COUNTER = 'num_batches_tracked'
# PyTorch's order of modules that lie side by side, and of their arrays.
_ORDER = (
  *('pos_embed', 'mask_token', 'patch_embed', 'layers', 'blocks', 'norm1'),
  *('norm2', 'attn', 'qkv', 'mlp', 'fc1', 'fc2', 'conv_sep', 'proj', 'norm'),
  *('features', 'feature'),
  *('weight', 'bias', 'running_mean', 'running_var', _COUNTER),
)
# Fields of IResNets, as configs of other networks have them.
_ABSENT = {
  'use_se': False,
  'block': 'insightface',
  'output_norm': 'bias',
  'input_norm': False,
}
# The size of a token from which a ViT of 12 blocks is called vit_s.
_SMALL = 512


def is_one(params: Tree) -> bool:
  """Tells whether our parameters are of one of these networks."""
  return 'conv_sep' in params or 'patch_embed' in params


def from_tensors(
  model: Mapping[str, Any],
  *,
  check: Callable[[Mapping[str, tuple[int, ...]], Collection[str]], None],
  read: Callable[[str], np.ndarray],
) -> tuple[Tree, Tree]:
  """Converts tensors by PyTorch's names.

  Args:
    model: arguments of `models.build`, of `read_mobilefacenet` or `read_vit`.
    check: takes the shapes of the network's tensors by name, and the names of
      its counts of batches; raises if the tensors do not fit.
    read: returns a tensor by name as an array, at least float32.

  Returns:
    ``(params, batch_stats)``, nested dicts of NumPy arrays.
  """
  backbone = models.build(**model)
  collections = jax.eval_shape(backbone.init, jax.random.key(0))
  expected = {
    theirs: (number, path, _their_shape(leaf.shape))
    for number, tree in enumerate(collections)
    for path, theirs, leaf in _named(tree)
  }
  check(
    {theirs: shape for theirs, (_, _, shape) in expected.items()},
    {_counter(theirs) for theirs in expected if _is_running(theirs)},
  )
  converted = {}, {}
  for theirs, (number, path, _) in expected.items():
    array = read(theirs)
    *modules, last = path
    node = converted[number]
    for module in modules:
      node = node.setdefault(module, {})
    node[last] = np.ascontiguousarray(_moved(array, _OUR_AXES))
  return converted


def to_tensors(
  params: Tree, batch_stats: Tree, *, num_batches_tracked: int
) -> dict[str, np.ndarray]:
  """Converts parameters and statistics; the inverse of `from_tensors`.

  Args:
    params: of one of these networks.
    batch_stats: likewise.
    num_batches_tracked: number of batches that BatchNorm has seen.

  Returns:
    Arrays by name, in PyTorch's order.
  """
  tensors = {
    theirs: np.ascontiguousarray(_moved(np.asarray(leaf), _THEIR_AXES))
    for tree in (params, batch_stats)
    for _, theirs, leaf in _named(tree)
  }
  for theirs in list(tensors):
    if _is_running(theirs):
      tensors[_counter(theirs)] = np.array(num_batches_tracked)
  return dict(sorted(tensors.items(), key=lambda item: _place(item[0])))


def model_of(params: Tree) -> dict[str, Any]:
  """Returns the arguments of `models.build` that fit parameters.

  Args:
    params: of one of these networks, arrays or their shapes.

  Returns:
    ``name``, ``width`` and ``embedding_dim``, and the fields that only
    IResNets have, as configs have them elsewhere. A ViT of 12 blocks is called
    ``vit_s`` if its tokens have 512 values or more, else ``vit_t``: these two
    differ in nothing else.
  """
  shapes = {
    theirs: _their_shape(leaf.shape) for _, theirs, leaf in _named(params)
  }
  read = read_mobilefacenet if 'conv_sep' in params else read_vit
  return read('params', shapes, lambda key, ndim: shapes[key]) | _ABSENT


def read_mobilefacenet(
  name: str,
  keys: Collection[str],
  shape: Callable[[str, int], tuple[int, ...]],
) -> dict[str, Any]:
  """Returns the arguments of `models.build` for a MobileFaceNet in a file.

  Args:
    name: of the file, for messages.
    keys: its keys.
    shape: returns the shape of a key that has a number of dims.

  Raises:
    InputError: if the file holds another network.
  """
  del keys
  network, last = 'mobilefacenet', 'conv_sep.layers.0.weight'
  return {
    'name': network,
    'width': _part(name, last, shape(last, 4)[0], network, LAST),
    'embedding_dim': shape('features.layers.2.weight', 2)[0],
  }


def read_vit(
  name: str,
  keys: Collection[str],
  shape: Callable[[str, int], tuple[int, ...]],
) -> dict[str, Any]:
  """Returns the arguments of `models.build` for a ViT in a file.

  Args:
    name: of the file, for messages.
    keys: its keys.
    shape: returns the shape of a key that has a number of dims.

  Raises:
    InputError: if the file holds another network.
  """
  matches = (re.match(r'blocks\.(\d+)\.', key) for key in keys)
  blocks = len({match[1] for match in matches if match})
  size = shape(FIRST['vit'], 4)[0]
  fitting = [
    network for network, (depth, _) in models.VITS.items() if depth == blocks
  ]
  if not fitting:
    raise InputError(
      f'{name}: blocks.0 to blocks.{blocks - 1} are those of none of '
      f'{", ".join(models.VITS)}'
    )
  network = 'vit_s' if 'vit_s' in fitting and size >= _SMALL else fitting[0]
  # As large as that of 8 heads.
  heads = _part(name, FIRST['vit'], size, network, HEADS)
  return {
    'name': network,
    'width': heads * HEADS // models.VITS[network][1],
    'embedding_dim': shape('feature.2.weight', 2)[0],
  }


def _part(name, key, channels, network, factor):
  """Divides a number of channels by what it must be a multiple of."""
  if not channels or channels % factor:
    raise InputError(
      f'{name}: {key} has {channels} output channels; those of {network} are '
      f'a multiple of {factor}'
    )
  return channels // factor


def _named(tree: Tree) -> list[tuple[list[str], str, Any]]:
  """Returns path, PyTorch's name and array of every leaf, in its order."""
  found = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = [step.key for step in path]
    *modules, last = path
    # Of the outermost level are positions and mask token.
    theirs = '.'.join([*modules, _ARRAYS[last]]) if modules else last
    found.append((path, theirs, leaf))
  return sorted(found, key=lambda item: _place(item[1]))


def _place(name: str) -> list[int]:
  """Returns the place of a name in PyTorch's order."""
  return [
    int(part) if part.isdigit() else _ORDER.index(part)
    for part in name.split('.')
  ]


def _is_running(name: str) -> bool:
  return name.endswith('.running_mean')


def _counter(name: str) -> str:
  return name.removesuffix('running_mean') + _COUNTER


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns PyTorch's shape of an array of ours."""
  return tuple(shape[i] for i in _THEIR_AXES.get(len(shape), range(len(shape))))


def _moved(array: np.ndarray, axes: Mapping[int, tuple[int, ...]]):
  """Returns an array with its axes in another order, if it is a kernel."""
  order = axes.get(array.ndim)
  return array if order is None else array.transpose(order)
