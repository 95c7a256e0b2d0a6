# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the training step, with state and batch on the device."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax import models
from elasticface_jax.benchmark import device, flops, timing
from elasticface_jax.benchmark.pytorch import network as torch_network
from elasticface_jax.benchmark.pytorch import step as torch_step
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.errors import InputError
from elasticface_jax.missing import needs
from elasticface_jax.training import state, task

OURS, MERGED = 'ours', 'merged'
_PIXELS = 2


class Run:
  """The trainer's step of a recipe, compiled, with a state and a batch.

  A call runs one step and waits for its end.

  Attributes:
    recipe: of the step.
    task: the recipe assembled for the devices.
    compile_seconds: of the compiler alone.
    trace_seconds: of tracing and lowering.
    compiled: the program.
    step_fn: the program with the arguments of `task.Task.step`.
    state: after the steps so far.
    keys: random streams of the steps.
    host_batch: images and labels on the host.
  """

  def __init__(
    self,
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    *,
    backbone: models.Backbone | None = None,
    image_size: int = 112,
  ):
    """Compiles a step and puts a random batch on the devices.

    Args:
      recipe: of the step.
      mesh: the devices.
      backbone: network to use instead of the recipe's.
      image_size: height and width of the images.

    Raises:
      InputError: if the recipe does not fit together, or on these devices.
    """
    self.recipe = recipe
    self.task = make_task(recipe, mesh, backbone=backbone)
    self.keys = self.task.make_keys(0)
    self.state = self.task.init(self.keys['init'])
    rng = np.random.default_rng(0)
    shape = recipe.batch_size, image_size, image_size, 3
    self.host_batch = (
      rng.integers(256, size=shape, dtype=np.uint8),
      rng.integers(recipe.num_classes, size=shape[:1], dtype=np.int32),
    )
    self._batch = tuple(map(self.layout.put, self.host_batch))
    start = time.perf_counter()
    lowered = self.task.lower((image_size, image_size, 3))
    traced = time.perf_counter()
    self.compiled = lowered.compile()
    self.trace_seconds = traced - start
    self.compile_seconds = time.perf_counter() - traced
    self.step_fn = functools.partial(self.compiled, self.layout.trip_counts())

  @property
  def layout(self) -> state.Layout:
    """Groups, blocks and devices of the step."""
    return self.task.layout

  def dispatch(self) -> dict[str, jax.Array]:
    """Dispatches one step without waiting; returns its metrics."""
    self.state, measured = self.step_fn(self.state, *self._batch, self.keys)
    return measured

  def __call__(self) -> None:
    """Runs one step and waits for its end."""
    jax.block_until_ready((self.dispatch(), self.state))

  def cost(self) -> dict[str, Any]:
    """Returns compile time and memory, JSON-like."""
    return {
      'trace_seconds': self.trace_seconds,
      'compile_seconds': self.compile_seconds,
      **device.memory(self.compiled),
    }


def thin_backbone(embedding_dim: int) -> models.Backbone:
  """Returns a network of negligible cost: a few pixels times a matrix."""
  values = 3 * _PIXELS**2

  def init(key):
    matrix = jax.random.normal(key, (values, embedding_dim), jnp.float32)
    return {'matrix': matrix}, {'unused': jnp.zeros(1)}

  def apply(params, batch_stats, images, *, train, key=None):
    del train, key
    pixels = images[:, :_PIXELS, :_PIXELS].reshape(-1, values)
    return pixels @ params['matrix'], batch_stats

  return models.Backbone('thin', embedding_dim, init, apply)


def check(
  recipe: Recipe, mesh: jax.sharding.Mesh, against: Sequence[str]
) -> None:
  """Checks a recipe and its comparisons before anything is compiled.

  Args:
    recipe: of the step.
    mesh: the devices.
    against: some of ``'torch'`` and ``'merged'``.

  Raises:
    InputError: if the recipe does not fit together, or on these devices, or
      a comparison is not possible.
  """
  layout = make_task(recipe, mesh).layout
  if 'merged' in against and layout.num_groups == mesh.size:
    raise InputError(
      f'group_size={recipe.group_size}: each device has one group of a batch, '
      'so --against merged has nothing to merge: raise --batch-size'
    )
  if 'torch' in against:
    check_torch(recipe, mesh)
    torch_step.check(recipe)


