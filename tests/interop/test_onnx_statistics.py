# SPDX-License-Identifier: Apache-2.0
"""Statistics of folded BatchNorms, measured: `convert --statistics`."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from elasticface_jax import cli, interop, models, weights
from elasticface_jax.interop import onnx_statistics, onnx_weights, torch_files

from .onnx_styles import save

TINY = {'name': 'iresnet10', 'width': 2, 'embedding_dim': 6}
COUNT = 32
BATCHES = np.split(np.arange(COUNT), [16, 21])
EPSILON = 1e-5


@pytest.fixture(scope='module')
def faces():
  """uint8 images that differ in colours and in contrast."""
  rng = np.random.default_rng(3)
  noise = rng.normal(size=(COUNT, 112, 112, 3))
  noise *= rng.uniform(10, 60, (COUNT, 1, 1, 1))
  values = rng.uniform(60, 200, (COUNT, 1, 1, 3)) + noise
  return np.clip(values, 0, 255).astype(np.uint8)


def scaled(faces):
  return (faces.astype(np.float32) - 127.5) / 127.5


@functools.cache
def compiled(model, train):
  backbone = models.build(**dict(model))
  return jax.jit(functools.partial(backbone.apply, train=train))


def run(params, stats, faces, *, train=False):
  model = tuple(interop.model_of(params, stats).items())
  found = compiled(model, train)(params, stats, scaled(faces))
  return jax.tree.map(np.asarray, found)


@pytest.fixture(scope='module')
def original(draw_network, faces):
  """A network whose running statistics are those of these images."""
  _, params, stats = draw_network(**TINY)
  params = jax.tree.map(np.copy, params)
  # A channel without variance.
  params['layer2']['0']['conv1']['kernel'][..., 0] = 0
  # In training each BatchNorm sees what it would see in evaluation with the
  # statistics of this batch. Of those before, which are 0, nothing is left.
  _, after = run(params, jax.tree.map(np.zeros_like, stats), faces, train=True)

  # Biased variances, with which both are one function.
  def whole(path, leaf):
    name = '.'.join(part.key for part in path[:-1])
    biased = 1 - 1 / number(name) if path[-1].key == 'var' else 1
    return 10 * biased * leaf

  return params, jax.tree.map_with_path(whole, after)


def number(name):
  """Number of values of a channel that enter a BatchNorm."""
  stage, _, last = name.rpartition('.0.')
  sides = {'bn1': 112, 'bn2': 7, 'features': 1}
  if stage:
    side = 112 >> int(stage.removeprefix('layer'))
    sides = {'bn1': 2 * side, 'bn2': 2 * side, 'bn3': side}
    sides['downsample.1'] = side
  return COUNT * sides[last] ** 2


def at(tree, name):
  for part in name.split('.'):
    tree = tree[part]
  return tree


def seen(params, stats, name):
  """Mean and biased variance of what enters the BatchNorm of a folded file.

  A convolution before it has its scale.
  """
  norm = {key: np.float64(x) for key, x in at(stats, name).items()}
  if name == 'bn2' or name.endswith('.0.bn1'):
    return norm['mean'], norm['var']
  factor = at(params, name).get('scale', 1) / np.sqrt(norm['var'] + EPSILON)
  if name == 'features':
    # Its variance stays: no scale could make up for another.
    var = (1 - EPSILON) * (1 - 1 / number(name))
    return factor * (norm['mean'] - params['fc']['bias']), var
  return factor * norm['mean'], factor**2 * norm['var']


@pytest.mark.parametrize(('style', 'count'), [
  ({'folded': True}, 13),
  ({'folded': True, 'norm': 'mul_add'}, 19),
], ids=str)  # fmt: skip
def test_statistics_are_those_of_the_original(
  original, faces, tmp_path, style, count
):
  path = tmp_path / 'folded.onnx'
  save(path, *original, **style)
  found = onnx_weights.read(path)
  assert len(found.folded) == count
  batches = [faces[places] for places in BATCHES]
  made = onnx_statistics.with_statistics(*found[:2], found.folded, batches)
  for name in found.folded:
    mean, var = seen(*original, name)
    stats = at(made[1], name)
    var = var / (1 - 1 / number(name))
    np.testing.assert_allclose(stats['mean'], mean, 1e-4, 1e-5, err_msg=name)
    np.testing.assert_allclose(stats['var'], var, 1e-4, 1e-7, err_msg=name)
  # The others stay, and what was given.
  for before, after in zip(found[:2], made, strict=True):
    for path, leaf in jax.tree.leaves_with_path(before):
      keys = [part.key for part in path]
      if '.'.join(keys[:-1]) not in found.folded:
        assert at(after, '.'.join(keys)) is leaf
  np.testing.assert_array_equal(found.batch_stats['bn1']['mean'], 0)
  # Evaluation is the same function, and training nearly it.
  expected, _ = run(*found[:2], faces)
  evaluated, _ = run(*made, faces)
  np.testing.assert_allclose(
    evaluated, expected, 0, 2e-6 * np.abs(expected).max()
  )
  gaps = [
    np.abs(run(*either, faces, train=True)[0] - expected).max() / expected.std()
    for either in (made, found[:2])
  ]
  assert gaps[0] < 1e-3
  assert gaps[1] > 1


def test_network_that_scales_pixels(original, faces, tmp_path):
  path = tmp_path / 'folded.onnx'
  save(path, *original, folded=True, pixels='sub_mul')
  found = onnx_weights.read(path, colour_order='bgr')
  params, stats = onnx_statistics.with_statistics(
    *found[:2], found.folded, [faces]
  )
  zeros = jax.tree.map(np.zeros_like, stats) | {'input': stats['input']}
  _, after = run(params, zeros, faces, train=True)
  for key, values in stats['bn1'].items():
    np.testing.assert_allclose(values, 10 * after['bn1'][key], 1e-4, 1e-6)


@pytest.fixture(scope='module')
def folder(faces, tmp_path_factory):
  folder = tmp_path_factory.mktemp('faces')
  for number, image in enumerate(faces):
    Image.fromarray(image).save(folder / f'{number:02}.png')
  return folder


def convert(*arguments):
  return cli.main(['convert', *map(str, arguments)])


def test_command(original, folder, tmp_path, capfd):
  path, run = tmp_path / 'folded.onnx', tmp_path / 'run'
  save(path, *original, folded=True)
  opened = weights.open_weights(path)
  note = opened.note.splitlines()[-1]
  assert note.startswith(f'{path}: bn1 and 12 more BatchNorms come without')
  assert note.endswith('by elasticface convert --statistics IMAGES')
  assert convert(path, '--workdir', run, '--statistics', folder) == 0
  output = capfd.readouterr().out
  assert '13 BatchNorms without statistics have those of 32 images' in output
  assert 'measure them' not in output
  without = opened.trained_on
  names = without.pop('batch_norms_without_statistics')
  converted = weights.open_weights(run)
  assert converted.trained_on == without | {
    'batch_norms_measured': {
      'names': names, 'images': 32, 'source': folder.name
    }
  }  # fmt: skip
  assert converted.describe()['trained_on'] == converted.trained_on
  assert (converted.batch_stats['bn1']['mean'] != 0).all()


def test_refusals(original, folder, tmp_path, capfd):
  run = tmp_path / 'run'
  few = tmp_path / 'few'
  few.mkdir()
  for image in sorted(folder.iterdir())[1:]:
    (few / image.name).write_bytes(image.read_bytes())
  whole, folded = tmp_path / 'whole.onnx', tmp_path / 'folded.onnx'
  save(whole, *original)
  save(folded, *original, folded=True)
  pth = tmp_path / 'whole.pth'
  torch_files.write(pth, interop.to_torch(*original), {})
  for file, source, words in (
    (whole, folder, 'has the statistics of all its BatchNorms; leave --stat'),
    (pth, tmp_path / 'gone', 'has the statistics of all its BatchNorms; leave'),
    (folded, few, 'has 31 images; give 32 at least'),
    (folded, tmp_path / 'gone', 'gone'),
  ):
    assert convert(file, '--workdir', run, '--statistics', source) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert words in line and str(source) in line
    assert not run.exists()
