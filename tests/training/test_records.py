# SPDX-License-Identifier: Apache-2.0
"""Records of checksums, and of the packages of a run."""

import json
import re

import jax
import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.training import checksums, installed, records

A, B = '0123456789abcdef', 'fedcba9876543210'


def writer(folder, **changes):
  return records.Writer(
    folder,
    **{'first_step': 0, 'every': 5, 'with_checkpoints': True} | changes,
  )


def test_records_are_read_as_they_were_written(tmp_path):
  assert records.read(tmp_path) == records.Records()
  write = writer(tmp_path).write
  write(0, {'a': A, 'b': B})
  write(5, {'b': A, 'a': B})
  assert records.read(tmp_path) == (('a', 'b'), {0: A + B, 5: B + A})
  # On a resume from step 3, later ones are made again.
  later = writer(tmp_path, first_step=3)
  assert records.read(tmp_path) == (('a', 'b'), {0: A + B})
  later.write(5, {'a': A, 'b': A})
  writer(tmp_path, first_step=9, write=False).write(6, {'a': A, 'b': A})
  assert records.read(tmp_path).sums == {0: A + B, 5: A + A}
  writer(tmp_path)  # Of a run that begins again.
  assert records.read(tmp_path) == records.Records()
  writer(tmp_path).write(0, {'c': A})
  assert records.read(tmp_path) == (('c',), {0: A})


@pytest.mark.parametrize(
  'line',
  ['{"step": 5}', 'x', '{"step": 5, "sums": "0"}', '[1]', '{"step": "b"}'],
)
def test_damage_is_named_unless_a_crash_cut_the_end(tmp_path, line):
  write = writer(tmp_path).write
  write(0, {'a': A})
  path = tmp_path / records.FILE
  path.write_text(path.read_text() + line + '\n')
  assert records.read(tmp_path).sums == {0: A}
  path.write_text(path.read_text() + json.dumps({'step': 6, 'sums': B}) + '\n')
  with pytest.raises(InputError, match='jsonl: line 3 is no record; was it'):
    records.read(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'saving', 'expected'),
  [
    ({}, (), [0, 5]),
    ({}, (3,), [0, 3, 5]),
    ({'every': 0}, (3,), [0, 3]),
    ({'with_checkpoints': False}, (3,), [0, 5]),
    ({'every': 0, 'with_checkpoints': False}, (3,), []),
    ({'every': 0, 'also': frozenset({0, 4})}, (3,), [0, 3, 4]),
  ],
)
def test_steps_with_a_record(tmp_path, changes, saving, expected):
  due = writer(tmp_path, **changes).due
  assert [s for s in range(7) if due(s, saving=s in saving)] == expected


def test_folded_checksums_see_the_order_of_blocks():
  centers = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
  folded = lambda x: records.fold(checksums.of_arrays({'class_centers': x}))
  one, swapped = folded(centers), folded(centers[[1, 0, 2]])
  assert one.keys() == {'class_centers'} and one != swapped
  assert len(one['class_centers']) == records.DIGITS
  changed = centers.copy()
  changed.view(np.uint32)[2, 1, 0] ^= 1
  assert folded(changed) != one


def test_lock_has_what_training_needs_and_no_more():
  lock = installed.lock('cpu')
  names = [line.partition('==')[0] for line in lock]
  # Directly, through others, and through the extra of another.
  assert {'jax', 'jaxlib', 'orbax-checkpoint', 'tensorstore'} <= {*names}
  assert f'jax=={jax.__version__}' in lock
  assert 'pytest' not in names and 'elasticface-jax' not in names
  assert all(re.fullmatch(r'[a-z0-9-]+==[\w.+!-]+', line) for line in lock)


def test_plugins_count_on_accelerators(monkeypatch):
  class Plugin:
    version, requires = '7.1', []

  found = installed._installed() | {'jax-cuda13-plugin': Plugin}
  monkeypatch.setattr(installed, '_installed', lambda: found)
  assert installed.versions('gpu')['jax-cuda13-plugin'] == '7.1'
  assert 'jax-cuda13-plugin' not in installed.versions('cpu')
  installed.lock.cache_clear()
  assert 'jax-cuda13-plugin==7.1' in installed.lock('gpu')
  installed.lock.cache_clear()


def test_sources_are_those_of_the_package(monkeypatch, tmp_path):
  (tmp_path / 'a.py').write_text('a = 1\n')
  monkeypatch.setattr(
    installed.elasticface_jax, '__file__', str(tmp_path / '__init__.py')
  )
  digests = set()
  for text in ('a = 1\n', 'a = 2\n', 'a = 1\n'):
    (tmp_path / 'a.py').write_text(text)
    installed.sources.cache_clear()
    digests.add(installed.sources())
  installed.sources.cache_clear()
  assert len(digests) == 2
