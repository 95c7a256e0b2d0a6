# SPDX-License-Identifier: Apache-2.0
"""Text tables of results."""

import dataclasses

import numpy as np
import pytest

from elasticface_jax import evaluation
from tests.evaluation.pairs import noisy_pairs, pairs_with_cosines


def table_of(**results):
  """Returns the heading lines of a table, its rows and its notes."""
  lines = evaluation.table(results).splitlines()
  return lines[:2], lines[2 : 2 + len(results)], lines[2 + len(results) :]


def result_with(num_impostors, genuine=(1.0,) * 100, **fields):
  """Verifies pairs of which no impostor has a cosine above 0."""
  cosines = np.append(np.zeros(num_impostors), genuine)
  same = np.arange(len(cosines)) >= num_impostors
  result = evaluation.verify(pairs_with_cosines(cosines), same)
  return dataclasses.replace(result, **fields)


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


@pytest.mark.parametrize(
  ('num_impostors', 'note'),
  [
    (20, 'a: FAR 1e-3 cannot be measured with 20 impostor pairs; it takes'),
    (99, 'a: FAR 1e-3 cannot be measured with 99 impostor pairs; it takes'),
    (100, 'with 100 impostor pairs; at FAR 1e-2 TAR is 100.00 [96.38, 100.00]'),
    (999, 'with 999 impostor pairs; at FAR 1e-2 TAR is 100.00 [96.38, 100.00]'),
  ],
)
def test_table_has_no_figure_for_a_far_that_is_not_measured(
  num_impostors, note
):
  _, (row,), (line,) = table_of(a=result_with(num_impostors))
  assert row.split()[-4:] == ['not', 'measurable', '-', '-']
  assert note in line


@pytest.mark.parametrize('num_impostors', [1000, 3000])
def test_table_has_a_far_that_is_measured(num_impostors):
  _, (row,), notes = table_of(a=result_with(num_impostors))
  assert '100.00 [96.38, 100.00]         1.000  0.000 [0.000, 0.' in row
  assert not notes


@pytest.mark.parametrize('genuine', [(-1.0,), (-1.0, -1.0)])
def test_table_never_prints_an_infinite_threshold(genuine):
  # The best scores are impostors', more of them than FAR 1e-3 allows.
  result = result_with(2000, genuine * 50)
  assert result.tar_at_far[1e-3].threshold == np.inf
  _, (row,), _ = table_of(a=result)
  assert 'inf' not in row and ' none  0.000 [' in row


@pytest.mark.parametrize('num_resized', [1, 2000])
def test_table_notes_images_that_were_resized(num_resized):
  result = result_with(1000, num_resized=num_resized)
  assert result.as_dict()['num_resized'] == num_resized
  *_, notes = table_of(a=result, b=result_with(1000))
  assert notes == [
    f'a: {num_resized:,} of 2,200 images had another size and were resized; '
    'they may not be aligned'
  ]


def test_table_lines_up():
  results = {
    name: evaluation.verify(*noisy_pairs(num_pairs, seed=16))
    for name, num_pairs in (('lfw', 40), ('a_longer_name', 2400))
  }
  headings, rows, _ = table_of(**results)
  assert len({len(line) for line in headings + rows}) == 1
  accuracy = results['lfw'].accuracy
  assert rows[0].startswith('lfw            ')
  assert f'{100 * accuracy:.2f} ± ' in rows[0]
  point = results['a_longer_name'].tar_at_far[1e-3]
  assert f' {100 * point.tar:.2f} [' in rows[1]
  assert f' {point.threshold:.3f} ' in rows[1]
