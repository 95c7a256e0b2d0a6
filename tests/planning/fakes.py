# SPDX-License-Identifier: Apache-2.0
"""Accounts by formula, in place of minutes of compilation."""

import dataclasses

from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.planning import compilations, hardware

MODEL = {'name': 'iresnet18', 'dtype': 'bfloat16', 'remat': False}


def recipe(**changes):
  return dataclasses.replace(
    Recipe(model=MODEL, batch_size=512, num_blocks=8), **changes
  )


@dataclasses.dataclass
class Compilations:
  """Memory in MB: 10 an image, 4 with remat; 1 for 1,000 classes of a block."""

  asked: list = dataclasses.field(default_factory=list)
  of_an_image: float = 10
  of_a_class: float = 1e-3

  def account(self, recipe, hardware):
    self.asked.append(recipe)
    devices = hardware.num_devices
    image = (
      0.4 * self.of_an_image if recipe.model['remat'] else self.of_an_image
    )
    block = recipe.num_classes / recipe.num_blocks * recipe.sample_rate
    temporary = image * recipe.group_size + self.of_a_class * block
    arrays = {'sgd': 2, 'adamw': 3}[recipe.optimizer]
    head = arrays * 4 * recipe.num_classes * recipe.embedding_dim / devices
    sizes = {
      'state': round(100e6 + head),
      'inputs': 10_000_000,
      'temporary': round(1e6 * temporary),
      'results': 0,
      'program': 0,
    }
    sizes['peak'] = sum(sizes.values())
    return {
      'groups': recipe.batch_size // recipe.group_size // devices,
      'blocks': recipe.num_blocks // devices,
      'bytes': sizes,
      'model_flop_of_all_devices': {
        'backbone': 8e15,
        'head': 3e12,
        'head_as_computed': 5e12,
      },
      'memory_traffic_bytes': 20e9,
      'bytes_between_devices': {'all-gather': 70e6, 'all-to-all': 14e6},
      'cycles': None,
    }


def install(monkeypatch):
  """Puts accounts by formula in the place of compilations; returns them."""
  fake = Compilations()
  monkeypatch.setattr(
    compilations.Compilations,
    'account',
    lambda self, recipe, hardware: fake.account(recipe, hardware),
  )
  return fake


def parse(name='v5e:2x2'):
  return hardware.parse(name)
