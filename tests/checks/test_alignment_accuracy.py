# SPDX-License-Identifier: Apache-2.0
"""The check of alignment by inexact points, and its verdict."""

from pathlib import Path

import numpy as np
import pytest

from elasticface_jax import data

CHECK = Path(__file__).parents[2] / 'checks/alignment_accuracy.py'


@pytest.fixture
def script(load_script):
  return load_script(CHECK)


def test_points_without_an_error_give_the_faces_again(script):
  images, _ = data.synthetic_pairs(20, 0)
  rng = np.random.default_rng(0)
  near = script.moved(images[:4], 0, rng).astype(int)
  inner = np.s_[:, 2:-2, 2:-2]
  assert np.abs(near - images[:4])[inner].mean() < 1
  far = script.moved(images[:4], 8, rng).astype(int)
  assert np.abs(far - images[:4])[inner].mean() > 3


@pytest.mark.parametrize('harm', [0, 1])
def test_verdict(script, monkeypatch, capsys, harm):
  images, same = data.synthetic_pairs(100, 0)
  pairs = data.PairSet('drawn', images, same)
  monkeypatch.setattr(script.data, 'read_pairs', lambda path: pairs)
  monkeypatch.setattr(script, 'moved', lambda images, pixels, rng: images + 1)

  class Weights:
    def embed(self, given):
      rows = np.repeat(np.eye(100), 2, axis=0)
      rows[1::2][~same] = -rows[::2][~same]
      # The same person everywhere, where images have changed.
      changed = not np.array_equal(given, images)
      return np.ones_like(rows) if changed and harm else rows

  monkeypatch.setattr(script, 'open_weights', lambda path: Weights())
  code = script.main(['--pairs', 'a', '--checkpoint', 'b', '--draws', '1'])
  assert code == harm
  out = capsys.readouterr().out
  assert out.endswith('FAILED\n' if harm else 'PASSED\n')
  assert 'as given: 100.00' in out
  with pytest.raises(SystemExit):
    script.main(['--pairs', 'a', '--checkpoint', 'b', '--pixels', '2'])
