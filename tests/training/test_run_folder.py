# SPDX-License-Identifier: Apache-2.0
import json
import os

import jax
import pytest

from elasticface_jax import config_rules, runtime
from elasticface_jax.errors import InputError
from elasticface_jax.training import run_folder

CONFIG = {
  'seed': 3,
  'total_steps': 9,
  'log_every': 10,
  'loss': {'margin': 0.5, 'kept': (1, 2)},
  'optim': {'lr': 0.1},
  'start': {'checkpoint': 'there'},
}


def claim(folder, config=CONFIG, data='f' * 64, start='a' * 64):
  folder.mkdir(exist_ok=True)
  run_folder.claim(folder, config, data, start)


def begin(folder, step=5):
  claim(folder)
  (folder / 'checkpoints' / str(step)).mkdir(parents=True)


def starts(folder):
  return json.loads((folder / 'manifest.json').read_text())['starts']


def test_folder_belongs_to_one_config_and_one_data(tmp_path):
  begin(tmp_path)
  # As read from JSON, and with another value of a field that changes no bit.
  claim(tmp_path, json.loads(json.dumps(CONFIG)) | {'log_every': 20})
  assert len(starts(tmp_path)) == 2
  assert starts(tmp_path)[0]['versions']['jax'] == jax.__version__

  other = CONFIG | {'loss': {'margin': 0.4, 'kept': (1, 2)}, 'more': 1}
  with pytest.raises(InputError) as error:
    claim(tmp_path, other)
  assert 'loss.margin was 0.5, is 0.4; more was None, is 1' in str(error.value)
  with pytest.raises(InputError, match='other data'):
    claim(tmp_path, data='e' * 64)
  with pytest.raises(InputError, match='other weights'):
    claim(tmp_path, start='b' * 64)


def test_folder_without_a_checkpoint_takes_another_config(tmp_path):
  claim(tmp_path)
  other = CONFIG | {'loss': {'margin': 0.4}}
  claim(tmp_path, other, 'e' * 64, 'b' * 64)
  assert json.loads((tmp_path / 'config.json').read_text()) == other
  assert [s['data_fingerprint'][0] for s in starts(tmp_path)] == ['e']


def test_another_rate_is_refused_with_the_way_that_works(tmp_path):
  begin(tmp_path)
  with pytest.raises(
    InputError, match='optim.lr was 0.1, is 0.2; use'
  ) as error:
    claim(tmp_path, CONFIG | {'optim': {'lr': 0.2}})
  assert str(error.value).endswith(
    f'a new --workdir with --config.start.checkpoint={tmp_path} to begin with '
    'the weights of this one'
  )


def test_run_that_has_ended_starts_nothing(tmp_path):
  begin(tmp_path, step=9)
  claim(tmp_path)
  assert len(starts(tmp_path)) == 1
  claim(tmp_path, CONFIG | {'total_steps': 10})
  assert len(starts(tmp_path)) == 2


def test_initial_weights_may_move_or_go_once_a_run_has_begun(tmp_path):
  needs = lambda path: run_folder.needs_initial_weights(tmp_path, path)
  assert needs('there') and not needs('')
  begin(tmp_path)
  assert not needs('there') and not needs(str(tmp_path / 'gone'))
  assert needs(str(tmp_path))  # It has to be compared.
  moved = CONFIG | {'start': {'checkpoint': 'elsewhere'}}
  claim(tmp_path, moved, start=None)
  with pytest.raises(InputError, match="checkpoint was 'elsewhere', is ''"):
    claim(tmp_path, CONFIG | {'start': {'checkpoint': ''}}, start=None)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('XLA_FLAGS', '--xla_cpu_enable_fast_math=true'),
    ('NVIDIA_TF32_OVERRIDE', '0'),
  ],
)
def test_settings_that_changed_are_named(
  tmp_path, monkeypatch, capsys, name, value
):
  begin(tmp_path)
  capsys.readouterr()
  claim(tmp_path)
  assert not capsys.readouterr().err
  monkeypatch.setenv(name, value)
  claim(tmp_path)
  err = capsys.readouterr().err
  assert f'{name} was None, is {value}: the fingerprint may not be' in err
  assert starts(tmp_path)[-1]['settings'][name].endswith(value)


