# SPDX-License-Identifier: Apache-2.0
"""Mistakes at the command line: one line, exit code 2, no traceback."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import cli, data

QUICKSTART = Path(__file__).parents[1] / 'configs' / 'quickstart.py'


@pytest.fixture
def fails(capsys):
  """``fails(*arguments)``: the one line that the command ends with."""

  def run(*arguments):
    try:
      code = cli.main([str(a) for a in arguments])
    except SystemExit as error:
      code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err

  return run


@pytest.fixture
def run(capsys):
  """``run(arguments)``: exit code, and all that was said."""

  def run(arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err

  return run


@pytest.fixture
def train_fails(fails, tmp_path):
  def run(*overrides, config=QUICKSTART):
    told = fails(
      'train', '--config', config, '--workdir', tmp_path / 'w', *overrides
    )
    assert not (tmp_path / 'w').exists()  # Refused before anything is made.
    return told

  return run


def test_no_such_command(fails):
  assert "'tain'" in fails('tain')


def test_missing_argument_names_it(fails):
  assert '--workdir' in fails('train', '--config', QUICKSTART)


def test_stray_arguments(fails):
  assert "'more'" in fails('fingerprint', 'w', 'more')


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    ('data.source=/no/such/folder', '/no/such/folder'),
    ('head.num_blocks=5000', 'head.num_blocks=5000'),
    ('head.num_blocks=12', '8 devices do not divide the blocks'),
    ('data.batch_size=16', '8 devices do not divide the groups'),
    ('eval.pairs=/no/such.bin', '/no/such.bin'),
  ],
)
def test_value_that_cannot_be(train_fails, override, told):
  # On the eight devices of the test suite, so with eight groups.
  fitting = ('--config.data.batch_size=128', '--config.head.num_blocks=8')
  assert told in train_fails(*fitting, f'--config.{override}')


def test_folders_that_are_no_runs(fails, tmp_path):
  assert 'no checkpoints' in fails('fingerprint', tmp_path)
  told = fails('evaluate', '--checkpoint', tmp_path, '--pairs', 'synthetic')
  assert 'config.json' in told and str(tmp_path) in told
  assert 'no such folder' in fails('inspect', tmp_path / 'nothing')


@pytest.fixture
def people(tmp_path):
  """Twelve drawn images of three people, a folder for each."""
  root = tmp_path / 'people'
  images, labels = data.SyntheticFaces(12, 3, seed=0).render(np.arange(12))
  for number, (image, label) in enumerate(zip(images, labels, strict=True)):
    path = root / f'person_{label}' / f'person_{label}_{number // 3 + 1:04}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
  return root


def test_from_a_folder_to_shards_that_are_sound(
  people, fails, tmp_path, capsys
):
  out, report = tmp_path / 'shards', tmp_path / 'report'
  assert cli.main(['prepare', str(people), str(out), '--shards', '2']) == 0
  said = capsys.readouterr().out
  assert '12 images of 3 classes in 2 shards of tfrecord' in said
  fingerprint = data.open_encoded(people).fingerprint
  assert fingerprint in said
  assert cli.main(['inspect', str(out), '--out', str(report)]) == 0
  said = capsys.readouterr().out
  assert fingerprint in said and said.endswith('ok\n')
  assert sorted(path.name for path in report.iterdir()) == [
    'images_per_class.png',
    'inspection.json',
  ]
  assert f'{out} exists' in fails('prepare', people, out)
  assert 'riegeli' in fails('prepare', people, out, '--format', 'riegeli')


def test_inspect_tells_what_is_bad_and_mends_it(
  people, fails, tmp_path, capsys
):
  bad = next(people.glob('*/*.jpg'))
  bad.write_bytes(bad.read_bytes()[:-100])
  told = fails('inspect', people)
  assert str(people) in told and '--fix' in told
  clean = tmp_path / 'clean'
  assert cli.main(['inspect', str(people), '--fix', str(clean)]) == 0
  assert f'bad: {bad}: ' in capsys.readouterr().out
  assert cli.main(['inspect', str(clean)]) == 0
  assert data.RecSource(clean).num_images == 11
  assert f'{clean} exists' in fails('inspect', people, '--fix', clean)


@pytest.fixture
def rec(tmp_path):
  """The same twelve images in MS1MV2's layout."""
  images, labels = data.SyntheticFaces(12, 3, seed=0).render(np.arange(12))
  bodies = []
  for row in np.argsort(labels, kind='stable'):
    file = io.BytesIO()
    Image.fromarray(images[row]).save(file, 'jpeg')
    bodies.append((file.getvalue(), int(labels[row])))
  data.write_rec_folder(tmp_path / 'rec', bodies, 3)
  return tmp_path / 'rec'


