# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (lines of a compiler)
"""Reading of compiled programs: texts in XLA's form, and programs of this CPU."""

import jax
import jax.numpy as jnp
import pytest

from elasticface_jax.planning import same
from elasticface_jax.planning.program import Program, num_bytes

# The form of libtpu's text, shortened.
PROGRAM = """HloModule jit__step, is_scheduled=true

%fused (p.0: f32[8,4]) -> f32[8,4] {
  %p.0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %mul.1 = f32[8,4]{1,0:T(8,128)} multiply(%p.0, %p.0), metadata={op_name="jit(_step)/turns/while/body/mul"}
}

%blocks.7 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %x.2 = f32[8,4]{1,0:T(8,128)S(1)} fusion(%arg.1), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
}

%turns.5 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a = f32[8,64]{1,0:T(8,128)} parameter(0)
  %b = f32[64,8]{1,0:T(8,128)S(1)} parameter(1)
  %dot.3 = f32[8,8]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(_step)/turns/while/body/dot_general"}, backend_config={"estimated_cycles":"100"}
  %gather.4 = f32[16,8]{1,0} all-gather(%dot.3), replica_groups={{0,1}}, dimensions={0}
  %concatenate.4 = f32[16,8]{1,0:T(8,128)} maximum(%a, %b), metadata={op_name="jit(_step)/turns/while/body/concatenate"}
  %sum.4 = f32[2,8]{1,0:T(8,128)} add(%a, %b), metadata={op_name="jit(_step)/turns/while/body/over_devices/add"}
  ROOT %while.2 = (s32[], f32[8,4]) while(%t), condition=%c.2, body=%blocks.7, metadata={op_name="jit(_step)/turns/while/body/blocks/while"}
}

ENTRY %main.9 (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%c.1, body=%turns.5, metadata={op_name="jit(_step)/shard_map/turns/while"}
  %while.3 = (s32[]) while(%t), condition=%c.3, body=%blocks.7, backend_config={"known_trip_count":{"n":"5"}}
  %exchange.1 = ((f32[4,8]{1,0}), f32[4,8]{1,0}) all-to-all-start(%p), dimensions={0}
  %exchange.2 = f32[4,8]{1,0} all-to-all-done(%exchange.1)
  ROOT %copy.1 = f32[8,4]{1,0} copy(%p), backend_config={"estimated_cycles":"7"}
}
"""
TRIPS = {'turns': 3, 'blocks': 4}


def test_cycles_are_counted_as_often_as_bodies_run():
  program = Program.parse(PROGRAM)
  assert program.own_cycles(program.entry) == 7
  assert program.own_cycles(program.body_of('turns')) == 100
  assert program.cycles(None) == 7 + 100 + 10 + 10
  # A trip count that the compiler knows takes precedence.
  assert program.cycles({}) == 7 + 100 + 10 + 5 * 10
  assert program.cycles(TRIPS) == 7 + 3 * (100 + 4 * 10) + 5 * 10
  with pytest.raises(ValueError, match="no loop 'devices'"):
    program.body_of('devices')


def test_bytes_between_devices_are_those_received():
  program = Program.parse(PROGRAM)
  # Half of a result comes from the other one of two devices.
  assert program.between_devices(TRIPS, 2) == {
    'all-gather': 3 * 16 * 8 * 4 / 2,
    'all-to-all': 4 * 8 * 4 / 2,
  }
  assert set(program.between_devices(TRIPS, 1).values()) == {0}


def test_what_stays_on_the_chip_is_no_traffic():
  assert Program.parse(PROGRAM).memory_traffic(TRIPS) == sum(
    (
      3 * (8 * 64 + 8 * 8) * 4,  # dot: `b` is on the chip.
      3 * (8 * 8 + 16 * 8) * 4,  # gather
      3 * (8 * 64 + 16 * 8) * 4,  # concatenate
      3 * (8 * 64 + 2 * 8) * 4,  # sum
      (3 * 4 + 5) * 8 * 4 * 4,  # The fusion's result is on the chip.
      4 * 8 * 4,  # exchange; its operand is not in the text,
      8 * 4 * 4,  # nor is that of copy.
    )
  )


# What copies in parts, and fusions with several results, in libtpu's form.
PARTS = """HloModule jit__step, is_scheduled=true

%inner (p.1: f32[8,4]) -> (f32[4], f32[8,4]) {
  %p.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %sum.1 = f32[4]{0:T(128)} reduce(%p.1, %c.1), dimensions={0}, to_apply=%add
  %mul.1 = f32[8,4]{1,0:T(8,128)} multiply(%p.1, %p.1)
  ROOT %both.1 = (f32[4]{0:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%sum.1, %mul.1)
}

%outer (p.2: f32[8,4]) -> (f32[4], f32[8,4], f32[32]) {
  %p.2 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %both.2 = (f32[4]{0:T(128)}, f32[8,4]{1,0:T(8,128)}) fusion(%p.2), kind=kLoop, calls=%inner
  %sum.2 = f32[4]{0:T(128)} get-tuple-element(%both.2), index=0
  %mul.2 = f32[8,4]{1,0:T(8,128)} get-tuple-element(%both.2), index=1
  %flat.2 = f32[32]{0:T(128)} bitcast(%mul.2)
  ROOT %three = (f32[4]{0:T(128)}, f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) tuple(%sum.2, %mul.2, %flat.2)
}

ENTRY %main.9 (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  LINE
}
"""


