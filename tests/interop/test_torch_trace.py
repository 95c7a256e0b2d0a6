# SPDX-License-Identifier: Apache-2.0
"""Twenty training steps follow PyTorch's, whose traces are on file.

`checks/torch_trace.py --write` makes the file; this needs no torch. A narrow
network, batches of 16: as one group, and as four beside four ranks without
synchronised BatchNorm.
"""

import functools
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = json.loads(
  (Path(__file__).parent / 'golden' / 'torch_trace.json').read_text()
)
CHECKS = Path(__file__).parents[2] / 'checks'
GROUPS = (1, 4)
# PyTorch's clip divides by the norm + 1e-6, ours by the norm; 'exact_clip' is
# PyTorch's step with the latter.
TOLERANCES = {'float64': 1e-8, 'exact_clip': 1e-11}


@pytest.fixture(scope='module')
def check():
  sys.path.insert(0, str(CHECKS))
  try:
    yield importlib.import_module('given_trace')
  finally:
    sys.path.remove(str(CHECKS))


@functools.cache
def run(check, groups, dtype):
  recipe = check.golden_recipe(groups, dtype)
  given = check.give(recipe, check.GOLDEN_STEPS)
  # Else the file belongs to other random numbers.
  assert check.pack(given.flips) == GOLDEN['flips'][dtype]
  return check.train(recipe, given)


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
@pytest.mark.parametrize('clip', TOLERANCES)
def test_float64_at_every_step(check, groups, clip):
  ours = run(check, groups, 'float64')
  golden = GOLDEN['traces'][str(groups)]
  for name, values in golden[clip].items():
    apart = check.relative(ours.steps[name], values)
    assert len(apart) == 20
    assert apart.max() < TOLERANCES[clip], (name, apart)
  # The clip is not idle.
  assert min(golden['float64']['backbone_gradient_norm']) > 5


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_float64_at_the_end(check, groups):
  found = check.digests(run(check, groups, 'float64').tensors)
  golden = GOLDEN['traces'][str(groups)]['tensors']
  assert found.keys() == golden.keys()
  for kind in ('weights', 'statistics'):
    assert found[kind].keys() == golden[kind].keys()
    for name, (norm, product) in golden[kind].items():
      apart = np.subtract(found[kind][name], (norm, product))
      assert np.abs(apart).max() < 1e-8 * max(norm, 1e-3), (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_mistakes_leave_the_trace(check, groups):
  ours = run(check, groups, 'float64')
  mistakes = GOLDEN['traces'][str(groups)]['mistakes']
  assert len(mistakes) >= 7 + 2 * (groups > 1)
  for name, wrong in mistakes.items():
    for quantity, values in wrong.items():
      apart = check.relative(ours.steps[quantity], values)
      assert apart.max() > 100 * TOLERANCES['float64'], (name, apart)


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_float32_as_far_as_rounding_allows(check, groups):
  ours = run(check, groups, 'float32')
  golden = GOLDEN['traces'][str(groups)]['float32']
  for name, values in golden.items():
    apart = check.relative(ours.steps[name], values)
    assert apart[0] < 1e-5, (name, apart)
    assert apart.max() < LIMITS[name], (name, apart)


# Ten times what was measured.
LIMITS = {
  'loss': 1e-2,
  'backbone_gradient_norm': 1e-2,
  'head_gradient_norm': 1e-2,
  'statistics_norm': 1e-2,
}


@pytest.mark.slow
def test_the_file_is_what_pytorch_does(check, load_script):
  pytest.importorskip('torch')
  script = load_script(CHECKS / 'torch_trace.py')
  again = script.golden()
  for groups, traces in GOLDEN['traces'].items():
    for kind in ('float64', 'exact_clip'):
      for name, values in traces[kind].items():
        np.testing.assert_allclose(
          again['traces'][groups][kind][name], values, 1e-10
        )
