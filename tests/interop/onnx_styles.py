# SPDX-License-Identifier: Apache-2.0
"""IResNets as ONNX graphs in the styles of many exporters."""

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 7


@dataclasses.dataclass(frozen=True)
class Style:
  """How a network is written; the defaults are those of PyTorch in training.

  Attributes:
    folded: whether a BatchNorm after a convolution is folded into it.
    biased: whether the others have a bias before their BatchNorm.
    norm: of the others: ``bn``, ``mul_add``, ``sub_div``.
    epsilon: of BatchNormalization.
    channels_last: whether images are ``[B, 112, 112, 3]``.
    slopes: shape of PReLU's, ``'C11'`` or ``'1C11'``; or ``leaky``, ``where``,
      ``one``.
    shortcut: ``pool``, ``slice``, ``slices`` or ``conv``, where every second
      pixel is taken.
    flat: ``flatten``, ``reshape``, ``shape`` or ``last``.
    fc: ``gemm``, ``gemm0``, ``matmul`` or ``conv``.
    pixels: ``sub_mul``, ``div`` or ``sub_div``, at the start.
    flip: whether the graph turns the order of colours.
    end: ``''``, ``lp``, ``l2``, ``squares``, ``pair`` or ``map``.
    gates: of SE, ``conv`` or ``gemm``.
    noise: whether nodes that do nothing stand between the others.
    batch: number of images, or a name.
    opset: of the operators.
    listed: whether arrays are inputs too, as in old files.
    half: whether arrays are float16, cast in the graph.
    shared: whether equal arrays are one.
  """

  folded: bool = False
  biased: bool = False
  norm: str = 'bn'
  epsilon: float = 1e-5
  channels_last: bool = False
  slopes: str = 'C11'
  shortcut: str = 'pool'
  flat: str = 'flatten'
  fc: str = 'gemm'
  pixels: str = ''
  flip: bool = False
  end: str = ''
  gates: str = 'conv'
  noise: bool = False
  batch: int | str = 'batch'
  opset: int = 13
  listed: bool = False
  half: bool = False
  shared: bool = False


