# SPDX-License-Identifier: Apache-2.0
"""Findings about the labels of a data set: what fits its number of classes."""

from typing import NamedTuple

import numpy as np

from elasticface_jax.data.sources.encoded import counted, valid_labels
from elasticface_jax.data.tools.walks import AllFindings, Walk

# Labels of a .rec are float32, exact up to here. Without a number of classes, a
# label beyond it is damage.
_MAX_CLASSES = 1 << 24
_NAMED = 5  # Classes that a line names; all are counted.


class Classes(NamedTuple):
  """Classes of a data set.

  Attributes:
    found: labels of all images that are integers from 0 on, int64 ascending,
      ``[c]``.
    stated: C, as the data set states it; 0 if it does not.
    needed: the number of classes that holds all of them.
  """

  found: np.ndarray
  stated: int
  needed: int


def find_classes(walk: Walk, seen: AllFindings, stated: int) -> Classes:
  """Compares labels with the number of classes; adds problems for images.

  Args:
    walk: names the places of images.
    seen: the labels; problems are added to it.
    stated: C, or 0 if it is unknown.

  Returns:
    The classes.
  """
  labels = seen.labels
  limit = stated or _MAX_CLASSES
  for entry in np.flatnonzero(seen.is_image & ~valid_labels(labels, limit)):
    seen.bad(
      f'{walk.place(entry)}: label {labels[entry]:g} is not an integer in '
      f'[0, {limit})'
    )
  is_class = seen.is_image & valid_labels(labels, max(stated, _MAX_CLASSES))
  found = np.unique(labels[is_class]).astype(np.int64)
  largest = int(found[-1]) + 1 if len(found) else 0
  classes = Classes(found, stated, max(stated or seen.num_identities, largest))
  outside = is_class & (labels >= limit)
  if outside.any():
    seen.headline(
      f'{_beyond(walk, seen, classes, outside)}; {remedy(walk, seen, classes)}'
    )
  return classes


def remedy(walk: Walk, seen: AllFindings, classes: Classes) -> str:
  """Returns what to do about labels beyond the number of classes."""
  renumber = '--fix DIR --renumber writes a copy with labels from 0 on'
  # A header states the number too, and it is not to be written by hand.
  if walk.property_path and not seen.num_identities:
    line = f'`{classes.needed},112,112`'
    return f'write the line {line} into {walk.property_path}, or {renumber}'
  return renumber


def refusal(
  walk: Walk, seen: AllFindings, classes: Classes, entries: np.ndarray
) -> str:
  """Returns why a clean copy that leaves out these entries is refused."""
  outside = np.zeros(len(seen.labels), bool)
  outside[entries] = True
  return (
    f'{_beyond(walk, seen, classes, outside)}, and would be left out; '
    f'{remedy(walk, seen, classes)}'
  )


def gaps(classes: Classes) -> list[str]:
  """Returns a note about classes without images, if there are any."""
  num_gaps = classes.needed - len(classes.found)
  if not num_gaps:
    return []
  # Those at the beginning are named; there may be millions.
  first = np.arange(len(classes.found) + min(num_gaps, _NAMED))
  missing = first[~np.isin(first, classes.found)][:_NAMED].tolist()
  one = num_gaps == 1
  text = f'{num_gaps:,} of {classes.needed:,} classes {_has(one)} no image: '
  text += ', '.join(map(str, missing)) + ('' if num_gaps <= _NAMED else ', ...')
  if missing == [0]:
    text += ' (labels begin with 1)'
  return [f'{text}; --fix DIR --renumber leaves {"it" if one else "them"} out']


def lost(walk: Walk, labels: np.ndarray) -> list[str]:
  """Returns a note about classes of which a clean copy has no image.

  Args:
    walk: names classes.
    labels: of the classes, int64.

  Returns:
    One line, or none.
  """
  if not len(labels):
    return []
  names = ', '.join(walk.class_name(label) for label in labels[:_NAMED])
  more = ', ...' if len(labels) > _NAMED else ''
  return [
    f'{people(len(labels))} {_has(len(labels) == 1)} no image that is intact '
    f'and in no other class: {names}{more}; a clean copy has none of theirs'
  ]


def people(number: int) -> str:
  """Returns a count of people.

  Examples:
    >>> people(1), people(2_000)
    ('1 person', '2,000 people')
  """
  return f'{number:,} {"person" if number == 1 else "people"}'


def _has(one: bool) -> str:
  return 'has' if one else 'have'


def _beyond(
  walk: Walk, seen: AllFindings, classes: Classes, outside: np.ndarray
) -> str:
  labels = np.unique(seen.labels[outside])
  images = counted(int(outside.sum()), 'image')
  return (
    f'{images} of {people(len(labels))} {_has(outside.sum() == 1)} labels '
    f'{labels[0]:.0f} to {labels[-1]:.0f}, but {walk.stated_by} says '
    f'{counted(classes.stated, "class")}, which are 0 to {classes.stated - 1}'
  )
