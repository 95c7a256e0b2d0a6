# SPDX-License-Identifier: Apache-2.0
"""Weights from ONNX files: embeddings are those of onnxruntime."""

import functools

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import model_of, onnx_weights

from .onnx_styles import save

IMAGES = np.random.default_rng(2).uniform(-1, 1, (3, 112, 112, 3))
IMAGES = (IMAGES * 0.5 + [[[[0.4]]], [[[0]]], [[[-0.4]]]]).astype(np.float32)
TINY = {'name': 'iresnet10', 'width': 2, 'embedding_dim': 6}
FORMS = {
  'insightface': {},
  'adaface': {'block': 'adaface', 'output_norm': 'plain'},
  'curricularface': {'block': 'curricularface', 'output_norm': 'plain'},
  'bottleneck': {'block': 'adaface_bottleneck', 'output_norm': 'plain'},
  'magface': {'output_norm': 'affine'},
  'se': {'width': 16, 'use_se': True},
}


def run(path, images, *, channels_last=False, output=0, **_):
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4
  options.graph_optimization_level = (
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
  )
  session = onnxruntime.InferenceSession(
    path, options, providers=['CPUExecutionProvider']
  )
  images = images if channels_last else images.transpose(0, 3, 1, 2)
  feed = {session.get_inputs()[0].name: np.ascontiguousarray(images)}
  rows = session.get_inputs()[0].shape[0]
  if isinstance(rows, int):
    return np.concatenate(
      [
        session.run(None, {k: v[i : i + rows] for k, v in feed.items()})[output]
        for i in range(0, len(images), rows)
      ]
    )
  return session.run(None, feed)[output]


@functools.cache
def compiled(model):
  backbone = models.build(**dict(model))
  return jax.jit(functools.partial(backbone.apply, train=False))


def embed(params, stats, images=IMAGES):
  model = model_of(params, stats)
  return np.asarray(compiled(tuple(model.items()))(params, stats, images)[0])


def close(found, expected):
  limit = 1e-4 * max(1, np.abs(expected).max())
  assert expected.std(0).min() > 1e-3
  np.testing.assert_allclose(found, expected, 0, limit)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('style', [
  {},
  {'folded': True},
  {'norm': 'mul_add', 'folded': True, 'fc': 'matmul'},
], ids=str)  # fmt: skip
def test_forms(draw_network, tmp_path, form, style):
  _, params, stats = draw_network(**TINY | FORMS[form])
  path = tmp_path / 'network.onnx'
  save(path, params, stats, **style)
  found = onnx_weights.read(path)
  model = model_of(params, stats)
  if style.get('norm') == 'mul_add':
    model['output_norm'] = 'bias'
  assert model_of(found.params, found.batch_stats) == model
  close(embed(*found[:2]), run(path, IMAGES))


@pytest.mark.parametrize('style', [
  {'slopes': '1C11', 'flat': 'reshape', 'fc': 'gemm0'},
  {'flat': 'shape', 'fc': 'matmul', 'noise': True},
  {'flat': 'last', 'norm': 'sub_div'},
  {'channels_last': True, 'norm': 'mul_add', 'flat': 'last', 'slopes': 'where'},
  {'fc': 'conv', 'slopes': 'leaky'},
  {'slopes': 'one', 'epsilon': 1e-3},
  {'epsilon': 2e-5, 'batch': 1, 'folded': True, 'opset': 11},
  {'half': True, 'shared': True},
  {'biased': True},
  {'listed': True, 'opset': 8},
  {'noise': True, 'folded': True, 'opset': 18},
  {'slopes': 'where', 'norm': 'sub_div'},
], ids=str)  # fmt: skip
def test_styles(draw_network, tmp_path, style):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats, **style)
  close(embed(*onnx_weights.from_onnx(path)), run(path, IMAGES, **style))


