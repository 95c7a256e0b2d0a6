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

Tree = dict[str, Any]

# Begins a key that each of these networks has, and no IResNet.
MARK = r'(?:conv_sep\.layers\.0|patch_embed\.proj)\.'
# Begins every key of these networks.
MODULES = r'(?:layers|conv_sep|features|patch_embed|blocks|norm|feature)\.'
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
  *('attn', 'qkv', 'norm2', 'mlp', 'fc1', 'fc2', 'conv_sep', 'proj', 'norm'),
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


def is_one(names: Collection[str]) -> bool:
  """Tells whether a tree, or tensors by name, are of one of these networks.

  Args:
    names: of our parameters' outermost level, or of all tensors.
  """
  return not {'conv_sep', 'patch_embed'}.isdisjoint(
    name.partition('.')[0] for name in names
  )


def from_tensors(
  name: str,
  prefix: str,
  tensors: Mapping[str, Any],
  *,
  others: Collection[str],
  read: Callable[[str, str, Any], np.ndarray],
) -> tuple[Tree, Tree]:
  """Converts tensors by PyTorch's names.

  Args:
    name: of the file, for messages.
    prefix: of the tensors there, for messages.
    tensors: arrays of any kind by name.
    others: names among them that are of no network.
    read: makes an array, at least float32, of file, name and tensor.

  Returns:
    ``(params, batch_stats)``, nested dicts of NumPy arrays.

  Raises:
    InputError: names the file and the key that is missing, unknown, or of
      another shape.
  """
  shapes = {
    key: tuple(getattr(value, 'shape', ())) for key, value in tensors.items()
  }
  backbone = models.build(**_model_of_shapes(name, prefix, shapes))
  collections = jax.eval_shape(backbone.init, jax.random.key(0))
  expected = {
    theirs: (number, path, _their_shape(leaf.shape))
    for number, tree in enumerate(collections)
    for path, theirs, leaf in _named(tree)
  }
  counters = {_counter(key) for key in expected if _is_running(key)}
  known = expected.keys() | counters | set(others)
  _check(name, prefix, tensors, known, expected)
  converted = {}, {}
  for theirs, (number, path, shape) in expected.items():
    if shapes[theirs] != shape:
      raise InputError(
        f'{name}: {prefix + theirs} has shape {list(shapes[theirs])}, not '
        f'{list(shape)}'
      )
    array = read(name, prefix + theirs, tensors[theirs])
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
  return _model_of_shapes('params', '', shapes) | _ABSENT


def _model_of_shapes(name, prefix, shapes):
  """Derives the network from the names and the shapes of two matrices."""

  def shape(key, ndim):
    if key not in shapes:
      raise InputError(f'{name}: key {prefix + key} is missing')
    if len(shapes[key]) != ndim:
      raise InputError(
        f'{name}: {prefix + key} has shape {list(shapes[key])}; it should have '
        f'{ndim} dims'
      )
    return shapes[key]

  def in_proportion(key, network, factor):
    size = shape(key, 4)[0]
    if size % factor or not size:
      raise InputError(
        f'{name}: {prefix + key} has {size} output channels; a {network} has a '
        f'multiple of {factor}'
      )
    return size // factor

  if 'conv_sep.layers.0.weight' in shapes:
    network = 'mobilefacenet'
    width = in_proportion('conv_sep.layers.0.weight', network, LAST)
    return {
      'name': network,
      'width': width,
      'embedding_dim': shape('features.layers.2.weight', 2)[0],
    }
  first = 'patch_embed.proj.weight'
  blocks = {
    match[1]
    for match in map(re.compile(r'blocks\.(\d+)\.').match, shapes)
    if match
  }
  fitting = [
    network
    for network, (depth, _) in models.VITS.items()
    if depth == len(blocks)
  ]
  if not fitting:
    raise InputError(
      f'{name}: {len(blocks)} blocks are those of none of '
      f'{", ".join(models.VITS)}'
    )
  if 'vit_t' in fitting:
    network = 'vit_s' if shape(first, 4)[0] >= _SMALL else 'vit_t'
  else:
    (network,) = fitting
  size = models.VITS[network][1]
  width = in_proportion(first, network, 8) * 8 // size
  return {
    'name': network,
    'width': width,
    'embedding_dim': shape('feature.2.weight', 2)[0],
  }


def _check(name, prefix, tensors, known, expected):
  """Compares names with those of the network."""
  missing = [key for key in expected if key not in tensors]
  extra = [key for key in tensors if key not in known]
  faults = [
    f'{what} {prefix + keys[0]!a}'
    + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
    for what, keys in (('missing', missing), ('unknown', extra))
    if keys
  ]
  if faults:
    raise InputError(
      f"{name} is no MobileFaceNet or ViT of arcface_torch's: "
      f'{"; ".join(faults)}'
    )


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
