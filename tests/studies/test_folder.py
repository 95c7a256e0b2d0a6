# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: what it is of, how it grows, what it refuses."""

import fcntl
import json
import subprocess
import sys
import threading

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.studies import folder, variants


def made(*specs, changes=(), vary=()):
  return variants.make([str(spec) for spec in specs], changes, vary)


def study_of(path):
  return json.loads((path / 'study.json').read_text())


def test_content(tmp_path, recipe):
  configs = made(
    f'{recipe}:cosface', f'{recipe}:arcface', changes=['--config.optim.lr=0.7']
  )
  folder.join(tmp_path / 'S', configs, range(2))
  study = study_of(tmp_path / 'S')
  assert study['version'] == 1 and study['seeds'] == [0, 1]
  assert list(study['configs']) == ['cosface', 'arcface']  # Not sorted.
  assert study['configs']['arcface'].keys() == {'config', 'spec', 'changes'}
  assert study['configs']['arcface']['spec'] == f'{recipe}:arcface'
  assert study['configs']['arcface']['changes'] == ['--config.optim.lr=0.7']
  fields = study['configs']['arcface']['config']
  assert fields['optim.lr'] == 0.7 and fields['eval.pairs'] == ['synthetic']
  assert 'seed' not in fields
  assert study['differing'] == ['loss.name', 'loss.margin', 'loss.gradient']


def test_grows_by_seeds_and_configs(tmp_path, recipe):
  folder.join(tmp_path, made(f'{recipe}:arcface', f'{recipe}:cosface'), [0, 1])
  before = (tmp_path / 'study.json').stat()
  folder.join(tmp_path, made(f'{recipe}:arcface', f'{recipe}:cosface'), [0])
  assert (tmp_path / 'study.json').stat().st_ino == before.st_ino  # Not again.

  alone = made(f'{recipe}:arcface')
  assert [v.name for v in alone] == ['losses_arcface']
  alone = folder.named_as_before(folder.read(tmp_path), alone)
  assert [v.name for v in alone] == ['arcface']  # One config has one name.
  folder.join(tmp_path, alone, range(4))
  folder.join(tmp_path, made('quickstart:smoke'), [0])
  study = study_of(tmp_path)
  assert list(study['configs']) == ['arcface', 'cosface', 'quickstart_smoke']
  assert study['seeds'] == [0, 1, 2, 3]
  assert 'model.name' in study['differing']


def test_fields_that_move_no_bit_may_change(tmp_path, recipe):
  folder.join(tmp_path, made(f'{recipe}:arcface'), [0])
  more = ['--config.total_steps=9', '--config.eval.pairs=("a.bin","b.bin")']
  folder.join(tmp_path, made(f'{recipe}:arcface', changes=more), [0])
  fields = study_of(tmp_path)['configs']['losses_arcface']['config']
  assert fields['total_steps'] == 9
  assert fields['eval.pairs'] == ['a.bin', 'b.bin']


def test_another_config_of_a_name_is_refused(fails, tmp_path, recipe):
  folder.join(tmp_path / 'S', made(f'{recipe}:arcface'), [0])
  before = (tmp_path / 'S/study.json').read_bytes()
  study = (
    *('--config', f'{recipe}:arcface', '--seeds', '2'),
    *('--out', tmp_path / 'S', '--config.loss.margin=0.4'),
  )
  for listed in ([], ['--list']):
    assert fails(*study, *listed) == (
      f'{tmp_path}/S/study.json has another losses_arcface: loss.margin was '
      '0.5, is 0.4: use that config, vary loss.margin by --vary, or give '
      'another --out'
    )
  assert (tmp_path / 'S/study.json').read_bytes() == before


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{', 'is not JSON'),
    ('[]', 'is not what a run wrote'),
    ('{"version": 2}', 'is of version 2, and this is version 1: use the'),
    ('{"version": 1, "configs": {}}', 'is not what a study wrote; was it edi'),
    (
      '{"version": 1, "configs": {"a": {}}, "seeds": [0]}',
      'is not what a study wrote; was it edited? Restore it, or move it away',
    ),
    (
      '{"version": 1, "configs": {"a": {"config": {}, "spec": "a", '
      '"changes": []}}, "seeds": ["0"], "differing": []}',
      'is not what a study wrote',
    ),
  ],
)
def test_damage(fails, tmp_path, text, words):
  (tmp_path / 'study.json').write_text(text)
  line = fails('--config', 'quickstart', '--seeds', '1', '--out', tmp_path)
  assert line.startswith(f'{tmp_path}/study.json ') and words in line


