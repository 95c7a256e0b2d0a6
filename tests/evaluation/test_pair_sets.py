# SPDX-License-Identifier: Apache-2.0
"""Pair sets of a run: refused at its start, not when they are verified."""

import io

import numpy as np
import pytest
from PIL import Image

from elasticface_jax import data
from elasticface_jax.errors import InputError
from elasticface_jax.pair_sets import open_pair_sets


def open_sets(*specs, **arguments):
  arguments = {'num_pairs': 20, 'seed': 0, 'folds': 10} | arguments
  return open_pair_sets([str(spec) for spec in specs], **arguments)


@pytest.fixture
def small(tmp_path):
  """``small(name, num_pairs)``: the path of a pair set."""

  def write(name, num_pairs):
    file = io.BytesIO()
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(file, 'png')
    path = tmp_path / name
    data.write_pairs(
      path, [file.getvalue()] * 2 * num_pairs, [True] * num_pairs
    )
    return path

  return write


@pytest.mark.parametrize(
  ('name', 'num_pairs', 'folds'),
  [('nine.bin', 9, 10), ('two.npz', 2, 3), ('synthetic', 20, 21)],
)
def test_fewer_pairs_than_folds(small, name, num_pairs, folds):
  spec = 'synthetic' if name == 'synthetic' else small(name, num_pairs)
  large = small('large.bin', 30)
  with pytest.raises(InputError) as error:
    open_sets(large, spec, num_pairs=num_pairs, folds=folds)
  message = str(error.value)
  assert message.startswith(f'{spec}: {num_pairs} pairs')
  assert f'{folds} folds' in message
  assert f'--folds {num_pairs} ' in message
  assert f'--config.eval.folds={num_pairs} ' in message
  # The remedy works.
  opened = open_sets(large, spec, num_pairs=num_pairs, folds=num_pairs)
  assert [len(pairs.same) for pairs in opened] == [30, num_pairs]


@pytest.mark.parametrize('name', ['one.bin', 'one.npz'])
def test_a_single_pair_fits_no_number_of_folds(small, name):
  with pytest.raises(InputError, match='single pair.*give 2 pairs or more'):
    open_sets(small(name, 1), folds=2)


@pytest.mark.parametrize('folds', [1, 0, -3])
def test_too_few_folds(folds):
  with pytest.raises(InputError, match=f'folds={folds}: .* choose 2 or more'):
    open_sets('synthetic', folds=folds)


def test_names_must_differ(small, tmp_path):
  (tmp_path / 'b').mkdir()
  paths = small('lfw.bin', 10), small('b/lfw.bin', 10)
  with pytest.raises(InputError, match="two sets are called 'lfw'"):
    open_sets(*paths)
