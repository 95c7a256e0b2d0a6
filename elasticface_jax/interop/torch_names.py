# SPDX-License-Identifier: Apache-2.0
"""Conversion of IResNet weights and heads from PyTorch's names and back.

ElasticFace and insightface's arcface_torch use the same names for the same
network. It differs from ours in the order of axes, and:

- ``features.weight``, frozen at 1 there, is no parameter here.
- ``fc`` reads the feature map channel first there, channel last here.
- ``num_batches_tracked`` counts batches there and changes nothing; nothing
  here counts them.

Letters: C classes, D embedding size.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files
from elasticface_jax.models import STAGES, stages_of
from elasticface_jax.models.iresnet import IMAGE_SHAPE, SE_REDUCTION

Tree = dict[str, Any]
StateDict = Mapping[str, Any]

# By kind of module and PyTorch's name: our collection and name.
_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_TENSORS = {
  'conv': {'weight': ('params', 'kernel')},
  'prelu': {'weight': ('params', 'slope')},
  'norm': _NORM,
  'fc': {'weight': ('params', 'kernel'), 'bias': ('params', 'bias')},
  'features': {k: v for k, v in _NORM.items() if k != 'weight'},
}
_COUNTER = 'num_batches_tracked'
# Modules of a backbone, or of a relative of it.
_NETWORK = re.compile(r'(?:layer\d+|conv\d|bn\d|prelu|fc|features)\.')
# Parts of the first block; before them stands the prefix of a backbone.
_BLOCK = re.compile(r'(.*?)layer1\.0\.(?:bn[123]|conv[12]|prelu)\.')
_FROZEN = 'features.weight'
# Side of the feature map that fc reads: each of the four stages halves it.
_SIDE = IMAGE_SHAPE[0] >> 4


class _Backbone(NamedTuple):
  """A backbone in a checkpoint.

  Attributes:
    place: the keys of the mappings that lead to it, and the prefix of its own.
    tensors: what lies there, without the prefix.
  """

  place: str
  tensors: dict[str, Any]


def from_torch(
  state_dict: StateDict | str | os.PathLike[str], *, prefix: str | None = None
) -> tuple[Tree, Tree]:
  """Reads a backbone that was trained with PyTorch.

  Accepts the names of ElasticFace and of arcface_torch, with any prefix
  (``module.``), alone or inside a training checkpoint. Takes the keys under the
  prefix and no others; `left_aside` names those. torch is not needed, and
  nothing in a file is executed.

  Args:
    state_dict: path of a ``.pth`` or ``.pt`` file; or its content, with arrays
      or tensors of any kind for values.
    prefix: chooses one of several backbones, such as ``'teacher'``: keys of
      mappings and tensors, joined by dots. It may be longer or shorter than
      this, as long as one backbone alone lies there. None if there is one.

  Returns:
    ``(params, batch_stats)``, nested dicts of NumPy arrays, as
    `models.Backbone.apply` takes them; `model_of` returns the arguments of
    `models.build` that fit them. float64 stays; narrower dtypes than float32
    become float32.

  Raises:
    InputError: names the file and the key that is missing, unknown, or of
      another shape; or the prefixes of several backbones.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet10', width=4, embedding_dim=8)
    >>> state_dict = to_torch(*backbone.init(jax.random.key(0)))
    >>> wrapped = {'module.' + k: v for k, v in state_dict.items()}
    >>> params, batch_stats = from_torch({'epoch': 3, 'state_dict': wrapped})
    >>> model_of(params)['name']
    'iresnet10'
  """
  name, tree = _open(state_dict)
  found = _find_backbone(name, tree, prefix)
  prefix, tensors = found.place, found.tensors
  model = _model_of_names(name, prefix, tensors)
  modules = list(_modules(**model))
  _check(name, prefix, tensors, modules)
  collections = {'params': {}, 'batch_stats': {}}
  for module, kind, _ in modules:
    for last, (collection, ours) in _TENSORS[kind].items():
      key = f'{module}.{last}'
      array = _array(name, prefix + key, tensors[key])
      node = collections[collection]
      for part in module.split('.'):
        node = node.setdefault(part, {})
      node[ours] = _to_ours(array, kind) if last == 'weight' else array
  if np.any(_array(name, prefix + _FROZEN, tensors[_FROZEN]) != 1):
    raise InputError(
      f'{name}: {prefix + _FROZEN} is not 1 everywhere; ElasticFace and '
      'insightface freeze it there, and this package has no such parameter'
    )
  return collections['params'], collections['batch_stats']


def to_torch(
  params: Tree, batch_stats: Tree, *, num_batches_tracked: int = 0
) -> dict[str, np.ndarray]:
  """Converts a backbone to the names and layouts of PyTorch.

  ElasticFace's and arcface_torch's modules load it with ``strict=True``, once
  ``torch.from_numpy`` is mapped over it.

  Args:
    params: of an IResNet, as from ``init`` or `from_torch`.
    batch_stats: likewise.
    num_batches_tracked: number of batches that BatchNorm has seen, which
      PyTorch stores and does not use.

  Returns:
    Arrays by name, in PyTorch's order; dtypes as given, int64 for counts.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet18', width=2, embedding_dim=8)
    >>> state_dict = to_torch(*backbone.init(jax.random.key(0)))
    >>> len(state_dict), list(state_dict)[0], state_dict['fc.weight'].shape
    (187, 'conv1.weight', (8, 784))
  """
  collections = {'params': params, 'batch_stats': batch_stats}
  state_dict = {}
  for module, kind, shape in _modules(**_model_of_params(params)):
    if kind == 'features':
      dtype = params['features']['bias'].dtype
      state_dict[_FROZEN] = np.ones(shape, dtype)
    for last, (collection, ours) in _TENSORS[kind].items():
      node = collections[collection]
      for part in module.split('.'):
        node = node[part]
      array = np.asarray(node[ours])
      array = _to_theirs(array, kind) if last == 'weight' else array
      state_dict[f'{module}.{last}'] = np.ascontiguousarray(array)
    if kind in ('norm', 'features'):
      state_dict[f'{module}.{_COUNTER}'] = np.array(num_batches_tracked)
  return state_dict


def model_of(params: Tree, batch_stats: Tree | None = None) -> dict[str, Any]:
  """Returns the arguments of `models.build` that fit parameters.

  Args:
    params: of an IResNet, as from ``init`` or `from_torch`.
    batch_stats: likewise; None for a network without ``input_norm``.

  Returns:
    ``name``, ``width``, ``embedding_dim``, ``use_se``, ``block``,
    ``output_norm`` and ``input_norm``.

  Raises:
    InputError: if `models.build` has no such depth.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet34', use_se=True)
    >>> params, _ = jax.eval_shape(backbone.init, jax.random.key(0))
    >>> model = model_of(params)
    >>> model['name'], model['width'], model['use_se'], model['block']
    ('iresnet34', 64, True, 'insightface')
  """
  model = _model_of_params(params)
  block = params['layer1']['0']
  # Without scale and bias, it has statistics alone.
  features = params['features'] if 'features' in params else {}
  has_scale, has_bias = 'scale' in features, 'bias' in features
  kind = 'insightface' if 'downsample' in block else 'adaface'
  if 'conv3' in block:
    kind = 'adaface_bottleneck'
  elif 'bn2' not in block:
    kind = 'curricularface'
  stages = model.pop('stages')
  known = {stages_of(name, kind): name for name in STAGES}
  if stages not in known:
    raise InputError(
      f'params: {", ".join(map(str, stages))} blocks in layer1 to layer4 are '
      f'none of {", ".join(STAGES)}'
    )
  return (
    {'name': known[stages]}
    | model
    | {
      'block': kind,
      'output_norm': 'affine' if has_scale else 'bias' if has_bias else 'plain',
      'input_norm': 'input' in (batch_stats or {}),
    }
  )


def num_batches_tracked(
  state_dict: StateDict | str | os.PathLike[str], *, prefix: str | None = None
) -> int:
  """Reads the number of batches that the BatchNorms of a backbone have seen.

  Args:
    state_dict: as for `from_torch`.
    prefix: likewise.

  Returns:
    The count; 0 if there is none, as before PyTorch 0.4.1.

  Raises:
    InputError: names a count that is no number of batches.

  Examples:
    >>> key = 'layer1.0.bn1.num_batches_tracked'
    >>> num_batches_tracked({key: np.array(295_672)})
    295672
  """
  name, tree = _open(state_dict)
  found = _find_backbone(name, tree, prefix)
  counts = [
    _count(name, found.place + key, value)
    for key, value in found.tensors.items()
    if key.endswith(_COUNTER)
  ]
  return max(counts, default=0)


def left_aside(
  state_dict: StateDict | str | os.PathLike[str], *, prefix: str | None = None
) -> list[str]:
  """Lists the tensors that `from_torch` does not take.

  Args:
    state_dict: as for `from_torch`.
    prefix: likewise.

  Returns:
    Their keys, each after those of the mappings that hold it, joined by dots.
    The optimizer's state, which lies deeper, is not listed.

  Raises:
    InputError: if there is no backbone, or there are several.

  Examples:
    >>> left_aside({'net.layer1.0.bn1.bias': np.ones(2), 't': np.ones(1)})
    ['t']
  """
  name, tree = _open(state_dict)
  found = _find_backbone(name, tree, prefix)
  taken = {
    found.place + key
    for key in found.tensors.keys() - _head_keys(found.tensors)
  }
  return [
    place + key
    for place, mapping in _mappings(tree)
    for key, value in mapping.items()
    if hasattr(value, 'shape') and place + key not in taken
  ]


def head_from_torch(
  state_dict: StateDict | str | os.PathLike[str],
  *more: str | os.PathLike[str],
  prefix: str | None = None,
) -> np.ndarray:
  """Reads the class centres of a head that was trained with PyTorch.

  These are ``kernel`` of ElasticFace, ``[D, C]``, or ``weight`` of
  arcface_torch's Partial FC, ``[C, D]``, of which every rank writes its part.

  Args:
    state_dict: a file or its content: a head's ``state_dict``, a training
      checkpoint that holds one, or a bare tensor ``[C, D]``.
    *more: the files of all other ranks, in order.
    prefix: chooses a backbone, as for `from_torch`, and with it the head that
      lies nearest to it, and nearer to no other backbone.

  Returns:
    Class centres, not normalised, at least float32, ``[C, D]``.

  Raises:
    InputError: names the file, and the part that is missing or does not fit.

  Examples:
    >>> head_from_torch({'kernel': np.ones((8, 3), np.float32)}).shape
    (3, 8)
  """
  parts = [_head_part(*_open(part), prefix) for part in (state_dict, *more)]
  name = _open_name(state_dict)
  if len({part.shape[1] for part in parts}) > 1:
    raise InputError(
      f'{name} and the other parts have embeddings of '
      f'{[part.shape[1] for part in parts]}: they are of different heads'
    )
  sizes = [len(part) for part in parts]
  each, rest = divmod(sum(sizes), len(sizes))
  if sizes != [each + (i < rest) for i in range(len(sizes))]:
    raise InputError(
      f'{name} and the other parts have {sizes} classes, which is no even '
      'split: give the files of all ranks, in the order of ranks'
    )
  return np.concatenate(parts)


def _head_part(name: str, tree: Any, prefix: str | None) -> np.ndarray:
  tensors = {}
  if not isinstance(tree, Mapping):
    tensors = {'weight': tree} if len(getattr(tree, 'shape', ())) == 2 else {}
  backbones = _backbones(tree)
  of_backbones = {f'{backbone.place}fc.weight' for backbone in backbones}
  for place, mapping in _mappings(tree):
    for key, value in mapping.items():
      if _is_head(key, value) and place + key not in of_backbones:
        tensors[place + key] = value
  if prefix is not None:
    tensors = _nearest(name, tensors, backbones, prefix)
  if len(tensors) != 1:
    what = f'several ({", ".join(tensors)})' if tensors else 'none'
    raise InputError(
      f'{name}: a head is one matrix called kernel [D, C] or weight [C, D]; '
      f'here is {what}' + _at(prefix)
    )
  ((key, value),) = tensors.items()
  array = _array(name, key, value)
  return array.T if key.endswith('kernel') else array


def _nearest(
  name: str,
  heads: Mapping[str, Any],
  backbones: Sequence[_Backbone],
  prefix: str,
) -> dict[str, Any]:
  """Returns the heads of the backbone at a prefix, those nearest to it."""
  chosen = _choose(name, backbones, prefix).place if backbones else prefix
  others = [backbone.place for backbone in backbones]
  shared = {
    key: _num_shared(key, chosen)
    for key in heads
    if all(_num_shared(key, o) <= _num_shared(key, chosen) for o in others)
  }
  most = max(shared.values(), default=0)
  return {key: heads[key] for key, count in shared.items() if count == most}


def _num_shared(a: str, b: str) -> int:
  """Counts the leading parts, between dots, that two places have in common."""
  pairs = zip(a.split('.'), b.split('.'), strict=False)
  return sum(
    1 for _ in itertools.takewhile(lambda pair: len({*pair}) < 2, pairs)
  )


def _is_head(key: str, value: Any) -> bool:
  """Tells whether a tensor may be class centres, by its key and rank."""
  is_matrix = len(getattr(value, 'shape', ())) == 2
  return is_matrix and key.rpartition('.')[-1] in ('kernel', 'weight')


def _head_keys(tensors: Mapping[str, Any]) -> set[str]:
  """Returns the keys of heads beside a backbone, with their other tensors."""
  heads = {
    key.rpartition('.')[0]
    for key, value in tensors.items()
    if _is_head(key, value) and not _NETWORK.match(key)
  }
  return {
    key
    for key in tensors
    if key.rpartition('.')[0] in heads and not _NETWORK.match(key)
  }


def _open(state_dict: Any) -> tuple[str, Any]:
  """Returns the name of a state_dict for messages, and its content."""
  name = _open_name(state_dict)
  if isinstance(state_dict, str | os.PathLike):
    return name, torch_files.read(state_dict)
  return name, state_dict


def _open_name(state_dict: Any) -> str:
  is_path = isinstance(state_dict, str | os.PathLike)
  return os.fspath(state_dict) if is_path else 'state_dict'


def _mappings(
  tree: Any, place: str = '', depth: int = 3
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields all mappings in a checkpoint, outermost first, string keys only.

  Before each stands its place: the keys that lead to it, a dot after each.
  """
  if isinstance(tree, Mapping) and depth:
    yield place, {k: v for k, v in tree.items() if isinstance(k, str)}
    for key, value in tree.items():
      yield from _mappings(value, f'{place}{key}.', depth - 1)


