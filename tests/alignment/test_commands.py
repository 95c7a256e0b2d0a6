# SPDX-License-Identifier: Apache-2.0
"""`--landmarks` of embed, prepare and verify, from photographs to pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import alignment, cli, data, runtime
from elasticface_jax.commands import _checkpoint

from .conftest import lines


class Weights:
  """Weights whose embedding of an image is some of its pixels."""

  path, title, eval_rows = Path('runs/q'), 'q, step 3', 1
  embedding_dim = 48

  def describe(self):
    return {'training_step': 3}

  def embed(self, images):
    return images.reshape(len(images), -1)[:, ::784].astype(np.float32)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
  """Runs a command in the folder of the photographs; returns its output."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(_checkpoint, 'open_network', lambda args: Weights())
  monkeypatch.setattr(runtime, 'set_environment', lambda: None)

  def run(line, code=0):
    capsys.readouterr()
    words = line.split()
    if words[0] != 'prepare':
      words += ['--checkpoint', 'runs/q']
    assert cli.main(words) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return err if code else out

  return run


def embeddings(folder='out'):
  return np.load(Path(folder) / 'embeddings.npy')


def of(faces):
  return Weights().embed(np.stack(faces))


def test_embed_of_people(run, photographs, points_file):
  out = run('embed photos --out out --landmarks points.txt')
  assert 'not in photos' not in out
  faces = [face for face, _ in photographs.values()]
  np.testing.assert_array_equal(embeddings(), of(faces))
  assert np.load('out/labels.npy').tolist() == [0, 0, 1, 1]
  # What was used stands there, and gives the same once more.
  assert len(Path('out/landmarks.tsv').read_text().splitlines()) == 5
  run('embed photos --out again --landmarks out/landmarks.tsv')
  np.testing.assert_array_equal(embeddings('again'), embeddings())
  assert (
    Path('again/landmarks.tsv').read_text()
    == Path('out/landmarks.tsv').read_text()
  )


def test_embed_of_a_flat_folder_and_of_one_image(
  run, photographs, points_file, tmp_path
):
  points = {
    name.partition('/')[2]: points for name, (_, points) in photographs.items()
  }
  (tmp_path / 'flat.txt').write_text(lines(points))
  out = run('embed photos/ann --out out --landmarks flat.txt')
  assert 'landmarks of 2 images that are not in photos/ann, such as' in out
  first, second = (photographs[f'ann/ann_000{n}.png'][0] for n in (1, 2))
  np.testing.assert_array_equal(embeddings(), of([first, second]))
  run('embed photos/ann/ann_0002.png --out one --landmarks flat.txt')
  np.testing.assert_array_equal(embeddings('one'), of([second]))
  assert 'ann_0002.png' in Path('one/images.tsv').read_text()


def test_verify(run, photographs, points_file):
  pair = 'photos/ann/ann_0001.png photos/bob/bob_0001.png'
  out = run(f'verify {pair} --landmarks points.txt --threshold 0.5')
  a, b = of(
    [photographs[f'{name}_0001.png'][0] for name in ('ann/ann', 'bob/bob')]
  ).astype(np.float64)
  cosine = a @ b / np.sqrt((a @ a) * (b @ b))
  assert f'cosine {cosine:.4f}' in out
  err = run(f'verify {pair} --threshold 0.5', code=2)
  assert 'is 180x200, not 112x112; give aligned faces, or --landmarks' in err
  points_file.write_text(points_file.read_text().split('\n', 1)[1])
  err = run(f'verify {pair} --landmarks points.txt --threshold 0', code=2)
  assert 'ann_0001.png: there are no landmarks of it in points.txt' in err


def test_prepare_shards(run, photographs, points_file):
  out = run('prepare photos shards --landmarks points.txt')
  assert '4 images of 2 classes' in out and 'all read back' in out
  shards = data.open_encoded('shards')
  images, labels = shards.render(np.arange(4))
  faces = np.stack([face for face, _ in photographs.values()])
  np.testing.assert_array_equal(images, faces)  # Nothing is lost.
  assert labels.tolist() == [0, 0, 1, 1]
  assert 'exists' in run('prepare photos shards --landmarks points.txt', code=2)


def test_prepare_pairs(run, photographs, points_file, tmp_path):
  (tmp_path / 'pairs.txt').write_text('1\nann 1 2\nann 1 bob 2\n')
  run('prepare photos lfw.npz --list pairs.txt --landmarks points.txt')
  pairs = data.read_pairs('lfw.npz')
  names = ['ann/ann_0001', 'ann/ann_0002', 'ann/ann_0001', 'bob/bob_0002']
  faces = np.stack([photographs[f'{name}.png'][0] for name in names])
  np.testing.assert_array_equal(pairs.images, faces)
  assert pairs.same.tolist() == [True, False] and not pairs.num_resized
  err = run(
    'prepare photos b.npz --list pairs.txt --landmarks points.txt --skip s',
    code=2,
  )
  assert 'a pair set keeps all of its pairs' in err


