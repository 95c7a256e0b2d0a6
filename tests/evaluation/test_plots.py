# SPDX-License-Identifier: Apache-2.0
"""Figures of large, small and incomplete data, drawn without a warning."""

import struct
import subprocess
import sys

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import plots


def result_of(num_pairs, seed=0):
  rng = np.random.default_rng(seed)
  same = np.arange(num_pairs) % 2 == 0
  first, other = rng.normal(size=(2, num_pairs, 16))
  second = np.where(same[:, None], first + other, other)
  embeddings = np.stack([first, second], axis=1).reshape(2 * num_pairs, 16)
  return evaluation.verify(embeddings, same, folds=2)


def png_size(path):
  head = path.read_bytes()[:24]
  assert head[:8] == b'\x89PNG\r\n\x1a\n'
  return struct.unpack('>II', head[16:24])


@pytest.fixture
def drawn(monkeypatch):
  """Collects the figures instead of writing them."""
  figures = []
  monkeypatch.setattr(plots, '_save', lambda figure, _: figures.append(figure))
  return figures


def test_roc_draws_tar_over_far(drawn):
  results = {'a': result_of(200), 'b': result_of(60, seed=1)}
  plots.plot_roc(results, 'roc.png')
  (axes,) = drawn[0].axes
  assert axes.get_xscale() == 'log'
  assert axes.get_xlim() == (0.01, 1)
  for line, (name, result) in zip(axes.lines, results.items(), strict=True):
    far, tar = line.get_data()
    assert line.get_label() == name
    assert far[0] == 1 / np.count_nonzero(~result.same)
    assert far[-1] == 1
    for k in (0, 400, 900, 999):
      rate = evaluation.tar_at_far(result.scores, result.same, far[k])
      assert tar[k] == 100 * rate


def test_scores_draw_shares_and_thresholds(drawn):
  result = result_of(3000)
  plots.plot_scores(result, 'scores.png')
  (axes,) = drawn[0].axes
  genuine, impostor = (axes.patches[k].get_data().values for k in (0, 2))
  assert genuine.sum() == pytest.approx(100)
  assert impostor.sum() == pytest.approx(100)
  assert np.argmax(genuine) > np.argmax(impostor)
  assert [line.get_xdata()[0] for line in axes.lines] == [
    result.threshold,
    result.tar_at_far[1e-3].threshold,
  ]


def test_training_draws_the_points(drawn):
  plots.plot_training(([1, 2], [9.0, 8.0]), {'a': ([2], [0.75])}, 'a.png')
  loss, accuracy = drawn[0].axes
  np.testing.assert_array_equal(loss.lines[0].get_data(), [[1, 2], [9, 8]])
  np.testing.assert_array_equal(accuracy.lines[0].get_data(), [[2], [75]])
  assert loss.get_ylabel() == 'loss, nats'
  assert accuracy.get_xlabel() == 'step'


def test_roc(tmp_path):
  path = tmp_path / 'roc.png'
  results = {f'set_{k}': result_of(200, seed=k) for k in range(9)}
  plots.plot_roc(results, path)
  assert png_size(path) == (960, 600)
  few = tmp_path / 'few.png'
  plots.plot_roc({'two': result_of(2)}, few)
  assert png_size(few) == (960, 600)
  assert path.read_bytes() != few.read_bytes()


def test_roc_of_pairs_of_one_kind(tmp_path):
  result = evaluation.verify(np.eye(4), [True, True], folds=2)
  with pytest.raises(InputError, match='all_same has no ROC: its 2 pairs'):
    plots.plot_roc({'all_same': result}, tmp_path / 'roc.png')


@pytest.mark.parametrize('num_pairs', [2, 500])
def test_scores(tmp_path, num_pairs):
  path = tmp_path / 'scores.png'
  plots.plot_scores(result_of(num_pairs), path)
  assert png_size(path) == (960, 600)


def test_scores_of_pairs_of_one_kind(tmp_path):
  path = tmp_path / 'scores.png'
  result = evaluation.verify(np.eye(4), [True, True], folds=2)
  plots.plot_scores(result, path)
  assert png_size(path) == (960, 600)


def test_training(tmp_path):
  path = tmp_path / 'training.png'
  steps = np.arange(0, 300_000, 1000)
  losses = (steps, 30 * np.exp(-steps / 60_000))
  accuracies = {
    'lfw': (steps[::50], np.linspace(0.9, 0.998, 6)),
    'agedb_30': (steps[100::50], np.linspace(0.8, 0.98, 4)),
  }
  plots.plot_training(losses, accuracies, path)
  assert png_size(path) == (960, 900)
  plots.plot_training(losses, {}, path)
  assert png_size(path) == (960, 600)


@pytest.mark.parametrize(
  ('losses', 'accuracies'),
  [
    (([1], [7.0]), {'lfw': ([1], [0.5])}),
    (([], []), {'lfw': ([], [])}),
    (([1, 2, 3], [7.0, float('nan'), 6.0]), {'lfw': ([3], [float('nan')])}),
  ],
)
def test_training_with_missing_points(tmp_path, losses, accuracies):
  path = tmp_path / 'training.png'
  plots.plot_training(losses, accuracies, path)
  assert png_size(path) == (960, 900)


def test_only_the_plots_import_matplotlib_and_none_pyplot():
  code = (
    'import sys, elasticface_jax.evaluation\n'
    'assert "matplotlib" not in sys.modules\n'
    'assert "jax" not in sys.modules\n'
    'import elasticface_jax.evaluation.plots\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
