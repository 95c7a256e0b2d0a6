# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own: stopped, resumed, and refused."""

import io
import json
import resource
import shutil
import signal

import jax
import pytest
from PIL import Image

from elasticface_jax import data, evaluation
from elasticface_jax.errors import InputError

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
  assert fingerprint.strip() in again
  assert f'{done} is finished: it holds step 4 of 4; nothing is' in again
  assert len(json.loads((done / 'manifest.json').read_text())['starts']) == 1
  assert rows_of(done) == rows

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
  assert str(newest) in line and 'remove it to resume from step 2' in line
  shutil.rmtree(newest)
  code, out, err = train_here(damaged, checkpoint_every=2)
  assert code == 0, err
  assert 'resuming from step 2' in out


@pytest.mark.slow
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves_and_the_next_start_resumes(
  tmp_path, train, train_here, wait_for_a_step, sent
):
  long = SHORT | {'total_steps': 1000, 'checkpoint_every': 0}
  process = train(tmp_path, **long)
  wait_for_a_step(tmp_path, process)
  # Another run in its folder is refused at once, and changes nothing.
  code, _, err = train_here(tmp_path, **long)
  assert code == 2
  assert f'{tmp_path} is in use by process {process.pid} on' in one_line(err)
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


@pytest.mark.slow
def test_state_is_saved_before_it_is_verified(
  tmp_path, train_here, monkeypatch
):
  def verify(*_, **__):
    raise InputError('embedding row 0 is not finite')

  monkeypatch.setattr(evaluation, 'verify', verify)
  code, _, err = train_here(tmp_path)
  assert code == 2 and 'row 0 is not finite' in one_line(err)
  monkeypatch.undo()
  # The next start has nothing to train, and records what is missing.
  code, out, err = train_here(tmp_path)
  assert code == 0, err
  assert 'is finished: it holds step 4 of 4' in out
  verified = [row for row in rows_of(tmp_path) if 'pairs' in row]
  assert [(r['step'], r['pairs']) for r in verified] == [(4, 'synthetic')]


def test_pair_set_that_cannot_be_verified_ends_before_the_run(
  tmp_path, train_here
):
  code, _, err = train_here(tmp_path / 'w', eval__folds=21)
  line = one_line(err)
  assert code == 2 and '20 pairs' in line and 'eval.folds' in line
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('jax_default_prng_impl', 'rbg'),
    ('jax_threefry_partitionable', False),
    ('jax_random_seed_offset', 7),
    ('jax_enable_x64', True),
    ('jax_default_matmul_precision', 'bfloat16'),
  ],
)
def test_settings_of_the_shell_move_no_bits(
  tmp_path, train_here, expected_fingerprint, name, value
):
  before = getattr(jax.config, name)
  jax.config.update(name, value)
  try:
    code, out, err = train_here(tmp_path, **SHORT)
    assert getattr(jax.config, name) == value
  finally:
    jax.config.update(name, before)
  assert code == 0, err
  assert f'{name.upper()}={value} is not used' in one_line(err)
  assert out.splitlines()[-1] == expected_fingerprint


@pytest.fixture(scope='module')
def short_run(tmp_path_factory):
  return tmp_path_factory.mktemp('short') / 'run'


@pytest.fixture
def expected_fingerprint(short_run, train_here):
  """The last line of a run; of a finished one from the second test on."""
  code, out, err = train_here(short_run, **SHORT)
  assert code == 0, err
  return out.splitlines()[-1]


@pytest.mark.slow
def test_damaged_value_is_found_on_any_number_of_devices(
  tmp_path, short_run, expected_fingerprint, train_here
):
  workdir = tmp_path / 'w'
  shutil.copytree(short_run, workdir)
  files = (workdir / 'checkpoints' / '4').rglob('d/*')
  largest = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 64
  largest.write_bytes(data)
  for devices in (1, 4):
    code, _, err = train_here(workdir, devices, **SHORT, total_steps=5)
    assert code == 2
    line = one_line(err)
    assert 'checkpoints/4 is damaged (' in line
    assert 'is not what was saved' in line and 'from step 2' in line


@pytest.mark.slow
def test_checkpoint_that_is_not_the_run_s_own(
  tmp_path, short_run, expected_fingerprint, train_here
):
  for name, change in (('copied', {'optim__lr': 0.9}), ('renamed', {})):
    workdir = tmp_path / name
    shutil.copytree(short_run, workdir)
    steps = workdir / 'checkpoints'
    if name == 'copied':
      code, _, err = train_here(tmp_path / 'other', **SHORT, **change)
      assert code == 0, err
      shutil.rmtree(steps / '4')
      shutil.copytree(tmp_path / 'other' / 'checkpoints' / '4', steps / '4')
      message = 'checkpoints/4 was saved by a run with another config'
    else:
      (steps / '4').rename(steps / '40')
      message = 'checkpoints/40 holds step 4: was it renamed'
    code, _, err = train_here(workdir, **SHORT, total_steps=50)
    assert code == 2 and message in one_line(err)


def test_run_inside_of_its_images_is_refused(tmp_path, train_here):
  (tmp_path / 'person').mkdir()
  for workdir in (tmp_path, tmp_path / 'run'):
    code, _, err = train_here(workdir, data__source=tmp_path)
    assert code == 2 and 'is inside data.source' in one_line(err)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_output_that_nobody_reads_ends_no_run(tmp_path, training, elasticface):
  process = elasticface(*training(tmp_path, **SHORT))
  process.stdout.close()
  process.stderr.close()
  assert process.wait(timeout=300) == 0
  assert (tmp_path / 'checkpoints' / '4').exists()


@pytest.mark.slow
def test_other_pair_sets_of_a_finished_run_are_added(tmp_path, train_here):
  path = tmp_path / 'more.npz'
  images = [png(shade) for shade in range(40)]
  data.write_pairs(path, images, [True, False] * 10)
  workdir = tmp_path / 'w'
  for pairs in ("('synthetic',)", f"('{path}',)"):
    code, _, err = train_here(workdir, eval__pairs=pairs)
    assert code == 0, err
  results = json.loads((workdir / 'results.json').read_text())
  assert results.keys() == {'synthetic', 'more'}
  assert results['synthetic'].keys() == results['more'].keys()


def png(shade):
  file = io.BytesIO()
  Image.new('RGB', (112, 112), (6 * shade, 9, 200)).save(file, 'PNG')
  return file.getvalue()