@pytest.fixture
def damaged(photographs, points_file, tmp_path):
  """Points of which one is missing, one is mirrored and one is no image's."""
  points = {name: points for name, (_, points) in photographs.items()}
  del points['ann/ann_0001.png']
  points['bob/bob_0001.png'] = points['bob/bob_0001.png'][[1, 0, 2, 4, 3]]
  points['carl/x.png'] = points['bob/bob_0002.png']
  points_file.write_text(lines(points))
  return [photographs[f'{name}_0002.png'][0] for name in ('ann/ann', 'bob/bob')]


@pytest.mark.parametrize(
  'command', ['embed photos --out out', 'prepare photos out']
)
def test_all_that_cannot_be_aligned_is_listed(run, damaged, command):
  err = run(f'{command} --landmarks points.txt', code=2)
  *listed, last = err.splitlines()
  assert listed == [
    'ann/ann_0001.png: there are no landmarks of it in points.txt',
    'bob/bob_0001.png: the five points fit the mirror image of the template: '
    'they are 23 pixels from the template, and 0 from its mirror image; give '
    'them as left eye, right eye, nose, left mouth corner, right mouth corner, '
    'as seen in the image',
  ]
  assert last == (
    'elasticface: 2 of 4 images cannot be aligned: there are no landmarks of '
    'it in points.txt (1), the five points fit the mirror image of the '
    'template (1); --skip FILE leaves them out, and lists them there'
  )
  assert not Path('out').exists()


def test_left_out_on_demand(run, damaged):
  out = run('embed photos --out out --landmarks points.txt --skip left.tsv')
  assert 'points.txt has landmarks of 1 images that are not in photos' in out
  assert "'carl/x.png'" in out
  assert 'they are left out, and listed in left.tsv' in out
  rows = Path('left.tsv').read_text().splitlines()
  assert [row.split('\t')[0] for row in rows] == [
    'ann/ann_0001.png',
    'bob/bob_0001.png',
  ]
  np.testing.assert_array_equal(embeddings(), of(damaged))
  assert np.load('out/labels.npy').tolist() == [0, 1]
  assert [
    row.split('\t')[0]
    for row in Path('out/images.tsv').read_text().splitlines()[1:]
  ] == ['ann/ann_0002.png', 'bob/bob_0002.png']
  run('prepare photos shards --landmarks points.txt --skip left2.tsv')
  images, labels = data.open_encoded('shards').render(np.arange(2))
  np.testing.assert_array_equal(images, np.stack(damaged))
  assert labels.tolist() == [0, 1]


def test_images_that_cannot_be_read(run, photographs, points_file):
  Path('photos/bob/bob_0001.png').write_bytes(b'no image')
  err = run('embed photos --out out --landmarks points.txt', code=2)
  assert 'bob_0001.png: neither a JPEG nor a PNG' in err
  assert '1 of 4 images cannot be aligned: the image cannot be read (1)' in err


def test_names_of_another_folder(run, photographs, points_file):
  text = points_file.read_text()
  points_file.write_text(text.replace('ann/', 'x/').replace('bob/', 'x/'))
  for skip in ('', ' --skip left.tsv'):
    err = run(f'embed photos --out out --landmarks points.txt{skip}', code=2)
    assert 'points.txt has landmarks of none of the 4 images in photos' in err
    assert "'x/ann_0001.png', and they are called like 'ann/ann_0001" in err
  assert not Path('left.tsv').exists()


def test_faces_that_are_too_small(run, photographs, points_file):
  err = run(
    'embed photos --out out --landmarks points.txt --min-face 113', code=2
  )
  assert 'too small: 112.0 pixels become 112, and at least 113' in err
  assert 'the face is too small (4)' in err
  run('embed photos --out out --landmarks points.txt --min-face 111')


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('embed photos --out o --skip s', '--skip s is for photographs; give'),
    ('embed photos --out o --min-face 9', '--min-face 9.0 is for photographs'),
    (
      'embed photos --out o --landmarks points.txt --min-face nan',
      '--min-face nan: a number of pixels',
    ),
    ('embed photos --out o --landmarks none.txt', 'none.txt: No such file'),
    (
      'embed photos --out o --landmarks points.txt --skip no/s',
      'there is no folder',
    ),
    ('embed a.npz --out o --landmarks points.txt', 'a.npz is a pair set'),
    ('prepare a.npz o.bin --landmarks points.txt', 'a.npz is a pair set'),
  ],
)
def test_mistakes(run, photographs, points_file, line, message):
  data.write_pairs('a.npz', [b'1', b'2'], [True])
  assert message in run(line, code=2)


def test_metadata_of_photographs(run, photographs, points_file):
  run('embed photos --out out --landmarks points.txt')
  assert json.loads(Path('out/metadata.json').read_text())['data'] == 'photos'


def test_an_aligned_photograph_needs_no_landmarks(run, photographs):
  face, _ = photographs['ann/ann_0001.png']
  Image.fromarray(face).save('face.png')
  run('embed face.png --out out')
  np.testing.assert_array_equal(embeddings(), of([face]))
  assert not Path('out/landmarks.tsv').exists()
  assert alignment.SIZE == 112
