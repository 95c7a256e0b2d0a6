# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch made into run folders, and run folders exported."""

import functools
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from jax import export
from PIL import Image

from elasticface_jax import cli, data, interop, models, weights
from elasticface_jax.interop import torch_files
from elasticface_jax.training import checkpoint

COUNT = 295_672


@pytest.fixture(scope='module')
def backbone():
  return models.build('iresnet10', width=16, embedding_dim=8, use_se=True)


@pytest.fixture(scope='module')
def variables(backbone):
  """Parameters and statistics that give embeddings of a trained size."""
  key, images_key = jax.random.split(jax.random.key(0))
  params, batch_stats = backbone.init(key)
  images = jax.random.uniform(images_key, (4, 112, 112, 3), minval=-1.0)
  train = jax.jit(functools.partial(backbone.apply, train=True))
  _, moved = train(params, batch_stats, images)
  # A tenth of the way to the statistics of these images.
  batch_stats = jax.tree.map(
    lambda old, new: old + 10 * (new - old), batch_stats, moved
  )
  return jax.tree.map(np.asarray, (params, batch_stats))


@pytest.fixture(scope='module')
def embed(backbone, variables):
  apply = jax.jit(functools.partial(backbone.apply, train=False))
  return lambda images: apply(*variables, images)[0]


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  """Synthetic images of three people: a folder, the images, the labels."""
  images, labels = data.SyntheticFaces(24, 3, seed=0).render(np.arange(24))
  order = np.argsort(labels, kind='stable')
  root = tmp_path_factory.mktemp('people')
  for i in order:
    path = root / f'person_{labels[i]}' / f'{i:02}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(images[i]).save(path)
  return root, images[order], labels[order]


@pytest.fixture(scope='module')
def pairs(faces, tmp_path_factory):
  path = tmp_path_factory.mktemp('pairs') / 'drawn.npz'
  encoded = [file.read_bytes() for file in sorted(faces[0].glob('*/*'))]
  data.write_pairs(path, encoded, np.arange(12) % 2 == 0)
  return path


@pytest.fixture(scope='module')
def state_dict(variables):
  return interop.to_torch(*variables, num_batches_tracked=COUNT)


@pytest.fixture
def pth(state_dict, tmp_path):
  path = tmp_path / f'{COUNT}backbone.pth'
  torch_files.write(path, state_dict, {})
  return path


@pytest.fixture
def header(tmp_path):
  path = tmp_path / f'{COUNT}header.pth'
  kernel = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
  torch_files.write(path, {'kernel': kernel}, {})
  return path


