# SPDX-License-Identifier: Apache-2.0
"""`elasticface <command>`: a mistake ends in one line and exit code 2.

Commands import what they need when they run, so that `--help` is quick and
`inspect` needs no accelerator.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from elasticface_jax import __version__, recipes
from elasticface_jax.benchmark import command as benchmark
from elasticface_jax.benchmark import recipe
from elasticface_jax.errors import InputError

# XLA's CPU backend splits sums by the number of threads it thinks it has, so
# their last bit would tell the number of cores and of fake devices. One number
# for all; it also is what keeps many fake devices on few cores from starving
# each other. Read when jax is first imported.
CPU_THREADS = '32'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 0 for success only; 2 for a user's mistake; 128 + signal for a
    run that was stopped and has saved its state.
  """
  os.environ.setdefault('PJRT_NPROC', CPU_THREADS)
  # Orbax logs through absl what is told here in one line.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  args, rest = _parser().parse_known_args(argv)
  if rest and args.command != 'train':
    return _complain(
      f'unknown argument {rest[0]!r}; see elasticface {args.command} --help'
    )
  return _exit_code(lambda: args.run(args, rest))


def _exit_code(run: Callable[[], None], who: str = '') -> int:
  """Runs something; what goes wrong becomes one line and a number."""
  code = 2
  try:
    run()
    return 0
  except InputError as error:
    what = error
  except KeyboardInterrupt:
    what, code = 'interrupted', 130
  except OSError as error:
    if not error.filename:
      raise
    what = f'{error.filename}: {error.strerror}'
  except Exception as error:
    if not hasattr(error, 'exit_code'):
      raise
    what, code = error, error.exit_code  # A run that stopped in order.
  return _complain(what, code, who)


def _complain(what: object, code: int = 2, who: str = '') -> int:
  line = ' '.join(str(what).split())
  print(f'elasticface{who}: {line}', file=sys.stderr)
  return code


class _Parser(argparse.ArgumentParser):
  """One line for a mistake, as for all others, instead of the usage."""

  def error(self, message):
    raise SystemExit(_complain(f'{message}; see {self.prog} --help'))


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='elasticface', description='ElasticFace for JAX.')
  parser.add_argument('--version', action='version', version=__version__)
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='command', parser_class=_Parser
  )

  def command(name, run, text):
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    return sub

  sub = command(
    'train', _train, 'Train a recipe, or go on where its folder stands.'
  )
  sub.add_argument(
    '--config',
    required=True,
    metavar='RECIPE[:ARG]',
    help='name or file of a recipe; override any field with '
    '--config.field=value',
  )
  sub.add_argument(
    '--workdir', type=Path, help='run folder; required unless --print is given'
  )
  sub.add_argument(
    '--print',
    action='store_true',
    help='print the resulting config, one field a line, and train nothing',
  )
  several = sub.add_argument_group(
    'several processes', 'Found by jax on TPU pods, SLURM and Open MPI.'
  )
  several.add_argument(
    '--coordinator', metavar='HOST:PORT', help='of process 0; a free port'
  )
  several.add_argument('--processes', type=int, help='how many there are')
  several.add_argument('--process', type=int, help='which one this is, from 0')

  def add_checkpoint(sub):
    sub.add_argument(
      '--checkpoint',
      required=True,
      type=Path,
      help="run folder, or a backbone of PyTorch's, .pth",
    )
    sub.add_argument(
      '--step', type=int, help='which checkpoint; newest if unset'
    )

  sub = command(
    'evaluate', _evaluate, 'Verify pair sets with a trained backbone.'
  )
  add_checkpoint(sub)
  sub.add_argument(
    '--pairs',
    required=True,
    action='append',
    help="a file of pairs, .bin or .npz, or 'synthetic'; repeat for more",
  )
  sub.add_argument('--out', type=Path, help='folder for JSON and plots')

  sub = command(
    'embed', _embed, 'Write the embeddings of all images of a data set.'
  )
  sub.add_argument(
    'data', help='data set, as for inspect; or a file of pairs, .bin or .npz'
  )
  add_checkpoint(sub)
  sub.add_argument(
    '--out', required=True, type=Path, help='folder to make, for .npy files'
  )

  sub = command(
    'convert', _convert, "Make a run folder out of PyTorch's weights."
  )
  sub.add_argument(
    'file', type=Path, help='backbone of ElasticFace or arcface_torch, .pth'
  )
  sub.add_argument(
    '--workdir', required=True, type=Path, help='run folder to make'
  )
  sub.add_argument(
    '--head',
    action='append',
    default=[],
    type=Path,
    help='class centres too; repeat for the files of further ranks',
  )

  sub = command('export', _export, 'Write a backbone for others to run.')
  add_checkpoint(sub)
  sub.add_argument(
    '--format',
    required=True,
    choices=('torch', 'onnx', 'stablehlo'),
    help="PyTorch's state_dict, or a network with its weights",
  )
  sub.add_argument('--out', required=True, type=Path, help='file to write')

  sub = command(
    'fingerprint',
    _fingerprint,
    'Print the SHA-256 of a train state; devices and hosts do not enter it.',
  )
  sub.add_argument('workdir', type=Path, help='run folder of `train`')
  sub.add_argument('--step', type=int, help='which checkpoint; newest if unset')

  sub = command(
    'inspect', _inspect, 'Check every image of a data set or a pair set.'
  )
  sub.add_argument(
    'data',
    help='folder with train.rec, shards, or a folder of images a person; '
    'or a file of pairs, .bin or .npz',
  )
  sub.add_argument(
    '--out', type=Path, help='folder for the report as JSON and a histogram'
  )
  sub.add_argument(
    '--fix',
    type=Path,
    metavar='OUT',
    help='write what is whole, once each, to a new .rec folder',
  )

  sub = command(
    'prepare',
    _prepare,
    'Write a data set as shards, or a pair set as one file, and read it back.',
  )
  sub.add_argument(
    'source',
    help='data set, as for inspect; or a .bin; or, with --list, a folder with '
    'the images of each person',
  )
  sub.add_argument(
    'out', type=Path, help='folder to make; or file, .npz or .bin'
  )
  sub.add_argument(
    '--format',
    default='tfrecord',
    choices=('tfrecord', 'array_record'),
    help='of the shards; tfrecord if unset',
  )
  sub.add_argument(
    '--shards', type=int, help='how many; one for 256 MB if unset'
  )
  sub.add_argument(
    '--list',
    type=Path,
    metavar='PAIRS.TXT',
    help="the pairs to make, in the form of LFW's pairs.txt",
  )

  sub = command(
    'benchmark', _benchmark, 'Measure steps, head, loop and input here.'
  )
  benchmark.add_arguments(sub)
  return parser


