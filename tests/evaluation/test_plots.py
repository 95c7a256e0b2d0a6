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


def rows_of(total, every=10, evaluate_every=40, sets=('lfw', 'agedb_30')):
  """Makes records of a run; the learning rate drops in the middle."""
  rows = []
  for step in sorted({1, *range(every, total + 1, every)}):
    share = step / total
    rows.append(
      {
        'step': step,
        'loss': 30 * np.exp(-share),
        'accuracy': share,
        'target_angle': 1.5 - share,
        'embedding_norm': 5 + share,
        'head_gradient_norm': 3.0,
        'backbone_gradient_norm': 0.3,
        'learning_rate': 0.1 if share < 0.5 else 0.01,
        'margin_mean': 0.5,
        'margin_std': 0.0125,
      }
    )
    if step % evaluate_every == 0:
      rows += [
        {'step': step, 'pairs': name, 'accuracy': share, 'accuracy_std': 0.01}
        for name in sets
      ]
  return rows


def panel(figure, label):
  (axes,) = (axes for axes in figure.axes if axes.get_ylabel() == label)
  return axes


def legend_of(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def test_roc_draws_tar_over_far(drawn):
  results = {'a': result_of(400), 'b': result_of(60, seed=1)}
  plots.plot_roc(results, 'roc.png', title='run, step 3')
  (axes,) = drawn[0].axes
  assert axes.get_title() == 'run, step 3: ROC of a, b'
  assert axes.get_xscale() == 'log'
  assert axes.get_xlim() == (0.005, 1)
  drawn_curves = axes.lines[0], axes.lines[2]
  for line, (name, result) in zip(drawn_curves, results.items(), strict=True):
    far, tar = line.get_data()
    num_impostors = np.count_nonzero(~result.same)
    assert line.get_label().startswith(f'{name}, {num_impostors} impostors: ')
    assert far[0] == 1 / num_impostors
    assert far[-1] == 1
    for k in range(len(far)):
      rate = evaluation.tar_at_far(result.scores, result.same, far[k])
      assert tar[k] == 100 * rate
  assert drawn_curves[0].get_color() != drawn_curves[1].get_color()
  assert drawn_curves[0].get_linestyle() != drawn_curves[1].get_linestyle()
  # Powers of ten that can be measured, and no others.
  circles = [axes.lines[k].get_xdata() for k in (1, 3)]
  assert [list(far) for far in circles] == [[0.1, 0.01], [0.1]]
  far, tar = axes.lines[4].get_data()
  assert axes.lines[4].get_label() == 'chance'
  np.testing.assert_allclose(tar, 100 * far)


def test_roc_has_the_band_of_the_operating_points(drawn):
  result = result_of(6000)
  plots.plot_roc({'a': result}, 'roc.png', title='run')
  (axes,) = drawn[0].axes
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  for far in (1e-2, 0.1):
    (point,) = evaluation.operating_points(result.scores, result.same, [far])
    near = corners[np.abs(np.log(corners[:, 0] / far)) < 0.01, 1]
    for limit in point.tar_interval:
      assert np.abs(near - 100 * limit).min() < 1


def test_scores_draw_shares_and_thresholds(drawn):
  result = result_of(3000)
  plots.plot_scores('lfw', result, 'scores.png', title='run, step 3')
  (axes,) = drawn[0].axes
  assert axes.get_title() == 'run, step 3: lfw'
  genuine, impostor = (axes.patches[k].get_data().values for k in (0, 2))
  assert genuine.sum() == pytest.approx(100)
  assert impostor.sum() == pytest.approx(100)
  assert np.argmax(genuine) > np.argmax(impostor)
  assert [line.get_xdata()[0] for line in axes.lines] == [
    result.threshold,
    result.tar_at_far[1e-3].threshold,
  ]


@pytest.mark.parametrize(
  ('num_pairs', 'begins', 'lacking'),
  [
    (40, None, 'FAR 1e-2, 1e-3 cannot be measured with 20 impostors'),
    (600, '3 of 300 ', 'FAR 1e-3 cannot be measured with 300 impostors'),
    (6000, '3 of 3,000 ', None),
  ],
)
def test_scores_mark_the_lowest_far_that_they_measure(
  drawn, num_pairs, begins, lacking
):
  result = result_of(num_pairs)
  plots.plot_scores('a', result, 'scores.png', title='run')
  lines = drawn[0].axes[0].lines[1:]
  if begins:
    far, name = (1e-2, '1e-2') if lacking else (1e-3, '1e-3')
    threshold = result.tar_at_far[far].threshold
    line, lines = lines[0], lines[1:]
    assert line.get_label() == (
      f'{begins}impostors at cosine {threshold:.3f} (FAR {name})'
    )
    assert line.get_xdata()[0] == threshold
  assert [line.get_label() for line in lines] == [lacking] * bool(lacking)
  # Words, without a sample of a line.
  assert [line.get_linestyle() for line in lines] == ['None'] * len(lines)


def test_scores_without_a_threshold_say_so(drawn):
  # The 1,200 best scores are impostors'.
  embeddings = np.eye(2)[[0, 0] * 1200 + [0, 1] * 20]
  same = np.repeat([False, True], [1200, 20])
  result = evaluation.verify(embeddings, same)
  plots.plot_scores('a', result, 'scores.png', title='run')
  label = drawn[0].axes[0].lines[1].get_label()
  assert label == 'none of 1,200 impostors (FAR 1e-3): no genuine pair either'


def test_bins_are_wider_for_fewer_pairs(drawn):
  for num_pairs in (40, 600, 60000):
    plots.plot_scores('a', result_of(num_pairs), 'scores.png', title='run')
  bins = [len(f.axes[0].patches[0].get_data().values) for f in drawn]
  assert bins == sorted(bins) and bins[0] < 20 < bins[1] and bins[2] < 250


@pytest.mark.parametrize('few', [True, False])
def test_training_draws_each_metric(drawn, few):
  rows = rows_of(160 if few else 4000)
  plots.plot_training(rows, 'a.png', title='run, step 9')
  (figure,) = drawn
  assert figure.get_suptitle() == 'run, step 9, verified on lfw, agedb_30'
  trained = [row for row in rows if 'loss' in row]
  steps = [row['step'] for row in trained]
  for label, name, factor in (
    ('loss, nats', 'loss', 1),
    ('learning rate (no unit)', 'learning_rate', 1),
    ('accuracy in training, %', 'accuracy', 100),
    ('angle to the own class, °', 'target_angle', 180 / np.pi),
    ('margin, mean ± deviation', 'margin_mean', 1),
    ('norm of embeddings (no unit)', 'embedding_norm', 1),
    ('norm of gradients (no unit)', 'backbone_gradient_norm', 1),
  ):
    axes = panel(figure, label)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), steps)
    np.testing.assert_allclose(
      axes.lines[0].get_ydata(), [factor * row[name] for row in trained]
    )
    assert axes.get_xlabel() == 'training step (no unit)'
    # The same steps in all panels, at round ticks.
    assert axes.get_xlim() == figure.axes[0].get_xlim()
    ticks = axes.get_xticks()
    assert set(np.diff(ticks)) <= {50, 1000}
  gradients = panel(figure, 'norm of gradients (no unit)')
  assert legend_of(gradients) == ['backbone', 'head']
  axes = panel(figure, 'verification accuracy, %')
  assert legend_of(axes) == ['lfw', 'agedb_30']
  assert len({line.get_color() for line in axes.lines}) == 2
  # Accuracy comes with its deviation over the folds.
  assert len(axes.collections) == 2
  limits = axes.collections[0].get_paths()[0].vertices
  assert {1.0, -1.0} <= set((limits[:, 1] - 25).round(9)) or not few


