# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/reduction.py` times both sums."""

from pathlib import Path

import numpy as np

from elasticface_jax.training import state

SCRIPT = Path(__file__).parents[3] / 'benchmarks' / 'reduction.py'


def test_reduction(load_script, monkeypatch, capsys):
  script = load_script(SCRIPT)
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  mesh = state.make_mesh(2)
  monkeypatch.setattr(script.state, 'make_mesh', lambda: mesh)
  for call in script.make_calls(mesh, 100).values():
    np.testing.assert_array_equal(call(), np.full(100, 2.0))
  assert script.main(['--values=100', '--rounds=2']) == 0
  title, *rows, ratio = capsys.readouterr().out.splitlines()
  assert title.startswith('100 float32 on 2 devices')
  assert [row.split()[0] for row in rows] == ['tree', 'all-reduce']
  assert ratio.startswith('ratio, by round: ')
