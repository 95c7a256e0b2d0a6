# SPDX-License-Identifier: Apache-2.0
"""Arguments `--coordinator`, `--processes`, `--process`, and their work."""

import argparse
from collections.abc import Callable

from elasticface_jax import exit_codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments, in a group of their own."""
  several = parser.add_argument_group(
    'several processes', 'Found by jax on TPU pods, SLURM and Open MPI.'
  )
  several.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='address of process 0, with a free port',
  )
  several.add_argument(
    '--processes', type=int, metavar='N', help='number of processes'
  )
  several.add_argument(
    '--process', type=int, metavar='I', help='index of this one, from 0'
  )


def run(args: argparse.Namespace, work: Callable[[], None]) -> None:
  """Joins the other processes if there are any, works, and leaves them.

  Args:
    args: of `add_arguments`.
    work: what all processes do; it outlives its output.

  Raises:
    InputError: for a mistake in the arguments, or from `work` where there are
      no others. Otherwise the process ends here after an error.
    Stopped: likewise.
  """
  from elasticface_jax import terminal
  from elasticface_jax.training import processes

  with terminal.lasting_output():
    if not processes.start(args.coordinator, args.processes, args.process):
      work()
      return
    code = 1
    try:
      code = exit_codes.run(work, who=processes.name())
    except Exception as error:
      exit_codes.fail(processes.lost(error), who=processes.name())
    finally:
      processes.leave(code)
