# SPDX-License-Identifier: Apache-2.0
"""`elasticface inspect`: checks every image of a data set or a pair set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from elasticface_jax.commands import _progress
from elasticface_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = 'example: elasticface inspect DATA --fix CLEAN'
  parser.add_argument(
    'data',
    metavar='DATA',
    help='folder with train.rec, shards, or a folder of images for each '
    'person; or a pair set, .bin or .npz',
  )
  parser.add_argument(
    '--out',
    type=Path,
    metavar='DIR',
    help='folder for the report as JSON and a histogram',
  )
  parser.add_argument(
    '--fix',
    type=Path,
    metavar='DIR',
    help='new .rec folder for the intact images, each of them once',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints the report.

  Raises:
    InputError: if the data are damaged, and ``--fix`` is not given.
  """
  from elasticface_jax import data

  with _progress.bar('images') as progress:
    report = data.inspect(args.data, progress, args.fix)
  print(report)
  if args.out:
    data.write_report(report, args.out)
  if not report.ok and args.fix is None:
    raise InputError(
      f'{args.data} is damaged, as reported above; --fix DIR writes the intact '
      'images'
    )
