# SPDX-License-Identifier: Apache-2.0
"""`checks/corrupt_files` lets our readers pass, and finds worse ones."""

import importlib
import multiprocessing

import numpy as np
import pytest

from checks.corrupt_files import __main__ as script
from checks.corrupt_files import damages, kinds
from checks.corrupt_files.cases import Bench
from elasticface_jax.data import RecSource, Report
from elasticface_jax.errors import InputError

RECS = ['rec, header', 'rec, key 0 is an image']
CASES = range(100)


@pytest.fixture(scope='module')
def all_kinds():
  return kinds.all_kinds()


def test_a_hundred_files(all_kinds, tmp_path):
  bench = Bench(tmp_path, 0, all_kinds)
  cases = [bench.run(number) for number in CASES]
  assert [case for case in cases if case.outcome == 'FOUND'] == []
  assert {case.damaged[0] for case in cases} == set(all_kinds)
  assert {case.damaged[2] for case in cases} == set(damages.DAMAGES)
  outcomes = {case.outcome for case in cases}
  assert outcomes >= {'refused opening', 'refused reading', 'same', 'changed'}
  # A case does not depend on those before it.
  assert bench.run(CASES[0]) == cases[0]
  printed = script.table(cases, 0).splitlines()
  counts = [[int(n) for n in line.split()[-6:]] for line in printed[1:]]
  assert np.sum(counts) == len(cases)


class Worse:
  """A source that continues after an image that it cannot read."""

  def __init__(self, folder, mend):
    self.source, self.mend = RecSource(folder), mend
    self.num_images = self.source.num_images
    self.num_classes = self.source.num_classes

  def render(self, indices):
    read = []
    for index in indices:
      try:
        read.append(self.source.render(np.array([index])))
      except InputError as error:
        read = self.mend(read, error)
    return [np.concatenate(parts) for parts in zip(*read, strict=True)]


def leaves_out(read, error):
  return read


def stops_there(read, error):
  raise StopIteration


def repeats_the_last(read, error):
  return read + read[-1:]


def complains_at_length(read, error):
  raise InputError(f'{error}\nand so on')


def says_nothing_of_use(read, error):
  raise InputError('bad data')


def good_report(folder):
  return Report(str(folder), {'records': '10 in the index, 0 not'}, [], 0)


@pytest.mark.parametrize('change, found', [
  (leaves_out, 'images instead of 10 without a message'),
  (stops_there, 'reading: StopIteration'),
  (repeats_the_last, 'is stored 1 time(s), read 2'),
  (complains_at_length, 'reading: not one clean line'),
  (says_nothing_of_use, 'reading: names no file: bad data'),
  (good_report, 'refused, but the inspection reports no fault'),
  (good_report, 'the inspection reports the same facts'),
])  # fmt: skip
def test_worse_readers_are_found(all_kinds, tmp_path, change, found):
  changed = {'open': lambda folder: Worse(folder, change)}
  if change is good_report:
    changed = {'inspect': change}
  worse = {name: all_kinds[name]._replace(**changed) for name in RECS}
  bench = Bench(tmp_path, 0, worse)
  assert any(found in bench.run(number).message for number in CASES)


def test_a_reader_that_is_never_right(all_kinds, tmp_path):
  def but_the_last(source):
    images, labels, num_classes = kinds.read_source(source)
    return images[:-1], labels[:-1], num_classes

  kind = all_kinds[RECS[0]]._replace(read=but_the_last)
  with pytest.raises(SystemExit, match='10 images are read as 9'):
    Bench(tmp_path, 0, {'rec': kind})


# Kinds whose readers misbehave on damaged data; imported by workers too.
PLANTED = """
import os, time
import numpy as np

class Kind:
  left_out = None

  def __init__(self, misbehave):
    self.misbehave = misbehave

  def make(self, folder, rng):
    (folder / 'data').write_bytes(b'good')
    return [b'good']

  def open(self, folder):
    return folder

  def read(self, folder):
    path = folder / 'data'
    if not path.exists() or path.read_bytes() != b'good':
      self.misbehave()
    return np.zeros((1, 112, 112, 3), np.uint8), [0], 1

  def inspect(self, folder):
    return Report()

class Report:
  ok, facts = True, {'a': ''}

def make_kinds():
  return {
    'hangs': Kind(lambda: time.sleep(100)),
    'aborts': Kind(os.abort),
    'exits': Kind(lambda: os._exit(3)),
    'allocates': Kind(lambda: np.zeros(1 << 33, np.uint8)),
    'continues': Kind(lambda: None),
  }
"""


def test_workers_are_watched(tmp_path, monkeypatch, capsys):
  (tmp_path / 'planted.py').write_text(PLANTED)
  monkeypatch.syspath_prepend(tmp_path)
  planted = importlib.import_module('planted')

  argv = ['--files=5', '--timeout=2']
  assert script.main(argv, planted.make_kinds) == 1
  printed = capsys.readouterr().out
  found = [line for line in printed.splitlines() if line.startswith('FOUND')]
  assert len(found) == 4
  for number, (line, message) in enumerate(zip(found, [
    'was not done in 2 s', 'died of SIGABRT', 'ended with 3', 'MemoryError',
  ], strict=True)):  # fmt: skip
    assert f'--seed 0 --only {number}: ' in line and message in line
  assert printed.endswith('\n5 damaged files, 4 finding(s)\n')
  assert multiprocessing.active_children() == []
