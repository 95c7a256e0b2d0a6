# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/input_speed.py` measures and compares sources."""

from pathlib import Path

import numpy as np
import pytest

from elasticface_jax.benchmark import input as input_benchmark

SCRIPT = Path(__file__).parents[3] / 'benchmarks' / 'input_speed.py'
BATCH = 40


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  folder = tmp_path_factory.mktemp('input') / 'faces'
  input_benchmark.draw_rec_folder(folder, 2 * BATCH)
  return folder


@pytest.fixture
def script(load_script, monkeypatch):
  script = load_script(SCRIPT)
  monkeypatch.setattr(script, 'BATCH', BATCH)
  monkeypatch.setitem(script.ORDER, 'batch_size', BATCH)
  return script


def test_measurements(faces, script):
  assert tuple(script.stages(faces, 1)) == input_benchmark.STAGES
  assert script.feeding(faces, 0.01, 0, 0)['images_per_second'] > 100
  found = script.digests(faces, 3, 0)
  assert set(found) == {'uninterrupted', 'restarted', '2 readers', '4 readers'}
  assert len(set(found.values())) == 1


def test_rates_are_compared_by_round(faces, script, monkeypatch, capsys):
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  rates = iter([100.0, 80.0, 50.0, 300.0, 400.0, 900.0])
  shares = dict(zip(input_benchmark.STAGES, [1e-6] * 4, strict=True))
  monkeypatch.setattr(
    script,
    'measure',
    lambda name, *_: (
      shares if name == 'stages' else {'images_per_second': next(rates)}
    ),
  )
  flags = script.argparse.Namespace(seconds=1, rounds=2)
  script.print_rates({'tfrecord': faces}, flags)
  rows = capsys.readouterr().out.splitlines()[3:]
  # Rounds: 100 and 50, then in reversed order 300 and 900.
  ratio = np.median([100 / 50, 900 / 300])
  assert rows[0].startswith(
    f'| tfrecord | 500 (100-900) | {ratio:.2f} | 1.0 us'
  )
  ratio = np.median([80 / 50, 400 / 300])
  assert rows[1].startswith(
    f'| tfrecord by threads | 240 (80-400) | {ratio:.2f} |'
  )
  assert rows[2].startswith('| tf.data | 175 (50-300) | 1.00 |')


def test_different_batches_are_found(faces, script, monkeypatch, capsys):
  shas = iter(['a', 'a', 'a', 'b'])
  monkeypatch.setattr(
    script, 'measure', lambda *_: {'uninterrupted': next(shas)}
  )
  assert not script.compare_batches({'.rec': faces, 'tfrecord': faces})
  printed = capsys.readouterr().out
  assert '1 result(s)' in printed and '2 result(s)' in printed
