# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/checkpoint_checksums.py` saves and restores both ways."""

from pathlib import Path

from elasticface_jax.training import state

SCRIPTS = Path(__file__).parents[3] / 'benchmarks'


def test_checkpoint_checksums(load_script, monkeypatch, capsys):
  script = load_script(SCRIPTS / 'checkpoint_checksums.py')
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  mesh = state.make_mesh(2)
  monkeypatch.setattr(script.state, 'make_mesh', lambda: mesh)
  assert script.main(['--parameters=99', '--classes=16', '--rounds=2']) == 0
  title, *rows = capsys.readouterr().out.splitlines()
  assert title.startswith('0.00 GB on ')
  assert [row.split('  ')[0].split(',')[0] for row in rows] == [
    'save with',
    'restore with',
    'save without',
    'restore without',
    'checksums',
    'save',
    'restore',
  ]
