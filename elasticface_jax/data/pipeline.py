# SPDX-License-Identifier: Apache-2.0
"""Batches, made ahead of the reader by several threads.

Threads of Python's, and not tf.data: a tf.data iterator that calls Python to
read records waits for its threads when it is deleted, with Python's lock held,
and can keep the process from ending. Decoding is TensorFlow's either way,
outside of the lock.
"""

import collections
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.order import batch_indices, images_to_come
from elasticface_jax.data.sources.opening import Source

# Images that one thread makes at a time: few enough to share a batch among
# threads, enough to hide the cost of a call.
_CHUNK = 32
_BATCHES_AHEAD = 2
_FETCHERS = 8  # Threads that wait for storage and do nothing else.


class Batch(NamedTuple):
  """One host's part of one step's batch.

  Attributes:
    images: RGB, uint8, ``[rows, 112, 112, 3]``.
    labels: int32, ``[rows]``.
    indices: which images of the source they are, int64, ``[rows]``.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray


def batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  first_step: int,
  last_step: int,
  window: int = 0,
  rows: slice | np.ndarray = slice(None),
  threads: int | None = None,
) -> Iterator[Batch]:
  """Reads the batches of steps ``first_step`` to ``last_step - 1``, in order.

  Images are made by several threads, two batches ahead of the reader; which
  thread makes what changes nothing.

  Args:
    source: where images come from.
    seed: seed of the run.
    batch_size: B, over all hosts.
    first_step: the first step wanted.
    last_step: the first step no longer wanted.
    window: as for `batch_indices`; the images of the next window are read
      ahead in their order on the storage.
    rows: the part of the batch that this host reads.
    threads: threads that make images; None for one a core.

  Yields:
    The batch of each step.

  Raises:
    InputError: when the step comes whose batch the source cannot make.
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
    # Not waited for: a generator may be closed by the garbage collector, in the
    # midst of anything.
    fetchers.shutdown(wait=False, cancel_futures=True)


def all_in_order(source: Source, *, batch_size: int) -> Iterator[Batch]:
  """Reads every image of a source once, in the order of the source.

  Args:
    source: where images come from.
    batch_size: images of a batch; the last has what is left.

  Yields:
    Batches, made ahead by several threads.

  Raises:
    InputError: when the batch comes that the source cannot make.
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
  """Makes the batches whose images are given, some ahead of the reader."""
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