@pytest.mark.parametrize(
  ('margins', 'legend'),
  [(['margin'], None), (['angle_margin', 'cosine_margin'], 2), ([], None)],
)
def test_training_draws_the_margins_of_the_loss(drawn, margins, legend):
  rows = [
    {'step': step, 'loss': 3.0}
    | {f'{name}_mean': 0.5 for name in margins}
    | {f'{name}_std': 0.1 for name in margins}
    for step in (1, 2, 3)
  ]
  plots.plot_training(rows, 'a.png', title='run')
  assert len(drawn[0].axes) == 1 + bool(margins)
  if margins:
    axes = panel(drawn[0], 'margin, mean ± deviation')
    assert len(axes.lines) == len(margins)
    if legend:
      assert legend_of(axes) == margins


@pytest.mark.parametrize('margin', [0.35, 0.0, 28.0])
def test_rounding_errors_of_a_margin_do_not_fill_its_panel(drawn, margin):
  rows = [
    {
      'step': step,
      'loss': 3.0,
      'margin_mean': margin + step * 1e-8,
      'margin_std': 6e-8,
    }
    for step in range(1, 5)
  ]
  plots.plot_training(rows, 'a.png', title='run')
  axes = panel(drawn[0], 'margin, mean ± deviation')
  low, high = axes.get_ylim()
  assert high - low == pytest.approx(max(0.05, margin / 10))
  assert low < margin < high
  drawn[0].draw_without_rendering()
  assert axes.yaxis.get_offset_text().get_text() == ''


