# SPDX-License-Identifier: Apache-2.0
"""Shares of known types, read from a report of pyright."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'public_types.py'


def symbol(name, known=True, exported=True):
  return {
    'name': f'elasticface_jax.{name}',
    'isExported': exported,
    'isTypeKnown': known,
    'diagnostics': [] if known else [{'message': 'Return type\n  is missing'}],
  }


@pytest.fixture
def script(load_script):
  return load_script(SCRIPT)


def test_exit_code_and_lines(script, monkeypatch, capsys):
  names = [f'{p}.f{i}' for p in script.PACKAGES for i in range(20)]
  symbols = [symbol(name) for name in names]
  symbols += [symbol('data.g', known=False)]  # Not among the four.
  symbols += [symbol('losses._h', known=False, exported=False)]
  report = {'typeCompleteness': {'symbols': symbols}}
  monkeypatch.setattr(script, 'pyright', lambda: report)
  assert script.main() == 0
  assert 'losses       100.0% of' in capsys.readouterr().out
  symbols[0] = symbol(names[0], known=False)  # 95 % are not over 95 %.
  assert script.main() == 1
  assert 'losses.f0: Return type is missing\n' in capsys.readouterr().out


def test_package_that_is_not_found(script):
  report = {'typeCompleteness': {'symbols': [symbol('losses.f')]}}
  with pytest.raises(SystemExit, match='finds no models, interop, evaluation'):
    script.shares(report)
