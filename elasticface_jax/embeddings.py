# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images for an evaluation: computed now, or saved earlier.

`Computed` reads images and runs a network. `Saved` reads folders that
`elasticface embed`, or another program, has written. Both give the embeddings
of files by their paths, so that a benchmark need not know which it has.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elasticface_jax.data.sources.encoded import counted
from elasticface_jax.data.threads import in_order
from elasticface_jax.errors import InputError
from elasticface_jax.training import checkpoint
from elasticface_jax.weights import Embedder, origin

# Evaluation batches that are read ahead while others are embedded.
_BATCHES = 8

# Saved rows that are copied at once: a copy of IJB-C's would take a gigabyte.
_ROWS = 4096

Progress = Callable[[int, int], None]


class Computed:
  """Embeddings that a network computes.

  Attributes:
    title: name of the network.
  """

  def __init__(self, network: Embedder):
    """Takes a network.

    Args:
      network: from `weights.open_embedder`.
    """
    self.title = network.title
    self._network = network
    # A multiple of what all devices take at a time.
    self._chunk = _BATCHES * jax.device_count() * network.eval_rows

  @property
  def origin(self) -> dict[str, Any]:
    """Returns what results are of, for JSON; see `weights.origin`."""
    return origin(self._network)

  def of_images(self, images: np.ndarray, progress: Progress) -> np.ndarray:
    """Embeds aligned faces.

    Args:
      images: RGB, uint8, ``[n, 112, 112, 3]``.
      progress: called with the number of images done, and n.

    Returns:
      float32, ``[n, D]``.
    """
    chunks = (images[s] for s in slices(len(images), self._chunk))
    return self._embed(chunks, len(images), progress)

  def of_files(
    self,
    paths: Sequence[str | Path],
    read: Callable[[int], np.ndarray],
    progress: Progress,
  ) -> np.ndarray:
    """Embeds files, which threads read ahead.

    Args:
      paths: of the n files.
      read: returns the aligned face of a file by its index, RGB, uint8,
        ``[112, 112, 3]``.
      progress: as for `of_images`.

    Returns:
      float32, ``[n, D]``.

    Raises:
      InputError: if a file cannot be read.
    """
    pool = futures.ThreadPoolExecutor(os.cpu_count())
    try:
      # As many again as the network takes, while it works.
      faces = in_order(pool, read, range(len(paths)), ahead=self._chunk)
      chunks = _stacked(faces, self._chunk)
      return self._embed(chunks, len(paths), progress)
    finally:
      # A file that cannot be read ends all: nobody waits for the others.
      pool.shutdown(wait=False, cancel_futures=True)

  def _embed(
    self, chunks: Iterator[np.ndarray], count: int, progress: Progress
  ) -> np.ndarray:
    found = np.zeros((count, self._network.embedding_dim), np.float32)
    done = 0
    progress(0, count)
    for images in chunks:
      found[done : done + len(images)] = self._network.embed(images)
      done += len(images)
      progress(done, count)
    return found


def slices(count: int, size: int) -> Iterator[slice]:
  """Yields the slices of ``range(count)``, `size` numbers each.

  Args:
    count: numbers in all.
    size: of a slice; the last one may have fewer.
  """
  for start in range(0, count, size):
    yield slice(start, min(start + size, count))


