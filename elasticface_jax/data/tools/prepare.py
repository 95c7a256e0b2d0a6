# SPDX-License-Identifier: Apache-2.0
"""Any source into shards for TFDS, on one machine.

OUT becomes a directory of TFDS's: shards of `tf.train.Example`, each with an
``image``, encoded as it was, and a ``label``, in the order of the source, and
the metadata that `tfds.builder_from_directory` wants. Until all of it has been
read back and found to be what the source gave, it is called OUT.incomplete; a
call that follows a crash goes on there, after the last whole shard.

`aligned_faces` is the form for TFDS's own command, and for Beam; its shards
hold the same records.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.sources import decode, index
from elasticface_jax.data.sources.encoded import EncodedSource, content_digest
from elasticface_jax.data.sources.shards import INFO, ShardSource
from elasticface_jax.errors import InputError, first_line

NAME = 'aligned_faces'
VERSION = '1.0.0'
DESCRIPTION = 'Aligned faces of 112x112, in the order of their source.'
FILE_FORMATS = ('array_record', 'tfrecord')

# What is being prepared, and which shards are whole. It stays with them.
RECORD = 'prepared.json'

_SHARD_BYTES = 1 << 28
_SAMPLED_IMAGES = 256
_CHUNK = 256  # Images that a thread reads and decodes at a time: 11 MB.
_THREADS = min(16, os.cpu_count())  # More would wait for the one that writes.
_PART = '.part'  # Of a file that is not whole.
_METADATA = ('features.json', 'label.labels.txt', INFO)


class Prepared(NamedTuple):
  """What `prepare_shards` has written.

  Attributes:
    path: the directory.
    num_images: number of images n.
    num_classes: number of classes C.
    file_format: of the shards.
    num_shards: how many there are.
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
      f'{self.path}: {self.num_images} images of {self.num_classes} classes in '
      f'{self.num_shards} shards of {self.file_format}, each read back\n'
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

  A call that is killed, or whose disk is full, loses the shard it was writing;
  the same call again goes on. It needs a disk: no ``gs://``.

  Args:
    source: the images.
    out: the directory to make.
    file_format: 'array_record' or 'tfrecord'.
    num_shards: how many; None for one in 256 MB.
    progress: called now and then with the number of images done and of all;
      each image counts when it is written and when it has been read back.

  Returns:
    What has been written.

  Raises:
    InputError: if `out` exists, an image cannot be trained on, the disk is
      full, the shards do not hold what was written, or an unfinished directory
      is there that was not begun by the same call.
  """
  out = Path(out)
  if file_format not in FILE_FORMATS:
    raise InputError(
      f'--format {file_format}: must be one of {", ".join(FILE_FORMATS)}'
    )
  if out.exists():
    raise InputError(f'{out} exists; remove it, or give another folder')
  decode.tensorflow()  # Before TFDS imports it, loudly.
  ranges = shard_ranges(source, num_shards)
  plan = {
    'fingerprint': source.fingerprint,
    'num_images': source.num_images,
    'num_classes': source.num_classes,
    'file_format': file_format,
    'num_shards': len(ranges),
  }
  counted = _Progress(progress, 2 * source.num_images)
  with _unfinished(out, plan) as work, ThreadPoolExecutor(_THREADS) as pool:
    for name, images in zip(work.names, ranges, strict=True):
      if name in work.whole:
        counted.add(len(images))
      else:
        work.add(name, file_format, _examples(pool, source, images, counted))
    work.write_metadata(source.num_classes, [len(images) for images in ranges])
    _read_back(pool, work, ranges, source, counted)
    work.finish(out)
  return Prepared(
    out,
    source.num_images,
    source.num_classes,
    file_format,
    len(ranges),
    source.fingerprint,
  )


def features(names: Iterable[str] | None):
  """The features of an example, for TFDS.

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
  """Names for classes that are known by number alone."""
  return [str(label) for label in range(num_classes)]


