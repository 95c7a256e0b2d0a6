# SPDX-License-Identifier: Apache-2.0
"""What runs of one seed share: what is said, and whether it is so."""

import jax
import numpy as np
import pytest

from elasticface_jax import config_rules, data, losses, models, recipes
from elasticface_jax.studies import sharing, variants
from elasticface_jax.training import augment, state
from elasticface_jax.training.task import from_config

ALL = (
  'share the initial backbone, the initial class centres, the order of images '
  'and the augmentation'
)


@pytest.fixture
def said(recipe):
  """``said(*vary, changes=())``: the line about two losses or a choice."""

  def say(*vary, changes=(), losses=('arcface',)):
    specs = [f'{recipe}:{loss}' for loss in losses]
    dropout = () if 'dropout' in ''.join(vary) else ('model.dropout=0',)
    changes = *(f'--config.{change}' for change in dropout), *changes
    made = variants.make(specs, changes, vary)
    return sharing.describe([v.fields for v in made], 5)

  return say


def test_losses_share_all(said):
  line = said(losses=('arcface', 'elastic_arcface_plus'))
  assert line.startswith(f'runs of one seed {ALL}; the configs differ in loss.')
  fields = line.partition('differ in ')[2].split(', ')
  assert sorted(fields) == [
    f'loss.{name}' for name in ('clip', 'margin_std', 'name', 'pairing')
  ]


def test_two_that_draw_share_the_draws(said):
  drawing = 'elastic_arcface', 'elastic_arcface_plus'
  assert 'the augmentation and the draws of margins;' in said(losses=drawing)
  assert 'draws' not in said(
    losses=drawing, changes=['--config.loss.margin_std=0']
  )


@pytest.mark.parametrize(
  ('vary', 'words'),
  [
    ('model.width=2,4', 'but do not share the initial backbone (model.width d'),
    (
      'model.embedding_dim=8,16',
      'the initial backbone (model.embedding_dim differs) and the initial '
      'class centres (model.embedding_dim differs);',
    ),
    ('head.subcenters=1,2', 'class centres (head.subcenters differs)'),
    (
      'data.window=0,1024',
      'the order of images (data.window differs) and the augmentation (data.',
    ),
    ('data.batch_size=16,32', 'order of images (data.batch_size differs)'),
    ('augment.flip=0,0.5', 'not share the augmentation (augment.flip differs)'),
    ('head.sample_rate=0.5,0.9', 'sampled classes (head.sample_rate differs)'),
    ('model.dropout=0.1,0.2', 'the dropout (model.dropout differs)'),
    ('group_size=2,4', f'{ALL}; the configs differ in group_size'),
    ('model.remat=true,false', f'{ALL}; the configs differ in model.remat'),
    ('model.dtype=float32,bfloat16', f'{ALL}; the configs differ in model.dt'),
    (
      'model.dtype=float32,float64',
      'the initial backbone (model.dtype differs',
    ),
    ('total_steps=4,8', f'{ALL}; the configs differ in total_steps'),
  ],
)
def test_fields_that_part_runs(said, vary, words):
  assert words in said(vary)


@pytest.mark.parametrize('field', ['drop_path', 'mask_ratio'])
def test_what_a_vit_leaves_out_is_of_the_dropout(field):
  base = config_rules.flatten(recipes.base().to_dict())
  vit = base | {'model.name': 'vit_t'}
  line = sharing.describe([vit | {f'model.{field}': x} for x in (0.1, 0.2)], 5)
  assert f'the dropout (model.{field} differs)' in line
  assert 'the initial backbone' in line.partition('do not share')[0]


def test_other_sources_share_no_classes(said):
  line = said('data.source=synthetic,faces')
  assert 'class centres (data.source differs)' in line
  assert 'the order of images (data.source differs)' in line
  line = said('data.synthetic.num_images=64,128')
  assert 'the order of images (data.synthetic.num_images differs)' in line
  # Another source does not read these.
  line = said(
    'data.synthetic.num_images=64,128', changes=['--config.data.source=faces']
  )
  assert ALL in line and 'do not' not in line


