# SPDX-License-Identifier: Apache-2.0
"""`elasticface study`: trains configs times seeds, and compares them."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elasticface_jax import missing
from elasticface_jax.commands import _paths, _processes
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.studies.variants import Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface study --config quickstart --vary '
    'loss.name=arcface,elastic_arcface --seeds 5 --out runs/losses'
  )
  parser.add_argument(
    '--config',
    action='append',
    type=_paths.text,
    required=True,
    metavar='RECIPE[:ARG]',
    help='a recipe, by name or file; once or more. --config.FIELD=VALUE '
    'changes a field in all of them',
  )
  parser.add_argument(
    '--vary',
    action='append',
    default=[],
    metavar='FIELD=V1,V2',
    help='values of a field: one config for each; several fields are combined',
  )
  parser.add_argument(
    '--seeds',
    type=int,
    required=True,
    metavar='N',
    help='how many; they are 0 to N - 1',
  )
  parser.add_argument(
    '--out',
    type=_paths.path,
    required=True,
    metavar='DIR',
    help='folder of the study; made if needed. The same command goes on in it',
  )
  parser.add_argument(
    '--only',
    metavar='NAME:SEED|NUMBER',
    help='do one run, as --list names it, such as arcface:3 or 7',
  )
  parser.add_argument(
    '--list',
    action='store_true',
    help='print all runs and their state, and train nothing',
  )
  _processes.add_arguments(parser)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Trains the runs of a study that are not finished, and analyses it.

  Args:
    args: of `add_arguments`.
    rest: changes to all configs, ``--config.FIELD=VALUE``.

  Raises:
    InputError: for a mistake in arguments, configs, data or folder, and after
      runs that failed.
    Stopped: after SIGTERM or Ctrl-C.
  """
  from elasticface_jax.studies import folder, sharing, variants, work

  if not 1 <= args.seeds < 2**31:
    raise InputError(f'--seeds {args.seeds}: give 1 or more')
  seeds = range(args.seeds)
  configs = _configs(args, rest)
  runs = variants.runs(configs, seeds)
  only = None if args.only is None else variants.choose(runs, args.only)
  if args.list:
    print(work.listing(args.out, [only] if only else runs))
    return
  # Imported by the first batch; too late, as the run folder is made before.
  missing.check('tensorflow')

  def do():
    from elasticface_jax.training import processes

    _check_processes(only is not None)
    processes.say(sharing.describe([c.fields for c in configs], len(seeds)))
    # Before study.json says so.
    work.check_steps(args.out, runs)
    if processes.is_first():
      folder.join(args.out, configs, seeds)
    if only is None:
      work.do_all(args.out, runs)
    else:
      work.do_one(args.out, runs, only)

  _processes.run(args, do)


def _configs(args: argparse.Namespace, rest: Sequence[str]) -> 'list[Variant]':
  """Returns the configs of the command line, checked against the folder."""
  from elasticface_jax.studies import folder, variants

  configs = variants.make(args.config, rest, args.vary)
  if not args.list:  # That writes nothing.
    folder.check_place(args.out, configs)
  study = folder.read(args.out)
  configs = folder.named_as_before(study, configs)
  folder.grown(args.out, study, configs, range(args.seeds))
  return configs


def _check_processes(has_only: bool) -> None:
  """Raises an InputError where several processes would do a whole study."""
  import jax

  if jax.process_count() > 1 and not has_only:
    raise InputError(
      f'{jax.process_count()} processes work together in one run: give --only '
      'NAME:SEED or a number, as --list prints them; processes that do not '
      'know each other share a study without it'
    )
