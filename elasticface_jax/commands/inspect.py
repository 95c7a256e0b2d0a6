# SPDX-License-Identifier: Apache-2.0
"""`elasticface inspect`: checks every image of a data set or a pair set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = 'example: elasticface inspect DATA --fix CLEAN'
  parser.add_argument(
    'data',
    type=_paths.text,
    metavar='DATA',
    help='folder with train.rec, shards, or a folder of images for each '
    'person; or a pair set, .bin or .npz',
  )
  parser.add_argument(
    '--out',
    type=_paths.path,
    metavar='DIR',
    help='folder for the report as JSON and a histogram',
  )
  parser.add_argument(
    '--fix',
    type=_paths.path,
    metavar='DIR',
    help='new .rec folder for the intact images, each of them once; its '
    'labels.tsv has old and new label of every person',
  )
  parser.add_argument(
    '--renumber',
    action='store_true',
    help='labels 0, 1, ... without gaps in the new folder; default: the labels '
    'as they are',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints the report.

  Raises:
    InputError: if the data are damaged and ``--fix`` is not given, or the clean
      copy is not written.
  """
  from elasticface_jax import data

  if args.renumber and args.fix is None:
    raise InputError('--renumber is for the clean copy: give --fix DIR, too')
  if args.out:
    atomic.check_folder(args.out, '--out')  # Hours before it is written.
  try:
    with terminal.progress('images') as progress:
      report = data.inspect(args.data, progress, args.fix, args.renumber)
  except data.NotFixed as error:
    _show(error.report, args.out)
    raise
  _show(report, args.out)
  if not report.ok and args.fix is None:
    raise InputError(
      f'{args.data} is damaged, as reported above; --fix DIR writes the intact '
      'images'
    )


def _show(report, out: Path | None) -> None:
  from elasticface_jax import data

  print(report)
  if out:
    data.write_report(report, out)
