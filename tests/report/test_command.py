# SPDX-License-Identifier: Apache-2.0
"""`elasticface report`: one file, or one line."""

import shutil

import pytest

from elasticface_jax import cli


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
