# SPDX-License-Identifier: Apache-2.0
"""Conversion of PyTorch weights to run folders, and exports of run folders."""

import functools
import hashlib
import json
import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from jax import export
from PIL import Image

from elasticface_jax import cli, data, interop, models, weights
from elasticface_jax.commands import embed as commands_embed
from elasticface_jax.errors import InputError
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


def figures(folder):
  """Returns the results in a folder without what network they are of."""
  origin = 'title', 'checkpoint', 'step', 'fingerprint', 'path'
  results = json.loads((folder / 'results.json').read_text())
  return {
    name: {key: x for key, x in result.items() if key not in origin}
    for name, result in results.items()
  }


def assert_near(found, expected):
  """Compares results; figures may differ by 1e-6."""
  if isinstance(expected, dict):
    assert found.keys() == expected.keys()
    for key in expected:
      assert_near(found[key], expected[key])
  elif isinstance(expected, list):
    for one, other in zip(found, expected, strict=True):
      assert_near(one, other)
  elif isinstance(expected, float):
    assert found == pytest.approx(expected, abs=1e-6)
  else:
    assert found == expected


def test_there_and_back(command, pth, header, state_dict, pairs, tmp_path):
  run = tmp_path / 'runs' / 'released'
  code, output = command('convert', pth, '--workdir', run, '--head', header)
  pixels = 'names of insightface, trained on RGB, (x - 127.5) / 127.5'
  assert (code, output) == (0, f'iresnet10 in {run}; {pixels}\n')
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
    tables.append(figures(results))
  assert tables[0] == tables[1] == tables[2]


def test_results_from_onnx_and_from_embeddings(command, pth, pairs, tmp_path):
  onnx, embedded = tmp_path / 'backbone.onnx', tmp_path / 'embedded'
  code, output = command(
    'export', '--checkpoint', pth, '--format=onnx', '--out', onnx
  )
  assert code == 0, output
  code, output = command('embed', pairs, '--checkpoint', pth, '--out', embedded)
  assert code == 0, output
  found = []
  for words in (
    ('--checkpoint', pth, '--pairs', pairs),
    ('--checkpoint', onnx, '--pairs', pairs),
    ('--embeddings', embedded),
  ):
    out = tmp_path / f'results{len(found)}'
    code, output = command('evaluate', *words, '--out', out)
    assert code == 0, output
    found.append(figures(out))
  assert found[0] == found[2]
  assert_near(found[1], found[0])
  results = json.loads((tmp_path / 'results1' / 'results.json').read_text())
  assert (
    results['drawn']['fingerprint']
    == hashlib.sha256(onnx.read_bytes()).hexdigest()
  )
  for flag in ('--step=1', '--prefix=a'):
    code, output = command(
      'embed', pairs, '--checkpoint', onnx, flag, '--out', tmp_path / 'none'
    )
    assert code == 2 and 'is an ONNX file, of one network' in output


def test_weights_of_an_onnx_file(command, pth, state_dict, tmp_path):
  file, run = tmp_path / 'backbone.onnx', tmp_path / 'run'
  command('export', '--checkpoint', pth, '--format=onnx', '--out', file)
  code, output = command('convert', file, '--workdir', run)
  note, last = output.splitlines()
  assert code == 0 and note.startswith(f'{file}: pixels taken as RGB, ')
  assert last == (
    f'iresnet10 in {run}; an ONNX graph, trained on RGB, (x - 127.5) / 127.5'
  )
  manifest = json.loads((run / 'manifest.json').read_text())
  assert manifest['converted']['trained_on'] == {
    'family': 'onnx',
    'first_kernel': '',
    'colour_order': 'RGB',
    'colour_order_is': 'assumed',
    'normalisation': '(x - 127.5) / 127.5',
    'normalisation_is': 'assumed',
  }
  # The weights came back to the bit, and leave as they came.
  for number, source in enumerate((run, file)):
    out = tmp_path / f'{number}.pth'
    options = '--input=rgb', '--normalise', '(x - 127.5) / 127.5'
    code, output = command(
      'export', '--checkpoint', source, '--format=torch', '--out', out,
      *(options if source == file else ()),
    )  # fmt: skip
    assert code == 0 and output.startswith(f'{out}: ')
    again = torch_files.read(out)
    for key, value in state_dict.items():
      if not key.endswith('num_batches_tracked'):
        np.testing.assert_array_equal(again[key].numpy(), value)
  opened = weights.open_weights(file)
  with pytest.raises(InputError, match='has no head; set start.head to False'):
    opened.class_centers(5, 1)
  for flag in ('--step=1', '--prefix=net'):
    code, output = command(
      'export', '--checkpoint', file, '--format=torch', flag,
      '--out', tmp_path / 'none.pth',
    )  # fmt: skip
    assert code == 2 and 'is an ONNX file, of one network: leave' in output
  file.unlink()
  code, output = command('convert', file, '--workdir', tmp_path / 'none')
  assert code == 2 and 'does not exist' in output
  assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('kind', ['onnx', 'stablehlo'])
