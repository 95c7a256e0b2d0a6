# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of arcface_torch's MobileFaceNet and ViT, in evaluation.

Written on the graph of `onnx_graph`, from tensors by PyTorch's names.
"""

import itertools
from typing import Any

import numpy as np

from elasticface_jax.models import vit


def mobilefacenet(graph: Any, images: str, output: str) -> None:
  """Adds a MobileFaceNet to a graph.

  Args:
    graph: of `onnx_graph`, under construction, with the tensors.
    images: name of the input.
    output: name of the embeddings.
  """

  def block(x, name, **options):
    x = graph.conv(x, f'{name}.layers.0', **options)
    x = graph.norm(x, f'{name}.layers.1')
    has_slopes = graph.has(f'{name}.layers.2')
    return graph.prelu(x, f'{name}.layers.2') if has_slopes else x

  def bottleneck(x, name, stride):
    y = block(x, f'{name}.layers.0')
    y = block(y, f'{name}.layers.1', stride=stride, grouped=True)
    y = block(y, f'{name}.layers.2')
    return graph.node('Add', f'{name}.sum', x, y) if stride == 1 else y

  x = block(images, 'layers.0', stride=2)
  x = block(x, 'layers.1', grouped=True)
  for i in itertools.count(2):
    if graph.has(f'layers.{i}.layers.0.layers.0'):
      x = bottleneck(x, f'layers.{i}', 2)
      continue
    names = (f'layers.{i}.layers.{j}' for j in itertools.count())
    inside = [
      *itertools.takewhile(
        lambda name: graph.has(f'{name}.layers.0.layers.0'), names
      )
    ]
    if not inside:
      break
    for name in inside:
      x = bottleneck(x, name, 1)
  x = block(x, 'conv_sep')
  x = block(x, 'features.layers.0', grouped=True, padded=False)
  x = graph.node('Flatten', 'features.layers.1', x)
  weight = graph.array('features.layers.2.weight')
  x = graph.node('Gemm', 'features.layers.2', x, weight, transB=1)
  graph.norm(x, 'features.layers.3', output=output)


def transformer(graph: Any, images: str, output: str) -> None:
  """Adds a ViT to a graph; takes operator set 17.

  Args:
    graph: of `onnx_graph`, under construction, with the tensors.
    images: name of the input.
    output: name of the embeddings.
  """

  def reshaped(x, name, *shape):
    target = graph.add(f'{name}.shape', np.array(shape, np.int64))
    return graph.node('Reshape', f'{name}.reshaped', x, target)

  def transposed(x, name, *order):
    return graph.node('Transpose', f'{name}.transposed', x, perm=order)

  def linear(x, name):
    x = graph.node('MatMul', f'{name}.product', x, graph.matrix(name))
    if not graph.has(name, 'bias'):
      return x
    return graph.node('Add', name, x, graph.array(f'{name}.bias'))

  def layer_norm(x, name):
    scale, bias = graph.array(f'{name}.weight'), graph.array(f'{name}.bias')
    return graph.node(
      'LayerNormalization', name, x, scale, bias, epsilon=vit.EPSILON
    )

  def attention(x, name):
    qkv = linear(x, f'{name}.qkv')
    qkv = reshaped(qkv, f'{name}.qkv', 0, vit.TOKENS, 3, vit.HEADS, head)
    qkv = transposed(qkv, f'{name}.qkv', 2, 0, 3, 1, 4)
    queries, keys, values = (
      graph.node('Gather', f'{name}.{part}', qkv, numbers[i], axis=0)
      for i, part in enumerate(('queries', 'keys', 'values'))
    )
    keys = transposed(keys, f'{name}.keys', 0, 1, 3, 2)
    logits = graph.node('MatMul', f'{name}.products', queries, keys)
    logits = graph.node('Mul', f'{name}.logits', logits, scale)
    weights = graph.node('Softmax', f'{name}.weights', logits, axis=-1)
    heads = graph.node('MatMul', f'{name}.heads', weights, values)
    heads = transposed(heads, f'{name}.heads', 0, 2, 1, 3)
    return linear(reshaped(heads, name, 0, vit.TOKENS, size), f'{name}.proj')

  def mlp(x, name):
    hidden = linear(x, f'{name}.fc1')
    hidden = graph.node('Clip', f'{name}.act', hidden, *limits)
    return linear(hidden, f'{name}.fc2')

  size = graph.shape('patch_embed.proj.bias')[0]
  head = size // vit.HEADS
  numbers = [graph.add(f'number.{i}', np.array(i, np.int64)) for i in range(3)]
  scale = graph.add('scale', np.array(head**-0.5, np.float32))
  limits = [graph.add(f'limit.{x}', np.array(x, np.float32)) for x in (0, 6)]
  proj = 'patch_embed.proj'
  x = graph.node(
    'Conv',
    proj,
    images,
    graph.array(f'{proj}.weight'),
    graph.array(f'{proj}.bias'),
    kernel_shape=[vit.PATCH] * 2,
    strides=[vit.PATCH] * 2,
  )
  x = transposed(reshaped(x, proj, 0, size, vit.TOKENS), proj, 0, 2, 1)
  x = graph.node('Add', 'tokens', x, graph.array('pos_embed'))
  for i in itertools.count():
    name = f'blocks.{i}'
    if not graph.has(f'{name}.norm1'):
      break
    y = attention(layer_norm(x, f'{name}.norm1'), f'{name}.attn')
    x = graph.node('Add', f'{name}.sum1', x, y)
    y = mlp(layer_norm(x, f'{name}.norm2'), f'{name}.mlp')
    x = graph.node('Add', f'{name}.sum2', x, y)
  x = reshaped(layer_norm(x, 'norm'), 'norm', 0, vit.TOKENS * size)
  options = {'epsilon': vit.FEATURE_EPSILON}
  x = graph.norm(linear(x, 'feature.0'), 'feature.1', **options)
  x = linear(x, 'feature.2')
  graph.norm(x, 'feature.3', output=output, **options)