@pytest.mark.parametrize('style', [
  {'shortcut': 'pool', 'opset': 10},
  {'shortcut': 'slice', 'folded': True},
  {'shortcut': 'slices', 'noise': True},
  {'shortcut': 'conv'},
], ids=str)  # fmt: skip
@pytest.mark.parametrize('form', ['adaface', 'curricularface'])
def test_shortcuts(draw_network, tmp_path, form, style):
  _, params, stats = draw_network(**TINY | FORMS[form])
  path = tmp_path / 'network.onnx'
  save(path, params, stats, **style)
  found = onnx_weights.from_onnx(path)
  assert model_of(*found)['block'] == form
  close(embed(*found), run(path, IMAGES))


@pytest.mark.parametrize('style', [
  {'gates': 'gemm', 'norm': 'mul_add'},
  {'gates': 'gemm', 'folded': True, 'opset': 18},
  {'slopes': 'leaky', 'opset': 11},
], ids=str)  # fmt: skip
def test_gates(draw_network, tmp_path, style):
  _, params, stats = draw_network(**TINY | FORMS['se'])
  path = tmp_path / 'network.onnx'
  save(path, params, stats, **style)
  close(embed(*onnx_weights.from_onnx(path)), run(path, IMAGES))


def test_feature_maps_beside_embeddings(draw_network, tmp_path):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats, end='map')
  close(embed(*onnx_weights.from_onnx(path)), run(path, IMAGES))


@pytest.mark.parametrize('end', ['lp', 'l2', 'squares', 'pair'])
def test_embeddings_before_they_are_normalised(draw_network, tmp_path, end):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats, end=end)
  found = onnx_weights.read(path)
  note, _ = found.notes
  assert note.endswith('normalises the embedding; it is taken before')
  embedded = embed(*found[:2])
  norms = np.linalg.norm(embedded, axis=1, keepdims=True)
  close(embedded / norms, run(path, IMAGES))
  if end == 'pair':
    np.testing.assert_allclose(norms, run(path, IMAGES, output=1), 1e-4)


# What the file takes, from RGB in [-1, 1].
PIXELS = {
  'x': lambda images: 127.5 * images + 127.5,
  'x / 255': lambda images: images / 2 + 0.5,
}


@pytest.mark.parametrize(('style', 'options', 'feed'), [
  ({'pixels': 'sub_mul'}, {}, 'x'),
  ({'pixels': 'sub_mul', 'flip': True}, {}, 'x'),
  ({'pixels': 'div', 'folded': True}, {}, 'x'),
  ({'pixels': 'sub_div'}, {'normalisation': 'x / 255'}, 'x / 255'),
  ({'pixels': 'sub_div', 'channels_last': True, 'norm': 'mul_add'},
   {'normalisation': 'x/255', 'colour_order': 'bgr'}, 'x / 255'),
  ({}, {'normalisation': 'x / 255', 'colour_order': 'BGR'}, 'x / 255'),
  ({'flip': True, 'pixels': 'sub_div'},
   {'colour_order': 'bgr', 'normalisation': 'x / 255'}, 'x / 255'),
], ids=str)  # fmt: skip
def test_pixels(draw_network, tmp_path, style, options, feed):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats, **style)
  found = onnx_weights.from_onnx(path, **options)
  images = IMAGES[..., ::-1] if 'colour_order' in options else IMAGES
  expected = run(path, PIXELS[feed](images).astype(np.float32), **style)
  close(embed(*found), expected)
  assert model_of(*found)['input_norm']


def test_colours_of_the_wrong_order_show(draw_network, tmp_path):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats)
  expected = run(path, IMAGES)
  bgr = onnx_weights.from_onnx(path, colour_order='bgr')
  assert np.abs(embed(*bgr) - expected).max() > 0.01
  close(embed(*bgr, images=IMAGES[..., ::-1]), expected)


