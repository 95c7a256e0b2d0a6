# SPDX-License-Identifier: Apache-2.0
"""Order of the images: a stateless function of the step number and the seed.

The samples of a run are numbered 0, 1, 2, ... without end; step t takes those
in ``[t B, (t + 1) B)``. Sample i is image ``permutation_e(i mod n)`` of n, with
epoch ``e = i // n`` and a permutation keyed by (seed, epoch) that is computed
for one index at a time. So there is no state: the batch of any step follows
from its number, a start at step one million costs the same as one at step 0,
and hosts that read parts of a batch read together what one host would read.

The functions are TensorFlow's, so that one implementation serves the graph that
reads images (`data.feed`) and everything outside of it.

There are two permutations. The first shuffles all n images. The second is for
storage where sequential reads are cheap and random ones are not (``gs://``,
network disks, spinning disks): it shuffles runs of 1,024 neighbours, and then
the images within each window of many runs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.errors import InputError

RUN = 1024  # Neighbours that stay together within a window.
_MAX_EPOCHS = 2**32  # Each is one word of a key.

# Of NumPy's SeedSequence, from which the keys have always come. Its results are
# frozen (NumPy's policy on random streams), and a test compares them.
_MULT_A, _MULT_B = 0x931E8875, 0x58F38DED
_INIT_A, _INIT_B = 0x43B0D7E5, 0x8B51F9DD
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_HALF = np.uint32(16)  # Bits.
_POOL = 4  # Words of its state, for seeds below 2**128.


def check_window(window: int) -> None:
  """Checks a config's `data.window`.

  Args:
    window: number of images that are shuffled together, or 0 for all.

  Raises:
    InputError: if it is neither 0 nor at least the length of a run.
  """
  if window and window < RUN:
    raise InputError(
      f'data.window={window} must be 0, to shuffle all images together, or '
      f'at least {RUN}'
    )


def check_steps(
  first_step: int, last_step: int, *, num_images: int, batch_size: int
) -> None:
  """Checks steps, and that they are within the epochs that have a key.

  Args:
    first_step: the first step.
    last_step: the step after the last one.
    num_images: n.
    batch_size: B.

  Raises:
    InputError: if there are no such steps or batches, or they are beyond 2**32
      epochs.
  """
  if batch_size < 1 or first_step < 0:
    raise InputError(
      f'step {first_step} of batches of {batch_size} images: steps count from '
      '0, and a batch has 1 image or more'
    )
  if int(last_step) * batch_size > _MAX_EPOCHS * num_images:
    raise InputError(
      f'{last_step} steps of {batch_size} images are more than 2**32 epochs of '
      f'{num_images} images; lower total_steps'
    )


def batch_indices(
  step: int,
  *,
  num_images: int,
  seed: int,
  batch_size: int,
  window: int = 0,
  rows: slice | np.ndarray = slice(None),
) -> np.ndarray:
  """Returns the indices of the images in the batch of a step.

  Args:
    step: t, from 0.
    num_images: n; every n samples show each image once.
    seed: with the epoch, the key of the permutation; in ``[0, 2**128)``.
    batch_size: B; may be larger than n, and a batch may span epochs.
    window: number of images that are shuffled together, or 0 for all.
    rows: slots of the batch that are wanted.

  Returns:
    Indices in ``[0, n)``, int64, ``[rows]``.

  Raises:
    InputError: if the step is beyond 2**32 epochs.

  Examples:
    >>> batch_indices(1, num_images=10, seed=0, batch_size=4)
    array([8, 6, 2, 9])
  """
  check_steps(step, step + 1, num_images=num_images, batch_size=batch_size)
  slots = np.arange(batch_size, dtype=np.int64)[rows]
  samples = step * batch_size + slots
  return images_of(
    samples, num_images=num_images, seed=seed, window=window
  ).numpy()


def images_of(samples: Any, *, num_images: int, seed: int, window: int) -> Any:
  """Computes the images that samples show, in a graph or eagerly.

  Args:
    samples: numbers of samples, int64 tensor, ``[k]``.
    num_images: n.
    seed: of the run.
    window: number of images that are shuffled together, or 0 for all.

  Returns:
    Indices in ``[0, n)``, int64 tensor, ``[k]``.
  """
  epochs, positions = _divmod(samples, num_images)
  if not window:
    return _shuffle(positions, num_images, _words(seed, epochs))
  windows, _ = _divmod(positions, window)
  places = windows * window + slots_of(
    samples, num_images=num_images, seed=seed, window=window
  )
  return in_runs(places, epochs, num_images=num_images, seed=seed)


def slots_of(samples: Any, *, num_images: int, seed: int, window: int) -> Any:
  """Computes the slots of samples within their windows, after the shuffle.

  Args:
    samples: numbers of samples, int64 tensor, ``[k]``.
    num_images: n.
    seed: of the run.
    window: number of images that are shuffled together, not 0.

  Returns:
    Numbers below the size of the window, int64 tensor, ``[k]``.
  """
  epochs, positions = _divmod(samples, num_images)
  windows, within = _divmod(positions, window)
  sizes = tensorflow().minimum(np.int64(window), num_images - windows * window)
  return _shuffle(within, sizes, _words(seed, epochs, 1 + windows))


def in_runs(places: Any, epochs: Any, *, num_images: int, seed: int) -> Any:
  """Computes the images at places of an epoch in which only runs are shuffled.

  The last run is shorter than the others; its place is drawn separately.

  Args:
    places: int64 tensor in ``[0, n)``, ``[k]``.
    epochs: int64 tensor, ``[k]``.
    num_images: n.
    seed: of the run.

  Returns:
    Indices in ``[0, n)``, int64 tensor, ``[k]``.
  """
  tf = tensorflow()
  num_runs, rest = divmod(num_images, RUN)
  if not num_runs:
    return places
  draws = _words(seed, epochs, epochs * 0)[3]
  before_rest = RUN * (draws % (num_runs + 1))
  after = places - before_rest  # Counted from where the short run begins.
  in_rest = (after >= 0) & (after < rest)
  zero = np.int64(0)
  runs, offsets = _divmod(
    places - tf.where(after >= rest, np.int64(rest), zero), RUN
  )
  # Few are distinct, and the cipher is slow for few runs: 0.6 ms for two.
  first_epoch = tf.reduce_min(epochs)
  distinct, inverse = tf.unique(
    (epochs - first_epoch) * num_runs + tf.where(in_rest, zero, runs)
  )
  epochs, runs = _divmod(distinct, num_runs)
  words = _words(seed, first_epoch + epochs, epochs * 0)
  runs = tf.gather(_shuffle(runs, num_runs, words), inverse)
  return tf.where(in_rest, num_runs * RUN + after, runs * RUN + offsets)


def images_to_come(
  step: int,
  *,
  num_images: int,
  seed: int,
  batch_size: int,
  window: int,
  first: bool,
) -> Iterator[np.ndarray]:
  """Yields the images to fetch at a step, so that the next window is in time.

  Args:
    step: t.
    num_images: n.
    seed: of the run.
    batch_size: B.
    window: number of images that are shuffled together, not 0.
    first: True if reading begins at this step; then the complete window of its
      batch is included.

  Yields:
    Pieces of at most 1,024 indices, int64, in the order of the storage except
    for jumps from run to run.
  """
  # A batch ahead: the last image of a batch may be the first of a window.
  start, stop = (window + (step + i) * batch_size for i in (1, 2))
  if first:
    epoch, position = divmod(step * batch_size, num_images)
    start = epoch * num_images + position // window * window
  for piece in range(start, stop, RUN):
    samples = np.arange(piece, min(piece + RUN, stop), dtype=np.int64)
    epochs, places = np.divmod(samples, num_images)
    images = in_runs(places, epochs, num_images=num_images, seed=seed)
    yield np.asarray(images)


def _shuffle(positions, sizes, words):
  """Permutes ``[0, size)``, each position under the key in its words."""
  # Small integers are poor keys of this cipher: under (0, 0, 0) it changes
  # nothing. Its default of 4 rounds leaves neighbours of a large set together;
  # 16 rounds pass for a true shuffle and cost 0.2 us for each index.
  tf = tensorflow()
  return tf.raw_ops.RandomIndexShuffle(
    index=positions,
    seed=tf.stack(words[:3], axis=1),
    max_index=tf.broadcast_to(
      tf.cast(sizes, tf.int64) - 1, tf.shape(positions)
    ),
    rounds=16,
  )


def _words(seed: int, *streams):
  """Computes the words of ``SeedSequence(seed, spawn_key=streams)``.

  Args:
    seed: of the run.
    *streams: int64 tensors in ``[0, 2**32)``, ``[k]``.

  Returns:
    Four of its words, int64 tensors, ``[k]``.
  """
  tf = tensorflow()
  fold = lambda x: tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _HALF))

  def hashed(values, factors):  # Each of four with constants of its own.
    return fold(tf.bitwise.bitwise_xor(values, factors[:-1]) * factors[1:])

  pool = np.random.SeedSequence(seed).pool[:, None]
  # The seed has been mixed in by as many hashes as there are pairs of words.
  used = _POOL * _POOL
  for stream in streams:
    mixed = hashed(tf.cast(stream, tf.uint32), _factors(_INIT_A, _MULT_A, used))
    pool = fold(pool * _MIX_LEFT - mixed * _MIX_RIGHT)
    used += _POOL
  words = hashed(pool, _factors(_INIT_B, _MULT_B, 0))
  return tf.unstack(tf.cast(words, tf.int64))


def _factors(first: int, multiplier: int, used: int) -> np.ndarray:
  """Returns five constants of the hash, of which some were used before."""
  powers = [pow(multiplier, used + i, 2**32) for i in range(_POOL + 1)]
  return np.array([[first * x % 2**32] for x in powers], np.uint32)


def _divmod(numbers, by: int):
  return numbers // by, numbers % by
