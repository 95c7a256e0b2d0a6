# SPDX-License-Identifier: Apache-2.0
"""Source that reads a folder of images, with one folder for each person."""

import hashlib
import os
from pathlib import Path

import numpy as np

from elasticface_jax.data.sources import graph, index
from elasticface_jax.data.sources.encoded import EncodedSource, counted
from elasticface_jax.data.sources.files import without_dots
from elasticface_jax.data.sources.images import SUFFIXES, printable
from elasticface_jax.errors import InputError

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


class FolderSource(EncodedSource):
  """Images at ``folder/person/image.jpg``, JPEG or PNG.

  Labels number the people's folders in the order of their names, and images are
  numbered person by person in the order of their names. Names are sorted by
  their bytes, so that ``10`` comes before ``9``. A person without images is a
  class without images. Files without the suffix of a JPEG or PNG are left out
  and counted; names that begin with a dot are left out. The index keeps names
  as bytes, about 20 an image (`index.Kept`).

  Args:
    folder: path of the folder.
    cache: folder for the index, used if `folder` cannot be written; None for
      none.

  Raises:
    InputError: if there are no images, or they are at another depth.
  """

  def __init__(
    self, folder: str | os.PathLike, *, cache: str | os.PathLike | None = None
  ):
    folder = Path(folder)
    self.path = str(folder)
    if not folder.is_dir():
      raise InputError(f'{folder}: no such folder')
    self._root = os.fsencode(folder)
    people = _people(self._root)
    self._kept = index.Kept(
      [folder] if cache is None else [folder, cache],
      {'form': 'folder 1', 'folders': _stamp(self._root, people)},
    )
    found = self._kept.arrays(
      index.NAME, lambda: _list_images(self._root, people)
    )
    self._people = people
    # The first image of each person, and the name of each image.
    self._starts = found['starts']
    self._names, self._ends = found['names'].tobytes(), found['ends']
    self.num_images, self.num_classes = len(self._ends), len(people)
    left_out = int(found['left_out'])
    self.layout = f'{counted(self.num_classes, "folder")} of people'
    if left_out:
      self.layout += f', {counted(left_out, "other file")} left out'

  def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Implements `EncodedSource.read`."""
    encoded = []
    for number in indices.tolist():
      try:
        with open(self._file(number), 'rb') as file:
          encoded.append(file.read())
      except OSError as error:
        raise self.bad(number, error.strerror) from error
    return encoded, self._labels(indices).astype(np.float64)

  def known_labels(self) -> np.ndarray:
    """Implements `EncodedSource.known_labels`."""
    return self._labels(np.arange(self.num_images))

  @property
  def in_graph(self) -> bool:
    """Implements `EncodedSource.in_graph`."""
    return True

  def graph_reader(self, parallel: int) -> graph.Files:
    """Implements `EncodedSource.graph_reader`."""
    return graph.Files(
      without_dots(self._root),
      self._people,
      self._starts,
      self._names,
      self._ends,
      parallel=parallel,
    )

  def place(self, index: int) -> str:
    """Implements `EncodedSource.place`."""
    return os.fsdecode(self._file(int(index)))

  def image_name(self, index: int) -> str:
    """Implements `EncodedSource.image_name`: ``person/image.jpg``."""
    return printable(b'/'.join(self._names_of(int(index))))

  def class_name(self, label: int) -> str:
    """Implements `EncodedSource.class_name`: the name of the folder."""
    return printable(self._people[int(label)])

  def _labels(self, indices):
    return np.searchsorted(self._starts, indices, 'right') - 1

  def _file(self, number: int) -> bytes:
    return b'/'.join((self._root, *self._names_of(number)))

  def _names_of(self, number: int) -> tuple[bytes, bytes]:
    """Returns the names of an image's folder and file."""
    start = int(self._ends[number - 1]) if number else 0
    name = self._names[start : int(self._ends[number])]
    return self._people[int(self._labels(number))], name


def _people(root: bytes) -> list[bytes]:
  people, images = [], []
  with os.scandir(root) as entries:
    for entry in entries:
      if entry.name.startswith(b'.'):
        continue
      if entry.is_dir():
        people.append(entry.name)
      elif entry.name.lower().endswith(_SUFFIXES):
        images.append(entry.name)
  where = os.fsdecode(root)
  if images:
    raise InputError(
      f'{where}: images lie next to the folders, {len(images):,} such as '
      f'{os.fsdecode(min(images))}; put the images of each person into a '
      'folder of their own'
    )
  if not people:
    raise InputError(
      f'{where}: no data set: neither train.rec, nor dataset_info.json, nor '
      'folders of images; give a folder that holds one of them'
    )
  return sorted(people)


def _stamp(root: bytes, people: list[bytes]) -> str:
  """Computes a hash that changes if a file is added, removed or renamed."""
  sha = hashlib.sha256()
  for person in people:
    time = os.stat(root + b'/' + person).st_mtime_ns
    sha.update(b'%s/%d\n' % (person, time))
  return sha.hexdigest()


def _list_images(root: bytes, people: list[bytes]) -> dict[str, np.ndarray]:
  names, ends, starts = [], [], []
  num_images = num_bytes = left_out = 0
  for person in people:
    folder = root + b'/' + person
    starts.append(num_images)
    with os.scandir(folder) as entries:
      listed = [entry for entry in entries if not entry.name.startswith(b'.')]
    if any(entry.is_dir() for entry in listed):
      raise InputError(
        f'{os.fsdecode(folder)} holds folders, where the images of a person '
        'should be; give the folder two levels above the images'
      )
    own = sorted(
      entry.name for entry in listed if entry.name.lower().endswith(_SUFFIXES)
    )
    left_out += len(listed) - len(own)
    sizes = np.array([len(name) for name in own], np.int64)
    ends.append(num_bytes + np.cumsum(sizes))
    names.append(np.frombuffer(b''.join(own), np.uint8))
    num_images += len(own)
    num_bytes += int(sizes.sum())
  if not num_images:
    raise InputError(
      f'{os.fsdecode(root)}: {counted(len(people), "folder")} without any '
      'JPEG or PNG; give a folder with a folder of images for each person'
    )
  ends = np.concatenate(ends)
  small = np.uint32 if num_bytes < 2**32 else np.int64
  return {
    'starts': np.array(starts, np.int64),
    'names': np.concatenate(names),
    'ends': ends.astype(small),
    'left_out': np.array(left_out),
  }
