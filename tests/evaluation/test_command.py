# SPDX-License-Identifier: Apache-2.0
"""`elasticface evaluate`, with a network that costs nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from elasticface_jax.commands import evaluate
from elasticface_jax.errors import InputError


class Weights:
  """Weights that embed by picking pixels."""

  config = {'eval': {'synthetic_pairs': 40}, 'seed': 0}
  path = Path('runs/q')
  step = 160
  eval_rows = 1

  def __init__(self):
    self.sizes = []  # Of the calls.

  def embed(self, images):
    self.sizes.append(len(images))
    return images.reshape(len(images), -1)[:, ::997].astype(np.float32)


def run(weights, out=None, folds=10):
  return evaluate.evaluate(weights, ['synthetic'], folds=folds, out=out)


@pytest.mark.parametrize('folds', [10, 4])
def test_says_what_it_did_and_where(tmp_path, capsys, folds):
  weights = Weights()
  results = run(weights, out=tmp_path / 'new' / 'out', folds=folds)
  out, err = capsys.readouterr()
  lines = out.splitlines()
  assert lines[0] == 'runs/q, step 160'
  assert lines[-2].startswith('80 images took 0:00:')
  assert lines[-1] == f'results.json and plots are in {tmp_path}/new/out'
  assert ('accuracy is over 4 folds' in out) == (folds == 4)
  assert not err  # It was quick.
  names = {path.name for path in (tmp_path / 'new' / 'out').iterdir()}
  assert names == {'results.json', 'roc.png', 'scores_synthetic.png'}
  written = json.loads((tmp_path / 'new' / 'out' / 'results.json').read_text())
  whole = {'synthetic': results['synthetic'].as_dict()}
  assert written == json.loads(json.dumps(whole))
  assert written['synthetic']['folds'] == folds
  # All images once, in chunks that fill whole batches.
  assert sum(weights.sizes) == 80 and len(weights.sizes) > 1
  assert all(size % 8 == 0 for size in weights.sizes[:-1])


def test_pairs_that_fit_no_folds_are_refused_before_any_is_embedded():
  weights = Weights()
  for folds in (41, 1):
    with pytest.raises(InputError, match='folds'):
      run(weights, folds=folds)
  assert not weights.sizes


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_embeddings_that_are_not_finite_name_the_pair_set(monkeypatch, bad):
  monkeypatch.setattr(
    Weights, 'embed', lambda _, images: np.full((len(images), 4), bad)
  )
  with pytest.raises(InputError, match='^synthetic: embedding row 0'):
    run(Weights())