@pytest.fixture
def command(capsys):
  """``command(*arguments)``: runs it; returns exit code and output."""

  def run(*arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err

  return run


def files(folder):
  return sorted(path.name for path in folder.iterdir())


def test_there_and_back(command, pth, header, state_dict, pairs, tmp_path):
  run = tmp_path / 'runs' / 'released'
  code, output = command('convert', pth, '--workdir', run, '--head', header)
  assert (code, output) == (0, f'iresnet10 in {run}\n')
  assert files(run) == ['checkpoints', 'config.json', 'manifest.json']
  assert files(run.parent) == ['released']
  _, saved = checkpoint.read(run, 0, ('class_centers', 'step'))
  assert saved['class_centers'].shape == (1, 5, 8) and saved['step'] == 0
  np.testing.assert_array_equal(
    saved['class_centers'][0], interop.head_from_torch(header)
  )

  out = tmp_path / 'again.pth'
  arguments = ('--checkpoint', run, '--format', 'torch', '--out', out)
  code, output = command('export', *arguments)
  assert code == 0 and output.startswith(f'{out}: ')
  again = torch_files.read(out)
  assert list(again) == list(state_dict)
  for key, value in state_dict.items():
    assert again[key].numpy().tobytes() == value.tobytes(), key
  _, fingerprint = command('fingerprint', run)
  metadata = torch_files.read_metadata(out)
  assert metadata['training_fingerprint'] == fingerprint.strip()
  assert metadata['embedding_dim'] == 8 and metadata['colour_order'] == 'RGB'
  assert metadata['normalisation'] == '(x - 127.5) / 127.5'
  assert np.shape(metadata['alignment_template']) == (5, 2)

  # The same embeddings from the file, the folder and what came out again.
  tables = []
  for checkpoint_of in (pth, run, out):
    results = tmp_path / 'results' / checkpoint_of.name
    code, output = command(
      'evaluate', '--checkpoint', checkpoint_of, '--pairs', pairs,
      '--out', results,
    )  # fmt: skip
    assert code == 0, output
    tables.append((results / 'results.json').read_text())
  assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize('kind', ['onnx', 'stablehlo'])
def test_files_that_run_elsewhere(kind, command, pth, embed, tmp_path):
  out = tmp_path / 'new' / f'backbone.{kind}'
  arguments = ('--checkpoint', pth, '--format', kind, '--out', out)
  code, output = command('export', *arguments)
  assert code == 0, output
  assert files(out.parent) == [out.name]
  images = np.random.default_rng(0).uniform(-1, 1, (3, 112, 112, 3))
  images = images.astype(np.float32)
  if kind == 'onnx':
    session = onnxruntime.InferenceSession(out)
    given = {'input.1': images.transpose(0, 3, 1, 2)}
    (found,) = session.run(None, given)
    metadata = session.get_modelmeta().custom_metadata_map
  else:
    found = export.deserialize(bytearray(out.read_bytes())).call(images)
    with zipfile.ZipFile(out) as archive:
      metadata = json.loads(archive.read('metadata.json'))
  np.testing.assert_allclose(found, embed(images), 0, 1e-4)
  assert metadata['colour_order'] == 'RGB' and metadata['model'] == 'iresnet10'
  assert (
    metadata['training_fingerprint'] == weights.open_weights(pth).fingerprint
  )


def test_embeddings_of_data_and_of_pairs(
  command, pth, embed, faces, pairs, tmp_path
):
  folder, images, labels = faces
  out = tmp_path / 'embedded'
  code, output = command('embed', folder, '--checkpoint', pth, '--out', out)
  assert code == 0, output
  assert files(out) == ['embeddings.npy', 'labels.npy', 'metadata.json']
  np.testing.assert_array_equal(np.load(out / 'labels.npy'), labels)
  scaled = (images.astype(np.float32) - 127.5) / 127.5
  expected = embed(scaled) + embed(scaled[:, :, ::-1])
  found = np.load(out / 'embeddings.npy')
  np.testing.assert_allclose(found, expected, 0, 2e-4)
  metadata = json.loads((out / 'metadata.json').read_text())
  assert metadata['data'] == str(folder) and metadata['embedding_dim'] == 8
  code, output = command('embed', folder, '--checkpoint', pth, '--out', out)
  assert code == 2 and f'--out {out} is in use' in output

  out = tmp_path / 'pairs'
  code, output = command('embed', pairs, '--checkpoint', pth, '--out', out)
  assert code == 0, output
  assert np.load(out / 'same.npy').tolist() == [True, False] * 6
  # The images of that folder.
  np.testing.assert_array_equal(np.load(out / 'embeddings.npy'), found)


def mistakes(tmp_path, pth, header):
  text = tmp_path / 'text.pth'
  text.write_text('version https://git-lfs.github.com/spec/v1\n')
  cut = tmp_path / 'cut.pth'
  cut.write_bytes(pth.read_bytes()[:5000])
  used = tmp_path / 'used'
  used.mkdir()
  (used / 'something').touch()
  wide = tmp_path / 'wide.pth'
  torch_files.write(wide, {'kernel': np.ones((9, 5), np.float32)}, {})
  new = tmp_path / 'new'
  gone = tmp_path / 'gone.pth'
  return [
    (['convert', text, '--workdir', new], text),
    (['convert', cut, '--workdir', new], cut),
    (['convert', gone, '--workdir', new], gone),
    (['convert', header, '--workdir', new], 'no key has layer1.0'),
    (['convert', pth, '--workdir', used], 'in use'),
    (['convert', pth, '--workdir', new, '--head', pth], 'here is none'),
    (['convert', pth, '--workdir', new, '--head', wide], 'of 9 numbers'),
    (['evaluate', '--checkpoint', gone, '--pairs', 'synthetic'], gone),
    (['evaluate', '--checkpoint', used, '--pairs', 'synthetic'], 'config.json'),
    (
      ['evaluate', '--checkpoint', pth, '--step', '3', '--pairs', 'synthetic'],
      'no step 3',
    ),
    (['export', '--checkpoint', pth, '--format', 'onnx', '--out', used], used),
    (['embed', gone, '--checkpoint', pth, '--out', new], gone),
  ]


def test_mistakes_end_in_one_line(command, pth, header, tmp_path):
  for arguments, words in mistakes(tmp_path, pth, header):
    code, output = command(*arguments)
    assert code == 2 and len(output.splitlines()) == 1, (arguments, output)
    assert str(words) in output, output
    assert not (tmp_path / 'new').exists()
  assert not list(Path(tmp_path).glob('*.partial'))
