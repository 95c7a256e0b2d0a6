# SPDX-License-Identifier: Apache-2.0
"""Corrected p values, against published rules and all relabellings."""

import itertools

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError


def holm_by_steps(p_values, level):
  """Holm's rule as published: steps down until one is not rejected."""
  left, rejected = list(range(len(p_values))), set()
  while left:
    k = min(left, key=lambda k: p_values[k])
    if p_values[k] > level / len(left):
      break
    rejected.add(k)
    left.remove(k)
  return rejected


def test_holm_rejects_as_published():
  rng = np.random.default_rng(6)
  for _ in range(50):
    p_values = rng.random(5) ** 4
    adjusted = evaluation.holm(p_values)
    for level in (0.01, 0.0501, 0.2, 0.9):
      expected = holm_by_steps(p_values, level)
      assert {*np.flatnonzero(adjusted <= level)} == expected
  assert evaluation.holm([0.2]) == [0.2]
  assert list(evaluation.holm([0.9, 0.9])) == [1, 1]
  assert len(evaluation.holm([])) == 0


def relabelled(figures, groups):
  """Computes mid-p of the largest ratio in a group, over all relabellings."""
  num_seeds = figures.shape[1]
  orders = []
  for order in itertools.permutations(range(len(figures))):
    if all({order[k] for k in group} == {*group} for group in groups):
      orders.append(list(order))
  found = []
  for chosen in itertools.product(orders, repeat=num_seeds):
    table = np.array([figures[order, s] for s, order in enumerate(chosen)])
    ratios = []
    for group in groups:
      for first, second in itertools.combinations(group, 2):
        differences = table[:, second] - table[:, first]
        ratios.append(abs(sum(differences)) / np.linalg.norm(differences))
    found.append(max(ratios))
  found, observed = np.array(found), found[0]
  equal = np.isclose(found, observed, rtol=1e-9)
  return np.mean((found > observed) & ~equal) + np.mean(equal) / 2


@pytest.mark.parametrize('seed', range(3))
def test_three_configs_by_all_relabellings(seed):
  figures = np.random.default_rng(seed).normal([[0], [0.5], [1.5]], 1, (3, 4))
  adjusted = evaluation.closed_test(figures)
  of_all = relabelled(figures, [(0, 1, 2)])
  for first, second in itertools.combinations(range(3), 2):
    alone = relabelled(figures[[first, second]], [(0, 1)])
    p = evaluation.sign_flip_test(figures[second] - figures[first]).p
    assert p == pytest.approx(alone, abs=1e-12)
    expected = max(alone, of_all)
    assert adjusted[first, second] == pytest.approx(expected, abs=0.02)
  assert (adjusted == adjusted.T).all() and (np.diag(adjusted) == 1).all()


def test_four_configs_by_all_hypotheses():
  rng = np.random.default_rng(5)
  figures = rng.normal([[0], [0.3], [2], [2.2]], 0.8, (4, 3))
  adjusted = evaluation.closed_test(figures)
  hypotheses = [
    [(0, 1)], [(0, 1), (2, 3)], [(0, 1, 2)], [(0, 1, 3)], [(0, 1, 2, 3)],
  ]  # fmt: skip
  expected = max(relabelled(figures, groups) for groups in hypotheses)
  assert adjusted[0, 1] == pytest.approx(expected, abs=0.02)


def test_two_configs_need_no_correction():
  figures = np.random.default_rng(0).normal(size=(2, 6))
  p = evaluation.sign_flip_test(figures[1] - figures[0]).p
  assert evaluation.closed_test(figures)[0, 1] == p


def test_five_seeds_find_differences_of_four_configs():
  figures = np.array([[0], [1], [3], [7]]) + 0.01 * np.eye(4, 5)
  adjusted = evaluation.closed_test(figures)
  differing = adjusted[~np.eye(4, dtype=bool)]
  assert differing.min() == 0.5**5 and differing.max() < 0.035


def test_seeds_that_are_missing():
  """A pair is compared by the seeds that both of it have."""
  figures = np.random.default_rng(1).normal([[0], [0], [9]], 1, (3, 8))
  figures[0, :3] = figures[1, 6:] = np.nan
  adjusted = evaluation.closed_test(figures)
  p = evaluation.sign_flip_test((figures[2] - figures[0])[3:]).p
  assert adjusted[0, 2] >= p == 0.5**5
  assert adjusted[0, 2] < 0.05
  figures[0, :6] = np.nan
  adjusted = evaluation.closed_test(figures)
  assert adjusted[0, 1] == adjusted[1, 0] == 1


def test_configs_with_few_seeds_hide_no_others():
  figures = np.array([[0], [1], [3], [0]]) + 0.01 * np.eye(4, 6)
  figures[3] = np.nan
  whole = evaluation.closed_test(figures[:3])
  assert whole[~np.eye(3, dtype=bool)].max() < 0.02
  # One that has not begun changes nothing.
  adjusted = evaluation.closed_test(figures)
  assert (adjusted[:3, :3] == whole).all()
  assert (adjusted[3] == 1).all()
  # Nor does one seed of it change much.
  figures[3, 0] = 0.5
  adjusted = evaluation.closed_test(figures)
  assert adjusted[:3, :3][~np.eye(3, dtype=bool)].max() < 0.02
  assert adjusted[3].min() >= 0.5


def test_missing_networks_are_not_relabelled():
  """All relabellings of three configs in three seeds, of two in two."""
  figures = np.random.default_rng(6).normal([[0], [2], [2]], 1, (3, 5))
  figures[2, 3:] = np.nan

  def statistic(table):
    pairs = itertools.combinations(range(3), 2)
    differences = [table[b] - table[a] for a, b in pairs]
    known = [d[~np.isnan(d)] for d in differences]
    return max(abs(d.sum()) / np.sqrt(np.square(d).sum()) for d in known)

  three, two = [*itertools.permutations(range(3))], [(0, 1, 2), (1, 0, 2)]
  found = np.array(
    [
      statistic(figures[np.array(labels).T, np.arange(5)])
      for labels in itertools.product(three, three, three, two, two)
    ]
  )
  observed = statistic(figures)
  equal = np.isclose(found, observed, rtol=1e-9)
  of_all = ((found > observed) & ~equal).mean() + equal.mean() / 2
  adjusted = evaluation.closed_test(figures)
  p = evaluation.sign_flip_test(figures[1] - figures[0]).p
  assert of_all > p + 0.01
  assert adjusted[0, 1] == pytest.approx(of_all, abs=0.006)


def test_configs_that_vary_do_not_hide_others():
  rng = np.random.default_rng(3)
  figures = rng.normal([[0.0], [1.0], [0.5]], [[0.1], [0.1], [5.0]], (3, 6))
  assert evaluation.closed_test(figures)[0, 1] < 0.05


def test_equal_figures():
  figures = np.full((3, 5), 0.83)
  assert evaluation.closed_test(figures)[0, 1] == 0.5
  # Shares of the same counts differ by their rounding.
  figures[1] += 1e-16
  figures[2] -= 1e-16
  assert evaluation.closed_test(figures).min() > 0.02


def test_too_many_configs():
  with pytest.raises(InputError, match='C at most 7'):
    evaluation.closed_test(np.zeros((8, 5)))


def test_the_same_figures_give_the_same_values():
  figures = np.random.default_rng(2).normal(size=(5, 6))
  first, second = (
    evaluation.closed_test(figures),
    evaluation.closed_test(figures),
  )
  assert (first == second).all()
