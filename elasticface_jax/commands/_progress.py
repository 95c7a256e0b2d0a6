# SPDX-License-Identifier: Apache-2.0
"""A progress bar over a number of things."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
  """Shows a progress bar on a terminal, and nothing elsewhere.

  Args:
    unit: name of the things, such as ``'images'``.

  Yields:
    ``progress(done, total)``, to be called as the work proceeds.
  """
  import tqdm

  with tqdm.tqdm(unit=f' {unit}', disable=None) as shown:

    def progress(done, total):
      shown.total = total
      shown.update(done - shown.n)

    yield progress
