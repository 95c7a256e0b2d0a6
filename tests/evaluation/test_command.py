# SPDX-License-Identifier: Apache-2.0
"""`elasticface evaluate`, with a network that costs nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import alignment, cli, data, runtime
from elasticface_jax.commands import _checkpoint

from .pixels import Pixels


@pytest.fixture
def network(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  opened = Pixels(tmp_path / 'runs' / 'q')
  monkeypatch.setattr(_checkpoint, 'open_network', lambda args: opened)
  monkeypatch.setattr(runtime, 'set_environment', lambda: None)
  return opened


@pytest.fixture
def run(network, capsys):
  def run(*words, code=0):
    capsys.readouterr()
    try:
      found = cli.main([*map(str, words)])
    except SystemExit as error:  # The parser's.
      found = error.code
    assert found == code
    out, err = capsys.readouterr()
    assert err.count('\n') == (code == 2)
    return err if code else out

  return run


@pytest.fixture
def evaluate(run):
  """``evaluate(*words)``: with the network; the output, or the one line."""
  return lambda *words, **code: run(
    'evaluate', '--checkpoint=runs/q', *words, **code
  )


def read(folder):
  return json.loads((folder / 'results.json').read_text())


@pytest.mark.parametrize('folds', [10, 4])
def test_says_what_it_did_and_where(tmp_path, network, evaluate, folds):
  network.config = {'eval': {'synthetic_pairs': 40}, 'seed': 0}
  folder = tmp_path / 'new' / 'out'
  out = evaluate('--pairs=synthetic', '--folds', folds, '--out', folder)
  lines = out.splitlines()
  assert lines[0] == 'q, step 160'
  assert lines[-2].startswith('80 images took 0:00:')
  assert lines[-1] == f'results.json, scores and plots are in {folder}'
  assert ('accuracy is over 4 folds' in out) == (folds == 4)
  files = 'results.json', 'roc.png', 'scores_synthetic.png'
  names = {path.name for path in folder.iterdir()}
  assert names == {*files, 'scores_synthetic.npz'}
  written = read(folder)['synthetic']
  assert written['folds'] == folds and written['protocol'] == 'pairs'
  assert written['title'] == 'q, step 160' and written['step'] == 160
  assert written['checkpoint'] == str(network.path)
  assert written['fingerprint'] == network.fingerprint
  assert written['path'] == 'synthetic'
  with np.load(folder / 'scores_synthetic.npz') as saved:
    assert saved['same'].sum() == written['num_genuine'] == 20
    assert saved['scores'].dtype == np.float64
  # All images once, in chunks that fill whole batches.
  assert sum(network.sizes) == 80 and len(network.sizes) > 1
  assert all(size % 8 == 0 for size in network.sizes[:-1])


def test_rates_of_choice(tmp_path, evaluate):
  out = tmp_path / 'out'
  text = evaluate('--pairs=synthetic', '--far=.1', '--far=1e-4', '--out', out)
  assert {*read(out)['synthetic']['tar_at_far']} == {'0.1', '0.0001'}
  assert 'FAR 1e-4 cannot be measured with 150 impostor pairs' in text


def face(folder, name, image):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, 'png')


@pytest.fixture
def faces():
  """Four people with four faces each, ``[4, 4, 112, 112, 3]``."""
  images, labels = data.SyntheticFaces(16, 4, seed=0).render(np.arange(16))
  order = np.argsort(labels, kind='stable')
  return images[order].reshape(4, 4, 112, 112, 3)


def write_ijb(folder, faces):
  """Writes two templates a person, of two photographs that are not aligned."""
  tid_mid, points, pairs = '', '', ''
  for person, own in enumerate(faces):
    for k, image in enumerate(own):
      name = f'{4 * person + k + 1}.png'
      # The face lies 40 pixels to the right and 10 down in the photograph.
      photograph = np.zeros((160, 200, 3), np.uint8)
      photograph[10:122, 40:152] = image
      face(folder / 'loose_crop', name, photograph)
      moved = alignment.TEMPLATE + np.array([40, 10])
      numbers = ' '.join(map(str, moved.ravel().tolist()))
      tid_mid += f'{name} {2 * person + k // 2 + 1} {k}\n'
      points += f'{name} {numbers} 0.9\n'
  for a in range(8):
    for b in range(a):
      pairs += f'{a + 1} {b + 1} {int(a // 2 == b // 2)}\n'
  meta = folder / 'meta'
  meta.mkdir()
  (meta / 'ijbc_face_tid_mid.txt').write_text(tid_mid)
  (meta / 'ijbc_name_5pts_score.txt').write_text(points)
  (meta / 'ijbc_template_pair_label.txt').write_text(pairs)
  return meta / 'ijbc_name_5pts_score.txt'


def test_ijb_from_a_network_and_from_embeddings(
  tmp_path, run, evaluate, faces, network
):
  landmarks = write_ijb(tmp_path / 'ijbc', faces)
  text = evaluate('--ijb=ijbc', '--out=a')
  assert '16 images' in text and '8 templates, 28 pairs, 4 genuine' in text
  found = read(tmp_path / 'a')['IJB-C']
  assert found['path'] == 'ijbc' and found['protocol'] == 'templates'
  assert (tmp_path / 'a' / 'scores_IJB-C.npz').is_file()

  # The photographs are aligned: the scores are those of the faces themselves.
  from elasticface_jax import evaluation

  rows = network.embed(faces.reshape(-1, 112, 112, 3))
  ijb = evaluation.read_ijb(tmp_path / 'ijbc')
  expected = evaluation.evaluate_ijb(ijb, rows)['IJB-C']
  with np.load(tmp_path / 'a' / 'scores_IJB-C.npz') as saved:
    np.testing.assert_allclose(saved['scores'], expected.scores, 0, 1e-6)

  run(
    'embed', 'ijbc/loose_crop', '--checkpoint=runs/q', '--landmarks', landmarks,
    '--out=e',
  )  # fmt: skip
  evaluate_saved = ('evaluate', '--embeddings=e', '--ijb=ijbc')
  text = run(*evaluate_saved, '--out=b')
  assert text.startswith('e\n')
  with (
    np.load(tmp_path / 'a' / 'scores_IJB-C.npz') as computed,
    np.load(tmp_path / 'b' / 'scores_IJB-C.npz') as saved,
  ):
    np.testing.assert_array_equal(computed['scores'], saved['scores'])
  assert read(tmp_path / 'b')['IJB-C']['fingerprint'] == network.fingerprint

  flags = '--normalize-before-pooling', '--no-detector-scores'
  text = run(*evaluate_saved, *flags)
  assert 'keep_norms=False, weight_by_detector=False' in text


def test_images_that_are_missing_are_found_before_any_work(
  tmp_path, evaluate, faces, network
):
  write_ijb(tmp_path / 'ijbc', faces)
  images = sorted((tmp_path / 'ijbc' / 'loose_crop').iterdir())
  for path in images[3:5]:
    path.unlink()
  line = evaluate('--ijb=ijbc', code=2)
  assert 'No such file, the first of 2 missing images of 16 of IJB-C' in line
  assert not network.sizes


def test_image_in_two_templates_is_said_once(tmp_path, evaluate, faces):
  points = write_ijb(tmp_path / 'ijbc', faces)
  again = points.read_text().splitlines()[0]
  points.write_text(points.read_text() + again + '\n')
  tid_mid = points.with_name('ijbc_face_tid_mid.txt')
  tid_mid.write_text(tid_mid.read_text() + '1.png 8 9\n')
  # `evaluate` asserts that nothing is on stderr.
  text = evaluate('--ijb=ijbc')
  assert text.count('image 1.png is in templates 1 and 8') == 1


def test_landmarks_outside_of_an_image_are_said(
  tmp_path, evaluate, faces, monkeypatch
):
  # A black face has an embedding too.
  embed = Pixels.embed
  monkeypatch.setattr(Pixels, 'embed', lambda *given: embed(*given) + 1)
  landmarks = write_ijb(tmp_path / 'ijbc', faces)
  first, *others = landmarks.read_text().splitlines()
  name, *numbers, score = first.split()
  moved = ' '.join(str(float(number) + 900) for number in numbers)
  lines = [f'{name} {moved} {score}', *others, '']
  landmarks.write_text('\n'.join(lines))
  assert (
    'IJB-C: faces of 1 images are black, as their landmarks lie outside of '
    'them, such as those of ijbc/loose_crop/1.png'
  ) in evaluate('--ijb=ijbc')


def write_megaface(folder, faces):
  names = [f'P {p}/P {p}_{k}.png' for p in range(2) for k in range(4)]
  for name, image in zip(names, faces.reshape(-1, 112, 112, 3), strict=False):
    face(folder / 'facescrub_images', name, image)
  others = [f'0/{k}@N0/{k}_0.png' for k in range(10)]
  for k, name in enumerate(others):
    image = np.roll(faces[2 + k % 2, k % 4], 9 * k, axis=1)
    face(folder / 'megaface_images', name, image)
  (folder / 'facescrub_lst').write_text('\n'.join(names) + '\n')
  (folder / 'megaface_lst').write_text('\n'.join(others) + '\n')


def write_tinyface(folder, faces):
  for p, own in enumerate(faces[:3], 1):
    face(folder / 'Probe', f'{p}_1.png', own[0])
    face(folder / 'Gallery_Match', f'{p}_2.png', own[1])
  face(folder / 'Gallery_Distractor', 'd.png', faces[3, 0])


def test_several_benchmarks_at_once(tmp_path, evaluate, faces):
  write_megaface(tmp_path / 'megaface', faces)
  write_tinyface(tmp_path / 'tinyface', faces)
  text = evaluate(
    '--pairs=synthetic', '--megaface=megaface', '--tinyface=tinyface', '--out=a'
  )
  assert f'{600 + 18 + 7:,} images took' in text
  results = read(tmp_path / 'a')
  assert {results[name]['protocol'] for name in results} == {
    'pairs', 'identification',
  }  # fmt: skip
  for name, result in results.items():
    assert result['path'] == name.split()[0].lower()
    assert name in text

  # One that is not aligned.
  face(tmp_path / 'tinyface' / 'Probe', '2_1.png', faces[0, 0, :100])
  line = evaluate('--tinyface=tinyface', code=2)
  assert '2_1.png: the image is 112x100, not 112x112' in line


@pytest.mark.parametrize(
  'words, message',
  [
    ([], 'nothing to evaluate on: give --pairs, --ijb, --megaface or'),
    (['--pairs=synthetic', '--pairs=synthetic'], "two sets are called 'synth"),
    (['--pairs=synthetic', '--folds=301'], 'choose folds from 2 to 300'),
    (['--pairs=synthetic', '--far=2'], '2 is no rate between 0 and 1'),
    (['--pairs=synthetic', '--far=often'], 'far: often is no rate between 0'),
    (['--pairs=synthetic', '--no-detector-scores'], 'is for --ijb, of which'),
    (['--ijb=ijbc', '--far=1e-5'], '--far is for pair sets, of which there is'),
    (['--ijb=nowhere'], 'nowhere'),
    (['--pairs=synthetic', '--embeddings=e'], 'not allowed with argument'),
  ],
)
def test_mistakes_are_found_before_any_work(words, message, evaluate, network):
  assert message in evaluate(*words, code=2)
  assert not network.sizes


def test_mistakes_with_embeddings(tmp_path, run):
  folder = tmp_path / 'e'
  folder.mkdir()
  np.save(folder / 'embeddings.npy', np.eye(8, dtype=np.float32))
  words = 'evaluate', '--embeddings=e'
  assert 'e has no same.npy, so it is no pair set' in run(*words, code=2)
  assert '--step is for --checkpoint, of' in run(*words, '--step=1', code=2)
  line = run(*words, '--pairs=lfw.bin', code=2)
  assert (
    '--pairs lfw.bin needs a network (--checkpoint); with --embeddings' in line
  )
  np.save(folder / 'same.npy', np.array([True, False] * 2))
  line = run(*words, code=2)
  assert 'e: 4 pairs are too few for 10 folds' in line
  assert '4 images' not in run(*words, '--folds=2', '--out=r').splitlines()[-2]
  assert read(tmp_path / 'r')['e']['path'] == 'e'


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_embeddings_that_are_not_finite_name_the_set(
  evaluate, network, monkeypatch, bad
):
  monkeypatch.setattr(
    Pixels, 'embed', lambda _, images: np.full((len(images), 38), bad)
  )
  line = evaluate('--pairs=synthetic', code=2)
  assert line.startswith('elasticface: synthetic: embedding row 0')
