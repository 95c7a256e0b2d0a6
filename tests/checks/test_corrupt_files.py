# SPDX-License-Identifier: Apache-2.0
"""`checks/corrupt_files.py` lets our readers pass, and finds worse ones out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elasticface_jax.data import RecSource, Report
from elasticface_jax.errors import InputError

CHECKS = Path(__file__).parents[2] / 'checks'
RECS = ['rec, header', 'rec, key 0 is an image']
CASES = range(100)


@pytest.fixture(scope='module')
def script(load_script):
  return load_script(CHECKS / 'corrupt_files.py')


def test_a_hundred_files(script, tmp_path):
  bench = script.Bench(tmp_path, 0, script.KINDS)
  cases = [bench.run(number) for number in CASES]
  assert [case for case in cases if case.outcome == 'FOUND'] == []
  assert {case.what[0] for case in cases} == set(script.KINDS)
  assert {case.what[2] for case in cases} == set(script.DAMAGES)
  outcomes = {case.outcome for case in cases}
  assert outcomes >= {'refused opening', 'refused reading', 'same', 'changed'}
  # A case does not depend on those before it.
  assert bench.run(CASES[0]) == cases[0]
  told = script.table(cases, 0).splitlines()
  counts = [[int(n) for n in line.split()[-6:]] for line in told[1:]]
  assert np.sum(counts) == len(cases)


class Worse:
  """A source that mends what it cannot read, in some way of its own."""

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
  (leaves_out, 'images instead of 10 without a word'),
  (stops_there, 'reading: StopIteration'),
  (repeats_the_last, 'is there 1 time(s), and read 2'),
  (complains_at_length, 'reading: not one clean line'),
  (says_nothing_of_use, 'reading: names no file: bad data'),
  (good_report, 'refused, but the inspection calls it good'),
  (good_report, 'the inspection tells what it told'),
])  # fmt: skip
def test_worse_readers_are_found(script, tmp_path, change, found):
  changed = {'open': lambda folder: Worse(folder, change)}
  if change is good_report:
    changed = {'inspect': change}
  kinds = {name: script.KINDS[name]._replace(**changed) for name in RECS}
  bench = script.Bench(tmp_path, 0, kinds)
  assert any(found in bench.run(number).told for number in CASES)


def test_a_reader_that_is_never_right(script, tmp_path):
  def but_the_last(source):
    images, labels, num_classes = script.read_source(source)
    return images[:-1], labels[:-1], num_classes

  kind = script.KINDS[RECS[0]]._replace(read=but_the_last)
  with pytest.raises(SystemExit, match='10 images are read as 9'):
    script.Bench(tmp_path, 0, {'rec': kind})


PLANTED = """
import os, sys, time
import numpy as np
sys.path.insert(0, sys.argv.pop())
import corrupt_files
from elasticface_jax.data import Report

def make(folder, rng):
  (folder / 'data').write_bytes(b'good')
  return [b'good']

def read(folder, hurt):
  path = folder / 'data'
  if not path.exists() or path.read_bytes() != b'good':
    hurt()
  return np.zeros((1, 112, 112, 3), np.uint8), [0], 1

corrupt_files.KINDS = {
  name: corrupt_files.Kind(
    make,
    lambda folder: folder,
    lambda folder, hurt=hurt: read(folder, hurt),
    lambda folder: Report('', {'a': ''}, [], 0),
  )
  for name, hurt in {
    'hangs': lambda: time.sleep(100),
    'aborts': os.abort,
    'leaves': lambda: os._exit(3),
    'takes': lambda: np.zeros(1 << 33, np.uint8),
    'goes on': lambda: None,
  }.items()
}

if __name__ == '__main__':
  sys.exit(corrupt_files.main())
"""


def test_watch_is_kept(tmp_path):
  script = tmp_path / 'planted.py'
  script.write_text(PLANTED)
  process = subprocess.run(
    [sys.executable, script, '--files=5', '--timeout=2', CHECKS],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 1, process.stderr
  found = [
    line for line in process.stdout.splitlines() if line.startswith('FOUND')
  ]
  assert len(found) == 4
  for number, (line, what) in enumerate(zip(found, [
    'was not done in 2 s', 'died of SIGABRT', 'ended with 3', 'MemoryError',
  ], strict=True)):  # fmt: skip
    assert f'--seed 0 --only {number}: ' in line and what in line
  assert process.stdout.endswith('\n5 damaged files, 4 finding(s)\n')
