# SPDX-License-Identifier: Apache-2.0
"""Export of a backbone to an ONNX file.

An IResNet in evaluation has thirteen kinds of nodes, written here one by one;
the other networks are in `onnx_arcface_torch`.
The general exporter, jax2onnx, needs an older Orbax than the trainer does, adds
transposes around convolutions and writes PReLU as a comparison and a select.

The file is what insightface's tools expect: images ``input.1``, float32
``[batch, 3, 112, 112]``, RGB, (x - 127.5) / 127.5; one output, ``embedding``,
not normalised, ``[batch, D]``. They assume that the graph scales pixels itself
if the first 8 nodes have names that begin with ``Sub`` and ``Mul``. Here nodes
have the names of PyTorch's modules, and arrays those of its tensors; those of
an `InputNorm`, which maps the same images to others, begin with ``input``.
"""

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from elasticface_jax import __version__, atomic
from elasticface_jax.errors import InputError
from elasticface_jax.interop import comparison, onnx_arcface_torch
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.models.layers import EPSILON

INPUT, OUTPUT = 'input.1', 'embedding'
# From 2021: onnxruntime reads them since 1.10.
_OPSET, _IR_VERSION = 15, 8
# From 2022: onnxruntime reads it since 1.13.
_OPSET_OF_LAYER_NORM = 17
# Protobuf's limit.
_MOST_BYTES = 2**31 - 1
_FATAL = 4
# Arrays of a BatchNorm, and what they are where they are left out.
_NORM = {'weight': 1, 'bias': 0, 'running_mean': 0, 'running_var': 1}


