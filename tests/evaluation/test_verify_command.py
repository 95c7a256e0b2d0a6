# SPDX-License-Identifier: Apache-2.0
"""`elasticface verify`, with a network that costs nothing."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import cli, data, evaluation, runtime
from elasticface_jax.commands import _checkpoint

from .pixels import Pixels


@pytest.fixture
def weights(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  opened = Pixels(tmp_path / 'runs' / 'q')
  opened.path.mkdir(parents=True)
  monkeypatch.setattr(_checkpoint, 'open_network', lambda args: opened)
  monkeypatch.setattr(runtime, 'set_environment', lambda: None)
  images, _ = data.synthetic_pairs(20, 5)
  for name, image in zip('abcd', images[:4], strict=True):
    Image.fromarray(image).save(f'{name}.png')
  return opened


@pytest.fixture
def results(weights):
  """Results of `evaluate --out`, on 150 impostor pairs."""
  out = weights.path / 'r'
  words = 'evaluate', '--checkpoint', weights.path, '--pairs=synthetic'
  assert cli.main([*map(str, words), '--out', str(out)]) == 0
  return out


@pytest.fixture
def verify(weights, capsys):
  def run(*arguments, code=0):
    capsys.readouterr()
    words = ['verify', '--checkpoint', str(weights.path), *map(str, arguments)]
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert err.count('\n') == (code == 2)
    return out if not code else err

  return run


def test_score_threshold_and_verdict(verify, results, weights):
  written = json.loads((results / 'results.json').read_text())['synthetic']
  point = written['tar_at_far']['0.01']
  images = np.stack([data.read_image(f'{name}.png') for name in 'ab'])
  # The score is that of a pair set with these two images.
  twice = np.concatenate([weights.embed(images)] * 2)
  score = evaluation.verify(twice, [True, True], folds=2).scores[0]
  low, high = point['far_interval']
  for rises, answer in ((0, 'yes'), (1, 'no')):
    written['tar_at_far']['0.01']['threshold'] = score + 1e-6 * (2 * rises - 1)
    (results / 'results.json').write_text(json.dumps({'synthetic': written}))
    out = verify('a.png', 'b.png', '--results', results, '--far', '1e-2')
    assert out.splitlines() == [
      'q, step 160',
      f'a.png and b.png: cosine {score:.4f}',
      f'threshold {score:.4f}, for FAR 0.01 on synthetic of '
      f'{results}/results.json: there it accepts {100 * point["far"]:.3g} % '
      f'of 150 impostor pairs, 95 % interval {100 * low:.2g} '
      f'to {100 * high:.2g} %',
      f'same person: {answer}',
    ]


def test_a_threshold_that_is_given(verify):
  for threshold, answer in ((-1, 'yes'), (1, 'no')):
    out = verify('a.png', 'd.png', '--threshold', threshold)
    assert out.endswith(f'same person: {answer}\n')
    assert 'as given; its FAR is not known' in out
  assert 'cosine 1.0000' in verify('a.png', 'a.png', '--threshold', 0)


def test_images_without_an_embedding(verify, weights, monkeypatch):
  Image.new('RGB', (112, 112), 'grey').save('grey.png')
  out = verify('grey.png', 'grey.png', '--threshold', 0.1)
  assert 'cosine 0.0000' in out and out.endswith('no\n')
  monkeypatch.setattr(
    Pixels, 'embed', lambda _, images: np.full((len(images), 4), np.nan)
  )
  err = verify('a.png', 'b.png', '--threshold', 0.1, code=2)
  assert 'a.png: its embedding by' in err and 'not finite' in err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--far', '0'], '--far 0: a share between 0 and 1'),
    (['--far', 'nan'], '--far nan: a share between 0 and 1'),
    (['--threshold', '1.5'], '--threshold 1.5: a cosine from -1 to 1'),
    (['--threshold', 'nan'], '--threshold nan: a cosine'),
    (['--threshold', '0', '--far', '0.01'], '--far 0.01 is for a measured'),
    (['--threshold', '0', '--set', 'lfw'], '--set lfw is for a measured'),
    (['--threshold', '0', '--results', 'r'], 'not allowed with'),
    ([], 'no threshold is known: there is no'),
    ([], 'elasticface evaluate --checkpoint'),
  ],
)
def test_mistakes(verify, arguments, message):
  try:
    assert message in verify('a.png', 'b.png', *arguments, code=2)
  except SystemExit as error:
    assert error.code == 2


def test_images_of_another_size(verify):
  Image.new('RGB', (250, 240)).save('photo.png')
  err = verify('a.png', 'photo.png', '--threshold', 0, code=2)
  assert 'photo.png: the image is 250x240, not 112x112' in err


def test_a_far_that_is_not_there(verify, results):
  err = verify('a.png', 'b.png', '--results', results, code=2)
  assert 'FAR 0.001 cannot be measured with the 150 impostor pairs of' in err
  assert '--far (there: 0.01)' in err
  # All scores are there: any FAR that the pairs can measure.
  scores_file = results / 'scores_synthetic.npz'
  with np.load(scores_file) as saved:
    scores, same = saved['scores'], saved['same']
  out = verify('a.png', 'b.png', '--results', results, '--far=.05')
  threshold = evaluation.threshold_at_far(scores, same, 0.05)
  assert f'threshold {threshold:.4f}, for FAR 0.05' in out
  assert 'accepts 4.67 % of 150 impostor pairs' in out
  scores_file.unlink()
  err = verify('a.png', 'b.png', '--results', results, '--far=.05', code=2)
  assert 'has no threshold for FAR 0.05 on synthetic; choose' in err


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is damaged'),
    (b'no arrays', 'is damaged'),
    ({'scores': np.arange(300.0)}, 'is of another evaluation than results'),
    ({'scores': np.array(['1'] * 300)}, 'holds <U1 as scores'),
  ],
)
def test_scores_that_are_not_those_of_the_results(
  verify, results, content, message
):
  file = results / 'scores_synthetic.npz'
  with np.load(file) as saved:
    same = saved['same']
  if isinstance(content, bytes):
    file.write_bytes(content)
  else:
    np.savez(file, same=same, **content)
  err = verify('a.png', 'b.png', '--results', results, '--far=.05', code=2)
  assert f'{results}: scores_synthetic.npz {message}' in err
  assert 'evaluate again, or remove that file' in err


def test_the_best_score_is_an_impostors(verify, results):
  change(results, lambda r: point_of(r).update(threshold=None))
  err = verify('a.png', 'b.png', '--results', results, '--far=.01', code=2)
  assert 'no threshold has FAR 0.01, since impostor pairs' in err


def point_of(results):
  return results['synthetic']['tar_at_far']['0.01']


def change(folder, edit):
  path = folder / 'results.json'
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))


def test_several_sets(verify, results):
  change(results, lambda r: r.update(lfw=r['synthetic'], one={}))
  change(results, lambda r: r['one'].update(tar_at_far=None))
  ask = ['a.png', 'b.png', '--results', results, '--far=.01']
  err = verify(*ask, code=2)
  assert 'has thresholds of synthetic, lfw; choose one by --set' in err
  assert 'on lfw of' in verify(*ask, '--set', 'lfw')
  assert '--set one: ' in verify(*ask, '--set', 'one', code=2)
  # A threshold for scores of templates is none for images.
  change(results, lambda r: r['lfw'].update(protocol='templates'))
  assert 'on synthetic of' in verify(*ask)
  change(results, lambda r: r.pop('synthetic'))
  assert 'no pair set with genuine and impostor pairs' in verify(*ask, code=2)


@pytest.mark.parametrize(
  'edit',
  [
    lambda r: r.update(synthetic=7),
    lambda r: point_of(r).pop('num_impostors'),
    lambda r: point_of(r).update(far_interval=None),
    lambda r: point_of(r).update(threshold='high'),
    lambda r: r['synthetic']['tar_at_far'].update(often=point_of(r)),
  ],
)
def test_results_that_were_edited(verify, results, edit):
  change(results, edit)
  err = verify('a.png', 'b.png', '--results', results, '--far=.01', code=2)
  assert 'is not what an evaluation wrote' in err


def test_results_of_another_network(verify, results, weights):
  ask = ['a.png', 'b.png', '--far=.01', '--results']
  weights.fingerprint, weights.step = 'cd' * 32, 200
  err = verify(*ask, results, code=2)
  assert (
    'belongs to another network (q, step 160, fingerprint abababababab), not '
    'to q, step 200; elasticface evaluate' in err
  )
  change(results, lambda r: r['synthetic'].pop('fingerprint'))
  out = verify(*ask, results)
  assert 'which network these results are of is not recorded' in out


def test_results_of_a_run(verify, results, weights, monkeypatch):
  shutil.move(results / 'results.json', weights.path)
  ask = ['a.png', 'b.png', '--far=.01']
  # The state of a run is large: its step and folder suffice.
  weights.fingerprint = None
  assert 'not recorded' not in verify(*ask)
  weights.fingerprint, weights.step = 'cd' * 32, 80
  err = verify(*ask, code=2)
  assert 'another network (q, step 160' in err and 'not to q, step 80' in err
