# SPDX-License-Identifier: Apache-2.0
"""`elasticface repeat`: trains a run again and compares it bit for bit."""

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax import atomic, exit_codes, missing, terminal
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.repeat.expected import Expected

# Flags of the repetition, and flags of the file that `--pack` writes.
_OF_TRAINING = ('steps', 'data', 'start', 'workdir', 'anyway', 'requirements')
_OF_PACK = ('out', 'every')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface repeat --pack runs/q --out q.repeat, and elsewhere: '
    'elasticface repeat q.repeat. Exit code 0 for the same bits, 1 for '
    'different ones, 2 for a mistake.'
  )
  parser.add_argument(
    'run_path',
    type=_paths.path,
    metavar='W|FILE',
    help='run folder that has ended or begun, or a file of --pack',
  )
  parser.add_argument(
    '--steps',
    type=int,
    metavar='N',
    help='train the first N steps alone; default: all that are recorded',
  )
  parser.add_argument(
    '--data',
    type=_paths.text,
    metavar='PATH',
    help='the images that it was trained on, where they are elsewhere',
  )
  parser.add_argument(
    '--start',
    type=_paths.text,
    metavar='PATH',
    help='the weights that it began with, where they are elsewhere',
  )
  parser.add_argument(
    '--workdir',
    type=_paths.path,
    metavar='W2',
    help='folder to train in, which is kept, and resumed by the same command; '
    'default: a temporary one, kept if bits differ',
  )
  parser.add_argument(
    '--anyway',
    action='store_true',
    help='train and compare although software, devices or data differ',
  )
  parser.add_argument(
    '--requirements',
    action='store_true',
    help='print the packages of the run, for `pip install -r`',
  )
  pack = parser.add_argument_group('a file for others')
  pack.add_argument(
    '--pack',
    action='store_true',
    help='write what a stranger needs to repeat the run, and train nothing',
  )
  pack.add_argument(
    '--out', type=_paths.path, metavar='FILE', help='the file; it is replaced'
  )
  pack.add_argument(
    '--every',
    type=int,
    metavar='K',
    help='of the records, take those of every K steps, the first and the last',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Repeats a run, or writes a file from which others can.

  Raises:
    InputError: for a mistake.
    Stopped: after SIGTERM or Ctrl-C.
    SystemExit: with `exit_codes.DIFFERENT`, if bits differ.
  """
  _check_flags(args)
  if args.pack:
    _pack(args.run_path, args.out, args.every or 0)
    return
  expected = _read(args.run_path)
  if args.requirements:
    if not expected.requirements:
      raise InputError(
        f'{args.run_path} has not recorded its packages: it is of an older '
        'version; its manifest has the versions of some'
      )
    print('\n'.join(expected.requirements))
    return
  missing.check('tensorflow')
  _set_threads(expected)
  from elasticface_jax.repeat import work

  options = work.Options(
    args.steps, args.data, args.start, args.workdir, args.anyway
  )
  with terminal.lasting_output():
    same = work.repeat(expected, options)
  if not same:
    raise SystemExit(exit_codes.DIFFERENT)


def _check_flags(args: argparse.Namespace) -> None:
  useless = _OF_TRAINING if args.pack else _OF_PACK
  given = [name for name in useless if getattr(args, name) not in (None, False)]
  if given:
    what = 'is not for --pack' if args.pack else 'is for --pack'
    raise InputError(f'--{given[0]} {what}; leave it out')
  if args.pack and args.out is None:
    raise InputError('--pack needs --out FILE')
  if args.every is not None and args.every < 1:
    raise InputError(f'--every {args.every}: give 1 or more')


def _read(path: Path) -> 'Expected':
  from elasticface_jax.repeat import expected, pack

  return pack.read(path) if path.is_file() else expected.read_folder(path)


def _set_threads(expected: 'Expected') -> None:
  """Gives XLA on a CPU as many threads as the run had; before jax starts."""
  threads = expected.starts[0].get('cpu_threads')
  if threads is None:  # As in a notebook that imported jax first.
    os.environ.pop('PJRT_NPROC', None)
    importlib.import_module('jax')  # From now on nothing sets it.
  else:
    os.environ['PJRT_NPROC'] = threads


def _pack(folder: Path, out: Path, every: int) -> None:
  """Writes the file and says what is in it."""
  # Nothing is computed, so no accelerator is taken from a run that needs it.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  atomic.check_file(out, '--out')
  from elasticface_jax.repeat import expected, pack
  from elasticface_jax.training import checkpoint

  run = expected.read_folder(folder)
  pack.check_recorded(run)
  steps = checkpoint.steps_in(folder / 'checkpoints')
  run = run._replace(
    fingerprints={s: checkpoint.fingerprint(folder, s)[1] for s in steps}
  )
  content = pack.make(run, every)
  pack.write(content, out)
  parts = [
    f'{len(content["sums"]):,} records of {len(content["tensors"]):,} tensors',
    f'{len(content["metrics"]):,} records of metrics',
    f'{len(steps)} fingerprints',
  ]
  if run.images:
    block = content['images']['block']
    what = f'blocks of {block:,} of ' if block > 1 else ''
    parts.append(f'hashes of {what}{run.images.num_images:,} images')
  print(f'{out}: {out.stat().st_size / 1e3:,.1f} kB: {", ".join(parts)}')
