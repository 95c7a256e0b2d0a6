# SPDX-License-Identifier: Apache-2.0
"""The order of the work, and the states of runs; with a run that only writes.

Whole runs are in test_study.py.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from elasticface_jax import cli, train
from elasticface_jax.errors import InputError, Stopped
from elasticface_jax.studies import folder, variants, work
from elasticface_jax.training import run_lock


def write_run(config, workdir, step=None, results=True):
  """Writes what a run leaves: config, a checkpoint, results, plots."""
  step = config.total_steps if step is None else step
  (workdir / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
  if results:
    content = {spec: {'path': spec, 'step': step} for spec in config.eval.pairs}
    (workdir / 'results.json').write_text(json.dumps(content))
    (workdir / 'training.png').write_text('')


@pytest.fixture
def trained(monkeypatch):
  """The runs that were trained; ``trained.errors[name]`` is raised instead."""

  class Trained(list):
    errors = {}

  runs = Trained()

  def fake(config, workdir):
    name = f'{workdir.parent.name}:{config.seed}'
    runs.append(name)
    if name in runs.errors:
      raise runs.errors[name]
    write_run(config, workdir)

  monkeypatch.setattr(train, 'train', fake)
  return runs


@pytest.fixture
def study(recipe, tmp_path, capsys, analysed):
  """``study(*arguments)``: code, lines on stdout and stderr of a study."""

  def run(*arguments, seeds=2):
    command = (
      *('study', '--config', f'{recipe}:arcface', '--config'),
      *(f'{recipe}:cosface', '--seeds', str(seeds), '--out', tmp_path / 'S'),
    )
    capsys.readouterr()
    code = cli.main([str(a) for a in (*command, *arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()

  return run


ALL = ['arcface:0', 'cosface:0', 'arcface:1', 'cosface:1']


def test_seed_by_seed_then_analysed(study, trained, analysed, tmp_path):
  code, out, err = study()
  assert (code, err) == (0, [])
  assert trained == ALL
  assert out == [
    out[0],
    'arcface, seed 0 (1 of 4)',
    'cosface, seed 0 (2 of 4)',
    'arcface, seed 1 (3 of 4)',
    'cosface, seed 1 (4 of 4)',
    'the table',
    f'a page of it: elasticface report {tmp_path}/S --out {tmp_path}/S.html',
  ]
  assert out[0].startswith('runs of one seed share the initial backbone, ')
  assert analysed == [tmp_path / 'S']
  assert (tmp_path / 'S/arcface/seed_1/config.json').exists()


def test_finished_study_is_only_analysed(study, trained, analysed):
  study()
  trained.clear()
  code, out, err = study()
  assert (code, err, trained) == (0, [], [])
  assert out[1:3] == ['4 of 4 runs are finished', 'the table']
  assert len(analysed) == 2


def test_grown_study_trains_what_is_new(study, trained):
  study(seeds=1)
  trained.clear()
  code, out, _ = study(seeds=2)
  assert code == 0 and trained == ['arcface:1', 'cosface:1']
  assert out[1:3] == ['2 of 4 runs are finished', 'arcface, seed 1 (3 of 4)']


def test_without_pair_sets_there_is_nothing_to_analyse(
  study, trained, analysed
):
  code, out, _ = study('--config.eval.pairs=()')
  assert code == 0 and not analysed
  assert out[-1] == 'eval.pairs names no pair sets: there is nothing to compare'
  trained.clear()
  assert study('--config.eval.pairs=()')[0] == 0 and not trained


def test_failed_runs_do_not_stop_the_others(study, trained, analysed):
  message = 'the loss is nan at step 3:\nlower optim.lr'
  trained.errors = {'cosface:0': InputError(message)}
  code, out, err = study()
  assert code == 2 and trained == ALL
  assert err == [
    'cosface, seed 0 failed: the loss is nan at step 3: lower optim.lr',
    'elasticface: 1 of 4 runs failed, for the reasons above: cosface:0; the '
    'same command tries them again',
  ]
  assert out[-2] == 'the table'  # Of those that did not.
  trained.errors = {}
  trained.clear()
  code, _, err = study()
  assert (code, err, trained) == (0, [], ['cosface:0'])


def test_nothing_is_analysed_if_all_fail(study, trained, analysed):
  trained.errors = dict.fromkeys(ALL, InputError('no such data'))
  code, _, err = study()
  assert code == 2 and len(err) == 5 and not analysed
  assert '4 of 4 runs failed' in err[-1] and ', '.join(ALL) in err[-1]


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (Stopped(signal.SIGTERM, 3), 143, 'stopped by SIGTERM; step 3 is saved'),
    (KeyboardInterrupt(), 130, 'interrupted'),
    (OSError(28, 'No space left', 'f'), 2, 'f: No space left'),
  ],
)
def test_stop_ends_the_study(study, trained, analysed, error, code, line):
  trained.errors = {'cosface:0': error}
  found, _, err = study()
  assert found == code and trained == ALL[:2] and not analysed
  assert len(err) == 1 and err[0].startswith(f'elasticface: {line}')


HELD = run_lock.InUse('W is in use by ...', 'process 7 on elsewhere, since 3')


def test_run_in_work_elsewhere_is_passed_over(study, trained, analysed):
  trained.errors = {'arcface:0': HELD}
  code, out, err = study()
  assert (code, err) == (0, [])
  # Once more at the end, as its holder may have gone.
  assert trained == [*ALL, 'arcface:0']
  assert out[2] == (
    'arcface, seed 0 is in work by process 7 on elsewhere, since 3: passed over'
  )
  assert out[-1] == (
    '3 of 4 runs are finished; still in work are arcface:0 by process 7 on '
    'elsewhere, since 3: who ends last writes the analysis, and so does this '
    'command, given again'
  )
  assert not analysed


def test_run_whose_holder_went_is_done_at_last(
  study, trained, analysed, monkeypatch
):
  trained.errors = {'arcface:0': HELD}
  fake = train.train

  def later(config, workdir):
    if len(trained) == 4:
      trained.errors = {}
    fake(config, workdir)

  monkeypatch.setattr(train, 'train', later)
  code, out, _ = study()
  assert code == 0 and trained == [*ALL, 'arcface:0'] and len(analysed) == 1


def test_run_that_another_ended_meanwhile(
  study, trained, tmp_path, monkeypatch
):
  fake = train.train

  def both(config, workdir):
    fake(config, workdir)
    other = workdir.parents[1] / 'cosface' / 'seed_0'
    if not other.exists():
      (_, cosface) = variants.make(study_specs(tmp_path), (), ())
      write_run(cosface.config(0), other)

  monkeypatch.setattr(train, 'train', both)
  assert study()[0] == 0
  assert trained == [name for name in ALL if name != 'cosface:0']


def study_specs(tmp_path):
  recipe = tmp_path / 'losses.py'
  return [f'{recipe}:arcface', f'{recipe}:cosface']


@pytest.fixture
def runs(recipe, tmp_path):
  return variants.runs(variants.make(study_specs(tmp_path), (), ()), range(2))


@pytest.mark.parametrize(
  'break_it',
  [
    lambda w: (w / 'checkpoints/4').rename(w / 'checkpoints/2'),
    lambda w: (w / 'config.json').unlink(),
    lambda w: (w / 'config.json').write_text('{"seed": 1}'),
    lambda w: (w / 'results.json').unlink(),
    lambda w: (w / 'results.json').write_text('{"a": {"step": 4}}'),
    lambda w: (w / 'results.json').write_text(
      '{"a": {"step": 2, "path": "synthetic"}}'
    ),
    lambda w: (w / 'training.png').unlink(),
  ],
)
def test_finished_takes_all_of_it(tmp_path, runs, break_it):
  workdir = folder.run_path(tmp_path, *runs[0].place)
  assert workdir == tmp_path / 'arcface' / 'seed_0'
  assert not work.is_finished(tmp_path, runs[0])
  write_run(runs[0].variant.config(0), workdir)
  assert work.is_finished(tmp_path, runs[0])
  break_it(workdir)
  assert not work.is_finished(tmp_path, runs[0])


@pytest.mark.parametrize('only', [[], ['--only', 'arcface:1']])
def test_run_that_went_further_is_refused(study, trained, tmp_path, runs, only):
  workdir = folder.run_path(tmp_path / 'S', *runs[2].place)
  write_run(runs[2].variant.config(1), workdir, step=9)
  code, _, err = study(*only)
  assert code == 2 and not trained
  assert err == [
    f'elasticface: {workdir} holds step 9, and total_steps=4 is less: use '
    '--config.total_steps=9, or another --out'
  ]
  # What is refused changes nothing.
  assert not (tmp_path / 'S/study.json').exists()


def test_damaged_run_fails_alone(study, trained, tmp_path):
  study()
  path = tmp_path / 'S/cosface/seed_0/results.json'
  path.write_text('[]')
  trained.clear()
  code, out, err = study()
  assert code == 2 and not trained
  assert out[1] == '3 of 4 runs are finished' and 'cosface:0' in err[1]
  assert err[0] == (
    f'cosface, seed 0 failed: {path} is not what a run wrote; was it edited? '
    'Remove it to verify the run again'
  )
  assert 'Remove it to verify' in study('--list')[1][1]
  path.unlink()
  assert study()[0] == 0 and trained == ['cosface:0']


def test_list(study, trained, tmp_path, runs):
  assert study('--list')[:2] == (
    0,
    [f'{i}  {run.name}  not begun' for i, run in enumerate(runs)],
  )
  assert not trained and not (tmp_path / 'S').exists()
  paths = [folder.run_path(tmp_path / 'S', *run.place) for run in runs]
  write_run(runs[0].variant.config(0), paths[0])
  write_run(runs[1].variant.config(0), paths[1], step=2)
  write_run(runs[3].variant.config(1), paths[3], results=False)
  with run_lock.hold(paths[1]), run_lock.hold(paths[2]):
    code, out, _ = study('--list')
    me = f'process {os.getpid()} on {os.uname().nodename}, since 20'
    assert out[0] == '0  arcface:0  finished'
    assert out[1].startswith(f'1  cosface:0  in work by {me}')
    assert out[1].endswith(', step 2 of 4')
    assert out[2].startswith(f'2  arcface:1  in work by {me}')
    assert out[3] == '3  cosface:1  step 4 of 4'  # Not verified yet.
  code, out, _ = study('--list')
  assert out[1:3] == ['1  cosface:0  step 2 of 4', '2  arcface:1  not begun']
  assert study('--list', '--only', 'cosface:0')[1] == [
    '0  cosface:0  step 2 of 4'
  ]


def test_list_of_a_study_that_cannot_be_written(study, tmp_path, monkeypatch):
  """As on a disk that is mounted for reading."""
  study()
  monkeypatch.setattr(os, 'access', lambda path, mode: not mode & os.W_OK)
  assert study()[0] == 2
  code, out, _ = study('--list')
  assert code == 0 and out[0] == '0  arcface:0  finished'


def test_only_one_run_and_the_last_one_analyses(study, trained, analysed):
  for number, only in enumerate(['cosface:1', '0', '2']):
    code, out, _ = study('--only', only)
    assert code == 0 and len(trained) == number + 1 and not analysed
    assert out[-1] == (
      f'{number + 1} of 4 runs are finished; the last one to end writes the '
      'analysis'
    )
  assert trained == ['cosface:1', 'arcface:0', 'arcface:1']
  assert out[1] == 'arcface, seed 1 (3 of 4)'
  code, out, _ = study('--only', '1')
  assert code == 0 and len(analysed) == 1 and out[-2] == 'the table'
  code, out, _ = study('--only', '1')  # As of a job that is started again.
  assert out[1] == 'cosface, seed 0 is finished' and len(trained) == 4
  assert len(analysed) == 2


def test_only_a_run_in_work_elsewhere_is_refused(study, trained):
  trained.errors = {'arcface:0': HELD}
  code, _, err = study('--only', 'arcface:0')
  assert (code, err) == (2, ['elasticface: W is in use by ...'])


def test_several_processes_need_one_run(study, trained, monkeypatch):
  monkeypatch.setattr('jax.process_count', lambda: 2)
  code, _, err = study()
  assert code == 2 and not trained
  assert err == [
    'elasticface: 2 processes work together in one run: give --only NAME:SEED '
    'or a number, as --list prints them; processes that do not know each other '
    'share a study without it'
  ]


def test_list_imports_no_tensorflow(tmp_path):
  script = (
    'import sys\nfrom elasticface_jax import cli\n'
    "code = cli.main(['study', '--config', 'quickstart', '--seeds', '1', "
    f"'--out', {str(tmp_path / 'S')!r}, '--list'])\n"
    "assert code == 0 and 'tensorflow' not in sys.modules\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == '0  quickstart:0  not begun\n'


def test_compilation_cache_is_of_the_study_alone(study, trained, monkeypatch):
  import jax

  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_enable_xla_caches',
  )
  read = lambda: {name: getattr(jax.config, name) for name in names}
  seen, there = [], []
  fake = train.train

  def look(config, workdir):
    seen.append(read())
    there.append(os.path.isdir(seen[-1][names[0]]))
    fake(config, workdir)

  monkeypatch.setattr(train, 'train', look)
  own = read()
  assert study()[0] == 0
  assert seen == [own] * 4  # The one of the tests.

  seen.clear(), there.clear()
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    assert study(seeds=3)[0] == 0
    assert getattr(jax.config, names[0]) is None
  finally:
    jax.config.update('jax_compilation_cache_dir', own[names[0]])
  used = seen[0]['jax_compilation_cache_dir']
  assert 'elasticface_study_' in used and not os.path.exists(used)
  assert seen == [{names[0]: used, names[1]: 'none'}] * 2 and all(there)
  assert read() == own
