# SPDX-License-Identifier: Apache-2.0
"""Peaks of a device, and the memory of a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.benchmark import device
from elasticface_jax.training.state import make_mesh


def test_peak_is_the_best_size(monkeypatch):
  # Seconds of the three sizes, in the order that they are tried.
  seconds = iter([0.5, 1.0, 1e3])
  monkeypatch.setattr(
    device.timing,
    'in_turn',
    lambda calls, **_: {name: np.full(3, next(seconds)) for name in calls},
  )
  found = device.matrix_flop_per_second.__wrapped__('float32', jax.devices()[0])
  assert found == 2 * 1024**3 / 1.0


def test_copy_reads_and_writes(monkeypatch):
  monkeypatch.setattr(
    device.timing,
    'in_turn',
    lambda calls, **_: {name: np.full(3, 0.5) for name in calls},
  )
  found = device.copy_bytes_per_second.__wrapped__(jax.devices()[0])
  assert found == 2 * 2**28 / 0.5


def test_share_is_of_the_peak_of_each_kind(monkeypatch):
  peaks = {('bfloat16', None): 100.0, ('float32', 'highest'): 10.0}
  monkeypatch.setattr(
    device,
    'matrix_flop_per_second',
    lambda dtype, _, *, precision: peaks[dtype, precision],
  )
  flop = {('bfloat16', None): 400, ('float32', 'highest'): 20}
  # Four and two seconds of one device, shared by two: three of twelve.
  found = device.shares(flop, 12.0, make_mesh(2))
  assert found['share_of_matrix_peak'] == pytest.approx(3 / 12)
  assert found['model_flop_per_second'] == pytest.approx(420 / 12)


def test_memory_counts_updated_buffers_once():
  x = jnp.ones(1000, jnp.float32)
  compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
  found = device.memory(compiled)
  assert found['argument_bytes'] == 4000
  assert 4000 <= found['program_bytes'] < 4100
