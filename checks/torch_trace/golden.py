# SPDX-License-Identifier: Apache-2.0
"""PyTorch's traces on file, which the tests compare with ours without torch."""

import json
import re

import numpy as np

from checks.torch_trace import pytorch
from checks.torch_trace.given import Given, give, make_recipe, norm
from elasticface_jax.benchmark.recipe import Recipe

DTYPES = 'float64', 'float32'
GROUPS, STEPS = (1, 4), 20


def recipe(groups: int, dtype: str) -> Recipe:
  """Returns the recipe of the traces on file: a narrow network."""
  return make_recipe(
    'iresnet10',
    width=4,
    embedding_dim=16,
    dtype=dtype,
    loss='elastic_arcface_plus',
    batch_size=16,
    groups=groups,
    num_classes=30,
  )


def inputs(groups: int, dtype: str) -> Given:
  """Draws the inputs of a trace on file."""
  return give(recipe(groups, dtype), STEPS)


def pack(flips: np.ndarray) -> list[str]:
  """Packs flips into a short string for each step."""
  return [np.packbits(row).tobytes().hex() for row in flips]


def digests(tensors) -> dict[str, dict[str, list[float]]]:
  """Returns each tensor's norm and its product with a fixed random tensor.

  The norm does not depend on the order of the values; the product does.
  """
  rng = np.random.default_rng(1)
  return {
    kind: {
      name: [norm([x]), float(np.sum(rng.normal(size=x.shape) * x))]
      for name, x in sorted(of_kind.items())
    }
    for kind, of_kind in tensors.items()
  }


def make() -> dict:
  """Runs all traces in PyTorch; returns the contents of the file."""
  import torch

  made = {'torch': torch.__version__, 'traces': {}}
  for groups in GROUPS:
    wide, narrow = (recipe(groups, dtype) for dtype in DTYPES)
    given, narrow_given = (inputs(groups, dtype) for dtype in DTYPES)
    made['flips'] = {
      dtype: pack(x.flips)
      for dtype, x in zip(DTYPES, (given, narrow_given), strict=True)
    }
    listed = lambda steps: {name: list(x) for name, x in steps.items()}
    right = pytorch.train(wide, given)
    wrong = {}
    for name in pytorch.possible_mistakes(wide):
      quantity, _ = pytorch.MISTAKES[name]
      trace = pytorch.train(wide, given, mistake=name)
      wrong[name] = {quantity: list(trace.steps[quantity])}
    made['traces'][str(groups)] = {
      'float64': listed(right.steps),
      'exact_clip': listed(pytorch.train(wide, given, exact_clip=True).steps),
      'float32': listed(pytorch.train(narrow, narrow_given).steps),
      'tensors': digests(right.tensors),
      'mistakes': wrong,
    }
  return made


def in_lines(content: dict) -> str:
  """Formats JSON with every list on one line."""
  text = json.dumps(content, indent=1) + '\n'
  return re.sub(r'\[[^][]*\]', lambda found: ' '.join(found[0].split()), text)
