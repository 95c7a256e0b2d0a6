# SPDX-License-Identifier: Apache-2.0
"""Inspection of a data set or a pair set, image by image."""

import collections
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.pairs import read_encoded
from elasticface_jax.data.sources.encoded import EncodedSource, valid_labels
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.opening import open_encoded
from elasticface_jax.data.sources.rec import check_rec, is_rec
from elasticface_jax.data.sources.recordio import write_rec_folder
from elasticface_jax.data.tools.report import MAX_LINES, Report
from elasticface_jax.data.tools.walks import (
  AllFindings,
  Findings,
  ImageWalk,
  RecordWalk,
  Walk,
  decode_sizes,
  size_text,
)
from elasticface_jax.errors import InputError

_CHUNK = 256  # Entries that one thread examines at a time.

Progress = Callable[[int, int], None]


def inspect(
  path: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Inspects a data set or a pair set; the path decides which it is.

  Args:
    path: a data set as for `open_encoded`, or a file of pairs.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.

  Returns:
    The report of `inspect_rec`, `inspect_images` or `inspect_pairs`.

  Raises:
    InputError: if it is none of these, or `fix` is given for pairs.
  """
  if not is_remote(path):
    path = Path(path)
    if path.suffix in ('.rec', '.idx') and path.is_file():
      raise InputError(
        f'{path} is a file; give the folder that holds train.rec, train.idx '
        'and property'
      )
    if path.is_file():
      if fix is not None:
        raise InputError(
          f'--fix {fix}: {path} is a pair set, from which no image can be left '
          'out; make it again'
        )
      return inspect_pairs(path)
    if is_rec(path):
      return inspect_rec(path, progress, fix)
  return inspect_images(open_encoded(path), progress, fix)


def inspect_rec(
  folder: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Reads and decodes every record of a ``.rec`` folder, in file order.

  Args:
    folder: holds ``train.rec`` and ``train.idx``; `property` may be missing,
      which the report names as a problem.
    progress: called now and then with the number of records done and of all.
    fix: folder for a clean copy, in the same layout; must be missing or empty.
      Bad images are left out. So are copies of an image within its class, but
      for the first one, and all copies of an image that has several labels.
      Classes keep their numbers.

  Returns:
    The report. It does not stop at the first problem.

  Raises:
    InputError: if there is nothing to inspect: no folder, ``train.rec`` or
      ``train.idx``, or an unreadable index; or if the clean copy cannot be
      written. Then nothing of it remains.
  """
  folder = Path(folder)
  check_rec(folder)
  return _inspect(RecordWalk(folder), progress, fix)


def inspect_images(
  source: EncodedSource,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
) -> Report:
  """Reads and decodes every image of a folder of images, or of shards.

  Args:
    source: the images.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.

  Returns:
    The report.

  Raises:
    InputError: if the clean copy cannot be written.
  """
  return _inspect(ImageWalk(source), progress, fix)


def inspect_pairs(path: str | os.PathLike) -> Report:
  """Decodes every image of a pair set, ``.bin`` or ``.npz``.

  Args:
    path: the file.

  Returns:
    The report.

  Raises:
    InputError: if the file is no pair set at all.
  """
  path = Path(path)
  encoded, same = read_encoded(path)
  sizes, problems = collections.Counter(), []
  for start in range(0, len(encoded), _CHUNK):
    chunk = encoded[start : start + _CHUNK]
    for image, size in enumerate(decode_sizes(chunk), start):
      if isinstance(size, str):
        problems.append(f'image {image} (pair {image // 2}): {size}')
      else:
        sizes[size_text(size)] += 1
  sha = hashlib.sha256(same.tobytes())
  for one in encoded:
    sha.update(one)
  facts = {
    'pairs': f'{len(same):,}: {same.sum():,} same, {(~same).sum():,} different',
    'images': f'{len(encoded):,}',
    'sizes': _sizes_text(sizes),
    'contents': sha.hexdigest(),
  }
  return Report(str(path), facts, problems[:MAX_LINES], len(problems))


def _inspect(walk: Walk, progress: Progress, fix) -> Report:
  if fix is not None:
    atomic.check_unused(Path(fix), '--fix')  # Hours before it is written.
  seen = AllFindings(walk.total)
  for start, found in _examine_all(walk):
    progress(start, walk.total)
    seen.add(start, found)
  progress(walk.total, walk.total)
  source = walk.compare(seen)
  num_classes = source.num_classes if source else 0
  if num_classes:
    _check_labels(walk, seen, num_classes)
  labels = seen.labels[seen.is_image]
  classes, images_per_class = np.unique(
    labels[np.isfinite(labels)], return_counts=True
  )
  facts = {'layout': 'none that can be trained on'}
  if source:
    facts = {
      'layout': source.layout,
      'classes': f'{source.num_classes:,}',
      'fingerprint': source.fingerprint if not seen.num_problems else 'none',
    }
  facts |= walk.facts(seen) | {
    'images': f'{len(labels):,}',
    'sizes': _sizes_text(seen.sizes),
    'classes with images': f'{len(classes):,}',
  }
  if len(classes):
    facts |= {
      'labels': f'{classes[0]:.0f} to {classes[-1]:.0f}',
      'images per class': f'{images_per_class.min():,} to '
      f'{images_per_class.max():,}, median {np.median(images_per_class):,g}',
    }
  images = walk.order[seen.is_image[walk.order]]
  intact = images[seen.is_intact[images]]
  later, shared, notes = _copies(walk, seen, intact)
  facts['copies'] = (
    f'{later.sum():,} in their own class, {shared.sum():,} images in several'
  )
  facts['contents'] = seen.contents(images)
  if fix is not None:
    good = valid_labels(seen.labels[intact], num_classes or np.inf)
    kept = intact[good & ~later & ~shared]
    _write_clean(walk, seen, kept, num_classes, Path(fix))
    facts['clean copy'] = f'{len(kept):,} of {len(images):,} images, in {fix}'
  return Report(
    walk.title, facts, seen.problems, seen.num_problems, notes, images_per_class
  )


def _examine_all(walk: Walk) -> Iterator[tuple[int, Findings]]:
  """Examines all entries with all cores, a few chunks ahead of the reader."""
  threads = os.cpu_count()
  starts = range(0, walk.total, _CHUNK)
  ahead = collections.deque()
  pool = ThreadPoolExecutor(threads)
  try:
    for start in starts:
      stop = min(start + _CHUNK, walk.total)
      ahead.append((start, pool.submit(walk.examine, start, stop)))
      if len(ahead) > 2 * threads:
        first, future = ahead.popleft()
        yield first, future.result()
    for first, future in ahead:
      yield first, future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _check_labels(walk: Walk, seen: AllFindings, num_classes: int):
  wrong = seen.is_image & ~valid_labels(seen.labels, num_classes)
  for entry in np.flatnonzero(wrong):
    seen.bad(
      f'{walk.place(entry)}: label {seen.labels[entry]:g} is not an integer in '
      f'[0, {num_classes})'
    )


def _copies(
  walk: Walk, seen: AllFindings, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Finds images that occur more than once, byte for byte.

  Args:
    walk: names their places.
    seen: digests and labels.
    images: entries that are intact images, in canonical order, ``[m]``.

  Returns:
    True for copies of an earlier image with the same label, bool ``[m]``; True
    for images that have several labels, bool ``[m]``; and a line for some of
    them.
  """
  later, shared = np.zeros((2, len(images)), bool)
  words = seen.digests[images].view(np.uint64)
  labels = seen.labels[images]
  # Sorted by image, then by label, then by position.
  order = np.lexsort((labels, words[:, 1], words[:, 0]))
  words, labels = words[order], labels[order]
  same, same_label = np.zeros((2, len(images)), bool)
  same[1:] = (words[1:] == words[:-1]).all(axis=1)
  same_label[1:] = same[1:] & (labels[1:] == labels[:-1])
  later[order[same_label]] = True
  group = np.cumsum(~same)
  other_label = np.unique(group[same & ~same_label])
  shared[order[np.isin(group, other_label)]] = True
  notes = [
    f'{walk.place(images[order[i]])} (label {labels[i]:g}) is the image of '
    f'{walk.place(images[order[i - 1]])} (label {labels[i - 1]:g})'
    for i in np.flatnonzero(same)[:MAX_LINES]
  ]
  return later, shared, notes


def _write_clean(
  walk: Walk, seen: AllFindings, kept: np.ndarray, num_classes: int, out: Path
):
  """Writes the entries `kept`, sorted by label, as a ``.rec`` folder."""
  if not len(kept):
    raise InputError(f'{walk.title}: no image is intact; nothing to write')
  kept = kept[np.argsort(seen.labels[kept], kind='stable')]
  labels = seen.labels[kept].astype(np.int64)

  def images():
    for start in range(0, len(kept), _CHUNK):
      chunk = slice(start, start + _CHUNK)
      yield from zip(
        walk.encoded(kept[chunk]), labels[chunk].tolist(), strict=True
      )

  with atomic.folder(out, '--fix') as partial:
    write_rec_folder(partial, images(), num_classes or int(labels.max()) + 1)


def _sizes_text(sizes: collections.Counter) -> str:
  """Returns the five most frequent sizes and their counts as text."""
  most = [f'{size}: {n:,}' for size, n in sizes.most_common(5)]
  return ', '.join(most) or 'none'
