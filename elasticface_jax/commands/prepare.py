# SPDX-License-Identifier: Apache-2.0
"""`elasticface prepare`: writes a data set as shards, or a pair set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _faces, _paths
from elasticface_jax.errors import InputError


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
  _faces.add_arguments(parser, skip=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the shards or the pair set, reads them back and prints a summary."""
  from elasticface_jax import data

  if args.list or data.is_pair_set(args.source):
    _prepare_pairs(args)
  else:
    _prepare_shards(args)


def _prepare_pairs(args: argparse.Namespace) -> None:
  from elasticface_jax import data

  asked = _faces.alignment(args)
  if asked is not None and not args.list:
    raise InputError(
      f'{args.source} is a pair set, whose faces are aligned; leave '
      '--landmarks and --detect out, or give a folder of photographs and --list'
    )
  if asked is not None and asked.skip is not None:
    raise InputError(
      f'--skip {asked.skip}: a pair set keeps all of its pairs; give a --list '
      'without the others'
    )
  if not args.list:
    pairs = data.read_encoded(args.source)
  elif asked is None:
    pairs = data.pairs_from_folder(args.source, data.read_pair_list(args.list))
  else:
    pairs = _aligned_pairs(args, asked)
  data.write_pairs(args.out, *pairs)
  print(data.inspect(args.out))


def _aligned_pairs(args: argparse.Namespace, asked: _faces.Alignment):
  """Aligns the photographs of listed pairs; returns as `pairs_from_folder`."""
  from elasticface_jax import alignment, data
  from elasticface_jax.alignment import source

  pair_list, folder = data.read_pair_list(args.list), Path(args.source)
  files = data.paired_files(folder, pair_list)
  paths = list(files.values())
  names = [path.relative_to(folder).as_posix() for path in paths]
  photographs = source.Files(paths, names)
  found = _faces.search(asked, photographs, args.source)
  faces = {
    image: source.encode_png(
      alignment.align(photographs.read(index), found.points[index])
    )
    for index, image in enumerate(files)
  }
  return data.in_pairs(faces, pair_list)


def _prepare_shards(args: argparse.Namespace) -> None:
  from elasticface_jax import data

  asked = _faces.alignment(args)
  opened = data.open_encoded(args.source)
  if asked is not None:
    data.check_shards(args.out, args.format)  # Before hours of detection.
    opened, landmarks = _faces.aligned(asked, opened)
    if args.detect:
      path = args.out.with_name(f'{args.out.name}.landmarks.tsv')
      with atomic.file(path) as part:
        part.write_text(landmarks, encoding='utf-8')
      print(f'the points are in {path}, which --landmarks takes', flush=True)
  with terminal.progress('images') as progress:
    prepared = data.prepare_shards(
      opened,
      args.out,
      file_format=args.format,
      num_shards=args.shards,
      progress=progress,
    )
  print(prepared)
