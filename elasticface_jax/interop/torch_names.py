# SPDX-License-Identifier: Apache-2.0
"""Conversion of backbones from PyTorch's names and back.

Published IResNets are one network under several names (`torch_schemes`), in
several forms and for several kinds of pixels (`families`). All become ours:
RGB in [-1, 1], one order of axes, and the form as an argument of
`models.build`. They differ from ours in:

- Colours: a network for BGR is one for RGB with the first kernel turned.
- Pixels: another normalisation is the network's `InputNorm`, exact at the
  border too.
- ``features.weight`` where it is frozen at 1 is no parameter here.
- ``fc`` reads the feature map channel first there, channel last here.
- The epsilon of BatchNorm where it is not ours: the difference is in the
  running variance.
- ``num_batches_tracked`` counts batches there and changes nothing; nothing
  here counts them.
"""

import functools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import (
  families,
  forms,
  torch_checkpoint,
  torch_modules,
)
from elasticface_jax.interop.families import FAMILIES, Identity, Pixels
from elasticface_jax.interop.torch_checkpoint import Found, StateDict
from elasticface_jax.interop.torch_heads import head_keys
from elasticface_jax.interop.torch_schemes import (
  COUNTER,
  NORMS,
  SCHEMES,
  TENSORS,
  Module,
  model_of_params,
  name_of_stages,
  own_modules,
  to_ours,
  to_theirs,
)
from elasticface_jax.models.layers import EPSILON

Tree = dict[str, Any]


class TorchWeights(NamedTuple):
  """The network in a PyTorch file.

  Attributes:
    params: of the backbone, as `models.Backbone.apply` takes them.
    batch_stats: likewise.
    identity: whose network it is, and its pixels, as from `identify`.
    left_aside: keys of tensors that are not of it, as from `left_aside`.
  """

  params: Tree
  batch_stats: Tree
  identity: Identity
  left_aside: Sequence[str]