def at(path, offset, count, new):
  content = path.read_bytes()
  path.write_bytes(content[:offset] + new + content[offset + count :])


class Malicious:
  def __reduce__(self):
    return os.system, ('touch executed',)


BROKEN = {
  'truncated rec': (
    lambda rec: os.truncate(rec / 'train.rec', 9_000),
    'cut off',
  ),
  'idx past the end': (
    lambda rec: at(rec / 'train.idx', 2, 1, b'9999999'),
    'should be at byte 9999999',
  ),
  'bad magic': (
    lambda rec: at(rec / 'train.rec', 0, 4, b'abcd'),
    'key 1 at byte 0: bad magic 61626364',
  ),
  'undecodable JPEG': (
    lambda rec: at(rec / 'train.rec', 300, 400, bytes(400)),
    'key 1 at byte 0: a damaged image',
  ),
  'label out of range': (
    lambda rec: at(rec / 'train.rec', 12, 4, struct.pack('<f', 3.0)),
    'key 1 at byte 0: label 3 is not an integer in [0, 3)',
  ),
  'missing property': (
    lambda rec: (rec / 'property').unlink(),
    'property is missing; write the line `3,112,112` into it',
  ),
  'empty folder': (
    lambda rec: [path.unlink() for path in rec.iterdir()],
    'neither train.rec, nor dataset_info.json, nor folders of images',
  ),
  'a text file named .rec': (
    lambda rec: (rec / 'train.rec').write_text('some text\n' * 2_000),
    'bad magic 736f6d65',
  ),
  'a malicious pickle': (
    lambda rec: (rec / 'lfw.bin').write_bytes(pickle.dumps(Malicious())),
    'posix.system',
  ),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_data_end_in_a_message_of_their_own(
  kind, rec, run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  damage, words = BROKEN[kind]
  damage(rec)
  pairs = rec / 'lfw.bin'
  code, said = run(['inspect', pairs if pairs.exists() else rec])
  assert code == 2
  assert words in said, said
  assert said.splitlines()[-1].startswith('elasticface: ')
  assert not (tmp_path / 'executed').exists()


def test_a_rec_is_given_by_its_folder(rec, fails):
  told = fails('inspect', rec / 'train.rec')
  assert 'give the folder that holds train.rec' in told


def test_pairs_from_a_folder_and_a_list(people, fails, tmp_path, capsys):
  pairs = tmp_path / 'pairs.txt'
  pairs.write_text('1\t1\nperson_0\t1\t4\nperson_1\t2\tperson_2\t3\n')
  made = [tmp_path / name for name in ('mine.npz', 'mine.bin', 'again.npz')]
  for source, out, *rest in (
    (people, made[0], '--list', pairs),
    (people, made[1], '--list', pairs),
    (made[1], made[2]),
  ):
    assert cli.main(['prepare', *map(str, (source, out, *rest))]) == 0
    assert '2: 1 same, 1 different' in capsys.readouterr().out
  first, *others = map(data.read_pairs, made)
  assert first.same.tolist() == [True, False]
  for other in others:
    np.testing.assert_array_equal(other.images, first.images)
  assert str(made[0]) in fails('prepare', people, made[0], '--list', pairs)
  pairs.write_text('person_0\t1\t9\n')
  told = fails('prepare', people, tmp_path / 'new.npz', '--list', pairs)
  assert 'person_0_0009' in told and str(pairs) in told