def write(
  path: str | os.PathLike[str],
  state_dict: Mapping[str, np.ndarray],
  metadata: Mapping[str, Any],
  *,
  embed: Callable[[np.ndarray], np.ndarray],
  input_norm: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Writes a backbone to an ONNX file that onnxruntime has checked.

  Equal arguments give equal bytes.

  Args:
    path: of the file; an existing one is replaced.
    state_dict: of a network of any form, as from `own_tensors`. Arrays are
      written as float32.
    metadata: values for JSON by name. A string is stored as it is, everything
      else as JSON.
    embed: the network in evaluation, for the check: images, RGB in [-1, 1],
      float32 ``[B, 112, 112, 3]``, to embeddings ``[B, D]``.
    input_norm: mean and std of its `InputNorm`, ``[3]``, if it has one.

  Raises:
    InputError: if onnx or onnxruntime is not installed, the network is too
      large, or the file cannot be written.
    RuntimeError: if onnxruntime computes other embeddings. No new file is
      left then, and an existing one is kept.
  """
  onnx, _ = check_packages()
  size = sum(array.size * 4 for array in state_dict.values())
  if size > _MOST_BYTES:
    raise InputError(
      f'{path}: weights of {size} bytes are more than the 2 GiB that an ONNX '
      'file can have; export to stablehlo'
    )
  made = model(onnx, state_dict, input_norm, metadata)
  onnx.checker.check_model(made, full_check=True)
  with atomic.file(path) as part:
    part.write_bytes(made.SerializeToString(deterministic=True))
    session = open_session(part)

    def run(images):
      channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
      return session.run([OUTPUT], {INPUT: channels_first})[0]

    comparison.compare(path, run, embed)


def check_packages() -> tuple[Any, Any]:
  """Imports the packages that `write` needs.

  Returns:
    The modules onnx and onnxruntime.

  Raises:
    InputError: names the one that is not installed.
  """
  try:
    import onnx
    import onnxruntime
  except ImportError as error:
    raise InputError(
      f'an ONNX file needs the package {error.name}: '
      "pip install 'elasticface_jax[export]'"
    ) from error
  return onnx, onnxruntime


def open_session(
  network: str | os.PathLike[str] | bytes,
  providers: Sequence[str] = ('CPUExecutionProvider',),
) -> Any:
  """Opens a network in onnxruntime, which prints nothing but fatal errors.

  Args:
    network: path of a file, or its content.
    providers: what computes it, by onnxruntime's names, the first that can.

  Returns:
    An ``onnxruntime.InferenceSession``.

  Raises:
    Exception: of onnxruntime, if it cannot read the network.
  """
  _, onnxruntime = check_packages()
  options = onnxruntime.SessionOptions()
  options.log_severity_level = _FATAL
  return onnxruntime.InferenceSession(
    network, options, providers=list(providers)
  )


def model(
  onnx: Any,
  state_dict: Mapping[str, np.ndarray],
  input_norm: Mapping[str, np.ndarray] | None,
  metadata: Mapping[str, Any],
) -> Any:
  """Makes the graph of a backbone.

  Args:
    onnx: the module, from `check_packages`.
    state_dict: as for `write`.
    input_norm: likewise.
    metadata: likewise.

  Returns:
    An ``onnx.ModelProto``, whose nodes have the names of the modules.
  """
  graph = _Graph(onnx, state_dict)
  opset = _OPSET
  if graph.has('conv_sep.layers.0'):
    onnx_arcface_torch.mobilefacenet(graph, INPUT, OUTPUT)
  elif graph.has('patch_embed.proj'):
    onnx_arcface_torch.transformer(graph, INPUT, OUTPUT)
    opset = _OPSET_OF_LAYER_NORM
  else:
    graph.network(input_norm)
  describe = onnx.helper.make_tensor_value_info
  side, _, channels = IMAGE_SHAPE
  shapes = {
    INPUT: ['batch', channels, side, side],
    OUTPUT: ['batch', graph.embedding_dim],
  }
  images, embeddings = (
    describe(name, onnx.TensorProto.FLOAT, shape)
    for name, shape in shapes.items()
  )
  made = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes, 'backbone', [images], [embeddings], graph.arrays
    ),
    opset_imports=[onnx.helper.make_opsetid('', opset)],
    ir_version=_IR_VERSION,
    producer_name='elasticface_jax',
    producer_version=__version__,
  )
  texts = {
    name: value if isinstance(value, str) else json.dumps(value)
    for name, value in metadata.items()
  }
  onnx.helper.set_model_props(made, texts)
  return made


class _Graph:
  """A graph under construction; methods add nodes and return output names."""

  def __init__(self, onnx, state_dict):
    self.nodes = []
    self.arrays = []
    self.embedding_dim = 0
    self._onnx = onnx
    self._state_dict = state_dict

  def has(self, module, array='weight'):
    return f'{module}.{array}' in self._state_dict

  def shape(self, name):
    return self._state_dict[name].shape

  def node(self, kind, name, *inputs, output=None, **attributes):
    output = output or f'{name}.output'
    self.nodes.append(
      self._onnx.helper.make_node(kind, inputs, [output], name, **attributes)
    )
    return output

  def array(self, name, *, shape=None):
    array = self._state_dict[name].astype(np.float32)
    return self.add(name, array if shape is None else array.reshape(shape))

  def add(self, name, array):
    self.arrays.append(self._onnx.numpy_helper.from_array(array, name))
    return name

  def matrix(self, name):
    array = self._state_dict[f'{name}.weight'].astype(np.float32)
    return self.add(f'{name}.weight', np.ascontiguousarray(array.T))

  def conv(self, x, name, *, stride=1, grouped=False, padded=True):
    weight = self.array(f'{name}.weight')
    # Of a grouped one, here with as many channels as its input.
    channels, of_group, size, _ = self.shape(weight)
    return self.node(
      'Conv',
      name,
      x,
      weight,
      kernel_shape=[size, size],
      pads=[size // 2 if padded else 0] * 4,
      strides=[stride, stride],
      **({'group': channels // of_group} if grouped else {}),
    )

  def norm(self, x, name, *, output=None, epsilon=EPSILON):
    arrays = []
    # The last BatchNorm may have no scale and bias.
    shape = self._state_dict[f'{name}.running_mean'].shape
    for part, default in _NORM.items():
      key = f'{name}.{part}'
      if key in self._state_dict:
        arrays.append(self.array(key))
      else:
        arrays.append(self.add(key, np.full(shape, default, np.float32)))
    # The embedding's is the last.
    self.embedding_dim = shape[0]
    return self.node(
      'BatchNormalization', name, x, *arrays, output=output, epsilon=epsilon
    )

  def prelu(self, x, name):
    # Slopes broadcast from the last dim; channels are the third from the end.
    slopes = self.array(f'{name}.weight', shape=(-1, 1, 1))
    return self.node('PRelu', name, x, slopes)

  def gate(self, x, name):
    means = self.node('GlobalAveragePool', f'{name}.means', x)
    hidden = self.conv(means, f'{name}.fc1')
    hidden = self.node('Relu', f'{name}.relu', hidden)
    gates = self.conv(hidden, f'{name}.fc2')
    gates = self.node('Sigmoid', f'{name}.sigmoid', gates)
    return self.node('Mul', f'{name}.scaled', x, gates)

  def block(self, x, name, *, stride):
    y = self.conv(self.norm(x, f'{name}.bn1'), f'{name}.conv1')
    if self.has(f'{name}.bn2'):
      y = self.norm(y, f'{name}.bn2')
    y = self.prelu(y, f'{name}.prelu')
    if self.has(f'{name}.conv3'):
      y = self.norm(self.conv(y, f'{name}.conv2'), f'{name}.bn3')
      y = self.conv(
        self.prelu(y, f'{name}.prelu2'), f'{name}.conv3', stride=stride
      )
      y = self.norm(y, f'{name}.bn4')
    else:
      y = self.conv(y, f'{name}.conv2', stride=stride)
      y = self.norm(y, f'{name}.bn3')
    if self.has(f'{name}.se_block.fc1'):
      y = self.gate(y, f'{name}.se_block')
    if self.has(f'{name}.downsample.0'):
      x = self.conv(x, f'{name}.downsample.0', stride=stride)
      x = self.norm(x, f'{name}.downsample.1')
    elif stride != 1:
      strides, size = [stride, stride], [1, 1]
      x = self.node(
        'MaxPool', f'{name}.subsampled', x, kernel_shape=size, strides=strides
      )
    return self.node('Add', f'{name}.sum', x, y)

  def input(self, constants):
    x = INPUT
    for kind, key in (('Sub', 'mean'), ('Div', 'std')):
      array = np.asarray(constants[key], np.float32).reshape(-1, 1, 1)
      array = self.add(f'input.{key}', array)
      x = self.node(kind, f'input.{kind.lower()}', x, array)
    return x

  def network(self, input_norm):
    x = INPUT if input_norm is None else self.input(input_norm)
    x = self.prelu(self.norm(self.conv(x, 'conv1'), 'bn1'), 'prelu')
    for i in range(1, 5):
      blocks = itertools.takewhile(
        lambda name: self.has(f'{name}.conv1'),
        (f'layer{i}.{j}' for j in itertools.count()),
      )
      for j, name in enumerate(blocks):
        x = self.block(x, name, stride=2 if j == 0 else 1)
    x = self.node('Flatten', 'flatten', self.norm(x, 'bn2'))
    weight, bias = self.array('fc.weight'), self.array('fc.bias')
    x = self.node('Gemm', 'fc', x, weight, bias, transB=1)
    return self.norm(x, 'features', output=OUTPUT)
