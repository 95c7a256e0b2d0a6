# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph as the few operations that an IResNet is made of.

Exporters and optimisers write one network in many ways. Here a chain of nodes
that scale and shift channels (BatchNormalization, Mul, Add, the bias of a
convolution) becomes one `Affine` on the way from an operation to the next;
nodes that only move axes are followed, not kept; what is computed from arrays
alone is an array. A node of another kind is an operation ``other``: whoever
walks the graph from its input meets it in its place.

Letters: B images, C channels, H height, W width, F features.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from elasticface_jax.interop.onnx_file import OnnxFile, Unfit, named, slices
from elasticface_jax.models.faces import IMAGE_SHAPE

# What the number of images is in a shape that the graph computes.
_BATCH = 2**40 + 1
# Largest number that keeps a norm from 0, which is no part of the network.
_TINY = 1e-3
_DOMAINS = '', 'ai.onnx', 'com.microsoft'


@dataclasses.dataclass(frozen=True)
class Norm:
  """A BatchNorm as the file has it, float64 ``[C]`` each."""

  scale: np.ndarray
  bias: np.ndarray
  mean: np.ndarray
  var: np.ndarray
  epsilon: float


@dataclasses.dataclass(frozen=True)
class Affine:
  """``scale * x + shift`` for each channel.

  Attributes:
    scale: float64 ``[C]``.
    shift: likewise.
    norm: a BatchNorm that is the same function; None where the file has none,
      or its statistics are folded into others.
    node: the last node of it, for messages.
  """

  scale: np.ndarray
  shift: np.ndarray
  norm: Norm | None = None
  node: str = ''

  @property
  def is_identity(self) -> bool:
    """True if nothing is changed."""
    is_known = self.norm is not None
    return not is_known and np.all(self.scale == 1) and not self.shift.any()

  def then(self, scale: Any, shift: Any, node: str) -> 'Affine':
    """Scales and shifts the result."""
    norm = self.norm and dataclasses.replace(
      self.norm,
      scale=self.norm.scale * scale,
      bias=self.norm.bias * scale + shift,
    )
    return Affine(self.scale * scale, self.shift * scale + shift, norm, node)

  def then_norm(self, norm: Norm, node: str) -> 'Affine':
    """Normalises the result."""
    scale = norm.scale / np.sqrt(norm.var + norm.epsilon)
    whole = Affine(self.scale, self.shift).then(
      scale, norm.bias - norm.mean * scale, node
    )
    if self.norm is not None or np.any(self.scale != 1):
      return whole
    moved = dataclasses.replace(norm, mean=norm.mean - self.shift)
    return dataclasses.replace(whole, norm=moved)


