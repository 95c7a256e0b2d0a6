# SPDX-License-Identifier: Apache-2.0
"""The judge of a damaged data set: an acceptable outcome, or a finding."""

import collections
import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError

OUTCOMES = (
  'refused opening',
  'refused reading',
  'same',
  'changed',
  'other count',
  'FOUND',
)


class Good(NamedTuple):
  """A good data set.

  Attributes:
    files: bytes by path in the folder.
    images: encoded images in their order.
    contents: what was read: images, labels, number of classes.
    facts: of the inspection's report.
  """

  files: dict[str, bytes]
  images: list[bytes]
  contents: tuple
  facts: dict[str, str]


class Finding(Exception):
  """An outcome that is not acceptable."""


def judge(kind: Any, good: Good, folder: Path) -> tuple[str, str]:
  """Reads and inspects a damaged copy.

  Args:
    kind: a `Kind`: that of the data before the damage.
    good: the data before the damage.
    folder: the damaged copy.

  Returns:
    One of `OUTCOMES`, and the message if there is one.

  Raises:
    Finding: if the outcome is not acceptable.
  """
  opened, refusal = attempt(folder, 'opening', lambda: kind.open(folder))
  outcome, contents = 'refused opening', None
  if opened is not None:
    contents, refusal = attempt(folder, 'reading', lambda: kind.read(opened))
    outcome = 'refused reading'
  report, _ = attempt(folder, 'inspecting', lambda: kind.inspect(folder))
  ok = report is not None and report.ok
  if report is not None:
    attempt(folder, 'printing the report', lambda: str(report))

  if contents is None:
    if ok:
      raise Finding(f'refused, but the inspection reports no fault: {refusal}')
    return outcome, refusal
  images, labels, num_classes = contents
  if images.shape[1:] != (112, 112, 3) or images.dtype != np.uint8:
    raise Finding(f'images are {images.dtype} {images.shape}')
  for label in labels:
    if not 0 <= label < num_classes:
      raise Finding(f'label {label} of {num_classes} classes')
  if len(images) != len(good.images):
    if kind.left_out and report is not None and kind.left_out(report, folder):
      return 'other count', ''
    raise Finding(
      f'{len(images)} images instead of {len(good.images)} without a message\n'
      f'{report}'
    )
  if all(map(np.array_equal, contents, good.contents)):
    return 'same', ''
  if ok and report.facts == good.facts:
    raise Finding('contents differ, but the inspection reports the same facts')
  check_intact_images(good, folder, images)
  return 'changed', ''


def check_intact_images(good: Good, folder: Path, images: np.ndarray) -> None:
  """Checks that the images whose bytes are intact were read.

  Args:
    good: the data before the damage.
    folder: the damaged copy.
    images: the images read.

  Raises:
    Finding: if one was not read, or was read more often than it is stored.
  """
  paths = [folder / name for name in good.files]
  left = [path.read_bytes() for path in paths if path.exists()]
  if sum(map(len, left)) > sum(map(len, good.files.values())):
    return  # Intact records that were put in between may be read instead.
  times = collections.Counter(image.tobytes() for image in images)
  for row, encoded in enumerate(good.images):
    stored = sum(data.count(encoded) for data in left)
    read = times[good.contents[0][row].tobytes()]
    if stored and not 1 <= read <= stored:
      raise Finding(f'image {row} is stored {stored} time(s), read {read}')


def attempt(folder: Path, action: str, call: Callable) -> tuple[Any, str]:
  """Calls a function that may raise an `InputError`.

  Args:
    folder: the path that a message must name.
    action: the call in words.
    call: the function.

  Returns:
    Its result and ''; or None and the message of an `InputError`.

  Raises:
    Finding: if it raises anything else, or its message is not fit to print.
  """
  try:
    return call(), ''
  except InputError as error:
    message = str(error)
    if not message.isprintable():
      raise Finding(f'{action}: not one clean line: {message!r}') from error
    if str(folder) not in message:
      raise Finding(f'{action}: names no file: {message}') from error
    return None, message
  except Exception as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise Finding(
      f'{action}: {error!r} in {frame.name}, {Path(frame.filename).name}:'
      f'{frame.lineno}\n{traceback.format_exc()}'
    ) from error


@contextlib.contextmanager
def no_unraisable():
  """Turns warnings into errors, and unraisable exceptions into a finding."""
  unraisable = []
  hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      yield
  finally:
    sys.unraisablehook = hook
  if unraisable:
    raise Finding(f'unraisable exception: {unraisable[0].exc_value!r}')
