# SPDX-License-Identifier: Apache-2.0
"""The batches of steps as training reads them, for every kind of source."""

import sys
from collections.abc import Iterator

import numpy as np

from elasticface_jax.data.feed import dataset, is_read_in_graph
from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.opening import Source
from elasticface_jax.data.threads import Batch, batches_by_threads
from elasticface_jax.errors import first_line

_STEPS_OF_TROUBLE = 16  # Read by threads; a new graph takes half a second.


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

  Several threads make the images, ahead of the reader: those of TensorFlow for
  a source that a graph can read (`dataset`), otherwise Python's. The result
  depends neither on the threads nor on their kind.

  Args:
    source: the images.
    seed: seed of the run.
    batch_size: B, over all hosts.
    first_step: the first step wanted.
    last_step: the step after the last one wanted.
    window: as for `batch_indices`; the images of the next window are read
      ahead in their order on the storage.
    rows: slots of the batch that this host reads, ascending.
    threads: number of threads that make images; None for one a core.

  Yields:
    The batch of each step.

  Raises:
    InputError: at the step whose batch the source cannot make.
  """
  keywords = {
    'seed': seed,
    'batch_size': batch_size,
    'window': window,
    'rows': rows,
    'threads': threads,
  }
  if not is_read_in_graph(source):
    yield from batches_by_threads(
      source, first_step=first_step, last_step=last_step, **keywords
    )
    return
  # Looked up now: a generator may be closed when the interpreter ends.
  failure = tensorflow().errors.OpError
  step = first_step
  while step < last_step:
    stream = dataset(source, first_step=step, last_step=last_step, **keywords)
    try:
      for batch in stream.as_numpy_iterator():
        yield Batch(*batch)
        step += 1
      return
    except failure as error:
      # Behind the names of TensorFlow's functions.
      trouble = first_line(error).rpartition('}} ')[2]
    # The strict reader names the image that is to blame. It may be one of a
    # later step, as windows are read ahead; or the trouble has passed.
    steps = max(_STEPS_OF_TROUBLE, 1 + window // batch_size)
    strict = batches_by_threads(
      _Again(source.fresh()),
      first_step=step,
      last_step=min(last_step, step + steps),
      **keywords,
    )
    for batch in strict:
      if trouble:
        print(
          f'warning: step {step + 1} is read again after an error: {trouble}',
          file=sys.stderr,
        )
        trouble = ''
      yield batch
      step += 1


class _Again:
  """A source after trouble: it compares images with those that were checked."""

  def __init__(self, source: EncodedSource):
    self.num_images = source.num_images
    self.render, self.warm = source.render_again, source.warm
