# SPDX-License-Identifier: Apache-2.0
"""The accuracy of each `head.precision`, by `checks/head_precision.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'head_precision.py'


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


def test_parts_add_up(script):
  x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
  parts = jax.jit(script.split)(x)
  np.testing.assert_array_equal(sum(parts[1:], parts[0]), x)
  for part in parts:  # Each is a bfloat16.
    np.testing.assert_array_equal(part.astype(jnp.bfloat16), part)


def test_products_of_parts_are_products(script):
  rng = np.random.default_rng(1)
  a, b = (
    jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 9), (4, 9))
  )
  want = np.float64(a) @ np.float64(b).T
  error = {
    name: np.abs(script.by_parts(pairs)(a, b, (1, 1), None) - want).max()
    for name, pairs in script.PARTS.items()
  }
  error['TF32'] = np.abs(script.tf32(a, b, (1, 1), None) - want).max()
  assert error['highest'] < 3e-6 < error['TF32'] < error['default'] < 0.1
  assert error['highest'] < error['high'] < error['TF32']


def test_the_table(script, capsys, monkeypatch):
  monkeypatch.setattr(script, 'NUM_CLASSES', 1024)
  assert script.main([]) == 0
  rows = capsys.readouterr().out.splitlines()[2:]
  assert [r.split()[0] for r in rows] == ['float32', *script.PARTS, 'TF32']
