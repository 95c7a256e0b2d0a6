# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as nodes and arrays, read without running it.

Memory stays in proportion to the file: arrays are read one by one, as nodes ask
for them, and what is computed from them is counted.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError, first_line

# Bytes of arrays for each byte of the files: float32 of int8 takes 4, and a
# cast or a transpose may follow.
_BYTES_PER_BYTE = 16
_SMALL = 2**26

_ELEMENTWISE: Mapping[str, Callable[..., np.ndarray]] = {
  'Add': np.add,
  'Sub': np.subtract,
  'Mul': np.multiply,
  'Pow': np.power,
  'Sqrt': np.sqrt,
  'Neg': np.negative,
  'Reciprocal': np.reciprocal,
}


class OnnxFile:
  """Nodes of a graph, in order, with what they read.

  Attributes:
    path: the file.
    nodes: those that the outputs depend on, every one after those it reads.
    inputs: of the graph, without the arrays that old files list there.
    outputs: names of the outputs.
    opset: version of ONNX's own operators.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads a file, and checks the order of its nodes.

    Args:
      path: of the file; arrays in files beside it are found.

    Raises:
      InputError: if onnx is not installed, or the file is no ONNX graph.
    """
    self.path: Path = Path(path)
    try:
      import onnx
    except ImportError as error:
      raise InputError(
        'weights in an ONNX file need the package onnx: pip install '
        "'elasticface_jax[export]'"
      ) from error
    self._onnx = onnx
    try:
      model = onnx.load(self.path, load_external_data=False)
    # protobuf has errors of its own.
    except Exception as error:
      raise InputError(
        f'{self.path} is no ONNX file: {first_line(error)}; export it again'
      ) from error
    graph = model.graph
    self._tensors = {tensor.name: tensor for tensor in graph.initializer}
    self.inputs: list[Any] = [
      x for x in graph.input if x.name not in self._tensors
    ]
    self.outputs: list[str] = [x.name for x in graph.output]
    self.opset: int = max(
      (x.version for x in model.opset_import if x.domain in ('', 'ai.onnx')),
      default=1,
    )
    self.nodes: Sequence[Any] = self._needed(graph.node)
    self._budget = _SMALL + _BYTES_PER_BYTE * self._size()
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, name: str) -> np.ndarray | None:
    """Returns an array of the file; None if there is none of that name.

    Raises:
      InputError: if it is damaged.
    """
    if name not in self._arrays and name in self._tensors:
      self._arrays[name] = self._read(self._tensors[name])
    return self._arrays.get(name)

  def constant(self, node: Any) -> np.ndarray:
    """Returns the value of a ``Constant`` node.

    Raises:
      InputError: if it is damaged.
      Unfit: if it is of a kind that no network of ours has.
    """
    (attribute,) = self.attributes(node).items() or [(None, None)]
    kind, value = attribute
    if kind == 'value':
      return self._read(value)
    if kind in ('value_float', 'value_floats', 'value_int', 'value_ints'):
      dtype = np.float32 if 'float' in kind else np.int64
      return np.asarray(value, dtype)
    raise Unfit

  def fold(self, node: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Computes a node whose inputs are all known.

    Args:
      node: the node.
      arrays: its inputs.

    Raises:
      InputError: if the result is out of proportion to the file.
      Unfit: if it is none of the kinds of nodes that make constants.
    """
    kind, (first, *others) = node.op_type, arrays
    if kind in ('Identity', 'Dropout', 'CastLike'):
      return first
    if kind == 'Shape':
      attributes = self.attributes(node)
      taken = slice(attributes.get('start', 0), attributes.get('end'))
      return np.array(first.shape[taken])
    if kind == 'Expand':
      shape = np.broadcast_shapes(first.shape, tuple(map(int, others[0])))
      self._count(shape, first.dtype)
      return np.broadcast_to(first, shape)
    if kind in _ELEMENTWISE or kind == 'Div':
      self._count(np.broadcast_shapes(*(x.shape for x in arrays)), first.dtype)
      if kind == 'Div':
        exact = first.dtype.kind == 'f'
        return (np.divide if exact else np.floor_divide)(first, *others)
      return _ELEMENTWISE[kind](*arrays)
    self._count(first.shape, np.float64)
    if kind == 'Cast':
      to = self.attributes(node)['to']
      return _plain(
        first.astype(self._onnx.helper.tensor_dtype_to_np_dtype(to))
      )
    if kind == 'Reshape':
      shape = [first.shape[i] if n == 0 else n for i, n in enumerate(others[0])]
      return first.reshape(shape)
    if kind == 'Flatten':
      axis = self.attributes(node).get('axis', 1)
      return first.reshape(int(np.prod(first.shape[:axis])), -1)
    if kind == 'Transpose':
      return first.transpose(self.attributes(node).get('perm'))
    if kind == 'Unsqueeze':
      return np.expand_dims(first, tuple(self.numbers(node, 'axes', others)))
    if kind == 'Squeeze':
      axes = self.numbers(node, 'axes', others)
      return np.squeeze(first, None if axes is None else tuple(axes))
    if kind == 'Concat':
      for other in others:
        self._count(other.shape, np.float64)
      return np.concatenate(arrays, self.attributes(node)['axis'])
    if kind == 'Gather':
      (indices,) = others
      self._count((*indices.shape, *first.shape[1:]), np.float64)
      return first.take(indices, self.attributes(node).get('axis', 0))
    if kind == 'Slice':
      return first[slices(self, node, others, first.shape)]
    raise Unfit

  def attributes(self, node: Any) -> dict[str, Any]:
    """Returns the attributes of a node, strings decoded."""
    found = {}
    for attribute in node.attribute:
      value = self._onnx.helper.get_attribute_value(attribute)
      is_text = isinstance(value, bytes)
      found[attribute.name] = (
        value.decode('utf-8', 'replace') if is_text else value
      )
    return found

  def numbers(
    self, node: Any, name: str, others: Sequence[Any], place: int = 0
  ) -> list[int] | None:
    """Returns integers that are an attribute in old files, an input in new.

    Args:
      node: the node.
      name: of the attribute.
      others: the inputs after the first.
      place: of the input among them.

    Raises:
      Unfit: if they are not known before the network runs.
    """
    attributes = self.attributes(node)
    if name in attributes:
      return list(attributes[name])
    if len(others) <= place or others[place] is None:
      return None
    if not isinstance(others[place], np.ndarray):
      raise Unfit
    return [int(number) for number in others[place].ravel()]

  def _needed(self, nodes: Sequence[Any]) -> list[Any]:
    """Returns the nodes that outputs depend on; checks their order."""
    known = {x.name for x in self.inputs} | self._tensors.keys() | {''}
    for node in nodes:
      unknown = [name for name in node.input if name not in known]
      if unknown:
        raise InputError(
          f'{self.path}: {named(node)} reads {unknown[0]!a}, which no node '
          'before it makes; the graph is cut, or has a cycle: export it again'
        )
      known |= set(node.output)
    missing = [name for name in self.outputs if name not in known]
    if missing or not self.outputs:
      raise InputError(
        f'{self.path}: no node makes the output {"".join(missing[:1])!a}; the '
        'graph is cut: export it again'
      )
    wanted, needed = set(self.outputs), []
    for node in reversed(nodes):
      if wanted & set(node.output):
        wanted |= set(node.input)
        needed.append(node)
    return needed[::-1]

  def _size(self) -> int:
    """Counts the bytes of the file, and of those that hold its arrays."""
    places = {
      entry.value
      for tensor in self._tensors.values()
      for entry in tensor.external_data
      if entry.key == 'location'
    }
    files = [self.path, *(self.path.parent / place for place in places)]
    return sum(file.stat().st_size for file in files if file.is_file())

  def _read(self, tensor: Any) -> np.ndarray:
    helper = self._onnx.external_data_helper
    try:
      if helper.uses_external_data(tensor):
        helper.load_external_data_for_tensor(tensor, str(self.path.parent))
      array = _plain(self._onnx.numpy_helper.to_array(tensor))
      if array.dtype.kind not in 'fiub':
        raise ValueError(f'its values are {array.dtype}')
    # Readers of dtypes, dims and files have errors of many kinds.
    except Exception as error:
      raise InputError(
        f'{self.path}: the array {tensor.name!a} cannot be read: '
        f'{first_line(error)}; copy the file again, with those beside it'
      ) from error
    self._count(array.shape, array.dtype)
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      raise InputError(
        f'{self.path}: {tensor.name!a} holds values that are not finite'
      )
    return array

  def _count(self, shape: Sequence[int], dtype: Any) -> None:
    self._budget -= int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if self._budget < 0:
      raise InputError(
        f'{self.path}: its nodes make arrays that are out of proportion to the '
        'file; it is no network'
      )


class Unfit(Exception):
  """A node that does not fit; whoever meets it knows its name."""


def named(node: Any) -> str:
  """Names a node, or what it makes where it has no name, and its kind."""
  name = node.name or ', '.join(node.output)
  domain = '' if node.domain in ('', 'ai.onnx') else f'{node.domain}.'
  return f'node {name!a} ({domain}{node.op_type})'


def slices(
  file: OnnxFile, node: Any, others: Sequence[Any], shape: Sequence[int]
) -> tuple[slice, ...]:
  """Returns what a ``Slice`` node takes of each axis.

  Raises:
    Unfit: if that is not known before the network runs.
  """
  starts = file.numbers(node, 'starts', others, 0)
  ends = file.numbers(node, 'ends', others, 1)
  if starts is None or ends is None:
    raise Unfit
  axes = file.numbers(node, 'axes', others, 2) or range(len(starts))
  steps = file.numbers(node, 'steps', others, 3) or [1] * len(starts)
  found = [slice(None)] * len(shape)
  for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
    # An end before the first element, as ONNX writes it, is None in Python.
    before_first = step < 0 and end < -shape[axis]
    found[axis] = slice(start, None if before_first else end, step)
  return tuple(found)


def _plain(array: np.ndarray) -> np.ndarray:
  """Widens the floats that NumPy computes slowly or not at all."""
  is_wide = array.dtype in (np.float32, np.float64)
  is_float = array.dtype.kind == 'f' or array.dtype.name.startswith(
    ('bfloat', 'float')
  )
  return array.astype(np.float32) if is_float and not is_wide else array
