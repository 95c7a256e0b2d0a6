# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own: stopped, resumed, and refused."""

import json
import resource
import shutil
import signal

import pytest

SHORT = {'eval__pairs': '()'}


def end(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err.strip().splitlines()


def one_line(lines):
  """Returns the only line on stderr."""
  assert len(lines) == 1, lines
  return lines[0]


def rows_of(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  return tmp_path_factory.mktemp('done') / 'run'


@pytest.mark.slow
def test_writes_all_files_and_verifies_again(done, train, train_here, run_here):
  code, out, err = end(train(done, checkpoint_every=2))
  assert code == 0, err
  names = {path.name for path in done.iterdir()}
  assert names >= {
    'config.json',
    'manifest.json',
    'metrics.jsonl',
    'results.json',
    'training.png',
    'roc.png',
    'scores_synthetic.png',
    'tensorboard',
    'checkpoints',
  }
  kept = sorted(p.name for p in (done / 'checkpoints').iterdir())
  assert kept == ['2', '4']
  rows = rows_of(done)
  trained = [row for row in rows if 'loss' in row]
  assert [row['step'] for row in trained] == [1, 2, 3, 4]
  for row in trained:
    assert 0.004 < row['margin_std'] < 0.04
    assert 0 <= row['accuracy'] <= 1
    assert 1 < row['target_angle'] < 2
    assert row['backbone_gradient_norm'] > 0
    assert row['head_gradient_norm'] > 0
  verified = [row for row in rows if 'pairs' in row]
  assert [(r['step'], r['pairs']) for r in verified] == [(4, 'synthetic')]
  start = json.loads((done / 'manifest.json').read_text())['starts'][0]
  assert start['seed'] == 0 and start['platform'] == 'cpu'
  assert start['versions']['jax'] and len(start['data_fingerprint']) == 64

  code, fingerprint, err = run_here('fingerprint', done)
  assert code == 0 and fingerprint.strip() in out

  # A finished run is not trained again; it reports the same.
  code, again, err = train_here(done, checkpoint_every=2)
  assert code == 0, err
  assert fingerprint.strip() in again and 'resuming from step 4' in again
  assert len(json.loads((done / 'manifest.json').read_text())['starts']) == 2

  # The command that verifies a run has the same results as the run.
  arguments = ('--checkpoint', done, '--pairs', 'synthetic')
  code, table, err = run_here('evaluate', *arguments, '--out', done / 'again')
  assert code == 0, err
  first, second = (
    json.loads((folder / 'results.json').read_text())
    for folder in (done, done / 'again')
  )
  assert first == second and 'synthetic' in table


@pytest.mark.slow
def test_refuses_another_config_and_damage(done, train_here):
  code, _, err = train_here(done, loss__margin=0.4, optim__lr=1.0)
  line = one_line(err)
  assert code == 2
  assert 'loss.margin was 0.5, is 0.4' in line and 'optim.lr' in line
  assert 'new --workdir' in line and str(done) in line

  code, _, err = train_here(done, data__synthetic__num_images=65)
  assert code == 2 and 'data.synthetic.num_images' in one_line(err)

  damaged = done.with_name('damaged')
  shutil.copytree(done, damaged)
  newest = damaged / 'checkpoints' / '4'
  for path in newest.rglob('*'):
    if path.is_file() and path.stat().st_size > 100:
      path.write_bytes(path.read_bytes()[:50])
  code, _, err = train_here(damaged, checkpoint_every=2)
  assert code == 2
  line = one_line(err)
  assert str(newest) in line and 'remove that folder' in line
  shutil.rmtree(newest)
  code, out, err = train_here(damaged, checkpoint_every=2)
  assert code == 0, err
  assert 'resuming from step 2' in out


@pytest.mark.slow
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_next_start_resumes(
  tmp_path, train, train_here, wait_for_a_step, sent
):
  long = SHORT | {'total_steps': 1000, 'checkpoint_every': 0}
  process = train(tmp_path, **long)
  wait_for_a_step(tmp_path, process)
  process.send_signal(sent)
  code, _, err = end(process)
  assert code == 128 + sent
  assert sent.name in one_line(err)
  (saved,) = (tmp_path / 'checkpoints').iterdir()
  code, out, err = train_here(
    tmp_path, **SHORT, total_steps=int(saved.name) + 1
  )
  assert code == 0, err
  assert f'resuming from step {saved.name}' in out


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_with_step_and_images(
  tmp_path, train_here
):
  code, _, err = train_here(
    tmp_path,
    **SHORT,
    total_steps=50,
    optim__lr=1e30,
    optim__warmup_steps=0,
    optim__weight_decay=1e9,
  )
  line = one_line(err)
  assert code == 2
  assert 'loss is' in line and 'at step' in line and 'images' in line
  assert 'last checkpoint' in line
  # No state after a non-finite loss has been saved.
  rows = rows_of(tmp_path)
  steps = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
  assert all(step <= rows[-1]['step'] for step in steps)


@pytest.mark.slow
def test_failed_write_costs_no_checkpoint(tmp_path, train, train_here):
  limit = 5_000  # Bytes of a file.
  code, _, err = train_here(tmp_path, **SHORT, total_steps=2)
  assert code == 0, err
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    process = train(tmp_path, **SHORT, total_steps=4)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  code, _, err = end(process)
  assert code == 2, err
  # Orbax's threads print lines of their own about a failed write.
  (line,) = [line for line in err if 'elasticface: ' in line]
  assert 'checkpoints' in line and 'step 2 is kept' in line
  code, out, err = train_here(tmp_path, **SHORT, total_steps=4)
  assert code == 0, err
  assert 'resuming from step 2' in out
