# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (lines of a compiler)
"""`checks/compiled_for_tpu.py` on the text of a program, without a TPU."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'compiled_for_tpu.py'
# The form of libtpu's text, shortened.
PROGRAM = """HloModule jit__step, is_scheduled=true

%fused (p.0: f32[8,4]) -> f32[8,4] {
  %p.0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %mul.1 = f32[8,4]{1,0:T(8,128)} multiply(%p.0, %p.0), metadata={op_name="jit(_step)/turns/while/body/mul"}
}

%blocks.7 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x.2 = f32[8,4]{1,0:T(8,128)S(1)} fusion(%arg.1), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
}

%turns.5 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %dot.3 = f32[8,8]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(_step)/turns/while/body/dot_general"}, backend_config={"estimated_cycles":"100"}
  %concatenate.4 = f32[16,8]{1,0:T(8,128)} maximum(%a, %b), metadata={op_name="jit(_step)/turns/while/body/concatenate"}
  %sum.4 = f32[2,8]{1,0:T(8,128)} add(%a, %b), metadata={op_name="jit(_step)/turns/while/body/over_devices/add"}
  %while.2 = (s32[], f32[8,4]) while(%t), condition=%c.2, body=%blocks.7, metadata={op_name="jit(_step)/turns/while/body/blocks/while"}
}

ENTRY %main.9 (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%c.1, body=%turns.5, metadata={op_name="jit(_step)/shard_map/turns/while"}
  %while.3 = (s32[]) while(%t), condition=%c.3, body=%blocks.7, backend_config={"known_trip_count":{"n":"5"}}
  %copy.1 = f32[8,4]{1,0} copy(%p), backend_config={"estimated_cycles":"7"}
}
"""


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


def test_cycles_are_counted_as_often_as_bodies_run(script):
  program = script.Program.parse(PROGRAM)
  assert program.own_cycles(program.entry) == 7
  assert program.own_cycles(program.body_of('turns')) == 100
  assert program.cycles(None) == 7 + 100 + 10 + 10
  # A trip count that the compiler knows takes precedence.
  assert program.cycles({}) == 7 + 100 + 10 + 5 * 10
  trips = {'turns': 3, 'blocks': 4}
  assert program.cycles(trips) == 7 + 3 * (100 + 4 * 10) + 5 * 10
  assert script.bodies_run(program, trips) == 3 * (1 + 4) + 5
  with pytest.raises(ValueError, match="no loop 'devices'"):
    program.body_of('devices')


def changed(script, old, new):
  assert old in PROGRAM
  programs = {
    'one': script.Program.parse(PROGRAM),
    'other': script.Program.parse(PROGRAM.replace(old, new)),
  }
  return script.compare(programs)


def test_arithmetic_that_differs_is_found(script):
  differing = changed(script, 'multiply(%p.0, %p.0)', 'add(%p.0, %p.0)')
  assert [line.split(':')[0] for line in differing] == [
    'only on one',
    'only on other',
  ]
  assert 'multiply' in differing[0] and 'add' in differing[1]
  assert changed(script, '[8,8]{1,0:T(8,128)} conv', '[8,9]{1,0:T(8,128)} conv')
  assert changed(script, 'bf_io->bf', 'fb_io->bf')


@pytest.mark.parametrize(
  'old, new',
  [
    ('%mul.1', '%mul.77'),  # Names.
    ('S(1)', ''),  # Memory spaces.
    ('f32[16,8]{1,0:T(8,128)} maximum', 'f32[32,8]{1,0:T(8,128)} maximum'),
    ('f32[2,8]', 'f32[4,8]'),  # The tree over devices.
    ('"estimated_cycles":"100"', '"estimated_cycles":"90"'),
  ],
)
def test_other_differences_are_ignored(script, old, new):
  assert changed(script, old, new) == []
