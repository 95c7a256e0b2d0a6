# SPDX-License-Identifier: Apache-2.0
"""Configs of a study: recipes, changes and varied fields; their names."""

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.studies import variants


def made(*specs, changes=(), vary=()):
  return variants.make([str(spec) for spec in specs], changes, vary)


def names(*specs, **keywords):
  return [variant.name for variant in made(*specs, **keywords)]


def test_names_of_recipes(recipe):
  assert names('quickstart') == ['quickstart']
  assert names('quickstart:smoke') == ['quickstart_smoke']
  one, other = f'{recipe}:arcface', f'{recipe}:cosface'
  assert names(one, other) == ['arcface', 'cosface']
  assert names(one) == ['losses_arcface']
  assert names(one, 'quickstart') == ['losses_arcface', 'quickstart']


@pytest.mark.parametrize(
  ('vary', 'name'),
  [
    ('loss.margin_std=0.10', 'margin_std=0.1'),
    ('loss.name=cosface', 'loss.name=cosface'),  # Networks have names, too.
    ('optim.decay_steps=(10,20)', 'decay_steps=10-20'),
    ('model.use_se=true', 'use_se=True'),
    ('data.source=/faces/my set', 'source=_faces_my_set'),
    ('eval.pairs=()', 'pairs=none'),
  ],
)
def test_names_of_choices(vary, name):
  assert names('quickstart', vary=[vary]) == [name]


def test_all_choices_are_combined(recipe):
  specs = f'{recipe}:arcface', f'{recipe}:elastic_arcface'
  vary = 'loss.margin=0.3,0.4', 'optim.decay_steps=(),(1,2)'
  found = made(*specs, changes=['--config.optim.lr=0.7'], vary=vary)
  assert [
    (v.fields['loss.name'], v.fields['loss.margin'], v.fields[decay])
    for decay in ['optim.decay_steps']
    for v in found
  ] == [
    (loss, margin, steps)
    for loss in ('arcface', 'elastic_arcface')
    for margin in (0.3, 0.4)
    for steps in ((), (1, 2))
  ]
  assert {v.fields['optim.lr'] for v in found} == {0.7}
  assert found[3].name == 'arcface,margin=0.4,decay_steps=1-2'
  assert found[3].changes == (
    '--config.optim.lr=0.7',
    '--config.loss.margin=0.4',
    '--config.optim.decay_steps=(1,2)',
  )


def test_config_of_a_run_has_every_field_and_the_seed(recipe):
  (variant,) = made(f'{recipe}:arcface')
  assert 'seed' not in variant.fields
  recipe.write_text('edited while a study runs')
  config = variant.config(3)
  assert (config.seed, config.loss.name) == (3, 'arcface')
  with pytest.raises(AttributeError):
    config.another = 1


def test_runs_come_seed_by_seed():
  every = variants.runs(made('quickstart', 'quickstart:smoke'), range(2))
  assert [run.name for run in every] == [
    'quickstart:0',
    'quickstart_smoke:0',
    'quickstart:1',
    'quickstart_smoke:1',
  ]
  assert variants.choose(every, '2') is every[2]
  assert variants.choose(every, 'quickstart_smoke:1') is every[3]
  assert every[3].title == 'quickstart_smoke, seed 1'


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('a', ['a']),
    ('a,b', ['a', 'b']),
    ('(1,2),[3,4],()', ['(1,2)', '[3,4]', '()']),
    ("('a,b.bin','(c'),d", ["('a,b.bin','(c')", 'd']),
    ('', ['']),
  ],
)
def test_values_are_split_at_outer_commas(text, values):
  assert variants.split_values(text) == values


def test_field_that_one_config_lacks_differs():
  configs = [{'a': 1, 'b': 2}, {'a': 1, 'c': None}]
  assert variants.differing(configs) == ['b', 'c']
  assert variants.differing(configs[:1]) == []


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config.seed=3'], '--config.seed=3: a study gives its runs the seeds'),
    (['--vary', 'seed=3,4'], '--vary seed: a study gives its runs the seeds'),
    (['--vary', 'loss.margin'], 'give FIELD=VALUE,VALUE, such as loss.margin='),
    (
      ['--vary', 'loss.margin=1,2', '--vary', 'loss.margin=3'],
      'as in --vary loss.margin=1,2,3',
    ),
    (
      ['--vary', 'loss.margin=1,2', '--config.loss.margin=3'],
      '--config.loss.margin=3 sets what --vary loss.margin varies: leave one',
    ),
    (['--vary', 'los.margin=1'], 'no field los.margin; did you mean loss.marg'),
    (['--vary', 'loss.margin=x'], 'loss.margin=x must be a finite number'),
    (['--vary', 'loss.pairing=paper'], 'elastic_arcface has no argument loss.'),
    (['--config.model.width'], '--config.model.width needs a value'),
    (['--config', 'quickstrat'], 'did you mean quickstart'),
    (
      ['--config', 'quickstart'],
      '--config quickstart and --config quickstart would both be called '
      'quickstart: give each once, or rename one of the files',
    ),
    (
      ['--vary', 'model.width=16,16', '--config.group_size=8'],
      '--config quickstart and --config quickstart would both be called '
      'width=16: give each once',
    ),
    (
      ['--config', 'quickstart:smoke', '--vary', 'optim.lr=0.1,0.10'],
      '--config.optim.lr=0.10 would both be called quickstart,lr=0.1',
    ),
    (
      ['--vary', f'data.source={"x" * 200}'],
      'is longer than 200 bytes: put changes into a recipe',
    ),
    (['--seeds', '0'], '--seeds 0: give 1 or more'),
    (['--seeds', 'two'], "argument --seeds: invalid int value: 'two'"),
    (['--only', '1'], '--only 1: the study has 1 runs, 0 to 0; see --list'),
    (
      ['--only', 'quickstrat:0'],
      '--only quickstrat:0: no such run; did you mean quickstart:0?; give '
      'NAME:SEED or a number, as --list prints them',
    ),
    (['--only', '-1'], '--only -1: no such run; give NAME:SEED or a number'),
    (['--out', '~/S'], 'the shell has not replaced the ~'),
    (['--resume'], "unknown argument '--resume'"),
  ],
)
def test_mistakes_end_in_one_line(fails, tmp_path, arguments, words):
  study = '--config', 'quickstart', '--seeds', '1', '--out', tmp_path / 'S'
  assert words in fails(*study, *arguments)
  assert not (tmp_path / 'S').exists()


def test_needed_arguments(fails):
  assert 'arguments are required: --config, --seeds, --out' in fails()


def test_two_files_with_one_config(tmp_path):
  for name in ('one', 'other', '-minus'):
    (tmp_path / f'{name}.py').write_text(
      'from elasticface_jax import recipes\n\n'
      'def get_config():\n  return recipes.base()\n'
    )
  one, other = tmp_path / 'one.py', tmp_path / 'other.py'
  with pytest.raises(InputError, match=r'\(one and other\) are the same conf'):
    made(one, other)
  with pytest.raises(InputError, match=r'called -minus would be hidden or be'):
    made(tmp_path / '-minus.py')
