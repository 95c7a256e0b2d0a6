# SPDX-License-Identifier: Apache-2.0
"""`elasticface fingerprint`: prints the SHA-256 of a train state."""

import argparse
import os
from collections.abc import Sequence

from elasticface_jax.commands import _checkpoint, _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.add_argument(
    'workdir',
    type=_paths.path,
    metavar='W',
    help='run folder of train or convert',
  )
  _checkpoint.add_step(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Prints the fingerprint."""
  # Nothing is computed, so no accelerator is taken from a run that needs it.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from elasticface_jax.training import checkpoint

  _, fingerprint = checkpoint.fingerprint(args.workdir, args.step)
  print(fingerprint)
