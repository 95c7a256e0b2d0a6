# SPDX-License-Identifier: Apache-2.0
"""Batches by their number: the step says which images, nothing else does.

The samples of a run are numbered 0, 1, 2, ... without end; step t takes those
in ``[t B, (t + 1) B)``. Sample i is image ``permutation_e(i mod n)`` of n, with
epoch ``e = i // n`` and a permutation keyed by (seed, epoch) that is computed
for one index at a time. So there is no state: any step's batch is known from
its number, starting at step a million costs what starting at 0 does, and hosts
that read parts of a batch read together what one host would.

Threads of Python's, and not tf.data: a tf.data iterator that calls Python to
read records waits for its threads when it is deleted, with Python's lock held,
and can keep the process from ending. Decoding is TensorFlow's either way,
outside of the lock.
"""

import collections
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.decode import tensorflow
from elasticface_jax.data.sources import Source

# Images that one thread makes at a time: few enough to share a batch among
# threads, enough to hide the cost of a call.
_CHUNK = 32
_BATCHES_AHEAD = 2


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


def batch_indices(
  step: int,
  *,
  num_images: int,
  seed: int,
  batch_size: int,
  rows: slice | np.ndarray = slice(None),
) -> np.ndarray:
  """Which images the batch of a step holds.

  Args:
    step: t, from 0.
    num_images: n; every n samples show each image once.
    seed: with the epoch, the key of the permutation; not negative.
    batch_size: B; may be larger than n, and a batch may span epochs.
    rows: the part of the batch that is wanted.

  Returns:
    Indices in ``[0, n)``, int64, ``[rows]``.
  """
  samples = step * batch_size + np.arange(batch_size, dtype=np.int64)[rows]
  epochs, positions = np.divmod(samples, num_images)
  # As they are, small numbers make poor keys of this cipher: under (0, 0, 0) it
  # changes nothing. Its default of 4 rounds leaves neighbours of a large set
  # together; 16 cannot be told from a true shuffle and cost 0.2 us an index.
  distinct, which = np.unique(epochs, return_inverse=True)
  streams = [
    np.random.SeedSequence(seed, spawn_key=(epoch,)) for epoch in distinct
  ]
  keys = np.stack([stream.generate_state(3) for stream in streams])
  shuffled = tensorflow().random_index_shuffle(
    positions,
    keys[which].astype(np.int64),
    np.int64(num_images - 1),
    rounds=16,
  )
  return shuffled.numpy()


def batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  first_step: int,
  last_step: int,
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
    rows: the part of the batch that this host reads.
    threads: threads that make images; None for one a core.

  Yields:
    The batch of each step.

  Raises:
    InputError: when the step comes whose batch the source cannot make.
  """
  pool = ThreadPoolExecutor(threads or os.cpu_count())
  ahead = collections.deque()
  try:
    for step in range(first_step, last_step):
      indices = batch_indices(
        step,
        num_images=source.num_images,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
      )
      chunks = np.array_split(indices, -(-len(indices) // _CHUNK))
      made = [pool.submit(source.render, chunk) for chunk in chunks]
      ahead.append((indices, made))
      if len(ahead) > _BATCHES_AHEAD:
        yield _collect(*ahead.popleft())
    while ahead:
      yield _collect(*ahead.popleft())
  finally:
    pool.shutdown(cancel_futures=True)


def _collect(indices: np.ndarray, made: list[Future]) -> Batch:
  images, labels = zip(*(future.result() for future in made), strict=True)
  return Batch(np.concatenate(images), np.concatenate(labels), indices)
