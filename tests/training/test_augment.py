# SPDX-License-Identifier: Apache-2.0
"""Which images are augmented: draws, recipes, and what the step sees.

That bits do not depend on devices is tested with whole runs, in
`test_fingerprint`.
"""

import itertools

import jax
import numpy as np
import pytest

from elasticface_jax import config_rules, recipes
from elasticface_jax.errors import InputError
from elasticface_jax.training import augment

from . import tasks

NAMES = (
  'resized_crop',
  'crop',
  'low_resolution',
  'photometric',
  'grey',
  'blur',
)


def make(**probabilities):
  """Makes augmentations with the ranges of the base."""
  return augment.from_config(recipes.section('augment') | probabilities)


def everything(probability):
  return dict.fromkeys(NAMES, probability)


@pytest.fixture(scope='module')
def images():
  shape = 48, 28, 28, 3
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_flips_are_drawn_as_without_the_others():
  key = jax.random.key(3)
  others = make(**everything(0.2))
  drawn = augment.draw(key, 64, flip=0.5, others=others)
  assert list(drawn) == ['flip', *NAMES]
  np.testing.assert_array_equal(
    drawn['flip'], jax.random.bernoulli(jax.random.clone(key), 0.5, (64,))
  )
  # Nor does one of them move another.
  for other in others:
    (alone,) = make(**{other.name: 0.7})
    key = jax.random.clone(key)
    again = augment.draw(key, 64, flip=0.1, others=[alone])
    assert drawn[other.name].shape == (64, 1 + other.numbers)
    np.testing.assert_array_equal(again[other.name], drawn[other.name])


def test_samples_are_chosen_independently_and_as_often_as_said():
  count, share = 40_000, 0.2
  others = make(**everything(share))
  drawn = augment.draw(jax.random.key(0), count, flip=share, others=others)
  chosen = {name: np.asarray(drawn[name])[:, 0] < share for name in NAMES}
  chosen['flip'] = np.asarray(drawn['flip'])
  # Five standard errors.
  near = lambda found, p: abs(found - p) < 5 * (p * (1 - p) / count) ** 0.5
  for name, which in chosen.items():
    assert near(which.mean(), share), name
  for a, b in itertools.combinations(chosen, 2):
    assert near((chosen[a] & chosen[b]).mean(), share**2), (a, b)
  # Nor does being chosen say anything of what is drawn next.
  for name in NAMES[:4]:
    column = np.asarray(drawn[name])[chosen[name], 1]
    assert abs(column.mean() - 0.5) < 5 * (1 / 12 / len(column)) ** 0.5, name


def test_steps_draw_apart():
  key, others = jax.random.key(0), make(crop=0.5)
  steps = [
    augment.draw(jax.random.fold_in(key, i), 1000, flip=0.5, others=others)
    for i in (0, 1)
  ]
  a, b = (np.asarray(drawn['crop']) for drawn in steps)
  assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.1 and not (a == b).any()


def applied(images, drawn, others):
  """Augments in one compiled program, as NumPy."""
  compiled = jax.jit(lambda *given: augment.apply(*given, others))
  return np.asarray(compiled(images, drawn))


def test_a_sample_that_is_not_chosen_keeps_its_bits(images):
  others = make(**everything(0.3))
  drawn = augment.draw(jax.random.key(1), len(images), flip=0.5, others=others)
  seen = applied(images, drawn, others)
  assert seen.dtype == np.float32
  assert -1 <= seen.min() < seen.max() <= 1
  plain = applied(images, {'flip': drawn['flip']}, ())
  chosen = {o.name: np.asarray(drawn[o.name])[:, 0] < 0.3 for o in others}
  count = sum(chosen.values())
  # All of none, of one and of several are there.
  assert set(count) >= {0, 1, 2, 3}
  for i in np.flatnonzero(count == 0):
    assert seen[i].tobytes() == plain[i].tobytes()
  for other in others:
    alone = applied(images, drawn, (other,))
    for i in np.flatnonzero(count == 1):
      same = seen[i].tobytes() == alone[i].tobytes()
      assert same == chosen[other.name][i], (other, i)


def test_a_model_in_float64_sees_the_same(images):
  others = make(**everything(0.5))
  draw = lambda: augment.draw(jax.random.key(5), 8, flip=0.5, others=others)
  drawn = draw()
  seen = applied(images[:8], drawn, others)
  with jax.enable_x64(True):
    again = draw()
    for name in NAMES:
      assert np.array_equal(again[name], drawn[name]), name
    wide = applied(images[:8], drawn, others)
  assert wide.dtype == np.float32
  np.testing.assert_array_equal(wide, seen)


