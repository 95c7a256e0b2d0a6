# SPDX-License-Identifier: Apache-2.0
"""Converted networks beside the run of their own files: `convert --check`."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from elasticface_jax import cli, interop, models, originals, weights
from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files, torch_network
from elasticface_jax.interop.comparison import agreement


def draw(**model):
  """Returns a network whose embeddings are as large as a trained one's."""
  backbone = models.build('iresnet10', width=16, embedding_dim=8, **model)
  rng = np.random.default_rng(0)

  def values(path, leaf):
    if path[-1].key == 'kernel':
      scale = (leaf.size // leaf.shape[-1]) ** -0.5
      return rng.normal(0, scale, leaf.shape).astype(leaf.dtype)
    return rng.uniform(0.3, 0.9, leaf.shape).astype(leaf.dtype)

  key = jax.random.key(0)
  return jax.tree.map_with_path(values, jax.eval_shape(backbone.init, key))


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  """A folder of images that differ in colours and sides."""
  folder = tmp_path_factory.mktemp('faces')
  rng = np.random.default_rng(1)
  for i in range(3):
    image = rng.integers(0, 256, (112, 112, 3)) * rng.uniform(0.2, 1, 3)
    Image.fromarray(image.astype(np.uint8)).save(folder / f'{i}.png')
  return folder


def convert(*arguments):
  return cli.main(['convert', *map(str, arguments)])


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'net.pth'
  torch_files.write(path, interop.to_torch(*draw()), {})
  return path


def test_nearness_of_embeddings():
  given = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
  turned = given + [[0, 0], [2, 0], [0, 0]]
  batches = [np.array([0]), np.array([1, 2])]
  found = agreement(lambda i: turned[i], lambda i: given[i], batches)
  assert found[:3] == (3, 2.0, 4.0)
  assert found.cosine == pytest.approx(0.5**0.5)
  assert not found.is_close
  near = agreement(lambda i: given[i] + 3.9e-4, lambda i: given[i], batches)
  assert near.is_close
  # Small embeddings are compared as large ones.
  small = [lambda i: 1e-3 * turned[i], lambda i: 1e-3 * given[i]]
  assert not agreement(*small, batches).is_close
  wrong = agreement(lambda i: given[i] * np.nan, lambda i: given[i], batches)
  assert not wrong.is_close


class Reference:
  """Stands for torch: the same network, computed by jax."""

  def __init__(self, factor, seen):
    self.factor, self.seen = factor, seen

  def __call__(self, tensors, *, epsilon):
    self.epsilon = epsilon
    model = interop.model_of(*interop.from_torch(tensors))
    backbone = models.build(**model)
    variables = interop.from_torch(tensors)

    def embed(pixels):
      self.seen.append(pixels)
      return self.factor * backbone.apply(*variables, pixels, train=False)[0]

    return embed


@pytest.mark.parametrize('factor, code', [(1, 0), (1.001, 1), (np.nan, 1)])
def test_verdicts(path, faces, tmp_path, capfd, monkeypatch, factor, code):
  seen = []
  monkeypatch.setattr(originals, 'TorchNetwork', Reference(factor, seen))
  run = tmp_path / 'run'
  try:
    found = convert(path, '--workdir', run, '--check', faces)
  except SystemExit as error:
    found = error.code
  output = capfd.readouterr().out
  assert found == code, output
  assert f'3 images of {faces}: embeddings differ from the file' in output
  assert (run / 'config.json').exists() == (code == 0)
  assert ('nothing is written' in output) == (code == 1)
  # An image, and its mirror image, on the pixels that it was trained on.
  first, mirror = seen
  np.testing.assert_array_equal(first[:, :, ::-1], mirror)
  image = np.asarray(Image.open(faces / '0.png'))
  np.testing.assert_allclose(first[0], (image - 127.5) / 127.5, 0, 1e-6)


def test_pixels_are_those_of_the_project(faces, tmp_path, monkeypatch):
  variables = draw(output_norm='affine')
  path = tmp_path / 'magface.pth'
  variables[1]['input'] = {
    'mean': np.full(3, -1, np.float32), 'std': np.full(3, 2, np.float32)
  }  # fmt: skip
  torch_files.write(path, interop.to_torch(*variables, names='magface'), {})
  opened = weights.open_weights(path)
  seen = []
  reference = Reference(1, seen)
  monkeypatch.setattr(originals, 'TorchNetwork', reference)
  image = np.asarray(Image.open(faces / '0.png'))
  originals.compare(opened, [image[None]])
  np.testing.assert_allclose(seen[0][0], image[..., ::-1] / 255, 0, 1e-6)
  assert reference.epsilon == 2e-5


def test_an_onnx_file_is_run_by_onnxruntime(path, faces, tmp_path, monkeypatch):
  opened = weights.open_weights(path)
  onnx = tmp_path / 'net.onnx'
  weights.export(opened, onnx, file_format='onnx')
  image = np.asarray(Image.open(faces / '0.png'))[None]
  of_file = dataclasses.replace(opened, path=onnx)
  assert originals.compare(of_file, [image]).is_close
  # Colours of the file in the other order.
  pixels = opened.identity.pixels._replace(colour_order='BGR')
  turned = opened.identity._replace(pixels=pixels)
  of_file = dataclasses.replace(of_file, identity=turned)
  assert not originals.compare(of_file, [image]).is_close
  # Their scale, if it is stated; None is what the graph itself does.
  pixels = opened.identity.pixels._replace(std=(64.0,) * 3)
  for stated, is_close in (((), True), (('normalisation',), False)):
    other = opened.identity._replace(pixels=pixels, stated=stated)
    of_file = dataclasses.replace(of_file, identity=other)
    assert originals.compare(of_file, [image]).is_close == is_close
  scaling = lambda *args, **options: types.SimpleNamespace(scales_pixels=True)
  monkeypatch.setattr(originals, 'OnnxNetwork', scaling)
  with pytest.raises(InputError, match='leave --normalise out'):
    originals.compare(of_file, [image])


def test_without_torch(path, faces, tmp_path, capfd, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  run = tmp_path / 'run'
  assert convert(path, '--workdir', run, '--check', faces) == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert "network needs torch: pip install 'elasticface_jax[bench]'" in line
  assert not run.exists()


def test_images_that_cannot_be_read(path, tmp_path, capfd):
  (tmp_path / 'none').mkdir()
  run = tmp_path / 'run'
  for source in ('none', 'gone'):
    code = convert(path, '--workdir', run, '--check', tmp_path / source)
    assert code == 2 and source in capfd.readouterr().err
    assert not run.exists()


# By project: its form, as arguments of `models.build`.
FORMS = {
  'insightface': {},
  'magface': {'output_norm': 'affine'},
  'adaface': {'block': 'adaface', 'output_norm': 'plain'},
  'tface': {'block': 'adaface_bottleneck', 'output_norm': 'plain'},
  'curricularface': {'block': 'curricularface', 'output_norm': 'plain'},
  'evolve': {'block': 'curricularface', 'output_norm': 'affine'},
}


@pytest.mark.parametrize(
  'names, use_se',
  [
    *((names, False) for names in FORMS),
    *((names, True) for names in ('insightface', 'adaface', 'curricularface')),
  ],
)
def test_torch_agrees(names, use_se, tmp_path):
  pytest.importorskip('torch')
  params, batch_stats = draw(use_se=use_se, **FORMS[names])
  if names == 'magface':
    batch_stats['input'] = {
      'mean': np.full(3, -1, np.float32), 'std': np.full(3, 2, np.float32)
    }  # fmt: skip
  path = tmp_path / 'net.pth'
  state_dict = interop.to_torch(params, batch_stats, names=names)
  torch_files.write(path, state_dict, {})
  opened = weights.open_weights(path)
  images = np.random.default_rng(2).integers(0, 256, (2, 112, 112, 3))
  images = (images * [0.3, 0.6, 1]).astype(np.uint8)
  found = originals.compare(opened, [images])
  assert found.is_close and found.cosine > 1 - 1e-6, found
  # Colours on the wrong side are noticed.
  other = 'rgb' if opened.identity.pixels.colour_order == 'BGR' else 'bgr'
  turned = weights.open_weights(path, colour_order=other)
  wrong = agreement(
    originals._ours(turned), originals._original(opened), [images]
  )
  assert not wrong.is_close


def test_torch_names_that_are_not_known():
  pytest.importorskip('torch')
  with pytest.raises(InputError, match='layer1.0 or body.0'):
    torch_network.TorchNetwork({'a.weight': np.ones(2)}, epsilon=1e-5)
