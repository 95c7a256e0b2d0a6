# SPDX-License-Identifier: Apache-2.0
"""Faces that commands read: aligned ones, or photographs to be aligned.

The arguments `--landmarks`, `--detect`, `--min-face` and `--skip`.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

  from elasticface_jax.alignment.source import Finder, Found, Photographs
  from elasticface_jax.data import EncodedSource

# Side of the square that becomes 112x112, in pixels. Below it, an error of one
# pixel in a landmark moves the aligned face by more than five.
_MIN_FACE = 20.0
_LISTED = 20  # Images that are named on the terminal.


class Alignment(NamedTuple):
  """An alignment that the arguments ask for.

  Attributes:
    finder: where points come from.
    min_face: least side of a face in a photograph, in pixels.
    skip: file for the list of what is left out; None to leave nothing out.
  """

  finder: Finder
  min_face: float
  skip: Path | None = None


def add_arguments(parser: argparse.ArgumentParser, *, skip: bool) -> None:
  """Adds the arguments; ``--skip`` where there are many images."""
  source = parser.add_mutually_exclusive_group()
  source.add_argument(
    '--landmarks',
    type=_paths.path,
    metavar='FILE',
    help='align photographs of any size by the five points of this file: '
    'lines with name, x1 y1 ... x5 y5 (eyes, nose, mouth corners, left first '
    'as seen in the image), separated by spaces, tabs or commas',
  )
  source.add_argument(
    '--detect',
    action='store_true',
    help='align photographs by the points that a detector finds (extra '
    '[detect])',
  )
  parser.add_argument(
    '--min-face',
    type=float,
    metavar='N',
    help='least side of a face in a photograph, in pixels; with --landmarks '
    f'or --detect; default: {_MIN_FACE:g}',
  )
  if skip:
    parser.add_argument(
      '--skip',
      type=_paths.path,
      metavar='FILE',
      help='leave out photographs that cannot be aligned, and list them in '
      'this file; without it they are an error',
    )
  else:
    parser.set_defaults(skip=None)


def alignment(args: argparse.Namespace) -> Alignment | None:
  """Opens what the arguments ask for; None for faces that are aligned.

  Raises:
    InputError: if they contradict each other, the file cannot be read, or the
      detector is not installed.
  """
  if args.landmarks is None and not args.detect:
    for name, value in (('--min-face', args.min_face), ('--skip', args.skip)):
      if value is not None:
        raise InputError(
          f'{name} {value} is for photographs; give --landmarks FILE or '
          '--detect too'
        )
    return None
  min_face = _MIN_FACE if args.min_face is None else args.min_face
  if not 0 <= min_face < float('inf'):
    raise InputError(f'--min-face {min_face:g}: a number of pixels, from 0 on')
  if args.skip is not None:
    atomic.check_file(args.skip, '--skip')
  return Alignment(_finder(args, min_face), min_face, args.skip)


def _finder(args: argparse.Namespace, min_face: float) -> Finder:
  from elasticface_jax import alignment
  from elasticface_jax.alignment import detector, source

  if args.landmarks is not None:
    return source.FromFile(alignment.read_landmarks(args.landmarks))
  return detector.mtcnn(min_face)


def read_face(file: Path, asked: Alignment | None = None) -> np.ndarray:
  """Reads one face.

  Args:
    file: a JPEG or PNG.
    asked: how to align it; None if it is aligned.

  Returns:
    RGB, uint8, ``[112, 112, 3]``.

  Raises:
    InputError: if it cannot be read, has another size, or cannot be aligned.
  """
  from elasticface_jax import alignment, data
  from elasticface_jax.alignment import source

  image = data.read_image(file)
  height, width, _ = image.shape
  if asked is None:
    if (height, width) != (alignment.SIZE, alignment.SIZE):
      raise InputError(
        f'{file}: the image is {width}x{height}, not 112x112; give aligned '
        'faces, or --landmarks FILE or --detect to align it'
      )
    return image
  try:
    if isinstance(asked.finder, source.FromFile):
      points = asked.finder.landmarks.find_file(file)
    else:
      points = asked.finder.find(str(file), image)
    alignment.check(points, (width, height), asked.min_face)
  except alignment.NotAligned as error:
    raise InputError(f'{file}: {error.problem}') from error
  return alignment.align(image, points)


def aligned(
  asked: Alignment, photographs: EncodedSource
) -> tuple[EncodedSource, str]:
  """Searches a data set of photographs, and opens the faces in it.

  Args:
    asked: how.
    photographs: the data set.

  Returns:
    The faces, and a table of the points that they are aligned by.

  Raises:
    InputError: as `search`.
  """
  from elasticface_jax.alignment import source

  found = search(asked, source.Encoded(photographs), photographs.path)
  faces = source.AlignedSource(photographs, found.points, found.kept)
  names = [faces.image_name(index) for index in range(faces.num_images)]
  return faces, _table(names, found)


def aligned_files(
  asked: Alignment, files: Sequence[Path], where: str
) -> tuple[list[str], Callable[[int], np.ndarray], str]:
  """Searches image files, and reads the faces in them.

  Args:
    asked: how.
    files: the files of one folder.
    where: the folder.

  Returns:
    Names of the k files that can be aligned; a function that reads one of the
    k faces, uint8, ``[112, 112, 3]``; and the table as of `aligned`.

  Raises:
    InputError: as `search`.
  """
  from elasticface_jax import alignment
  from elasticface_jax.alignment import source

  photographs = source.Files(files, [file.name for file in files])
  found = search(asked, photographs, where)
  kept = found.kept.tolist()

  def read(index):
    return alignment.align(
      photographs.read(kept[index]), found.points[kept[index]]
    )

  names = [photographs.name(index) for index in kept]
  return names, read, _table(names, found)


def _table(names: Sequence[str], found: Found) -> str:
  from elasticface_jax import alignment, embeddings

  return alignment.landmark_table(
    map(embeddings.escaped, names), found.points[found.kept]
  )


def search(asked: Alignment, photographs: Photographs, where: str) -> Found:
  """Finds the points of all photographs, and says which have none.

  Args:
    asked: how.
    photographs: the images.
    where: their folder, for messages.

  Returns:
    The points; with ``--skip`` some photographs may have none.

  Raises:
    InputError: if some cannot be aligned and there is no ``--skip``, or none
      can.
  """
  from elasticface_jax.alignment import source

  with terminal.progress('photographs') as progress:
    found = source.search(
      photographs, asked.finder, min_face=asked.min_face, progress=progress
    )
  names = [photographs.name(index) for index in range(len(photographs))]
  if isinstance(asked.finder, source.FromFile):
    landmarks = asked.finder.landmarks
    unused = landmarks.unused(names)
    if len(unused) == len(landmarks.names):
      raise InputError(
        f'{landmarks.path} has landmarks of none of the {len(names):,} images '
        f'in {where}: it has {landmarks.names[0]!a}, and they are called like '
        f'{names[0]!a}; give the folder that its names begin in'
      )
    if unused:
      print(
        f'{landmarks.path} has landmarks of {len(unused):,} images that are '
        f'not in {where}, such as {unused[0]!a}'
      )
  if found.problems:
    _report(asked, names, found)
  return found


def _report(asked: Alignment, names: Sequence[str], found: Found) -> None:
  """Lists what cannot be aligned, in a file or on stderr."""
  from elasticface_jax.embeddings import escaped

  counts = collections.Counter(p.kind for p in found.problems.values())
  kinds = ', '.join(f'{kind} ({n:,})' for kind, n in counts.most_common())
  what = (
    f'{len(found.problems):,} of {len(names):,} images cannot be aligned: '
    f'{kinds}'
  )
  rows = [(names[index], p.problem) for index, p in found.problems.items()]
  if asked.skip is None or len(rows) == len(names):
    for name, problem in rows[:_LISTED]:
      print(f'{escaped(name)}: {problem}', file=sys.stderr)
    if len(rows) > _LISTED:
      print(f'... and {len(rows) - _LISTED:,} more', file=sys.stderr)
    remedy = (
      'there is nothing left'
      if asked.skip
      else '--skip FILE leaves them out, and lists them there'
    )
    raise InputError(f'{what}; {remedy}')
  with atomic.file(asked.skip) as part:
    part.write_text(
      ''.join(f'{escaped(name)}\t{problem}\n' for name, problem in rows),
      encoding='utf-8',
    )
  print(f'{what}; they are left out, and listed in {asked.skip}')
