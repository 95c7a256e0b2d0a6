# SPDX-License-Identifier: Apache-2.0
"""Places of backbones in a PyTorch checkpoint, and the values of tensors.

A backbone is found by the tensors of its first block, under any prefix, in the
file itself or in a dictionary inside it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import safetensors_files, torch_files
from elasticface_jax.interop.torch_schemes import SCHEMES

StateDict = Mapping[str, Any]

# Bounds of the work, since the mappings of a file may hold each other: of the
# characters of all keys and their places, and what each counts for besides. A
# network of two thousand tensors with its optimizer's state has 200,000.
_MAX_CHARACTERS = 1 << 24
_OF_A_KEY = 8
_MAX_BACKBONES = 64
_MAX_LISTED = 8


class Found(NamedTuple):
  """A backbone in a checkpoint.

  Attributes:
    scheme: key of `torch_schemes.SCHEMES`.
    place: the keys of the mappings that lead to it, and the prefix of its own.
    prefix: of its keys alone.
    tensors: what lies there, without the prefix.
  """

  scheme: str
  place: str
  prefix: str
  tensors: dict[str, Any]

  @property
  def shown(self) -> str:
    """The place for messages, printable."""
    return ascii(self.place)[1:-1]


def open_tree(state_dict: Any) -> tuple[str, Any]:
  """Returns the name of a state_dict for messages, and its content."""
  name = name_of(state_dict)
  if not isinstance(state_dict, str | os.PathLike):
    return name, state_dict
  if safetensors_files.recognises(state_dict):
    return name, safetensors_files.read(state_dict)
  return name, torch_files.read(state_dict)


def name_of(state_dict: Any) -> str:
  """Returns the name of a state_dict for messages."""
  is_path = isinstance(state_dict, str | os.PathLike)
  return os.fspath(state_dict) if is_path else 'state_dict'


def mappings(
  name: str, tree: Any, depth: int = 3
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the mappings in a checkpoint, outermost first, string keys only.

  Before each stands its place: the keys that lead to it, a dot after each.

  Raises:
    InputError: if they repeat each other, so that their keys are without end.
  """
  left = [('', tree, depth)]
  num_characters = 0
  while left:
    place, mapping, depth = left.pop()
    if not isinstance(mapping, Mapping):
      continue
    found = {k: v for k, v in mapping.items() if isinstance(k, str)}
    # A mapping may be in many places, which are all counted.
    num_characters += (len(place) + _OF_A_KEY) * len(mapping)
    num_characters += sum(map(len, found))
    if num_characters > _MAX_CHARACTERS:
      raise InputError(
        f'{name} has keys without number, or mappings that hold each other; '
        'save the state_dict() of one network with torch'
      )
    yield place, found
    if depth > 1:
      below = [
        (f'{place}{key}.', value, depth - 1)
        for key, value in found.items()
        if isinstance(value, Mapping)
      ]
      left += below[::-1]


def backbones(name: str, tree: Any) -> list[Found]:
  """Lists the backbones in a checkpoint.

  Raises:
    InputError: if there are too many, as `mappings` does.
  """
  found = []
  for place, mapping in mappings(name, tree):
    schemes = {}
    for scheme_name, scheme in SCHEMES.items():
      matches = map(scheme.first.match, mapping)
      schemes |= {match[1]: scheme_name for match in matches if match}
    if len(found) + len(schemes) > _MAX_BACKBONES:
      raise InputError(
        f'{name} holds more than {_MAX_BACKBONES} backbones; save the '
        'state_dict() of one with torch'
      )
    for prefix in sorted(schemes):
      # Another one may lie below it: `net.` and `net.ema.`.
      below = tuple(p for p in schemes if p.startswith(prefix) and p != prefix)
      tensors = {
        key.removeprefix(prefix): value
        for key, value in mapping.items()
        if key.startswith(prefix) and not key.startswith(below)
      }
      found.append(Found(schemes[prefix], place + prefix, prefix, tensors))
  return found


