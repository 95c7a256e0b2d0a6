# SPDX-License-Identifier: Apache-2.0
"""Rows of loop buffers, and what the compiler makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.losses import rows


def buffers(count):
  rng = np.random.default_rng(count)
  return {
    'vectors': jnp.asarray(rng.normal(size=(count, 4, 3)), jnp.float32),
    'numbers': (jnp.asarray(rng.integers(0, 9, count), jnp.int32),),
  }


@pytest.mark.parametrize('count', [1, 2, 5])
def test_rows_written_in_a_loop_are_the_rows_read(count):
  source = buffers(count)

  @jax.jit
  def reverse(source, trip_count):
    source = rows.at_least_two(source)
    like = jax.tree.map(lambda x: x[0], source)

    def body(i, target):
      return rows.write(target, trip_count - 1 - i, rows.read(source, i))

    return jax.lax.fori_loop(0, trip_count, body, rows.empty(count, like))

  got = reverse(source, count)
  assert jax.tree.structure(got) == jax.tree.structure(source)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(source), strict=True):
    assert x.dtype == y.dtype and x.shape == (max(count, 2), *y.shape[1:])
    np.testing.assert_array_equal(x[:count], y[::-1])
    np.testing.assert_array_equal(x[count:], np.zeros_like(x[count:]))


def test_one_row_is_joined_by_zeros_and_more_are_left_alone():
  one, two = buffers(1), buffers(2)
  padded = rows.at_least_two(one)
  for x, y in zip(jax.tree.leaves(padded), jax.tree.leaves(one), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, np.stack([y[0], np.zeros_like(y[0])]))
  same = rows.at_least_two(two)
  for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(two), strict=True):
    assert x is y


def test_empty_takes_shapes_or_arrays():
  for like in (
    jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    jnp.ones(3, jnp.bfloat16),
  ):
    for count, held in ((1, 2), (2, 2), (5, 5)):
      got = rows.empty(count, [like])[0]
      assert got.dtype == jnp.bfloat16
      np.testing.assert_array_equal(got, np.zeros((held, 3), np.float32))


def test_reading_and_writing_one_row():
  source = buffers(5)
  for got, x in zip(
    jax.tree.leaves(rows.read(source, 3)), jax.tree.leaves(source), strict=True
  ):
    np.testing.assert_array_equal(got, x[3], strict=True)
  row = jax.tree.map(lambda x: x[0] + 1, source)
  for got, x in zip(
    jax.tree.leaves(rows.write(source, 3, row)),
    jax.tree.leaves(source),
    strict=True,
  ):
    np.testing.assert_array_equal(got, x.at[3].set(x[0] + 1), strict=True)


def test_one_row_is_a_loop_over_a_buffer_like_any_number():
  def uses(count, pad=True, traced=True):
    def step(source, trip_count):
      held = rows.at_least_two(source) if pad else source
      body = lambda i, x: rows.write(x, i, jnp.sin(rows.read(held, i)))
      empty = rows.empty(count, source[0])
      trip_count = trip_count if traced else count
      return jax.lax.fori_loop(0, trip_count, body, empty)

    source = jax.ShapeDtypeStruct((count, 7), jnp.float32)
    trip_count = jax.ShapeDtypeStruct((), jnp.int32)
    program = jax.jit(step).lower(source, trip_count).compile().as_text()
    parts = ('while', 'dynamic-slice', 'dynamic-update-slice')
    return [program.count(f' {part}(') for part in parts]

  assert uses(8) == uses(1) == [1, 1, 1]
  # The compiler would do otherwise, so both precautions are needed.
  assert uses(1, pad=False) == [1, 0, 1]
  assert uses(1, traced=False)[0] == 0


def test_a_row_is_written_in_place():
  size = 1_000_000
  row = jax.ShapeDtypeStruct((size,), jnp.float32)

  def fill(row, trip_count):
    body = lambda i, buffer: rows.write(buffer, i, row)
    return jax.lax.fori_loop(0, trip_count, body, rows.empty(8, row))

  count = jax.ShapeDtypeStruct((), jnp.int32)
  memory = jax.jit(fill).lower(row, count).compile().memory_analysis()
  assert memory.output_size_in_bytes == 8 * 4 * size
  assert memory.temp_size_in_bytes < 2 * 4 * size


@pytest.mark.parametrize('count', [1, 2, 5])
def test_fill_writes_what_a_function_makes_of_each_index(count):
  source = buffers(count)

  @jax.jit
  def doubled(source, trip_count):
    source = rows.at_least_two(source)
    twice = lambda i: jax.tree.map(lambda x: 2 * x, rows.read(source, i))
    return rows.fill(twice, count, trip_count)

  got = doubled(source, count)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(source), strict=True):
    assert x.dtype == y.dtype and x.shape == (max(count, 2), *y.shape[1:])
    np.testing.assert_array_equal(x[:count], 2 * y)
    np.testing.assert_array_equal(x[count:], np.zeros_like(x[count:]))
  np.testing.assert_array_equal(rows.fill(lambda i: i, 4), [0, 1, 2, 3])


@pytest.mark.parametrize('count', [1, 3])
def test_end_to_end_is_as_filled_and_hardly_longer(count):
  def row(i):
    return {'a': jnp.full((4, 2), i), 'b': 10 * i, 'c': jnp.arange(3) + i}

  like = jax.eval_shape(row, jax.ShapeDtypeStruct((), jnp.int32))
  long = rows.EndToEnd(count, like)
  sizes = jax.tree.map(len, long.empty())
  assert sizes == {'a': 4 * count + 1, 'b': count + 1, 'c': 3 * count + 1}

  @jax.jit
  def fill(trip_count):
    return jax.lax.fori_loop(
      0, trip_count, lambda i, x: long.write(x, i, row(i)), long.empty()
    )

  buffers = fill(jnp.int32(count))
  filled = rows.fill(row, count)
  for i in range(count):
    found = long.read(buffers, jnp.int32(i))
    jax.tree.map(
      np.testing.assert_array_equal, found, rows.read(filled, jnp.int32(i))
    )
