# SPDX-License-Identifier: Apache-2.0
"""`elasticface prepare`: writes a data set as shards, or a pair set."""

import argparse
from collections.abc import Sequence

from elasticface_jax import terminal
from elasticface_jax.commands import _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = 'example: elasticface prepare DATA shards'
  parser.add_argument(
    'source',
    type=_paths.text,
    metavar='SOURCE',
    help='data set, as for inspect; or a pair set, .bin or .npz; or, with '
    '--list, a folder with the images of each person',
  )
  parser.add_argument(
    'out',
    type=_paths.path,
    metavar='OUT',
    help='folder to make; or file, .npz or .bin',
  )
  parser.add_argument(
    '--format',
    default='tfrecord',
    choices=('tfrecord', 'array_record'),
    help='format of the shards; default: tfrecord',
  )
  parser.add_argument(
    '--shards',
    type=int,
    metavar='N',
    help='number of shards; default: one for each 256 MB',
  )
  parser.add_argument(
    '--list',
    type=_paths.path,
    metavar='PAIRS.TXT',
    help="pairs to make, in the format of LFW's pairs.txt",
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the shards or the pair set, reads them back and prints a summary."""
  from elasticface_jax import data

  if args.list or data.is_pair_set(args.source):
    _prepare_pairs(args)
  else:
    _prepare_shards(args)


def _prepare_pairs(args: argparse.Namespace) -> None:
  from elasticface_jax import data

  if args.list:
    pairs = data.pairs_from_folder(args.source, data.read_pair_list(args.list))
  else:
    pairs = data.read_encoded(args.source)
  data.write_pairs(args.out, *pairs)
  print(data.inspect(args.out))


def _prepare_shards(args: argparse.Namespace) -> None:
  from elasticface_jax import data

  with terminal.progress('images') as progress:
    prepared = data.prepare_shards(
      data.open_encoded(args.source),
      args.out,
      file_format=args.format,
      num_shards=args.shards,
      progress=progress,
    )
  print(prepared)
