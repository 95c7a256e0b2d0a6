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
from elasticface_jax.data.pairs import is_pair_set, read_encoded
from elasticface_jax.data.sources.decode import SIZE
from elasticface_jax.data.sources.encoded import EncodedSource, counted
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.opening import open_encoded
from elasticface_jax.data.sources.rec import check_rec, is_rec
from elasticface_jax.data.tools import clean_copy
from elasticface_jax.data.tools.classes import (
  Classes,
  find_classes,
  gaps,
  people,
)
from elasticface_jax.data.tools.classes import lost as lost_note
from elasticface_jax.data.tools.report import MAX_LINES, Report
from elasticface_jax.data.tools.walks import (
  AllFindings,
  Findings,
  ImageWalk,
  Look,
  RecordWalk,
  Walk,
  look_at,
  notes_about,
  size_text,
)
from elasticface_jax.errors import InputError

_CHUNK = 256  # Entries that one thread examines at a time.

Progress = Callable[[int, int], None]


class NotFixed(InputError):
  """Error for a clean copy that was not written; the inspection is complete.

  Attributes:
    report: the report of the inspection.
  """

  def __init__(self, message: str, report: Report):
    super().__init__(message)
    self.report = report


def inspect(
  path: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
  renumber: bool = False,
) -> Report:
  """Inspects a data set or a pair set; the path decides which it is.

  Args:
    path: a data set as for `open_encoded`, or a file of pairs.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.
    renumber: as for `inspect_rec`.

  Returns:
    The report of `inspect_rec`, `inspect_images` or `inspect_pairs`.

  Raises:
    InputError: if it is none of these, or `fix` is given for pairs.
  """
  if is_pair_set(path):
    if fix is not None:
      raise InputError(
        f'--fix {os.fspath(fix)}: {os.fspath(path)} is a pair set, from which '
        'no image can be left out; make it again'
      )
    return inspect_pairs(path)
  if not is_remote(path) and is_rec(Path(path)):
    return inspect_rec(path, progress, fix, renumber)
  return inspect_images(open_encoded(path), progress, fix, renumber)


def inspect_rec(
  folder: str | os.PathLike,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
  renumber: bool = False,
) -> Report:
  """Reads and decodes every record of a ``.rec`` folder, in file order.

  Args:
    folder: holds ``train.rec`` and ``train.idx``; `property` may be missing,
      which the report names as a problem.
    progress: called now and then with the number of records done and of all.
    fix: folder for a clean copy, in the same layout; must be missing or empty.
      Bad images are left out. So are copies of an image within its class, but
      for the first one, and all copies of an image that has several labels.
      Its ``labels.tsv`` has old label, new label, number of images and name
      of every person.
    renumber: False to keep the labels; then images with a label that is no
      class stop the copy. True for labels 0, 1, ... without gaps, in the order
      of the old ones.

  Returns:
    The report. It does not stop at the first problem.

  Raises:
    InputError: if there is nothing to inspect: no folder, ``train.rec`` or
      ``train.idx``, or an unreadable index.
    NotFixed: if the clean copy would lose people, or cannot be written. Then
      nothing of it remains.
  """
  folder = Path(folder)
  check_rec(folder)
  return _inspect(RecordWalk(folder), progress, fix, renumber)


def inspect_images(
  source: EncodedSource,
  progress: Progress = lambda done, total: None,
  fix: str | os.PathLike | None = None,
  renumber: bool = False,
) -> Report:
  """Reads and decodes every image of a folder of images, or of shards.

  Args:
    source: the images.
    progress: as for `inspect_rec`.
    fix: as for `inspect_rec`.
    renumber: as for `inspect_rec`.

  Returns:
    The report.

  Raises:
    NotFixed: as for `inspect_rec`.
  """
  return _inspect(ImageWalk(source), progress, fix, renumber)


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
  looks = _look_at_all(encoded)
  for image, look in enumerate(looks):
    if look.size is None:
      problems.append(f'image {image} (pair {image // 2}): {look.problem}')
    else:
      sizes[size_text(look.size)] += 1
  sha = hashlib.sha256(same.tobytes())
  for one in encoded:
    sha.update(one)
  facts = {
    'pairs': f'{len(same):,}: {same.sum():,} same, {(~same).sum():,} different',
    'images': f'{len(encoded):,}',
    'sizes': _sizes_text(sizes),
    'contents': sha.hexdigest(),
  }
  notes = _note_on_sizes(sizes, len(encoded)) + notes_about(
    sum(look.turned for look in looks), sum(look.mended for look in looks)
  )
  return Report(str(path), facts, problems[:MAX_LINES], len(problems), notes)