def test_files_that_run_elsewhere(kind, command, pth, embed, tmp_path):
  out = tmp_path / f'backbone.{kind}'
  arguments = ('--checkpoint', pth, '--format', kind, '--out', out)
  code, output = command('export', *arguments)
  assert code == 0, output
  assert output.splitlines()[0].startswith('compiling iresnet10, and comparing')
  assert files(tmp_path) == sorted([out.name, pth.name])
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
  assert output.startswith(f'embedding 24 images with {pth.name}, step 0; the ')
  names = ['embeddings.npy', 'images.tsv', 'labels.npy', 'metadata.json']
  assert files(out) == names
  assert (
    f'{", ".join(names[:3])} and {names[3]} are in {out}; it took ' in output
  )
  np.testing.assert_array_equal(np.load(out / 'labels.npy'), labels)
  scaled = (images.astype(np.float32) - 127.5) / 127.5
  expected = embed(scaled) + embed(scaled[:, :, ::-1])
  found = np.load(out / 'embeddings.npy')
  np.testing.assert_allclose(found, expected, 0, 2e-4)
  metadata = json.loads((out / 'metadata.json').read_text())
  assert metadata['data'] == str(folder) and metadata['embedding_dim'] == 8
  code, output = command('embed', folder, '--checkpoint', pth, '--out', out)
  assert code == 2 and f'--out {out} is in use' in output

  header, *rows = (out / 'images.tsv').read_text().splitlines()
  assert header.split('\t') == ['image', 'label', 'person']
  people = [file.relative_to(folder) for file in sorted(folder.glob('*/*'))]
  assert [row.split('\t') for row in rows] == [
    [str(file), str(label), file.parent.name]
    for file, label in zip(people, labels.tolist(), strict=True)
  ]

  out = tmp_path / 'pairs'
  code, output = command('embed', pairs, '--checkpoint', pth, '--out', out)
  assert code == 0, output
  assert np.load(out / 'same.npy').tolist() == [True, False] * 6
  assert files(out) == ['embeddings.npy', 'metadata.json', 'same.npy']
  # The images of that folder.
  np.testing.assert_array_equal(np.load(out / 'embeddings.npy'), found)


# Names that break a line or a column, or are no UTF-8.
ODD = (
  'b c.PNG',
  'a\tb.png',
  'a\nb.png',
  'a\\nb.png',
  '\u2028.png',
  'd\udce9.png',
)


