# SPDX-License-Identifier: Apache-2.0
"""Recipes, the fields of a config, and every mistake in them: one line each."""

import inspect
import json
import re
from pathlib import Path
from shlex import split

import pytest

from elasticface_jax import cli, config_rules, models, recipes
from elasticface_jax.data import order
from elasticface_jax.errors import InputError
from elasticface_jax.losses import _blocks, _margins, _targets
from elasticface_jax.models import iresnet
from elasticface_jax.training import checkpoint, loss, optimizer, run_folder

CONFIGS = Path(__file__).parents[1] / 'configs'
NAMES = recipes.names()
PAPER = 'elastic_arc_r100_ms1mv2'


def base_fields():
  return config_rules.flatten(recipes.base().to_dict())


def test_the_base_has_every_field_and_no_other():
  assert recipes.folder() == CONFIGS
  arguments = {f'loss.{name}' for name in recipes.loss('elastic_arcface')}
  assert base_fields().keys() == config_rules.RULES.keys() | arguments


def test_names_in_the_rules_are_those_of_the_code():
  words = {
    'model.name': (*models.STAGES, 'mobilefacenet', *models.VITS),
    'model.dtype': models.backbone._DTYPES,
    'head.precision': _blocks.PRECISIONS,
    'loss.pairing': _margins.PAIRINGS,
    'loss.gradient': _targets.GRADIENTS,
    'optim.name': optimizer.OPTIMIZERS,
  }
  for field, known in words.items():
    rule = config_rules.rule_of(field, 'arcface')
    assert rule.words == f'one of {", ".join(known)}'
  window = config_rules.RULES['data.window']
  assert window.allows(order.RUN) and not window.allows(order.RUN - 1)
  wide = {'model.use_se': True, 'model.width': iresnet.SE_REDUCTION}
  config_rules.check_values(wide)
  with pytest.raises(InputError, match='must be a multiple of 16'):
    config_rules.check_values(wide | {'model.width': 8})


@pytest.mark.parametrize('name', ['iresnet18', 'mobilefacenet', 'vit_t'])
@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('dropout', 0.1),
    ('use_se', True),
    ('block', 'adaface'),
    ('output_norm', 'plain'),
    ('input_norm', True),
    ('drop_path', 0.1),
    ('mask_ratio', 0.1),
    ('width', 3),
    ('remat', True),
  ],
)
def test_networks_have_fields_as_in_the_code(name, field, value):
  changes = {'model.name': name, f'model.{field}': value}
  errors = []
  for check in (
    lambda: config_rules.check_values(base_fields() | changes),
    lambda: models.build(name, **{field: value}),
  ):
    try:
      check()
    except InputError as error:
      errors.append(str(error))
  assert len(errors) in (0, 2)
  if errors:
    assert f'model.{field}={value!r}' in errors[0]
    assert '\n' not in ''.join(errors)
  is_own = field in ('drop_path', 'mask_ratio', 'width')
  assert (
    bool(errors)
    == {
      'iresnet18': is_own and field != 'width',
      'mobilefacenet': field not in ('width', 'remat'),
      'vit_t': field not in ('drop_path', 'mask_ratio', 'remat'),
    }[name]
  )


def test_the_base_has_the_published_arguments_of_every_loss(named_losses):
  for name, function in named_losses.items():
    published = recipes.loss(name)
    assert list(loss.by_name(published).fields().items()) == list(
      published.items()
    )
    parameters = inspect.signature(function).parameters
    assert published.keys() - {'name'} <= parameters.keys()
  assert recipes._base().LOSSES.keys() == named_losses.keys()


def test_fields_of_two_recipes_are_not_shared():
  recipes.base().data.synthetic.num_images = 5
  assert recipes.base().data.synthetic.num_images == 1_024


