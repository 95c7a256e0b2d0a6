# SPDX-License-Identifier: Apache-2.0
"""Preparation of shards for TFDS from any source, on one machine.

OUT becomes a TFDS directory: shards of `tf.train.Example` in the order of the
source, each example with an ``image``, encoded as it was, and a ``label``; and
the metadata that `tfds.builder_from_directory` needs. The directory is called
OUT.incomplete until all of it has been read back and compared with the source.
A call that follows a crash resumes there, after the last complete shard.

`aligned_faces` does this for TFDS's own command and for Beam; its shards hold
the same records.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.pairs import SUFFIXES
from elasticface_jax.data.sources import checks, decode, index
from elasticface_jax.data.sources.encoded import (
  EncodedSource,
  content_digest,
  counted,
)
from elasticface_jax.data.sources.shards import INFO, ShardSource
from elasticface_jax.data.threads import in_order
from elasticface_jax.errors import InputError, first_line

NAME = 'aligned_faces'
VERSION = '1.0.0'
# TFDS makes up an address in its own catalogue where it finds none.
HOMEPAGE = 'none'
DESCRIPTION = 'Aligned faces of 112x112, in the order of their source.'
FILE_FORMATS = ('array_record', 'tfrecord')

# The plan and the shards that are complete. It stays with them.
RECORD = 'prepared.json'

_SHARD_BYTES = 1 << 28
_SAMPLED_IMAGES = 256
_CHUNK = 256  # Images that a thread reads and decodes at a time: 11 MB.
_THREADS = min(16, os.cpu_count())  # More would wait for the one that writes.
_METADATA = ('features.json', 'label.labels.txt', INFO)


class Prepared(NamedTuple):
  """Result of `prepare_shards`.

  Attributes:
    path: the directory.
    num_images: number of images n.
    num_classes: number of classes C.
    file_format: format of the shards.
    num_shards: number of shards.
    fingerprint: of the source, and so of the shards.
  """

  path: Path
  num_images: int
  num_classes: int
  file_format: str
  num_shards: int
  fingerprint: str

  def __str__(self):
    return (
      f'{self.path}: {counted(self.num_images, "image")} of '
      f'{counted(self.num_classes, "class")} in '
      f'{counted(self.num_shards, "shard")} of {self.file_format}, all read '
      'back\n'
      f'fingerprint {self.fingerprint}'
    )


def prepare_shards(
  source: EncodedSource,
  out: str | os.PathLike,
  *,
  file_format: str = 'tfrecord',
  num_shards: int | None = None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
  """Writes a source as shards that TFDS reads, and reads them back.

  A call that is killed, or whose disk is full, loses the shard that it was
  writing; the same call resumes after the others. It needs a disk, not
  ``gs://``.

  Args:
    source: the images.
    out: the directory to make.
    file_format: 'array_record' or 'tfrecord'.
    num_shards: number of shards; None for one in 256 MB.
    progress: called now and then with the number of images done and of all;
      each image counts when it is written and when it has been read back.

  Returns:
    A summary of what was written.

  Raises:
    InputError: if `out` exists, an image cannot be trained on, the disk is
      full, the shards do not hold what was written, or another call left an
      unfinished directory.
  """
  out = Path(out)
  check_shards(out, file_format)
  decode.tensorflow()  # Before TFDS imports it, loudly.
  ranges = shard_ranges(source, num_shards)
  plan = {
    'fingerprint': source.fingerprint,
    'num_images': source.num_images,
    'num_classes': source.num_classes,
    'file_format': file_format,
    'num_shards': len(ranges),
  }
  done = _Progress(progress, 2 * source.num_images)
  with (
    _disk(out),
    atomic.resumable_folder(out) as folder,
    ThreadPoolExecutor(_THREADS) as pool,
  ):
    work = _Work(folder, plan)
    for name, images in zip(work.names, ranges, strict=True):
      if name in work.complete:
        done.add(len(images))
      else:
        work.add(name, file_format, _examples(pool, source, images, done))
    work.write_metadata(source.num_classes, [len(images) for images in ranges])
    _read_back(pool, work, ranges, source, done)
    work.flush()
  return Prepared(
    out,
    source.num_images,
    source.num_classes,
    file_format,
    len(ranges),
    source.fingerprint,
  )


def check_shards(out: str | os.PathLike, file_format: str) -> None:
  """Checks that `prepare_shards` may write, before work that comes before it.

  Args:
    out: as for `prepare_shards`.
    file_format: likewise.

  Raises:
    InputError: if it may not.
  """
  out = Path(out)
  if file_format not in FILE_FORMATS:
    raise InputError(
      f'--format {file_format}: must be one of {", ".join(FILE_FORMATS)}'
    )
  if out.suffix in SUFFIXES:
    raise InputError(
      f'{out} is the name of a pair set, which needs --list PAIRS.TXT; shards '
      'of a data set go into a folder'
    )
  if out.exists():
    raise InputError(f'{out} exists; remove it, or give another folder')
  atomic.check_folder(out.parent, 'OUT')


def features(names: Iterable[str] | None):
  """Returns the features of an example, for TFDS.

  Args:
    names: of the classes; None if they are not known yet.

  Returns:
    A `tfds.features.FeaturesDict`.
  """
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(
        shape=(decode.SIZE, decode.SIZE, 3), encoding_format='jpeg'
      ),
      'label': tfds.features.ClassLabel(names=names),
    }
  )


def class_names(num_classes: int) -> list[str]:
  """Returns names for classes that have only numbers."""
  return [str(label) for label in range(num_classes)]


def shard_ranges(source: EncodedSource, num_shards: int | None) -> list[range]:
  """Divides images into shards whose sizes differ by one at most.

  Args:
    source: the images.
    num_shards: number of shards; None for one in 256 MB.

  Returns:
    The images of each shard.

  Raises:
    InputError: if a shard would be empty.
  """
  n = source.num_images
  if num_shards is None:
    num_shards = min(n, 1 + _estimated_bytes(source) // _SHARD_BYTES)
  if not 1 <= num_shards <= n:
    raise InputError(
      f'{source.path}: {counted(n, "image")} cannot fill {num_shards} shards; '
      f'ask for at least 1 and at most {n}'
    )
  bounds = [n * shard // num_shards for shard in range(num_shards + 1)]
  return [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]


def _estimated_bytes(source: EncodedSource) -> int:
  """Estimates the bytes of all images together from 256 of them."""
  spread = np.linspace(0, source.num_images - 1, _SAMPLED_IMAGES)
  encoded, _ = source.read(np.unique(spread.astype(np.int64)))
  return sum(map(len, encoded)) * source.num_images // len(encoded)


def chunks(images: range) -> Iterator[np.ndarray]:
  """Yields the indices of a range in pieces for one call, int64, ``[k]``."""
  for start in range(images.start, images.stop, _CHUNK):
    yield np.arange(start, min(start + _CHUNK, images.stop))


def read_faces(
  source: EncodedSource, indices: np.ndarray
) -> list[tuple[bytes, int]]:
  """Reads images and checks that they can be trained on.

  Args:
    source: the images.
    indices: their numbers, int64, ``[k]``.

  Returns:
    k pairs of an image as the source stores it, decoded once as a check, and
    its label.

  Raises:
    InputError: for the first that does not decode, is not 112x112, or has no
      valid label.
  """
  encoded, labels = source.read_checked(indices)
  try:
    decode.decode_faces(encoded)
  except decode.BadImage as error:
    raise source.bad(indices[error.index], error.problem) from error
  return list(zip(encoded, labels.tolist(), strict=True))


def _read_ahead(pool: ThreadPoolExecutor, read: Callable, images: range):
  """Yields results of `read` for the chunks of a range; threads read ahead."""
  return in_order(pool, read, chunks(images), ahead=2 * _THREADS)


class _Progress:
  """Running count for a callback that expects totals."""

  def __init__(self, report: Callable[[int, int], None], total: int):
    self._report, self._done, self._total = report, 0, total
    self.add(0)

  def add(self, count: int):
    self._done += count
    self._report(self._done, self._total)


def _examples(
  pool: ThreadPoolExecutor,
  source: EncodedSource,
  images: range,
  done: _Progress,
) -> Iterator[tuple[bytes, bytes]]:
  """Yields the records of a shard: examples, and digests of their content."""
  example_of = decode.tensorflow().train.Example
  for faces in _read_ahead(pool, functools.partial(read_faces, source), images):
    for encoded, label in faces:
      example = example_of()
      feature = example.features.feature
      feature['image'].bytes_list.value.append(encoded)
      feature['label'].int64_list.value.append(label)
      # Otherwise the order of the two features changes from run to run.
      yield (
        example.SerializeToString(deterministic=True),
        content_digest(encoded, label),
      )
    done.add(len(faces))


def _read_back(
  pool: ThreadPoolExecutor,
  work: '_Work',
  ranges: list[range],
  source: EncodedSource,
  done: _Progress,
):
  """Compares the content of the shards with what the source gave."""
  try:
    shards = ShardSource(work.path)
    found = []
    for name, images in zip(work.names, ranges, strict=True):
      content = work.complete[name]['content']
      found += _compare(pool, shards, images, content, done)
  except InputError as error:
    # It names the file, and then a remedy for shards from elsewhere.
    problem = str(error).rpartition('; ')[0]
    broken = [name for name in work.names if name in problem]
    if not broken:
      raise
    work.forget(broken)
    raise InputError(
      f'{problem}; the disk may be failing: prepare again, which writes this '
      'shard anew'
    ) from error
  if shards.fingerprint != source.fingerprint:
    raise InputError(
      f'{source.path} changed while it was read; remove {work.path} and '
      'prepare it again'
    )
  if shards.in_graph:
    shards.keep_checks(checks.joined(found))


def _compare(
  pool: ThreadPoolExecutor,
  shards: ShardSource,
  images: range,
  content: str,
  done: _Progress,
) -> list[checks.Checks]:
  """Compares a shard; returns the checks of its images, piece by piece."""

  def read(indices):
    encoded, labels = shards.read_checked(indices)
    digests = [
      content_digest(*face)
      for face in zip(encoded, labels.tolist(), strict=True)
    ]
    # They were decoded when they were written.
    return digests, checks.of_intact(encoded)

  sha, found = hashlib.sha256(), []
  for digests, of_chunk in _read_ahead(pool, read, images):
    sha.update(b''.join(digests))
    found.append(of_chunk)
    done.add(len(digests))
  if sha.hexdigest() != content:
    raise shards.bad(images.start, 'the shard holds other images than written')
  return found


class _Work:
  """The unfinished directory and the record of its complete shards.

  Attributes:
    path: the directory.
    names: names of all shards, in order.
    complete: size and content of the complete shards, by name.
  """

  def __init__(self, path: Path, plan: dict):
    self.path, self._plan = path, plan
    self._template = _template(path, plan['file_format'])
    self.names = [
      file.name for file in self._template.sharded_filepaths(plan['num_shards'])
    ]
    self.complete = self._left_over()
    for file in path.iterdir():
      if file.name not in {RECORD, *self.complete}:
        file.unlink()
    self._note()

  def add(
    self, name: str, file_format: str, records: Iterable[tuple[bytes, bytes]]
  ):
    """Writes a shard from its records and their digests."""
    sha = hashlib.sha256()
    with atomic.file(self.path / name) as part, _disk(self.path / name):
      writer = _Writer(part, file_format)
      for record, digest in records:
        writer.write(record)
        sha.update(digest)
      writer.close()
      atomic.flush(part)
      size = part.stat().st_size
    self.complete[name] = {'bytes': size, 'content': sha.hexdigest()}
    self._note()

  def forget(self, names: list[str]):
    """Removes shards from the record, so that the next call writes them."""
    for name in names:
      del self.complete[name]
    self._note()

  def write_metadata(self, num_classes: int, lengths: list[int]):
    """Writes TFDS's metadata for shards with these numbers of images."""
    import tensorflow_datasets as tfds

    split = tfds.core.SplitInfo(
      name='train',
      shard_lengths=lengths,
      num_bytes=sum(shard['bytes'] for shard in self.complete.values()),
      filename_template=self._template,
    )
    tfds.folder_dataset.write_metadata(
      data_dir=self.path,
      features=features(class_names(num_classes)),
      split_infos=[split],
      version=VERSION,
      check_data=False,  # It can read TFRecord alone; all is read anyway.
      description=DESCRIPTION,
      homepage=HOMEPAGE,
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def flush(self):
    """Waits until the disk holds the metadata; shards are flushed before."""
    for name in _METADATA:
      atomic.flush(self.path / name)

  def _left_over(self) -> dict[str, dict]:
    """Checks what an earlier call left; returns the complete shards in it."""
    found = {file.name for file in self.path.iterdir()}
    if not found:
      return {}
    remove = f'remove {self.path} to start again'
    try:
      record = json.loads((self.path / RECORD).read_text())
      plan, complete = record['plan'], record['shards']
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
      if all(atomic.is_part(name, of=RECORD) for name in found):
        return {}
      raise InputError(
        f'{self.path} was not begun by `elasticface prepare`, for it holds no '
        f'{RECORD}; {remove}, or give another folder'
      ) from error
    for field, value in self._plan.items():
      if plan.get(field) != value:
        raise InputError(
          f'{self.path} was begun with {field} {plan.get(field)}, not {value}; '
          f'{remove}, or resume with the same data, --format and --shards'
        )
    for name in sorted(found):
      if not self._is_ours(name):
        raise InputError(
          f'{self.path / name} does not belong there; move it away, or {remove}'
        )
    return {
      name: shard
      for name, shard in complete.items()
      if name in found and (self.path / name).stat().st_size == shard['bytes']
    }

  def _is_ours(self, name: str) -> bool:
    """Returns True for files that an earlier call or TFDS has made."""
    ours = (RECORD, *self.names, *_METADATA)
    return (
      name in ours
      or any(atomic.is_part(name, of=one) for one in ours)
      # Half-written files of TFDS, and what is kept about the shards.
      or name.startswith(('incomplete.', index.NAME, index.CHECKS))
    )

  def _note(self):
    """Writes the plan and the complete shards into the record."""
    shards = {
      name: self.complete[name] for name in self.names if name in self.complete
    }
    record = {'plan': self._plan, 'shards': shards}
    with atomic.file(self.path / RECORD) as part, _disk(self.path / RECORD):
      part.write_text(json.dumps(record, indent=1) + '\n')
      atomic.flush(part)
    atomic.flush(self.path)


@contextlib.contextmanager
def _disk(path: Path):
  """Turns an error of the disk into one line with the remedy."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f'{error.filename or path}: {error.strerror or first_line(error)}; make '
      'room or repair the disk, and prepare again: it resumes after the last '
      'complete shard'
    ) from error


def _template(path: Path, file_format: str):
  """Returns TFDS's template for the names of the shards."""
  import tensorflow_datasets as tfds

  return tfds.core.ShardedFileTemplate(
    data_dir=path,
    dataset_name=NAME,
    split='train',
    filetype_suffix=file_format,
  )


class _Writer:
  """Writer of the records of one shard, under a temporary name.

  Raises:
    OSError: in all methods, with the reason that the library gives as text.
  """

  def __init__(self, path: Path, file_format: str):
    self._path = path
    if file_format == 'tfrecord':
      tf = decode.tensorflow()
      self._failure = tf.errors.OpError
      self._file = tf.io.TFRecordWriter(str(path))
    else:
      from array_record.python import array_record_module

      self._failure = RuntimeError
      # As TFDS does: of a larger group, one record cannot be read alone.
      self._file = array_record_module.ArrayRecordWriter(
        str(path), 'group_size:1'
      )

  def write(self, record: bytes):
    self._call(self._file.write, record)

  def close(self):
    self._call(self._file.close)

  def _call(self, method, *args):
    try:
      method(*args)
    except self._failure as error:
      # TensorFlow begins with the path, too.
      reason = first_line(error).removeprefix(f'{self._path}; ')
      raise OSError(reason) from error