@pytest.fixture(scope='module')
def tiny(draw_network, tmp_path_factory):
  """A file, and the model in it, to be changed."""
  _, params, stats = draw_network(**TINY)
  path = tmp_path_factory.mktemp('tiny') / 'tiny.onnx'
  save(path, params, stats, folded=True)
  return path


def node(model, kind, number=0):
  return [x for x in model.graph.node if x.op_type == kind][number]


def attribute(model, kind, number=0, **values):
  """Sets attributes of a node."""
  found = node(model, kind, number)
  kept = [a for a in found.attribute if a.name not in values]
  del found.attribute[:]
  found.attribute.extend(kept)
  found.attribute.extend(
    helper.make_attribute(name, value) for name, value in values.items()
  )


def replaced(model, kind, number=0, *, by, **attributes):
  found = node(model, kind, number)
  found.op_type = by
  del found.attribute[:]
  found.attribute.extend(
    helper.make_attribute(name, value) for name, value in attributes.items()
  )


def ends_at(model, name):
  model.graph.output[0].name = name


def second_output(model):
  model.graph.output.append(model.graph.output[0])
  model.graph.output[1].name = node(model, 'PRelu', 2).output[0]


def input_size(model, *sizes):
  dims = model.graph.input[0].type.tensor_type.shape.dim
  for dim, size in zip(dims[1:], sizes, strict=True):
    dim.dim_value = size


def tensor(model, dims=None, **fields):
  found = model.graph.initializer[0]
  if dims:
    found.dims[:] = dims
  for name, value in fields.items():
    setattr(found, name, value)


def cycle(model):
  node(model, 'Conv').input[0] = node(model, 'Gemm').output[0]


def branch(model):
  """Makes the first PReLU an ``If``."""
  replaced(
    model, 'PRelu', by='If', then_branch=helper.make_graph([], 'a', [], []),
    else_branch=helper.make_graph([], 'b', [], []),
  )  # fmt: skip


def huge(model):
  """A constant of a terabyte from a file of some kB, as a convolution's."""
  shape = numpy_helper.from_array(np.array([2**20, 2**18]), 'shape')
  one = numpy_helper.from_array(np.ones((1, 1), np.float32), 'one')
  model.graph.initializer.extend([shape, one])
  made = helper.make_node('Expand', ['one', 'shape'], ['huge'], 'grows')
  model.graph.node.insert(0, made)
  node(model, 'Gemm').input[1] = 'huge'


def many_casts(model):
  """Copies of the largest array, without end."""
  name = node(model, 'Gemm').input[1]
  for i in range(4000):
    made = helper.make_node('Cast', [name], [f'c{i}'], to=1)
    model.graph.node.insert(i, made)
    name = f'c{i}'
  node(model, 'Gemm').input[1] = name


def deep(model):
  """Ten thousand nodes that do nothing."""
  name = 'input.1'
  for i in range(10_000):
    made = helper.make_node('Identity', [name], [f'i{i}'], f'i{i}')
    model.graph.node.insert(i, made)
    name = f'i{i}'
  found = node(model, 'Conv')
  found.input[0], found.op_type = name, 'ConvTranspose'