@pytest.mark.parametrize(
  'line, numbers',
  [
    # A slice of 2 of 8 rows, from the memory to the chip, and from chip to chip.
    (
      '%s = ((f32[8,4]{1,0:T(8,128)}), f32[2,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:4]}',
      8,
    ),
    (
      '%s = ((f32[8,4]{1,0:S(1)}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:4]}',
      0,
    ),
    (
      '%s = (f32[8,4]{1,0:S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%p)',
      32,
    ),
    # The smaller result stays on the chip, or the larger one, or none does.
    (
      '%f = (f32[4]{0:T(128)S(1)}, f32[8,4]{1,0:T(8,128)}) fusion(%p), calls=%inner',
      32 + 32,
    ),
    (
      '%f = (f32[4]{0:T(128)}, f32[8,4]{1,0:T(8,128)S(1)}) fusion(%p), calls=%inner',
      32 + 4,
    ),
    (
      '%f = (f32[4]{0}, f32[8,4]{1,0}, f32[32]{0}) fusion(%p), calls=%outer',
      32 + 4 + 32 + 32,
    ),
    # All of it is written where the second of the pair ends.
    (
      '%g = ((f32[8,4]{1,0}), f32[16,4]{1,0}) all-gather-start(%p), dimensions={0}\n'
      '  %d = f32[16,4]{1,0} all-gather-done(%g)',
      32 + 64,
    ),
  ],
)
def test_parts_of_arrays_and_of_results_count_alone(line, numbers):
  program = Program.parse(PARTS.replace('LINE', line))
  assert program.memory_traffic(None) == 4 * numbers


def compiled(function, *arguments, **jit):
  lowered = jax.jit(function, **jit).lower(*arguments)
  return Program.parse(lowered.compile().as_text())


VECTOR = jax.ShapeDtypeStruct((1000,), 'float32')
MATRIX = jax.ShapeDtypeStruct((50, 1000), 'float32')
INDEX = jax.ShapeDtypeStruct((), 'int32')


def test_traffic_of_a_fusion_is_its_operands_and_its_result():
  program = compiled(lambda x, y: jnp.tanh(x) * y + 1, VECTOR, VECTOR)
  assert program.memory_traffic(None) == 3 * 4000


def test_a_row_that_is_read_or_replaced_counts_alone():
  def row(x, i):
    return 2 * jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

  program = compiled(row, MATRIX, INDEX)
  assert 8000 <= program.memory_traffic(None) <= 8000 + 16

  def replace(x, v, i):
    return jax.lax.dynamic_update_index_in_dim(x, 2 * v, i, 0)

  program = compiled(replace, MATRIX, VECTOR, INDEX, donate_argnums=0)
  assert 8000 <= program.memory_traffic(None) <= 8000 + 16


def test_traffic_of_a_loop_is_that_of_its_body_times_its_trips():
  def add_rows(x, n):
    def body(i, total):
      return total + jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    with jax.named_scope('turns'):
      return jax.lax.fori_loop(0, n, body, jnp.ones(1000))

  program = compiled(add_rows, MATRIX, INDEX)
  once, many = (program.memory_traffic({'turns': n}) for n in (1, 50))
  # A row and the sum are read, and the sum is written.
  assert 49 * 12_000 <= many - once <= 49 * (12_000 + 64)


def test_collectives_of_a_program_on_several_devices():
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('d')

  def share(x):
    everything = jax.lax.all_gather(x, 'd', tiled=True)
    return jax.lax.all_to_all(2 * everything, 'd', 0, 0, tiled=True)

  shared = jax.shard_map(share, mesh=mesh, in_specs=spec, out_specs=spec)
  program = compiled(shared, jax.ShapeDtypeStruct((16, 10), 'float32'))
  size = 16 * 10 * 4 * 3 / 4
  assert program.between_devices(None, 4) == {
    'all-gather': size,
    'all-to-all': size,
  }


@pytest.mark.parametrize(
  'shape, expected',
  [
    ('f32[]', 4),
    ('(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/s32[5]{0:T(128)S(1)})', 32),
    ('pred[7]{0}', 7),
    ('u8[0]{0}', 0),
    ('s4[10]{0:E(4)}', 5),
    ('token[]', 0),
    ('f8e4m3fn[6]', 6),
  ],
)
def test_sizes_of_shapes(shape, expected):
  assert num_bytes(shape) == expected


def changed(old, new):
  assert old in PROGRAM
  return same.differing(
    {
      name: {'arithmetic': Program.parse(text).arithmetic()}
      for name, text in (
        ('one', PROGRAM),
        ('other', PROGRAM.replace(old, new)),
      )
    }
  )


def test_arithmetic_that_differs_is_found():
  differing = changed('multiply(%p.0, %p.0)', 'add(%p.0, %p.0)')
  assert [line.split(':')[0] for line in differing] == [
    'only on one',
    'only on other',
  ]
  assert 'multiply' in differing[0] and 'add' in differing[1]
  assert differing[0].endswith('from jit(_step)/turns/while/body/mul')
  assert changed('[8,8]{1,0:T(8,128)} conv', '[8,9]{1,0:T(8,128)} conv')
  assert changed('bf_io->bf', 'fb_io->bf')
  # Other numbers are added for a result of the same shape.
  assert changed('f32[64,8]', 'f32[65,8]')


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
def test_other_differences_are_ignored(old, new):
  assert changed(old, new) == []


def test_instructions_are_counted():
  account = {'arithmetic': Program.parse(PROGRAM).arithmetic()}
  assert same.num_instructions(account) == 2  # multiply, convolution