def test_flat_folder_and_one_image(command, pth, faces, tmp_path, embed):
  flat = tmp_path / 'flat'
  flat.mkdir()
  made = dict(zip(ODD, faces[1], strict=False))
  for name, image in made.items():
    Image.fromarray(image).save(flat / name, 'png')
  (flat / 'notes.txt').write_text('no image')
  out = tmp_path / 'embedded'
  code, output = command('embed', flat, '--checkpoint', pth, '--out', out)
  assert code == 0, output
  assert files(out) == ['embeddings.npy', 'images.tsv', 'metadata.json']
  lines = (out / 'images.tsv').read_text('utf-8').split('\n')
  assert lines == [
    'image', r'a\tb.png', r'a\nb.png', r'a\\nb.png', 'b c.PNG',
    r'd\udce9.png', r'\u2028.png', '',
  ]  # fmt: skip
  opened = weights.open_weights(pth)
  order = sorted(made, key=os.fsencode)
  found = np.load(out / 'embeddings.npy')
  expected = opened.embed(np.stack([made[name] for name in order]))
  np.testing.assert_array_equal(found, expected)

  one = tmp_path / 'one'
  code, output = command(
    'embed', flat / order[2], '--checkpoint', pth, '--out', one
  )
  assert code == 0, output
  assert files(one) == files(out)
  np.testing.assert_array_equal(np.load(one / 'embeddings.npy'), found[2:3])


@pytest.mark.parametrize('size', [(160, 160), (112, 96)])
def test_faces_that_are_not_aligned_are_refused(size, command, pth, tmp_path):
  flat = tmp_path / 'flat'
  flat.mkdir()
  Image.new('RGB', (112, 112)).save(flat / 'a.png')
  Image.new('RGB', size).save(flat / 'b.png')
  for source in (flat, flat / 'b.png'):
    code, output = command(
      'embed', source, '--checkpoint', pth, '--out', tmp_path / 'out'
    )
    width, height = size
    assert code == 2 and len(output.splitlines()) == 1
    assert f'b.png: the image is {width}x{height}, not 112x112' in output
  assert not (tmp_path / 'out').exists()


def test_images_of_other_formats_are_refused_by_their_name(
  command, pth, tmp_path
):
  for name in ('a.webp', 'a.gif', 'a.bmp'):
    folder = tmp_path / name[2:]
    folder.mkdir()
    (folder / name).write_bytes(b'an image')
    for source in (folder, folder / name):
      code, output = command(
        'embed', source, '--checkpoint', pth, '--out', tmp_path / 'out'
      )
      assert code == 2 and 'give a .jpg, .jpeg or .png' in output, output


def test_embed_of_an_array(pth, faces, embed, monkeypatch):
  compiled = []
  make = weights.make_embed
  monkeypatch.setattr(
    weights, 'make_embed', lambda *a, **k: compiled.append(a) or make(*a, **k)
  )
  opened = weights.open_weights(pth)
  images = faces[1][:5]
  scaled = (images.astype(np.float32) - 127.5) / 127.5
  found = opened.embed(images)
  assert found.dtype == np.float32 and found.shape == (5, 8)
  expected = embed(scaled) + embed(scaled[:, :, ::-1])
  np.testing.assert_allclose(found, expected, 0, 2e-4)
  # Any number at a time.
  np.testing.assert_array_equal(opened.embed(images[3:4]), found[3:4])
  assert len(compiled) == 1
  assert opened.embed(images[:0]).shape == (0, 8)
  for wrong, error in (
    (scaled, TypeError),
    (images[0], ValueError),
    (images[:, :, :, :1], ValueError),
    (images[:, :96], ValueError),
  ):
    with pytest.raises(error, match='^images '):
      opened.embed(wrong)


