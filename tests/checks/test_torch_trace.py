# SPDX-License-Identifier: Apache-2.0
"""Twenty training steps follow PyTorch's, whose traces are on file.

`checks/torch_trace` makes the file with `--write`; most of these tests need no
torch. A narrow network and batches of 16: in float64 as four groups, compared
with four ranks without synchronised BatchNorm, and in float32 as one group.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from checks.torch_trace import __main__ as script
from checks.torch_trace import golden, ours, pytorch
from checks.torch_trace.given import QUANTITIES
from checks.torch_trace.report import relative

GOLDEN = json.loads(
  (Path(__file__).parent / 'golden' / 'torch_trace.json').read_text()
)
# Each number of groups and each dtype compiles for ten seconds: two of the four
# combinations cover both.
GROUPS_OF = {'float64': 4, 'float32': 1}
# PyTorch's clip divides by the norm plus 1e-6, ours by the norm. In the trace
# 'exact_clip' PyTorch's does that too: what is left is rounding.
TOLERANCES = {'float64': 1e-8, 'exact_clip': 1e-11}
# A momentum has the clip's full 1e-6, a weight that times the learning rate.
OF_TENSORS = {'weights': 1e-8, 'statistics': 1e-8, 'momenta': 1e-7}
# These make a difference before any weight has changed.
AT_ONCE = {
  'fc flattened as height, width, channel',
  'running variance biased',
  'one statistic for all groups',
  'margins paired over the whole batch',
}
# In float32: about ten times the measured difference of the first step and its
# growth per step, with several numbers of threads and versions of jax. Rounding
# grows by half per step; where it changes the sign of a PReLU's input,
# gradients jump by 1e-4.
FIRST, GROWTH = 1e-3, 1.25


@functools.cache
def run(dtype):
  """Our trace that corresponds to one on file."""
  groups = GROUPS_OF[dtype]
  inputs = golden.inputs(groups, dtype)
  # Otherwise the file belongs to other random numbers.
  assert golden.pack(inputs.flips) == GOLDEN['flips'][dtype]
  return ours.train(golden.recipe(groups, dtype), inputs)


def on_file(dtype):
  return GOLDEN['traces'][str(GROUPS_OF[dtype])]


@pytest.mark.slow
@pytest.mark.parametrize('clip', TOLERANCES)
def test_float64_at_every_step(clip):
  found = run('float64')
  theirs = on_file('float64')[clip]
  assert theirs.keys() == set(QUANTITIES)
  for name, values in theirs.items():
    apart = relative(found.steps[name], values)
    assert len(apart) == 20
    assert apart.max() < TOLERANCES[clip], (name, apart)
  # Else the clip would do nothing.
  assert found.steps['backbone_gradient_norm'].min() > 5


@pytest.mark.slow
def test_float64_at_the_end():
  found = golden.digests(run('float64').tensors)
  theirs = on_file('float64')['tensors']
  for kind, tolerance in OF_TENSORS.items():
    assert found[kind].keys() == theirs[kind].keys()
    for name, (norm, product) in theirs[kind].items():
      apart = np.subtract(found[kind][name], (norm, product))
      assert np.abs(apart).max() < tolerance * norm, (kind, name)


@pytest.mark.slow
def test_mistakes_leave_the_trace():
  found = run('float64')
  mistakes = on_file('float64')['mistakes']
  assert mistakes.keys() == pytorch.MISTAKES.keys()
  for name, wrong in mistakes.items():
    ((quantity, values),) = wrong.items()
    apart = relative(found.steps[quantity], values)
    assert apart.max() > 1000 * TOLERANCES['float64'], (name, apart)
    # The loss is the first to show a weight that an update left wrong.
    first = np.flatnonzero(apart > TOLERANCES['float64'])[0]
    assert first in ((0,) if name in AT_ONCE else (1, 2)), (name, apart)


@pytest.mark.slow
def test_float32_as_far_as_rounding_allows():
  found = run('float32')
  for name, values in on_file('float32')['float32'].items():
    apart = relative(found.steps[name], values)
    assert (apart < FIRST * GROWTH ** np.arange(20)).all(), (name, apart)
    if 'gradient' not in name:
      assert apart[0] < 1e-6, (name, apart[0])


@pytest.mark.slow
@pytest.mark.parametrize('groups', golden.GROUPS)
def test_the_file_is_what_pytorch_does(groups):
  pytest.importorskip('torch')
  theirs = GOLDEN['traces'][str(groups)]
  recipe = golden.recipe(groups, 'float64')
  inputs = golden.inputs(groups, 'float64')
  again = pytorch.train(recipe, inputs)
  for name, values in theirs['float64'].items():
    assert relative(again.steps[name], values).max() < 1e-10
  found = golden.digests(again.tensors)
  assert found.keys() == theirs['tensors'].keys()
  for kind, tensors in theirs['tensors'].items():
    for name, (norm, product) in tensors.items():
      apart = np.subtract(found[kind][name], (norm, product))
      assert np.abs(apart).max() < 1e-10 * norm, (kind, name)
  # The others in three steps, which suffice to recognise them.
  arrays = inputs._fields[3:]
  few = inputs._replace(**{name: getattr(inputs, name)[:3] for name in arrays})
  others = {None: {'loss': theirs['exact_clip']['loss']}, **theirs['mistakes']}
  for mistake, wrong in others.items():
    again = pytorch.train(recipe, few, exact_clip=not mistake, mistake=mistake)
    ((quantity, values),) = wrong.items()
    apart = relative(again.steps[quantity], values[:3])
    assert apart.max() < 1e-10, (mistake, apart)


SMALL = (
  *('--model=iresnet10', '--width=4', '--embedding-dim=16', '--classes=30'),
  *('--batch-size=4', '--steps=2', '--groups=2'),
)


@pytest.mark.slow
def test_the_check(capsys, monkeypatch):
  pytest.importorskip('torch')
  # Both calls compare with the same trace of ours.
  monkeypatch.setattr(ours, 'train', cached(ours.train))
  assert script.main(SMALL) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[2:4]] == ['1', '2']
  assert lines[4].endswith('clipped in 2 of 2 steps')
  mistake = 'one statistic for all groups'
  assert script.main([*SMALL, '--mistake', mistake]) == 0
  assert f'{mistake}: loss from step 1 on' in capsys.readouterr().out


def cached(train):
  traces = []

  def once(recipe, given):
    if not traces:
      traces.append(train(recipe, given))
    return traces[0]

  return once


def test_without_torch(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert script.main(SMALL) == 2
  assert '[bench]' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--groups=3'], '--groups 3'),
    (['--groups=1', '--mistake=one statistic for all groups'], '--groups'),
    (['--mistake=margins paired over the whole batch'], '_plus'),
  ],
)
def test_impossible_arguments(capsys, changes, message):
  with pytest.raises(SystemExit) as end:
    script.main([*SMALL, *changes])
  assert end.value.code == 2
  assert message in capsys.readouterr().err
