# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/export_latency.py` compares variants, then times them."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('onnxruntime')
SCRIPT = Path(__file__).parents[3] / 'benchmarks' / 'export_latency.py'
FLAGS = ['--batches=2', '--rounds=2']


@pytest.fixture
def script(load_script, monkeypatch):
  script = load_script(SCRIPT)
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  monkeypatch.setattr(script, 'SECONDS', 0.001)
  return script


def variants_of(script, monkeypatch, factor):
  """Replaces the network by a mean over pixels; ONNX has another factor."""

  def make_variants(model, folder):
    file = folder / 'network.onnx'
    file.write_bytes(bytes(1_500_000))
    means = lambda images: images.mean((1, 2))
    last = lambda images: factor * images.mean((2, 3))
    variants = {
      'JAX': (lambda images: images, means),
      'ONNX': (script.channels_first, last),
    }
    return {'ONNX': file}, variants

  monkeypatch.setattr(script, 'make_variants', make_variants)


def test_table(script, monkeypatch, capsys):
  variants_of(script, monkeypatch, 1.0)
  assert script.main(FLAGS) == 0
  rows = capsys.readouterr().out.splitlines()[-2:]
  cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
  assert [row[:2] for row in cells] == [['JAX', '-'], ['ONNX', '1.5']]


@pytest.mark.parametrize('factor', [1.001, np.nan])
def test_disagreement_ends_it(script, monkeypatch, capsys, factor):
  variants_of(script, monkeypatch, factor)
  assert script.main(FLAGS) == 1
  assert 'ONNX and JAX differ' in capsys.readouterr().err
