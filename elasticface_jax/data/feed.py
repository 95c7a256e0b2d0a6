# SPDX-License-Identifier: Apache-2.0
"""Batches of steps as one `tf.data.Dataset`.

For TFRecord shards and folders of images it is one graph from the number of a
step to pixels, without Python: step -> numbers of the images (`order`) ->
records (`sources.graph`) -> checks -> JPEG or PNG decoded -> batch. Records are
read at random, so that any step is the first as fast as step 0.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.data import order
from elasticface_jax.data.sources import checks, exif, graph
from elasticface_jax.data.sources.decode import SIZE, tensorflow
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.opening import Source
from elasticface_jax.data.threads import batches_by_threads

_STEPS_AHEAD = 2
_STEPS_AT_ONCE = 2  # The next one begins while the last images of one decode.
_RUNS_AT_ONCE = 8
_PIECE = 512  # Records that are taken out of a window at a time.


def has_graph(source: Source) -> bool:
  """Returns True if a graph can read records of a source without Python."""
  return isinstance(source, EncodedSource) and source.in_graph


def is_read_in_graph(source: Source) -> bool:
  """Returns True if a graph can read and decode all images of a source.

  It checks them all, if that was not done yet.
  """
  return has_graph(source) and not source.checks().other().size


def dataset(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  first_step: int,
  last_step: int,
  rows: slice | np.ndarray = slice(None),
  window: int = 0,
  threads: int | None = None,
) -> Any:
  """Makes the data set of the batches of steps, in order.

  Element i is the batch of step ``first_step + i``, whatever the first step is,
  and the same for every storage format. TFRecord shards and folders of images
  are read by a graph without Python; the first use checks all their images
  (`EncodedSource.checks`). Other sources, and sets with images that TensorFlow
  does not decode to the same pixels, are read by threads of Python (`threads`):
  delete an iterator over them before the process ends.

  Args:
    source: the images, from `open_source` or `open_encoded`.
    seed: seed of the run.
    batch_size: B, over all hosts.
    first_step: the first step wanted.
    last_step: the step after the last one wanted.
    rows: slots of the batch that this host reads; ascending.
    window: as for `batch_indices`. Shards are then read by runs of neighbours,
      a window ahead; up to three windows of encoded images are in memory.
    threads: number of images of a step that are read from a disk or decoded at
      a time; two steps are at work. None for one a core.

  Returns:
    A `tf.data.Dataset`, without autotune, of images, RGB, uint8,
    ``[rows, 112, 112, 3]``; labels, int32, ``[rows]``; and the images' numbers
    in the source, int64, ``[rows]``. An image that is damaged, or not the one
    that was checked, raises `tf.errors.OpError`; `batches` names it.

  Raises:
    InputError: if there are no such steps.
    ValueError: if there is a window, and `rows` do not ascend.

  Examples:
    >>> from elasticface_jax.data import SyntheticFaces
    >>> faces = SyntheticFaces(num_images=6, num_classes=3, seed=0)
    >>> steps = dataset(faces, seed=0, batch_size=4, first_step=0, last_step=3)
    >>> for images, labels, indices in steps.as_numpy_iterator():
    ...   print(images.shape, labels, indices)
    (4, 112, 112, 3) [1 0 0 2] [1 3 0 5]
    (4, 112, 112, 3) [1 2 2 1] [4 2 5 4]
    (4, 112, 112, 3) [1 2 0 0] [1 2 3 0]
  """
  order.check_steps(
    first_step, last_step, num_images=source.num_images, batch_size=batch_size
  )
  threads = threads or os.cpu_count()
  if not is_read_in_graph(source):
    return _from_threads(
      source,
      seed=seed,
      batch_size=batch_size,
      first_step=first_step,
      last_step=last_step,
      rows=rows,
      window=window,
      threads=threads,
    )
  slots = np.arange(batch_size, dtype=np.int64)[rows]
  reader = source.graph_reader(threads)
  read = read_by_windows if window else read_at_random
  records = read(
    reader,
    Steps(slots, batch_size, first_step, last_step),
    num_images=source.num_images,
    seed=seed,
    window=window,
  )
  decoder = _decoder(source, reader, len(slots), threads)
  made = graph.mapped(records, decoder, _STEPS_AT_ONCE)
  return _as_it_is(made.prefetch(_STEPS_AHEAD), last_step - first_step)


class Steps(NamedTuple):
  """Samples that are wanted: some slots of the batches of some steps."""

  slots: np.ndarray
  batch_size: int
  first: int
  last: int


def read_at_random(reader: graph.GraphReader, steps: Steps, **key) -> Any:
  """Reads the records of each step: indices and records, ``[rows]`` each."""

  def read(step):
    samples = step * steps.batch_size + steps.slots
    indices = order.images_of(samples, **key)
    return indices, reader.read(indices)

  numbers = tensorflow().data.Dataset.range(steps.first, steps.last)
  return graph.mapped(numbers, read, _STEPS_AT_ONCE)


def read_by_windows(
  reader: graph.GraphReader,
  steps: Steps,
  *,
  num_images: int,
  seed: int,
  window: int,
) -> Any:
  """Reads whole windows, one ahead; returns as `read_at_random`."""
  tf = tensorflow()
  key = {'num_images': num_images, 'seed': seed}
  in_epoch = -(-num_images // window)

  def window_of(sample):
    epoch, position = divmod(sample, num_images)
    return epoch * in_epoch + position // window

  def fetch(number):
    epoch, place = number // in_epoch, number % in_epoch * window
    size = tf.minimum(num_images - place, window)
    places = place + tf.range(size)
    images = order.in_runs(places, tf.fill([size], epoch), **key)
    samples = _in_range(steps, epoch * num_images + place, size)
    slots = order.slots_of(samples, window=window, **key)
    return _read_runs(reader, images), slots, tf.gather(images, slots)

  def take(records, slots, indices):
    # Only the pieces are copies.
    pieces = tf.data.Dataset.from_tensor_slices((slots, indices)).batch(_PIECE)
    taken = graph.mapped(pieces, lambda s, i: (i, tf.gather(records, s)))
    return taken.unbatch()

  if np.any(np.diff(steps.slots) <= 0):
    raise ValueError('rows must ascend where data are read in windows')
  if steps.first >= steps.last:
    return read_at_random(reader, steps, window=window, **key)
  first = window_of(steps.first * steps.batch_size)
  last = window_of(steps.last * steps.batch_size - 1)
  windows = graph.mapped(tf.data.Dataset.range(first, last + 1), fetch)
  taken = windows.prefetch(1).flat_map(graph.as_it_is(take))
  return taken.batch(len(steps.slots), drop_remainder=True)


def _in_range(steps: Steps, begin, size):
  """Returns the samples that are wanted in ``[begin, begin + size)``."""
  tf = tensorflow()
  first = tf.maximum(np.int64(steps.first), begin // steps.batch_size)
  last = tf.minimum(
    np.int64(steps.last), (begin + size - 1) // steps.batch_size + 1
  )
  batches = tf.range(first, last)[:, None] * steps.batch_size
  samples = tf.reshape(batches + steps.slots, [-1])
  return samples[(samples >= begin) & (samples < begin + size)]


def _read_runs(reader: graph.GraphReader, images):
  """Reads images that are runs of neighbours, ``[k]``."""
  tf = tensorflow()
  jumps = tf.where(images[1:] != images[:-1] + 1)[:, 0] + 1
  count = tf.shape(images, tf.int64)[0]
  bounds = tf.concat([[0], jumps, [count]], 0)
  firsts = tf.gather(images, bounds[:-1])
  runs = tf.data.Dataset.from_tensor_slices((firsts, bounds[1:] - bounds[:-1]))
  records = graph.mapped(runs, reader.read_run, _RUNS_AT_ONCE)
  return graph.exactly(records.unbatch(), count)


def _decoder(
  source: EncodedSource, reader: graph.GraphReader, rows: int, threads: int
) -> Any:
  """Makes the function from indices and records of a step to its batch."""
  tf = tensorflow()
  known = checks.Checks(*map(tf.constant, source.checks()))

  def decode(encoded):
    image = checks.decode_tensor(encoded)
    return tf.ensure_shape(image, (SIZE, SIZE, 3))

  def of_step(indices, records):
    indices, records = (tf.ensure_shape(x, (rows,)) for x in (indices, records))
    encoded, labels = reader.unpack(records, indices)
    hashes, orientations = (tf.gather(x, indices) for x in known)
    fine = checks.hash_tensor(encoded) == hashes
    fine &= orientations != checks.BAD
    fine &= (labels >= 0) & (labels < source.num_classes)
    bad = tf.boolean_mask(indices, ~fine)[:1]
    path = os.fsencode(source.path)  # It need not be UTF-8.
    words = path + b': an image is not as it was checked; its number is'
    check = tf.debugging.Assert(tf.reduce_all(fine), [words, bad])
    with tf.control_dependencies([check]):
      encoded = tf.identity(encoded)
    images = graph.each(decode, encoded, threads)
    turned = tf.cond(
      tf.reduce_all(orientations == exif.UPRIGHT),
      lambda: images,
      lambda: graph.upright(images, orientations),
    )
    return (
      tf.ensure_shape(turned, (rows, SIZE, SIZE, 3)),
      tf.ensure_shape(tf.cast(labels, tf.int32), (rows,)),
      tf.ensure_shape(indices, (rows,)),
    )

  return of_step


def _from_threads(source: Source, **keywords) -> Any:
  """Makes a data set of the batches that threads of Python make."""
  tf = tensorflow()
  rows = len(np.arange(keywords['batch_size'])[keywords['rows']])
  made = tf.data.Dataset.from_generator(
    lambda: batches_by_threads(source, **keywords),
    output_signature=(
      tf.TensorSpec((rows, SIZE, SIZE, 3), tf.uint8),
      tf.TensorSpec((rows,), tf.int32),
      tf.TensorSpec((rows,), tf.int64),
    ),
  )
  return _as_it_is(made, keywords['last_step'] - keywords['first_step'])


def _as_it_is(made: Any, steps: int) -> Any:
  """Keeps tf.data from adding threads and buffers: those here are chosen."""
  made = made.apply(tensorflow().data.experimental.assert_cardinality(steps))
  options = tensorflow().data.Options()
  options.autotune.enabled = False
  options.experimental_optimization.inject_prefetch = False
  return made.with_options(options)
