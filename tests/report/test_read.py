# SPDX-License-Identifier: Apache-2.0
"""Folders of any age and state become data and notes, or one line."""

import json
import shutil

import numpy as np
import pytest

from elasticface_jax import evaluation, pair_sets, report
from elasticface_jax.errors import InputError
from elasticface_jax.report.read import differing_fields


@pytest.fixture
def run(two_runs, tmp_path):
  return shutil.copytree(two_runs[0], tmp_path / 'run')


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def notes_of(run):
  (found,) = report.read_runs([run])
  notes = [*found.notes, *(n for r in found.results.values() for n in r.notes)]
  return found, [str(note) for note in notes]


def test_finished_run_lacks_nothing(run, pair_file):
  found, notes = notes_of(run)
  assert not notes
  assert (found.name, found.step, found.last_step) == ('run', 60, 60)
  assert len(found.fingerprint) == 64
  result = found.results['faces']
  assert result.step == 60 and result.is_of_pairs
  with np.load(run / 'scores_faces.npz') as saved:
    scores, same = saved['scores'], saved['same']
  np.testing.assert_array_equal(result.same, same)
  assert result.curve.num_genuine == result.curve.num_impostors == 200
  genuine = sorted((s, k) for k, s in enumerate(scores) if same[k])
  impostor = sorted((-s, k) for k, s in enumerate(scores) if not same[k])
  assert result.lowest == [(k, s) for s, k in genuine[:6]]
  assert result.highest == [(k, -s) for s, k in impostor[:6]]
  assert result.summary['path'] == str(pair_file)


def test_folder_of_evaluate(run, tmp_path):
  out = tmp_path / 'out'
  out.mkdir()
  for name in ('results.json', 'scores_faces.npz'):
    shutil.copy(run / name, out)
  found, notes = notes_of(out)
  assert not notes and not found.config and found.fingerprint is None
  assert found.results['faces'].curve is not None


@pytest.mark.parametrize('age', ['no files', 'no origin'])
def test_old_folders_say_what_is_missing_and_how_to_write_it(
  run, pair_file, age
):
  def strip(results):
    for name in ('title', 'checkpoint', 'path', 'step'):
      del results['faces'][name]

  edit(run / 'results.json', strip)
  if age == 'no files':
    (run / 'scores_faces.npz').unlink()
  found, notes = notes_of(run)
  result = found.results['faces']
  assert result.step == 60
  assert (result.curve is None) == (age == 'no files')
  assert (
    notes == []
    if age == 'no origin'
    else [
      'There is no scores_faces.npz: ROC, DET, score histogram and hardest '
      'pairs of step 60 are not shown. This command writes it: elasticface '
      f'evaluate --checkpoint {run} --step 60 --pairs {pair_file} --out DIR'
    ]
  )


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda p: p.write_bytes(b'PK\3\4 not'), 'is damaged'),
    (lambda p: p.write_bytes(p.read_bytes()[:300]), 'is damaged'),
    (lambda p: p.write_bytes(b''), 'is damaged'),
    (lambda p: np.savez(p, scores=np.ones(3)), 'is damaged'),
    (
      lambda p: np.savez(p, scores=np.ones(3), same=np.ones(2, bool)),
      'holds no',
    ),
    (lambda p: np.savez(p, scores=np.ones(3), same=np.ones(3)), 'holds no'),
    (
      lambda p: np.savez(p, scores=np.array([np.nan]), same=np.ones(1, bool)),
      'not finite',
    ),
    (
      lambda p: np.savez(p, scores=np.ones(3), same=np.ones(3, bool)),
      'of another evaluation',
    ),
    (
      lambda p: np.savez(
        p, scores=np.zeros(400), same=np.arange(400) % 2 == 0
      ),
      'of another evaluation',
    ),
  ],
)  # fmt: skip
def test_scores_that_cannot_be_used_are_said(run, damage, words):
  damage(run / 'scores_faces.npz')
  found, (note,) = notes_of(run)
  assert note.startswith('scores_faces.npz') and words in note
  assert found.results['faces'].curve is None
  assert found.results['faces'].summary['accuracy'] > 0.5


def test_run_in_progress(run):
  (run / 'results.json').unlink()
  (run / 'scores_faces.npz').unlink()
  edit(run / 'config.json', lambda c: c.update(total_steps=1000))
  found, notes = notes_of(run)
  assert notes[0].startswith('The run is not finished: step 60 of 1,000.')
  assert notes[1].startswith('There is no scores_faces.npz')
  assert found.results['faces'].step == 60