def find_backbone(name: str, tree: Any, prefix: str | None) -> Found:
  """Finds the backbone at a prefix; with None, the only one."""
  found = backbones(name, tree)
  if not found:
    keys = [k for _, m in mappings(name, tree) for k in m][:3]
    raise InputError(
      f'{name} holds no backbone that is known: no key has layer1.0.conv1, '
      'body.0.res_layer.0, conv_sep.layers.0, patch_embed.proj or the like in '
      'it' + (f'; it begins with {", ".join(map(ascii, keys))}' if keys else '')
    )
  if prefix is not None:
    return choose(name, found, prefix)
  if len(found) > 1:
    raise InputError(
      f'{name} holds {len(found)} backbones, under the prefixes '
      f'{_places(found)}; choose one by --prefix, in Python by prefix=; for '
      'start.checkpoint, convert it first'
    )
  return found[0]


def check_read(name: str, found: Found) -> None:
  """Raises if a tensor of a backbone is of a kind that is not read.

  Raises:
    InputError: names the key, and what it is in the file.
  """
  for key, value in found.tensors.items():
    if isinstance(value, torch_files.Placeholder) and SCHEMES[
      found.scheme
    ].network.match(key):
      raise InputError(
        f'{name}: {found.shown}{ascii(key)[1:-1]} is made by '
        f'{ascii(value.name)[1:-1]}, '
        'which is not read; load it with torch and save a dense tensor of '
        'float32'
      )


def choose(name: str, found: Sequence[Found], prefix: str) -> Found:
  """Returns the backbone at a prefix, or else the only one below it."""
  wanted = prefix.rstrip('.')
  at = [one for one in found if one.place.rstrip('.') == wanted]
  below = [one for one in found if one.place.startswith(f'{wanted}.')]
  (chosen, *more) = at or below or [None]
  if chosen is None or more:
    what = f'{len(below)} backbones' if more else 'no backbone'
    raise InputError(
      f'{name} holds {what}{under(prefix)}; those in it are under '
      f'{_places(found)}'
    )
  return chosen


def under(prefix: str | None) -> str:
  """Returns the words of a message that name a prefix."""
  return '' if prefix is None else f' under the prefix {prefix!a}'


def _places(found: Sequence[Found]) -> str:
  return listed(one.place for one in found)


def listed(names: Iterable[str]) -> str:
  """Returns the first of some names for a message, and how many follow."""
  first = [ascii(name) for name in names]
  more = len(first) - _MAX_LISTED
  return ', '.join(first[:_MAX_LISTED]) + (f' and {more} more' * (more > 0))


def shape_of(tensor: Any) -> tuple[int, ...]:
  """Returns the shape of a tensor; () of what is none."""
  return tuple(getattr(tensor, 'shape', ()))


def array(name: str, key: str, value: Any) -> np.ndarray:
  """Reads a tensor of weights as an array, at least float32."""
  values = _read(name, key, value)
  if values.dtype not in (np.float32, np.float64):
    values = values.astype(np.float32)
  if not np.isfinite(values).all():
    raise InputError(f'{name}: {key} holds values that are not finite')
  return values


def count(name: str, key: str, value: Any) -> int:
  """Reads a count, a scalar or, from older exporters, an array of one."""
  values = _read(name, key, value)
  is_count = values.size == 1 and values.dtype.kind in 'iuf'
  # False for NaN too.
  if not is_count or not 0 <= values.item() < 2**63:
    raise InputError(
      f'{name}: {key} has shape {list(values.shape)} and dtype '
      f'{values.dtype}; a count of batches is one number that is not negative; '
      'remove the key'
    )
  return int(values.item())


def _read(name: str, key: str, value: Any) -> np.ndarray:
  """Reads any kind of tensor as an array of its own memory.

  A module that trains on after its state_dict was taken writes to its tensors.
  """
  if hasattr(value, 'detach'):
    value = value.detach().cpu()
    # bfloat16 is unknown to NumPy.
    narrow = value.is_floating_point() and value.itemsize < 4
    return np.array((value.float() if narrow else value).numpy())
  if isinstance(value, torch_files.Tensor | safetensors_files.Tensor):
    try:
      return value.numpy()
    except torch_files.BadTensor as error:
      raise InputError(f'{name}: {key} {error}') from error
  return np.array(value)