# Without its users: they would print the network.
@dataclasses.dataclass(eq=False, repr=False)
class Operation:
  """A step of the network, as the graph takes it.

  Attributes:
    kind: ``input``, ``conv``, ``prelu``, ``add``, ``subsample``, ``mean``,
      ``sigmoid``, ``gate``, ``flatten``, ``linear``, ``normalize`` and parts of
      it, ``flip``, or ``other``.
    node: name and kind of the node, for messages.
    inputs: what it reads.
    shape: ``(C, H, W)``, or ``(F, 1, 1)``, of its result.
    kernel: of ``conv`` ``[O, I, size, size]``, of ``linear`` ``[I, O]``.
    bias: of ``linear``, ``[O]``.
    stride: of ``conv`` and ``subsample``, along height and width.
    padding: of ``conv``.
    slope: of ``prelu``, ``[C]``.
    order: of ``flatten``, the axes from slow to fast, such as ``'CHW'``.
    users: operations that read it, in the order of the file.
  """

  kind: str
  node: str
  inputs: Sequence['Value'] = ()
  shape: tuple[int, int, int] = (0, 0, 0)
  kernel: np.ndarray | None = None
  bias: np.ndarray | None = None
  stride: tuple[int, int] = (1, 1)
  padding: int = 0
  slope: np.ndarray | None = None
  order: str = ''
  users: list['Operation'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Value:
  """The result of an operation, scaled and shifted.

  Attributes:
    source: the operation.
    affine: what is done to its result.
    axes: order of the axes in the file, such as ``'NCHW'``.
  """

  source: Operation
  affine: Affine
  axes: str

  @property
  def shape(self) -> tuple[int, int, int]:
    """``(C, H, W)``."""
    return self.source.shape

  @property
  def sizes(self) -> dict[str, int]:
    """Size of each axis."""
    return dict(zip('NCHW', (_BATCH, *self.shape), strict=True))

  @property
  def has_pixels(self) -> bool:
    """True if there is more than one number to a channel."""
    return self.shape[1:] != (1, 1)

  def same(self, other: 'Value') -> bool:
    """Returns whether two values are one."""
    return (self.source, self.axes) == (other.source, other.axes) and (
      self.affine is other.affine
      or (
        np.array_equal(self.affine.scale, other.affine.scale)
        and np.array_equal(self.affine.shift, other.affine.shift)
      )
    )


def operations(
  file: OnnxFile, channels_first: bool
) -> tuple[Operation, list[Value]]:
  """Reads a graph as operations.

  Args:
    file: with one input, of images.
    channels_first: whether they are ``[B, 3, H, W]``.

  Returns:
    The operation ``input``, and the outputs.

  Raises:
    InputError: if an array is damaged.
  """
  return _Graph(file, channels_first).read()


class _Graph:
  """Values by name, while the nodes are read in order."""

  def __init__(self, file, channels_first):
    self._file = file
    side, _, channels = IMAGE_SHAPE
    self._input = Operation('input', 'the input', shape=(channels, side, side))
    axes = 'NCHW' if channels_first else 'NHWC'
    self._values = {file.inputs[0].name: _result(self._input, axes)}

  def read(self):
    for node in self._file.nodes:
      inputs = [self._value(name) for name in node.input]
      found = self._of(node, inputs)
      for name in node.output:
        # A mask, indices: none of ours has a use for more than the first.
        self._values[name] = found
        if not isinstance(found, np.ndarray) and found.source.kind != 'other':
          found = self._other(node, inputs)
    outputs = [self._value(name) for name in self._file.outputs]
    outputs = [
      value
      if isinstance(value, Value)
      else _result(
        Operation('other', f'output {name!a}, which is constant'), ''
      )
      for name, value in zip(self._file.outputs, outputs, strict=True)
    ]
    _find_users(outputs)
    return self._input, outputs

  def _value(self, name):
    if not name:
      return None
    if name in self._values:
      return self._values[name]
    return self._file.array(name)

  def _other(self, node, inputs):
    values = [x for x in inputs if isinstance(x, Value)]
    return _result(Operation('other', named(node), values), '')

  def _of(self, node, inputs):
    """Returns the result of a node, an array or a `Value`."""
    values = [x for x in inputs if isinstance(x, Value)]
    if any(value.source.kind == 'other' for value in values):
      return self._other(node, inputs)
    try:
      if node.domain not in _DOMAINS:
        raise Unfit
      if node.op_type == 'Constant':
        return self._file.constant(node)
      with np.errstate(all='ignore'):
        if not values:
          return np.asarray(self._file.fold(node, inputs))
        return _READERS[node.op_type](self._file, node, inputs)
    # A shape, an axis or a dtype that is wrong, or a kind that is not there:
    # this node does not fit, whatever it is.
    except (
      Unfit,
      ArithmeticError,
      AttributeError,
      LookupError,
      TypeError,
      ValueError,
    ):
      return self._other(node, inputs)


def _find_users(outputs):
  """Lists the users of all operations that the outputs depend on."""
  seen, open_ = set(), [(value.source, False) for value in outputs]
  while open_:
    operation, is_done = open_.pop()
    if is_done:
      # After all that it reads, so users are in the order of the network.
      for value in operation.inputs:
        if operation not in value.source.users:
          value.source.users.append(operation)
    elif operation not in seen:
      seen.add(operation)
      open_.append((operation, True))
      open_ += [(value.source, False) for value in operation.inputs]


def _result(source, axes):
  channels = source.shape[0]
  return Value(source, Affine(np.ones(channels), np.zeros(channels)), axes)


def _kept(kind, node, value):
  """An operation that reads one value and keeps its shape."""
  return _result(Operation(kind, named(node), [value], value.shape), value.axes)


def _check(fits):
  if not fits:
    raise Unfit


def _scaled(value, scale, shift, node):
  return dataclasses.replace(
    value, affine=value.affine.then(scale, shift, named(node))
  )


def _of_channels(value, array):
  """Shapes an array that is broadcast to a value as one number a channel."""
  _check(isinstance(array, np.ndarray) and array.ndim <= len(value.axes))
  sizes = (1,) * (len(value.axes) - array.ndim) + array.shape
  _check(
    all(
      size == 1 or axis == 'C'
      for size, axis in zip(sizes, value.axes, strict=True)
    )
  )
  _check(array.size in (1, value.shape[0]))
  return np.broadcast_to(array.reshape(-1).astype(float), value.shape[:1])


def _sum(file, node, inputs):
  first, second = inputs
  if isinstance(first, Value) and isinstance(second, Value):
    _check(first.shape == second.shape and first.axes == second.axes)
    operation = Operation('add', named(node), inputs, first.shape)
    return _result(operation, first.axes)
  value, array = (
    (first, second) if isinstance(first, Value) else (second, first)
  )
  if value.source.kind in ('norm', 'squares') and np.all(abs(array) <= _TINY):
    return value
  return _scaled(value, 1, _of_channels(value, array), node)


def _difference(file, node, inputs):
  first, second = inputs
  if isinstance(first, np.ndarray):
    return _scaled(second, -1, _of_channels(second, first), node)
  return _scaled(first, 1, -_of_channels(first, second), node)


def _product(file, node, inputs):
  first, second = inputs
  if not (isinstance(first, Value) and isinstance(second, Value)):
    value, array = (
      (first, second) if isinstance(first, Value) else (second, first)
    )
    return _scaled(value, _of_channels(value, array), 0, node)
  if first.same(second):
    return _result(
      Operation('square', named(node), [first], first.shape), first.axes
    )
  if first.source.kind == 'sigmoid':
    first, second = second, first
  if second.source.kind == 'inverse':
    return _normalized(node, first, second.source.inputs[0])
  _check(second.source.kind == 'sigmoid' and not second.has_pixels)
  _check(first.axes == second.axes and first.shape[0] == second.shape[0])
  return _result(
    Operation('gate', named(node), [first, second], first.shape), first.axes
  )


def _quotient(file, node, inputs):
  first, second = inputs
  if isinstance(second, np.ndarray):
    return _scaled(first, 1 / _of_channels(first, second), 0, node)
  if isinstance(first, np.ndarray):
    _check(np.all(first == 1) and second.source.kind == 'norm')
    return _inverse(file, node, [second])
  return _normalized(node, first, second)


def _normalized(node, value, norm):
  _check(norm.source.kind == 'norm' and not value.has_pixels)
  (of,) = norm.source.inputs
  _check(of.same(value))
  return _kept('normalize', node, value)


def _inverse(file, node, inputs):
  _check(inputs[0].source.kind == 'norm')
  return _result(
    Operation('inverse', named(node), inputs, (1, 1, 1)), inputs[0].axes
  )


def _power(file, node, inputs):
  value, exponent = inputs
  if value.source.kind == 'squares' and np.all(exponent == 0.5):
    return _root(file, node, [value])
  _check(np.all(exponent == 2))
  return _kept('square', node, value)


def _sum_of_squares(file, node, inputs):
  value, *others = inputs
  _check(value.source.kind == 'square' and not value.has_pixels)
  _check_over_channels(file, node, value, others)
  (of,) = value.source.inputs
  return _result(Operation('squares', named(node), [of], (1, 1, 1)), value.axes)


def _root(file, node, inputs):
  (value,) = inputs
  _check(value.source.kind == 'squares')
  return _result(
    Operation('norm', named(node), value.source.inputs, (1, 1, 1)), value.axes
  )


def _norm(file, node, inputs):
  value, *others = inputs
  _check(not value.has_pixels)
  _check_over_channels(file, node, value, others)
  return _result(Operation('norm', named(node), [value], (1, 1, 1)), value.axes)


def _check_over_channels(file, node, value, others):
  attributes = file.attributes(node)
  axes = [axis % len(value.axes) for axis in file.numbers(node, 'axes', others)]
  _check([value.axes[axis] for axis in axes] == ['C'])
  _check(attributes.get('keepdims', 1))


def _normalization(file, node, inputs):
  attributes = file.attributes(node)
  (value,) = inputs
  axis = attributes.get('axis', -1) % len(value.axes)
  _check(attributes.get('p', 2) == 2 and value.axes[axis] == 'C')
  _check(not value.has_pixels)
  return _kept('normalize', node, value)


def _at_least(file, node, inputs):
  """``Clip`` and ``Max``: of a norm, they keep it from 0."""
  value, *limits = inputs
  _check(value.source.kind in ('norm', 'squares'))
  attributes = file.attributes(node)
  low = limits[0] if limits else attributes.get('min', 0)
  high = limits[1] if len(limits) > 1 else attributes.get('max')
  _check(np.all(np.asarray(low if low is not None else 0) <= _TINY))
  _check(high is None or np.all(np.asarray(high) > 1e30))
  return value


def _expanded(file, node, inputs):
  _check(inputs[0].source.kind == 'norm')
  return inputs[0]


def _conv(file, node, inputs):
  attributes = file.attributes(node)
  value, kernel, *others = inputs
  bias, added = [*others, None, None][:2]
  _check(value.axes == 'NCHW' and isinstance(kernel, np.ndarray))
  out, channels, size, width = kernel.shape
  _check(size == width and channels == value.shape[0])
  _check(attributes.get('group', 1) == 1)
  _check(set(attributes.get('dilations', [1])) == {1})
  strides = tuple(attributes.get('strides', (1, 1)))
  pads = attributes.get('pads', [0] * 4)
  if attributes.get('auto_pad', 'NOTSET').startswith('SAME'):
    _check(size % 2 and (strides == (1, 1) or size == 1))
    pads = [size // 2] * 4
  _check(len(set(pads)) == 1)
  sides = tuple(
    (side + 2 * pads[0] - size) // step + 1
    for side, step in zip(value.shape[1:], strides, strict=True)
  )
  _check(min(sides) > 0)
  _check(bias is None or bias.shape == (out,))
  if not pads[0] and value.shape[1:] == (size, size):
    # It reads every pixel once: a fully connected layer.
    value = _flat(node, value, 'CHW') if value.has_pixels else value
    operation = _linear(node, value, kernel.reshape(out, -1).T, bias)
    found = _result(operation, 'NCHW')
  else:
    operation = Operation(
      'conv',
      named(node),
      [value],
      (out, *sides),
      kernel,
      stride=strides,
      padding=pads[0],
    )
    found = _result(operation, value.axes)
    if bias is not None:
      found = _scaled(found, 1, bias.astype(float), node)
  # What onnxruntime has fused.
  if added is not None:
    found = _sum(file, node, [found, added])
  return _activated(node, found, attributes)


def _activated(node, value, attributes):
  """Applies the activation of a node that onnxruntime has fused."""
  kind = attributes.get('activation', '')
  if not kind:
    return value
  if kind == 'Sigmoid':
    return _kept('sigmoid', node, value)
  slopes = {'Relu': [0.0], 'LeakyRelu': attributes.get('activation_params')}
  return _rectified(node, value, np.asarray(slopes[kind][0]))


def _flat(node, value, order):
  channels, height, width = value.shape
  shape = channels * height * width, 1, 1
  operation = Operation('flatten', named(node), [value], shape, order=order)
  return _result(operation, 'NC')


def _linear(node, value, kernel, bias):
  features, out = kernel.shape
  _check(features == value.shape[0] and not value.has_pixels)
  bias = np.zeros(out) if bias is None else np.broadcast_to(bias, (out,))
  return Operation('linear', named(node), [value], (out, 1, 1), kernel, bias)


def _gemm(file, node, inputs):
  attributes = file.attributes(node)
  value, kernel, *others = inputs
  _check(value.axes == 'NC' and not attributes.get('transA', 0))
  kernel = kernel.T if attributes.get('transB', 0) else kernel
  factor = attributes.get('alpha', 1.0)
  bias = others[0] if others else None
  if bias is not None:
    _check(isinstance(bias, np.ndarray) and bias.size in (1, kernel.shape[1]))
    bias = bias.reshape(-1) * np.float32(attributes.get('beta', 1.0))
  kernel = kernel if factor == 1 else kernel * np.float32(factor)
  found = _result(_linear(node, value, kernel, bias), 'NC')
  return _activated(node, found, attributes)


def _matmul(file, node, inputs):
  value, kernel = inputs
  _check(value.axes == 'NC' and isinstance(kernel, np.ndarray))
  return _result(_linear(node, value, kernel, None), 'NC')


def _batch_norm(file, node, inputs):
  attributes = file.attributes(node)
  value, *arrays = inputs
  # Statistics of the batch: a network in training.
  _check(not attributes.get('training_mode', 0))
  _check(value.axes[1] == 'C' and len(arrays) == 4)
  _check(all(array.shape == value.shape[:1] for array in arrays))
  epsilon = np.float32(attributes.get('epsilon', 1e-5))
  arrays = [array.astype(float) for array in arrays]
  _check(np.all(arrays[-1] + epsilon > 0))
  norm = Norm(*arrays, float(epsilon))
  affine = value.affine.then_norm(norm, named(node))
  return dataclasses.replace(value, affine=affine)


def _prelu(file, node, inputs):
  value, slope = inputs
  return _rectified(node, value, _of_channels(value, slope))


def _leaky_relu(file, node, inputs):
  slope = file.attributes(node).get('alpha', 0.01)
  return _rectified(node, inputs[0], np.asarray(slope))


def _relu(file, node, inputs):
  return _rectified(node, inputs[0], np.zeros(()))


def _rectified(node, value, slope):
  slope = np.broadcast_to(slope, value.shape[:1])
  operation = Operation('prelu', named(node), [value], value.shape, slope=slope)
  return _result(operation, value.axes)


def _positive(file, node, inputs):
  value, zero = inputs
  _check(isinstance(zero, np.ndarray) and not zero.any())
  return _kept('positive', node, value)


def _where(file, node, inputs):
  """A PReLU as a comparison and a choice, which jax2onnx writes."""
  sign, value, scaled = inputs
  _check(sign.source.kind == 'positive' and sign.source.inputs[0].same(value))
  _check(scaled.source is value.source and scaled.axes == value.axes)
  before, after = value.affine, scaled.affine
  _check(before.scale.all())
  slope = after.scale / before.scale
  _check(np.allclose(after.shift, slope * before.shift, 1e-6, 1e-12))
  return _rectified(node, value, slope)


def _mean(file, node, inputs):
  value, *others = inputs
  attributes = file.attributes(node)
  kind = node.op_type
  if kind == 'GlobalAveragePool':
    _check(value.axes == 'NCHW')
    axes, keep = 'HW', True
  else:
    numbers = file.numbers(node, 'axes', others)
    axes = sorted(value.axes[axis % len(value.axes)] for axis in numbers)
    keep = attributes.get('keepdims', 1)
  _check(''.join(axes) == 'HW' and value.has_pixels)
  operation = Operation('mean', named(node), [value], (value.shape[0], 1, 1))
  return _result(operation, value.axes if keep else 'NC')


def _pool(file, node, inputs):
  """A pool of one pixel, which takes some of them, or of all."""
  attributes = file.attributes(node)
  (value,) = inputs
  size = tuple(attributes['kernel_shape'])
  _check(value.axes == 'NCHW' and not any(attributes.get('pads', [0])))
  _check(not attributes.get('ceil_mode', 0))
  if (
    size == value.shape[1:] and node.op_type == 'AveragePool' and size != (1, 1)
  ):
    operation = Operation('mean', named(node), [value], (value.shape[0], 1, 1))
    return _result(operation, value.axes)
  _check(size == (1, 1))
  return _subsampled(node, value, tuple(attributes.get('strides', (1, 1))))


def _subsampled(node, value, stride):
  if stride == (1, 1):
    return value
  before = value.source
  # One axis after the other, as `x[:, :, ::2, ::2]` is exported.
  if before.kind == 'subsample' and value.affine.is_identity:
    (value,) = before.inputs
    stride = tuple(a * b for a, b in zip(before.stride, stride, strict=True))
  channels, *sides = value.shape
  sides = [-(-side // step) for side, step in zip(sides, stride, strict=True)]
  operation = Operation(
    'subsample', named(node), [value], (channels, *sides), stride=stride
  )
  return _result(operation, value.axes)


def _slice(file, node, inputs):
  value, *others = inputs
  sizes = [value.sizes[axis] for axis in value.axes]
  taken = slices(file, node, others, sizes)
  stride = {'H': 1, 'W': 1}
  for axis, size, part in zip(value.axes, sizes, taken, strict=True):
    start, end, step = part.indices(size)
    if axis == 'C' and (start, end, step) == (size - 1, -1, -1):
      return _flipped(node, value)
    _check(start == 0 and step >= 1 and end > size - step)
    if step != 1:
      stride[axis] = step
      _check(axis in 'HW')
  return _subsampled(node, value, (stride['H'], stride['W']))


def _gather(file, node, inputs):
  value, indices = inputs
  axis = file.attributes(node).get('axis', 0)
  channels = value.shape[0]
  _check(value.axes[axis] == 'C' and indices.ndim == 1)
  _check([*indices] == [*range(channels)][::-1])
  return _flipped(node, value)


def _flipped(node, value):
  return _kept('flip', node, value)


def _sigmoid(file, node, inputs):
  (value,) = inputs
  return _kept('sigmoid', node, value)


def _same(file, node, inputs):
  """``Identity``, ``Dropout`` in evaluation, a cast between floats."""
  if node.op_type == 'Dropout' and len(inputs) > 2 and inputs[2] is not None:
    _check(not np.any(inputs[2]))
  return inputs[0]


def _shape(file, node, inputs):
  attributes = file.attributes(node)
  (value,) = inputs
  shape = np.array([value.sizes[axis] for axis in value.axes])
  return shape[attributes.get('start', 0) : attributes.get('end')]


def _transposed(file, node, inputs):
  (value,) = inputs
  perm = file.attributes(node).get('perm') or range(len(value.axes))[::-1]
  axes = ''.join(value.axes[i] for i in perm)
  return dataclasses.replace(value, axes=axes)


def _flattened(file, node, inputs):
  (value,) = inputs
  _check(file.attributes(node).get('axis', 1) in (1, 1 - len(value.axes)))
  return _as_rows(node, value)


def _as_rows(node, value):
  _check(value.axes[0] == 'N')
  if not value.has_pixels:
    return dataclasses.replace(value, axes='NC')
  return _flat(node, value, value.axes[1:])


def _reshaped(file, node, inputs):
  value, target = inputs
  sizes = [value.sizes[axis] for axis in value.axes]
  shape = [sizes[i] if n == 0 else int(n) for i, n in enumerate(target)]
  first, *rest = shape
  batch = _batch_size(file)
  _check(first in (-1, _BATCH, batch))
  numel = math.prod(value.shape)
  if -1 in rest:
    known = -math.prod(rest)
    _check(rest.count(-1) == 1 and known > 0 and numel % known == 0)
    rest[rest.index(-1)] = numel // known
  _check(math.prod(rest) == numel and value.axes[0] == 'N')
  if rest == sizes[1:]:
    return value
  if len(rest) == 1:
    return _as_rows(node, value)
  _check(not value.has_pixels and len(rest) == 3)
  place = max(range(3), key=lambda i: rest[i])
  _check(place in (0, 2))
  return dataclasses.replace(value, axes='NCHW' if place == 0 else 'NHWC')


def _batch_size(file):
  """Returns the number of images, if the graph takes a certain one."""
  dims = file.inputs[0].type.tensor_type.shape.dim
  return dims[0].dim_value if dims and dims[0].dim_value else None


def _squeezed(file, node, inputs):
  value, *others = inputs
  _check(not value.has_pixels)
  numbers = file.numbers(node, 'axes', others)
  gone = {axis % len(value.axes) for axis in numbers}
  axes = ''.join(a for i, a in enumerate(value.axes) if i not in gone)
  _check(axes[:1] == 'N' and 'C' in axes)
  return dataclasses.replace(value, axes=axes)


def _unsqueezed(file, node, inputs):
  value, *others = inputs
  _check(not value.has_pixels)
  axes, added = list(value.axes), file.numbers(node, 'axes', others)
  rank = len(axes) + len(added)
  for axis in sorted(axis % rank for axis in added):
    axes.insert(axis, [a for a in 'HW' if a not in axes][0])
  return dataclasses.replace(value, axes=''.join(axes))


_READERS: dict[str, Callable[..., Any]] = {
  'Add': _sum,
  'AveragePool': _pool,
  'BatchNormalization': _batch_norm,
  'Cast': _same,
  'CastLike': _same,
  'Clip': _at_least,
  'Conv': _conv,
  'Div': _quotient,
  'Dropout': _same,
  'Expand': _expanded,
  'Flatten': _flattened,
  'FusedConv': _conv,
  'FusedGemm': _gemm,
  'Gather': _gather,
  'Gemm': _gemm,
  'GlobalAveragePool': _mean,
  'Greater': _positive,
  'Identity': _same,
  'LeakyRelu': _leaky_relu,
  'LpNormalization': _normalization,
  'MatMul': _matmul,
  'Max': _at_least,
  'MaxPool': _pool,
  'Mul': _product,
  'PRelu': _prelu,
  'Pow': _power,
  'ReduceL2': _norm,
  'ReduceMean': _mean,
  'ReduceSum': _sum_of_squares,
  'Reciprocal': _inverse,
  'Relu': _relu,
  'Reshape': _reshaped,
  'Shape': _shape,
  'Sigmoid': _sigmoid,
  'Slice': _slice,
  'Sqrt': _root,
  'Squeeze': _squeezed,
  'Sub': _difference,
  'Transpose': _transposed,
  'Unsqueeze': _unsqueezed,
  'Where': _where,
}