@pytest.mark.parametrize('kind', [str, Path])
def test_paths_of_either_kind(kind, pth, header, pairs, tmp_path):
  at = lambda name: kind(tmp_path / name)
  run = at('run')
  weights.convert(kind(pth), run, heads=[kind(header)])
  for path in (run, kind(pth)):
    opened = weights.open_weights(path)
    weights.export(opened, at('out.pth'), file_format='torch')
    weights.check_export(at('out.onnx'), 'onnx')
    assert len(opened.fingerprint) == 64
  assert checkpoint.fingerprint(run)[0] == 0
  assert checkpoint.read(run, 0, ('step',))[0] == 0
  interop.from_torch(at('out.pth'))
  assert interop.num_batches_tracked(at('out.pth')) == COUNT
  assert interop.left_aside(at('out.pth')) == []
  assert interop.head_from_torch(kind(header), kind(header)).shape == (10, 8)
  torch_files.write(at('a.pth'), {}, {})
  assert torch_files.read_metadata(at('a.pth')) == {}
  assert torch_files.read(at('a.pth')) == {}
  commands_embed.embed(opened, kind(pairs), at('embedded'))


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
    (['convert', gone, '--workdir', new], f'{gone} does not exist'),
    (['convert', used, '--workdir', new], f'{used} is no file'),
    (['convert', header, '--workdir', new], 'no key has layer1.0'),
    (['convert', pth, '--workdir', used], 'in use'),
    (['convert', pth, '--workdir', new, '--head', pth], 'here is none'),
    (['convert', pth, '--workdir', new, '--head', wide], 'of size 9'),
    (
      ['evaluate', '--checkpoint', gone, '--pairs', 'synthetic'],
      f'{gone} does not exist',
    ),
    (['evaluate', '--checkpoint', used, '--pairs', 'synthetic'], 'config.json'),
    (
      ['evaluate', '--checkpoint', pth, '--step', '3', '--pairs', 'synthetic'],
      'no step 3',
    ),
    (['embed', gone, '--checkpoint', pth, '--out', new], gone),
  ]


def test_mistakes_end_in_one_line(command, pth, header, tmp_path):
  for arguments, words in mistakes(tmp_path, pth, header):
    code, output = command(*arguments)
    assert code == 2 and len(output.splitlines()) == 1, (arguments, output)
    assert str(words) in output, output
    assert not (tmp_path / 'new').exists()
  assert not list(Path(tmp_path).glob('*.partial'))


@pytest.fixture
def no_work(monkeypatch):
  """Opening weights fails, since a mistake must be found before."""
  monkeypatch.delattr(weights, 'open_weights')


@pytest.mark.parametrize('kind', ['torch', 'onnx', 'stablehlo'])
def test_out_that_cannot_be_is_found_before_the_work(
  kind, command, no_work, tmp_path, monkeypatch
):
  arguments = ['export', '--checkpoint', tmp_path, '--format', kind, '--out']
  (tmp_path / 'file').touch()
  os.mkfifo(tmp_path / 'pipe')
  for out, words in (
    (tmp_path, f'{tmp_path} is a folder'),
    (tmp_path / 'pipe', f'{tmp_path / "pipe"} is no regular file'),
    (os.devnull, f'{os.devnull} is no regular file'),
    (tmp_path / 'a' / 'b', f'there is no folder {tmp_path / "a"}; make it'),
    (tmp_path / 'file' / 'b', f'there is no folder {tmp_path / "file"}'),
  ):
    code, output = command(*arguments, out)
    assert code == 2 and words in output and len(output.splitlines()) == 1
  # As root may write everywhere.
  monkeypatch.setattr('os.access', lambda path, mode: False)
  code, output = command(*arguments, tmp_path / 'new')
  assert code == 2 and f'{tmp_path} may not be written to' in output
  assert files(tmp_path) == ['file', 'pipe']


@pytest.mark.parametrize('batch', [-1, 0, 1025, 10**11])
def test_batches_that_cannot_be_compared(batch, command, no_work, tmp_path):
  code, output = command(
    *('export', '--checkpoint', tmp_path, '--format', 'stablehlo'),
    *('--out', tmp_path / 'new', '--batch', batch),
  )
  assert code == 2 and f'--batch {batch}: give 1 to 1024' in output
  assert len(output.splitlines()) == 1


@pytest.mark.parametrize('name', ['file', 'file/deeper'])
def test_out_of_evaluate_that_is_a_file(name, command, no_work, tmp_path):
  (tmp_path / 'file').touch()
  code, output = command(
    *('evaluate', '--checkpoint', tmp_path, '--pairs', 'synthetic'),
    *('--out', tmp_path / name),
  )
  assert code == 2 and f'{tmp_path / "file"} is a file' in output


