# SPDX-License-Identifier: Apache-2.0
"""`elasticface report`: one page of runs and evaluations, side by side."""

import argparse
from collections.abc import Sequence

from elasticface_jax import atomic
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface report runs/arc runs/elastic_arc --out report.html'
  )
  parser.add_argument(
    'folders',
    nargs='+',
    type=_paths.path,
    metavar='W',
    help='run folder, or a folder of `evaluate --out`; several are compared',
  )
  parser.add_argument(
    '--out',
    required=True,
    type=_paths.path,
    metavar='FILE.html',
    help='the page; one that is there is replaced',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the page.

  Raises:
    InputError: for a folder that is no run, or a file that cannot be written.
  """
  if args.out.suffix.lower() not in ('.html', '.htm'):
    raise InputError(
      f'--out {args.out}: give a name that ends in .html, such as report.html'
    )
  atomic.check_file(args.out, '--out')
  from elasticface_jax import report

  runs = report.read_runs(args.folders)
  for one in runs:
    for note in one.notes:
      print(f'{one.folder}: {note}')
    for result in one.results.values():
      for note in result.notes:
        print(f'{one.folder}, {result.name}: {note}')
  report.write(runs, args.out)
  print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')