def _stacked(faces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
  """Stacks faces, `size` at a time and what is left at the end."""
  while chunk := list(itertools.islice(faces, size)):
    yield np.stack(chunk)


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
  """Embeddings in a folder, as `elasticface embed` writes it.

  Attributes:
    path: the folder.
    name: of the data that were embedded, or of the folder.
    data: path of the data that were embedded, or of the folder.
    network: fingerprint of the network; None if it is not known.
    array: ``[n, D]``, of any float dtype; on the disk until it is read.
    names: of the images, as in ``images.tsv``; None without that file.
    same: of a pair set, bool ``[n / 2]``; else None.
  """

  path: Path
  name: str
  data: str
  network: str | None
  array: np.ndarray
  names: Sequence[str] | None
  same: np.ndarray | None


def open_folder(path: str | os.PathLike[str]) -> Folder:
  """Opens a folder of embeddings.

  It holds ``embeddings.npy``, ``[n, D]``, of any float dtype, and where they
  are known ``images.tsv``, whose column ``image`` names the images, or
  ``same.npy``, bool ``[n / 2]``, for a pair set.

  Args:
    path: the folder.

  Returns:
    Its contents.

  Raises:
    InputError: if a file is missing, damaged, or does not fit the others.
  """
  path = Path(path)
  file = path / 'embeddings.npy'
  if not file.is_file():
    raise InputError(
      f'{path} holds no embeddings.npy; give a folder that `elasticface embed` '
      'has written'
    )
  array = _load(file, 2, 'floating')
  names = same = None
  if (path / 'images.tsv').is_file():
    names = _read_names(path / 'images.tsv', len(array))
  if (path / 'same.npy').is_file():
    same = _load(path / 'same.npy', 1, 'bool')
    if 2 * len(same) != len(array):
      raise InputError(
        f'{path}: same.npy has {counted(len(same), "pair")}, embeddings.npy '
        f'{counted(len(array), "row")}; a pair has two: embed the set again'
      )
  metadata = _metadata(path)
  # A folder may be `.`, and a dot in its name begins no suffix.
  source = metadata['data'] or str(path)
  name = Path(source).stem if metadata['data'] else path.resolve().name
  return Folder(path, name, source, metadata['network'], array, names, same)


def escaped(name: str) -> str:
  r"""Returns a name without tabs, line breaks and other control characters.

  Args:
    name: of an image or of a person.

  Returns:
    The name as ``images.tsv`` has it.

  Examples:
    >>> escaped('Zoë/1.jpg'), escaped('a\tb\n')
    ('Zoë/1.jpg', 'a\\tb\\n')
  """
  return ''.join(
    c if c.isprintable() and c != '\\' else c.encode('unicode_escape').decode()
    for c in name
  )


def _load(file: Path, ndim: int, kind: str) -> np.ndarray:
  expected = {'floating': np.floating, 'bool': np.bool_}[kind]
  with file.open('rb') as opened:
    is_archive = opened.read(2) == b'PK'
  if is_archive:
    raise InputError(
      f'{file} is an archive of arrays, .npz; write the one array by numpy.save'
    )
  try:
    array = np.load(file, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(f'{file} is damaged: {error}; write it again') from error
  # bfloat16 is no dtype of NumPy's files.
  if array.ndim != ndim or not np.issubdtype(array.dtype, expected):
    raise InputError(
      f'{file} holds {array.dtype} of shape {list(array.shape)}, not {kind} '
      f'numbers of {ndim} dimension{"s" * (ndim > 1)}; write it again'
    )
  return array


def _read_names(file: Path, count: int) -> list[str]:
  """Reads the column `image` of a table."""
  try:
    # Some programs begin UTF-8 with a mark.
    header, *rows = file.read_text('utf-8-sig').splitlines()
  except (OSError, ValueError) as error:
    raise InputError(
      f'{file} is empty or no text: {error}; write it again'
    ) from error
  columns = header.split('\t')
  if 'image' not in columns:
    raise InputError(
      f'{file} has no column `image` in its first line; name it there'
    )
  if len(rows) != count:
    raise InputError(
      f'{file} names {counted(len(rows), "image")}, embeddings.npy has '
      f'{counted(count, "row")}; write both again'
    )
  place, names = columns.index('image'), []
  for line, row in enumerate(rows, 2):
    fields = row.split('\t')
    if len(fields) <= place:
      raise InputError(
        f'{file}: line {line} has {counted(len(fields), "field")}, and column '
        f'`image` is number {place + 1}; separate fields with tabs'
      )
    names.append(fields[place])
  return names


def _metadata(path: Path) -> dict[str, str | None]:
  """Returns what ``metadata.json`` says of data and network, if it is there."""
  file = path / 'metadata.json'
  if not file.is_file():
    return {'data': None, 'network': None}
  metadata = checkpoint.read_json(
    file, 'Embed again, or remove that file, which names data and network'
  )
  found = {}
  for name, keys in (
    ('data', ('data',)),
    ('network', ('training_fingerprint', 'file_sha256')),
  ):
    values = [metadata[key] for key in keys if key in metadata]
    found[name] = values[0] if values and isinstance(values[0], str) else None
  return found


class Saved:
  """Embeddings from folders.

  Attributes:
    title: names of the folders.
    folders: the folders.
  """

  def __init__(self, folders: Sequence[Folder]):
    """Takes folders.

    Args:
      folders: from `open_folder`.
    """
    self.title = ', '.join(folder.path.resolve().name for folder in folders)
    self.folders = folders

  @property
  def origin(self) -> dict[str, Any]:
    """Returns what results are of, for JSON; see `weights.origin`."""
    networks = {folder.network for folder in self.folders}
    return {
      'title': self.title,
      'checkpoint': ', '.join(str(folder.path) for folder in self.folders),
      'step': None,
      'fingerprint': networks.pop() if len(networks) == 1 else None,
    }

  def of_files(
    self,
    paths: Sequence[str | Path],
    read: Callable[[int], np.ndarray],
    progress: Progress,
  ) -> np.ndarray:
    """Finds the embeddings of files by their names.

    A name of ``images.tsv`` is the end of a path: the longest one counts.

    Args:
      paths: of the n files; they need not exist.
      read: not called.
      progress: called once, at the end.

    Returns:
      ``[n, D]``, of the folders' dtype.

    Raises:
      InputError: if a file has no embedding, or two.
    """
    del read
    places = self._places()
    rows = [self._place(places, path) for path in paths]
    sizes = {self.folders[folder].array.shape[1] for folder, _ in rows}
    if len(sizes) > 1:
      raise InputError(
        f'{self.title}: embeddings of {" and ".join(map(str, sorted(sizes)))}'
        ' values; give folders of one network'
      )
    dtype = np.result_type(*(folder.array for folder in self._named()))
    found = np.empty((len(paths), *sizes), dtype)
    owners, indices = np.array(rows).reshape(-1, 2).T
    for i, folder in enumerate(self.folders):
      own = np.flatnonzero(owners == i)
      for part in slices(len(own), _ROWS):
        found[own[part]] = folder.array[indices[own[part]]]
    progress(len(paths), len(paths))
    return found

  def _places(self) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    named = self._named()
    for i, folder in enumerate(self.folders):
      if folder not in named:
        continue
      if folder.names is None:
        raise InputError(
          f'{folder.path} has no images.tsv, which names the images; embed the '
          'folder of images with `elasticface embed`'
        )
      for j, name in enumerate(folder.names):
        if name in places:
          other = self.folders[places[name][0]].path
          raise InputError(
            f'{name!a} has an embedding in {other} and in {folder.path}; leave '
            'one out'
          )
        places[name] = i, j
    return places

  def _named(self) -> Sequence[Folder]:
    """Returns the folders of images; those of pair sets are verified alone."""
    named = [
      folder
      for folder in self.folders
      if folder.same is None or folder.names is not None
    ]
    return named or self.folders

  def _place(
    self, places: dict[str, tuple[int, int]], path: str | Path
  ) -> tuple[int, int]:
    parts = Path(path).parts
    # The longest first: two folders may have a 1.jpg each.
    for start in range(len(parts)):
      name = escaped('/'.join(parts[start:]))
      if name in places:
        return places[name]
    raise InputError(
      f'{self.title}: no embedding of {parts[-1]!a}; images.tsv names '
      f'{len(places):,} images, such as {next(iter(places), "none")!a}'
    )