@pytest.mark.parametrize(
  'place', ['run', 'images', 'images/S', 'file', 'file/S']
)
def test_places_that_are_refused(fails, tmp_path, place):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text('{}')
  (tmp_path / 'images').mkdir()
  (tmp_path / 'file').write_text('')
  line = fails(
    *('--config', 'quickstart', '--seeds', '1', '--out', tmp_path / place),
    f'--config.data.source={tmp_path}/images',
  )
  words = {
    'run': 'is a run folder (it has config.json); give a folder for the study',
    'images': f'is inside data.source={tmp_path}/images, where its folders wou',
    'file': f'{tmp_path}/file is a file; give a folder',
  }[place.partition('/')[0]]
  assert line.startswith(f'--out {tmp_path}/{place}') and words in line
  assert not (tmp_path / place / 'study.json').exists()


JOIN = """
import sys
from pathlib import Path
from elasticface_jax.studies import folder, variants
out, spec, seeds = sys.argv[1:]
configs = variants.make([spec], [], [])
print('ready', flush=True)
sys.stdin.readline()
folder.join(Path(out), configs, range(int(seeds)))
"""


def test_growths_at_one_time_are_all_kept(tmp_path):
  (tmp_path / 'S').mkdir()
  specs = {'quickstart': 3, 'quickstart:smoke': 5, 'elastic_arc_small_rec': 1}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', JOIN, tmp_path / 'S', spec, str(seeds)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for spec, seeds in specs.items()
  ]
  for process in processes:
    assert process.stdout.readline() == 'ready\n'
  for process in processes:
    process.stdin.write('\n')
    process.stdin.flush()
  for process in processes:
    process.communicate()
    assert process.returncode == 0
  study = study_of(tmp_path / 'S')
  assert study['configs'].keys() == {
    'quickstart',
    'quickstart_smoke',
    'elastic_arc_small_rec',
  }
  assert study['seeds'] == [0, 1, 2, 3, 4]
  assert [p.name for p in (tmp_path / 'S').iterdir()] == ['study.json']


def test_waits_for_another_that_grows_it(tmp_path, monkeypatch):
  folder.join(tmp_path, made('quickstart'), [0])
  entered, leave = threading.Event(), threading.Event()
  grown = folder.grown

  def slow(*arguments):
    entered.set()
    assert leave.wait(20)
    return grown(*arguments)

  monkeypatch.setattr(folder, 'grown', slow)
  threads = [
    threading.Thread(
      target=folder.join, args=(tmp_path, made(spec), range(seeds))
    )
    for spec, seeds in (('quickstart', 3), ('quickstart:smoke', 2))
  ]
  for thread in threads:
    thread.start()
  assert entered.wait(20)
  leave.set()
  for thread in threads:
    thread.join()
  study = study_of(tmp_path)
  assert study['configs'].keys() == {'quickstart', 'quickstart_smoke'}
  assert study['seeds'] == [0, 1, 2]


def test_disk_without_locks(tmp_path, monkeypatch):
  """Another process replaces the file between reading and writing it."""

  def flock(*_):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  folder.join(tmp_path, made('quickstart'), [0])
  mine = (tmp_path / 'study.json').read_text()
  atomic_file, written = folder.atomic.file, []

  def file(path):
    written.append(path)
    return atomic_file(path)

  read, reads = folder.read, []

  def lost(path):
    reads.append(path)
    if len(reads) == 2:  # Right after what this process wrote.
      (tmp_path / 'study.json').write_text(mine)
    return read(path)

  monkeypatch.setattr(folder.atomic, 'file', file)
  monkeypatch.setattr(folder, 'read', lost)
  folder.join(tmp_path, made('quickstart'), range(3))
  assert len(written) == 2 and study_of(tmp_path)['seeds'] == [0, 1, 2]


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='file/S: Not a directory; nothing is w'):
    folder.join(tmp_path / 'file/S', made('quickstart'), [0])
