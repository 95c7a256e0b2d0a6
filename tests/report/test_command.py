# SPDX-License-Identifier: Apache-2.0
"""`elasticface report`: one file, or one line."""

import shutil

import pytest

from elasticface_jax import cli

from .study_folders import edit


def test_writes_a_page_and_says_what_is_missing(two_runs, tmp_path, capsys):
  run = shutil.copytree(two_runs[0], tmp_path / 'run')
  (run / 'scores_faces.npz').unlink()
  out = tmp_path / 'report.html'
  out.write_text('an older page')
  assert (
    cli.main(['report', str(run), str(two_runs[1]), '--out', str(out)]) == 0
  )
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].startswith(f'{run}, faces: There is no scores_faces.npz: ')
  assert printed[1:] == [f'{out}: {out.stat().st_size / 1e6:.1f} MB']
  text = out.read_text()
  assert text.startswith('<!DOCTYPE html>') and 'There is no scores_' in text
  assert sorted(p.name for p in tmp_path.iterdir()) == ['report.html', 'run']


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('{run} --out {run}/results.json', 'give a name that ends in .html'),
    ('{run} --out {run}', 'give a name that ends in .html'),
    ('{run} --out {tmp}/none/a.html', 'there is no folder'),
    ('{run} --out {tmp}/folder.html', 'is a folder; give the name of a file'),
    ('{run} {run} --out {tmp}/a.html', 'is given twice'),
    ('{tmp}/none --out {tmp}/a.html', 'does not exist; give the --workdir'),
    ('{run}', 'required: --out'),
    ('--out {tmp}/a.html', 'required: W'),
  ],
)
def test_mistakes_end_in_one_line(two_runs, tmp_path, capsys, words, message):
  (tmp_path / 'folder.html').mkdir()
  before = sorted(two_runs[0].iterdir())
  argv = words.format(run=two_runs[0], tmp=tmp_path).split()
  try:
    code = cli.main(['report', *argv])
  except SystemExit as error:
    code = error.code
  assert code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('elasticface: ') and message in line
  assert sorted(two_runs[0].iterdir()) == before
  assert [p.name for p in tmp_path.iterdir()] == ['folder.html']


def test_damaged_files_of_a_run_are_named(two_runs, tmp_path, capsys):
  out = str(tmp_path / 'a.html')
  for name in ('config.json', 'manifest.json', 'results.json', 'metrics.jsonl'):
    run = shutil.copytree(two_runs[0], tmp_path / name.replace('.', '_'))
    (run / name).write_text('{"cut\n{"step": 1, "loss": 1}\n')
    assert cli.main(['report', str(run), '--out', out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run / name) in line


def test_a_study_has_a_page_of_its_own(study, tmp_path, capsys):
  copied = shutil.copytree(study, tmp_path / 'losses')
  shutil.rmtree(copied / 'arcface' / 'seed_4')
  (copied / 'analysis.json').unlink()
  out = tmp_path / 'study.html'
  assert cli.main(['report', str(copied), '--out', str(out)]) == 0
  text = capsys.readouterr().out
  assert f'{copied}: 1 of 15 runs has not begun: arcface, seed 4.' in text
  assert f'{copied}: There is no analysis.json' in text
  assert text.splitlines()[-1].startswith(f'{out}: ')
  assert out.read_text().startswith('<!DOCTYPE html>')
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ['losses', 'study.html']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (None, ' is a study, which has a page of its own: give it alone, or runs'),
    (lambda s: s.update(version=2), 'is of version 2'),
    (lambda s: s.pop('seeds'), 'is not what a study wrote; was it edited?'),
    (lambda s: s.update(seeds=[]), 'is not what a study wrote'),
    (lambda s: s.update(configs={'a': 3}), 'is not what a study wrote'),
    ('{"cut', 'study.json is not JSON'),
  ],
)
def test_mistakes_with_studies_end_in_one_line(
  study, two_runs, tmp_path, capsys, change, message
):
  copied = shutil.copytree(study, tmp_path / 'losses')
  folders = [str(copied)]
  if change is None:
    folders.insert(0, str(two_runs[0]))
  elif isinstance(change, str):
    (copied / 'study.json').write_text(change)
  else:
    edit(copied / 'study.json', change)
  out = tmp_path / 'a.html'
  assert cli.main(['report', *folders, '--out', str(out)]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('elasticface: ') and message in line
  assert str(copied) in line
  assert not out.exists()
