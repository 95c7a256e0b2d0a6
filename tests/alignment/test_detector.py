# SPDX-License-Identifier: Apache-2.0
"""Faces in photographs: found, not found, several, tiny."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import alignment, cli, data, missing, runtime
from elasticface_jax.alignment import detector
from elasticface_jax.commands import _checkpoint

# Marked by hand on an enlargement of `photograph`.
MARKED = np.array([[83, 81], [127, 83], [103, 107], [85, 122], [123, 122]])
TEMPLATE = np.array(alignment.TEMPLATE)


class Network:
  """A network that finds given faces, as rows of ``mtcnn``'s table."""

  def __init__(self, *faces, confidence=0.99):
    rows = [[0, 0, 0, 9, 9, confidence, *face.T.ravel()] for face in faces]
    self._rows = np.array(rows) if rows else np.zeros((0, 6))

  def detect_faces(self, image, *, output_type):
    assert image.dtype == np.uint8 and output_type == 'numpy'
    return self._rows


IMAGE = np.zeros((300, 400, 3), np.uint8)


def find(*faces, min_face=20):
  return detector.Detector(Network(*faces), min_face).find('a.jpg', IMAGE)


def test_one_face():
  np.testing.assert_allclose(find(TEMPLATE + 50), TEMPLATE + 50)


def test_no_face():
  with pytest.raises(alignment.NotAligned, match='no face was found'):
    find()


def test_doubtful_faces_are_none():
  network = Network(TEMPLATE, confidence=0.89)
  with pytest.raises(alignment.NotAligned, match='no face was found'):
    detector.Detector(network, 20).find('a.jpg', IMAGE)


def test_several_faces_are_said_and_none_is_chosen():
  with pytest.raises(alignment.NotAligned) as raised:
    find(TEMPLATE, TEMPLATE + [100, 50])
  assert raised.value.kind == 'several faces were found'
  assert '2 faces were found, at (56, 72), (156, 122); crop' in str(
    raised.value
  )
  with pytest.raises(alignment.NotAligned, match=r'4 faces .*, \.\.\.; crop'):
    find(*[TEMPLATE + 9 * n for n in range(4)])


def test_small_faces_count_only_alone():
  small = TEMPLATE / 4  # 28 pixels.
  np.testing.assert_allclose(find(small, TEMPLATE, min_face=30), TEMPLATE)
  with pytest.raises(alignment.NotAligned, match='2 faces'):
    find(small, TEMPLATE, min_face=27)
  # A single one is returned, for `check` to say how small it is.
  np.testing.assert_allclose(find(small, min_face=30), small)
  with pytest.raises(alignment.NotAligned, match='2 faces'):
    find(small, small + 9, min_face=30)


def test_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'mtcnn', None)
  with pytest.raises(
    missing.MissingPackage,
    match=r"--detect needs mtcnn: pip install 'elasticface_jax\[detect\]'",
  ):
    detector.mtcnn(20)


@pytest.fixture(scope='module')
def photograph():
  """Returns the head of scikit-image's portrait, uint8 ``[224, 224, 3]``."""
  skimage = pytest.importorskip('skimage')
  return np.ascontiguousarray(skimage.data.astronaut()[20:244, 120:344])


@pytest.fixture(scope='module')
def real():
  pytest.importorskip('mtcnn')
  return detector.mtcnn(20)


def test_points_of_a_photograph(real, photograph):
  image = photograph
  points = real.find('', image)
  assert np.abs(points - MARKED).max() < 5
  np.testing.assert_array_equal(real.find('', image), points)
  alignment.check(points, (224, 224), 20)
  # Sides are those of the image: of its mirror image, the other ones.
  mirrored = real.find('', image[:, ::-1].copy())
  swapped = [223, 0] + MARKED[[1, 0, 2, 4, 3]] * [-1, 1]
  assert np.abs(mirrored - swapped).max() < 5


def test_photographs_of_none_and_of_two(real, photograph):
  image = photograph
  for nothing in (np.full((300, 200, 3), 120, np.uint8), image[:1, :1]):
    with pytest.raises(alignment.NotAligned, match='no face was found'):
      real.find('', nothing)
  with pytest.raises(alignment.NotAligned, match='[2-9] faces were found'):
    real.find('', np.concatenate([image, image], axis=1))


class Weights:
  """Weights whose embedding of an image is some of its pixels."""

  path, title, eval_rows = Path('runs/q'), 'q, step 3', 1
  embedding_dim = 48

  def describe(self):
    return {}

  def embed(self, images):
    return images.reshape(len(images), -1)[:, ::784].astype(np.float32)


def test_commands(real, photograph, monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(_checkpoint, 'open_network', lambda args: Weights())
  monkeypatch.setattr(runtime, 'set_environment', lambda: None)
  monkeypatch.setattr(detector, 'mtcnn', lambda min_face: real)
  image = photograph
  for name, pixels in {
    'a/1.png': image,
    'a/2.png': np.full_like(image, 200),
    'b/1.png': image[:, ::-1],
    'b/2.png': np.concatenate([image, image], axis=1),
  }.items():
    Path('photos', name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(Path('photos', name))

  checkpoint = ('--checkpoint', 'runs/q')
  assert cli.main(['prepare', 'photos', 'shards', '--detect']) == 2
  *_, none, two, last = capsys.readouterr().err.splitlines()
  assert none == 'a/2.png: no face was found'
  assert two.startswith('b/2.png: ') and 'faces were found, at (' in two
  assert '2 of 4 images cannot be aligned: no face was found (1)' in last
  assert not Path('shards').exists()

  skip = ('--detect', '--skip', 'left.tsv')
  assert cli.main(['prepare', 'photos', 'shards', *skip]) == 0
  assert 'points are in shards.landmarks.tsv' in capsys.readouterr().out
  images, labels = data.open_encoded('shards').render(np.arange(2))
  assert labels.tolist() == [0, 1]
  points = real.find('', image)
  np.testing.assert_array_equal(images[0], alignment.align(image, points))

  assert cli.main(['embed', 'photos', '--out', 'o', *skip, *checkpoint]) == 0
  np.testing.assert_array_equal(
    np.load('o/embeddings.npy'), Weights().embed(images)
  )
  written = Path('o/landmarks.tsv').read_text()
  assert written == Path('shards.landmarks.tsv').read_text()
  capsys.readouterr()
  verify = ('verify', '--detect', '--threshold', '0.9', *checkpoint)
  assert cli.main([*verify, 'photos/a/1.png', 'photos/a/1.png']) == 0
  assert 'cosine 1.0000' in capsys.readouterr().out
  assert cli.main([*verify, 'photos/a/1.png', 'photos/a/2.png']) == 2
  err = capsys.readouterr().err
  assert err == 'elasticface: photos/a/2.png: no face was found\n'
