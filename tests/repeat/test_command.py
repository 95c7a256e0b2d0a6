# SPDX-License-Identifier: Apache-2.0
"""Runs that are repeated: the same bits, and everything that differs."""

import dataclasses
import io
import json
import os
import shutil
import signal
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from elasticface_jax.training import checkpoint, records
from elasticface_jax.training.task import Task

STEPS = 6
RUN = {
  'total_steps': STEPS,
  'checkpoint_every': 3,
  'fingerprint_every': 2,
  'eval__pairs': '()',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture
def trained(folder, train_here):
  """A finished run of drawn faces."""
  if not (folder / 'run').exists():
    assert train_here(folder / 'run', **RUN).code == 0
  return folder / 'run'


@pytest.fixture
def copy(trained, tmp_path):
  """A copy of it, to be edited."""
  return shutil.copytree(trained, tmp_path / 'copy')


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
  """Lets what is kept of a repetition go with its test."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))


@pytest.fixture
def repeat(run_here):
  """``repeat(*arguments, devices=1)``: the command, also with exit code 1."""

  def run(*arguments, devices=1):
    code = []

    def catching(*arguments, **options):
      try:
        return run_here(*arguments, **options)
      except SystemExit as error:
        code.append(error.code)

    ended = catching('repeat', *arguments, devices=devices)
    return ended if ended else code[0]

  return run


def steps_of(workdir):
  return [*records.read(workdir).sums]


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


# The records of a run.


def test_records_are_those_of_checkpoints_and_every_few_steps(trained):
  found = records.read(trained)
  assert steps_of(trained) == [0, 2, 3, 4, 6]
  path = trained / 'checkpoints/3/_CHECKPOINT_METADATA'
  kept = json.loads(path.read_text())['custom_metadata']['checksums']
  folded = records.fold(kept)
  assert found.sums[3] == ''.join(folded[name] for name in found.tensors)
  starts = json.loads((trained / 'manifest.json').read_text())['starts']
  assert {'tensorflow', 'pillow', 'simplejpeg'} <= starts[0]['versions'].keys()
  lock = (trained / 'requirements.txt').read_text().splitlines()
  assert f'jax=={jax.__version__}' in lock and lock == sorted(lock)


def test_killed_run_keeps_its_records(tmp_path, trained, train_here):
  workdir = tmp_path / 'parts'
  assert train_here(workdir, **RUN | {'total_steps': 5}).code == 0
  # As a kill leaves it: records after the newest checkpoint, and half a line.
  shutil.rmtree(workdir / 'checkpoints' / '5')
  with (workdir / records.FILE).open('a') as file:
    file.write('{"step": 6, "su')
  assert steps_of(workdir) == [0, 2, 3, 4, 5]
  assert train_here(workdir, 2, **RUN).code == 0
  assert records.read(workdir) == records.read(trained)


def test_run_without_checksums_records_what_is_asked_for(tmp_path, train_here):
  off = RUN | {'total_steps': 3, 'checkpoint_checksums': False}
  for every, steps in ((2, [0, 2]), (0, [])):
    workdir = tmp_path / str(every)
    assert train_here(workdir, **off | {'fingerprint_every': every}).code == 0
    assert steps_of(workdir) == steps


# The same bits.


def test_same_bits_on_other_devices(trained, repeat):
  ended = repeat(trained, devices=4)
  assert ended.code == 0, ended.err
  assert (
    'same bits: 59 tensors at 5 steps from 0 to 6 and the metrics at 6 steps '
    'from 1 to 6 were compared'
  ) in ended.out
  _, fingerprint = checkpoint.fingerprint(trained)
  assert f'fingerprint of step 6: {fingerprint}, as that of the run' in (
    ended.out
  )


@pytest.mark.slow
def test_same_bits_from_a_pack_in_another_process(
  trained, tmp_path, repeat, elasticface
):
  pack = tmp_path / 'run.repeat'
  ended = repeat('--pack', trained, '--out', pack)
  assert '5 records of 59 tensors, 6 records of metrics' in ended.out
  process = elasticface('repeat', pack, devices=2, PJRT_NPROC='2')
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert '8 groups and 8 blocks on 2 cpu devices' in out
  assert 'same bits: 59 tensors' in out and 'as that of the run' in out
  lock = repeat(pack, '--requirements').out
  assert lock == (trained / 'requirements.txt').read_text()


def test_first_steps(trained, repeat):
  ended = repeat(trained, '--steps', 1)
  assert ended.code == 0, ended.err
  assert 'same bits: 59 tensors at step 0 and the metrics at step 1' in (
    ended.out
  )
  assert 'fingerprint' not in ended.out


def test_run_of_an_older_version(copy, repeat):
  (copy / records.FILE).unlink()
  (copy / 'requirements.txt').unlink()
  edit(copy / 'config.json', lambda c: c.pop('fingerprint_every'))
  new = ('tensorflow', 'pillow', 'simplejpeg')

  def older(manifest):
    (start,) = manifest['starts']
    for name in new:
      del start['versions'][name]
    for name in ('step', 'sources', 'processor'):
      del start[name]

  edit(copy / 'manifest.json', older)
  ended = repeat(copy)
  assert ended.code == 0, ended.err
  # Those of its two checkpoints.
  assert 'same bits: 59 tensors at steps 3 and 6 and the metrics' in ended.out
  ended = repeat(copy, '--requirements')
  assert ended.code == 2 and 'has not recorded its packages' in ended.err[0]


def test_interrupted_repetition_goes_on(trained, tmp_path, repeat):
  workdir = tmp_path / 'again'
  ended = repeat(trained, '--steps', 4, '--workdir', workdir)
  assert ended.code == 0 and 'at 4 steps from 0 to 4' in ended.out
  ended = repeat(trained, '--workdir', workdir)
  assert 'resuming from step 4' in ended.out
  assert 'same bits: 59 tensors at 5 steps from 0 to 6' in ended.out
  # The folder of another run is none of a repetition.
  edit(workdir / 'config.json', lambda c: c.update(seed=7))
  ended = repeat(trained, '--workdir', workdir)
  assert ended.code == 2 and 'seed was 7, is 0' in ended.err[-1]
  edit(workdir / 'config.json', lambda c: c.update(seed=0))
  # A difference in what is there already is found without training.
  flip_in_record(workdir, 2, 'params/fc/kernel')
  code = repeat(trained, '--workdir', workdir)
  assert code == 1


# Different bits.


def flip_in_record(workdir, step, tensor):
  """Flips one bit of the checksum of a tensor."""
  found = records.read(workdir)
  place = 16 * found.tensors.index(tensor)
  lines = (workdir / records.FILE).read_text().splitlines()
  for k, line in enumerate(lines[1:], 1):
    row = json.loads(line)
    if row['step'] == step:
      text = row['sums']
      digit = f'{int(text[place], 16) ^ 1:x}'
      row['sums'] = text[:place] + digit + text[place + 1 :]
      lines[k] = json.dumps(row)
  (workdir / records.FILE).write_text('\n'.join(lines) + '\n')


@pytest.fixture
def train_with_a_flip(monkeypatch, train_here):
  """``train_with_a_flip(workdir, step, bit)``: a run that a bit flips in."""

  def train(workdir, step, bit=0, **changes):
    own = Task.step

    def flipping(self, state, *rest):
      state, measured = own(self, state, *rest)
      if int(state.step) == step:
        kernel = state.params['fc']['kernel']
        bits = jax.lax.bitcast_convert_type(kernel, jnp.uint32)
        bits = bits.at[3, 1].set(bits[3, 1] ^ (1 << bit))
        kernel = jax.lax.bitcast_convert_type(bits, kernel.dtype)
        params = {
          **state.params,
          'fc': {**state.params['fc'], 'kernel': kernel},
        }
        state = dataclasses.replace(state, params=params)
      return state, measured

    with monkeypatch.context() as patch:
      patch.setattr(Task, 'step', flipping)
      assert train_here(workdir, **RUN | changes).code == 0

  return train


def test_flipped_bit_of_a_parameter(tmp_path, train_with_a_flip, repeat, capfd):
  train_with_a_flip(tmp_path / 'at', 4)
  assert repeat(tmp_path / 'at') == 1
  out = capfd.readouterr().out
  assert (
    'different bits: step 4: params/fc/kernel differs of 59 tensors; the '
    'record before it, of step 3, is the same; the metrics up to step 4 are '
    'the same\n'
  ) in out
  assert 'step 5' not in out
  # It is kept, with the state that differs.
  kept = out.strip().splitlines()[-1].removeprefix('the repetition is kept in ')
  _, there = checkpoint.read(kept, 4, ['params'])
  _, here = checkpoint.read(tmp_path / 'at', 6, ['params'])
  assert there['params'].keys() == here['params'].keys()


def test_flipped_bit_between_two_records(
  tmp_path, train_with_a_flip, repeat, capfd
):
  train_with_a_flip(tmp_path / 'at', 3, bit=22, checkpoint_every=0)
  assert repeat(tmp_path / 'at') == 1
  out = capfd.readouterr().out
  assert 'the metrics differ: step 4, ' in out
  assert 'goes on to the record of step 4, which tells tensors apart' in out
  assert 'different bits: step 4: params/' in out
  assert 'more of 59 tensors; the record before it, of' in out
  assert 'of step 2, is the same; first in the metrics: step 4, ' in out


def test_differing_initial_state(copy, repeat, capfd):
  flip_in_record(copy, 0, 'class_centers')
  assert repeat(copy) == 1
  out = capfd.readouterr().out
  assert (
    'different bits: the initial state: class_centers differs of 59 tensors\n'
  ) in out
  assert 'compiling' not in out


def test_metrics_alone(copy, repeat, capfd):
  path = copy / 'metrics.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows[4]['loss'] = float(np.nextafter(rows[4]['loss'], 9))
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert repeat(copy) == 1
  out = capfd.readouterr().out
  assert 'different bits in the metrics alone: step 5, loss was ' in out
  assert 'at 5 steps from 0 to 6 and the metrics at 6 steps' in out


# Software, devices and data.


def test_changed_version(copy, repeat, run_here):
  def older(manifest):
    manifest['starts'][0]['versions'] |= {'jax': '0.1', 'python': '3.0'}
    manifest['starts'][0]['settings'] = {'XLA_FLAGS': '--xla_x=1'}

  edit(copy / 'manifest.json', older)
  ended = repeat(copy)
  assert ended.code == 2
  (line,) = ended.err
  assert (
    f'jax was 0.1, is {jax.__version__}; XLA_FLAGS was --xla_x=1, is' in line
  )
  assert 'python' not in line.partition('bits are promised')[0]
  assert f'`elasticface repeat {copy} --requirements` prints' in line
  ended = repeat(copy, '--anyway', '--steps', 1)
  assert ended.code == 0 and f'note: jax was 0.1, is {jax.__version__}' in (
    ended.out
  )
  assert 'note: python was 3.0, is' in ended.out


def test_run_that_changed_its_version(copy, repeat):
  def updated(manifest):
    start = json.loads(json.dumps(manifest['starts'][0])) | {'step': 3}
    manifest['starts'].append(start)
    manifest['starts'][0]['versions']['numpy'] = '1.0'

  edit(copy / 'manifest.json', updated)
  ended = repeat(copy)
  assert ended.code == 2
  assert 'several starts, between which numpy was 1.0, is' in ended.err[0]


def jpeg(shade, quality=95):
  file = io.BytesIO()
  Image.new('RGB', (112, 112), (shade, 9, 200)).save(
    file, 'JPEG', quality=quality
  )
  return file.getvalue()


def test_changed_image_of_a_folder(tmp_path, train_here, repeat):
  people = tmp_path / 'people'
  for person in range(8):
    (people / f'p{person}').mkdir(parents=True)
    for k in range(5):
      (people / f'p{person}' / f'{k}.jpg').write_bytes(jpeg(5 * person + k))
  workdir = tmp_path / 'run'
  run = RUN | {'data__source': people, 'total_steps': 2}
  assert train_here(workdir, **run).code == 0
  moved = people.rename(tmp_path / 'elsewhere')
  ended = repeat(workdir)
  assert ended.code == 2 and 'is not here: give --data PATH' in ended.err[-1]
  ended = repeat(workdir, '--data', moved)
  assert ended.code == 0 and 'same bits' in ended.out

  (moved / 'p2' / '3.jpg').write_bytes(jpeg(13, quality=60))
  ended = repeat(workdir, '--data', moved)
  assert ended.code == 2
  assert (
    'image 13 (p2/3.jpg) is not the one that it was trained on; it'
    in (ended.err[-1])
  )
  pack = tmp_path / 'pack'
  assert repeat('--pack', workdir, '--out', pack).code == 0
  ended = repeat(pack)
  assert ended.code == 2 and 'not in it: give --data PATH' in ended.err[-1]
  ended = repeat(pack, '--data', moved)
  assert ended.code == 2 and 'image 13 (p2/3.jpg)' in ended.err[-1]


def test_weights_that_a_run_began_with(trained, tmp_path, train_here, repeat):
  first = shutil.copytree(trained, tmp_path / 'first')
  run = RUN | {'total_steps': 1, 'start__checkpoint': first}
  assert train_here(tmp_path / 'run', **run).code == 0
  moved = first.rename(tmp_path / 'moved')
  ended = repeat(tmp_path / 'run')
  assert ended.code == 2 and 'give --start PATH' in ended.err[-1]
  ended = repeat(tmp_path / 'run', '--start', moved)
  assert ended.code == 0 and 'same bits: 59 tensors' in ended.out
  shutil.rmtree(moved / 'checkpoints' / '6')
  ended = repeat(tmp_path / 'run', '--start', moved)
  assert ended.code == 2 and 'began with was' in ended.err[-1]


# Mistakes.


def test_mistakes(copy, tmp_path, repeat):
  (tmp_path / 'text').write_text('no pack')
  (tmp_path / 'empty').mkdir()
  converted = tmp_path / 'converted'
  converted.mkdir()
  (converted / 'manifest.json').write_text('{"converted": {}}')
  study = tmp_path / 'study'
  study.mkdir()
  (study / 'study.json').write_text('{}')
  pack = tmp_path / 'pack'
  for arguments, words in (
    ([tmp_path / 'none'], 'no such folder; give a run folder, or a file of'),
    ([tmp_path / 'empty'], 'holds no manifest.json: give a run folder'),
    ([converted], 'holds converted weights and no run'),
    ([study], f'give one of its runs: {study}/NAME/seed_K'),
    ([tmp_path / 'text'], 'is no pack of a run, or is damaged'),
    ([copy, '--steps', 0], '--steps 0: give 1 or more'),
    ([copy, '--steps', 99], 'the newest step that'),
    ([copy, '--data', 'x'], 'was trained on drawn faces; leave it out'),
    ([copy, '--start', 'x'], 'began with weights that it drew; leave it out'),
    ([copy, '--workdir', copy], 'is the run itself'),
    ([copy, '--out', pack], '--out is for --pack; leave it out'),
    ([copy, '--pack'], '--pack needs --out FILE'),
    (
      [copy, '--pack', '--out', pack, '--steps', 2],
      '--steps is not for --pack',
    ),
    ([copy, '--pack', '--out', pack, '--every', 0], '--every 0: give 1'),
    ([copy, '--pack', '--out', tmp_path], 'is a folder'),
  ):
    ended = repeat(*arguments)
    assert ended.code == 2 and len(ended.err) == 1, ended
    assert words in ended.err[0], ended.err
  assert not pack.exists()


@pytest.mark.parametrize(
  'broken, words',
  [
    (lambda config: config.clear(), 'the field seed is missing'),
    (lambda config: config['data'].update(source=5), 'data.source=5'),
    (lambda config: config['data'].pop('window'), 'data.window is missing'),
    (lambda config: config['start'].update(checkpoint=5), 'start.checkpoint=5'),
    (lambda config: config.update(seed='0'), "seed='0'"),
    (lambda config: config.update(loss={}), 'loss.name is missing'),
  ],
)
def test_edited_config(copy, tmp_path, repeat, broken, words):
  """A config that is none ends in a line, from a folder and from a pack."""
  edit(copy / 'config.json', broken)
  file = tmp_path / 'pack'
  assert repeat('--pack', copy, '--out', file).code == 0
  for arguments in ([copy], [file], [file, '--data', tmp_path]):
    ended = repeat(*arguments)
    assert ended.code == 2 and len(ended.err) == 1, ended
    assert words in ended.err[0]


def test_run_that_ended_before_its_first_step(copy, tmp_path, repeat):
  shutil.rmtree(copy / 'checkpoints')
  (copy / 'metrics.jsonl').unlink()
  lines = (copy / records.FILE).read_text().splitlines()
  (copy / records.FILE).write_text('\n'.join(lines[:2]) + '\n')
  ended = repeat(copy)
  assert ended.code == 2 and 'has no record of a step; train it' in ended.err[0]
  ended = repeat('--pack', copy, '--out', tmp_path / 'pack')
  assert ended.code == 2 and 'has no record of a step' in ended.err[0]
  ended = repeat(copy, '--steps', 1)
  assert ended.code == 0 and '59 tensors at step 0 were compared' in ended.out


def test_folder_that_another_process_holds(trained, tmp_path, repeat):
  from elasticface_jax.training import run_lock

  with run_lock.hold(tmp_path / 'held'):
    ended = repeat(trained, '--workdir', tmp_path / 'held')
  assert ended.code == 2 and 'held' in ended.err[-1]


@pytest.mark.slow
def test_stopped_repetition_says_where_it_goes_on(
  trained, elasticface, tmp_path
):
  process = elasticface('repeat', trained, TMPDIR=str(tmp_path))
  for line in process.stdout:
    if line.startswith('step 1/'):
      break
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=300)
  if process.returncode == 0:  # It was through before the signal came.
    return
  assert process.returncode == 143, err
  assert '--workdir' in out and len(os.listdir(tmp_path)) == 1
