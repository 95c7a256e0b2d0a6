# SPDX-License-Identifier: Apache-2.0
r"""Damages small data sets in many ways, and looks for silent errors.

Each case takes a good data set of some kind, damages one of its files, opens
and reads all of it, and inspects it. Acceptable outcomes:

  refused opening   an `InputError` of one line that names the file
  refused reading   the same, when the images are read
  same              every image and label as before (the damage hit padding, an
                    unused field, or what the index leaves out)
  changed           as many images as before, some with other pixels, another
                    label or another place: neither pixels nor labels have a
                    checksum. The inspection's facts differ from before
  other count       of images. Only where the data hold no count, and only where
                    it can be seen: without record 0 an index that lost lines
                    from its middle is that of a smaller set, but the inspection
                    reports records in train.rec without a line; and a folder of
                    images without one of them is a smaller folder

Everything else is a finding: a process that dies, takes too long or too much
memory; an exception or a warning other than an `InputError`; a message of
several lines or without the file's name; another number of images without a
message; a label that is no class; contents that differ while the inspection
reports the same facts; an image whose bytes are intact that is left out or
replaced by another; data that cannot be read while the inspection reports no
fault. The exit code is 1 if there is a finding.

A case is known by its number, which means the same as long as neither this
check nor Pillow changes. With --only, stderr is not silenced.

Run it in the folder of the clone; 10,000 files take about ten minutes:

    python -m checks.corrupt_files
    python -m checks.corrupt_files --seed 1 --files 500
    python -m checks.corrupt_files --only 1234  # In this process; files stay.
"""

import argparse
import collections
import re
import sys
import tempfile
import time
from pathlib import Path

from checks.corrupt_files.cases import Bench, Case
from checks.corrupt_files.judge import OUTCOMES
from checks.corrupt_files.kinds import all_kinds
from checks.corrupt_files.workers import run_watched


def table(cases: list[Case], column: int) -> str:
  """Formats outcomes by kind (column 0), file (1) or damage (2)."""
  counts = collections.Counter(
    (
      row_name(case.damaged[column]) if case.damaged else 'process ended',
      case.outcome,
    )
    for case in cases
  )
  rows = list(dict.fromkeys(row for row, _ in counts))
  width = max(map(len, rows))
  lines = [' ' * width + ''.join(f'{name:>17}' for name in OUTCOMES)]
  for row in rows:
    cells = ''.join(f'{counts[row, name]:17,}' for name in OUTCOMES)
    lines.append(f'{row:{width}}{cells}')
  return '\n'.join(lines)


def row_name(text: str) -> str:
  """Returns the row of a kind, file or damage; numbered files share one."""
  if '.' not in text:
    return text
  return re.sub(r'\d+', 'N', Path(text).name)


def parse(argv):
  """Parses the arguments."""
  parser = argparse.ArgumentParser(
    prog='python -m checks.corrupt_files', description=__doc__.splitlines()[0]
  )
  parser.add_argument('--files', type=int, default=10_000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--timeout', type=float, default=30, help='seconds each')
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--only', type=int, metavar='N', help='this case alone')
  return parser.parse_args(argv)


def main(argv=None, make_kinds=all_kinds) -> int:
  """Runs the cases and prints their outcomes.

  Args:
    argv: arguments; those of the process by default.
    make_kinds: returns the kinds; a function of a module.

  Returns:
    Exit code: 1 if there is a finding.
  """
  args = parse(argv)
  if args.only is not None:
    folder = Path(tempfile.mkdtemp())
    case = Bench(folder, args.seed, make_kinds()).run(args.only)
    print(*case.damaged, sep=': ')
    print(f'{case.outcome}: {case.message}\nin {folder}/case')
    return int(case.outcome == 'FOUND')
  cases = []
  start = time.monotonic()
  for case in run_watched(
    range(args.files), args.seed, args.timeout, args.workers, make_kinds
  ):
    cases.append(case)
    if case.outcome == 'FOUND':
      print(
        f'FOUND, --seed {args.seed} --only {case.number}: '
        f'{", ".join(case.damaged)}: {case.message.splitlines()[0][:300]}',
        flush=True,
      )
    if len(cases) % 1000 == 0:
      seconds = time.monotonic() - start
      print(f'{len(cases)} files in {seconds:.0f} s', flush=True)
  for column in range(3):
    print(f'\n{table(cases, column)}')
  found = sum(case.outcome == 'FOUND' for case in cases)
  print(f'\n{len(cases)} damaged files, {found} finding(s)')
  return int(found > 0)


if __name__ == '__main__':
  sys.exit(main())