@pytest.mark.parametrize(('change', 'words'), [
  # Other networks, as they begin.
  (lambda m: attribute(m, 'Conv', strides=[2, 2]),
   r'\(Conv\), 3x3, stride 2, padding 1, to 2 channels, stands where one has a '
   r'3x3 convolution, stride 1, padding 1, to 2 channels \(conv1\)'),
  (lambda m: attribute(m, 'Conv', pads=[0] * 4), r'padding 0, .*\(conv1\)'),
  (lambda m: attribute(m, 'Conv', group=2), r"'Conv_\d+' \(Conv\) .*\(conv1\)"),
  (lambda m: attribute(m, 'Conv', dilations=[2, 2]), r'\(conv1\)'),
  (lambda m: attribute(m, 'Conv', 1, strides=[2, 2]),
   r'stride 2.*a 3x3 convolution, stride 1.*\(layer1.0.conv1\)'),
  (lambda m: attribute(m, 'Conv', 2, strides=[1, 1]),
   r'stride 1, .*a 3x3 convolution, stride 2.*\(layer1.0.conv2\)'),
  (lambda m: replaced(m, 'PRelu', by='Clip', min=0.0, max=6.0),
   r"'PRelu_\d+' \(Clip\) stands where one has PReLU \(prelu\)"),
  (lambda m: replaced(m, 'PRelu', 1, by='Softplus'), r'\(layer1.0.prelu\)'),
  (lambda m: replaced(m, 'Add', by='Mul'), r"'Add_\d+' \(Mul\)"),
  (lambda m: replaced(m, 'BatchNormalization', by='InstanceNormalization'),
   r'\(InstanceNormalization\) stands where one has a convolution, and the '
   r'shortcut round it \(layer1.0.conv1\)'),
  (lambda m: attribute(m, 'BatchNormalization', training_mode=1),
   r'\(BatchNormalization\) .*\(layer1.0.conv1\)'),
  (lambda m: replaced(m, 'Flatten', by='GlobalAveragePool'),
   r'\(GlobalAveragePool\) stands where .*\(fc\)'),
  (lambda m: replaced(m, 'Gemm', by='Softmax'), r'\(fc\)'),
  (branch, r'\(If\) stands where one has PReLU'),
  (deep, r'\(ConvTranspose\) .*\(conv1\)'),
  # Quantised.
  (lambda m: replaced(m, 'PRelu', 2, by='QuantizeLinear'),
   r'\(QuantizeLinear\).*\(layer1.0.downsample|quantised'),
  (lambda m: replaced(m, 'Conv', by='QLinearConv'), 'it is quantised: give'),
  # Cut.
  (lambda m: ends_at(m, node(m, 'PRelu').output[0]), 'it ends with node'),
  (lambda m: ends_at(m, node(m, 'Add').output[0]), 'it ends with node'),
  (lambda m: ends_at(m, 'gone'), "no node makes the output 'gone'"),
  (lambda m: m.graph.node.pop(3), 'which no node before it makes'),
  (cycle, 'the graph is cut, or has a cycle'),
  # Inputs and outputs.
  (second_output, "it gives 'v.*', 'v.*', where one gives embeddings alone"),
  (lambda m: input_size(m, 3, 224, 224), r"'batch', 3, 224, 224\], where one"),
  (lambda m: input_size(m, 1, 112, 112), r'1, 112, 112\], where one takes'),
  (lambda m: m.graph.input.append(m.graph.input[0]), 'where one takes images'),
  (lambda m: m.graph.input.pop(), 'which no node before it makes'),
  # Arrays.
  (lambda m: tensor(m, dims=[2**31, 2**31]), "array 'w1' cannot be read"),
  (lambda m: tensor(m, raw_data=b''), "array 'w1' cannot be read"),
  (lambda m: tensor(m, data_type=TensorProto.STRING), "array 'w1' cannot"),
  (lambda m: tensor(m, data_type=99), "array 'w1' cannot be read"),
  (lambda m: tensor(m, raw_data=np.full(2, np.nan, 'f').tobytes()),
   "'w1' holds values that are not finite"),
  (huge, 'out of proportion to the file'),
  (many_casts, 'out of proportion to the file'),
])  # fmt: skip
def test_what_is_no_iresnet_is_named(tiny, tmp_path, change, words):
  model = onnx.load(tiny)
  change(model)
  path = tmp_path / 'other.onnx'
  path.write_bytes(model.SerializeToString())
  with pytest.raises(InputError, match=words) as error:
    onnx_weights.read(path)
  text = str(error.value)
  assert text.startswith(str(path)) and '\n' not in text and len(text) < 400


