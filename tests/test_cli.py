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
from elasticface_jax.errors import InputError
from elasticface_jax.training.loss import by_name

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
QUICKSTART = CONFIGS[0].with_name('quickstart.py')


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


def test_config_that_is_not_there(train_fails):
  told = train_fails(config='configs/nothing.py')
  assert 'configs/nothing.py' in told and 'no such file' in told


def test_unknown_field_suggests_the_right_one(train_fails):
  told = train_fails('--config.optim.learning_rate=1')
  assert 'optim.learning_rate' in told and str(QUICKSTART) in told
  told = train_fails('--config.optim.momentom=1')
  assert 'did you mean optim.momentum?' in told
  told = train_fails('--config.margin=1')
  assert 'did you mean loss.margin?' in told


def test_value_of_another_type(train_fails):
  assert 'total_steps=many' in train_fails('--config.total_steps=many')


def test_unknown_config_argument(train_fails):
  assert "'fast'" in train_fails(config=f'{QUICKSTART}:fast')


def test_stray_arguments(train_fails, fails):
  assert "'--lr'" in train_fails('--lr', '1')
  assert "'extra'" in train_fails('extra')
  assert "'more'" in fails('fingerprint', 'w', 'more')


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    ('data.source=/no/such/folder', '/no/such/folder'),
    ('data.batch_size=40', 'group_size=16'),
    ('head.num_blocks=5000', 'head.num_blocks=5000'),
    ('head.num_blocks=12', '8 devices do not divide the blocks'),
    ('data.batch_size=16', '8 devices do not divide the groups'),
    ('model.name=resnet', "'resnet'"),
    ('model.dtype=float8', "'float8'"),
    ('loss.name=arc', "'arc'"),
    ('loss.pairing=random', "'random'"),
    ('loss.scale=-1', '-1'),
    ('total_steps=0', 'total_steps=0'),
    ('seed=-1', 'seed=-1'),
    ('group_size=0', 'group_size=0'),
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


def test_windows_are_runs_or_none(train_fails):
  for window in (-1, 1, 1023):
    told = train_fails(f'--config.data.window={window}')
    assert f'data.window={window} must be 0' in told and '1024' in told


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
  assert f'{clean} is in use' in fails('inspect', people, '--fix', clean)


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


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_recipes_state_the_same_fields_and_those_of_their_loss(path):
  config = cli.load_config(str(path), ())
  everything = set(cli._fields(cli.load_config(str(QUICKSTART), ())))
  fields = set(cli._fields(config))
  assert fields <= everything
  assert all(f.startswith('loss.') for f in everything - fields)
  by_name(config.loss)


def test_every_loss_has_a_recipe_for_ms1mv2():
  names = {
    cli.load_config(str(path), ()).loss.name
    for path in CONFIGS
    if 'ms1mv2' in path.stem
  }
  quickstart = cli.load_config(str(QUICKSTART), ())
  with pytest.raises(InputError, match='use one of ') as error:
    by_name(quickstart.loss.to_dict() | {'name': 'no loss'})
  known = set(str(error.value).split('use one of ')[1].split(', '))
  assert names == known - {'normface'}
  for name in known:  # The quickstart's has the numbers of all of them.
    by_name(quickstart.loss.to_dict() | {'name': name})


def test_a_loss_that_a_recipe_has_no_numbers_for(train_fails):
  config = QUICKSTART.with_name('arcface_r100_ms1mv2.py')
  told = train_fails('--config.loss.name=adaface', config=f'{config}:smoke')
  assert 'loss.adaface.margin' in told and 'take a recipe of that loss' in told


def test_paper_recipes_follow_the_paper():
  paper = [f'elastic_{x}' for x in ('arc', 'cos', 'arc_plus', 'cos_plus')]
  for stem in (*paper, 'arcface', 'cosface'):
    path = QUICKSTART.with_name(f'{stem}_r100_ms1mv2.py')
    c = cli.load_config(str(path), ())
    assert c.total_steps == 295_672
    assert c.optim.decay_steps == (79_604, 147_836, 216_068, 272_928)
    assert (c.data.batch_size, c.group_size) == (512, 128)
  margins = {
    p.stem: (c.loss.name, c.loss.margin, c.loss.margin_std)
    for p in CONFIGS
    for c in [cli.load_config(str(p), ())]
    if 'margin_std' in c.loss
  }
  assert margins['elastic_arc_r100_ms1mv2'] == ('elastic_arcface', 0.5, 0.05)
  assert margins['elastic_cos_r100_ms1mv2'] == ('elastic_cosface', 0.35, 0.05)
  assert margins['elastic_arc_plus_r100_ms1mv2'] == (
    'elastic_arcface_plus',
    0.5,
    0.0175,
  )
  assert margins['elastic_cos_plus_r100_ms1mv2'] == (
    'elastic_cosface_plus',
    0.35,
    0.025,
  )
  assert margins['cosface_r100_ms1mv2'][:2] == ('cosface', 0.35)
