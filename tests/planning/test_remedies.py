# SPDX-License-Identifier: Apache-2.0
"""Changes of a recipe until it fits, with accounts by formula."""

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.planning import plan, remedies, report
from tests.planning import fakes

MB = 10**6


def search(usable, name='v5e:2x2', fake=None, **changes):
  fake = fake or fakes.Compilations()
  first = plan.make(
    fakes.recipe(**changes), fakes.parse(name), fake, round(usable)
  )
  assert not first.fits
  found, tried = remedies.remedy(first, fake)
  text = report.remedies(first, found, tried)
  assert '\n  ' in text or not tried
  if found is None:
    return None, tried, text
  change = remedies.lines(first.recipe, found.recipe)
  assert text.endswith('it fits with ' + ' '.join(change))
  return change, tried, text


def test_more_blocks_come_first():
  # 10 M classes in 8 blocks: 1,250 MB for one of them.
  state = 110 + 8 * 10 * 512 / 4
  change, tried, _ = search((state + 1280 + 400) * MB, num_classes=10_000_000)
  assert change == ['--config.head.num_blocks=512'] and len(tried) == 1


def test_there_are_no_more_blocks_than_classes():
  fake = fakes.Compilations(of_an_image=1e3)
  _, tried, _ = search(200 * MB, fake=fake, num_classes=6, num_blocks=4)
  assert {x.recipe.num_blocks for x in tried} == {4}


def test_smaller_groups_follow_where_blocks_save_little():
  # 1,280 MB for the images of a group, 11 for a block.
  change, tried, _ = search(1000 * MB)
  assert change == ['--config.group_size=64']
  assert [x.recipe.num_blocks for x in tried] == [32, 8]


def test_then_recomputation_and_what_helps_is_kept():
  fake = fakes.Compilations(of_an_image=30)
  change, tried, _ = search(420 * MB, fake=fake)
  assert change == ['--config.group_size=16', '--config.model.remat=True']
  assert [x.recipe.group_size for x in tried] == [128, 64, 32, 16, 16]


def test_sampled_classes_come_last():
  # 167 MB for a block, and nearly nothing for an image.
  fake = fakes.Compilations(of_an_image=0.05, of_a_class=1)
  change, tried, _ = search(340 * MB, fake=fake, num_blocks=512)
  assert change == ['--config.head.sample_rate=0.1']
  assert tried[-2].recipe.model['remat']


@pytest.mark.parametrize(
  'optimizer, needed',
  [('sgd', 'momentum need 9'), ('adamw', 'moments need 13')],
)
def test_nothing_is_tried_where_the_state_alone_is_too_large(optimizer, needed):
  change, tried, text = search(
    5000 * MB, num_classes=10_000_000, optimizer=optimizer
  )
  assert change is None and not tried
  # 41 GB of class centres and momentum, 61 of them and both moments; 110 MB of
  # a device are for the rest.
  assert text.endswith(f'{needed} devices or more')


def test_nothing_fits():
  change, tried, text = search(
    300 * MB, fake=fakes.Compilations(of_an_image=50)
  )
  assert change is None and len(tried) >= 4
  assert 'it fits' not in text


def test_the_largest_group_is_exact():
  fake = fakes.Compilations()
  found, beyond = remedies.largest_group(
    fakes.recipe(), fakes.parse(), fake, 4321 * MB
  )
  rest = 110 + 8 * 85_742 * 512 / 4e6 + 85.742 / 8
  size = int((4321 - rest) / 10) // 16 * 16
  assert found.recipe.group_size == size and found.fits
  assert beyond.recipe.group_size == size + 16 and not beyond.fits
  assert found.recipe.batch_size == 4 * size
  assert len(fake.asked) <= 6
  text = report.largest(found, beyond)
  assert (
    f'--config.group_size={size} --config.data.batch_size={4 * size}' in text
  )


@pytest.mark.parametrize('usable', [209 + 170, 209 + 400, 209 + 1500])
def test_the_search_goes_down_too(usable):
  found, beyond = remedies.largest_group(
    fakes.recipe(), fakes.parse(), fakes.Compilations(), usable * MB
  )
  assert found.fits and not beyond.fits
  assert beyond.recipe.group_size == found.recipe.group_size + 16


def test_no_group_fits_or_the_memory_is_not_known():
  with pytest.raises(InputError, match='not even 16 images fit v5e:2x2: 0.37'):
    remedies.largest_group(
      fakes.recipe(), fakes.parse(), fakes.Compilations(), 300 * MB
    )
  with pytest.raises(InputError, match='memory of cpu:2 is not known; give'):
    remedies.largest_group(
      fakes.recipe(), fakes.parse('cpu:2'), fakes.Compilations()
    )