def test_they_follow_each_other_in_the_order_of_the_base(images):
  fields = [n for n in recipes.section('augment') if n in NAMES]
  assert tuple(fields) == NAMES
  others = make(**everything(1.0))
  assert tuple(other.name for other in others) == NAMES
  drawn = augment.draw(jax.random.key(2), len(images), flip=1.0, others=others)
  expected = images
  for other in others:
    change = jax.jit(jax.vmap(other))
    expected = np.asarray(change(expected, drawn[other.name][:, 1:]))
  seen = applied(images, drawn, others)
  flips = {'flip': drawn['flip']}
  np.testing.assert_array_equal(seen, applied(expected, flips, ()))


@pytest.mark.parametrize('name', NAMES)
def test_probabilities_of_one_and_of_zero(images, name):
  (always,) = make(**{name: 1.0})
  drawn = augment.draw(jax.random.key(0), 48, flip=0.0, others=[always])
  seen = applied(images, drawn, (always,))
  plain = applied(images, {'flip': drawn['flip']}, ())
  changed = (seen != plain).any(axis=(1, 2, 3))
  # A blur may be too narrow to change anything, a crop may leave all.
  assert changed.mean() > 0.8
  assert make(**{name: 0.0}) == ()


# Recipes.


def test_recipes_augment_as_published():
  for name in recipes.names():
    section = recipes.load(name).augment.to_dict()
    others = augment.from_config(section)
    if name != 'adaface_r100_ms1mv2':
      assert others == (), name
      continue
    # arXiv 2204.00964 and its code.
    crop, low, jitter = others
    assert [x.name for x in others] == ['crop', 'low_resolution', 'photometric']
    assert {x.probability for x in others} == {0.2}
    assert (crop.area, low.side) == ((0.2, 1.0), (0.2, 1.0))
    assert crop.aspect == pytest.approx((0.75, 1.3333333))
    factors = jitter.brightness, jitter.contrast, jitter.saturation
    assert set(factors) == {(0.5, 1.5)}
    assert section['flip'] == 0.5


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('crop', 1.5, 'a probability in [0, 1]'),
    ('crop_area', (0.9, 0.2), '(low,high), both in (0, 1], low no more than'),
    ('low_resolution_side', (0.2,), '(low,high), both in (0, 1], low no more'),
    ('brightness', (0.5, 1e9), '(low,high), both in [0, 100], low no more'),
    ('blur_sigma', (0.0, 2.0), '(low,high), pixels, both in [0.01, 20], low'),
  ],
)
def test_mistakes_are_named(field, value, words):
  config = recipes.base().to_dict()
  config['augment'][field] = value
  with pytest.raises(InputError) as error:
    config_rules.check(config)
  found = str(error.value)
  assert found.startswith(f'augment.{field}={value!r} must be {words}')
  assert '\n' not in found


# The step.

SIZES = {
  'batch_size': 12,
  'group_size': 3,
  'num_classes': 21,
}
SEED = 7


@pytest.fixture(scope='module')
def batches():
  rng = np.random.default_rng(0)
  shape = 3, 4, 3
  images = rng.integers(0, 256, (*shape, 112, 112, 3), dtype=np.uint8)
  return images, rng.integers(0, 21, shape, dtype=np.int32)


def test_the_step_sees_what_is_drawn_for_its_samples(batches):
  images, labels = (x[:1] for x in batches)
  backbone = tasks.linear(112 * 112 * 3, 8)
  section = everything(0.5)
  task = tasks.make_task(backbone, 2, **SIZES, augment=section)
  found, _ = tasks.run(task, (images, labels), SEED)

  # Augmented here, and given to a step that does nothing to them.
  key = jax.random.fold_in(task.make_keys(SEED)['augment'], 0)
  others = make(**section)
  drawn = augment.draw(key, 12, flip=0.5, others=others)
  seen = applied(images.reshape(12, 112, 112, 3), drawn, others)
  pixels = np.round(seen * 127.5 + 127.5).astype(np.uint8)
  plain = tasks.make_task(backbone, 2, **SIZES, augment={'flip': 0.0})
  expected, _ = tasks.run(plain, (pixels.reshape(images.shape), labels), SEED)
  for name in ('params', 'class_centers'):
    np.testing.assert_allclose(
      getattr(found[1], name), getattr(expected[1], name), rtol=0, atol=1e-4
    )
  unchanged, _ = tasks.run(plain, (images, labels), SEED)
  assert np.abs(unchanged[1].params - found[1].params).max() > 1e-3
