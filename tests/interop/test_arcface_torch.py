# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT of arcface_torch: names, files and exports."""

import functools

import jax
import jax.export
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import onnx_graph

from ..models import small_networks as small

ALL = 'mobilefacenet', 'vit_t', 'vit_s', 'vit_b'


@functools.cache
def published(name, width=64):
  """Returns zeros of one number by the names of a whole network."""
  backbone = models.build(name, width=width)
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  # Views: vit_b has 114 million parameters.
  trees = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), shapes
  )
  return shapes[0], trees


@pytest.mark.parametrize('name', ALL)
def test_arguments_follow_from_parameters(name):
  params, _ = published(name)
  assert interop.model_of(params) == {
    'name': name,
    'width': 64,
    'embedding_dim': 512,
    'use_se': False,
    'block': 'insightface',
    'output_norm': 'bias',
    'input_norm': False,
  }


def test_a_narrow_vit_of_12_blocks_is_named_vit_t():
  params, _ = published('vit_s', 8)
  found = interop.model_of(params)
  assert (found['name'], found['width']) == ('vit_t', 16)


@pytest.mark.parametrize('name', small.NAMES)
def test_there_and_back(name):
  tensors = small.state_dict(name)
  wrapped = {f'module.{key}': value for key, value in tensors.items()}
  with small.few_layers():
    variables = interop.from_torch({'state_dict_backbone': wrapped, 'epoch': 3})
    again = interop.to_torch(*variables)
  assert list(again) == list(tensors)
  for key, value in tensors.items():
    np.testing.assert_array_equal(again[key], value)
    assert again[key].flags.c_contiguous, key


@pytest.mark.parametrize('name', small.NAMES)
def test_a_head_beside_it_is_left_aside(name):
  tensors = small.state_dict(name) | {'head.weight': np.ones((20, small.DIM))}
  with small.few_layers():
    interop.from_torch(tensors)
    assert interop.left_aside(tensors) == ['head.weight']
    assert interop.head_from_torch(tensors).shape == (20, small.DIM)


LAST = {
  'mobilefacenet': 'features.layers.2.weight',
  'vit_t': 'feature.2.weight',
}


@pytest.mark.parametrize('name', small.NAMES)
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, last: x.pop(last), r'net\.{last} is missing'),
    (
      lambda x, last: x.update({last: x[last][:, 1:]}),
      r'net\.{last} has shape \[6, \d+\], not \[6, \d+\]',
    ),
    (lambda x, last: x.update({last: x[last][0]}), r'net\.{last} has shape'),
    (
      lambda x, last: x.update({'norm.extra': np.ones(2)}),
      r"unknown 'net\.norm\.extra'",
    ),
    (
      lambda x, last: x.update({last: x[last] * np.nan}),
      r'net\.{last} holds values that are not finite',
    ),
  ],
)
def test_what_does_not_fit_is_named(name, change, message):
  tensors = small.state_dict(name)
  change(tensors, LAST[name])
  given = {f'net.{key}': value for key, value in tensors.items()}
  message = message.replace('{last}', LAST[name].replace('.', r'\.'))
  with small.few_layers(), pytest.raises(InputError, match=message):
    interop.from_torch(given)


def test_the_mask_token_is_kept_and_needed():
  tensors = small.state_dict('vit_t')
  with small.few_layers():
    params, _ = interop.from_torch(tensors)
    np.testing.assert_array_equal(params['mask_token'], tensors['mask_token'])
    del tensors['mask_token']
    with pytest.raises(InputError, match="missing 'mask_token'"):
      interop.from_torch(tensors)


def test_counts_of_batches_need_not_be_there():
  tensors = small.state_dict('mobilefacenet')
  counts = [key for key in tensors if key.endswith('num_batches_tracked')]
  with small.few_layers():
    for key in counts:
      del tensors[key]
    interop.from_torch(tensors)
    assert interop.num_batches_tracked(tensors) == 0


def test_networks_of_no_known_size_are_refused():
  tensors = small.state_dict('vit_t')  # Of 2 blocks.
  with pytest.raises(InputError, match='blocks.1 are those of none of vit_t'):
    interop.from_torch(tensors)
  tensors = small.state_dict('mobilefacenet')
  first = 'conv_sep.layers.0.weight'
  tensors[first] = tensors[first][:7]
  with pytest.raises(InputError, match=f'{first} has 7 output channels'):
    interop.from_torch(tensors)


@pytest.mark.parametrize('name', small.NAMES)
def test_pixels_and_names_of_other_projects_are_refused(name):
  tensors = small.state_dict(name)
  with small.few_layers():
    for given in ({'colour_order': 'bgr'}, {'normalisation': 'x / 255'}):
      with pytest.raises(InputError, match='pixels are stated'):
        interop.from_torch(tensors, **given)
    variables = interop.from_torch(tensors)
    with pytest.raises(InputError, match="names 'adaface' are for IResNets"):
      interop.to_torch(*variables, names='adaface')
    assert interop.folded(*variables, names='insightface') == []
    found = interop.identify(tensors)
  assert (found.family, found.note) == ('insightface', '')
  assert found.first_kernel in tensors


@pytest.mark.parametrize('name', small.NAMES)
def test_onnx_files_compute_the_same(name, tmp_path):
  pytest.importorskip('onnxruntime')
  tensors = {k: v.astype(np.float32) for k, v in small.state_dict(name).items()}
  with small.few_layers():
    apply = small.build(name).apply
    variables = interop.from_torch(tensors)
    run = jax.jit(lambda x: apply(*variables, x, train=False)[0])
    # Compares with onnxruntime, and keeps no file that differs.
    onnx_graph.write(tmp_path / 'net.onnx', tensors, {'model': name}, embed=run)
  assert (tmp_path / 'net.onnx').stat().st_size > 10_000


@pytest.mark.parametrize('name', small.NAMES)
def test_programs_of_any_batch(name):
  with small.few_layers():
    apply = small.build(name).apply
    variables = small.as_float32(name)
    run = jax.jit(lambda x: apply(*variables, x, train=False)[0])
    (batch,) = jax.export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, 112, 112, 3), 'float32')
    exported = jax.export.export(run, platforms=['cpu', 'cuda', 'tpu'])(images)
  assert exported.out_avals[0].shape == (batch, small.DIM)
