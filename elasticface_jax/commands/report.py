# SPDX-License-Identifier: Apache-2.0
"""`elasticface report`: one page of runs side by side, or of a study."""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    help='run folder, or a folder of `evaluate --out`; several are compared; '
    'or one folder of `study`',
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
    InputError: for a folder that is no run or study, a study beside others,
      or a file that cannot be written.
  """
  if args.out.suffix.lower() not in ('.html', '.htm'):
    raise InputError(
      f'--out {args.out}: give a name that ends in .html, such as report.html'
    )
  atomic.check_file(args.out, '--out')
  from elasticface_jax import report

  studies = [folder for folder in args.folders if report.is_study(folder)]
  if studies:
    _write_study(studies[0], args)
  else:
    _write_runs(args)
  print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')


def _write_study(folder: Path, args: argparse.Namespace) -> None:
  from elasticface_jax import report

  if len(args.folders) > 1:
    raise InputError(
      f'{folder} is a study, which has a page of its own: give it alone, or '
      f'runs of it such as {folder}/NAME/seed_0'
    )
  study = report.read_study(folder)
  for note in study.notes:
    print(f'{folder}: {note}')
  report.write_study(study, args.out)


def _write_runs(args: argparse.Namespace) -> None:
  from elasticface_jax import report

  runs = report.read_runs(args.folders)
  for one in runs:
    for note in one.notes:
      print(f'{one.folder}: {note}')
    for result in one.results.values():
      for note in result.notes:
        print(f'{one.folder}, {result.name}: {note}')
  report.write(runs, args.out)