@pytest.mark.parametrize('name', NAMES)
def test_recipes(name):
  config = recipes.load(name)
  text = (CONFIGS / f'{name}.py').read_text()
  assert f'Run: elasticface train --config {name} --workdir ' in text
  smoke = recipes.load(f'{name}:smoke')
  assert (smoke.total_steps, smoke.data.source) == (4, 'synthetic')
  assert smoke.loss == config.loss and smoke.optim == config.optim
  family = re.match('[a-z]+', config.model.name)[0]
  assert smoke.model.name.startswith(family)


def test_every_loss_has_a_recipe_for_ms1mv2(named_losses):
  found = {recipes.load(n).loss.name for n in NAMES if 'ms1mv2' in n}
  assert found == named_losses.keys() - {'normface'}


def test_paper_recipes_follow_the_paper():
  drawn = {
    'elastic_arc': ('elastic_arcface', 0.5, 0.05),
    'elastic_cos': ('elastic_cosface', 0.35, 0.05),
    'elastic_arc_plus': ('elastic_arcface_plus', 0.5, 0.0175),
    'elastic_cos_plus': ('elastic_cosface_plus', 0.35, 0.025),
    'arcface': ('arcface', 0.5, None),
    'cosface': ('cosface', 0.35, None),
  }
  for stem, expected in drawn.items():
    c = recipes.load(f'{stem}_r100_ms1mv2')
    assert c.total_steps == 295_672
    assert c.optim.decay_steps == (79_604, 147_836, 216_068, 272_928)
    assert (c.data.batch_size, c.group_size) == (512, 128)
    found = c.loss.name, c.loss.margin, c.loss.to_dict().get('margin_std')
    assert found == expected


@pytest.mark.parametrize(
  'chips, rate, steps_of_an_epoch, warmup',
  [(16, 0.2, 2_843, 2), (64, 0.6, 710, 4)],
)
def test_recipes_for_pods(chips, rate, steps_of_an_epoch, warmup):
  c = recipes.load(f'elastic_arc_r100_ms1mv2_{chips}chips')
  # A group for each chip, and two blocks.
  assert c.data.batch_size / c.group_size == chips
  assert c.head.num_blocks == 2 * chips
  paper = recipes.load(PAPER)
  assert (c.group_size, c.loss) == (paper.group_size, paper.loss)
  assert c.optim.lr * c.data.batch_size / 512 == pytest.approx(rate)
  assert c.optim.warmup_steps == warmup * steps_of_an_epoch
  # The paper's schedule in epochs.
  epochs = [step / steps_of_an_epoch for step in c.optim.decay_steps]
  assert epochs == [step / 11_372 for step in paper.optim.decay_steps]
  assert c.total_steps / steps_of_an_epoch == paper.total_steps / 11_372


# Images and epochs, a GPU's batch, GPUs and accumulated batches, the rate, the
# epochs of the warm-up, and the share of the classes.
ARCFACE_TORCH = {
  'cosface_vit_t_wf42m': (42_474_557, 40, 512, 8, 1, 1e-3, 4, 0.3),
  'cosface_vit_s_wf42m': (42_474_557, 40, 384, 64, 1, 1e-3, 4, 0.3),
  'cosface_vit_b_wf42m': (42_474_557, 40, 256, 8, 12, 1e-3, 4, 0.3),
  'cosface_mobilefacenet_wf42m': (42_474_557, 20, 512, 16, 1, 0.4, 2, 0.2),
  'arcface_mobilefacenet_ms1mv3': (5_179_510, 40, 128, 8, 1, 0.1, 0, 1.0),
}


