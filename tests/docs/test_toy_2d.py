# SPDX-License-Identifier: Apache-2.0
"""The tables, the training and the picture of `docs/figures/toy_2d.py`."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

from elasticface_jax import losses

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(load_script, monkeypatch):
  """The script, with a tiny network and few steps."""
  made = load_script(ROOT / 'docs' / 'figures' / 'toy_2d.py')
  for name, value in dict(
    IMAGES=24, HIDDEN=8, LAYERS=1, BATCH=8, STEPS=6, WARMUP=2
  ).items():
    monkeypatch.setattr(made, name, value)
  return made


def cells(text):
  """Cells of all rows but the head, by the first cell."""
  rows = [
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in text.splitlines()[2:]
  ]
  return {row[0]: row[1:] for row in rows}


def on_circle(degrees, norms):
  places = np.radians(degrees)
  return np.stack([np.cos(places), np.sin(places)], axis=1) * norms[:, None]


def outcomes(script, angles, right):
  """Outcomes with given angles ``[L, S, C]``, of one setting."""
  setting = script.Setting(64.0, normface_first=True)
  found = {}
  for name, each in zip(script.LOSSES, angles, strict=True):
    centers = np.stack(
      [on_circle(np.cumsum(x) - x - 175, np.full(len(x), 3.0)) for x in each]
    )
    embeddings = np.repeat(centers, 3, axis=1)
    made = script.Outcome(each, np.asarray(right), embeddings, centers)
    found[setting, name] = made
  labels = np.tile(np.repeat(np.arange(8), 3), (len(right), 1))
  return found, labels


def uneven(smallest):
  """Eight angles of which the first is the smallest and the last the rest."""
  return np.array([smallest, *[40.0] * 6, 120.0 - smallest])


@pytest.mark.parametrize('shift', [0, 17, 123, 250])
def test_angles_of_known_centers(script, shift):
  gaps = np.array([22.93, 30.65, 51.36, 72.43, 66.58, 55.93, 33.17, 26.95])
  turned = (np.cumsum(gaps) + shift)[np.random.default_rng(0).permutation(8)]
  found = script.neighbour_angles(on_circle(turned, np.geomspace(0.01, 300, 8)))
  # The same round, from wherever it starts.
  rounds = [np.roll(found, k) for k in range(8)]
  assert min(np.abs(each - gaps).max() for each in rounds) < 1e-9
  assert found.sum() == pytest.approx(360)


def test_steps_are_those_of_optax(script):
  images, labels = map(jnp.asarray, script.faces(3))
  state = script.init(jax.random.key(3))
  order, _ = jax.random.split(jax.random.key(1))
  rates = [0.015, 0.03, 0.03, 0.03, 0.03, 0.003]  # Falls after 4.2 and 5.4.
  clip = {
    'backbone': optax.clip_by_global_norm(5.0),
    'centers': optax.identity(),
  }
  optimiser = optax.chain(
    optax.partition(clip, {name: name for name in clip}),
    optax.add_decayed_weights(5e-4),
    optax.sgd(lambda step: jnp.array(rates)[step], momentum=0.9),
  )
  expected, kept = state, optimiser.init(state)
  for step in range(6):
    drawn, flipped = jax.random.split(jax.random.fold_in(order, step))
    rows = jax.random.randint(drawn, (8,), 0, 24)
    flip = jax.random.bernoulli(flipped, 0.5, (8, 1, 1, 1))
    batch = jnp.where(flip, images[rows][:, :, ::-1], images[rows])

    def objective(x, batch=batch, rows=rows):
      embeddings = script.embed(x['backbone'], batch)
      cosines = losses.cosines(embeddings, x['centers'])
      return losses.normface(cosines, labels[rows], scale=64.0).mean()

    update, kept = optimiser.update(
      jax.grad(objective)(expected), kept, expected
    )
    expected = optax.apply_updates(expected, update)
  found = script.train(
    state, images, labels, jax.random.key(1), script.normface, 64.0, 0.03
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
    *(found, expected),
  )


def test_losses_of_a_seed_share_all_but_the_margins(script):
  given = script.init(jax.random.key(0)), *map(jnp.asarray, script.faces(0))

  def constant(cosines, labels, key, scale):
    return losses.elastic_arcface(
      cosines, labels, key=key, scale=scale, margin_std=0.0
    )

  ends = {
    loss: script.train(*given, jax.random.key(1), loss, 16.0, 0.01)['centers']
    for loss in (*script.LOSSES.values(), constant)
  }
  np.testing.assert_allclose(ends[constant], ends[script.arcface], rtol=1e-4)
  for first, second in itertools.combinations(script.LOSSES.values(), 2):
    assert np.abs(ends[first] - ends[second]).max() > 1e-3


def test_settings_start_where_they_say(script):
  assert [str(setting) for setting in script.SETTINGS] == [
    'scale 64, from NormFace',
    'scale 16, from NormFace',
    'scale 64, from random weights',
    'scale 16, from random weights',
  ]
  found, labels = script.measure(2, script.SETTINGS[:1] + script.SETTINGS[2:3])
  assert len(found) == 6 and labels.shape == (2, 24)
  assert all((np.bincount(row) == 3).all() for row in labels)
  for each in found.values():
    assert each.angles.shape == (2, 8) and each.embeddings.shape == (2, 24, 2)
    np.testing.assert_allclose(each.angles.sum(axis=1), 360)
    cosines = np.einsum(
      'snd,scd->snc',
      each.embeddings,
      each.centers / np.linalg.norm(each.centers, axis=2, keepdims=True),
    )
    right = (cosines.argmax(axis=2) == labels).mean(axis=1)
    np.testing.assert_allclose(each.right, right)
  first, _, _, random, *_ = found.values()
  assert np.abs(first.centers - random.centers).max() > 1e-3


def test_tables(script):
  smallest = np.array([[10, 20, 30, 36], [13, 21, 32, 38], [10, 26, 25, 30.0]])
  angles = np.array([[uneven(x) for x in row] for row in smallest])
  angles[0, 0] = [1, 1, 1, 1, 1, 1, 1, 353]  # A half circle.
  smallest[0, 0] = 1
  found, _ = outcomes(script, angles, [0.5, 1, 1, 0.75])
  rows = cells(script.angles_table(found))
  assert rows['scale 64, from NormFace: ArcFace'] == [
    '21.8 ± 15.3',
    '25.0 [15.2, 31.5]',
    '156.8 ± 131.0',
    '95.0',
    '2 of 4',
    '81.2%',
    '1',
  ]
  assert [row[-1] for row in rows.values()] == ['1', '0', '0']
  rows = cells(script.comparison_table(found))
  for first, second in itertools.combinations(range(3), 2):
    names = list(script.LOSSES)
    row = rows[f'scale 64, from NormFace: {names[first]} to {names[second]}']
    d = smallest[second] - smallest[first]
    sums = np.array(list(itertools.product([-1, 1], repeat=4))) @ d
    farther, equal = abs(sums) > abs(d.sum()), abs(sums) == abs(d.sum())
    half = 3.182446 * d.std(ddof=1) / 2  # Student's t of 3 degrees.
    mean = d.mean()
    assert row[0] == f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]'
    assert row[1] == f'{(d > 0).sum()} of 4'
    assert float(row[2]) == pytest.approx(
      farther.mean() + equal.mean() / 2, abs=6e-4
    )
    assert float(row[3]) >= float(row[2])


def test_the_seed_of_the_picture_is_the_median(script):
  angles = np.array([[uneven(x) for x in (30, 10, 25, 5)]] * 3)
  found, _ = outcomes(script, angles, [1, 1, 1, 1])
  assert script.median_seed(list(found.values())) == 1


def test_picture(script, tmp_path, monkeypatch, capsys):
  angles = np.array(
    [[uneven(x), uneven(x + 5), uneven(x * 0.9)] for x in (20, 25, 30)]
  )
  made = outcomes(script, angles, [1, 1, 1])
  monkeypatch.setattr(script, 'measure', lambda num_seeds: made)
  path = tmp_path / 'toy.png'
  assert script.main(['--out', str(path), '--seeds', '3']) == 0
  printed = capsys.readouterr().out
  assert printed == (
    f'{script.angles_table(made[0])}\n\n{script.comparison_table(made[0])}\n'
  )
  height, width, _ = matplotlib.image.imread(path).shape
  assert width >= 1000 and height >= 700
  figure = script.figure(*made)
  figure.draw_without_rendering()
  circles = [axes for axes in figure.axes if not axes.axison]
  assert [axes.get_title() for axes in circles] == list(script.LOSSES)
  for axes, (each, *_) in zip(circles, angles, strict=True):
    stated = [text.get_text() for text in axes.texts]
    assert sorted(stated) == sorted(f'{angle:.1f}°' for angle in each)
    (bold,) = [text for text in axes.texts if text.get_weight() == 'bold']
    assert bold.get_text() == f'{each.min():.1f}°'
    # The label of the smallest angle is between its two centres.
    x, y = bold.get_position()
    middle = -175 + each[0] / 2
    assert np.degrees(np.arctan2(y, x)) == pytest.approx(middle, abs=2)
    for text in axes.texts:
      box = text.get_window_extent()
      assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_angles_of_runs(script, monkeypatch, capsys):
  centers = np.zeros((2, 5, 2), np.float32)  # The last two rows are padding.
  gaps = np.array([10, 80, 45, 45, 45, 45, 45, 45])
  centers.reshape(-1, 2)[:8] = on_circle(np.cumsum(gaps), np.full(8, 0.5))
  states = {'runs/a': centers, 'runs/wide': np.ones((1, 8, 4), np.float32)}
  read = lambda run, fields: (7, {fields[0]: states[str(run)]})
  monkeypatch.setattr(script.checkpoint, 'read', read)
  assert script.main(['--runs', 'runs/a']) == 0
  (row,) = cells(capsys.readouterr().out).values()
  assert row[0] == '7' and row[2:] == ['10.0', '80.0']
  assert sorted(map(float, row[1].split())) == sorted(gaps)
  with pytest.raises(SystemExit):
    script.main(['--runs', 'runs/wide'])
  last = capsys.readouterr().err.splitlines()[-1]
  assert 'runs/wide has embeddings of size 4' in last
  assert 'model.embedding_dim=2' in last


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--out', 'toy.gif'), '--out toy.gif must end in .png, .svg, .pdf'),
    (('--out', 'nowhere/toy.png'), 'nowhere'),
    (('--seeds', '2'), '--seeds 2 must be 3 or more'),
    (('--runs', 'nowhere'), 'nowhere'),
  ],
)
def test_mistakes_end_in_one_line(
  script, tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as end:
    script.main(list(arguments))
  assert end.value.code == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('loss', 'expected'),
  [
    # All other logits are -1: the target's is cos(pi + 0.5) = -0.8776.
    (losses.arcface, np.log1p(7 * np.exp(64 * (-1 + np.cos(0.5))))),
    (losses.normface, np.log(8)),
    (losses.cosface, 64 * 0.35 + np.log(7 + np.exp(-64 * 0.35))),
  ],
  ids=lambda x: getattr(x, '__name__', ''),
)
def test_arc_margins_reward_embeddings_opposite_to_all_centers(loss, expected):
  centers = jnp.tile(jnp.array([[1.0, 0.0]]), (8, 1))
  embeddings = jnp.tile(jnp.array([[-1.0, 0.0]]), (8, 1))
  found = loss(losses.cosines(embeddings, centers), jnp.arange(8))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
