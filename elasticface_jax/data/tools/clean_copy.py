# SPDX-License-Identifier: Apache-2.0
"""Clean copies: the intact images of a data set, each of them once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.sources.recordio import write_rec_folder
from elasticface_jax.data.tools import classes as labels_of
from elasticface_jax.data.tools.classes import Classes
from elasticface_jax.data.tools.report import MAX_LINES
from elasticface_jax.data.tools.walks import AllFindings, Walk
from elasticface_jax.errors import InputError

TABLE = 'labels.tsv'
_CHUNK = 256  # Images that are read at a time.


class Copies(NamedTuple):
  """Images that occur more than once, byte for byte.

  Attributes:
    later: True for copies of an earlier image with the same label, bool
      ``[m]``.
    shared: True for images that have several labels, bool ``[m]``.
    notes: a line for some of them.
  """

  later: np.ndarray
  shared: np.ndarray
  notes: list[str]


def find_copies(walk: Walk, seen: AllFindings, images: np.ndarray) -> Copies:
  """Finds images that occur more than once, byte for byte.

  Args:
    walk: names their places.
    seen: digests and labels.
    images: entries that are intact images, in canonical order, ``[m]``.

  Returns:
    The copies among them.
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
  return Copies(later, shared, notes)


class Plan(NamedTuple):
  """Content of a clean copy.

  Attributes:
    entries: the images, sorted by label, int64 ``[k]``.
    labels: their labels in the copy, int64 ``[k]``.
    num_classes: C of the copy.
    old: labels of all people in the data set, int64 ``[c]``.
    new: their labels in the copy, -1 for none, int64 ``[c]``.
    images: number of their images in the copy, int64 ``[c]``.
  """

  entries: np.ndarray
  labels: np.ndarray
  num_classes: int
  old: np.ndarray
  new: np.ndarray
  images: np.ndarray


def plan(
  walk: Walk,
  seen: AllFindings,
  classes: Classes,
  entries: np.ndarray,
  *,
  renumber: bool,
) -> Plan:
  """Decides which images a clean copy has, and with which labels.

  Args:
    walk: names the data set.
    seen: the labels.
    classes: found and stated.
    entries: images that are intact and no copies, in canonical order.
    renumber: True for labels 0, 1, ... without gaps, in the order of the old
      ones; False for the old ones.

  Returns:
    The plan.

  Raises:
    InputError: if no image is left, or old labels are to be kept, but some of
      them are no class.
  """
  entries = entries[np.isin(seen.labels[entries], classes.found)]
  old = seen.labels[entries]
  if not renumber and classes.stated:
    outside = entries[old >= classes.stated]
    if len(outside):
      raise InputError(labels_of.refusal(walk, seen, classes, outside))
  if not len(entries):
    raise InputError(f'{walk.title}: no image is intact; nothing to write')
  order = np.argsort(old, kind='stable')
  entries, old = entries[order], old[order].astype(np.int64)
  places = np.searchsorted(classes.found, old)
  images = np.bincount(places, minlength=len(classes.found))
  new, num_classes = classes.found, classes.needed
  if renumber:
    new = np.where(images > 0, np.cumsum(images > 0) - 1, -1)
    num_classes = int(new.max()) + 1
  return Plan(entries, new[places], num_classes, classes.found, new, images)


def write(walk: Walk, copy: Plan, out: Path) -> None:
  """Writes a clean copy as a ``.rec`` folder with a table of its labels.

  The table, ``labels.tsv``, has a line for each person of the data set: the old
  label, the new one (-1 if no image is kept), the number of images, and the
  name.

  Args:
    walk: reads the images.
    copy: the plan.
    out: the folder; missing or empty.

  Raises:
    InputError: if it cannot be written. Then nothing of it remains.
  """

  def images():
    for start in range(0, len(copy.entries), _CHUNK):
      chunk = slice(start, start + _CHUNK)
      yield from zip(
        walk.encoded(copy.entries[chunk]),
        copy.labels[chunk].tolist(),
        strict=True,
      )

  with atomic.folder(out, '--fix') as partial:
    write_rec_folder(partial, images(), copy.num_classes)
    with open(partial / TABLE, 'w', encoding='utf-8', newline='\n') as table:
      table.write('old\tnew\timages\tname\n')
      numbers = zip(
        *(column.tolist() for column in (copy.old, copy.new, copy.images)),
        strict=True,
      )
      for old, new, count in numbers:
        name = ' '.join(walk.class_name(old).split())
        table.write(f'{old}\t{new}\t{count}\t{name}\n')