def _backbones(tree: Any) -> list[_Backbone]:
  found = []
  for place, mapping in _mappings(tree):
    matches = map(_BLOCK.match, mapping)
    prefixes = sorted({match[1] for match in matches if match})
    for prefix in prefixes:
      # Another one may lie below it: `net.` and `net.ema.`.
      below = tuple(p for p in prefixes if p.startswith(prefix) and p != prefix)
      tensors = {
        key.removeprefix(prefix): value
        for key, value in mapping.items()
        if key.startswith(prefix) and not key.startswith(below)
      }
      found.append(_Backbone(place + prefix, tensors))
  return found


def _find_backbone(name: str, tree: Any, prefix: str | None) -> _Backbone:
  """Finds the backbone at a prefix; with None, the only one."""
  found = _backbones(tree)
  if not found:
    keys = [k for _, m in _mappings(tree) for k in m][:3]
    raise InputError(
      f'{name} holds no IResNet: no key has layer1.0.conv1 or the like in it'
      + (f'; it begins with {", ".join(map(ascii, keys))}' if keys else '')
    )
  if prefix is not None:
    return _choose(name, found, prefix)
  if len(found) > 1:
    raise InputError(
      f'{name} holds {len(found)} backbones, under the prefixes '
      f'{_places(found)}; choose one by --prefix, in Python by prefix=; for '
      'start.checkpoint, convert it first'
    )
  return found[0]


