# SPDX-License-Identifier: Apache-2.0
"""Tables and the JSON document of plans."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from elasticface_jax.planning.plan import Plan, in_gb
from elasticface_jax.planning.remedies import devices_for_state, in_words, lines
from elasticface_jax.terminal import table

# What an optimiser keeps of the class centres.
_KEPT = {'sgd': 'momentum', 'adamw': 'two moments'}


def title(recipe: Any) -> str:
  """Returns what is planned, in one line."""
  model = recipe.model
  frozen = ', backbone frozen' if recipe.freeze else ''
  remat = ', recomputed' if model['remat'] else ''
  rate = '' if recipe.sample_rate == 1 else f', {recipe.sample_rate:g} of them'
  return (
    f'{model["name"]}, {recipe.dtype}{remat}{frozen}; '
    f'{recipe.loss["name"]}, {recipe.num_classes:,} classes{rate} in '
    f'{recipe.num_blocks:,} blocks; {recipe.batch_size:,} images in groups of '
    f'{recipe.group_size}'
  )


def memory(plans: Sequence[Plan]) -> str:
  """Formats the memory that a step takes of one device."""
  rows = [
    {
      'hardware': plan.hardware.name,
      'devices': f'{plan.hardware.num_devices}',
      'groups': f'{plan.account["groups"]}',
      'blocks': f'{plan.account["blocks"]}',
      'state, GB': _giga(plan.account['bytes']['state']),
      'inputs, GB': _giga(plan.account['bytes']['inputs']),
      'temporary, GB': _giga(plan.account['bytes'].get('temporary')),
      'peak, GB': _giga(plan.peak_bytes),
      'of memory': _share(plan),
      'fits': _fits(plan),
    }
    for plan in plans
  ]
  return _table(rows)


def work(plans: Sequence[Plan]) -> str:
  """Formats what one device does in a step, and bounds of its time."""
  kinds = sorted(
    {x for plan in plans for x in plan.account.get('bytes_between_devices', ())}
  )
  rows = []
  for plan in plans:
    account, bounds = plan.account, plan.bounds
    moved = account.get('bytes_between_devices')
    cycles = account.get('cycles')
    rows.append(
      {'hardware': plan.hardware.name}
      | {
        f'{kind}, MB': '-'
        if moved is None
        else f'{moved.get(kind, 0) / 1e6:,.1f}'
        for kind in kinds
      }
      | {
        'memory traffic, GB': _giga(account.get('memory_traffic_bytes')),
        'cycles, M': f'{cycles["bodies_run"] / 1e6:,.1f}' if cycles else '-',
        'products, ms': _milli(bounds.get('flop')),
        'memory, ms': _milli(bounds.get('memory')),
        'links, ms': _milli(bounds.get('links')),
        'images/s at most': (
          f'{plan.recipe.batch_size / plan.least_seconds:,.0f}'
          if plan.least_seconds
          else '-'
        ),
      }
    )
  return _table(rows)


def flop(plan: Plan) -> str:
  """Formats the model FLOPs of a step on all devices."""
  found = plan.account['model_flop_of_all_devices']
  return (
    f'model TFLOP of a step: {found["backbone"] / 1e12:,.2f} (backbone) + '
    f'{found["head"] / 1e12:,.2f} (head)'
  )


def tables(plans: Sequence[Plan]) -> str:
  """Formats memory and work of several plans of one recipe."""
  parts = memory(plans), work(plans), flop(plans[0])
  return '\n\n'.join(part for part in parts if part)


def remedies(plan: Plan, better: Plan | None, tried: Sequence[Plan]) -> str:
  """Formats what was tried for a recipe that does not fit, and what helps."""
  name, usable = plan.hardware.name, in_gb(plan.usable_bytes)
  found = [f'{name}: {in_gb(plan.peak_bytes)} do not fit {usable}']
  found += [f'  {in_words(x.recipe)}: {in_gb(x.peak_bytes)}' for x in tried]
  if better:
    change = ' '.join(lines(plan.recipe, better.recipe))
    found.append(f'  it fits with {change}')
    return '\n'.join(found)
  needed = devices_for_state(plan)
  if needed > plan.hardware.num_devices:
    found.append(
      f'  the state alone takes {in_gb(plan.account["bytes"]["state"])}: class '
      f'centres and {_KEPT[plan.recipe.optimizer]} need {needed} devices or '
      'more'
    )
  return '\n'.join(found)


def largest(plan: Plan, beyond: Plan) -> str:
  """Formats what `largest_group` found."""
  change = ' '.join(
    f'--config.{field}={value}'
    for field, value in (
      ('group_size', plan.recipe.group_size),
      ('data.batch_size', plan.recipe.batch_size),
    )
  )
  return (
    f'{plan.hardware.name}: groups of {plan.recipe.group_size} fit '
    f'({in_gb(plan.peak_bytes)} of {in_gb(plan.usable_bytes)}), '
    f'{beyond.recipe.group_size} do not ({in_gb(beyond.peak_bytes)}): {change}'
  )


def document(plan: Plan) -> dict[str, Any]:
  """Returns a plan, JSON-like."""
  account = {k: x for k, x in plan.account.items() if k != 'arithmetic'}
  kind = plan.hardware.kind
  return {
    'hardware': plan.hardware.name,
    'devices': plan.hardware.num_devices,
    'chips': plan.hardware.num_chips,
    'memory_bytes': kind.memory_bytes,
    'usable_bytes': plan.usable_bytes,
    'recipe': dataclasses.asdict(plan.recipe),
    'fits': plan.fits,
    'bounds_seconds': plan.bounds,
    **account,
  }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
  """Formats rows, without the columns that are known of none of them."""
  names = [x for x in rows[0] if any(row[x] != '-' for row in rows)]
  return table([names, *([row[x] for x in names] for row in rows)])


def _share(plan: Plan) -> str:
  total = plan.hardware.kind.memory_bytes
  return f'{plan.peak_bytes / total:.0%}' if total else '-'


def _fits(plan: Plan) -> str:
  if plan.usable_bytes is None and plan.fits:
    return '-'
  return 'yes' if plan.fits else f'no, {in_gb(plan.usable_bytes)}'


def _giga(count: float | None) -> str:
  return '-' if count is None else f'{count / 1e9:,.2f}'


def _milli(seconds: float | None) -> str:
  return '-' if seconds is None else f'{1e3 * seconds:,.1f}'
