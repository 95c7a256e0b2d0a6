# SPDX-License-Identifier: Apache-2.0
"""`elasticface plan`: its output, its document, and a user's mistakes."""

import json

import pytest

from elasticface_jax import cli
from tests.planning import fakes

RECIPE = 'elastic_arc_r100_ms1mv2'


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path):
  """``plan(*arguments)``: exit code, stdout and stderr; fake accounts."""
  fakes.install(monkeypatch)
  monkeypatch.setattr('elasticface_jax.missing.check', lambda module: None)
  monkeypatch.setattr(
    'elasticface_jax.planning.hardware.Hardware.check_packages', lambda x: None
  )
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

  def run(*arguments):
    try:
      code = cli.main(['plan', *arguments])
    except SystemExit as error:  # Of argparse.
      code = error.code
    out, err = capsys.readouterr()
    return code, out, err

  return run


def test_compiled_for_this_machine(monkeypatch, capsys, tmp_path):
  """The whole way: processes that compile, kept results, comparison."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  small = (
    '--config=quickstart --config.model.width=2 --config.model.embedding_dim=8 '
    '--config.group_size=2 --config.data.batch_size=4 '
    '--config.head.num_blocks=2'
  ).split()
  out = tmp_path / 'plan.json'
  same = ['--same', 'cpu:1', 'cpu:2', '--out', str(out)]
  assert cli.main(['plan', *small, *same]) == 0
  assert json.loads(out.read_text())['differing'] == []
  said, progress = capsys.readouterr()
  assert said.splitlines()[-1] == 'same arithmetic'
  assert (
    'compiling for cpu:2: iresnet10, 4 images in groups of 2, 2 blocks'
    in progress
  )
  names = ['--hardware', 'cpu:1', '--hardware', 'cpu:2']
  assert cli.main(['plan', *small, *names, '--out', str(out)]) == 0
  said, progress = capsys.readouterr()
  assert progress == ''  # All is kept.
  one, two = json.loads(out.read_text())['plans']
  assert (one['hardware'], two['devices']) == ('cpu:1', 2)
  assert one['bytes']['temporary'] > two['bytes']['inputs'] > 0
  assert f'{two["memory_traffic_bytes"] / 1e9:,.2f}' in said
  texts = tmp_path / 'texts'
  assert cli.main(['plan', *small, *names[:2], '--save', str(texts)]) == 0
  (text,) = texts.iterdir()
  assert text.read_text().startswith('HloModule jit__step')


def test_a_plan_for_several_kinds_of_hardware(plan, tmp_path):
  out = tmp_path / 'plan.json'
  code, said, _ = plan(
    *('--config', RECIPE, '--hardware', 'v5e:2x2', '--hardware', 'h100:4'),
    *('--num-classes', '1000000', '--out', str(out)),
  )
  assert code == 0
  assert said.startswith('iresnet100, float32; elastic_arcface, 1,000,000 ')
  document = json.loads(out.read_text())
  assert document['command'].split()
  for made in document['plans']:
    assert made['recipe']['num_classes'] == 1_000_000
    assert set(made['bounds_seconds']) == {'flop', 'memory', 'links'}
    assert made['fits'] and made['bytes']['peak'] < made['usable_bytes']


def test_a_recipe_that_does_not_fit_gets_a_remedy(plan, tmp_path):
  out = tmp_path / 'plan.json'
  code, said, _ = plan(
    *('--config', RECIPE, '--hardware', 'v5e:2x2', '--memory', '1'),
    *('--out', str(out)),
  )
  assert code == 0
  assert 'no, 1.00 GB' in said
  assert 'it fits with --config.group_size=64' in said
  (made,) = json.loads(out.read_text())['plans']
  assert made['remedy'] == ['--config.group_size=64']
  assert [x['fits'] for x in made['tried']] == [False, True]


def test_the_largest_group(plan):
  code, said, _ = plan(
    *('--config', RECIPE, '--hardware', 'v5e:2x2', '--largest'),
    *('--memory', '4'),
  )
  assert code == 0
  assert 'groups of 368 fit' in said and '384 do not' in said


def test_classes_are_those_of_the_data_if_it_is_here(plan):
  code, said, _ = plan('--config', 'quickstart', '--hardware', 'cpu:1')
  assert code == 0 and ', 200 classes in 8 blocks' in said
  _, said, _ = plan('--config', RECIPE, '--hardware', 'cpu:1')
  assert said.startswith('data.source=data/ms1mv2 is not here: planned for the')


def test_a_frozen_backbone_is_planned_as_such(plan):
  code, said, _ = plan(
    *('--config', RECIPE, '--hardware', 'cpu:1'),
    *('--config.start.freeze=true', '--config.start.checkpoint=W'),
  )
  assert code == 0 and 'backbone frozen' in said


HARDWARE = ('--hardware', 'v5e:2x2')
MISTAKES = {
  'no hardware': ((), 'arguments --hardware --same is required'),
  'unknown kind': (('--hardware', 'v9:2x2'), "no kind 'v9'"),
  'unknown topology': (('--hardware', 'v5e:3x5'), "'v5e:3x5'"),
  'dims': (('--hardware', 'v5p:4x4'), "'v5p:4x4'"),
  'no count': (('--hardware', 'h100'), "'h100'"),
  'devices': (
    ('--hardware', 'v5e:4x4'),
    'hardware v5e:4x4: 16 devices do not divide the groups '
    '(data.batch_size / group_size = 4)',
  ),
  'blocks': (
    (*HARDWARE, '--config.head.num_blocks=6'),
    '4 devices do not divide the blocks',
  ),
  'field': ((*HARDWARE, '--config.optim.rate=1'), 'no field optim.rate'),
  'argument': ((*HARDWARE, '--gpus=2'), '--gpus=2'),
  'one to compare': (('--same', 'v5e:2x2'), 'give two or more of one kind'),
  'one twice': (
    ('--same', 'v5e:2x2', 'v5e:2x2'),
    'give two or more of one kind',
  ),
  'two kinds': (
    ('--same', 'v5e:2x2', 'v6e:2x2'),
    '--same v5e:2x2 v6e:2x2: give two or more of one kind',
  ),
  'both': (
    ('--same', 'v5e:2x2', 'v5e:1x1', '--largest'),
    '--largest is for --hardware',
  ),
  'memory': ((*HARDWARE, '--memory', '-3'), '-3 must be a positive number'),
  'no byte': ((*HARDWARE, '--memory', '1e-12'), 'must be a positive number'),
  'too large': ((*HARDWARE, '--memory', '1e300'), 'must be a positive number'),
  'classes': ((*HARDWARE, '--num-classes', '0'), '0 must be an integer from 1'),
  'few classes': (
    (*HARDWARE, '--num-classes', '9'),
    'head.num_blocks=16 must be between 1 and the 9 classes',
  ),
  'out': (
    (*HARDWARE, '--out', 'no/such/plan.json'),
    '--out no/such/plan.json: there is no folder',
  ),
  'save': (
    (*HARDWARE, '--save', 'setup.cfg'),
    '/setup.cfg is a file; give a folder',
  ),
  'endless memory': (
    (*HARDWARE, '--largest', '--memory', '1e12'),
    'images and more fit v5e:2x2; give the memory',
  ),
  'largest without memory': (
    ('--hardware', 'cpu:1', '--largest'),
    'the memory of cpu:1 is not known; give it by --memory',
  ),
  'fits nowhere': (
    (*HARDWARE, '--hardware', 'v5e:1x1', '--memory', '0.2'),
    'the step fits none of v5e:2x2, v5e:1x1',
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_end_in_one_line(plan, name):
  arguments, words = MISTAKES[name]
  code, _, err = plan('--config', RECIPE, *arguments)
  assert code == 2
  assert len(err.strip().splitlines()) == 1
  assert words in err


def test_a_config_that_is_not_there(plan):
  code, _, err = plan('--config', 'elastic_ark_r100_ms1mv2', *HARDWARE)
  assert code == 2 and 'did you mean' in err
