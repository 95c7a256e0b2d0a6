# SPDX-License-Identifier: Apache-2.0
"""Figures on resampled pairs, against those of copies of the pairs."""

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.evaluation import rates, resampling

from .pairs import noisy_pairs


def test_counts_keep_both_kinds():
  same = np.arange(70) % 3 == 0
  counts = evaluation.resample(same, 300)
  assert (counts[:, same].sum(axis=1) == same.sum()).all()
  assert (counts[:, ~same].sum(axis=1) == (~same).sum()).all()
  # Of draws with replacement, each pair is drawn once in the mean.
  assert counts.mean(axis=0) == pytest.approx(np.ones(70), abs=0.3)
  assert counts.var() == pytest.approx(1, abs=0.1)
  assert (evaluation.resample(same, 300) == counts).all()
  assert (evaluation.resample(same, 300, seed=1) != counts).any()


def test_sets_of_one_kind():
  counts = evaluation.resample(np.ones(20, bool), 5)
  assert (counts.sum(axis=1) == 20).all()


@pytest.mark.parametrize('digits', [None, 1])
@pytest.mark.parametrize('chunk', [2**21, 1000])
def test_rates_are_those_of_copies(digits, chunk, monkeypatch):
  """With few digits, many scores are equal."""
  monkeypatch.setattr(resampling, '_CHUNK', chunk)
  result = evaluation.verify(*noisy_pairs(300, 0, noise=1.5))
  scores, same = result.scores, result.same
  if digits:
    scores = scores.round(digits)
  fars = [1.0, 0.1, 0.02, 0.0]
  counts = evaluation.resample(same, 40)
  eer, tar = evaluation.resampled_rates(scores, same, counts, fars)
  assert eer.shape == (40,) and tar.shape == (40, 4)
  for row, found_eer, found_tar in zip(counts, eer, tar, strict=True):
    copies = np.repeat(np.arange(300), row)
    far, curve_tar, _ = rates.roc(scores[copies], same[copies])
    assert found_eer == rates.equal_error_rate(far, curve_tar)
    expected = evaluation.tar_at_far(scores[copies], same[copies], fars)
    assert (found_tar == expected).all()


def test_accuracies_are_those_of_copies():
  rng = np.random.default_rng(1)
  correct = rng.random((3, 90)) < 0.8
  counts = evaluation.resample(np.arange(90) % 2 == 0, 25)
  found = evaluation.resampled_accuracy(correct, counts)
  for row, accuracies in zip(counts, found, strict=True):
    copies = np.repeat(correct, row, axis=1)
    assert accuracies == pytest.approx(copies.mean(axis=1), abs=1e-15)


@pytest.mark.parametrize(('num_pairs', 'folds'), [(300, 10), (87, 10), (9, 4)])
def test_correct_pairs_are_those_of_the_protocol(num_pairs, folds):
  result = evaluation.verify(*noisy_pairs(num_pairs, 2, noise=1.5), folds)
  correct = evaluation.correct_pairs(result.scores, result.same, folds)
  found = [fold.mean() for fold in np.array_split(correct, folds)]
  assert found == result.fold_accuracies.tolist()
