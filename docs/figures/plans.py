# SPDX-License-Identifier: Apache-2.0
"""Prints the tables of plans in docs/scale.md.

    pip install '.[plan,plan-cuda]'
    python docs/figures/plans.py

The recipes for 16 and 64 chips of a TPU v5e; then IResNet-50 and -100 with
85,742 and 10 million classes on 16 devices of four kinds. Compiles for about
two hours on two cores, and answers at once when all is kept.
"""

# ruff: noqa: E402

import dataclasses
import sys
from typing import Any

from elasticface_jax import recipes, runtime

runtime.set_environment()  # As the command, before jax is imported.

from elasticface_jax.benchmark import recipe
from elasticface_jax.planning import compilations, hardware, plan, report
from elasticface_jax.terminal import table

PODS = (
  ('elastic_arc_r100_ms1mv2_16chips', 'v5e:4x4'),
  ('elastic_arc_r100_ms1mv2_64chips', 'v5e:8x8'),
)
MODELS = 'iresnet50', 'iresnet100'
# Classes, and blocks of 20,000 or fewer.
CLASSES = (85_742, 32), (10_000_000, 512)
HARDWARE = 'v5e:4x4', 'v5p:2x2x4', 'v6e:4x4', 'h100:2x8'


def load(name: str, **changes: Any) -> recipe.Recipe:
  """Returns what the cost of a recipe depends on, with changed fields."""
  made = recipe.from_config(recipes.load(name).to_dict())
  return dataclasses.replace(made, **changes)


def variants() -> list[recipe.Recipe]:
  """Returns the recipe for 16 chips with other networks and classes."""
  name = PODS[0][0]
  return [
    load(
      name,
      model=load(name).model | {'name': model},
      num_classes=count,
      num_blocks=blocks,
    )
    for model in MODELS
    for count, blocks in CLASSES
  ]


def row(made: plan.Plan) -> list[str]:
  """Returns a row of the large table."""
  bounds = made.bounds
  moved = sum(made.account['bytes_between_devices'].values())
  cycles = made.account['cycles']
  return [
    made.recipe.model['name'],
    f'{made.recipe.num_classes:,}',
    made.hardware.name,
    f'{made.peak_bytes / 1e9:.2f}',
    f'{made.peak_bytes / made.hardware.kind.memory_bytes:.0%}',
    f'{moved / 1e6:,.0f}',
    f'{made.account["memory_traffic_bytes"] / 1e9:,.1f}',
    f'{cycles["bodies_run"] / 1e6:,.1f}' if cycles else '-',
    *(f'{1e3 * bounds[name]:,.1f}' for name in ('flop', 'memory', 'links')),
    f'{made.recipe.batch_size / made.least_seconds:,.0f}',
  ]


HEAD = [
  'network',
  'classes',
  'hardware',
  'peak, GB',
  'of memory',
  'received, MB',
  'memory traffic, GB',
  'cycles, M',
  'products, ms',
  'memory, ms',
  'links, ms',
  'images/s at most',
]


def main() -> None:
  """Prints the tables."""

  def waiting(asked, devices, seconds):
    if seconds < 1:
      print(f'{devices.name}: {report.title(asked)}', file=sys.stderr)

  compiled = compilations.Compilations(compilations.cache_folder(), waiting)
  for name, devices in PODS:
    made = plan.make(load(name), hardware.parse(devices), compiled)
    print(f'{name}: {report.title(made.recipe)}\n\n{report.tables([made])}\n')
  rows = [
    row(plan.make(variant, hardware.parse(name), compiled))
    for variant in variants()
    for name in HARDWARE
  ]
  print(table([HEAD, *rows]))


if __name__ == '__main__':
  main()
