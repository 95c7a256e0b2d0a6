# SPDX-License-Identifier: Apache-2.0
"""`elasticface embed`: writes the embeddings of all images of a data set."""

from __future__ import annotations

import argparse
import mimetypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _checkpoint, _faces, _paths
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

  from elasticface_jax.weights import Embedder

# Images that are read at a time are this many evaluation batches, which is how
# many all devices take at a time, at least.
_BATCHES = 8
# Files that tell a data set from a folder of images.
_DATA_SETS = 'train.rec', 'dataset_info.json'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface embed DATA --checkpoint runs/q --out embeddings'
  )
  parser.add_argument(
    'data',
    type=_paths.text,
    metavar='DATA',
    help='data set, as for inspect; pair set, .bin or .npz; folder of images; '
    'or one image. Faces are aligned, 112x112, unless --landmarks or --detect '
    'aligns them',
  )
  _checkpoint.add_network(parser, required=True)
  _checkpoint.add_step(parser)
  _checkpoint.add_file(parser)
  _faces.add_arguments(parser, skip=True)
  parser.add_argument(
    '--out',
    required=True,
    type=_paths.path,
    metavar='DIR',
    help='folder to make, for embeddings.npy (float32; the sum of the '
    'embeddings of an image and of its mirror image, not normalised), '
    'labels.npy or same.npy, images.tsv (names of images and people), '
    'metadata.json, and landmarks.tsv of photographs',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the embeddings, and prints where they are."""
  atomic.check_unused(args.out, '--out')
  begin = time.perf_counter()
  asked = _faces.alignment(args)
  embed(_checkpoint.open_network(args), args.data, args.out, asked)
  *names, last = sorted(path.name for path in args.out.iterdir())
  seconds = terminal.duration(time.perf_counter() - begin)
  print(f'{", ".join(names)} and {last} are in {args.out}; it took {seconds}')


class _Images(NamedTuple):
  """Images to embed, in their order.

  Attributes:
    count: number n of images.
    batches: slices of ``range(n)``, and the images there, uint8
      ``[b, 112, 112, 3]``.
    truth: arrays to write, by name; complete once all batches are read.
    columns: of images.tsv.
    rows: of images.tsv, one for each image; to be read after the batches.
    landmarks: text of landmarks.tsv; empty for faces that were aligned.
  """

  count: int
  batches: Iterator[tuple[slice, np.ndarray]]
  truth: dict[str, np.ndarray]
  columns: Sequence[str]
  rows: Iterator[tuple[str, ...]]
  landmarks: str = ''


def embed(
  network: Embedder,
  source: str | os.PathLike[str],
  out: str | os.PathLike[str],
  alignment: _faces.Alignment | None = None,
) -> None:
  """Writes the embeddings of all images of a data set or a pair set.

  Makes a folder with ``embeddings.npy``, float32 ``[n, D]``: for each image the
  sum of its embedding and its mirror image's, not normalised, as verification
  takes them; ``labels.npy``, int32 ``[n]``, of a data set, or ``same.npy``,
  bool ``[n / 2]``, of a pair set; ``images.tsv``, but for a pair set, whose
  images have no names: a line for each image, with its name and, of a data set,
  its label and the name of the person; ``metadata.json``; and of photographs
  ``landmarks.tsv``, the points that they were aligned by. Images keep the order
  of the data; those of a folder are sorted by name.

  Args:
    network: from `weights.open_embedder`.
    source: a data set, as for `data.open_encoded`, a pair set, a folder of
      images, or an image.
    out: the folder; not there yet, or empty.
    alignment: how to align photographs; None for faces that are aligned.

  Raises:
    InputError: if the data or the folder cannot be used.
  """
  import jax
  import numpy as np

  from elasticface_jax import embeddings
  from elasticface_jax.data.sources.encoded import counted
  from elasticface_jax.training import checkpoint

  size = max(_BATCHES, jax.device_count()) * network.eval_rows
  images = _open(os.fspath(source), size, alignment)
  with atomic.folder(Path(out), '--out') as partial:
    written = np.lib.format.open_memmap(
      partial / 'embeddings.npy',
      mode='w+',
      dtype=np.float32,
      shape=(images.count, network.embedding_dim),
    )
    print(
      f'embedding {counted(images.count, "image")} with {network.title}; the '
      'first may take longer ...',
      flush=True,
    )
    with terminal.progress('images') as progress:
      progress(0, images.count)
      for places, batch in images.batches:
        written[places] = network.embed(batch)
        progress(places.stop, images.count)
    written.flush()
    for name, values in images.truth.items():
      np.save(partial / f'{name}.npy', values)
    if images.columns:
      with open(partial / 'images.tsv', 'w', encoding='utf-8') as table:
        for row in (images.columns, *images.rows):
          table.write('\t'.join(map(embeddings.escaped, row)) + '\n')
    if images.landmarks:
      (partial / 'landmarks.tsv').write_text(images.landmarks, encoding='utf-8')
    checkpoint.write_json(
      partial / 'metadata.json', network.describe() | {'data': str(source)}
    )


def _open(
  source: str, size: int, alignment: _faces.Alignment | None
) -> _Images:
  """Opens whatever holds images, to be read `size` images at a time."""
  from elasticface_jax import data

  path = Path(source)
  if data.is_remote(source):
    return _of_data_set(source, size, alignment)
  if path.is_file() and not _is_image(path):
    if alignment is not None:
      raise InputError(
        f'{source} is a pair set, whose faces are aligned and have no names; '
        'leave --landmarks and --detect out, or make one of photographs by '
        'elasticface prepare --list'
      )
    return _of_pairs(path, size)
  if path.is_file() or (path.is_dir() and _is_flat(path)):
    return _of_files(path, size, alignment)
  return _of_data_set(source, size, alignment)


def _is_flat(folder: Path) -> bool:
  """Tells whether a folder holds images and no folders, and is no data set."""
  if any((folder / name).exists() for name in _DATA_SETS):
    return False
  names = [path for path in folder.iterdir() if not path.name.startswith('.')]
  return not any(path.is_dir() for path in names) and any(map(_is_image, names))


def _is_image(path: Path) -> bool:
  """Tells whether a name is that of an image, of any format."""
  kind, _ = mimetypes.guess_type(path.name, strict=False)
  return (kind or '').startswith('image/')


def _of_data_set(
  source: str, size: int, alignment: _faces.Alignment | None
) -> _Images:
  import numpy as np

  from elasticface_jax import data

  opened, landmarks = data.open_encoded(source), ''
  if alignment is not None:
    opened, landmarks = _faces.aligned(alignment, opened)
  labels = np.zeros(opened.num_images, np.int32)

  def read():
    for batch in data.all_in_order(opened, batch_size=size):
      first, last = batch.indices[[0, -1]].tolist()
      labels[first : last + 1] = batch.labels
      yield slice(first, last + 1), batch.images

  def rows():
    for index, label in enumerate(labels.tolist()):
      yield opened.image_name(index), str(label), opened.class_name(label)

  columns, truth = ('image', 'label', 'person'), {'labels': labels}
  return _Images(opened.num_images, read(), truth, columns, rows(), landmarks)


def _of_pairs(path: Path, size: int) -> _Images:
  from elasticface_jax import data
  from elasticface_jax.embeddings import slices

  pairs = data.read_pairs(path)
  count = len(pairs.images)
  batches = ((s, pairs.images[s]) for s in slices(count, size))
  return _Images(count, batches, {'same': pairs.same}, (), iter(()))


def _of_files(
  path: Path, size: int, alignment: _faces.Alignment | None
) -> _Images:
  import numpy as np

  from elasticface_jax import data
  from elasticface_jax.embeddings import slices

  files = data.list_images(path)
  if alignment is None:
    # Twice, since a bad file should end the command before its work, not after.
    for file in files:
      _faces.read_face(file)
    names, landmarks = [file.name for file in files], ''
    read = lambda index: _faces.read_face(files[index])
  else:
    names, read, landmarks = _faces.aligned_files(alignment, files, str(path))
  batches = (
    (s, np.stack([read(index) for index in range(s.start, s.stop)]))
    for s in slices(len(names), size)
  )
  rows = ((name,) for name in names)
  return _Images(len(names), batches, {}, ('image',), rows, landmarks)
