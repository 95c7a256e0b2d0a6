# SPDX-License-Identifier: Apache-2.0
"""Cases: a good data set of some kind with one damaged file, by number."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checks.corrupt_files.damages import DAMAGES
from checks.corrupt_files.judge import Finding, Good, judge, no_unraisable

# Modification time of good files in ns, in 2001. A kept index holds the times:
# with fixed ones its bytes are reproducible.
MODIFIED = 10**18


class Case(NamedTuple):
  """The outcome of one damaged file.

  Attributes:
    number: of the case.
    damaged: kind, file and damage; empty if its worker ended.
    outcome: one of `judge.OUTCOMES`.
    message: the refusal, or the finding.
  """

  number: int
  damaged: tuple[str, str, str] | tuple[()]
  outcome: str
  message: str


class Bench:
  """Good data of every kind in memory, and a folder for damaged copies.

  Args:
    folder: empty; holds the latest case afterwards.
    seed: of the data and the damages.
    kinds: each a `Kind`, by name.

  Raises:
    SystemExit: if good data are not read as they were made.
  """

  def __init__(self, folder: Path, seed: int, kinds: Mapping[str, Any]):
    self.folder, self.seed, self.kinds = folder / 'case', seed, kinds
    self.good = {}
    for number, (name, kind) in enumerate(kinds.items()):
      place = folder / str(number)
      place.mkdir()
      images = kind.make(place, np.random.default_rng([seed, number]))
      paths = sorted(path for path in place.rglob('*') if path.is_file())
      for path in paths:
        os.utime(path, ns=(MODIFIED, MODIFIED))
      # Opening rewrites a kept index, which holds the times.
      contents = kind.read(kind.open(place))
      report = kind.inspect(place)
      if len(contents[0]) != len(images) or not report.ok:
        raise SystemExit(
          f'{name}: good data of {len(images)} images are read as '
          f'{len(contents[0])}, and inspected as\n{report}'
        )
      files = {
        str(path.relative_to(place)): path.read_bytes() for path in paths
      }
      self.good[name] = Good(files, images, contents, report.facts)

  def run(self, number: int) -> Case:
    """Makes a case, reads it and judges its outcome."""
    rng = np.random.default_rng([self.seed, number])
    name = list(self.kinds)[number % len(self.kinds)]
    good = self.good[name]
    # Short files are damaged less often than long ones, but often enough.
    weights = np.log2([1 + len(data) for data in good.files.values()])
    file = str(rng.choice(list(good.files), p=weights / weights.sum()))
    data = good.files[file]
    hurt = data
    while hurt == data:
      damage = str(rng.choice(list(DAMAGES)))
      hurt = DAMAGES[damage](data, rng, self._other(name, file, rng))
    # A failing disk keeps the modification time; a failed copy does not.
    self._write(good, file, hurt, keep_time=rng.random() < 0.5)
    try:
      with no_unraisable():
        outcome, message = judge(self.kinds[name], good, self.folder)
    except Finding as finding:
      outcome, message = 'FOUND', str(finding)
    return Case(number, (name, file, damage), outcome, message)

  def _other(self, name, file, rng) -> bytes:
    """Draws another file, half the time one with the same suffix."""
    others = [
      (path, data)
      for kind, good in self.good.items()
      for path, data in good.files.items()
      if (kind, path) != (name, file)
    ]
    alike = [
      (path, data)
      for path, data in others
      if Path(path).suffix == Path(file).suffix
    ]
    if alike and rng.random() < 0.5:
      others = alike
    return others[rng.integers(0, len(others))][1]

  def _write(self, good, hurt_file, hurt, *, keep_time):
    for path in sorted(self.folder.rglob('*'), reverse=True):
      path.rmdir() if path.is_dir() else path.unlink()
    for file, data in good.files.items():
      path = self.folder / file
      path.parent.mkdir(parents=True, exist_ok=True)
      data = hurt if file == hurt_file else data
      if data is None:
        continue
      path.write_bytes(data)
      if file != hurt_file or keep_time:
        os.utime(path, ns=(MODIFIED, MODIFIED))
