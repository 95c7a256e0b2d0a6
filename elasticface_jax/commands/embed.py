# SPDX-License-Identifier: Apache-2.0
"""`elasticface embed`: writes the embeddings of all images of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elasticface_jax.commands import _checkpoint

if TYPE_CHECKING:
  from elasticface_jax.weights import Weights

# Images that are read at a time, at least.
_BATCH = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface embed DATA --checkpoint runs/q --out embeddings'
  )
  parser.add_argument(
    'data',
    metavar='DATA',
    help='data set, as for inspect, or pair set, .bin or .npz',
  )
  _checkpoint.add_arguments(parser)
  parser.add_argument(
    '--out',
    required=True,
    type=Path,
    metavar='DIR',
    help='folder to make, for embeddings.npy (float32; the sum of the '
    'embeddings of an image and of its mirror image, not normalised), '
    'labels.npy or same.npy, and metadata.json',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Writes the embeddings, and prints where they are."""
  embed(_checkpoint.open_weights(args), args.data, args.out)
  print(f'embeddings.npy, its labels and metadata.json are in {args.out}')


def embed(weights: Weights, source: str, out: Path) -> None:
  """Writes the embeddings of all images of a data set or a pair set.

  Makes a folder with ``embeddings.npy``, float32 ``[n, D]``: for each image the
  sum of its embedding and its mirror image's, not normalised, as verification
  takes them; ``labels.npy``, int32 ``[n]``, or for a pair set ``same.npy``,
  bool ``[n / 2]``; and ``metadata.json``. Images keep the order of the data.

  Args:
    weights: the backbone.
    source: a data set, as for `data.open_encoded`, or a pair set.
    out: the folder; not there yet, or empty.

  Raises:
    InputError: if the data or the folder cannot be used.
  """
  import jax
  import numpy as np

  from elasticface_jax import atomic, data
  from elasticface_jax.training import checkpoint

  if not data.is_remote(source) and Path(source).is_file():
    pairs = data.open_pairs(source, num_pairs=0, seed=0)
    num_images, truth = len(pairs.images), {'same': pairs.same}
    batches = [(slice(num_images), pairs.images)]
  else:
    opened = data.open_encoded(source)
    num_images = opened.num_images
    truth = {'labels': np.zeros(num_images, np.int32)}

    def read():
      size = max(_BATCH, jax.device_count() * weights.eval_rows)
      for batch in data.all_in_order(opened, batch_size=size):
        truth['labels'][batch.indices] = batch.labels
        yield batch.indices, batch.images

    batches = read()
  with atomic.folder(out, '--out') as partial:
    embeddings = np.lib.format.open_memmap(
      partial / 'embeddings.npy',
      mode='w+',
      dtype=np.float32,
      shape=(num_images, weights.model['embedding_dim']),
    )
    embed_images = _checkpoint.embedder(weights)
    for places, images in batches:
      embeddings[places] = embed_images(images)
    embeddings.flush()
    for name, values in truth.items():
      np.save(partial / f'{name}.npy', values)
    checkpoint.write_json(
      partial / 'metadata.json', weights.describe() | {'data': source}
    )