def _choose(name: str, found: Sequence[_Backbone], prefix: str) -> _Backbone:
  """Returns the backbone at a prefix, or else the only one below it."""
  wanted = prefix.rstrip('.')
  at = [one for one in found if one.place.rstrip('.') == wanted]
  below = [one for one in found if one.place.startswith(f'{wanted}.')]
  (chosen, *more) = at or below or [None]
  if chosen is None or more:
    what = f'{len(below)} backbones' if more else 'no backbone'
    raise InputError(
      f'{name} holds {what}{_at(prefix)}; those in it are under '
      f'{_places(found)}'
    )
  return chosen


def _places(found: Sequence[_Backbone]) -> str:
  return ', '.join(ascii(one.place) for one in found)


def _at(prefix: str | None) -> str:
  return '' if prefix is None else f' under the prefix {prefix!a}'


def _model_of_names(
  name: str, prefix: str, tensors: Mapping[str, Any]
) -> dict[str, Any]:
  """Derives the arguments of `_modules` from names and two shapes."""
  matches = (re.match(r'layer([1-4])\.(\d+)\.', key) for key in tensors)
  blocks = {match.groups() for match in matches if match}
  stages = tuple(sum(i == layer for i, _ in blocks) for layer in '1234')
  _named(name, stages)
  shapes = {}
  for key, ndim in (('conv1.weight', 4), ('fc.weight', 2)):
    if key not in tensors:
      raise InputError(f'{name}: key {prefix + key} is missing')
    shapes[key] = tuple(getattr(tensors[key], 'shape', ()))
    if len(shapes[key]) != ndim:
      raise InputError(
        f'{name}: {prefix + key} has shape {list(shapes[key])}; that of an '
        f'IResNet has {ndim} dims'
      )
  return {
    'stages': stages,
    'width': shapes['conv1.weight'][0],
    'embedding_dim': shapes['fc.weight'][0],
    'use_se': any('.se_block.' in key for key in tensors),
  }


