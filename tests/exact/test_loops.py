# SPDX-License-Identifier: Apache-2.0
"""Loops over slots of buffers, and the programs that XLA compiles them to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.exact import loops


def buffers(count):
  rng = np.random.default_rng(count)
  return {
    'vectors': jnp.asarray(rng.normal(size=(count, 4, 3)), jnp.float32),
    'labels': (jnp.asarray(rng.integers(0, 9, count), jnp.int32),),
  }


@pytest.mark.parametrize('count', [1, 2, 5])
def test_slots_written_in_a_loop_are_the_slots_read(count):
  source = buffers(count)

  @jax.jit
  def reverse(source, trip_count):
    source = loops.with_spare(source)
    like = jax.tree.map(lambda x: x[0], source)

    def body(i, target):
      return loops.write(target, trip_count - 1 - i, loops.read(source, i))

    return jax.lax.fori_loop(0, trip_count, body, loops.empty(count, like))

  got = reverse(source, count)
  assert jax.tree.structure(got) == jax.tree.structure(source)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(source), strict=True):
    assert x.dtype == y.dtype and x.shape == (max(count, 2), *y.shape[1:])
    np.testing.assert_array_equal(x[:count], y[::-1])
    np.testing.assert_array_equal(x[count:], np.zeros_like(x[count:]))


def test_a_single_slot_gets_a_spare_of_zeros_and_two_are_kept():
  one, two = buffers(1), buffers(2)
  padded = loops.with_spare(one)
  for x, y in zip(jax.tree.leaves(padded), jax.tree.leaves(one), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, np.stack([y[0], np.zeros_like(y[0])]))
  same = loops.with_spare(two)
  for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(two), strict=True):
    assert x is y


def test_empty_takes_shapes_or_arrays():
  for like in (
    jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    jnp.ones(3, jnp.bfloat16),
  ):
    for count, held in ((1, 2), (2, 2), (5, 5)):
      got = loops.empty(count, [like])[0]
      assert got.dtype == jnp.bfloat16
      np.testing.assert_array_equal(got, np.zeros((held, 3), np.float32))


def test_reading_and_writing_one_slot():
  source = buffers(5)
  for got, x in zip(
    jax.tree.leaves(loops.read(source, 3)), jax.tree.leaves(source), strict=True
  ):
    np.testing.assert_array_equal(got, x[3], strict=True)
  values = jax.tree.map(lambda x: x[0] + 1, source)
  for got, x in zip(
    jax.tree.leaves(loops.write(source, 3, values)),
    jax.tree.leaves(source),
    strict=True,
  ):
    np.testing.assert_array_equal(got, x.at[3].set(x[0] + 1), strict=True)


def test_one_slot_compiles_to_the_loop_of_any_number():
  def uses(count, pad=True, traced=True):
    def step(source, trip_count):
      held = loops.with_spare(source) if pad else source
      body = lambda i, x: loops.write(x, i, jnp.sin(loops.read(held, i)))
      empty = loops.empty(count, source[0])
      trip_count = trip_count if traced else count
      return jax.lax.fori_loop(0, trip_count, body, empty)

    source = jax.ShapeDtypeStruct((count, 7), jnp.float32)
    trip_count = jax.ShapeDtypeStruct((), jnp.int32)
    program = jax.jit(step).lower(source, trip_count).compile().as_text()
    parts = ('while', 'dynamic-slice', 'dynamic-update-slice')
    return [program.count(f' {part}(') for part in parts]

  assert uses(8) == uses(1) == [1, 1, 1]
  # Without either precaution XLA compiles another program.
  assert uses(1, pad=False) == [1, 0, 1]
  assert uses(1, traced=False)[0] == 0


def test_a_slot_is_written_in_place():
  size = 1_000_000
  values = jax.ShapeDtypeStruct((size,), jnp.float32)

  def fill(values, trip_count):
    body = lambda i, buffer: loops.write(buffer, i, values)
    return jax.lax.fori_loop(0, trip_count, body, loops.empty(8, values))

  count = jax.ShapeDtypeStruct((), jnp.int32)
  memory = jax.jit(fill).lower(values, count).compile().memory_analysis()
  assert memory.output_size_in_bytes == 8 * 4 * size
  assert memory.temp_size_in_bytes < 2 * 4 * size


@pytest.mark.parametrize('count', [1, 2, 5])
def test_stack_holds_the_results_for_each_index(count):
  source = buffers(count)

  @jax.jit
  def doubled(source, trip_count):
    source = loops.with_spare(source)
    twice = lambda i: jax.tree.map(lambda x: 2 * x, loops.read(source, i))
    return loops.stack(twice, count, trip_count)

  got = doubled(source, count)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(source), strict=True):
    np.testing.assert_array_equal(x, 2 * y, strict=True)
  np.testing.assert_array_equal(loops.stack(lambda i: i, 4), [0, 1, 2, 3])


@pytest.mark.parametrize('count', [1, 3])
def test_map_slots_calls_a_function_on_each_slot(count):
  source = buffers(count)
  twice = lambda slot: jax.tree.map(lambda x: 2 * x, slot)
  got = jax.jit(lambda *a: loops.map_slots(twice, *a))(source, np.int32(count))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(source), strict=True):
    np.testing.assert_array_equal(x, 2 * y, strict=True)


def test_isolated_arithmetic_is_a_loop_of_its_own():
  def outside(x):
    return jnp.sum(x * jnp.float32(1.1), axis=1) + 1

  function = lambda x: {'sum': outside(x), 'product': x * x[0, 0]}
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)

  def isolated(x, once):
    return loops.isolate(function, x + 1, once)['sum'] * 2

  got = jax.jit(isolated)(x, np.int32(1))
  np.testing.assert_array_equal(got, 2 * jax.jit(outside)(x + 1))
  program = jax.jit(isolated).lower(x, jnp.int32(1)).compile().as_text()
  body = next(c for c in program.split('\n\n') if ' reduce(' in c)
  assert program.count(' while(') == 1 and 'dynamic-slice' in program
  # The sum is in the loop, and neither of its neighbours is.
  assert 'ENTRY' not in body


def test_an_update_in_place_copies_no_more_than_one_array():
  size = 1_000_000
  values = {n: jax.ShapeDtypeStruct((size,), jnp.float32) for n in 'ab'}
  swap = lambda v: {'a': v['a'] - v['b'], 'b': -v['b']}
  update = lambda v, once: loops.update_in_place(swap, v, once)
  compiled = (
    jax.jit(update, donate_argnums=0)
    .lower(values, jax.ShapeDtypeStruct((), jnp.int32))
    .compile()
  )
  assert compiled.memory_analysis().temp_size_in_bytes < 5 * size
  assert compiled.as_text().count(' while(') == 1
  given = {'a': jnp.float32([3.0]), 'b': jnp.float32([1.0])}
  got = jax.jit(update)(given, np.int32(1))
  assert (float(got['a'][0]), float(got['b'][0])) == (2.0, -1.0)