def test_one_config(said):
  assert said().startswith('one config; its 5 runs differ in the seed alone')


# The statements, by the code that makes them true.


def initial(config):
  """Returns the state before the first step, and the keys of the run."""
  with jax.enable_x64(config.model.dtype == 'float64'):
    task = from_config(
      config, models.build(**config.model), 20, state.make_mesh(1)
    )
    keys = task.make_keys(config.seed)
    return task.init(keys['init']), keys


def equal(one, other):
  return jax.tree.structure(one) == jax.tree.structure(other) and all(
    x.shape == y.shape and (np.asarray(x) == np.asarray(y)).all()
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


def order(config, step):
  source = data.open_source(
    config.data.source, **config.data.synthetic, seed=config.seed
  )
  return data.batch_indices(
    step,
    num_images=source.num_images,
    seed=config.seed,
    batch_size=config.data.batch_size,
    window=config.data.window,
  )


def test_losses_begin_alike_and_seeds_do_not(recipe):
  specs = [f'{recipe}:{loss}' for loss in ('arcface', 'elastic_arcface_plus')]
  one, other = variants.make(specs, (), ())
  (first, keys), (second, same_keys) = map(
    initial, (one.config(1), other.config(1))
  )
  third, other_keys = initial(one.config(2))
  assert equal(first.params, second.params)
  assert equal(first.class_centers, second.class_centers)
  assert not equal(first.params, third.params)
  assert not equal(first.class_centers, third.class_centers)

  draw = lambda keys, step: augment.draw(
    jax.random.fold_in(keys['augment'], step), 16, flip=0.5
  )
  for step in (0, 7):
    orders = [order(c, step) for c in (one.config(1), other.config(1))]
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != order(one.config(2), step)).any()
    assert equal(draw(keys, step), draw(same_keys, step))
    assert not equal(draw(keys, step), draw(other_keys, step))


def test_margins_are_the_same_number_of_deviations():
  draw = lambda mean, std: losses.sample_margins(
    jax.random.key(3), (64,), mean=mean, std=std
  )
  np.testing.assert_allclose(
    (draw(0.5, 0.05) - 0.5) / 0.05,
    (draw(0.35, 0.025) - 0.35) / 0.025,
    atol=4e-5,
  )


def test_fields_that_leave_the_initial_backbone(recipe):
  changes = [
    f'--config.{change}'
    for change in (
      *('model.dtype=bfloat16', 'model.dropout=0.5', 'model.remat=true'),
      *('group_size=4', 'head.num_blocks=4', 'head.subcenters=2'),
      *('optim.lr=3', 'loss.name=magface', 'augment.crop=0.5'),
    )
  ]
  (one,) = variants.make([f'{recipe}:arcface'], (), ())
  (other,) = variants.make([f'{recipe}:arcface'], changes, ())
  first, second = (initial(v.config(0))[0].params for v in (one, other))
  assert equal(first, second)
  line = sharing.describe([one.fields, other.fields], 1)
  assert 'one seed share the initial backbone and the order of images' in line


@pytest.mark.parametrize(
  'change', ['width=32', 'embedding_dim=8', 'use_se=true', 'dtype=float64']
)
def test_fields_that_move_the_initial_backbone(recipe, change):
  changes = ['--config.model.width=16'] * ('width' not in change)
  (one,) = variants.make([f'{recipe}:arcface'], changes, ())
  (other,) = variants.make(
    [f'{recipe}:arcface'], [*changes, f'--config.model.{change}'], ()
  )
  shapes = []
  for config in (one.config(0), other.config(0)):
    with jax.enable_x64(config.model.dtype == 'float64'):
      init = models.build(**config.model).init
      shapes.append(jax.eval_shape(init, jax.random.key(0))[0])
  assert shapes[0] != shapes[1]
  field = change.partition('=')[0]
  line = sharing.describe([one.fields, other.fields], 1)
  assert f'not share the initial backbone (model.{field} differs)' in line
