# SPDX-License-Identifier: Apache-2.0
"""Batches by their number: the step says which images, nothing else does.

The samples of a run are numbered 0, 1, 2, ... without end; step t takes those
in ``[t B, (t + 1) B)``. Sample i is image ``permutation_e(i mod n)`` of n, with
epoch ``e = i // n`` and a permutation keyed by (seed, epoch) that is computed
for one index at a time. So there is no state: any step's batch is known from
its number, starting at step a million costs what starting at 0 does, and hosts
that read parts of a batch read together what one host would.

The pipeline is a `tf.data.Dataset` of step numbers. Each is mapped to its batch
by several threads at once, in order; reading is Python's (positioned reads),
decoding is TensorFlow's, outside of Python's lock.
"""

import os
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from elasticface_jax.data.decode import tensorflow
from elasticface_jax.data.sources import Source
from elasticface_jax.errors import InputError

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
  rows: slice = slice(None),
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
  rows: slice = slice(None),
  threads: int | None = None,
) -> Iterator[Batch]:
  """Reads the batches of steps ``first_step`` to ``last_step - 1``, in order.

  Batches are made by several threads, ahead of the reader; which thread makes
  what changes nothing.

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
  tf = tensorflow()
  tensorflow_error = tf.errors.OpError  # Not to be found at exit any more.
  failed = {}  # TensorFlow would hand an error on as text.

  def make(step):
    try:
      indices = batch_indices(
        int(step),
        num_images=source.num_images,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
      )
      return *source.render(indices), indices
    except InputError as error:
      failed[int(step)] = error
      raise

  def load(step):
    dtypes = [tf.uint8, tf.int32, tf.int64]
    return tf.numpy_function(make, [step], dtypes, stateful=False)

  dataset = tf.data.Dataset.range(first_step, last_step)
  dataset = dataset.map(
    load, num_parallel_calls=threads or os.cpu_count(), deterministic=True
  )
  iterators = [iter(dataset.prefetch(_BATCHES_AHEAD))]
  # Threads of an iterator that calls Python must end before the interpreter
  # does, or it waits for them and they for it. This also runs at exit.
  end = weakref.finalize(dataset, iterators.clear)
  try:
    for _ in range(first_step, last_step):
      yield Batch(*(part.numpy() for part in next(iterators[0])))
  except tensorflow_error:
    if not failed:
      raise
    raise failed[min(failed)] from None
  finally:
    end()