@pytest.mark.parametrize('name', ARCFACE_TORCH)
def test_recipes_of_arcface_torch(name):
  images, epochs, own, gpus, parts, rate, warmup, share = ARCFACE_TORCH[name]
  c = recipes.load(name)
  assert (c.group_size, c.head.sample_rate) == (own, share)
  assert c.data.batch_size == own * gpus * parts
  steps = images // c.data.batch_size
  assert c.total_steps == c.optim.decay_end == epochs * steps
  assert c.optim.warmup_steps == warmup * steps
  assert (c.optim.decay_steps, c.optim.decay_power) == ((), 1.0)
  # Each of the accumulated batches adds to the gradient that it clips.
  assert c.optim.backbone_clip_norm * parts == pytest.approx(5)
  is_vit = c.model.name.startswith('vit')
  found = c.optim.name, c.optim.weight_decay
  assert found == (('adamw', 0.1) if is_vit else ('sgd', 1e-4))
  assert (c.model.drop_path, c.model.mask_ratio) == (
    0.05 if is_vit else 0,
    0.05 if c.model.name == 'vit_b' else 0,
  )
  assert c.optim.lr * c.data.batch_size / 512 == pytest.approx(rate)


# Where recipes are.


def test_recipes_are_found_by_name_and_by_path(monkeypatch, tmp_path):
  file = CONFIGS / 'quickstart.py'
  assert recipes.find('quickstart') == recipes.find('quickstart:smoke') == file
  monkeypatch.chdir(CONFIGS.parent)
  assert recipes.find('configs/quickstart.py:smoke').samefile(file)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(OWN)
  assert recipes.find('mine.py') == Path('mine.py')
  assert recipes.load('mine.py').optim.lr == 1.0
  assert recipes.load(tmp_path / 'mine.py').optim.lr == 1.0


def test_an_installed_package_has_its_own_recipes(monkeypatch, tmp_path):
  package = tmp_path / 'elasticface_jax'
  monkeypatch.setattr(recipes, '__file__', str(package / 'recipes.py'))
  with pytest.raises(InputError, match='has no recipes: install'):
    recipes.folder()
  (package / 'configs').mkdir(parents=True)
  (package / 'configs' / 'base.py').write_text('')
  (package / 'configs' / 'tiny.py').write_text('')
  assert recipes.names() == ['tiny']
  assert recipes.find('tiny') == package / 'configs' / 'tiny.py'


OWN = """
from elasticface_jax import recipes

def get_config(size=''):
  c = recipes.base()
  c.loss = recipes.loss('cosface', margin=0.4)
  c.optim.lr = 1
  c.optim.decay_steps = [10, 20]
  if size == 'large':
    c.data.batch_size = 1024
  return c
"""


