# SPDX-License-Identifier: Apache-2.0
"""The fit of five landmarks, and what is said about those that fit none."""

import numpy as np
import pytest

from elasticface_jax import alignment, interop
from elasticface_jax.errors import InputError

TEMPLATE = np.array(alignment.TEMPLATE)
# Eyes, nose and mouth corners of a head in millimetres: right, down, back.
HEAD = np.array(
  [[-32, -33, 30], [32, -33, 30], [0, 0, 0], [-26, 28, 24], [26, 28, 24]],
  float,
)


def posed(yaw, roll=0, scale=1.5, centre=(200, 150)):
  """Landmarks of a head that is turned by angles in degrees."""
  y, r = np.radians([yaw, roll])
  turned = HEAD[:, 0] * np.cos(y) + HEAD[:, 2] * np.sin(y)
  flat = np.stack([turned, HEAD[:, 1]], axis=1) * scale
  rotation = np.array([[np.cos(r), np.sin(r)], [-np.sin(r), np.cos(r)]])
  return flat @ rotation + centre


def umeyama(points):
  """The same fit by another road: an SVD, as Umeyama (1991) derives it."""
  p, t = points - points.mean(0), TEMPLATE - TEMPLATE.mean(0)
  u, singular, v = np.linalg.svd(t.T @ p)
  sign = np.array([1, np.sign(np.linalg.det(u @ v))])
  scale = (singular * sign).sum() / (p**2).sum()
  matrix = scale * (u * sign) @ v
  shift = TEMPLATE.mean(0) - matrix @ points.mean(0)
  return np.column_stack([matrix, shift])


def test_template_is_the_published_one():
  # 96 pixels wide with 8 on either side: x from 30.2946.
  assert TEMPLATE[0].tolist() == [30.2946 + 8, 51.6963]
  assert np.round(TEMPLATE.sum(0), 4).tolist() == [280.1308, 359.5039]
  metadata = interop.describe(
    {'name': 'iresnet18', 'embedding_dim': 8, 'use_se': False},
    fingerprint='',
    step=0,
  )
  assert metadata['alignment_template'] == TEMPLATE.tolist()


@pytest.mark.parametrize('seed', range(20))
def test_fit_is_umeyamas(seed):
  rng = np.random.default_rng(seed)
  points = posed(
    rng.uniform(-60, 60), rng.uniform(-180, 180), rng.uniform(0.1, 9)
  )
  points += rng.normal(0, 3, (5, 2)) + rng.uniform(-4000, 4000, 2)
  found = alignment.similarity(points)
  np.testing.assert_allclose(found, umeyama(points), rtol=0, atol=1e-9)
  # Any other similarity is farther away.
  left = alignment.residual(points)
  for change in ([1.001, 0, 0, 0], [1, 0.001, 0, 0], [1, 0, 0.1, 0]):
    a, b, x, y = change
    other = np.array([[a, -b], [b, a]]) @ found + [[0, 0, x], [0, 0, y]]
    moved = points @ other[:, :2].T + other[:, 2]
    assert np.sqrt(((moved - TEMPLATE) ** 2).sum(1).mean()) > left


def test_all_five_points_count():
  points = 2 * TEMPLATE + 40
  before = alignment.similarity(points)
  for place in range(5):
    moved = points.copy()
    moved[place] += [0, 12]  # Far enough for RANSAC to leave it out.
    after = alignment.similarity(moved)
    assert np.abs(after - before).max() > 0.5


def test_never_mirrors():
  rng = np.random.default_rng(0)
  for _ in range(50):
    matrix = alignment.similarity(rng.normal(size=(5, 2)) * 100)[:, :2]
    assert np.linalg.det(matrix) > 0
    np.testing.assert_allclose(
      matrix @ matrix.T, np.linalg.det(matrix) * np.eye(2), atol=1e-12
    )


@pytest.mark.parametrize(
  ('points', 'message'),
  [
    (np.zeros((4, 2)), r'shape \(4, 2\), not \(5, 2\)'),
    (TEMPLATE.T, r'shape \(2, 5\), not \(5, 2\)'),
    (np.full((5, 2), 7.0), r'all five landmarks are \(7.0, 7.0\)'),
    (np.where(np.eye(5, 2), np.nan, TEMPLATE), 'not finite'),
    (np.where(np.eye(5, 2), np.inf, TEMPLATE), 'not finite'),
  ],
)
def test_no_transform_of_no_face(points, message):
  with pytest.raises(InputError, match=message):
    alignment.similarity(points)


@pytest.mark.parametrize('yaw', [-90, -60, -30, 0, 30, 60, 90])
@pytest.mark.parametrize('roll', [0, 90, 180])
def test_faces_of_any_pose_pass(yaw, roll):
  rng = np.random.default_rng(yaw + 90)
  for _ in range(20):
    points = posed(yaw, roll) + rng.normal(0, 1, (5, 2))
    alignment.check(points, (400, 300), min_face=20)


def said(points, size=(400, 300), min_face=20):
  with pytest.raises(alignment.NotAligned) as raised:
    alignment.check(points, size, min_face)
  assert raised.value.problem.startswith(raised.value.kind) or (
    'not finite' in raised.value.kind
  )
  return raised.value.problem


@pytest.mark.parametrize('yaw', [-35, 0, 35])
def test_mirrored_points_are_said(yaw):
  points = posed(yaw, roll=20)
  # Left and right by the person's own sides, not by the image's.
  swapped = points[[1, 0, 2, 4, 3]]
  # An image that was flipped without its points.
  flipped = [400, 0] + points * [-1, 1]
  for wrong in (swapped, flipped):
    assert 'the mirror image of the template: they are' in said(wrong)
    assert 'left eye, right eye, nose' in said(wrong)
  alignment.check(flipped[[1, 0, 2, 4, 3]], (400, 300))


@pytest.mark.parametrize(
  ('order', 'right'),
  [
    ([1, 0, 2, 3, 4], '2, 1, 3, 4, 5'),  # The eyes.
    ([2, 0, 1, 3, 4], '2, 3, 1, 4, 5'),  # The nose first.
    ([3, 4, 2, 0, 1], '4, 5, 3, 1, 2'),  # The mouth first.
  ],
)
def test_another_order_is_said(order, right):
  wrong = posed(10)[order]
  assert f'in the order {right}; give them as left eye' in said(wrong)


def test_small_and_distant_faces_are_said():
  assert 'too small: 19.6 pixels become 112, and at least 20' in said(
    TEMPLATE * 0.175
  )
  alignment.check(TEMPLATE * 0.18, (400, 300), min_face=20)
  beyond = 'outside of the image: a point is at'
  assert f'{beyond} (513, 271) of 400x300' in said(TEMPLATE * 2 + [366, 168])
  assert beyond in said(TEMPLATE - [100, 0])
  # Cut off by the border, as faces often are.
  alignment.check(TEMPLATE - [70, 0], (400, 300))
  assert 'all five landmarks are' in said(np.ones((5, 2)))
  assert 'not finite' in said(TEMPLATE * np.nan)


def test_68_points():
  points = np.random.default_rng(0).normal(size=(3, 68, 2))
  five = alignment.from_68(points)
  assert five.shape == (3, 5, 2)
  np.testing.assert_allclose(five[:, 0], (points[:, 36] + points[:, 39]) / 2)
  np.testing.assert_allclose(five[:, 1], (points[:, 42] + points[:, 45]) / 2)
  np.testing.assert_array_equal(five[:, 2:], points[:, [30, 48, 54]])
