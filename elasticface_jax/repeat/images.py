# SPDX-License-Identifier: Apache-2.0
"""Images and labels: those of a run, and those that are here."""

import numpy as np

from elasticface_jax import data, terminal
from elasticface_jax.data import hashes as data_hashes
from elasticface_jax.errors import InputError
from elasticface_jax.repeat import expected
from elasticface_jax.repeat.expected import Expected, Images

_PIECE = 64  # Steps whose images are looked up at a time.


def check(run: Expected, source: data.Source, path: str, anyway: bool) -> str:
  """Compares a data set with the one that a run was trained on.

  Reads every image if the run has recorded a hash of each.

  Args:
    run: the run.
    source: the data set.
    path: of it, for the message.
    anyway: True to return what differs instead of refusing it.

  Returns:
    What differs, or what could not be compared; empty if all is the same.

  Raises:
    InputError: names the first image that differs and the step that it comes
      first in.
  """
  was, now = run.starts[0]['data_fingerprint'], source.fingerprint
  if run.images is not None and isinstance(source, data.EncodedSource):
    found = _difference(run, source)
  elif was != now:
    found = f'its fingerprint was {was}, is {now}'
  elif isinstance(source, data.EncodedSource):
    return (
      'the run has recorded no hash of each image: the data were compared by '
      'their fingerprint, which covers 1,024 of them'
    )
  else:
    return ''
  if found and not anyway:
    raise InputError(
      f'{path} is not what the run was trained on: {found}; give --data with '
      'what it was trained on, or --anyway to train nevertheless and compare'
    )
  return found


def _difference(run: Expected, source: data.EncodedSource) -> str:
  """Returns what differs between the hashes of a run and a data set."""
  was = run.images
  with terminal.progress('images compared') as progress:
    hashes, labels = data.read_hashes(source, progress)
  used = labels if was.with_labels else np.full_like(labels, -1)
  found = data.ImageHashes.of(hashes, used, source.num_classes)
  now = expected.in_blocks(found, was.block)
  parts = [
    f'it had {a:,} {what}, has {b:,}'
    for what, a, b in (
      ('images', was.num_images, now.num_images),
      ('classes', was.num_classes, now.num_classes),
    )
    if a != b
  ]
  shorter = min(len(was.hashes), len(now.hashes))
  changed = np.flatnonzero(was.hashes[:shorter] != now.hashes[:shorter])
  if parts and len(changed):
    first = _named(source, was, int(changed[0]))
    parts.append(f'the first that differs is {first}')
  elif len(changed):
    first, step = _first_trained_on(run, changed)
    more = f'; {len(changed) - 1:,} more differ' if len(changed) > 1 else ''
    what = _what(source, was, first, hashes, labels)
    parts.append(f'{what}; it comes first in step {step:,}{more}')
  return ', and '.join(parts)


def _first_trained_on(run: Expected, changed: np.ndarray) -> tuple[int, int]:
  """Returns which of some blocks a run comes to first, and at which step.

  Args:
    run: the run.
    changed: numbers of blocks, ascending, ``[k]``.
  """
  block, size = run.images.block, run.config['data.batch_size']
  piece = 0
  while True:
    # The images of a piece of steps are those of one step of a larger batch.
    indices = data.batch_indices(
      piece,
      num_images=run.images.num_images,
      seed=run.config['seed'],
      batch_size=_PIECE * size,
      window=run.config['data.window'],
    )
    blocks = indices // block
    places = np.flatnonzero(np.isin(blocks, changed))
    if len(places):
      place = int(places[0])
      return int(blocks[place]), piece * _PIECE + place // size + 1
    piece += 1


def _what(
  source: data.EncodedSource,
  was: Images,
  number: int,
  hashes: np.ndarray,
  labels: np.ndarray,
) -> str:
  """Says in what an image, or a block of them, differs."""
  named = _named(source, was, number)
  if was.block > 1:
    return f'one of {named} is another, or has another label'
  if was.with_labels:
    plain = int(hashes.view(np.uint32)[number])
    label = data_hashes.label_of(int(was.hashes[number]), plain)
    if label < was.num_classes:
      now = int(labels[number])
      return (
        f'the label of {named} was {label}, is {now if now >= 0 else "none"}'
      )
  return f'{named} is not the one that it was trained on'


def _named(source: data.EncodedSource, was: Images, number: int) -> str:
  """Names an image, or a block of them, by number and name."""
  first = number * was.block
  last = min(first + was.block, source.num_images) - 1
  if was.block == 1:
    return f'image {first:,} ({source.image_name(first)})'
  return (
    f'the images {first:,} to {last:,} ({source.image_name(first)} to '
    f'{source.image_name(last)})'
  )
