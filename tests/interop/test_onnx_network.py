# SPDX-License-Identifier: Apache-2.0
"""Embeddings of ONNX files: ours, and small ones of other forms."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from elasticface_jax.errors import InputError
from elasticface_jax.interop import onnx_graph, torch_names
from elasticface_jax.interop.onnx_network import OnnxNetwork

from .conftest import SMALL

PIXELS = np.random.default_rng(0).integers(
  256, size=(5, 112, 112, 3), dtype=np.uint8
)


def write(
  path,
  shape=('batch', 3, 112, 112),
  *,
  names=('mean',),
  axes=(2, 3),
  outputs=1,
  dtype=TensorProto.FLOAT,
):
  """Writes a network whose embedding is the mean of each colour."""
  nodes, x = [], 'images'
  constants = []
  for name in names[:-1]:
    kind, value = {'Sub': ('Sub', 127.5), 'Mul': ('Mul', 1 / 127.5)}[name[:3]]
    constants.append(helper.make_tensor(f'{name}.c', dtype, [], [value]))
    nodes.append(helper.make_node(kind, [x, f'{name}.c'], [name], name))
    x = name
  nodes += [
    helper.make_node(
      'ReduceMean', [x], [f'out{i}'], f'mean{i}', axes=axes, keepdims=0
    )
    for i in range(outputs)
  ]
  graph = helper.make_graph(
    nodes,
    'means',
    [helper.make_tensor_value_info('images', dtype, shape)],
    [
      helper.make_tensor_value_info(f'out{i}', dtype, [shape[0], 3])
      for i in range(outputs)
    ],
    constants,
  )
  opset = [helper.make_opsetid('', 13)]
  onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
  return path


def test_embeddings_of_our_export(draw_network, make_embed, tmp_path):
  network = draw_network(**SMALL)
  embed = make_embed(*network)
  path = tmp_path / 'network.onnx'
  onnx_graph.write(path, torch_names.to_torch(*network[1:]), {}, embed=embed)
  opened = OnnxNetwork(path, rows=4)
  assert opened.title == 'network.onnx' and opened.embedding_dim == 24
  assert not opened.scales_pixels and opened.eval_rows == 4
  scaled = (PIXELS.astype(np.float32) - 127.5) / 127.5
  expected = embed(scaled) + embed(scaled[:, :, ::-1])
  found = opened.embed(PIXELS)
  assert found.dtype == np.float32 and expected.std() > 0.01
  np.testing.assert_allclose(found, expected, 0, 2e-4)
  # One image alone has the bits that it has among others.
  np.testing.assert_array_equal(opened.embed(PIXELS[3:4]), found[3:4])
  assert opened.embed(PIXELS[:0]).shape == (0, 24)
  assert opened.describe()['file_sha256'] == opened.fingerprint
  with pytest.raises(TypeError, match='images are float32'):
    opened.embed(scaled)
  with pytest.raises(ValueError, match='images have shape'):
    opened.embed(PIXELS[:, :96])


@pytest.mark.parametrize(
  'shape, names, axes, rows',
  [
    (('batch', 3, 112, 112), ('mean',), (2, 3), 4),
    (('batch', 112, 112, 3), ('mean',), (1, 2), 4),
    ((1, 3, 112, 112), ('mean',), (2, 3), 1),
    ((2, 3, 112, 112), ('mean',), (2, 3), 2),
    # Pixels that the graph scales, as insightface finds it.
    (('None', 3, 112, 112), ('Sub_1', 'Mul_2', 'mean'), (2, 3), 4),
    (('batch', 3, 'height', 'width'), ('mean',), (2, 3), 4),
  ],
)
def test_forms(shape, names, axes, rows, tmp_path):
  path = write(tmp_path / 'means.onnx', shape, names=names, axes=axes)
  opened = OnnxNetwork(path, rows=4)
  assert opened.eval_rows == rows
  assert opened.scales_pixels == (len(names) > 1)
  # In every form it is the mean in [-1, 1]; the mirror image has the same.
  expected = 2 * (PIXELS.mean((1, 2)) - 127.5) / 127.5
  np.testing.assert_allclose(opened.embed(PIXELS), expected, 0, 1e-5)


@pytest.mark.parametrize(
  'names', [('mean',), ('Sub_1', 'Mul_2', 'mean')], ids=['plain', 'scaling']
)
def test_stated_pixels(names, tmp_path):
  path = write(tmp_path / 'means.onnx', names=names)
  plain = OnnxNetwork(path, rows=4)
  opened = OnnxNetwork(path, rows=4, colour_order='bgr')
  # The first output is then the mean of blue.
  expected = plain.embed(PIXELS)[:, ::-1]
  np.testing.assert_array_equal(opened.embed(PIXELS), expected)
  assert opened.describe()['colour_order'] == 'BGR'
  assert opened.describe()['file_sha256'] == plain.fingerprint
  # Results of other pixels are those of another network.
  assert opened.fingerprint != plain.fingerprint
  assert opened.note.endswith(f'is given BGR, {opened.pixels.normalisation}')
  formula = '(x - [10, 20, 30]) / [1, 2, 4]'
  scaled = OnnxNetwork(path, rows=4, colour_order='bgr', normalisation=formula)
  means = PIXELS.mean((1, 2))[:, ::-1]
  expected = 2 * (means - [10, 20, 30]) / [1, 2, 4]
  if len(names) > 1:
    expected = (expected - 255) / 127.5
  np.testing.assert_allclose(scaled.embed(PIXELS), expected, 1e-4, 1e-4)
  with pytest.raises(InputError, match='is no formula of a pixel'):
    OnnxNetwork(path, rows=4, normalisation='x + 1')


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'shape': ('b', 3, 224, 224)}, r"takes 'images' .*\[B, 3, 112, 112\]"),
    ({'outputs': 2}, r"gives 'out0' .*'out1' .*\[B, D\]"),
    ({'dtype': TensorProto.DOUBLE}, r"takes 'images' tensor\(double\)"),
  ],
)
def test_other_networks(arguments, message, tmp_path):
  path = write(tmp_path / 'other.onnx', **arguments)
  with pytest.raises(InputError, match=message) as error:
    OnnxNetwork(path, rows=4)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'no network'])
def test_other_files(content, tmp_path):
  path = tmp_path / 'a.onnx'
  path.write_bytes(content)
  with pytest.raises(InputError, match='a.onnx is no ONNX network') as error:
    OnnxNetwork(path, rows=4)
  assert '\n' not in str(error.value)
