# SPDX-License-Identifier: Apache-2.0
"""Changes of a recipe until it fits, and the largest group that does."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from elasticface_jax.errors import InputError
from elasticface_jax.planning.compilations import Compilations
from elasticface_jax.planning.hardware import Hardware
from elasticface_jax.planning.plan import Plan, in_gb, make
from elasticface_jax.training.optimizer import OPTIMIZERS
from elasticface_jax.training.state import HEAD_ROWS

# Least share of the peak that a change must save to be kept.
_WORTH = 0.02
_LEAST_GROUP = 16
# Fewer classes in a block leave a matrix unit idle, and saving ends there.
_LEAST_BLOCK = 512
# Share of the memory that one block may take.
_OF_A_BLOCK = 0.05
# Partial FC as published for large sets (arXiv 2203.15565).
_SAMPLE_RATE = 0.1
# Groups are searched in multiples of this many images.
_GROUP_STEP = 16
_MOST_UNITS = 2**16  # A million images.


# Fields of a recipe, as a config has them.
_FIELDS = {
  'num_blocks': 'head.num_blocks',
  'sample_rate': 'head.sample_rate',
  'group_size': 'group_size',
  'batch_size': 'data.batch_size',
}


def lines(before: Any, after: Any) -> list[str]:
  """Returns the fields of a config that differ, as the command line has them.

  Args:
    before: a `benchmark.recipe.Recipe`.
    after: another.
  """
  found = [
    f'--config.{field}={getattr(after, name)}'
    for name, field in _FIELDS.items()
    if getattr(after, name) != getattr(before, name)
  ]
  if after.model != before.model:
    found.append('--config.model.remat=True')
  return found


def in_words(recipe: Any) -> str:
  """Returns what a search may change of a recipe, in a few words."""
  words = [
    recipe.model['name'],
    f'{recipe.batch_size:,} images in groups of {recipe.group_size:,}',
    f'{recipe.num_blocks:,} blocks',
  ]
  if recipe.model['remat']:
    words.append('recomputed')
  if recipe.sample_rate != 1:
    words.append(f'{recipe.sample_rate:g} of the classes')
  return ', '.join(words)


def remedy(plan: Plan, compilations: Compilations) -> tuple[Plan | None, list]:
  """Changes a recipe that does not fit until it does.

  Tries more blocks, then smaller groups, recomputation, and sampled classes; a
  change that saves little is taken back. The batch stays.

  Args:
    plan: of the recipe as it is.
    compilations: where accounts come from.

  Returns:
    The first plan that fits, None if none does; and the plans that were tried.
  """
  best, tried = plan, []
  if devices_for_state(plan) > plan.hardware.num_devices:
    return None, tried
  for steps in (_more_blocks, _smaller_groups, _remat, _sampling):
    for recipe in steps(best):
      found = make(recipe, plan.hardware, compilations, plan.usable_bytes)
      tried.append(found)
      if found.fits:
        return found, tried
      if found.peak_bytes > best.peak_bytes * (1 - _WORTH):
        break
      best = found
  return None, tried


def devices_for_state(plan: Plan) -> int:
  """Returns how many devices are needed to hold the state and the batch.

  Class centres and what the optimiser keeps of them are divided between them;
  all else is not.
  """
  recipe, sizes = plan.recipe, plan.account['bytes']
  width = recipe.embedding_dim * recipe.subcenters
  _, _, kept = OPTIMIZERS[recipe.optimizer]
  head = (1 + kept) * 4 * recipe.num_classes * width
  rest = sizes['state'] + sizes['inputs'] - head / plan.hardware.num_devices
  if plan.usable_bytes is None:
    return 1
  return math.ceil(head / max(plan.usable_bytes - rest, 1))


def _more_blocks(plan: Plan) -> Iterator[Any]:
  recipe = plan.recipe
  rows = min(recipe.batch_size, max(HEAD_ROWS, recipe.group_size))
  # Logits of a block, its centres, what the optimiser keeps, and the new ones;
  # as the compiler counts them for either optimiser.
  _, _, kept = OPTIMIZERS[recipe.optimizer]
  numbers = 3 * rows + (5 + kept) * recipe.embedding_dim
  of_a_class = 4 * numbers * recipe.subcenters
  classes = max(_OF_A_BLOCK * plan.usable_bytes / of_a_class, _LEAST_BLOCK)
  # At least two a device: a single one is copied.
  blocks = 2 * plan.hardware.num_devices
  while recipe.num_classes / blocks > classes:
    blocks *= 2
  if recipe.num_blocks < blocks <= recipe.num_classes:
    yield dataclasses.replace(recipe, num_blocks=blocks)


def _smaller_groups(plan: Plan) -> Iterator[Any]:
  recipe, size = plan.recipe, plan.recipe.group_size
  while size % 2 == 0 and size // 2 >= _LEAST_GROUP:
    size //= 2
    yield dataclasses.replace(recipe, group_size=size)


def _remat(plan: Plan) -> Iterator[Any]:
  recipe = plan.recipe
  if not recipe.model['remat']:
    model = {**recipe.model, 'remat': True}
    yield dataclasses.replace(recipe, model=model)


def _sampling(plan: Plan) -> Iterator[Any]:
  recipe = plan.recipe
  if recipe.sample_rate > _SAMPLE_RATE:
    yield dataclasses.replace(recipe, sample_rate=_SAMPLE_RATE)


def largest_group(
  recipe: Any,
  hardware: Hardware,
  compilations: Compilations,
  usable_bytes: int | None = None,
) -> tuple[Plan, Plan]:
  """Finds the largest group that fits, with the same number of groups.

  Args:
    recipe: a `benchmark.recipe.Recipe`; its batch grows and shrinks with the
      group.
    hardware: the devices.
    compilations: where accounts come from.
    usable_bytes: of a device, instead of the hardware's own.

  Returns:
    The plan of the largest group that fits, in multiples of 16 images, and that
    of the next one, which does not.

  Raises:
    InputError: if not even 16 images fit, or the memory is not known.
  """
  groups = recipe.batch_size // recipe.group_size

  def plan(units: int) -> Plan:
    size = units * _GROUP_STEP
    changed = dataclasses.replace(
      recipe, group_size=size, batch_size=size * groups
    )
    return make(changed, hardware, compilations, usable_bytes)

  if not (usable_bytes or hardware.kind.usable_bytes):
    raise InputError(
      f'--largest: the memory of {hardware.name} is not known; give it by '
      '--memory'
    )
  fitting, too_large = None, None
  units = max(1, recipe.group_size // _GROUP_STEP)
  while True:
    found = plan(units)
    if found.fits:
      fitting, low = found, units
    else:
      too_large, high = found, units
    if found.fits and units > _MOST_UNITS:
      raise InputError(
        f'--largest: {units * _GROUP_STEP:,} images and more fit '
        f'{hardware.name}; give the memory that it has by --memory'
      )
    if fitting is None:
      if units == 1:
        raise InputError(
          f'--largest: not even {_GROUP_STEP} images fit {hardware.name}: '
          f'{in_gb(found.peak_bytes)} of {in_gb(found.usable_bytes)}; use '
          'more devices'
        )
      units //= 2
    elif too_large is None:
      units *= 2
    elif high - low == 1:
      return fitting, too_large
    else:
      units = _between(low, fitting, high, too_large)


def _between(low: int, fitting: Plan, high: int, too_large: Plan) -> int:
  """Returns where a line through two peaks meets the memory, inside of both."""
  rise = (too_large.peak_bytes - fitting.peak_bytes) / (high - low)
  more = (fitting.usable_bytes - fitting.peak_bytes) / max(rise, 1)
  return min(max(low + int(more), low + 1), high - 1)