def test_a_margin_that_varies_fills_its_panel(drawn):
  rows = rows_of(40)
  for row in rows:
    row['margin_mean'] = row['step'] / 40
  plots.plot_training(rows, 'a.png', title='run')
  low, high = panel(drawn[0], 'margin, mean ± deviation').get_ylim()
  assert 1 < high - low < 1.2


@pytest.mark.parametrize(
  ('rows', 'panels'),
  [
    ([], 1),
    ([{'step': 1, 'loss': 7.0}], 1),
    # A pair set of which a finished run has no record is not among the rows.
    ([{'step': 1, 'loss': 7.0, 'accuracy': 0.5}], 2),
    ([{'step': 1, 'pairs': 'a', 'accuracy': 0.5, 'accuracy_std': 0.1}], 2),
    (
      [
        {'step': 2, 'loss': float('nan')},
        {'step': 2, 'pairs': 'a', 'accuracy': float('nan'), 'accuracy_std': 0},
      ],
      2,
    ),
  ],
)
def test_training_with_missing_records(tmp_path, drawn, rows, panels):
  plots.plot_training(rows, 'training.png', title='run')
  assert len(drawn[0].axes) == panels
  drawn[0].savefig(tmp_path / 'training.png')


def test_training_draws_the_newest_record_of_a_step(drawn):
  rows = rows_of(40)
  rows += [dict(row, accuracy=0.125) for row in rows if 'pairs' in row]
  plots.plot_training(rows, 'a.png', title='run')
  axes = panel(drawn[0], 'verification accuracy, %')
  for line in axes.lines:
    np.testing.assert_array_equal(line.get_data(), [[40], [12.5]])


def test_files(tmp_path):
  results = {f'set_{k}': result_of(200, seed=k) for k in range(9)}
  plots.plot_roc(results, tmp_path / 'roc.png', title='run')
  plots.plot_roc({'two': result_of(2)}, tmp_path / 'two.png', title='run')
  plots.plot_training(rows_of(300), tmp_path / 'training.png', title='run')
  assert png_size(tmp_path / 'roc.png') == (960, 720)
  assert png_size(tmp_path / 'two.png') == (960, 720)
  assert png_size(tmp_path / 'training.png') == (1200, 1056)


@pytest.mark.parametrize('name', ['$a$b$', '_lfw', '人脸', r'a\b_c^d'])
def test_any_name_is_drawn_as_it_is(tmp_path, recwarn, name):
  result = result_of(200)
  plots.plot_roc({name: result}, tmp_path / 'roc.png', title=name)
  plots.plot_scores(name, result, tmp_path / 'scores.png', title=name)
  rows = rows_of(80, sets=(name,))
  plots.plot_training(rows, tmp_path / 'training.png', title=name)
  assert not recwarn.list


def test_a_name_that_begins_with_an_underscore_has_its_legend(drawn):
  for name in ('_lfw', '__'):
    plots.plot_roc({name: result_of(200)}, 'roc.png', title='run')
    (legend,) = drawn[-1].legends
    assert name in legend.get_texts()[0].get_text()
    plots.plot_training(rows_of(80, sets=(name,)), 'a.png', title='run')
    axes = panel(drawn[-1], 'verification accuracy, %')
    assert name in legend_of(axes)[0]


def test_roc_of_pairs_of_one_kind(tmp_path):
  result = evaluation.verify(np.eye(4), [True, True], folds=2)
  with pytest.raises(InputError, match='all_same has no ROC: its 2 pairs'):
    plots.plot_roc({'all_same': result}, tmp_path / 'roc.png', title='run')


@pytest.mark.parametrize('num_pairs', [2, 500])
def test_scores(tmp_path, num_pairs):
  path = tmp_path / 'scores.png'
  plots.plot_scores('a', result_of(num_pairs), path, title='run')
  assert png_size(path) == (960, 720)


@pytest.mark.parametrize('same', [[True, True], [False, False]])
def test_scores_of_pairs_of_one_kind(tmp_path, same):
  path = tmp_path / 'scores.png'
  result = evaluation.verify(np.eye(4), same, folds=2)
  plots.plot_scores('a', result, path, title='run')
  assert png_size(path) == (960, 720)


def test_only_the_plots_import_matplotlib_and_none_pyplot():
  code = (
    'import sys, elasticface_jax.evaluation\n'
    'assert "matplotlib" not in sys.modules\n'
    'assert "jax" not in sys.modules\n'
    'import elasticface_jax.evaluation.plots\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