def from_torch(
  state_dict: StateDict | str | os.PathLike[str],
  *,
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> tuple[Tree, Tree]:
  """Reads a backbone that was trained with PyTorch.

  Accepts the names of insightface and ElasticFace, MagFace, AdaFace, TFace,
  CVLface, CurricularFace and face.evoLVe, and arcface_torch's MobileFaceNet and
  ViT, with any prefix (``module.``), alone or inside a training checkpoint.
  Takes the keys under the prefix and no others; `left_aside` names those. torch
  is not needed, and nothing in a file is executed.

  Args:
    state_dict: path of a ``.pth`` or ``.pt`` file; or its content, with arrays
      or tensors of any kind for values.
    prefix: chooses one of several backbones, such as ``'teacher'``: keys of
      mappings and tensors, joined by dots. It may be longer or shorter than
      this, as long as one backbone alone lies there. None if there is one.
    colour_order: that the network was trained on, ``'rgb'`` or ``'bgr'``; None
      for its project's, which `identify` tells.
    normalisation: likewise, a formula of a pixel x in [0, 255], such as
      ``'(x - 127.5) / 128'``, or ``'imagenet'``. Three values in brackets are
      in the order of the channels.

  Returns:
    ``(params, batch_stats)``, nested dicts of NumPy arrays, as
    `models.Backbone.apply` takes them, for RGB in [-1, 1]; `model_of` returns
    the arguments of `models.build` that fit them. float64 stays; narrower
    dtypes than float32 become float32.

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
  pixels = {'colour_order': colour_order, 'normalisation': normalisation}
  return read(state_dict, prefix=prefix, **pixels)[:2]


def read(
  state_dict: StateDict | str | os.PathLike[str],
  *,
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> TorchWeights:
  """Reads a backbone, what it was trained on, and what lies beside it.

  Args:
    state_dict: as for `from_torch`.
    prefix: likewise.
    colour_order: likewise.
    normalisation: likewise.

  Returns:
    The weights.

  Raises:
    InputError: as `from_torch`.
  """
  name, tree = torch_checkpoint.open_tree(state_dict)
  found = torch_checkpoint.find_backbone(name, tree, prefix)
  torch_checkpoint.check_read(name, found)
  model = _model_of_names(name, found)
  identity = _identify(name, found, model, colour_order, normalisation)
  if found.scheme in torch_modules.FIRST:
    variables = _arcface_torch(name, found, model)
  else:
    variables = _iresnet(name, found, model, identity)
  return TorchWeights(*variables, identity, _left_aside(name, tree, found))


def _arcface_torch(name, found, model):
  """Converts a MobileFaceNet or ViT, whose names and pixels are ours."""

  def check(expected, counters):
    kind = "MobileFaceNet or ViT of arcface_torch's"
    _check(name, found, expected, counters, kind)

  read_tensor = functools.partial(_array, name, found)
  return torch_modules.from_tensors(model, check=check, read=read_tensor)


def _iresnet(name, found, model, identity):
  """Converts an IResNet, for RGB in [-1, 1]."""
  modules = list(SCHEMES[found.scheme].modules(**model))
  expected = {}
  for module in modules:
    expected |= module.expected()
  counters = {f'{module.theirs}.{COUNTER}' for module in modules}
  _check(name, found, expected, counters, "IResNet of PyTorch's")
  collections = {'params': {}, 'batch_stats': {}}
  for module in modules:
    for last, (collection, ours) in TENSORS[module.kind].items():
      array = _array(name, found, f'{module.theirs}.{last}')
      node = collections[collection]
      for part in module.name.split('.'):
        node = node.setdefault(part, {})
      node[ours] = to_ours(array, module.kind) if last == 'weight' else array
  params, batch_stats = forms.with_epsilon(
    collections['params'],
    collections['batch_stats'],
    FAMILIES[identity.family].epsilon,
    EPSILON,
  )
  if identity.pixels.colour_order == 'BGR':
    params = forms.turned(params)
  constants = forms.input_norm(identity.pixels)
  if constants is not None:
    batch_stats = batch_stats | {'input': constants}
  return params, batch_stats


def identify(
  state_dict: StateDict | str | os.PathLike[str],
  *,
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> Identity:
  """Tells whose network a PyTorch file holds, and which pixels it takes.

  Args:
    state_dict: as for `from_torch`.
    prefix: likewise.
    colour_order: likewise.
    normalisation: likewise.

  Returns:
    The project, the pixels, what of them was stated or assumed, and a note on
    what was assumed.

  Raises:
    InputError: if there is no backbone, or there are several; or if the pixels
      are stated wrongly.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet10', width=4, block='adaface')
    >>> variables = backbone.init(jax.random.key(0))
    >>> found = identify(to_torch(*variables, names='adaface'))
    >>> found.family, found.pixels.colour_order, found.pixels.normalisation
    ('adaface', 'BGR', '(x - 127.5) / 127.5')
  """
  name, tree = torch_checkpoint.open_tree(state_dict)
  found = torch_checkpoint.find_backbone(name, tree, prefix)
  model = _model_of_names(name, found)
  return _identify(name, found, model, colour_order, normalisation)


def to_torch(
  params: Tree,
  batch_stats: Tree,
  *,
  num_batches_tracked: int = 0,
  names: str = 'insightface',
) -> dict[str, np.ndarray]:
  """Converts a backbone to the names, layouts and pixels of a project.

  Its modules load the result with ``strict=True``, once ``torch.from_numpy`` is
  mapped over it and the prefix of the project's files is off. A network of
  another form is brought into the project's where embeddings stay equal;
  `folded` tells what that takes.

  Args:
    params: of a network, as from ``init`` or `from_torch`.
    batch_stats: likewise.
    num_batches_tracked: number of batches that BatchNorm has seen, which
      PyTorch stores and does not use.
    names: the project: ``'insightface'``, also ElasticFace's, ``'magface'``,
      ``'adaface'``, ``'tface'``, ``'cvlface'``, ``'curricularface'`` or
      ``'evolve'``, of face.evoLVe.

  Returns:
    Arrays by name, in the order of the network; dtypes as given, int64 for
    counts. The network takes the colours and the normalisation of the project.

  Raises:
    InputError: if there is no such project, or it has no such networks.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet18', width=2, embedding_dim=8)
    >>> state_dict = to_torch(*backbone.init(jax.random.key(0)))
    >>> len(state_dict), list(state_dict)[0], state_dict['fc.weight'].shape
    (187, 'conv1.weight', (8, 784))
  """
  family = _family(names)
  if _is_of_arcface_torch(params, names):
    return torch_modules.to_tensors(
      params, batch_stats, num_batches_tracked=num_batches_tracked
    )
  params, batch_stats, _ = _fit(params, batch_stats, names)
  model = model_of_params(params)
  modules = SCHEMES[family.scheme].modules(**model)
  tensors = _tensors(params, batch_stats, modules, num_batches_tracked)
  return {family.prefix + key: value for key, value in tensors.items()}


def folded(params: Tree, batch_stats: Tree, *, names: str) -> list[str]:
  """Lists what `to_torch` folds to bring a network into a project's form.

  With any of it, embeddings are equal and fine-tuning is not: in training
  BatchNorm normalises by the batch, and what was added learns.

  Args:
    params: as for `to_torch`.
    batch_stats: likewise.
    names: likewise.

  Returns:
    A few words each; nothing for a network of the project's own form.

  Raises:
    InputError: as `to_torch`.

  Examples:
    >>> import jax
    >>> from elasticface_jax import models
    >>> backbone = models.build('iresnet10', width=4, block='adaface')
    >>> variables = backbone.init(jax.random.key(0))
    >>> folded(*variables, names='insightface')
    ['layer1.0.downsample, the identity, added']
  """
  if _is_of_arcface_torch(params, names):
    return []
  return _fit(params, batch_stats, names)[2]


def own_tensors(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
  """Returns the tensors of a network of any form under our names.

  In PyTorch's layouts, for RGB in [-1, 1] after the `InputNorm`, if there is
  one. ``features.weight`` is there where insightface freezes it at 1.

  Args:
    params: of a network.
    batch_stats: likewise.
  """
  if torch_modules.is_one(params):
    return torch_modules.to_tensors(params, batch_stats, num_batches_tracked=0)
  modules = own_modules(**model_of_params(params))
  return _tensors(params, batch_stats, modules, 0)


def _is_of_arcface_torch(params: Tree, names: str) -> bool:
  """Tells whether a network is a MobileFaceNet or ViT, of one project alone."""
  is_one = torch_modules.is_one(params)
  if is_one and names != 'insightface':
    raise InputError(
      f'names {names!a} are for IResNets; MobileFaceNet and ViT are arcface_'
      "torch's: use insightface"
    )
  return is_one


def _fit(params, batch_stats, names):
  model = model_of_params(params)
  return forms.fit(params, batch_stats, model, _family(names))


def _family(names):
  if names not in FAMILIES:
    raise InputError(
      f'names {names!a} are unknown; use one of {", ".join(FAMILIES)}'
    )
  return FAMILIES[names]


def _tensors(
  params: Tree,
  batch_stats: Tree,
  modules: Iterable[Module],
  num_batches_tracked: int,
) -> dict[str, np.ndarray]:
  """Returns the tensors of modules by PyTorch's names."""
  collections = {'params': params, 'batch_stats': batch_stats}
  state_dict = {}
  for module in modules:
    if module.kind == 'frozen_norm':
      dtype = np.asarray(params[module.name]['bias']).dtype
      state_dict[f'{module.theirs}.weight'] = np.ones(module.shape, dtype)
    for last, (collection, ours) in TENSORS[module.kind].items():
      node = collections[collection]
      for part in module.name.split('.'):
        node = node[part]
      array = np.asarray(node[ours])
      array = to_theirs(array, module.kind) if last == 'weight' else array
      state_dict[f'{module.theirs}.{last}'] = np.ascontiguousarray(array)
    if module.kind in NORMS:
      state_dict[f'{module.theirs}.{COUNTER}'] = np.array(num_batches_tracked)
  return state_dict


def model_of(params: Tree, batch_stats: Tree | None = None) -> dict[str, Any]:
  """Returns the arguments of `models.build` that fit parameters.

  Args:
    params: of a network, as from ``init`` or `from_torch`.
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
  if torch_modules.is_one(params):
    return torch_modules.model_of(params)
  model = model_of_params(params)
  name = name_of_stages('params', model.pop('stages'), model['block'])
  has_input = 'input' in (batch_stats or {})
  return {'name': name} | model | {'input_norm': has_input}


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
  name, tree = torch_checkpoint.open_tree(state_dict)
  found = torch_checkpoint.find_backbone(name, tree, prefix)
  counts = [
    torch_checkpoint.count(name, found.shown + key, value)
    for key, value in found.tensors.items()
    if key.endswith(COUNTER)
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
  name, tree = torch_checkpoint.open_tree(state_dict)
  found = torch_checkpoint.find_backbone(name, tree, prefix)
  return _left_aside(name, tree, found)


def _left_aside(name: str, tree: Any, found: Found) -> list[str]:
  taken = {found.place + key for key in found.tensors.keys() - head_keys(found)}
  return [
    place + key
    for place, mapping in torch_checkpoint.mappings(name, tree)
    for key, value in mapping.items()
    if hasattr(value, 'shape') and place + key not in taken
  ]


def original_tensors(
  state_dict: StateDict | str | os.PathLike[str], *, prefix: str | None = None
) -> dict[str, np.ndarray]:
  """Reads the tensors of a backbone as they are in a file.

  Args:
    state_dict: as for `from_torch`.
    prefix: likewise.

  Returns:
    Arrays by their own names, without the prefix; narrower dtypes than float32
    become float32.

  Raises:
    InputError: as `from_torch`, where a tensor cannot be read.

  Examples:
    >>> original_tensors({'net.layer1.0.bn1.bias': np.ones(2, np.float16)})
    {'layer1.0.bn1.bias': array([1., 1.], dtype=float32)}
  """
  name, tree = torch_checkpoint.open_tree(state_dict)
  found = torch_checkpoint.find_backbone(name, tree, prefix)
  others = head_keys(found)
  return {
    key: _array(name, found, key)
    for key, value in found.tensors.items()
    if key not in others and hasattr(value, 'shape')
  }


def _model_of_names(name: str, found: Found) -> dict[str, Any]:
  """Derives the arguments of a scheme's modules from names and shapes."""
  tensors, place = found.tensors, found.shown

  def shape(key, ndim):
    if key not in tensors:
      raise InputError(f'{name}: key {place + key} is missing')
    sizes = torch_checkpoint.shape_of(tensors[key])
    if len(sizes) != ndim:
      raise InputError(
        f'{name}: {place + key} has shape {list(sizes)}; that of an '
        f'IResNet has {ndim} dims'
      )
    return sizes

  model = SCHEMES[found.scheme].read(name, tensors, shape)
  if found.scheme == 'insightface' and not _has_trained_scale(name, found):
    model['output_norm'] = 'bias'
  return model


def _has_trained_scale(name: str, found: Found) -> bool:
  """Tells whether features.weight is a parameter; insightface has it at 1."""
  key = 'features.weight'
  if families.has_trained_scale(found.prefix):
    return True
  if key not in found.tensors:
    return False
  return bool(np.any(_array(name, found, key) != 1))


def _array(name: str, found: Found, key: str) -> np.ndarray:
  """Reads a tensor of a backbone, at least float32."""
  return torch_checkpoint.array(name, found.shown + key, found.tensors[key])


def _identify(name, found, model, colour_order, normalisation):
  if found.scheme in torch_modules.FIRST:
    for value in (colour_order, normalisation):
      if value is not None:
        raise InputError(
          f'{name}: pixels are stated, {value!a}; those of MobileFaceNet and '
          'ViT are RGB in [-1, 1]: leave it out'
        )
    first = found.place + torch_modules.FIRST[found.scheme]
    return Identity('insightface', Pixels(), (), (), '', first)
  first = next(iter(SCHEMES[found.scheme].modules(**model)))
  return families.identify(
    found.scheme,
    model['block'],
    model['output_norm'],
    prefix=found.prefix,
    first_kernel=f'{found.place}{first.theirs}.weight',
    colour_order=colour_order,
    normalisation=normalisation,
  )


def _check(
  name: str,
  found: Found,
  expected: Mapping[str, tuple[int, ...]],
  counters: Collection[str],
  kind: str,
) -> None:
  """Compares names and shapes with those of a kind of network."""
  tensors, place = found.tensors, found.shown
  missing = [key for key in expected if key not in tensors]
  known = {*expected, *counters, *head_keys(found)}
  extra = [key for key in tensors if key not in known]
  faults = [
    f'{what} {found.place + keys[0]!a}'
    + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
    for what, keys in (('missing', missing), ('unknown', extra))
    if keys
  ]
  if faults:
    raise InputError(f'{name} is no {kind}: {"; ".join(faults)}')
  for key, shape in expected.items():
    sizes = torch_checkpoint.shape_of(tensors[key])
    if sizes != shape:
      raise InputError(
        f'{name}: {place + key} has shape {list(sizes)}, not {list(shape)}'
      )
