# SPDX-License-Identifier: Apache-2.0
"""Differences between two traces, and how they are printed."""

import numpy as np

from checks.torch_trace.given import CENTERS, QUANTITIES, Trace
from checks.torch_trace.pytorch import MISTAKES
from elasticface_jax.benchmark.recipe import CLIP_NORM

TOLERANCE = 1e-8  # In float64.
# Relative to the backbone's largest momentum: a smaller one is rounding.
LEAST_MOMENTUM = 1e-3


def relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
  """Returns the relative differences of a quantity, [T]."""
  return np.abs(np.asarray(found) / np.asarray(expected) - 1)


def differences(ours: Trace, theirs: Trace) -> dict[str, np.ndarray]:
  """Returns the relative differences of each quantity, [T] each."""
  return {
    name: relative(ours.steps[name], theirs.steps[name]) for name in QUANTITIES
  }


def tensor_differences(
  ours: Trace, theirs: Trace
) -> dict[str, dict[str, float]]:
  """Returns each tensor's largest difference over its largest value."""
  made = {}
  for kind, tensors in theirs.tensors.items():
    largest = {name: np.abs(x).max() for name, x in tensors.items()}
    least = 0.0
    if kind == 'momenta':
      of_backbone = [x for name, x in largest.items() if name != CENTERS]
      least = LEAST_MOMENTUM * max(of_backbone)
    made[kind] = {
      name: float(
        np.abs(ours.tensors[kind][name] - x).max() / max(largest[name], least)
      )
      for name, x in tensors.items()
    }
  return made


def show(ours: Trace, theirs: Trace) -> float:
  """Prints all differences; returns the largest."""
  apart = differences(ours, theirs)
  print('step  loss      ' + '  '.join(f'{name:>23}' for name in QUANTITIES))
  for i, row in enumerate(zip(*apart.values(), strict=True), 1):
    cells = '  '.join(f'{x:23.1e}' for x in row)
    print(f'{i:4}  {ours.steps["loss"][i - 1]:8.5f}  {cells}')
  norms = ours.steps['backbone_gradient_norm']
  print(
    f'gradient of the backbone: norm {norms.min():.2f} to {norms.max():.2f}, '
    f'clipped in {(norms > CLIP_NORM).sum()} of {len(norms)} steps'
  )
  largest = {name: x.max() for name, x in apart.items()}
  # By least squares: at single steps differences are small by chance.
  logs = np.log(np.maximum(apart['backbone_gradient_norm'], 1e-17))
  growth = np.exp(np.polyfit(np.arange(len(logs)), logs, 1)[0])
  print(f"growth of the gradient's difference: {growth:.2f} per step")
  for kind, tensors in tensor_differences(ours, theirs).items():
    worst = sorted(tensors, key=tensors.get, reverse=True)[:3]
    listed = ', '.join(f'{name} {tensors[name]:.1e}' for name in worst)
    print(f'{kind} of {len(tensors)} tensors: {listed}')
    # A momentum has the full error of the clip, a weight that times the rate.
    if kind != 'momenta':
      largest[kind] = tensors[worst[0]]
  name = max(largest, key=largest.get)
  print(f'largest: {name} {largest[name]:.1e}')
  return largest[name]


def show_mistake(name: str, ours: Trace, theirs: Trace) -> float:
  """Prints where a mistake exceeds the tolerance; returns the largest."""
  quantity = MISTAKES[name][0]
  apart = differences(ours, theirs)[quantity]
  beyond = np.flatnonzero(apart > TOLERANCE)
  first = f'from step {beyond[0] + 1} on' if len(beyond) else 'at no step'
  print(
    f'{name}: {quantity} {first} beyond {TOLERANCE:.0e}; {apart[-1]:.1e} at '
    f'step {len(apart)}',
    flush=True,
  )
  return apart.max()
