# SPDX-License-Identifier: Apache-2.0
"""Weights from ONNX files: embeddings are those of onnxruntime."""

import functools

import jax
import numpy as np
import onnxruntime
import pytest

from elasticface_jax import models
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