def test_run_that_went_on_shows_its_newer_verification(run):
  row = {'step': 80, 'pairs': 'faces', 'accuracy': 0.99, 'accuracy_std': 0.0}
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps(row) + '\n')
  found, notes = notes_of(run)
  result = found.results['faces']
  assert result.summary['accuracy'] == 0.99 and result.step == 80
  assert result.curve is None and '--step 80' in notes[-1]


def test_values_of_no_use_are_left_out(run):
  def spoil(results):
    results['faces'] |= {'auc': float('nan'), 'eer': None, 'new': [1, 'x']}
    results['faces']['tar_at_far'] = {
      'x': 3, '0.1': {'far_target': 0.1}, '0.01': {
        'far_target': 0.01, 'num_impostors': 200, 'tar': float('nan'),
      },
    }  # fmt: skip
    results['odd'] = 7

  edit(run / 'results.json', spoil)
  found, _ = notes_of(run)
  assert list(found.results) == ['faces']
  summary = found.results['faces'].summary
  assert 'auc' not in summary and 'eer' not in summary
  assert summary['new'] == [1, 'x']
  (point,) = summary['tar_at_far'].values()
  assert point['tar'] is None and point['threshold'] is None


def test_gaps_of_curves_are_said(run):
  rows = (run / 'metrics.jsonl').read_text().splitlines()
  first = json.loads(rows[0]) | {'loss': float('nan'), 'accuracy': None}
  rows[0] = json.dumps(first)
  (run / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')
  found, notes = notes_of(run)
  assert notes == ['2 values of metrics.jsonl are not finite: curves have gaps '
                   'there.']  # fmt: skip
  assert np.isnan(found.trained[0]['loss'])


def test_without_checkpoints_and_manifest(run):
  shutil.rmtree(run / 'checkpoints')
  (run / 'manifest.json').unlink()
  found, notes = notes_of(run)
  assert found.fingerprint is None and found.last_step == 60
  assert notes[0].startswith('There is no manifest.json')
  assert 'There is no fingerprint: ' in notes[1]


def test_pairs_of_one_kind_have_a_histogram_and_no_curve(tmp_path):
  result = evaluation.verify(np.eye(8), [True] * 4, folds=2)
  pair_sets.write_results(
    tmp_path,
    {'a': result},
    origin={'title': 'x', 'checkpoint': 'x.pth', 'step': None},
    paths={'a': 'a.bin'},
  )
  found, notes = notes_of(tmp_path)
  result = found.results['a']
  assert not notes and result.step is None
  assert result.curve is None and result.histogram.genuine.sum() == 4
  assert len(result.lowest) == 4 and not result.highest


@pytest.mark.parametrize('depth', [1, 2])
def test_equal_names_are_told_apart(two_runs, tmp_path, depth):
  ends = [('a', 'run'), ('b', 'run')]
  if depth == 2:
    ends = [('a', 'x', 'run'), ('b', 'x', 'run')]
  folders = [tmp_path.joinpath(*end) for end in ends]
  for folder in folders:
    shutil.copytree(two_runs[0], folder)
  names = [run.name for run in report.read_runs(folders)]
  assert names == ['/'.join(end) for end in ends]


def test_only_fields_that_differ(two_runs):
  runs = report.read_runs(two_runs)
  assert differing_fields(runs) == [
    'loss.gradient', 'loss.margin', 'loss.name', 'loss.scale',
  ]  # fmt: skip
  assert differing_fields(runs[:1]) == []


def test_errors_are_one_line(two_runs, tmp_path):
  run = two_runs[0]
  empty, file = tmp_path / 'empty', tmp_path / 'file'
  empty.mkdir()
  file.touch()
  new = tmp_path / 'new'
  new.mkdir()
  shutil.copy(run / 'config.json', new)
  remedy = '; give the --workdir of a run, or a folder of `evaluate --out`'
  for folders, message in (
    ([tmp_path / 'none'], f'{tmp_path}/none does not exist{remedy}'),
    ([file], f'{file} is no folder{remedy}'),
    ([empty], f'{empty} holds neither config.json nor results.json{remedy}'),
    ([run, run / '.'], f'{run} is given twice; name each folder once'),
    (
      [new],
      f'{new} has no results yet; train until the first log_every steps, or '
      f'write some with elasticface evaluate --checkpoint {new} --pairs FILE '
      '--out DIR, and report on DIR',
    ),
  ):
    with pytest.raises(InputError) as raised:
      report.read_runs(folders)
    assert str(raised.value) == message


def test_an_accuracy_that_is_no_number_is_no_result_of_pairs(run):
  path = run / 'results.json'
  edit(path, lambda results: results['faces'].update(accuracy='0.99'))
  (found,) = report.read_runs([run])
  assert not found.results['faces'].is_of_pairs
  report.write([found], run / 'report.html')
