# SPDX-License-Identifier: Apache-2.0
"""Twenty training steps follow PyTorch's, whose traces are on file.

`checks/torch_trace.py --write` makes the file; most of this needs no torch. A
narrow network and batches of 16: as one group, and as four beside four ranks
without synchronised BatchNorm.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

CHECKS = Path(__file__).parents[2] / 'checks'
GOLDEN = json.loads(
  (Path(__file__).parent / 'golden' / 'torch_trace.json').read_text()
)
GROUPS = (1, 4)
# PyTorch's clip divides by the norm plus 1e-6, ours by the norm. In the trace
# 'exact_clip' PyTorch's does that too: what is left is rounding.
TOLERANCES = {'float64': 1e-8, 'exact_clip': 1e-11}
# A momentum has the clip's 1e-6 whole, a weight times the learning rate.
OF_TENSORS = {'weights': 1e-8, 'statistics': 1e-8, 'momenta': 1e-7}
# These are wrong before any weight has changed.
AT_ONCE = {
  'fc flattened as height, width, channel',
  'running variance biased',
  'one statistic for all groups',
  'margins paired over the whole batch',
}
# Of float32: about ten times what was measured, with several numbers of threads
# and versions of jax, in the first step and per step. Rounding grows by half a
# step; where it turns the sign of what a PReLU sees, gradients jump by 1e-4.
FIRST, GROWTH = 1e-3, 1.25


@pytest.fixture(scope='module')
def trace(load_script):
  return load_script(CHECKS / 'given_trace.py')


@pytest.fixture(scope='module')
def run(trace):
  """``run(groups, dtype)``: our side of a trace on file."""

  @functools.cache
  def run(groups, dtype):
    recipe = trace.golden_recipe(groups, dtype)
    given = trace.give(recipe, trace.GOLDEN_STEPS)
    # Else the file belongs to other random numbers.
    assert trace.pack(given.flips) == GOLDEN['flips'][dtype]
    return trace.train(recipe, given)

  return run


def golden(groups):
  return GOLDEN['traces'][str(groups)]


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
@pytest.mark.parametrize('clip', TOLERANCES)
def test_float64_at_every_step(trace, run, groups, clip):
  ours = run(groups, 'float64')
  theirs = golden(groups)[clip]
  assert theirs.keys() == set(trace.QUANTITIES)
  for name, values in theirs.items():
    apart = trace.relative(ours.steps[name], values)
    assert len(apart) == 20
    assert apart.max() < TOLERANCES[clip], (name, apart)
  # Else the clip would do nothing.
  assert ours.steps['backbone_gradient_norm'].min() > 5


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_float64_at_the_end(trace, run, groups):
  found = trace.digests(run(groups, 'float64').tensors)
  theirs = golden(groups)['tensors']
  for kind, tolerance in OF_TENSORS.items():
    assert found[kind].keys() == theirs[kind].keys()
    for name, (norm, product) in theirs[kind].items():
      apart = np.subtract(found[kind][name], (norm, product))
      assert np.abs(apart).max() < tolerance * norm, (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_mistakes_leave_the_trace(trace, run, groups):
  ours = run(groups, 'float64')
  mistakes = golden(groups)['mistakes']
  assert len(mistakes) == (7 if groups == 1 else 9)
  for name, wrong in mistakes.items():
    ((quantity, values),) = wrong.items()
    apart = trace.relative(ours.steps[quantity], values)
    assert apart.max() > 1000 * TOLERANCES['float64'], (name, apart)
    # The loss is the first to show a weight that an update left wrong.
    first = np.flatnonzero(apart > TOLERANCES['float64'])[0]
    assert first in ((0,) if name in AT_ONCE else (1, 2)), (name, apart)


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_float32_as_far_as_rounding_allows(trace, run, groups):
  ours = run(groups, 'float32')
  for name, values in golden(groups)['float32'].items():
    apart = trace.relative(ours.steps[name], values)
    assert (apart < FIRST * GROWTH ** np.arange(20)).all(), (name, apart)
    if 'gradient' not in name:
      assert apart[0] < 1e-6, (name, apart[0])


@pytest.fixture
def check(load_script, monkeypatch):
  pytest.importorskip('torch')
  monkeypatch.syspath_prepend(CHECKS)
  return load_script(CHECKS / 'torch_trace.py')


@pytest.mark.slow
@pytest.mark.parametrize('groups', GROUPS)
def test_the_file_is_what_pytorch_does(trace, check, groups):
  theirs = golden(groups)
  recipe = trace.golden_recipe(groups, 'float64')
  given = trace.give(recipe, trace.GOLDEN_STEPS)
  again = check.train(recipe, given)
  for name, values in theirs['float64'].items():
    assert trace.relative(again.steps[name], values).max() < 1e-10
  found = trace.digests(again.tensors)
  assert found.keys() == theirs['tensors'].keys()
  for kind, tensors in theirs['tensors'].items():
    for name, (norm, product) in tensors.items():
      apart = np.subtract(found[kind][name], (norm, product))
      assert np.abs(apart).max() < 1e-10 * norm, (kind, name)
  # The others, as far as needed to know them.
  few = given._replace(**{n: getattr(given, n)[:3] for n in given._fields[3:]})
  others = {None: {'loss': theirs['exact_clip']['loss']}, **theirs['mistakes']}
  for mistake, wrong in others.items():
    again = check.train(recipe, few, exact_clip=not mistake, mistake=mistake)
    ((quantity, values),) = wrong.items()
    apart = trace.relative(again.steps[quantity], values[:3])
    assert apart.max() < 1e-10, (mistake, apart)


SMALL = (
  *('--model=iresnet10', '--width=4', '--embedding-dim=16', '--classes=30'),
  *('--batch-size=4', '--steps=2', '--groups=2'),
)


@pytest.mark.slow
def test_the_check(check, capsys):
  assert check.main(SMALL) == 0
  told = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in told[2:4]] == ['1', '2']
  assert told[4].endswith('clipped in 2 of 2 steps')
  mistake = 'one statistic for all groups'
  assert check.main([*SMALL, '--mistake', mistake]) == 0
  assert f'{mistake}: loss from step 1 on' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    (['--groups=3'], '--groups 3'),
    (['--groups=1', '--mistake=one statistic for all groups'], '--groups'),
    (['--mistake=margins paired over the whole batch'], '_plus'),
  ],
)
def test_questions_without_an_answer(check, capsys, changes, told):
  with pytest.raises(SystemExit) as end:
    check.main([*SMALL, *changes])
  assert end.value.code == 2
  assert told in capsys.readouterr().err
