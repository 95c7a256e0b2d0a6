# SPDX-License-Identifier: Apache-2.0
"""Recipes of benchmarks: the parts of a config that the cost depends on."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elasticface_jax import config_rules, recipes
from elasticface_jax.errors import InputError, first_line

SAVED = 'config.json'  # In a run folder.
# In whatever is compared: no step costs more or less with others. The rate is
# that of batch size 512.
LR, MOMENTUM, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.9, 5e-4, 5.0
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A training step without its data.

  Fields are those of a config. The defaults are the paper's head and network
  in bfloat16, on one group, so that a step fits one accelerator.
  """

  model: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {'name': 'iresnet100', 'dtype': 'bfloat16'}
  )
  loss: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: recipes.loss('elastic_arcface')
  )
  batch_size: int = 128
  group_size: int = 128
  num_classes: int = 85_742  # Of MS1MV2; data says it, not a config.
  num_blocks: int = 16
  subcenters: int = 1
  sample_rate: float = 1.0
  precision: str = 'highest'  # Of the head's products.
  augment: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: recipes.section('augment')
  )
  freeze: bool = False  # Whether the class centres alone are trained.
  optimizer: str = 'sgd'

  def as_config(self) -> dict[str, Any]:
    """Returns the fields of a config that `task.from_config` takes."""
    return {
      'data': {'batch_size': self.batch_size},
      'group_size': self.group_size,
      'augment': self.augment,
      'head': {
        'num_blocks': self.num_blocks,
        'subcenters': self.subcenters,
        'sample_rate': self.sample_rate,
        'precision': self.precision,
      },
      'start': {'freeze': self.freeze},
      'loss': self.loss,
      'optim': {
        'name': self.optimizer,
        'lr': LR,
        'warmup_steps': 0,
        'decay_steps': (),
        'decay_factor': 1.0,
        'decay_end': 0,
        'decay_power': 1.0,
        'momentum': MOMENTUM,
        'beta1': BETAS[0],
        'beta2': BETAS[1],
        'eps': EPS,
        'weight_decay': WEIGHT_DECAY,
        'backbone_clip_norm': CLIP_NORM,
      },
    }

  @property
  def flip(self) -> float:
    """Probability of a horizontal flip."""
    return self.augment['flip']

  @property
  def embedding_dim(self) -> int:
    """D, as `models.build` takes it where a config does not say."""
    return self.model.get('embedding_dim', 512)

  @property
  def dtype(self) -> str:
    """Compute dtype, as `models.build` takes it where a config does not say."""
    return self.model.get('dtype', 'float32')


def from_config(config: Mapping[str, Any]) -> Recipe:
  """Takes what a step's cost depends on from a whole config.

  Args:
    config: of `recipes.load` or `read_saved`; nested.

  Returns:
    The recipe.
  """
  return Recipe(
    model=config['model'],
    loss=config['loss'],
    batch_size=config['data']['batch_size'],
    group_size=config['group_size'],
    num_blocks=config['head']['num_blocks'],
    subcenters=config['head']['subcenters'],
    sample_rate=config['head']['sample_rate'],
    precision=config['head']['precision'],
    augment=config['augment'],
    freeze=config['start']['freeze'],
    optimizer=config['optim']['name'],
  )


def read_saved(given: str) -> Mapping[str, Any] | None:
  """Reads a config that a run has saved; needs no ml_collections.

  Args:
    given: what follows ``--config``: a run folder, or its ``config.json``.

  Returns:
    The config; None if it is neither, and so a recipe in Python.

  Raises:
    InputError: if there is none in the folder, it is damaged, or a field is
      unknown, missing or not allowed.
  """
  path = Path(given)
  if path.is_dir():
    path = path / SAVED
    if not path.is_file():
      raise InputError(
        f'--config {given} is not a run folder (it holds no {SAVED}): give '
        'one, or a recipe of configs/'
      )
  if path.suffix != '.json':
    return None
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    raise InputError(
      f'--config {path} is not JSON ({first_line(error)}): give a run folder, '
      'or a recipe of configs/'
    ) from error
  if not isinstance(config, dict):
    raise InputError(
      f'--config {path} holds no config: give a run folder, or a recipe of '
      'configs/'
    )
  try:
    return config_rules.check(config_rules.nest(config_rules.saved(config)))
  except InputError as error:
    raise InputError(f'--config {path}: {error}') from None
