# SPDX-License-Identifier: Apache-2.0
"""`elasticface embed`: writes the embeddings of all images of a data set."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _checkpoint, _faces, _images, _paths

if TYPE_CHECKING:
  from elasticface_jax.weights import Embedder

# Images that are read at a time are this many evaluation batches, which is how
# many all devices take at a time, at least.
_BATCHES = 8


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
  images = _images.open_images(os.fspath(source), size, alignment)
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
