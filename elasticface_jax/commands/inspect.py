# SPDX-License-Identifier: Apache-2.0
"""`elasticface inspect`: checks every image of a data set or a pair set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax.commands import _progress
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.data import Report


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
    _write_report(report, args.out)
  if not report.ok and args.fix is None:
    raise InputError(
      f'{args.data} is damaged, as reported above; --fix DIR writes the intact '
      'images'
    )


def _write_report(report: Report, out: Path) -> None:
  from elasticface_jax import atomic
  from elasticface_jax.data.tools import plots

  out.mkdir(parents=True, exist_ok=True)
  with atomic.file(out / 'inspection.json') as part:
    part.write_text(json.dumps(report.as_dict(), indent=1))
  if len(report.images_per_class):
    plots.plot_images_per_class(
      report.images_per_class,
      Path(report.title).name,
      out / 'images_per_class.png',
    )
