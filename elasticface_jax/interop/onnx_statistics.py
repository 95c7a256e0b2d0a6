# SPDX-License-Identifier: Apache-2.0
"""Statistics of BatchNorms that an exporter has folded, measured on images.

The network in evaluation is written as an ONNX graph that gives what enters
these BatchNorms, and onnxruntime runs it on the CPU, in float32.
"""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from elasticface_jax.interop import onnx_graph, torch_names
from elasticface_jax.models.layers import EPSILON

Tree = dict[str, Any]


def with_statistics(
  params: Tree,
  batch_stats: Tree,
  names: Collection[str],
  batches: Iterable[np.ndarray],
) -> tuple[Tree, Tree]:
  r"""Gives BatchNorms the statistics of images.

  With :math:`\mu` and :math:`\sigma^2` of the values that enter a BatchNorm of
  slope :math:`a` and offset :math:`b` in evaluation,

  .. math::
    a x + b = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta,
    \quad \gamma = a \sqrt{\sigma^2 + \epsilon}, \quad \beta = b + a \mu

  so that embeddings stay equal, and training, which normalises by its batch,
  begins near them. A BatchNorm that learns no scale, the embedding's, keeps its
  variance.

  Args:
    params: of an IResNet, float32.
    batch_stats: likewise.
    names: of the BatchNorms, such as ``layer1.0.bn2``. The others stay.
    batches: aligned faces, RGB, uint8, ``[M, 112, 112, 3]`` each; one image at
      least. All arrays that enter the BatchNorms are in memory for one batch:
      40 MB an image for IResNet-100.

  Returns:
    ``(params, batch_stats)``, float32. The variance is the unbiased one.

  Raises:
    InputError: if onnx or onnxruntime is not installed.
  """
  session, outputs = _session(params, batch_stats, names)
  moments = {name: _Moments() for name in names}
  for images in batches:
    pixels = (images.astype(np.float32) - 127.5) / 127.5
    pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    found = session.run([*outputs.values()], {onnx_graph.INPUT: pixels})
    for name, values in zip(outputs, found, strict=True):
      moments[name].add(values)
  params, batch_stats = _copied(params), _copied(batch_stats)
  for name, found in moments.items():
    _set(_at(params, name), _at(batch_stats, name), found)
  return params, batch_stats


class _Moments:
  """Mean and centred sum of squares of each channel, in float64."""

  def __init__(self):
    self.count = 0
    self.mean = self.squares = np.zeros(())

  def add(self, values):
    """Adds values ``[B, C]`` or ``[B, C, H, W]``."""
    values = values.reshape(*values.shape[:2], -1)
    count = values.size // values.shape[1]
    mean = values.mean((0, 2), dtype=np.float64)
    squares = np.square(values - mean[:, None]).sum((0, 2))
    total, gap = self.count + count, mean - self.mean
    self.squares = self.squares + squares + gap**2 * self.count * count / total
    self.mean = self.mean + gap * count / total
    self.count = total


def _session(params, batch_stats, names):
  """Returns the session, and the outputs of the graph by the BatchNorm."""
  onnx, _ = onnx_graph.check_packages()
  model = onnx_graph.model(
    onnx,
    torch_names.own_tensors(params, batch_stats),
    batch_stats.get('input'),
    {},
  )
  outputs = {
    node.name: node.input[0] for node in model.graph.node if node.name in names
  }
  del model.graph.output[:]
  model.graph.output.extend(
    onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    for output in outputs.values()
  )
  return onnx_graph.open_session(model.SerializeToString()), outputs


def _set(params, batch_stats, moments):
  """Changes the arrays of one BatchNorm, in place."""
  norm = {
    key: np.float64(array) for key, array in (params | batch_stats).items()
  }
  before = np.sqrt(norm['var'] + EPSILON)
  if 'scale' in params:
    var = np.float32(moments.squares / (moments.count - 1))
    slope = norm['scale'] / before
    # Of the variance as it is stored: the slope stays.
    params['scale'] = np.float32(slope * np.sqrt(np.float64(var) + EPSILON))
    batch_stats['var'] = var
  else:
    slope = 1 / before
  mean = np.float32(moments.mean)
  params['bias'] = np.float32(norm['bias'] + slope * (mean - norm['mean']))
  batch_stats['mean'] = mean


def _at(tree, name):
  for part in name.split('.'):
    tree = tree[part]
  return tree


def _copied(tree):
  """Copies the dicts of a tree, not its arrays."""
  if not isinstance(tree, dict):
    return tree
  return {key: _copied(value) for key, value in tree.items()}
