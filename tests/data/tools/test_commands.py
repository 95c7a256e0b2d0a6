# SPDX-License-Identifier: Apache-2.0
"""`inspect` and `prepare` as they are called: what is wrong is said at once."""

import numpy as np
import pytest

from elasticface_jax import cli, data
from elasticface_jax.data.tools import inspection

from ..conftest import EVERY, encode, rewrite


@pytest.fixture
def fails(capsys):
  """``fails(*words)``: the last line of a command that exits with 2."""

  def call(*words):
    with pytest.raises(SystemExit) as raised:
      raise SystemExit(cli.main([str(word) for word in words]))
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert err.count('elasticface: ') == 1 and 'Traceback' not in err
    call.out = out
    return err.splitlines()[-1]

  return call


@pytest.mark.parametrize('name', ['lfw.bin', 'lfw.npz'])
def test_a_missing_pair_set_is_a_missing_file(fails, tmp_path, name):
  for words in (
    ('inspect', tmp_path / name),
    ('prepare', tmp_path / name, tmp_path / 'out.npz'),
  ):
    message = fails(*words)
    assert f'{tmp_path / name}: No such file' in message
    assert 'give a pair set like lfw.bin' in message


def test_files_in_the_wrong_place(fails, copy, tmp_path, jpegs):
  rec = copy('rec')
  data.write_pairs(tmp_path / 'a.bin', jpegs, [True] * 5)
  (tmp_path / 'pairs.txt').write_text('a\t1\t2\n')
  given = 'give the folder that holds train.rec'
  for words, expected in (
    (('inspect', rec / 'train.rec'), given),
    (('prepare', rec / 'train.rec', tmp_path / 'out.npz'), given),
    (('prepare', rec, tmp_path / 'out.npz'), 'which needs --list PAIRS.TXT'),
    (('prepare', rec, tmp_path / 'out.bin'), 'which needs --list PAIRS.TXT'),
    (('prepare', rec, tmp_path / 'a.bin' / 'out'), 'a.bin is a file; give a'),
    (('prepare', tmp_path / 'a.bin', tmp_path / 'out'), 'the suffix chooses'),
    (('prepare', tmp_path / 'a.bin', tmp_path / 'out.npz', '--list',
      tmp_path / 'pairs.txt'), 'a.bin: is a file; give a folder that holds'),
    (('inspect', tmp_path / 'nothing'), 'no such folder; give a folder with'),
    (('inspect', rec, '--renumber'), 'give --fix DIR, too'),
  ):  # fmt: skip
    assert expected in fails(*words)
  assert not list(tmp_path.glob('out*'))


@pytest.mark.parametrize('option', ['--out', '--fix'])
@pytest.mark.parametrize('place', ['file', 'file/below', 'file/further/below'])
def test_a_place_that_is_no_folder_is_said_before_the_work(
  fails, copy, tmp_path, monkeypatch, option, place
):
  def examine(walk):
    raise AssertionError('the images were read')

  monkeypatch.setattr(inspection, '_examine_all', examine)
  (tmp_path / 'file').write_text('?')
  message = fails('inspect', copy('rec'), option, tmp_path / place)
  assert option in message and str(tmp_path / 'file') in message
  assert (tmp_path / 'file').read_text() == '?'


def test_the_report_is_not_lost_with_the_copy(fails, folder, jpegs, tmp_path):
  rewrite(folder, zip(EVERY, range(10), jpegs, strict=True), '4,112,112')
  message = fails(
    'inspect', folder, '--fix', tmp_path / 'clean', '--out', tmp_path / 'report'
  )
  assert '6 images of 6 people have labels 4 to 9, but `property` says' in (
    message
  )
  assert 'bad: 6 images of 6 people' in fails.out
  assert (tmp_path / 'report' / 'inspection.json').is_file()
  assert not (tmp_path / 'clean').exists()
  renumbered = ['--fix', str(tmp_path / 'clean'), '--renumber']
  assert cli.main(['inspect', str(folder), *renumbered]) == 0
  assert data.RecSource(tmp_path / 'clean').num_classes == 10


def test_sizes_of_pairs_are_printed(tmp_path, capsys):
  photo = encode(np.zeros((160, 160, 3), np.uint8))
  data.write_pairs(tmp_path / 'a.bin', [photo] * 4, [True, False])
  assert cli.main(['inspect', str(tmp_path / 'a.bin')]) == 0
  assert '  note: 4 of 4 images are not 112x112 (160x160): resized and' in (
    capsys.readouterr().out
  )