def test_folders_in_use_are_found_before_the_work(command, no_work, tmp_path):
  for arguments in (
    ('embed', tmp_path, '--checkpoint', tmp_path, '--out', tmp_path.parent),
    ('convert', tmp_path / 'a.pth', '--workdir', tmp_path.parent),
  ):
    code, output = command(*arguments)
    assert code == 2 and f'{tmp_path.parent} is in use' in output


@pytest.fixture
def of_two(state_dict, tmp_path):
  """File of two backbones with a head each, which differ in their values."""
  path = tmp_path / 'two.pth'
  kernel = np.ones((8, 5), np.float32)
  content = {}
  for name, factor in (('student', 1), ('teacher', 2)):
    content |= {
      f'{name}.net.{key}': value * (1 if 'features' in key else factor)
      for key, value in state_dict.items()
    } | {f'{name}.head.kernel': kernel * factor}
  torch_files.write(path, content, {})
  return path


def test_prefix_chooses_in_every_command(
  command, of_two, state_dict, pairs, tmp_path
):
  run, out = tmp_path / 'run', tmp_path / 'again.pth'
  arguments = {
    'convert': (of_two, '--workdir', run, '--head', of_two),
    'evaluate': ('--checkpoint', of_two, '--pairs', pairs),
    'embed': (pairs, '--checkpoint', of_two, '--out', tmp_path / 'embedded'),
    'export': ('--checkpoint', of_two, '--format', 'torch', '--out', out),
  }
  for name, given in arguments.items():
    code, output = command(name, *given)
    assert code == 2 and len(output.splitlines()) == 1, output
    assert "under the prefixes 'student.net.', 'teacher.net.'" in output
    code, output = command(name, *given, '--prefix', 'student')
    assert code == 0, output
    left = f"'student.head.kernel' and {len(state_dict) + 1} more"
    assert f'left aside from the backbone: {left}\n' in output
  again = torch_files.read(out)
  for key, value in state_dict.items():
    assert again[key].numpy().tobytes() == value.tobytes(), key
  assert np.load(tmp_path / 'embedded' / 'embeddings.npy').any()
  _, saved = checkpoint.read(run, 0, ('class_centers',))
  assert (saved['class_centers'] == 1).all()
  manifest = json.loads((run / 'manifest.json').read_text())['converted']
  assert manifest['num_batches_tracked'] == COUNT
  assert manifest['prefix'] == 'student'
  teacher = weights.open_weights(of_two, prefix='teacher')
  assert (teacher.class_centers(5, 1) == 2).all()
  code, output = command(
    'evaluate', '--checkpoint', run, '--pairs', pairs, '--prefix', 'student'
  )
  assert code == 2 and 'has one backbone; leave --prefix' in output


@pytest.fixture
def ir(tmp_path):
  """File under names that TFace and AdaFace share, and its tensors."""
  backbone = models.build(
    'iresnet10', width=2, embedding_dim=8, block='adaface',
    output_norm='plain',
  )  # fmt: skip
  key = jax.eval_shape(lambda: jax.random.key(0))
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(
    lambda leaf: rng.uniform(0.3, 0.9, leaf.shape).astype(np.float32),
    jax.eval_shape(backbone.init, key),
  )
  tensors = interop.to_torch(*drawn, names='tface', num_batches_tracked=COUNT)
  path = tmp_path / 'ir.pth'
  torch_files.write(path, tensors, {})
  return path, tensors


NOTE = 'pixels taken as RGB, (x - 127.5) / 127.5, as TFace publishes; '