def _named(name: str, stages: tuple[int, ...]) -> str:
  for known, blocks in STAGES.items():
    if blocks == stages:
      return known
  raise InputError(
    f'{name}: {", ".join(map(str, stages))} blocks in layer1 to layer4 are '
    f'none of {", ".join(STAGES)}'
  )


def _model_of_params(params: Tree) -> dict[str, Any]:
  """Derives the arguments of `_modules` from our own parameters."""
  return {
    'stages': tuple(len(params[f'layer{i}']) for i in range(1, 5)),
    'width': params['conv1']['kernel'].shape[-1],
    'embedding_dim': params['fc']['kernel'].shape[-1],
    'use_se': 'se_block' in params['layer1']['0'],
  }


def _modules(
  *, stages: tuple[int, ...], width: int, embedding_dim: int, use_se: bool
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Yields name, kind and PyTorch's shape of ``weight`` of every module."""
  yield 'conv1', 'conv', (width, IMAGE_SHAPE[-1], 3, 3)
  yield 'bn1', 'norm', (width,)
  yield 'prelu', 'prelu', (width,)
  before = width
  for i, blocks in enumerate(stages):
    after = width << i
    for j in range(blocks):
      block = f'layer{i + 1}.{j}.'
      yield block + 'bn1', 'norm', (before,)
      yield block + 'conv1', 'conv', (after, before, 3, 3)
      yield block + 'bn2', 'norm', (after,)
      yield block + 'prelu', 'prelu', (after,)
      yield block + 'conv2', 'conv', (after, after, 3, 3)
      yield block + 'bn3', 'norm', (after,)
      if use_se:
        hidden = after // SE_REDUCTION
        yield block + 'se_block.fc1', 'conv', (hidden, after, 1, 1)
        yield block + 'se_block.fc2', 'conv', (after, hidden, 1, 1)
      if j == 0:
        yield block + 'downsample.0', 'conv', (after, before, 1, 1)
        yield block + 'downsample.1', 'norm', (after,)
      before = after
  yield 'bn2', 'norm', (before,)
  yield 'fc', 'fc', (embedding_dim, before * _SIDE**2)
  yield 'features', 'features', (embedding_dim,)


def _check(name, prefix, tensors, modules) -> None:
  """Compares names and shapes with those of the network."""
  expected = {}
  counters = set()
  for module, kind, shape in modules:
    if kind == 'features':
      expected[_FROZEN] = shape
    for last in _TENSORS[kind]:
      expected[f'{module}.{last}'] = shape if last == 'weight' else shape[:1]
    counters.add(f'{module}.{_COUNTER}')
  missing = [key for key in expected if key not in tensors]
  known = expected.keys() | counters | _head_keys(tensors)
  extra = [key for key in tensors if key not in known]
  faults = [
    f'{what} {prefix + keys[0]!a}'
    + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
    for what, keys in (('missing', missing), ('unknown', extra))
    if keys
  ]
  if faults:
    raise InputError(f"{name} is no IResNet of PyTorch's: {'; '.join(faults)}")
  for key, shape in expected.items():
    found = tuple(getattr(tensors[key], 'shape', ()))
    if found != shape:
      raise InputError(
        f'{name}: {prefix + key} has shape {list(found)}, not {list(shape)}'
      )


def _count(name: str, key: str, value: Any) -> int:
  """Reads a count, a scalar or, from older exporters, an array of one."""
  array = _read(name, key, value)
  is_count = array.size == 1 and array.dtype.kind in 'iuf'
  # False for NaN too.
  if not is_count or not 0 <= array.item() < 2**63:
    raise InputError(
      f'{name}: {key} has shape {list(array.shape)} and dtype {array.dtype}; a '
      'count of batches is one number that is not negative; remove the key'
    )
  return int(array.item())


def _array(name: str, key: str, value: Any) -> np.ndarray:
  """Reads a tensor of weights as an array, at least float32."""
  array = _read(name, key, value)
  if array.dtype not in (np.float32, np.float64):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    raise InputError(f'{name}: {key} holds values that are not finite')
  return array


def _read(name: str, key: str, value: Any) -> np.ndarray:
  """Reads any kind of tensor as an array."""
  if hasattr(value, 'detach'):
    value = value.detach().cpu()
    # bfloat16 is unknown to NumPy.
    narrow = value.is_floating_point() and value.itemsize < 4
    return (value.float() if narrow else value).numpy()
  if isinstance(value, torch_files.Tensor):
    try:
      return value.numpy()
    except torch_files.BadTensor as error:
      raise InputError(f'{name}: {key} {error}') from error
  return np.asarray(value)


def _to_ours(weight: np.ndarray, kind: str) -> np.ndarray:
  if kind == 'conv':
    weight = weight.transpose(2, 3, 1, 0)
  elif kind == 'fc':
    weight = weight.reshape(len(weight), -1, _SIDE, _SIDE)
    weight = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
  return np.ascontiguousarray(weight)


def _to_theirs(weight: np.ndarray, kind: str) -> np.ndarray:
  if kind == 'conv':
    return weight.transpose(3, 2, 0, 1)
  if kind == 'fc':
    weight = weight.reshape(_SIDE, _SIDE, -1, weight.shape[-1])
    return weight.transpose(3, 2, 0, 1).reshape(weight.shape[-1], -1)
  return weight