def test_flags_without_influence_are_not_settings(monkeypatch):
  monkeypatch.setenv(
    'XLA_FLAGS', '--xla_dump_to=/tmp/a --xla_force_host_platform_device_count=2'
  )
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert runtime.arithmetic_settings('cpu') == {}
  assert runtime.arithmetic_settings('gpu') == {}


def test_flags_of_gpus_are_settings_of_their_runs_alone(monkeypatch):
  own = ' '.join(runtime.GPU_FLAGS)
  monkeypatch.setenv('XLA_FLAGS', own)
  assert runtime.arithmetic_settings('cpu') == {}
  assert runtime.arithmetic_settings('tpu') == {}
  recorded = runtime.arithmetic_settings('gpu')['XLA_FLAGS']
  assert sorted(recorded.split()) == sorted(runtime.GPU_FLAGS)
  # What a user gave is recorded everywhere, as before.
  theirs = '--xla_gpu_autotune_level=0'
  monkeypatch.setenv('XLA_FLAGS', f'{own} {theirs}')
  assert runtime.arithmetic_settings('cpu') == {'XLA_FLAGS': theirs}
  assert theirs in runtime.arithmetic_settings('gpu')['XLA_FLAGS']


def test_cpu_runs_begun_without_flags_of_gpus_resume_without_a_word(
  tmp_path, monkeypatch, capsys
):
  begin(tmp_path)
  capsys.readouterr()
  before = starts(tmp_path)[-1]['settings']
  own = [os.environ.get('XLA_FLAGS', ''), *runtime.GPU_FLAGS]
  monkeypatch.setenv('XLA_FLAGS', ' '.join(own))
  claim(tmp_path)
  assert not capsys.readouterr().err
  assert starts(tmp_path)[-1]['settings'] == before


@pytest.mark.parametrize('name', ['config.json', 'manifest.json'])
def test_begun_run_that_lost_a_file_is_refused(tmp_path, name):
  begin(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(InputError, match=f'holds checkpoints but no {name}, whi'):
    claim(tmp_path)
  assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('config.json', '[1, 2]', 'config.json is not what a run wrote'),
    ('config.json', '{', 'config.json is not JSON'),
    ('manifest.json', '[]', 'manifest.json is not what a run wrote'),
    ('manifest.json', '{}', 'manifest.json has no list of starts'),
    ('manifest.json', '{"starts": null}', 'has no list of starts'),
    ('manifest.json', '{"starts": [{}]}', 'has no list of starts'),
  ],
)
def test_files_that_were_edited(tmp_path, name, content, message):
  begin(tmp_path)
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=f'{message}.*; was it edited|{message}'):
    claim(tmp_path)
  assert (tmp_path / name).read_text() == content


def test_identity_is_that_of_what_may_not_change():
  first = run_folder.identity(CONFIG, 'd')
  assert first == run_folder.identity(CONFIG | {'total_steps': 99}, 'd')
  moved = CONFIG | {'start': {'checkpoint': 'elsewhere'}}
  assert first == run_folder.identity(moved, 'd')
  others = [
    (CONFIG, 'e'),
    (CONFIG | {'optim': {'lr': 0.2}}, 'd'),
    (CONFIG | {'start': {'checkpoint': ''}}, 'd'),
  ]
  assert all(run_folder.identity(*other) != first for other in others)


def test_identity_is_that_of_versions_without_the_added_fields():
  nested = config_rules.nest(config_rules.ADDED)
  first = run_folder.identity(CONFIG, 'd')
  for section, fields in nested.items():
    whole = CONFIG.get(section, {}) | fields
    assert run_folder.identity(CONFIG | {section: whole}, 'd') == first
    for field in fields:
      other = CONFIG | {section: whole | {field: 'other'}}
      assert run_folder.identity(other, 'd') != first
