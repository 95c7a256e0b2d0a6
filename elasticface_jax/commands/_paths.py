# SPDX-License-Identifier: Apache-2.0
"""Types of arguments that are paths."""

import argparse
from pathlib import Path


def text(path: str) -> str:
  """Returns a path or an address as it was given.

  Raises:
    ArgumentTypeError: if it begins with a ``~`` that the shell left there, as
      in ``--workdir=~/run``; it would become a folder of that name.
  """
  if path.startswith('~'):
    raise argparse.ArgumentTypeError(
      f'the shell has not replaced the ~ of {path}; write $HOME'
    )
  return path


def path(path: str) -> Path:
  """Returns a path; see `text`."""
  return Path(text(path))