def test_a_users_own_recipe(tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(OWN)
  c = recipes.load(file)
  assert c.loss.to_dict() == {'name': 'cosface', 'scale': 64.0, 'margin': 0.4}
  assert type(c.optim.lr) is float and c.optim.decay_steps == (10, 20)
  assert recipes.load(f'{file}:large').data.batch_size == 1_024
  assert recipes.load(f'{file}:small') == c
  # An edit within the same second, of the same length.
  file.write_text(OWN.replace('margin=0.4', 'margin=0.3'))
  assert recipes.load(file).loss.margin == 0.3


# The command line.


def changed(*overrides, config='quickstart'):
  return recipes.load(config, [f'--config.{o}' for o in overrides])


@pytest.mark.parametrize(
  'override, value',
  [
    ('seed=1_000', 1_000),
    ('optim.lr=1', 1.0),
    ('optim.lr=1e-2', 0.01),
    ('model.use_se=true', True),
    ('model.remat=False', False),
    ('data.source=gs://bucket/a=b', 'gs://bucket/a=b'),
    ('optim.decay_steps=()', ()),
    ('optim.decay_steps=7', (7,)),
    ('optim.decay_steps=[7, 9]', (7, 9)),
    ('optim.decay_steps=7,9', (7, 9)),
    ('eval.pairs=()', ()),
    ('eval.pairs=a.bin', ('a.bin',)),
    ("eval.pairs=('a.bin','b (1).bin')", ('a.bin', 'b (1).bin')),
    ('loss.clip=(-1,2)', (-1.0, 2.0)),
    ('start.checkpoint=', ''),
  ],
)
def test_values_have_the_type_of_their_field(override, value):
  name = override.split('=')[0]
  found = config_rules.flatten(changed(override).to_dict())[name]
  assert found == value and type(found) is type(value)


def test_another_loss_has_its_published_arguments():
  for flags in (
    ['loss.scale=32', 'loss.name=cosface'],
    ['loss.name=arcface', 'loss.name=cosface', 'loss.scale=32'],
  ):
    for config in NAMES:
      found = changed(*flags, config=config).loss.to_dict()
      own = recipes.load(config).loss
      # The loss that the recipe has stays as it is.
      margin = own.margin if own.name == 'cosface' else 0.35
      assert found == {'name': 'cosface', 'scale': 32.0, 'margin': margin}
  assert changed('loss.name=elastic_arcface') == changed()


def test_print(capsys, tmp_path):
  def printed(*arguments):
    assert cli.main(['train', '--print', '--config', *arguments]) == 0
    return capsys.readouterr().out.splitlines()

  before = printed('quickstart')
  assert len(before) == len(base_fields())
  assert before[:2] == ['seed = 0', 'total_steps = 160']
  after = printed('quickstart', '--config.optim.lr=0.5')
  assert set(before) ^ set(after) == {'optim.lr = 0.8', 'optim.lr = 0.5'}
  # As overrides of another recipe the lines give the same config again.
  flags = [f'--config.{line.replace(" = ", "=", 1)}' for line in before]
  flags = [re.sub("='(.*)'$", r'=\1', flag) for flag in flags]
  assert printed('adaface_r100_ms1mv2', *flags) == before
  workdir = tmp_path / 'w'
  assert printed('quickstart', '--workdir', str(workdir)) == before
  assert not workdir.exists()


# Mistakes.


@pytest.fixture
def fails(capsys, tmp_path):
  """``fails(*arguments)``: the line that `train` ends with, code 2."""

  def run(*arguments):
    workdir = tmp_path / 'w'
    command = ['train', '--workdir', workdir, '--config', *arguments]
    assert cli.main([str(a) for a in command]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and not captured.out, captured
    assert not workdir.exists()
    return captured.err

  return run


# Arguments, and below them a part of the line that they give.
MISTAKES = r"""
# Recipes that are not there.
quikstart
  no such file, nor the name of a recipe; did you mean quickstart?
configs/nothing.py
  --config configs/nothing.py: no such file
quickstart:fast
  takes no argument 'fast'; there is only :smoke
# Fields that are not there.
--config.optim.momentom=1
  no field optim.momentom; did you mean optim.momentum?
--config.margin=1
  no field margin; did you mean loss.margin?
--config.lr=1
  there is no field lr; did you mean optim.lr?
--config.optim.rate=1
  no field optim.rate; --print lists them all
--config.loss.name=cosface --config.loss.margin_std=0
  cosface has no argument loss.margin_std; did you mean loss.margin?
--config.loss.m2=1
  elastic_arcface has no argument loss.m2; it has loss.scale, loss.margin,
--config.loss.name=arc
  loss.name='arc' is unknown; use one of normface, arcface,
--config.loss.name=subcenter_arcface
  set --config.loss.name=arcface and --config.head.subcenters=3
# Arguments that are no fields.
--lr 1
  unknown argument '--lr'; fields are set as --config.field=value
extra
  unknown argument 'extra'
--config.seed 1
  --config.seed needs a value: --config.seed=VALUE
"--config.loss={'name': 'cosface'}"
  loss is a section; set its fields one by one, as --config.loss.name=elas
# Types.
--config.total_steps=many
  total_steps=many must be an integer in [1, 2**31)
--config.total_steps=1e3
  total_steps=1e3 must be an integer in [1, 2**31)
--config.seed=None
  seed=None must be an integer in [0, 2**31)
--config.optim.lr=fast
  optim.lr=fast must be a positive
--config.model.remat=2
  model.remat=2 must be True or False
--config.loss.clip=None
  loss.clip=None must be () for no bounds, or (low,high)
# Pair sets.
--config.eval.pairs=5
  eval.pairs=5 must be the name of a file of pairs
--config.eval.pairs=None
  eval.pairs=None must be the name
--config.eval.pairs=a.bin,b.bin
  several of them as --config.eval.pairs="('a.bin','b.bin')"
--config.eval.pairs=(a.bin,b.bin)
  eval.pairs=(a.bin,b.bin) must be
# Fields that do not fit together.
--config.data.batch_size=40
  =40 is not a multiple of group_size=16
--config.model.use_se=True --config.model.width=8
  model.width=8
--config.start.freeze=True
  needs weights: set start.checkpoint
--config.optim.decay_end=20
  optim.warmup_steps=20 must be less than optim.decay_end=20: change one
--config.optim.decay_end=100
  total_steps=160 is more than optim.decay_end=100, from where on the rate is 0
--config.start.head=True
  start.head=True needs weights
--config.data.synthetic.num_images=5
  data.synthetic.num_images=5 is less than data.synthetic.num_classes=200
--config.loss.name=magface --config.loss.upper_norm=5
  loss.lower_norm=10.0 must be less than loss.upper_norm=5.0
"""


def pairs_of(text):
  lines = [line for line in text.splitlines() if line and line[0] != '#']
  return list(zip(lines[::2], map(str.strip, lines[1::2]), strict=True))


@pytest.mark.parametrize('arguments, words', pairs_of(MISTAKES))
def test_mistakes_at_the_command_line(fails, arguments, words):
  own = arguments.startswith(('-', '"', 'extra'))
  assert words in fails(*(['quickstart'] if own else []), *split(arguments))


def test_files_that_are_no_recipes(fails):
  assert f'recipes are in {CONFIGS}' in fails('nowhere')
  line = fails(CONFIGS.parent / 'README.md')
  assert 'README.md is no Python file (.py)' in line
  assert 'base.py has no function get_config()' in fails(CONFIGS / 'base.py')


# Bodies of get_config or whole recipes, then the words that follow the file.
GET = """from elasticface_jax import recipes
def get_config():
  c = recipes.base()
"""
MISTAKEN = r"""
  c.optm = 1
  return c
: there is no field optm; did you mean optim?

  c.lr = 1
  return c
: there is no field lr; did you mean optim.lr?

  c.loss.marign = 0.2
  return c
: elastic_arcface has no argument loss.marign; did you mean loss.margin?

  c.head = dict(num_blocks=8)
  return c
: the field head.subcenters is missing; recipes.base() has every field

  del c.loss
  return c
: the field loss.name is missing

  c.loss = dict(name='cosface', scale=64.0)
  return c
: the field loss.margin is missing; cosface takes loss.scale, loss.margin

  c.optim.lr = '0.8'
  return c
: optim.lr='0.8' must be a positive and finite number

  c.seed = True
  return c
: seed=True must be an integer in [0, 2**31)

  c.augment = 7
  return c
: augment=7 must be a section

  c.group_size = 7
  return c
: data.batch_size=512 is not a multiple of group_size=7

  c.eval.pairs = 'lfw.bin'
  return c
: eval.pairs='lfw.bin' must be the name of a file of pairs

  c.seed = SEED
, line 4: NameError: name 'SEED' is not defined

  c.agument.flip = 0.5
, line 4: the config has no field agument there; did you mean augment?

  c.seed = c['sed']
, line 4: the config has no field sed there; did you mean seed?

  return {}[1]
, line 4: KeyError: 1

  return recipes.bass()
, line 4: AttributeError: module 'elasticface_jax.recipes' has no attribute

  c.loss = recipes.loss('arc')
, line 4: loss.name='arc' is unknown; use one of normface

def get_config(:
, line 1: SyntaxError: invalid syntax

x = 1
  y = 2
, line 2: IndentationError: unexpected indent

import nothing_such
, line 1: ModuleNotFoundError: No module named 'nothing_such'

from elasticface_jax import nothing
, line 1: ImportError: cannot import name 'nothing'

import sys
sys.exit(0)
, line 2: SystemExit: 0

1 / 0
, line 1: ZeroDivisionError: division by zero

def getconfig(): pass
 has no function get_config(), which every recipe has

get_config = 5
 has no function get_config(), which every recipe has

  c.seed = 1
, line 2: get_config() returns None and no ConfigDict: begin with c = recipes

  return c.to_dict()
, line 2: get_config() returns a dict and no ConfigDict: begin with c = recip

def get_config(size): pass
, line 1: get_config(size) needs an argument: give it as --config
"""


@pytest.mark.parametrize('mistake', MISTAKEN.strip('\n').split('\n\n'))
def test_mistakes_in_a_recipe(fails, tmp_path, mistake):
  code, _, words = mistake.rpartition('\n')
  file = tmp_path / 'own.py'
  file.write_text(GET + code if code.startswith(' ') else code)
  assert f'{file}{words}' in fails(file)


def test_a_file_of_zeros(fails, tmp_path):
  file = tmp_path / 'own.py'
  file.write_bytes(bytes(9))
  assert f'{file}: ' in fails(file)


def test_an_argument_that_a_recipe_does_not_take(fails, tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(GET + '  return c')
  line = fails(f'{file}:fast')
  assert f"{file}, line 2: get_config() takes no argument 'fast'" in line


NAN, INF = float('nan'), float('inf')
COUNT = (0, -1, 1.5, '1', True, 2**31)
INTERVAL = (-1, 1.5, None)
RANGE = ((0.9, 0.2), (0.5,), (0.1, 0.2, 0.3), (NAN, 1.0), (0.5, INF), None, ())
# Values that no field may have; each field has some.
IMPOSSIBLE = {
  'seed': (-1, 0.5, 2**31),
  'total_steps': COUNT,
  'group_size': (*COUNT, 1),
  'data.source': ('', None),
  'data.batch_size': COUNT,
  'data.window': (-1, 1, 1_023),
  'data.synthetic.num_images': COUNT,
  'data.synthetic.num_classes': COUNT,
  'augment.flip': (7, -0.1, NAN),
  'augment.resized_crop': (1.1, -0.1, NAN),
  'augment.crop': (2, -1, NAN),
  'augment.crop_area': (*RANGE, (0.0, 1.0), (0.2, 1.1), 0.5),
  'augment.crop_aspect': (*RANGE, (0.0, 1.0), (0.5, 101.0)),
  'augment.low_resolution': (1.5, -0.5, None),
  'augment.low_resolution_side': (*RANGE, (0.0, 1.0), (0.2, 1.5)),
  'augment.photometric': (1.5, -0.5, NAN),
  'augment.brightness': (*RANGE, (-0.1, 1.0), (0.0, 101.0)),
  'augment.contrast': (*RANGE, (-0.5, 0.5), (0.0, 1e9)),
  'augment.saturation': (*RANGE, (-2.0, -1.0), (0.5, 200.0)),
  'augment.grey': (1.01, -0.01, NAN),
  'augment.blur': (7, -7, NAN),
  'augment.blur_sigma': (*RANGE, (0.0, 2.0), (0.1, 20.5)),
  'model.name': ('resnet', None),
  'model.width': COUNT,
  'model.embedding_dim': COUNT,
  'model.dropout': (1.0, -0.1, NAN),
  'model.use_se': (1, 'True', None),
  'model.dtype': ('float8', None),
  'model.remat': (0, None),
  'model.block': ('resnet', None),
  'model.output_norm': ('none', None),
  'model.input_norm': (1, 'True', None),
  'model.drop_path': (1.0, -0.1, NAN),
  'model.mask_ratio': (1.0, -0.1, NAN),
  'head.num_blocks': COUNT,
  'head.subcenters': COUNT,
  'head.sample_rate': (0.0, -0.1, 1.5, NAN),
  'head.precision': ('low', None),
  'start.checkpoint': (None, 5),
  'start.head': (1, ''),
  'start.freeze': (1, ''),
  'loss.name': ('', None),
  'loss.scale': (0.0, -1.0, NAN, INF, '64'),
  'loss.margin': (NAN, INF),
  'loss.margin_std': (-0.1, NAN, INF),
  'loss.clip': (None, (None,), (1.0,), (1.0, -1.0), (0.0, INF), 5.0),
  'loss.gradient': ('none',),
  'optim.name': ('adam', None),
  'optim.lr': (0.0, -1.0, NAN, INF, '0.1'),
  'optim.warmup_steps': INTERVAL,
  'optim.decay_steps': ((135, 100), (100, 100), (0, 9), (-4,), (1.5,), 100),
  'optim.decay_factor': (0.0, -10.0, 10.0, NAN),
  'optim.decay_end': (-1, 1.5, None, 2**31),
  'optim.decay_power': (0.0, -1.0, NAN, INF),
  'optim.momentum': (1.0, 5.0, -0.1, NAN),
  'optim.beta1': (0.0, 1.0, -0.1, NAN),
  'optim.beta2': (0.0, 1.0, 1.5, NAN),
  'optim.eps': (0.0, -1e-8, NAN, INF),
  'optim.weight_decay': (-1.0, NAN, INF),
  'optim.backbone_clip_norm': (0.0, -1.0, NAN, INF),
  'log_every': INTERVAL,
  'eval_every': INTERVAL,
  'checkpoint_every': INTERVAL,
  'checkpoint_checksums': (1, 'True', None),
  'fingerprint_every': INTERVAL,
  'keep_checkpoints': COUNT,
  'eval.pairs': (5, 'a.bin', ('',), (None,)),
  'eval.synthetic_pairs': (0, 30, -20, 20.0),
  'eval.folds': (0, 1, 2.0, '10'),
  'eval.rows': COUNT,
}


def test_every_field_has_impossible_values():
  assert IMPOSSIBLE.keys() == base_fields().keys()


@pytest.mark.parametrize('field', IMPOSSIBLE)
def test_impossible_values(field):
  good = base_fields()
  for value in IMPOSSIBLE[field]:
    config = config_rules.nest(good | {field: value})
    with pytest.raises(InputError) as error:
      recipes._checked(config)
    assert str(error.value).startswith(f'{field}={value!r} '), error.value
    assert '\n' not in str(error.value)
    # The same on the command line, where any text is a string.
    if config_rules.rule_of(field, 'arcface').kind is not str and (
      not isinstance(value, str) and value not in (True, 100, 5.0)
    ):
      with pytest.raises(InputError, match=re.escape(f'{field}=')):
        changed(f'{field}={value}', config=PAPER)


# Saved configs.


def test_a_saved_config_is_the_config(tmp_path):
  config = changed('optim.decay_steps=(7,9)', 'loss.clip=(-1,1)').to_dict()
  checkpoint.write_json(tmp_path / 'config.json', config)
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['loss']['clip'] == [-1.0, 1.0]
  assert recipes._checked(saved) == config
  config_rules.check_saved(saved, 'w/config.json', ['seed', 'model.width'])
  saved['model']['width'] = '16'
  with pytest.raises(InputError, match=r"^w/config.json: model.width='16' mus"):
    config_rules.check_saved(saved, 'w/config.json', ['seed', 'model.width'])
  del saved['model']['width']
  with pytest.raises(InputError, match=r'^w/config.json has no field model.wi'):
    config_rules.check_saved(saved, 'w/config.json', ['seed', 'model.width'])


def test_a_run_folder_takes_the_config_that_it_has(tmp_path):
  claim = lambda config: run_folder.claim(tmp_path, config.to_dict(), 'd')
  claim(changed('loss.clip=(-1,1)'))
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  claim(changed('loss.clip=[-1,1]', 'eval.pairs=()'))
  with pytest.raises(InputError, match=r'loss.clip was \[-1.0, 1.0\], is \[\]'):
    claim(changed())
