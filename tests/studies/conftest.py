# SPDX-License-Identifier: Apache-2.0
"""A narrow recipe with an argument, and commands that know its network."""

import sys
import types

import pytest

from elasticface_jax import cli, studies

from ..training import conftest as training

NARROW = training.NARROW
# Fixtures of whole runs, with a network that compiles in seconds.
elasticface = training.elasticface
free_port = training.free_port
run_here = training.run_here
thin_backbone = training.thin_backbone

RECIPE = f"""
from elasticface_jax import recipes

NARROW = {NARROW!r}


def get_config(loss):
  c = recipes.base(loss=recipes.loss(loss))
  c.data.source = 'synthetic'
  c.eval.pairs = ('synthetic',)
  c.update_from_flattened_dict({{**NARROW, 'loss.name': loss}})
  return c
"""


@pytest.fixture
def recipe(tmp_path):
  """The path of a recipe whose argument is the name of a loss."""
  path = tmp_path / 'losses.py'
  path.write_text(RECIPE)
  return path


@pytest.fixture
def fails(capsys):
  """``fails(*arguments)``: runs a study; returns its one line on stderr."""

  def run(*arguments):
    try:
      code = cli.main(['study', *map(str, arguments)])
    except SystemExit as error:
      code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err.removeprefix('elasticface: ').strip()

  return run


@pytest.fixture
def analysed(monkeypatch):
  """The folders that were analysed, by a stub of the analysis."""
  folders = []
  stub = types.ModuleType('elasticface_jax.studies.analysis')
  stub.write = lambda folder: folders.append(folder) or 'the table'
  monkeypatch.setitem(sys.modules, stub.__name__, stub)
  monkeypatch.setattr(studies, 'analysis', stub, raising=False)
  return folders