def test_pixels_are_stated_or_taken_with_a_note(command, ir, tmp_path):
  path, _ = ir
  taken, stated = tmp_path / 'taken', tmp_path / 'stated'
  code, output = command('convert', path, '--workdir', taken)
  assert code == 0 and f'{path}: {NOTE}' in output and '--input bgr' in output
  assert output.endswith(
    f'{taken}; names of TFace, trained on RGB, (x - 127.5) / 127.5\n'
  )
  code, output = command(
    *('convert', path, '--workdir', stated),
    *('--input', 'bgr', '--normalise', 'x / 255'),
  )
  assert (code, output) == (
    0,
    f'iresnet10 in {stated}; names of TFace, trained on BGR, x / 255\n',
  )
  for folder, order, source, formula in (
    (taken, 'RGB', 'assumed', '(x - 127.5) / 127.5'),
    (stated, 'BGR', 'stated', 'x / 255'),
  ):
    opened = weights.open_weights(folder)
    assert opened.model['input_norm'] == (folder == stated)
    assert opened.note == ''
    metadata = opened.describe()
    # What it takes now, and what it was trained on.
    assert metadata['colour_order'] == 'RGB'
    found = metadata['trained_on']
    assert found['family'] == 'tface'
    assert found['colour_order'] == order and found['normalisation'] == formula
    assert found['colour_order_is'] == source
  np.testing.assert_array_equal(
    weights.open_weights(stated).params['conv1']['kernel'],
    weights.open_weights(taken).params['conv1']['kernel'][:, :, ::-1],
  )
  np.testing.assert_array_equal(
    weights.open_weights(stated).batch_stats['input']['std'], [2, 2, 2]
  )


def test_export_under_the_names_of_a_project(command, ir, tmp_path):
  path, tensors = ir
  run = tmp_path / 'run'
  assert command('convert', path, '--workdir', run, '--input', 'bgr')[0] == 0
  out = tmp_path / 'adaface.ckpt'
  export_of = functools.partial(
    command, 'export', '--checkpoint', run, '--format', 'torch', '--out'
  )
  code, output = export_of(out, '--names', 'adaface')
  assert code == 0 and 'folded' not in output
  # As it came, in the dictionary and under the prefix that AdaFace reads.
  found = torch_files.read(out)['state_dict']
  assert [*found] == [f'model.{key}' for key in tensors]
  for key, value in tensors.items():
    assert found[f'model.{key}'].numpy().tobytes() == value.tobytes(), key
  metadata = torch_files.read_metadata(out)
  assert metadata['names'] == 'adaface' and metadata['folded'] == []
  assert metadata['colour_order'] == 'BGR'
  assert metadata['trained_on']['colour_order_is'] == 'stated'
  assert weights.open_weights(out).note == ''

  out = tmp_path / 'insightface.pth'
  code, output = export_of(out)
  assert code == 0 and 'folded for insightface, with equal embed' in output
  metadata = torch_files.read_metadata(out)
  assert metadata['colour_order'] == 'RGB' and len(metadata['folded']) == 2
  assert 'layer1.0.downsample.0.weight' in torch_files.read(out)

  out = tmp_path / 'none.pth'
  code, output = export_of(out, '--names', 'curricularface')
  assert code == 2 and len(output.splitlines()) == 1 and 'bn2' in output
  code, output = command(
    *('export', '--checkpoint', run, '--format', 'onnx', '--out', out),
    *('--names', 'adaface'),
  )
  assert code == 2 and '--names adaface is for --format torch' in output
  assert not out.exists()


def test_pixels_of_what_has_its_own(command, ir, pth, tmp_path):
  run = tmp_path / 'run'
  assert command('convert', pth, '--workdir', run)[0] == 0
  new = tmp_path / 'new'
  for flags in (('--input', 'bgr'), ('--normalise', 'x')):
    code, output = command(
      'embed', tmp_path, '--checkpoint', run, '--out', new, *flags
    )
    assert code == 2 and len(output.splitlines()) == 1, output
    assert f'{run} is a run folder' in output and f'leave {flags[0]}' in output
    code, output = command('evaluate', '--embeddings', run, *flags)
    assert code == 2 and f'{flags[0]} is for --checkpoint' in output
  code, output = command(
    'convert', ir[0], '--workdir', new, '--normalise', '127.5/128'
  )
  assert code == 2 and "'127.5/128' is no formula" in output
  assert len(output.splitlines()) == 1 and not new.exists()
