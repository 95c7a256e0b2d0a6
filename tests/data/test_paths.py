# SPDX-License-Identifier: Apache-2.0
"""Paths: every public function takes a `str` and any `os.PathLike`."""

import inspect as signatures
import os

import numpy as np
import pytest

from elasticface_jax import data

from .conftest import LABELS, NUM_CLASSES


class Place(os.PathLike):
  """A path that is no `pathlib.Path`, and whose `str` is no path."""

  def __init__(self, path):
    self.path = os.fspath(path)

  def __fspath__(self):
    return self.path


# Each calls a function with paths that `p` makes of names in a folder.
CALLS = {
  'open_encoded': lambda p: data.open_encoded(p('rec'), cache=p('cache')),
  'open_source': lambda p: data.open_source(
    p('people'), num_images=0, num_classes=0, seed=0, cache=p('cache')
  ),
  'RecSource': lambda p: data.RecSource(p('rec'), cache=p('cache')),
  'FolderSource': lambda p: data.FolderSource(p('people'), cache=p('cache')),
  'ShardSource': lambda p: data.ShardSource(p('tfrecord'), cache=p('cache')),
  'open_pairs': lambda p: data.open_pairs(p('a.bin'), num_pairs=0, seed=0),
  'read_pairs': lambda p: data.read_pairs(p('a.bin')),
  'read_encoded': lambda p: data.read_encoded(p('a.npz')),
  'write_pairs': lambda p: data.write_pairs(p('b.npz'), [b'a', b'b'], [True]),
  'read_pair_list': lambda p: data.read_pair_list(p('pairs.txt')),
  'pairs_from_folder': lambda p: data.pairs_from_folder(
    p('lfw'), data.read_pair_list(p('pairs.txt'))
  ),
  'inspect': lambda p: data.inspect(p('a.bin')),
  'inspect_rec': lambda p: data.inspect_rec(p('rec'), fix=p('clean')),
  'inspect_pairs': lambda p: data.inspect_pairs(p('a.npz')),
  'inspect_images': lambda p: data.inspect_images(
    data.open_encoded(p('people')), fix=p('clean')
  ),
  'write_report': lambda p: data.write_report(
    data.inspect(p('rec'), fix=p('clean')), p('report')
  ),
  'paired_files': lambda p: data.paired_files(
    p('lfw'), data.read_pair_list(p('pairs.txt'))
  ),
  'check_shards': lambda p: data.check_shards(p('shards'), 'tfrecord'),
  'prepare_shards': lambda p: data.prepare_shards(
    data.open_encoded(p('rec')), p('shards')
  ),
  'write_rec_folder': lambda p: data.write_rec_folder(p('new'), [(b'a', 0)], 1),
  'is_remote': lambda p: data.is_remote(p('rec')),
  'is_pair_set': lambda p: data.is_pair_set(p('a.bin')),
  'list_images': lambda p: data.list_images(p('people/person 0')),
  'read_image': lambda p: data.read_image(p('people/person 0/000.jpg')),
}


@pytest.fixture
def files(copy, tmp_path, jpegs):
  for form in ('rec', 'people', 'tfrecord'):
    copy(form)
  data.write_pairs(tmp_path / 'a.bin', jpegs, [True] * 5)
  data.write_pairs(tmp_path / 'a.npz', jpegs, [True] * 5)
  (tmp_path / 'pairs.txt').write_text('a\t1\t2\n')
  (tmp_path / 'lfw' / 'a').mkdir(parents=True)
  for number in (1, 2):
    (tmp_path / f'lfw/a/a_000{number}.jpg').write_bytes(jpegs[number])
  return tmp_path


@pytest.mark.parametrize('kind', [str, Place])
@pytest.mark.parametrize('name', CALLS)
def test_takes_any_path(files, name, kind):
  CALLS[name](lambda part: kind(files / part))


def test_every_function_with_a_path_is_called():
  takes_path = set()
  for name in data.__all__:
    function = getattr(data, name)
    if not callable(function) or name in ('Batch', 'PairSet', 'Prepared'):
      continue
    parameters = signatures.signature(function).parameters.values()
    if any('PathLike' in str(one.annotation) for one in parameters):
      takes_path.add(name)
  assert takes_path <= CALLS.keys()
  # And the annotations say so.
  assert CALLS.keys() - takes_path == set()


def test_a_remote_path_may_be_no_string(copy):
  shards = copy('tfrecord')
  address = Place('file://' + os.fspath(shards))
  assert data.is_remote(address)
  source = data.open_encoded(address)
  assert source.num_classes == NUM_CLASSES
  labels = source.read(np.arange(source.num_images))[1]
  assert labels.tolist() == LABELS
