# SPDX-License-Identifier: Apache-2.0
"""Searches of a gallery agree with plain loops, in odd cases too."""

import math
import re

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError


def slow_search(probes, probe_subjects, gallery, gallery_subjects):
  """Ranks one entry after another; returns a list for each probe.

  It is of (places of the mates, whether each place is of a mate, scores).
  """

  def cosine(a, b):
    norms = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms

  found = []
  for z, subject in zip(probes.tolist(), probe_subjects, strict=True):
    entries = [
      # A mate comes after the others that tie with it.
      (-round(cosine(z, entry), 12), other == subject)
      for entry, other in zip(gallery.tolist(), gallery_subjects, strict=True)
    ]
    found.append(sorted(entries))
  return found


def slow_precision(entries):
  """Computes average precision by trapezoids along the list."""
  total = sum(is_mate for _, is_mate in entries)
  area, recall, precision, hits = 0.0, 0.0, 1.0, 0
  for place, (_, is_mate) in enumerate(entries, 1):
    hits += is_mate
    area += (hits / total - recall) * (precision + hits / place) / 2
    recall, precision = hits / total, hits / place
  return area


@pytest.fixture(scope='module')
def made():
  rng = np.random.default_rng(0)
  people = rng.normal(size=(40, 8))
  gallery_subjects = rng.integers(0, 30, 90)
  probe_subjects = rng.integers(0, 40, 150)
  gallery = people[gallery_subjects] + rng.normal(size=(90, 8))
  probes = people[probe_subjects] + rng.normal(size=(150, 8))
  gallery[17] = 2 * gallery[4]  # A tie of two subjects for every probe.
  assert gallery_subjects[17] != gallery_subjects[4]
  probes *= rng.lognormal(size=(150, 1))
  return probes, probe_subjects, gallery, gallery_subjects


def test_ranks_and_precisions_as_by_plain_loops(made):
  result = evaluation.identify(*made)
  lists = [e for e in slow_search(*made) if any(mate for _, mate in e)]
  ranks = [[mate for _, mate in e].index(True) + 1 for e in lists]
  assert result.ranks.tolist() == ranks
  assert len(set(ranks)) > 5
  np.testing.assert_allclose(
    result.average_precisions, [slow_precision(e) for e in lists], atol=1e-12
  )
  for rank in (1, 2, 5, 20, 90):
    assert result.cmc(rank) == np.mean([r <= rank for r in ranks])
  assert (result.num_entries, len(result.alarms)) == (90, 150 - len(ranks))


def test_open_set_as_by_plain_loops(made):
  fpirs = (0.0, 1e-2, 1e-1, 0.3, 0.9)
  result = evaluation.identify(*made, fpirs=fpirs)
  mated, alarms = [], []
  for entries in slow_search(*made):
    mates = [k for k, (_, mate) in enumerate(entries) if mate]
    if mates:
      mated.append((mates[0] == 0, -entries[mates[0]][0]))
    else:
      alarms.append(-entries[0][0])
  for fpir in fpirs:
    tried = []
    for threshold in [s for _, s in mated] + alarms + [2.0]:
      if sum(score >= threshold for score in alarms) / len(alarms) <= fpir:
        hits = sum(first and score >= threshold for first, score in mated)
        tried.append(hits / len(mated))
    point = result.tpir_at_fpir[fpir]
    assert point.tar == max(tried) and point.far <= fpir
    assert point.is_measurable == (fpir * len(alarms) >= 1)


def test_one_vector_for_all_has_never_rank_1():
  ones = np.ones((20, 512))
  result = evaluation.identify(ones, np.arange(20), ones, np.arange(20))
  assert set(result.ranks) == {20}


def test_rank_does_not_depend_on_the_place_in_the_list(made):
  probes, probe_subjects, gallery, gallery_subjects = made
  order = np.random.default_rng(1).permutation(len(gallery))
  moved = evaluation.identify(
    probes, probe_subjects, gallery[order], gallery_subjects[order]
  )
  result = evaluation.identify(*made)
  np.testing.assert_array_equal(moved.ranks, result.ranks)
  np.testing.assert_array_equal(moved.mate_scores, result.mate_scores)


def test_several_galleries_are_averaged(made):
  probes, probe_subjects, gallery, gallery_subjects = made
  parts = []
  for part in (gallery_subjects < 12, gallery_subjects >= 12):
    parts.append(
      evaluation.identify(
        probes, probe_subjects, gallery[part], gallery_subjects[part]
      )
    )
  result = evaluation.Identification(tuple(parts))
  hits = sum((one.ranks == 1).sum() for one in parts)
  mated = sum(len(one.ranks) for one in parts)
  assert result.rank_rate(1)[0] == hits / mated
  low, high = result.rank_rate(1)[1]
  assert low < hits / mated < high
  assert result.tpir_at_fpir()[0.1] == np.mean(
    [one.tpir_at_fpir[0.1].tar for one in parts]
  )
  assert result.tpir_at_fpir()[0.01] is None  # Fewer than 100 in the second.


def test_idle_subjects_and_missing_mates_are_said():
  z = np.eye(3)
  result = evaluation.identify(z[:2], ['a', 'b'], z, ['a', 'b', 'c'])
  notes = evaluation.Identification((result,)).notes('toy')
  assert notes == [
    'toy, gallery: no probe shows 1 of 3 subjects of the gallery; they are '
    'distractors',
    'toy, gallery: every probe has a mate, so there is no FPIR',
  ]
  assert evaluation.Identification((result,)).as_dict()['tpir_at_fpir'] == {}
  result = evaluation.identify(z, ['a', 'b', 'x'], z[:2], ['a', 'b'])
  assert result.as_dict()['num_nonmated'] == 1


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'gallery_subjects': []}, 'gallery: the gallery is empty; give one entry'),
    (
      {'probe_subjects': [7, 8]},
      'gallery: none of 2 probes shows a subject of the gallery; check that',
    ),
    ({'probe_subjects': [1]}, 'floats [1, D], a row for each of the probes in'),
    ({'gallery_subjects': [1]}, 'a row for each of the entries in their order'),
    ({'probes': np.ones((2, 5))}, 'probes have 5 numbers, entries of the gal'),
    (
      {'probes': np.diag([1, np.inf])},
      'of probe 1 (counted from 0, of 2) is no',
    ),
    (
      {'gallery': np.diag([0.0, 1.0])},
      'entry 0 (counted from 0, of 2) is zero',
    ),
    ({'fpirs': [1.0]}, 'FPIR 1.0 is no target; give a rate in [0, 1)'),
  ],
)
def test_odd_inputs_have_a_message(changed, message):
  arguments = {
    'probes': np.eye(2),
    'probe_subjects': [1, 9],
    'gallery': np.eye(2),
    'gallery_subjects': [1, 2],
  } | changed
  with pytest.raises(InputError, match=re.escape(message)) as raised:
    evaluation.identify(**arguments)
  assert '\n' not in str(raised.value)
