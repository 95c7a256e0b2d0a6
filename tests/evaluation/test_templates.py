# SPDX-License-Identifier: Apache-2.0
"""Pooling and scores of templates agree with plain loops, in odd cases too."""

import itertools
import math
import re

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import products, templates

FLAGS = list(itertools.product([True, False], [True, False]))


def slow_pool(embeddings, template_of, media, weights, keep_norms):
  """Pools as published, one number at a time."""
  size = len(embeddings[0])
  pooled = {}
  for template in sorted(set(template_of)):
    total = [0.0] * size
    members = [i for i, t in enumerate(template_of) if t == template]
    for medium in sorted({media[i] for i in members}):
      images = [i for i in members if media[i] == medium]
      mean = [0.0] * size
      for i in images:
        z = [float(x) for x in embeddings[i]]
        norm = 1.0 if keep_norms else math.sqrt(math.fsum(x * x for x in z))
        for d in range(size):
          mean[d] += z[d] / norm * weights[i] / len(images)
      total = [a + b for a, b in zip(total, mean, strict=True)]
    norm = math.sqrt(math.fsum(x * x for x in total))
    pooled[template] = [x / norm for x in total]
  return pooled


def images(seed=0, n=60, size=6):
  rng = np.random.default_rng(seed)
  return {
    'embeddings': rng.lognormal(size=(n, 1)) * rng.normal(size=(n, size)),
    'template_of': rng.choice([3, 900, 41, 7, 8, 12_345_678], n),
    'media': rng.integers(0, 4, n),
    'weights': rng.uniform(0.1, 1, n),
  }


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(('keep_norms', 'weighted'), FLAGS)
def test_pooled_as_by_plain_loops(keep_norms, weighted, dtype):
  data = images()
  z = data['embeddings'].astype(dtype)
  ids, pooled = evaluation.pool_templates(
    z,
    data['template_of'],
    data['media'],
    detector_scores=data['weights'] if weighted else None,
    keep_norms=keep_norms,
  )
  weights = data['weights'] if weighted else np.ones(len(z))
  expected = slow_pool(
    z, data['template_of'].tolist(), data['media'].tolist(), weights, keep_norms
  )
  assert ids.tolist() == list(expected)
  assert pooled.dtype == np.float64
  np.testing.assert_allclose(pooled, list(expected.values()), atol=1e-14)


def test_bits_do_not_depend_on_what_is_read_at_once(monkeypatch, tmp_path):
  data = images(n=500)
  z = np.lib.format.open_memmap(
    tmp_path / 'z.npy', 'w+', np.float32, data['embeddings'].shape
  )
  z[:] = data['embeddings']
  pool = lambda: evaluation.pool_templates(
    z, data['template_of'], data['media'], detector_scores=data['weights']
  )[1].tobytes()
  whole = pool()
  for size in (1, 100, 10_000):
    monkeypatch.setattr(templates, '_IMAGES', size)
    assert pool() == whole


def test_memory_map_is_not_copied_whole(monkeypatch):
  rows = []
  read = templates.read_rows
  monkeypatch.setattr(
    templates, 'read_rows', lambda z, k: rows.append(len(k)) or read(z, k)
  )
  evaluation.pool_templates(
    np.ones((20_000, 2), np.float32),
    np.arange(20_000) // 3,
    np.zeros(20_000, int),
  )
  assert max(rows) <= templates._IMAGES and sum(rows) == 20_000


@pytest.mark.parametrize('paired', ['densely', 'sparsely'])
def test_scores_as_by_plain_loops(paired):
  rng = np.random.default_rng(1)
  num = {'densely': 140, 'sparsely': 3000}[paired]
  ids = np.sort(rng.choice(10**6, num, replace=False))
  pooled = templates.unit(rng.normal(size=(num, 7)))
  if paired == 'densely':
    pairs = np.array(list(itertools.product(ids, ids)))[::-1]
  else:
    pairs = ids[rng.integers(0, num, (2000, 2))]
  rows = {k: row for k, row in zip(ids.tolist(), pooled.tolist(), strict=True)}
  expected = [
    math.fsum(a * b for a, b in zip(rows[one], rows[other], strict=True))
    for one, other in pairs.tolist()
  ]
  scores = evaluation.template_scores(ids, pooled, pairs)
  np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-14)


def test_both_ways_to_compute_scores_are_tested(monkeypatch):
  def refuse(*_):
    raise AssertionError

  monkeypatch.setattr(templates, '_pair_by_pair', refuse)
  test_scores_as_by_plain_loops('densely')
  with pytest.raises(AssertionError):
    test_scores_as_by_plain_loops('sparsely')


