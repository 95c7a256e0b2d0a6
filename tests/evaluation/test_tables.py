# SPDX-License-Identifier: Apache-2.0
"""Text tables of results."""

import dataclasses

import numpy as np
import pytest

from elasticface_jax import evaluation
from tests.evaluation.pairs import noisy_pairs, pairs_with_cosines


def table_of(**results):
  """Returns the heading of a table, its rows, and its notes without the last.

  The last note explains the brackets.
  """
  heading, *lines = evaluation.table(results).splitlines()
  rows = sum(max(3, len(r.tar_at_far or ())) for r in results.values())
  assert lines[-1] == (
    '±: deviation of the folds; [ ]: 95 % intervals, for independent pairs; '
    'pairs that share images or people vary more'
  )
  return heading, lines[:rows], lines[rows:-1]


def result_with(num_impostors, genuine=(1.0,) * 100, fars=(1e-3,), **fields):
  """Verifies pairs of which no impostor has a cosine above 0."""
  cosines = np.append(np.zeros(num_impostors), genuine)
  same = np.arange(len(cosines)) >= num_impostors
  result = evaluation.verify(pairs_with_cosines(cosines), same, fars=fars)
  return dataclasses.replace(result, **fields)


def percent(*rates):
  return [f'{100 * rate:.2f}' for rate in rates]


def limits(interval):
  low, high = percent(*interval)
  return f'[{low}, {high}]'


def test_table_has_every_figure_and_its_interval():
  result = evaluation.verify(*noisy_pairs(3000, seed=16), fars=(0.2, 1e-2))
  heading, rows, notes = table_of(a=result)
  assert heading.split() == (
    'set pairs accuracy % EER % AUC % FAR TAR % cosine >='.split()
  )
  accuracy, deviation = percent(result.accuracy, result.accuracy_std)
  points = [
    [
      *percent(point.tar),
      *limits(point.tar_interval).split(),
      f'{point.threshold:.3f}',
    ]
    for point in result.tar_at_far.values()
  ]
  assert rows[0].split() == [
    *('a', '3,000', accuracy, '±', deviation),
    *percent(result.eer, result.auc),
    *('0.2', *points[0]),
  ]
  assert rows[1].split() == [
    *limits(result.accuracy_interval).split(),
    *limits(result.eer_interval).split(),
    *limits(result.auc_interval).split(),
    *('1e-2', *points[1]),
  ]
  assert rows[2].split() == ['if', 'cos', '>', f'{result.threshold:.3f}']
  assert notes == []


def test_table_lines_up_and_is_not_wide():
  results = {
    name: evaluation.verify(
      *noisy_pairs(num_pairs, seed=16), fars=(0.5, 0.1, 1e-2, 1e-3, 2.5e-4)
    )
    for name, num_pairs in (('lfw', 40), ('agedb_30', 6000))
  }
  heading, rows, _ = table_of(**results)
  assert len(rows) == 10
  assert len({len(line) for line in (heading, *rows[:2], *rows[5:7])}) == 1
  assert max(map(len, [heading, *rows])) <= 106
  column = heading.index('FAR')
  shown = [row[column - 3 : column + 3].strip() for row in rows[5:]]
  assert shown == ['0.5', '0.1', '1e-2', '1e-3', '2.5e-4']


def test_table_of_one_kind():
  for kind, name in ((True, 'genuine'), (False, 'impostor')):
    embeddings, _ = noisy_pairs(20, seed=2)
    _, rows, notes = table_of(a=evaluation.verify(embeddings, [kind] * 20))
    assert rows[0].split()[-5:] == ['-'] * 5
    assert notes == [
      f'a: all pairs are {name} pairs; there is no FAR, TAR, EER and AUC'
    ]


def test_table_and_dict_name_folds_that_are_not_ten():
  embeddings, same = noisy_pairs(20, seed=17)
  ten, four, two = (
    evaluation.verify(embeddings, same, folds=folds) for folds in (10, 4, 2)
  )
  assert [r.as_dict()['folds'] for r in (ten, four, two)] == [10, 4, 2]
  *_, notes = table_of(a=ten, b=four, c=two, d=two)
  assert [note for note in notes if 'folds' in note] == [
    'accuracy is over 2 folds, published ones are over 10: c, d',
    'accuracy is over 4 folds, published ones are over 10: b',
  ]
  assert not any('folds' in note for note in table_of(a=ten)[2])


@pytest.mark.parametrize('num_impostors', [20, 99, 999])
def test_table_has_no_figure_for_a_far_that_is_not_measured(num_impostors):
  _, rows, notes = table_of(a=result_with(num_impostors))
  assert rows[0].split()[-4:] == ['1e-3', 'not', 'measurable', '-']
  assert notes == [
    f'a: FAR 1e-3 cannot be measured with {num_impostors} impostor pairs; it '
    'takes 1,000'
  ]


def test_table_names_all_fars_that_are_not_measured():
  _, rows, notes = table_of(a=result_with(400, fars=(1e-2, 1e-3, 1e-4)))
  assert [row.split()[-2] for row in rows[1:]] == ['measurable'] * 2
  assert notes == [
    'a: FAR 1e-3 and 1e-4 cannot be measured with 400 impostor pairs; they '
    'take 1,000 and 10,000'
  ]


@pytest.mark.parametrize(
  ('num_impostors', 'note'),
  [
    (
      1000,
      'a: TAR at FAR 1e-3 has no lower limit with 1,000 impostor pairs; one '
      'takes 2,995',
    ),
    (
      2994,
      'a: TAR at FAR 1e-3 has no lower limit with 2,994 impostor pairs; one '
      'takes 2,995',
    ),
    (2995, None),
    (4000, None),
  ],
)
def test_table_has_a_far_that_is_measured(num_impostors, note):
  _, rows, notes = table_of(a=result_with(num_impostors))
  assert ' 1e-3  100.00 [' in rows[0] and rows[0].endswith(
    ', 100.00]      1.000'
  )
  assert ('[0.00,' in rows[0]) == (note is not None)
  assert notes == [note] * (note is not None)


@pytest.mark.parametrize('genuine', [(-1.0,), (-1.0, -1.0)])
def test_table_never_prints_an_infinite_threshold(genuine):
  # The best scores are impostors', more of them than FAR 1e-3 allows.
  result = result_with(4000, genuine * 50)
  assert result.tar_at_far[1e-3].threshold == np.inf
  _, rows, _ = table_of(a=result)
  assert 'inf' not in rows[0] and rows[0].split()[-1] == 'none'


@pytest.mark.parametrize('num_resized', [1, 2000])
def test_table_notes_images_that_were_resized(num_resized):
  result = result_with(4000, num_resized=num_resized)
  assert result.as_dict()['num_resized'] == num_resized
  *_, notes = table_of(a=result, b=result_with(4000))
  assert notes == [
    f'a: {num_resized:,} of 8,200 images had another size and were resized; '
    'they may not be aligned'
  ]


def test_table_notes_zero_embeddings():
  embeddings, same = noisy_pairs(7000, seed=18)
  embeddings[[3, 8, 9]] = 0
  result = evaluation.verify(embeddings, same)
  *_, notes = table_of(
    a=result, b=evaluation.verify(embeddings[20:], same[10:])
  )
  assert notes == [
    'a: 3 of 14,000 embeddings are zero; their pairs score cosine 0'
  ]
