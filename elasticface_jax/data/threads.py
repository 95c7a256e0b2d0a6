# SPDX-License-Identifier: Apache-2.0
"""Batches of sources that only Python reads, made ahead by several threads.

The threads are Python's, not tf.data's. A tf.data iterator that calls Python to
read records holds Python's lock while it waits for its threads at deletion, and
can keep the process from ending. Python threads are fast enough because reads,
`simplejpeg` and most of Pillow release the lock.
"""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.order import batch_indices, images_to_come
from elasticface_jax.data.sources.opening import Source

# Images that one thread makes at a time: few enough to share a batch among
# threads, and enough to hide the cost of a call.
_CHUNK = 32
_BATCHES_AHEAD = 2
_FETCHERS = 8  # Threads that only wait for storage.


def in_order(
  pool: ThreadPoolExecutor, function: Callable, items: Iterable, *, ahead: int
) -> Iterator:
  """Yields a function's results in the order of its arguments.

  The pool is not this generator's own: one that is dropped half-way would end
  its threads when Python collects garbage, which Python 3.12 may do where it
  cannot wait for threads.

  Args:
    pool: threads that call the function.
    function: of one argument.
    items: the arguments.
    ahead: calls that may be under way or done while nobody takes a result.
  """
  waiting: collections.deque[Future] = collections.deque()
  for item in items:
    waiting.append(pool.submit(function, item))
    if len(waiting) > ahead:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


class Batch(NamedTuple):
  """One host's part of one step's batch.

  Attributes:
    images: RGB, uint8, ``[rows, 112, 112, 3]``.
    labels: int32, ``[rows]``.
    indices: numbers of the images in the source, int64, ``[rows]``.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray


def batches_by_threads(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  first_step: int,
  last_step: int,
  window: int,
  rows: slice | np.ndarray,
  threads: int | None,
) -> Iterator[Batch]:
  """Reads the batches of steps in order, two ahead of the reader.

  Args:
    source: any source.
    seed: as for `pipeline.batches`, as the others.
    batch_size: B.
    first_step: the first step wanted.
    last_step: the step after the last one wanted.
    window: the images of the next window are read ahead in their order on the
      storage.
    rows: slots of the batch.
    threads: number of threads that make images; None for one a core.

  Yields:
    The batch of each step.

  Raises:
    InputError: at the step whose batch the source cannot make.
  """
  fetchers = ThreadPoolExecutor(_FETCHERS)
  order = {
    'num_images': source.num_images,
    'seed': seed,
    'batch_size': batch_size,
    'window': window,
  }

  def orders():
    for step in range(first_step, last_step):
      if window:
        for piece in images_to_come(step, first=step == first_step, **order):
          fetchers.submit(source.warm, piece)
      yield batch_indices(step, rows=rows, **order)

  try:
    yield from _made_ahead(source, orders(), threads)
  finally:
    # Does not wait: the garbage collector may close a generator at any point.
    fetchers.shutdown(wait=False, cancel_futures=True)


def all_in_order(source: Source, *, batch_size: int) -> Iterator[Batch]:
  """Reads every image of a source once, in the order of the source.

  Args:
    source: the images.
    batch_size: images in a batch; the last one has the rest.

  Yields:
    Batches, made ahead by several threads.

  Raises:
    InputError: at the batch that the source cannot make.
  """
  n = source.num_images
  orders = (
    np.arange(start, min(start + batch_size, n))
    for start in range(0, n, batch_size)
  )
  yield from _made_ahead(source, orders, threads=None)


def _made_ahead(
  source: Source, orders: Iterable[np.ndarray], threads: int | None
) -> Iterator[Batch]:
  """Yields the batches of these images, made ahead of the reader."""
  pool = ThreadPoolExecutor(threads or os.cpu_count())
  ahead = collections.deque()
  try:
    for indices in orders:
      chunks = np.array_split(indices, -(-len(indices) // _CHUNK))
      made = [pool.submit(source.render, chunk) for chunk in chunks]
      ahead.append((indices, made))
      if len(ahead) > _BATCHES_AHEAD:
        yield _collect(*ahead.popleft())
    while ahead:
      yield _collect(*ahead.popleft())
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # As above.


def _collect(indices: np.ndarray, made: list[Future]) -> Batch:
  images, labels = zip(*(future.result() for future in made), strict=True)
  return Batch(np.concatenate(images), np.concatenate(labels), indices)