@pytest.mark.parametrize('size', [3, 64, 512])
def test_equal_templates_score_equally_wherever_they_stand(size):
  # At the edges of one large product they do not: ranks and rates would move.
  rng = np.random.default_rng(2)
  num = 643
  pooled = templates.unit(rng.normal(size=(num, size)))
  pooled[[5, 130, 640, 641, 642]] = pooled[7]
  ids = np.arange(num)
  pairs = np.array(list(itertools.product(ids, ids)))
  scores = evaluation.template_scores(ids, pooled, pairs).reshape(num, num)
  for copy in (5, 130, 640, 641, 642):
    np.testing.assert_array_equal(scores[copy], scores[7])
    np.testing.assert_array_equal(scores[:, copy], scores[:, 7])
  np.testing.assert_array_equal(scores, scores.T)


def test_products_have_one_shape():
  num = products.ROWS + 2
  blocks = products.blocks(np.ones((num, 4)), products.ROWS)
  assert blocks.shape == (2, products.ROWS, 4)
  assert blocks.sum() == num * 4


def test_no_pairs_have_no_scores():
  none = np.empty((0, 2), int)
  assert len(evaluation.template_scores([1], np.ones((1, 2)), none)) == 0


def raises(message, call, *args, **kwargs):
  with pytest.raises(InputError, match=re.escape(message)) as raised:
    call(*args, **kwargs)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (
      {'embeddings': [[1, np.nan], [1, 0], [0, 1]]},
      'the embedding of image 0 (counted from 0, of 3) is not finite; check',
    ),
    (
      {'embeddings': [[1, 1], [1, 0], [0, 0]]},
      'the embedding of image 2 (counted from 0, of 3) is zero; check',
    ),
    (
      {'embeddings': [[1, 1], [-1, -1], [0, 1]]},
      'template 4 has no direction: its 2 image embeddings cancel each other, '
      'all have weight 0',
    ),
    (
      {'detector_scores': [0, 0, 1]},
      'template 4 has no direction: its 2 image',
    ),
    (
      {'detector_scores': [1, -0.5, 1]},
      'the detector score of image 1 (counted from 0) is -0.5; a weight is 0',
    ),
    ({'detector_scores': [1, 1, np.nan]}, 'image 2 (counted from 0) is nan;'),
    ({'detector_scores': [1, 1]}, 'detector_scores have shape (2,); expected'),
    ({'media': [1, 1]}, 'media have shape (2,); expected one number for each'),
    ({'media': [1, 1, 0.5]}, 'media are float64; expected integers'),
    ({'templates': [4, 4, '5']}, 'templates are <U21; expected integers'),
    (
      {'embeddings': [[1, 1], [1, 0]]},
      'embeddings have shape (2, 2) and dtype float64; expected floats [3, D], '
      'a row for each of the images in their order',
    ),
  ],
)
def test_odd_images_have_a_message(changed, message):
  arguments = {
    'embeddings': [[1, 1], [1, 0], [0, 1]],
    'templates': [4, 4, 5],
    'media': [1, 1, 1],
  } | changed
  arguments['embeddings'] = np.array(arguments['embeddings'], float)
  if 'detector_scores' not in changed:
    raises(
      message, lambda **k: evaluation.pool_templates(**k, keep_norms=False),
      **arguments,
    )  # fmt: skip
  raises(message, evaluation.pool_templates, **arguments)


@pytest.mark.parametrize('media', [[1, 1, 1], [1, 2, 3]])
def test_rounding_is_no_direction(media):
  angles = np.array([0.1, 0.1 + 2 * np.pi / 3, 0.1 + 4 * np.pi / 3])
  z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  assert z.sum(axis=0).any()
  raises(
    'template 4 has no direction', evaluation.pool_templates, z, [4] * 3, media
  )


@pytest.mark.parametrize(
  ('ids', 'pooled', 'pairs', 'message'),
  [
    (
      [1, 3],
      [[1.0], [1.0]],
      [[1, 3], [1, 2]],
      'pair 1 (counted from 0) is of template 2, which has no images: it is '
      'not among the 2 templates',
    ),
    ([1, 3], [[1.0], [1.0]], [[1, 4]], 'is of template 4, which has no images'),
    (
      [1, 3],
      [[1.0], [np.inf]],
      [[1, 1]],
      'the vector of template 3 is not finite, the first of 1 such',
    ),
    ([3, 1], [[1.0], [1.0]], [[1, 3]], 'expected rising integers [T]'),
    ([1, 1], [[1.0], [1.0]], [[1, 1]], 'expected rising integers [T]'),
    (
      [1, 3],
      [[1.0]],
      [[1, 3]],
      'expected floats [2, D], a row for each of the',
    ),
    ([1, 3], [[1.0], [1.0]], [1, 3], 'pairs have shape (2,) and dtype int64'),
    ([1, 3], [[1.0], [1.0]], [[1.0, 3.0]], 'dtype float64; expected integers'),
  ],
)
def test_odd_pairs_have_a_message(ids, pooled, pairs, message):
  raises(message, evaluation.template_scores, ids, np.array(pooled), pairs)