def check_torch(recipe: Recipe, mesh: jax.sharding.Mesh) -> None:
  """Checks that PyTorch can be measured on the devices.

  Args:
    recipe: of the network.
    mesh: the devices.

  Raises:
    InputError: if they are several, or neither CPU nor GPU, the network is not
      written in PyTorch here, or torch is not installed.
  """
  torch_network.check(**recipe.model)
  platform = mesh.devices.flat[0].platform
  if mesh.size > 1 or platform not in ('cpu', 'gpu'):
    raise InputError(
      f'--against torch compares one CPU or GPU, not {mesh.size} {platform} '
      'device(s): leave --devices at 1, or leave it out'
    )
  with needs('--against torch'):
    import torch  # noqa: F401


def make_task(
  recipe: Recipe,
  mesh: jax.sharding.Mesh,
  *,
  backbone: models.Backbone | None = None,
) -> task.Task:
  """Assembles a recipe's step, with `backbone` instead of its own if given."""
  return task.from_config(
    recipe.as_config(),
    backbone or models.build(**recipe.model),
    recipe.num_classes,
    mesh,
  )


def measure(
  run: Run, against: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, Any]:
  """Times a run's step in turn with its comparisons.

  Args:
    run: the step.
    against: as for `check`.
    rounds: number of turns of each variant.
    seconds: shortest time of each in a round.

  Returns:
    JSON-like; every variant by name, and the ratios of their times.
  """
  recipe, mesh = run.recipe, run.layout.mesh
  run()
  # Before anything else uses memory.
  peak_memory = device.peak_memory(mesh.devices.flat[0])

  runs = {OURS: run}
  if 'merged' in against:
    size = recipe.batch_size // mesh.size
    merged = dataclasses.replace(recipe, group_size=size)
    runs[MERGED] = Run(merged, mesh)
  variants = dict(runs)
  platform = mesh.devices.flat[0].platform
  torch_device = {'gpu': 'cuda'}.get(platform, platform)
  if 'torch' in against:
    variants |= torch_step.make_variants(recipe, torch_device)
  spent = timing.in_turn(variants, rounds=rounds, seconds=seconds)

  flop = flops.step(run.task.backbone, recipe)
  kinds = _by_kind(recipe, flop)
  results = {}
  for name, times in spent.items():
    spread = timing.spread(times)
    results[name] = {
      'step_seconds': spread,
      'images_per_second': recipe.batch_size / spread['median'],
      **device.shares(kinds, spread['median'], mesh),
    }
    if name in runs:
      results[name] |= runs[name].cost()
    else:
      peak = torch_step.peak_memory(variants[name], torch_device)
      results[name] |= {'peak_memory': {'of': 'device', 'peak_bytes': peak}}
  results[OURS] |= {'peak_memory': peak_memory}
  return {
    'recipe': dataclasses.asdict(recipe),
    'model_flop': flop,
    'variants': results,
    'time_ratios': best_ratios(spent),
  }


def _by_kind(recipe: Recipe, flop: Mapping[str, int]) -> dict:
  """Groups FLOPs by dtype and precision; those of the head are float32."""
  wide = jnp.promote_types(recipe.dtype, jnp.float32).name
  return {
    (recipe.dtype, None): flop['backbone'],
    (wide, recipe.precision): flop['head'],
  }


def best_ratios(spent: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the others' times over ours, and ours over the merged step's.

  Args:
    spent: seconds of each variant, `OURS` among them, ``[rounds]``.

  Returns:
    Spreads of the ratios, and that of the best of PyTorch once more, with its
    name.
  """
  others = [name for name in spent if name not in (OURS, MERGED)]
  ratios = {
    f'{name} / {OURS}': timing.ratio(spent[name], spent[OURS])
    for name in others
  }
  if others:
    best = min(others, key=lambda name: np.median(spent[name]))
    ratios['best of torch / ours'] = {
      'variant': best,
      **ratios[f'{best} / {OURS}'],
    }
  if MERGED in spent:
    ratios[f'{OURS} / {MERGED}'] = timing.ratio(spent[OURS], spent[MERGED])
  return ratios