@pytest.mark.parametrize(('change', 'words'), [
  (lambda m: replaced(m, 'Sigmoid', by='HardSigmoid', alpha=0.2),
   r'\(HardSigmoid\) stands where one has a sigmoid \(layer1.0.se_block'),
  (lambda m: replaced(m, 'Relu', by='Tanh'), r'\(Tanh\) .*se_block.relu'),
  (lambda m: node(m, 'Conv', 3).input.append('bias'),
   r'\(Conv\) stands where one has a 1x1 convolution without a bias'),
  (lambda m: replaced(m, 'GlobalAveragePool', by='GlobalMaxPool'),
   r'\(GlobalMaxPool\)'),
])  # fmt: skip
def test_other_gates_are_named(draw_network, tmp_path, change, words):
  _, params, stats = draw_network(**TINY | FORMS['se'])
  path = tmp_path / 'other.onnx'
  model = save(path, params, stats, folded=True)
  bias = numpy_helper.from_array(np.ones(1, np.float32), 'bias')
  model.graph.initializer.append(bias)
  change(model)
  onnx.save(model, path)
  with pytest.raises(InputError, match=words):
    onnx_weights.read(path)


@pytest.mark.parametrize('content', [b'', b'PK\3\4', b'\0' * 99, b'text', None])
def test_no_onnx_file(tiny, tmp_path, content):
  path = tmp_path / 'other.onnx'
  path.write_bytes(tiny.read_bytes()[:5000] if content is None else content)
  with pytest.raises(InputError, match='other.onnx') as error:
    onnx_weights.read(path)
  assert '\n' not in str(error.value)


def test_arrays_in_a_file_beside_it(tiny, tmp_path):
  expected = run(tiny, IMAGES)
  path = tmp_path / 'network.onnx'
  onnx.save(
    onnx.load(tiny), path, save_as_external_data=True, location='arrays.bin',
    size_threshold=0,
  )  # fmt: skip
  close(embed(*onnx_weights.from_onnx(path)), expected)
  beside = tmp_path / 'arrays.bin'
  beside.write_bytes(beside.read_bytes()[:-100])
  with pytest.raises(InputError, match=r"the array 'w\d+' cannot be read"):
    onnx_weights.read(path)
  beside.unlink()
  with pytest.raises(InputError, match='with those beside it'):
    onnx_weights.read(path)


def test_folded_statistics_are_named(draw_network, tmp_path):
  _, params, stats = draw_network(**TINY)
  path = tmp_path / 'network.onnx'
  save(path, params, stats, folded=True)
  found = onnx_weights.read(path)
  assert len(found.folded) == 1 + 4 * 3
  assert 'layer1.0.bn1' not in found.folded
  np.testing.assert_array_equal(found.batch_stats['bn1']['mean'], 0)
  np.testing.assert_allclose(found.batch_stats['bn1']['var'], 1 - 1e-5)
  np.testing.assert_array_equal(found.params['bn1']['scale'], 1)
  for name in ('mean', 'var'):
    kept = found.batch_stats['layer1']['0']['bn1'][name]
    np.testing.assert_array_equal(kept, stats['layer1']['0']['bn1'][name])
  save(path, params, stats)
  assert onnx_weights.read(path).folded == ()


def test_small_and_negative_variances(draw_network, tmp_path):
  _, params, stats = draw_network(**TINY)
  changed = jax.tree.map(np.copy, stats)
  changed['layer1']['0']['bn1']['var'][:] = [-9e-6, 5e-7]
  path = tmp_path / 'network.onnx'
  save(path, params, changed)
  found = onnx_weights.from_onnx(path)
  assert min(leaf.min() for leaf in jax.tree.leaves(
    jax.tree.map_with_path(
      lambda path, x: x if path[-1].key == 'var' else x[:0] + 1, found[1]
    )) if leaf.size) >= 0  # fmt: skip
  close(embed(*found), run(path, IMAGES))
