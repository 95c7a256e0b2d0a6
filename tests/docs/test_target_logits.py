# SPDX-License-Identifier: Apache-2.0
"""The table and the picture of `docs/figures/target_logits.py`."""

import inspect
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'docs' / 'figures' / 'target_logits.py'
ANGLES = np.deg2rad([0, 30, 60, 90, 120, 150, 180])
PRINTED = 0.0005 + 2e-6  # Half of the last digit, and float32.


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(SCRIPT)


@pytest.fixture(scope='module')
def rows(script):
  """Defaults as printed, and values, by the first cell of the row."""
  lines = script.table().splitlines()
  cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
  assert cells[0][2:] == [f'{angle:.0f}°' for angle in np.rad2deg(ANGLES)]
  assert len({len(row) for row in cells}) == 1
  return {
    name: (defaults, np.array(values, float))
    for name, defaults, *values in cells[2:]
  }


@pytest.fixture(scope='module')
def figure(script):
  return script.figure()


def test_every_public_loss_has_a_row_with_its_defaults(rows, named_losses):
  stated = {}
  for cell, (defaults, _) in rows.items():
    stated.setdefault(cell.split('`')[1], defaults)
  expected = {
    name: {
      p.name: p.default
      for p in inspect.signature(loss).parameters.values()
      if isinstance(p.default, float)
    }
    for name, loss in named_losses.items()
  }
  assert len(expected) >= 13
  assert {
    name: {n: float(v) for n, v in map(str.split, defaults.split(', '))}
    for name, defaults in stated.items()
  } == expected


def test_the_documentation_has_these_values(rows):
  pages = [ROOT / 'README.md', *ROOT.glob('docs/*.md')]
  text = '\n'.join(page.read_text() for page in pages)
  number = r'-?\d\.\d{3}'
  stated = re.findall(
    rf'^\| `(\w+)`[^|]* \| ((?:{number} \| ){{6}}{number}) \|$',
    text,
    re.MULTILINE,
  )
  assert len(stated) == 11
  for name, values in stated:
    values = np.array(values.split(' | '), float)
    assert any(
      cell.startswith(f'`{name}`') and np.array_equal(values, row)
      for cell, (_, row) in rows.items()
    ), (name, values)


def cosine_of_sum(theta, margin=0.5):
  return np.cos(theta + margin)


def sphere(theta, m=1.7):
  # Each further half turn continues downwards from the end of the last one.
  pieces = np.minimum(m * theta // np.pi, 1)
  return np.where(pieces == 0, np.cos(m * theta), -np.cos(m * theta) - 2)


def curricular(theta):
  beyond = np.cos(theta) - 0.5 * np.sin(0.5)
  return np.where(theta + 0.5 < np.pi, np.cos(theta + 0.5), beyond)


def ada(theta, deviations):
  k = np.clip(0.333 * deviations, -1, 1)
  angle = np.clip(theta - 0.4 * k, 1e-3, np.pi - 1e-3)
  return np.cos(angle) - (0.4 + 0.4 * k)


def mag(theta, norm):
  margin = 0.45 + 0.35 * (norm - 10) / 100
  far = theta >= np.pi / 2
  return np.where(far, np.cos(theta), np.cos(theta + margin))


@pytest.mark.parametrize(
  ('row', 'formula'),
  [
    ('`normface`', np.cos),
    ('`arcface`', cosine_of_sum),
    ('`cosface`', lambda theta: np.cos(theta) - 0.35),
    ('`elastic_arcface`, mean margin', cosine_of_sum),
    ('`elastic_arcface_plus`, mean margin', cosine_of_sum),
    ('`elastic_cosface`, mean margin', lambda theta: np.cos(theta) - 0.35),
    ('`elastic_cosface_plus`, mean margin', lambda theta: np.cos(theta) - 0.35),
    ('`combined_margin`', cosine_of_sum),
    ('`sphereface`', sphere),
    ('`x2_softmax`', lambda theta: 0.65 - 0.9 * theta**2),
    ('`curricularface`', curricular),
    ('`magface`, norm 10', lambda theta: mag(theta, 10)),
    ('`magface`, norm 60', lambda theta: mag(theta, 60)),
    ('`magface`, norm 110', lambda theta: mag(theta, 110)),
  ],
)
def test_values_are_those_of_the_formula(rows, row, formula):
  np.testing.assert_allclose(rows[row][1], formula(ANGLES), atol=PRINTED)


@pytest.mark.parametrize('deviations', [-3, 0, 3])
def test_adaface_follows_the_norm(rows, deviations):
  sign = {-3: ' - 3 std', 0: '', 3: ' + 3 std'}[deviations]
  _, values = rows[f'`adaface`, norm mean{sign}']
  # AdaFace adds 1e-3 to the std, which moves a margin by 1e-4 or less.
  expected = ada(ANGLES, deviations)
  np.testing.assert_allclose(values, expected, atol=PRINTED + 2e-4)


def test_bands_reach_two_deviations(figure):
  right_angle = []
  for axes in figure.axes:
    for band in axes.collections:
      x, y = band.get_paths()[0].vertices.T
      right_angle.append(np.ptp(y[x == 90]))
  np.testing.assert_allclose(
    right_angle,
    [
      np.sin(0.6) - np.sin(0.4),
      np.sin(0.535) - np.sin(0.465),
      0.2,
      0.1,
    ],
    atol=1e-5,
  )


@pytest.mark.parametrize('t', [0.0, 0.5, 1.0])
def test_hard_others_of_curricularface(script, t):
  theta = np.deg2rad(script.GRID)
  expected = np.where(
    theta < np.pi / 4 + 0.5, np.cos(theta) * (t + np.cos(theta)), np.cos(theta)
  )
  np.testing.assert_allclose(
    script.curricularface_other(t), expected, atol=1e-5
  )


def test_picture(script, tmp_path, capsys):
  path = tmp_path / 'curves.png'
  assert script.main(['--out', str(path)]) == 0
  assert capsys.readouterr().out == script.table() + '\n'
  assert path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
  picture = matplotlib.image.imread(path)[..., :3]
  height, width, _ = picture.shape
  assert width >= 1200 and height >= 800
  for panel in np.split(picture[:, : width // 3 * 3], 3, axis=1):
    for half in np.array_split(panel, 2):
      assert half.std() > 0.1
  assert path.stat().st_size > 50_000


def test_text_keeps_clear_of_curves_and_edges(figure):
  figure.draw_without_rendering()
  for axes in figure.axes:
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
      box = text.get_window_extent()
      assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
      assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for text in axes.get_legend().get_texts():
      box = text.get_window_extent()
      for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        inside = np.all((points > box.min) & (points < box.max), axis=1)
        assert not inside.any(), f'{text.get_text()} on {line.get_label()}'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('curves.gif', 'must end in .png'),
    ('curves', 'must end in .png'),
    ('folder.png', 'cannot be written: Is a directory'),
    ('nowhere/curves.png', 'cannot be written: No such file'),
  ],
)
def test_a_file_that_cannot_be_written_ends_in_one_line(
  script, tmp_path, capsys, name, message
):
  (tmp_path / 'folder.png').mkdir()
  path = tmp_path / name
  with pytest.raises(SystemExit) as end:
    script.main(['--out', str(path)])
  assert end.value.code == 2
  printed = capsys.readouterr()
  last = printed.err.splitlines()[-1]
  assert str(path) in last and message in last
  assert printed.out == ''
  assert [path.name for path in tmp_path.iterdir()] == ['folder.png']
