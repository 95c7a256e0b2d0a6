# SPDX-License-Identifier: Apache-2.0
"""Small good data sets of every kind: how they are made, read and inspected.

Each has ten images of five classes, one of them empty; a pair set has five
pairs.
"""

import functools
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from checks.corrupt_files.damages import MAGIC
from elasticface_jax.data import (
  Report,
  inspect,
  open_encoded,
  prepare_shards,
  read_pairs,
  write_pairs,
  write_rec_folder,
)
from elasticface_jax.data.sources import recordio

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 3, 4]
NUM_CLASSES = 5
SAME = [True, False, False, True, True]


class Kind(NamedTuple):
  """A format of data and the functions that handle it.

  Attributes:
    make: writes good data into an empty folder with a random generator;
      returns the encoded images in their order.
    open: opens the data in a folder.
    read: reads everything from the result of `open`: images, uint8
      ``[n, 112, 112, 3]``, labels or matches ``[n]``, and the number of
      classes.
    inspect: inspects the data in a folder.
    left_out: whether the report or the folder shows that images are left out;
      None where the data hold their count, so that another one must be refused.
  """

  make: Callable[[Path, np.random.Generator], list[bytes]]
  open: Callable[[Path], Any]
  read: Callable[[Any], tuple]
  inspect: Callable[[Path], Report]
  left_out: Callable[[Report, Path], bool] | None = None


def all_kinds() -> dict[str, Kind]:
  """Returns the kinds by name; their order is part of a case's number."""
  return {
    'rec, header': _training(_make_header),
    'rec, header, index kept': _training(_make_kept),
    'rec, header, split records': _training(_make_split),
    'rec, key 0 is an image': _training(_make_headerless, _has_unindexed),
    'rec, no key 0, PNG': _training(_make_from_one, _has_unindexed),
    'folder': _training(_make_folder, _lacks_files),
    'TFRecord': _training(_make_shards('tfrecord'), name='data'),
    'ArrayRecord': _training(_make_shards('array_record'), name='data'),
    'bin, bytes': _verification(_make_pairs('pairs.bin'), 'pairs.bin'),
    'bin, arrays': _verification(_make_pairs_of_arrays, 'pairs.bin'),
    'npz': _verification(_make_pairs('pairs.npz'), 'pairs.npz'),
  }


def read_source(source: Any) -> tuple[np.ndarray, np.ndarray, int]:
  """Reads all images and labels of a training source."""
  images, labels = source.render(np.arange(source.num_images))
  return images, labels, source.num_classes


def _training(make, left_out=None, name=''):
  """A kind for training, in the folder itself or in `name` there."""
  return Kind(
    make,
    lambda folder: open_encoded(folder / name),
    read_source,
    lambda folder: inspect(folder / name),
    left_out,
  )


def _verification(make, name):
  """A kind for verification: a file of pairs."""
  return Kind(
    make,
    lambda folder: read_pairs(folder / name),
    lambda pairs: (pairs.images, pairs.same, 2),
    lambda folder: inspect(folder / name),
  )


def _has_unindexed(report, folder):
  return not report.facts['records'].endswith(' 0 not')


def _lacks_files(report, folder):
  return len(list(folder.glob('*/*.jpg'))) < len(LABELS)


def _draw(rng, form='jpeg') -> list[bytes]:
  """Draws ten encoded images of about a kilobyte."""
  encoded = []
  for _ in LABELS:
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((112, 112)).save(out, form, optimize=True)
    encoded.append(out.getvalue())
  return encoded


def _with_magics(encoded: bytes) -> bytes:
  """Adds a comment with magic numbers at every alignment to a JPEG."""
  comment = b''.join(MAGIC + b'x' for _ in range(8))
  head = b'\xff\xfe' + (len(comment) + 2).to_bytes(2, 'big')
  return encoded[:2] + head + comment + encoded[2:]


def _write_rec(folder, images):
  write_rec_folder(folder, zip(images, LABELS, strict=True), NUM_CLASSES)
  return images


def _make_header(folder, rng):
  return _write_rec(folder, _draw(rng))


def _make_kept(folder, rng):
  images = _make_header(folder, rng)
  open_encoded(folder)  # Writes its index next to the data.
  return images


def _make_split(folder, rng):
  return _write_rec(folder, [_with_magics(one) for one in _draw(rng)])


def _write_without_header(folder, images, first_key):
  paths = folder / 'train.rec', folder / 'train.idx'
  with recordio.RecordWriter(*paths) as out:
    for key, (label, body) in enumerate(zip(LABELS, images, strict=True)):
      key += first_key
      out.write(key, recordio.pack(label, body, record_id=key))
  (folder / 'property').write_text(f'{NUM_CLASSES},112,112\n')
  return images


def _make_headerless(folder, rng):
  return _write_without_header(folder, _draw(rng), 0)


def _make_from_one(folder, rng):
  return _write_without_header(folder, _draw(rng, 'png'), 1)


def _make_folder(folder, rng):
  images = _draw(rng)
  for number, (label, one) in enumerate(zip(LABELS, images, strict=True)):
    path = folder / f'person{label}' / f'{number}.jpg'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(one)
  return images


def _make_shards(file_format):
  write = functools.partial(
    prepare_shards, file_format=file_format, num_shards=2
  )

  def make(folder, rng):
    with tempfile.TemporaryDirectory() as rec:
      images = _write_rec(rec, _draw(rng))
      write(open_encoded(rec), folder / 'data')
    return images

  return make


def _make_pairs(name):
  def make(folder, rng):
    images = _draw(rng)
    write_pairs(folder / name, images, SAME)
    return images

  return make


def _make_pairs_of_arrays(folder, rng):
  images = _draw(rng)
  arrays = [np.frombuffer(one, np.uint8) for one in images]
  content = pickle.dumps((arrays, np.array(SAME)), protocol=2)
  (folder / 'pairs.bin').write_bytes(content)
  return images
