# SPDX-License-Identifier: Apache-2.0
"""ONNX files: their embeddings in onnxruntime, their names and metadata."""

import json
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import elasticface_jax
from elasticface_jax.errors import InputError
from elasticface_jax.interop import onnx_graph, onnx_weights, torch_names

from .conftest import METADATA, OPTIONS, SMALL


def write(path, network, embed):
  _, params, batch_stats = network
  tensors = torch_names.own_tensors(params, batch_stats)
  input_norm = batch_stats.get('input')
  onnx_graph.write(path, tensors, {}, embed=embed, input_norm=input_norm)


def run(path, images):
  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )
  nchw = images.transpose(0, 3, 1, 2)
  return session.run(None, {'input.1': np.ascontiguousarray(nchw)})


class Small:
  """A small network, and a function that writes it with arrays changed."""

  def __init__(self, network, embed):
    self.state_dict = torch_names.to_torch(*network[1:])
    self.embed = embed

  def write(self, path, **changes):
    state_dict = self.state_dict | changes
    onnx_graph.write(path, state_dict, METADATA, embed=self.embed)


@pytest.fixture(scope='module')
def small(draw_network, make_embed):
  network = draw_network(**SMALL)
  return Small(network, make_embed(*network))


@pytest.fixture(scope='module')
def written(small, tmp_path_factory):
  path = tmp_path_factory.mktemp('onnx') / 'small.onnx'
  small.write(path)
  return path


@pytest.mark.parametrize('options', [{'name': 'iresnet18'}, *OPTIONS])
def test_embeddings_are_ours(
  draw_network, make_embed, agrees, tmp_path, options
):
  network = draw_network(**SMALL | options)
  embed = make_embed(*network)
  path = tmp_path / 'network.onnx'
  write(path, network, embed)
  agrees(lambda images: run(path, images)[0], embed)


@pytest.mark.parametrize('options', [
  {'block': 'adaface', 'output_norm': 'plain', 'input_norm': True},
  {'block': 'curricularface', 'output_norm': 'affine'},
  {'block': 'adaface_bottleneck', 'use_se': True},
])  # fmt: skip
def test_other_forms(draw_network, make_embed, images, tmp_path, options):
  network = draw_network(**SMALL | options)
  embed = make_embed(*network)
  path = tmp_path / 'network.onnx'
  write(path, network, embed)
  limit = 1e-4 * np.abs(embed(images[:7])).max()
  found = run(path, images[:7])[0]
  np.testing.assert_allclose(found, embed(images[:7]), 0, limit)
  # With both, insightface takes scaling for a part of the graph.
  first = [node.name for node in onnx.load(path).graph.node[:8]]
  assert not any(name.startswith(('Sub', 'Mul')) for name in first)
  # And back: the arrays are the same, to the bit.
  again = onnx_weights.read(path)
  assert not again.folded
  jax.tree.map(np.testing.assert_array_equal, again[:2], network[1:])


def test_inputs_and_outputs_are_those_of_insightface(written):
  session = onnxruntime.InferenceSession(
    written, providers=['CPUExecutionProvider']
  )
  ((images,), (embedding,)) = session.get_inputs(), session.get_outputs()
  assert (images.name, images.type) == ('input.1', 'tensor(float)')
  assert images.shape == ['batch', 3, 112, 112]
  assert (embedding.name, embedding.shape) == ('embedding', ['batch', 24])
  # With both, insightface takes scaling for a part of the graph.
  first = [node.name for node in onnx.load(written).graph.node[:8]]
  assert not any(name.startswith(('Sub', '_minus')) for name in first)
  assert not any(name.startswith(('Mul', '_mul')) for name in first)


def test_arrays_have_the_names_of_pytorch(written, small):
  state_dict = small.state_dict
  graph = onnx.load(written).graph
  found = {a.name: onnx.numpy_helper.to_array(a) for a in graph.initializer}
  counters = {n for n in state_dict if n.endswith('num_batches_tracked')}
  assert found.keys() == state_dict.keys() - counters
  for name, array in found.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.ravel(), state_dict[name].ravel())


def test_metadata_and_versions(written):
  model = onnx.load(written)
  metadata = {entry.key: entry.value for entry in model.metadata_props}
  assert metadata.pop('colour_order') == 'RGB'
  assert {name: json.loads(text) for name, text in metadata.items()} == {
    'input_size': [112, 112],
    'use_se': True,
  }
  assert model.producer_name == 'elasticface_jax'
  assert model.producer_version == elasticface_jax.__version__
  # onnxruntime of 2023 reads these.
  assert model.ir_version <= 8 and model.opset_import[0].version <= 17


def test_equal_bytes_and_nothing_printed(written, small, tmp_path, capfd):
  small.write(tmp_path / 'again.onnx')
  assert (tmp_path / 'again.onnx').read_bytes() == written.read_bytes()
  assert capfd.readouterr() == ('', '')


def test_float64_becomes_float32(written, small, tmp_path):
  wide = {
    name: array.astype(float) if array.dtype == np.float32 else array
    for name, array in small.state_dict.items()
  }
  small.write(tmp_path / 'wide.onnx', **wide)
  assert (tmp_path / 'wide.onnx').read_bytes() == written.read_bytes()


@pytest.mark.parametrize('name', [
  'conv1.weight',
  'layer1.0.prelu.weight',
  'layer3.0.bn3.running_var',
  'layer4.0.downsample.0.weight',
  'fc.weight',
  'features.running_mean',
])  # fmt: skip
@pytest.mark.parametrize('factor', [2, np.nan])
def test_a_wrong_value_leaves_no_file(small, tmp_path, name, factor):
  changed = small.state_dict[name].copy()
  changed[0] *= factor
  path = tmp_path / 'wrong.onnx'
  with pytest.raises(RuntimeError, match='wrong.onnx: embeddings of 1 random'):
    small.write(path, **{name: changed})
  assert not list(tmp_path.iterdir())
  path.write_text('before')
  with pytest.raises(RuntimeError, match='nothing is written'):
    small.write(path, **{name: changed})
  assert [p.read_text() for p in tmp_path.iterdir()] == ['before']


def test_fc_in_our_order_is_found(small, tmp_path):
  weight = small.state_dict['fc.weight']
  ours = weight.reshape(24, -1, 7, 7).transpose(0, 2, 3, 1).reshape(24, -1)
  with pytest.raises(RuntimeError, match='differ by'):
    small.write(tmp_path / 'wrong.onnx', **{'fc.weight': ours})


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_packages_are_named(small, tmp_path, monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(InputError, match=rf'{package}: pip install .*\[export\]'):
    small.write(tmp_path / 'none.onnx')


def test_mistakes(small, tmp_path):
  with pytest.raises(InputError, match='nowhere.*No such file'):
    small.write(tmp_path / 'nowhere' / 'small.onnx')
  huge = np.broadcast_to(np.float32(0), (2**15, 2**14))
  with pytest.raises(InputError, match='more than the 2 GiB.*stablehlo'):
    small.write(tmp_path / 'huge.onnx', **{'fc.weight': huge})
  assert not list(tmp_path.iterdir())