class _Writer:
  def __init__(self, params, stats, style):
    self.params, self.stats, self.style = params, stats, style
    self.nodes, self.arrays, self.count = [], {}, 0

  def at(self, tree, name):
    for part in name.split('.'):
      tree = tree.get(part, {})
    return {key: np.asarray(array, float) for key, array in tree.items()}

  def has(self, name):
    tree = self.params
    for part in name.split('.'):
      if part not in tree:
        return False
      tree = tree[part]
    return True

  def array(self, array, dtype=np.float32):
    array = np.ascontiguousarray(array).astype(dtype).reshape(np.shape(array))
    if self.style.shared:
      for name, other in self.arrays.items():
        if other.dtype == array.dtype and np.array_equal(other, array):
          return name
    self.count += 1
    name = f'w{self.count}'
    if self.style.half and dtype == np.float32:
      self.arrays[name + 'h'] = array.astype(np.float16)
      return self.node('Cast', name + 'h', to=TensorProto.FLOAT, quiet=True)
    self.arrays[name] = array
    return name

  def ints(self, *numbers):
    return self.array(np.array(numbers), np.int64)

  def node(self, kind, *inputs, quiet=False, **attributes):
    self.count += 1
    made = f'v{self.count}'
    self.nodes.append(
      helper.make_node(
        kind, inputs, [made], f'{kind}_{self.count}', **attributes
      )
    )
    if self.style.noise and not quiet and self.count % 3 == 0:
      made = self.node('Identity', made, quiet=True)
      made = self.node('Cast', made, to=TensorProto.FLOAT, quiet=True)
    return made

  def axes(self, kind, x, *axes, **attributes):
    """A node whose axes are an attribute in old versions."""
    since = {'ReduceMean': 18, 'ReduceL2': 18}.get(kind, 13)
    if self.style.opset < since:
      return self.node(kind, x, axes=axes, **attributes)
    return self.node(kind, x, self.ints(*axes), **attributes)

  def channels(self, vector):
    shape = (-1,) if self.style.channels_last else (-1, 1, 1)
    return np.reshape(vector, shape)

  def line(self, name):
    """Scale and shift of a BatchNorm in evaluation."""
    params, stats = self.at(self.params, name), self.at(self.stats, name)
    if not stats:
      return 1.0, 0.0
    scale = params.get('scale', 1) / np.sqrt(stats['var'] + 1e-5)
    return scale, params.get('bias', 0) - stats['mean'] * scale

  def norm(self, x, name, flat=False):
    stats = self.at(self.stats, name)
    if not stats:
      return x
    scale, shift = self.line(name)
    shaped = (lambda v: v) if flat else self.channels
    if self.style.norm == 'mul_add':
      x = self.node('Mul', x, self.array(shaped(scale)))
      return self.node('Add', self.array(shaped(shift)), x)
    if self.style.norm == 'sub_div':
      x = self.node('Sub', x, self.array(shaped(-shift / scale)))
      return self.node('Div', x, self.array(shaped(1 / scale)))
    params = self.at(self.params, name)
    ones = np.ones_like(stats['mean'])
    var = stats['var'] + 1e-5 - self.style.epsilon
    arrays = params.get('scale', ones), params.get('bias', 0 * ones)
    arrays = [self.array(a) for a in (*arrays, stats['mean'], var)]
    return self.node(
      'BatchNormalization', x, *arrays, epsilon=self.style.epsilon
    )

  def conv(self, x, name, norm, stride=1):
    kernel = self.at(self.params, name)['kernel'].transpose(3, 2, 0, 1)
    inputs = []
    if self.style.folded and self.at(self.stats, norm):
      scale, shift = self.line(norm)
      kernel = kernel * np.reshape(scale, (-1, 1, 1, 1))
      inputs = [self.array(shift)]
    elif self.style.biased:
      inputs = [self.array(np.linspace(0.1, 0.5, len(kernel)))]
    size = kernel.shape[-1]
    last = self.style.channels_last
    x = self.node('Transpose', x, perm=[0, 3, 1, 2]) if last else x
    x = self.node(
      'Conv',
      x,
      self.array(kernel),
      *inputs,
      kernel_shape=[size, size],
      pads=[size // 2] * 4,
      strides=[stride] * 2,
    )
    x = self.node('Transpose', x, perm=[0, 2, 3, 1]) if last else x
    return x if self.style.folded and inputs else self.norm(x, norm)

  def prelu(self, x, name):
    slope = self.at(self.params, name)['slope']
    match self.style.slopes:
      case 'leaky':
        return self.node('LeakyRelu', x, alpha=float(slope[0]))
      case 'one':
        return self.node('PRelu', x, self.array(slope[:1].reshape(1)))
      case 'where':
        sign = self.node('Greater', x, self.array(np.float32(0)), quiet=True)
        scaled = self.node(
          'Mul', x, self.array(self.channels(slope)), quiet=True
        )
        return self.node('Where', sign, x, scaled)
      case '1C11':
        return self.node('PRelu', x, self.array(self.channels(slope)[None]))
    return self.node('PRelu', x, self.array(self.channels(slope)))

  def gate(self, y, name):
    fc1, fc2 = (
      self.at(self.params, f'{name}.{fc}')['kernel'][0, 0]
      for fc in ('fc1', 'fc2')
    )
    if self.style.gates == 'gemm':
      x = self.axes('ReduceMean', y, 2, 3, keepdims=0)
      x = self.node('Relu', self.node('MatMul', x, self.array(fc1)))
      x = self.node('Gemm', x, self.array(fc2.T), transB=1)
      x = self.axes('Unsqueeze', self.node('Sigmoid', x), 2, 3)
    else:
      x = self.node('GlobalAveragePool', y)
      x = self.node('Conv', x, self.array(fc1.T[..., None, None]))
      x = self.node(
        'Conv', self.node('Relu', x), self.array(fc2.T[..., None, None])
      )
      x = self.node('Sigmoid', x)
    return self.node('Mul', x, y)

  def second(self, x):
    match self.style.shortcut:
      case 'slice':
        ends = self.ints(2**62, 2**62)
        return self.node(
          'Slice', x, self.ints(0, 0), ends, self.ints(2, 3), self.ints(2, 2)
        )
      case 'slices':
        for axis in (2, 3):
          x = self.node(
            'Slice',
            x,
            self.ints(0),
            self.ints(2**62),
            self.ints(axis),
            self.ints(2),
          )
        return x
      case 'conv':
        width = self.params['conv1']['kernel'].shape[-1]
        eye = np.eye(width)[..., None, None]
        return self.node('Conv', x, self.array(eye), strides=[2, 2])
    return self.node('MaxPool', x, kernel_shape=[1, 1], strides=[2, 2])

  def block(self, x, name, stride):
    y = self.norm(x, f'{name}.bn1')
    if self.has(f'{name}.conv3'):
      y = self.prelu(
        self.conv(y, f'{name}.conv1', f'{name}.bn2'), f'{name}.prelu'
      )
      y = self.prelu(
        self.conv(y, f'{name}.conv2', f'{name}.bn3'), f'{name}.prelu2'
      )
      y = self.conv(y, f'{name}.conv3', f'{name}.bn4', stride)
    else:
      y = self.prelu(
        self.conv(y, f'{name}.conv1', f'{name}.bn2'), f'{name}.prelu'
      )
      y = self.conv(y, f'{name}.conv2', f'{name}.bn3', stride)
    if self.has(f'{name}.se_block'):
      y = self.gate(y, f'{name}.se_block')
    if self.has(f'{name}.downsample'):
      x = self.conv(x, f'{name}.downsample.0', f'{name}.downsample.1', stride)
    elif stride == 2:
      x = self.second(x)
    return self.node('Add', y, x)

  def scaled(self, x):
    match self.style.pixels:
      case 'sub_mul':
        x = self.node('Sub', x, self.array(np.float32(127.5)))
        return self.node('Mul', x, self.array(np.float32(0.0078125)))
      case 'div':
        return self.node('Div', x, self.array(np.float32(255)))
      case 'sub_div':
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        x = self.node('Sub', x, self.array(self.channels(mean)))
        return self.node('Div', x, self.array(self.channels(std)))
    return x

  def fully_connected(self, x):
    params = self.at(self.params, 'fc')
    kernel, bias = params['kernel'], params['bias']
    dim = len(bias)
    rows = kernel.reshape(SIDE, SIDE, -1, dim).transpose(2, 0, 1, 3)
    channels = rows.shape[0]
    if self.style.fc == 'conv':
      weights = rows.transpose(3, 0, 1, 2)
      x = self.node('Conv', x, self.array(weights), self.array(bias))
      return self.node('Flatten', x)
    rows = rows.reshape(-1, dim)
    match self.style.flat:
      case 'reshape':
        x = self.node('Reshape', x, self.ints(0, -1))
      case 'shape':
        shape = self.node('Shape', x, quiet=True)
        first = self.node('Gather', shape, self.ints(0), axis=0, quiet=True)
        size = self.ints(channels * SIDE**2)
        shape = self.node('Concat', first, size, axis=0, quiet=True)
        x = self.node('Reshape', x, shape)
      case 'last':
        rows = kernel
        if not self.style.channels_last:
          x = self.node('Transpose', x, perm=[0, 2, 3, 1])
        x = self.node('Reshape', x, self.ints(-1, channels * SIDE**2))
      case _:
        x = self.node('Flatten', x, axis=1)
    if self.style.noise:
      x = self.node('Dropout', x)
    match self.style.fc:
      case 'gemm0':
        return self.node('Gemm', x, self.array(rows), self.array(bias))
      case 'matmul':
        x = self.node('MatMul', x, self.array(rows))
        return self.node('Add', x, self.array(bias))
    return self.node('Gemm', x, self.array(rows.T), self.array(bias), transB=1)

  def normalized(self, x):
    """Returns the outputs."""
    match self.style.end:
      case 'lp':
        return [self.node('LpNormalization', x, axis=1, p=2)]
      case 'l2':
        norm = self.axes('ReduceL2', x, 1, keepdims=1)
        low = self.array(np.float32(1e-12))
        norm = self.node('Clip', norm, low)
        shape = self.node('Shape', x, quiet=True)
        return [self.node('Div', x, self.node('Expand', norm, shape))]
      case 'squares':
        squares = self.axes('ReduceSum', self.node('Mul', x, x), 1, keepdims=1)
        return [self.node('Div', x, self.node('Sqrt', squares))]
      case 'pair':
        norm = self.axes('ReduceL2', x, 1, keepdims=1)
        return [self.node('Div', x, norm), norm]
    return [x]

  def network(self):
    x = self.scaled('input.1')
    if self.style.flip:
      x = self.node('Gather', x, self.ints(2, 1, 0), axis=1)
    x = self.prelu(self.conv(x, 'conv1', 'bn1'), 'prelu')
    for i in range(1, 5):
      for j in range(len(self.params[f'layer{i}'])):
        x = self.block(x, f'layer{i}.{j}', 2 if j == 0 else 1)
    y = self.fully_connected(self.norm(x, 'bn2'))
    outputs = self.normalized(self.norm(y, 'features', flat=True))
    if self.style.end == 'map':
      outputs.append(self.node('Flatten', x, axis=1))
    return outputs


def save(path, params, stats, **style):
  """Writes a network in a style, and returns the model."""
  style = Style(**style)
  writer = _Writer(params, stats, style)
  outputs = writer.network()
  return save_graph(path, writer.nodes, outputs, writer.arrays, style)


def save_graph(path, nodes, outputs, arrays, style=Style()):
  """Writes nodes from ``input.1`` to outputs."""
  shape = [3, 112, 112]
  shape = shape[1:] + shape[:1] if style.channels_last else shape
  inputs = [('input.1', TensorProto.FLOAT, [style.batch, *shape])]
  tensors = [numpy_helper.from_array(a, name) for name, a in arrays.items()]
  if style.listed:
    inputs += [(t.name, t.data_type, list(t.dims)) for t in tensors]
  graph = helper.make_graph(
    nodes,
    'network',
    [helper.make_tensor_value_info(*x) for x in inputs],
    [
      helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in outputs
    ],
    tensors,
  )
  model = helper.make_model(
    graph,
    opset_imports=[helper.make_opsetid('', style.opset)],
    ir_version=3 if style.listed else 8,
  )
  onnx.save(model, path)
  return model
