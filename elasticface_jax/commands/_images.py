# SPDX-License-Identifier: Apache-2.0
"""Images that commands read, of whatever holds them."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elasticface_jax.commands import _faces
from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

# Files that tell a data set from a folder of images.
_DATA_SETS = 'train.rec', 'dataset_info.json'


class Images(NamedTuple):
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


def open_images(
  source: str, size: int, alignment: _faces.Alignment | None = None
) -> Images:
  """Opens whatever holds images.

  Args:
    source: a data set, as for `data.open_encoded`, a pair set, a folder of
      images, or an image.
    size: images to read at a time.
    alignment: how to align photographs; None for faces that are aligned.

  Raises:
    InputError: if it cannot be used.
  """
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
) -> Images:
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
  return Images(opened.num_images, read(), truth, columns, rows(), landmarks)


def _of_pairs(path: Path, size: int) -> Images:
  from elasticface_jax import data
  from elasticface_jax.embeddings import slices

  pairs = data.read_pairs(path)
  count = len(pairs.images)
  batches = ((s, pairs.images[s]) for s in slices(count, size))
  return Images(count, batches, {'same': pairs.same}, (), iter(()))


def _of_files(
  path: Path, size: int, alignment: _faces.Alignment | None
) -> Images:
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
  return Images(len(names), batches, {}, ('image',), rows, landmarks)