def _look_at_all(encoded: list[bytes]) -> list[Look]:
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(look_at, encoded))


def _note_on_sizes(sizes: collections.Counter, total: int) -> list[str]:
  """Returns a note about faces of a pair set that have to be resized."""
  others = sizes.copy()
  del others[size_text((SIZE, SIZE))]
  if not others:
    return []
  number, largest = others.total(), others.most_common(1)[0][0]
  which = largest if len(others) == 1 else f'most of them {largest}'
  return [
    f'{number:,} of {counted(total, "image")} {"is" if number == 1 else "are"} '
    f'not {SIZE}x{SIZE} ({which}): resized and cropped at the centre; give '
    'aligned faces'
  ]


def _inspect(walk: Walk, progress: Progress, fix, renumber: bool) -> Report:
  if renumber and fix is None:
    raise InputError('renumber is for the clean copy: give fix, too')
  if fix is not None:
    atomic.check_unused(Path(fix), '--fix')  # Hours before it is written.
    atomic.check_folder(Path(fix).parent, '--fix')
  seen = AllFindings(walk.total)
  for start, found in _examine_all(walk):
    progress(start, walk.total)
    seen.add(start, found)
  progress(walk.total, walk.total)
  source = walk.compare(seen)
  classes = find_classes(walk, seen, source.num_classes if source else 0)
  images = walk.order[seen.is_image[walk.order]]
  intact = images[seen.is_intact[images]]
  copies = clean_copy.find_copies(walk, seen, intact)
  single = intact[~copies.later & ~copies.shared]
  lost = np.setdiff1d(classes.found, seen.labels[single])
  labels, images_per_class = np.unique(
    seen.labels[images][np.isfinite(seen.labels[images])], return_counts=True
  )
  report = Report(
    walk.title,
    _facts(walk, seen, source, images, labels, images_per_class)
    | {
      'copies': f'{copies.later.sum():,} in their own class, '
      f'{copies.shared.sum():,} images in several',
      'contents': seen.contents(images),
    },
    seen.problems,
    seen.num_problems,
    notes_about(seen.num_turned, seen.num_mended)
    + gaps(walk, classes)
    + lost_note(walk, lost)
    + copies.notes,
    images_per_class,
  )
  if fix is not None:
    _fix(walk, seen, classes, single, report, Path(fix), renumber)
  return report


def _facts(
  walk: Walk,
  seen: AllFindings,
  source: EncodedSource | None,
  images: np.ndarray,
  labels: np.ndarray,
  images_per_class: np.ndarray,
) -> dict[str, str]:
  facts = {'layout': 'none that can be trained on'}
  if source:
    facts = {
      'layout': source.layout,
      'classes': f'{source.num_classes:,}',
      'fingerprint': source.fingerprint if not seen.num_problems else 'none',
    }
  facts |= walk.facts(seen) | {
    'images': f'{len(images):,}',
    'sizes': _sizes_text(seen.sizes),
    'classes with images': f'{len(labels):,}',
  }
  if len(labels):
    facts |= {
      'labels': f'{labels[0]:.0f} to {labels[-1]:.0f}',
      'images per class': f'{images_per_class.min():,} to '
      f'{images_per_class.max():,}, median {np.median(images_per_class):,g}',
    }
  return facts


def _fix(
  walk: Walk,
  seen: AllFindings,
  classes: Classes,
  entries: np.ndarray,
  report: Report,
  out: Path,
  renumber: bool,
) -> None:
  """Writes the clean copy and adds it to the facts of the report."""
  try:
    copy = clean_copy.plan(walk, seen, classes, entries, renumber=renumber)
    clean_copy.write(walk, copy, out)
  except InputError as error:
    raise NotFixed(f'--fix {out}: {error}', report) from error
  report.facts['clean copy'] = (
    f'{len(copy.entries):,} of {report.facts["images"]} images, '
    f'{(copy.images > 0).sum():,} of {people(len(copy.old))}, in {out}'
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


def _sizes_text(sizes: collections.Counter) -> str:
  """Returns the five most frequent sizes and their counts as text."""
  most = [f'{size}: {n:,}' for size, n in sizes.most_common(5)]
  return ', '.join(most) or 'none'
