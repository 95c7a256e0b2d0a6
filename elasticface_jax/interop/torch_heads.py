# SPDX-License-Identifier: Apache-2.0
"""Class centres in PyTorch checkpoints.

Letters: C classes, D embedding size.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_checkpoint
from elasticface_jax.interop.torch_checkpoint import Found, StateDict
from elasticface_jax.interop.torch_schemes import SCHEMES


def head_from_torch(
  state_dict: StateDict | str | os.PathLike[str],
  *more: str | os.PathLike[str],
  prefix: str | None = None,
) -> np.ndarray:
  """Reads the class centres of a head that was trained with PyTorch.

  These are ``kernel`` of ElasticFace, AdaFace and CurricularFace, ``[D, C]``;
  ``weight`` of CVLface and of arcface_torch's Partial FC, ``[C, D]``, of which
  every rank writes its part; or ``fc.weight`` beside a backbone of MagFace,
  ``[D, C]``.

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
  parts = [
    _head_part(*torch_checkpoint.open_tree(part), prefix)
    for part in (state_dict, *more)
  ]
  name = torch_checkpoint.name_of(state_dict)
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
  backbones = torch_checkpoint.backbones(name, tree)
  of_backbones = {
    backbone.place + key
    for backbone in backbones
    for key in backbone.tensors.keys() - head_keys(backbone)
  }
  for place, mapping in torch_checkpoint.mappings(name, tree):
    for key, value in mapping.items():
      if _is_head(key, value) and place + key not in of_backbones:
        tensors[place + key] = value
  if prefix is not None:
    tensors = _nearest(name, tensors, backbones, prefix)
  if len(tensors) != 1:
    what = 'none'
    if tensors:
      what = f'several ({torch_checkpoint.listed(tensors)})'
    raise InputError(
      f'{name}: a head is one matrix called kernel [D, C] or weight [C, D]; '
      f'here is {what}' + torch_checkpoint.under(prefix)
    )
  ((key, value),) = tensors.items()
  array = torch_checkpoint.array(name, ascii(key)[1:-1], value)
  sizes = {
    torch_checkpoint.shape_of(one.tensors.get(SCHEMES[one.scheme].last))[:1]
    for one in backbones
  }
  # MagFace's weight is [D, C]: known by D, which a file beside it has.
  is_turned = array.shape[:1] in sizes and array.shape[1:] not in sizes
  return array.T if key.endswith('kernel') or is_turned else array


def _nearest(
  name: str,
  heads: Mapping[str, Any],
  backbones: Sequence[Found],
  prefix: str,
) -> dict[str, Any]:
  """Returns the heads of the backbone at a prefix, those nearest to it."""
  chosen = prefix
  if backbones:
    chosen = torch_checkpoint.choose(name, backbones, prefix).place
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


def head_keys(backbone: Found) -> set[str]:
  """Returns the keys of heads beside a backbone, with their other tensors."""
  of_network = SCHEMES[backbone.scheme].network.match
  heads = {
    key.rpartition('.')[0]
    for key, value in backbone.tensors.items()
    if _is_head(key, value) and not of_network(key)
  }
  return {
    key
    for key in backbone.tensors
    if key.rpartition('.')[0] in heads and not of_network(key)
  }