def shard_ranges(source: EncodedSource, num_shards: int | None) -> list[range]:
  """Which images go into which shard: runs that differ by one at most.

  Args:
    source: the images.
    num_shards: how many; None for one in 256 MB.

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
      f'{source.path}: {n} images cannot fill {num_shards} shards; ask for at '
      f'least 1 and at most {n}'
    )
  bounds = [n * shard // num_shards for shard in range(num_shards + 1)]
  return [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]


def _estimated_bytes(source: EncodedSource) -> int:
  """Bytes of all images together, from 256 of them."""
  spread = np.linspace(0, source.num_images - 1, _SAMPLED_IMAGES)
  encoded, _ = source.read(np.unique(spread.astype(np.int64)))
  return sum(map(len, encoded)) * source.num_images // len(encoded)


def chunks(images: range) -> Iterator[np.ndarray]:
  """Cuts a range into what is read in one call: int64, ``[k]``."""
  for start in range(images.start, images.stop, _CHUNK):
    yield np.arange(start, min(start + _CHUNK, images.stop))


def read_faces(
  source: EncodedSource, indices: np.ndarray
) -> list[tuple[bytes, int]]:
  """Reads images, and makes sure that they can be trained on.

  Args:
    source: where they are.
    indices: which, int64, ``[k]``.

  Returns:
    k images as they lie there, each of which has been decoded, with its label.

  Raises:
    InputError: for the first that is not whole, not 112x112, or has no valid
      label.
  """
  encoded, labels = source.read_checked(indices)
  try:
    decode.decode_faces(encoded)
  except decode.BadImage as error:
    raise source.bad(indices[error.index], error.problem) from error
  return list(zip(encoded, labels.tolist(), strict=True))


def _in_order(pool: ThreadPoolExecutor, read: Callable, images: range):
  """Results of `read` for the chunks of a range; threads read ahead a little.

  The pool is not this generator's own: one that is forgotten half way would
  end its threads when Python collects garbage, which Python 3.12 may do where
  it cannot wait for threads.
  """
  ahead = collections.deque()
  for indices in chunks(images):
    ahead.append(pool.submit(read, indices))
    if len(ahead) > 2 * _THREADS:
      yield ahead.popleft().result()
  while ahead:
    yield ahead.popleft().result()


class _Progress:
  """Counts for a callback that wants totals."""

  def __init__(self, report: Callable[[int, int], None], total: int):
    self._report, self._done, self._total = report, 0, total
    self.add(0)

  def add(self, count: int):
    self._done += count
    self._report(self._done, self._total)


def _examples(
  pool: ThreadPoolExecutor, source: EncodedSource, images: range, counted
) -> Iterator[tuple[bytes, bytes]]:
  """Makes the records of a shard: examples, and digests of their content."""
  example_of = decode.tensorflow().train.Example
  for faces in _in_order(pool, functools.partial(read_faces, source), images):
    for encoded, label in faces:
      example = example_of()
      feature = example.features.feature
      feature['image'].bytes_list.value.append(encoded)
      feature['label'].int64_list.value.append(label)
      # Else the order of the two features would change from run to run.
      yield (
        example.SerializeToString(deterministic=True),
        content_digest(encoded, label),
      )
    counted.add(len(faces))


def _read_back(pool, work: '_Work', ranges, source: EncodedSource, counted):
  """Holds what lies in the shards against what the source gave."""
  try:
    shards = ShardSource(work.path)
    for name, images in zip(work.names, ranges, strict=True):
      _compare(pool, shards, images, work.whole[name]['content'], counted)
  except InputError as error:
    # It names the file, and then a remedy for shards from elsewhere.
    problem = str(error).rpartition('; ')[0]
    broken = [name for name in work.names if name in problem]
    if not broken:
      raise
    work.forget(broken)
    raise InputError(
      f'{problem}; the disk may be failing: prepare again, and this shard is '
      'written anew'
    ) from error
  if shards.fingerprint != source.fingerprint:
    raise InputError(
      f'{source.path} changed while it was read; remove {work.path} and '
      'prepare it again'
    )


def _compare(pool, shards: ShardSource, images: range, content: str, counted):
  def digests(indices):
    encoded, labels = shards.read_checked(indices)
    return [
      content_digest(*face)
      for face in zip(encoded, labels.tolist(), strict=True)
    ]

  sha = hashlib.sha256()
  for chunk in _in_order(pool, digests, images):
    sha.update(b''.join(chunk))
    counted.add(len(chunk))
  if sha.hexdigest() != content:
    raise shards.bad(images.start, 'the shard holds other images than written')


class _Work:
  """The unfinished directory: which shards are whole, and how they become so.

  Attributes:
    path: the directory.
    names: of all shards, in order.
    whole: size and content of the shards that are whole, by name.
  """

  def __init__(self, path: Path, plan: dict):
    self.path, self._plan = path, plan
    self._template = _template(path, plan['file_format'])
    self.names = [
      file.name for file in self._template.sharded_filepaths(plan['num_shards'])
    ]
    with _disk(path):
      self.whole = self._left_over()
      for file in path.iterdir():
        if file.name not in {RECORD, *self.whole}:
          file.unlink()
    self._note()

  def add(
    self, name: str, file_format: str, records: Iterable[tuple[bytes, bytes]]
  ):
    """Writes a shard from its records and their digests."""
    sha = hashlib.sha256()
    part = self.path / (name + _PART)
    try:
      writer = _Writer(part, file_format)
      for record, digest in records:
        writer.write(record)
        sha.update(digest)
      writer.close()
      with _disk(self.path):
        _flush(part)
        size = part.stat().st_size
        part.rename(self.path / name)
    finally:
      part.unlink(missing_ok=True)
    self.whole[name] = {'bytes': size, 'content': sha.hexdigest()}
    self._note()

  def forget(self, names: list[str]):
    """Has the next call write these shards anew."""
    for name in names:
      del self.whole[name]
    self._note()

  def write_metadata(self, num_classes: int, lengths: list[int]):
    """Has TFDS write its metadata for the shards that are there."""
    import tensorflow_datasets as tfds

    split = tfds.core.SplitInfo(
      name='train',
      shard_lengths=lengths,
      num_bytes=sum(shard['bytes'] for shard in self.whole.values()),
      filename_template=self._template,
    )
    with _disk(self.path):
      tfds.folder_dataset.write_metadata(
        data_dir=self.path,
        features=features(class_names(num_classes)),
        split_infos=[split],
        version=VERSION,
        check_data=False,  # It can read TFRecord alone; all is read anyway.
        description=DESCRIPTION,
        supervised_keys=('image', 'label'),
        disable_shuffling=True,
      )

  def finish(self, out: Path):
    """Gives the directory its name."""
    with _disk(self.path):
      for name in _METADATA:
        _flush(self.path / name)
      _flush(self.path)
      self.path.rename(out)
      _flush(out.parent)

  def _left_over(self) -> dict[str, dict]:
    """Checks what an earlier call has left; the shards in it that are whole."""
    found = {file.name for file in self.path.iterdir()}
    if not found:
      return {}
    again = f'remove {self.path} to begin anew'
    try:
      record = json.loads((self.path / RECORD).read_text())
      plan, whole = record['plan'], record['shards']
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
      if found <= {RECORD + _PART}:
        return {}
      raise InputError(
        f'{self.path} was not begun by `elasticface prepare`, for it holds no '
        f'{RECORD}; {again}, or give another folder'
      ) from error
    for field, value in self._plan.items():
      if plan.get(field) != value:
        raise InputError(
          f'{self.path} was begun with {field} {plan.get(field)}, not {value}; '
          f'{again}, or go on with the same data, --format and --shards'
        )
    ours = {RECORD, *self.names, *_METADATA}
    for name in sorted(found - ours - {one + _PART for one in ours}):
      # Files of TFDS's that are not whole, and the index of the shards.
      if not name.startswith(('incomplete.', index.NAME)):
        raise InputError(
          f'{self.path / name} does not belong there; move it away, or {again}'
        )
    return {
      name: shard
      for name, shard in whole.items()
      if name in found and (self.path / name).stat().st_size == shard['bytes']
    }

  def _note(self):
    shards = {
      name: self.whole[name] for name in self.names if name in self.whole
    }
    record = {'plan': self._plan, 'shards': shards}
    part = self.path / (RECORD + _PART)
    with _disk(self.path):
      part.write_text(json.dumps(record, indent=1) + '\n')
      _flush(part)
      part.rename(self.path / RECORD)
      _flush(self.path)


@contextlib.contextmanager
def _unfinished(out: Path, plan: dict) -> Iterator[_Work]:
  """Opens OUT.incomplete for this process alone."""
  path = out.with_name(out.name + '.incomplete')
  with _disk(path):
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(lock)
    raise InputError(
      f'{path}: another process is preparing it; wait for it, or end it'
    ) from error
  except OSError:
    pass  # Some network disks have no locks.
  try:
    yield _Work(path, plan)
  finally:
    os.close(lock)


@contextlib.contextmanager
def _disk(path: Path):
  """What the disk refuses becomes one line."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or first_line(error)
    raise _refused(error.filename or path, reason) from error


def _refused(path, reason: str) -> InputError:
  return InputError(
    f'{path}: {reason}; make room, or mend it, and prepare again: it goes on '
    'after the last whole shard'
  )


def _template(path: Path, file_format: str):
  """Names of the shards, as TFDS has them."""
  import tensorflow_datasets as tfds

  return tfds.core.ShardedFileTemplate(
    data_dir=path,
    dataset_name=NAME,
    split='train',
    filetype_suffix=file_format,
  )


class _Writer:
  """Writes the records of one file."""

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
      raise _refused(self._path, reason) from error


def _flush(path: Path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
