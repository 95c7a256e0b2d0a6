# SPDX-License-Identifier: Apache-2.0
"""Accounts of steps that this CPU's compiler compiles."""

import math

import jax
import pytest

from elasticface_jax import models
from elasticface_jax.benchmark import step
from elasticface_jax.planning import account, same
from elasticface_jax.training import state
from tests import thin
from tests.planning import fakes

MODEL = {'name': thin.NAME, 'width': 4, 'embedding_dim': 16, 'remat': False}
RECIPE = fakes.recipe(
  model=MODEL, batch_size=16, group_size=4, num_classes=300, num_blocks=4
)


@pytest.fixture(scope='module')
def accounts():
  """Accounts on one device and on two."""
  with pytest.MonkeyPatch.context() as patch:
    thin.add(patch.setitem)
    return {
      name: account.of(RECIPE, fakes.parse(name)) for name in ('cpu:1', 'cpu:2')
    }


def test_state_and_inputs_are_those_of_the_arrays(accounts, monkeypatch):
  thin.add(monkeypatch.setitem)
  for devices in (1, 2):
    task = step.make_task(RECIPE, state.make_mesh(devices))
    held = sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(task.abstract_state())
    )
    found = accounts[f'cpu:{devices}']
    assert found['groups'] == found['blocks'] == 4 // devices
    assert found['block_classes'] == 80
    sizes = found['bytes']
    assert sizes['inputs'] == 16 // devices * (112 * 112 * 3 + 4)
    # Keys and trip counts too.
    assert held <= sizes['state'] <= held + 512
    parts = ('state', 'inputs', 'temporary', 'results', 'program')
    assert sizes['peak'] == sum(sizes[x] for x in parts)


def test_adamw_keeps_one_array_more_of_everything(monkeypatch):
  thin.add(monkeypatch.setitem)

  def held(optimizer):
    recipe = fakes.recipe(**vars(RECIPE) | {'optimizer': optimizer})
    like = step.make_task(recipe, state.make_mesh(2)).abstract_state()
    sizes = {
      name: sum(map(account._shard_bytes, jax.tree.leaves(part)))
      for name, part in vars(like).items()
    }
    return sizes, sum(sizes.values())

  sgd, of_sgd = held('sgd')
  _, of_adamw = held('adamw')
  assert of_adamw - of_sgd == sgd['params'] + sgd['class_centers']


def test_flop_are_those_of_the_whole_step(accounts, monkeypatch):
  thin.add(monkeypatch.setitem)
  one, two = (x['model_flop_of_all_devices'] for x in accounts.values())
  assert one == two
  product = 2 * 16 * 16 * 300
  assert one['head'] == 3 * product and one['head_as_computed'] == 5 * product
  backbone = models.build(**MODEL)
  frozen = account._flop(
    step.make_task(RECIPE, state.make_mesh(1), backbone=backbone),
    fakes.recipe(**{**vars(RECIPE), 'freeze': True}),
  )
  assert 3 * frozen['backbone'] == one['backbone']


def test_one_device_receives_nothing(accounts):
  one, two = (x['bytes_between_devices'] for x in accounts.values())
  assert not any(one.values())
  # The gradient alone: scattered, then gathered, half of it from the other.
  assert two['all-to-all'] > 1000 and two['all-gather'] > 1000


def test_devices_share_the_traffic(accounts):
  one, two = (x['memory_traffic_bytes'] for x in accounts.values())
  assert 0.5 < two / one < 0.75


def test_the_arithmetic_is_the_same_on_any_number_of_devices(accounts):
  assert same.differing(accounts) == []
  assert same.num_instructions(accounts['cpu:1']) > 500


def test_other_arithmetic_is_found(accounts, monkeypatch):
  thin.add(monkeypatch.setitem)
  other = account.of(
    fakes.recipe(**{**vars(RECIPE), 'group_size': 8}), fakes.parse('cpu:1')
  )
  differing = same.differing({'four': accounts['cpu:1'], 'two': other})
  assert any(line.startswith('only on two: ') for line in differing)


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by '
    '4.75G.\n\nTotal hbm usage >= 20.49G:\n    reserved        258.00M',
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
    'the total memory required for HLO temporaries (20.50G) exceeds available '
    'HBM (15.75G). HLO module: jit__step.',
  ],
)
def test_the_compilers_refusal_is_an_account(monkeypatch, message):
  found = refused(monkeypatch, message)
  assert found['bytes']['peak'] == round(20.5 * 2**30)
  assert 'temporary' not in found['bytes'] and 'arithmetic' not in found


def test_other_errors_of_the_compiler_are_not(monkeypatch):
  for message in ('INTERNAL: 1.5G', 'RESOURCE_EXHAUSTED: no more registers'):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
      refused(monkeypatch, message)


def refused(monkeypatch, message):
  thin.add(monkeypatch.setitem)

  def refuse(self):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  return account.of(RECIPE, fakes.parse('cpu:1'))


def test_trip_counts_have_the_names_of_scopes():
  layout = step.make_task(
    fakes.recipe(batch_size=12 * 128), state.make_mesh(2)
  ).layout
  trips = account.trip_counts(layout)
  # 6 groups a device are three pairs: three sums, half of one in a turn.
  assert (trips['turns'], trips['blocks'], trips['merge']) == (6, 4, 0.5)