def _train(args, rest):
  if not args.print and args.workdir is None:
    raise InputError(
      'the following arguments are required: --workdir; see elasticface train '
      '--help'
    )
  config = load_config(args.config, rest)
  if args.print:
    print(recipes.as_text(config))
    return
  from elasticface_jax import experiment
  from elasticface_jax.training import processes

  if not processes.start(args.coordinator, args.processes, args.process):
    experiment.train(config, args.workdir)
    return
  code = 1
  try:
    code = _exit_code(
      lambda: experiment.train(config, args.workdir), who=processes.name()
    )
  except Exception as error:
    _complain(processes.lost(error), who=processes.name())
  finally:
    processes.leave(code)


def _evaluate(args, rest):
  from elasticface_jax import experiment

  weights = _open_weights(args)
  experiment.evaluate(weights, args.pairs, out=args.out)


def _embed(args, rest):
  from elasticface_jax import experiment

  experiment.embed(_open_weights(args), args.data, args.out)
  print(f'embeddings.npy and what belongs to it are in {args.out}')


def _convert(args, rest):
  from elasticface_jax import weights

  made = weights.convert(args.file, args.workdir, heads=args.head)
  print(f'{made.model["name"]} in {args.workdir}')


def _export(args, rest):
  from elasticface_jax import weights

  weights.export(_open_weights(args), args.out, file_format=args.format)
  print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')


def _open_weights(args):
  from elasticface_jax import weights

  return weights.open_weights(args.checkpoint, args.step)


def _fingerprint(args, rest):
  # Nothing is computed: no accelerator is taken from a run that goes on.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from elasticface_jax.training import checkpoint

  _, fingerprint = checkpoint.fingerprint(args.workdir, args.step)
  print(fingerprint)


def _inspect(args, rest):
  from elasticface_jax import data

  with _progress('images') as progress:
    report = data.inspect(args.data, progress, args.fix)
  print(report)
  if args.out:
    _write_report(report, args.out)
  if not report.ok and args.fix is None:
    raise InputError(
      f'{args.data} is not sound; the lines above say where, and --fix OUT '
      'writes what is'
    )


def _prepare(args, rest):
  from elasticface_jax import data

  if args.list or Path(args.source).is_file():
    if args.list:
      pairs = data.pairs_from_folder(
        args.source, data.read_pair_list(args.list)
      )
    else:
      pairs = data.read_encoded(Path(args.source))
    data.write_pairs(args.out, *pairs)
    print(data.inspect(args.out))
    return
  with _progress('images') as progress:
    prepared = data.prepare_shards(
      data.open_encoded(args.source),
      args.out,
      file_format=args.format,
      num_shards=args.shards,
      progress=progress,
    )
  print(prepared)


def _benchmark(args, rest):
  config = None
  if args.config:
    # A run folder has its config as JSON, which needs no ml_collections.
    config = recipe.read_saved(args.config)
    if config is None:
      config = load_config(args.config, ()).to_dict()
  benchmark.run(args, config)


def _write_report(report, out: Path):
  import json

  from elasticface_jax.data.tools import plots

  out.mkdir(parents=True, exist_ok=True)
  (out / 'inspection.json').write_text(json.dumps(report.as_dict(), indent=1))
  if len(report.images_per_class):
    plots.plot_images_per_class(
      report.images_per_class,
      Path(report.title).name,
      out / 'images_per_class.png',
    )


@contextlib.contextmanager
def _progress(unit: str):
  """A bar on a terminal, as a function of what is done and of all."""
  import tqdm

  with tqdm.tqdm(unit=f' {unit}', disable=None) as bar:

    def progress(done, total):
      bar.total = total
      bar.update(done - bar.n)

    yield progress


def load_config(file: str, overrides: Sequence[str]):
  """Loads a recipe and applies what the command line changes in it."""
  return recipes.load(file, overrides)


if __name__ == '__main__':
  sys.exit(main())
