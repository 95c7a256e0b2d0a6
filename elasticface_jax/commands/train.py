# SPDX-License-Identifier: Apache-2.0
"""`elasticface train`: trains a recipe, or resumes the run in a folder."""

import argparse
from collections.abc import Sequence

from elasticface_jax import missing
from elasticface_jax.commands import _paths, _processes
from elasticface_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface train --config quickstart --workdir runs/q '
    '--config.optim.lr=0.4'
  )
  parser.add_argument(
    '--config',
    type=_paths.text,
    required=True,
    metavar='RECIPE[:ARG]',
    help='a recipe, by name or file; --config.FIELD=VALUE changes a field',
  )
  parser.add_argument(
    '--workdir',
    type=_paths.path,
    metavar='W',
    help='run folder; made if needed',
  )
  parser.add_argument(
    '--print',
    action='store_true',
    help='print the resulting config, every field of it, and train nothing',
  )
  _processes.add_arguments(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Trains.

  Args:
    args: of `add_arguments`.
    rest: changes to the config, ``--config.FIELD=VALUE``.

  Raises:
    InputError: for a mistake in arguments, config, data or folder.
    Stopped: after SIGTERM or Ctrl-C.
  """
  from elasticface_jax import recipes

  if args.workdir is None and not args.print:
    raise InputError(
      'the following arguments are required: --workdir; see elasticface train '
      '--help'
    )
  config = recipes.load(args.config, rest)
  if args.print:
    print(recipes.as_text(config))
    return
  # Imported by the first batch; too late, as the run folder is made before.
  missing.check('tensorflow')
  from elasticface_jax.train import train

  _processes.run(args, lambda: train(config, args.workdir))
