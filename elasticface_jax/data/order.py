# SPDX-License-Identifier: Apache-2.0
"""Order of the images: a stateless function of the step number and the seed.

The samples of a run are numbered 0, 1, 2, ... without end; step t takes those
in ``[t B, (t + 1) B)``. Sample i is image ``permutation_e(i mod n)`` of n, with
epoch ``e = i // n`` and a permutation keyed by (seed, epoch) that is computed
for one index at a time. So there is no state: the batch of any step follows
from its number, a start at step one million costs the same as one at step 0,
and hosts that read parts of a batch read together what one host would read.

There are two permutations. The first shuffles all n images. The second is for
storage where sequential reads are cheap and random ones are not (``gs://``,
network disks, spinning disks): it shuffles runs of 1,024 neighbours, and then
the images within each window of many runs.
"""

from collections.abc import Iterator

import numpy as np

from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.errors import InputError

RUN = 1024  # Neighbours that stay together within a window.


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
    seed: with the epoch, the key of the permutation; not negative.
    batch_size: B; may be larger than n, and a batch may span epochs.
    window: number of images that are shuffled together, or 0 for all.
    rows: slots of the batch that are wanted.

  Returns:
    Indices in ``[0, n)``, int64, ``[rows]``.
  """
  samples = step * batch_size + np.arange(batch_size, dtype=np.int64)[rows]
  epochs, positions = np.divmod(samples, num_images)
  if not window:
    return _shuffle(positions, num_images, seed, epochs)
  windows, within = np.divmod(positions, window)
  sizes = np.minimum(window, num_images - windows * window)
  within = _shuffle(within, sizes, seed, epochs, 1 + windows)
  return _in_runs(windows * window + within, num_images, seed, epochs)


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
    epochs, positions = np.divmod(samples, num_images)
    yield _in_runs(positions, num_images, seed, epochs)


def _in_runs(places, num_images, seed, epochs):
  """Returns the images at places of an epoch in which only runs are shuffled.

  The last run is shorter than the others; its place is drawn separately.
  """
  num_runs, rest = divmod(num_images, RUN)
  if not num_runs:
    return places
  distinct, inverse = np.unique(epochs, return_inverse=True)
  draws = np.array([_words(seed, (epoch, 0))[3] for epoch in distinct])
  before_rest = RUN * (draws.astype(np.int64) % (num_runs + 1))[inverse]
  after = places - before_rest  # Counted from where the short run begins.
  in_rest = (after >= 0) & (after < rest)
  runs, offsets = np.divmod(places - np.where(after >= rest, rest, 0), RUN)
  # Few are distinct, and the cipher is slow for few runs.
  (epochs, runs), inverse = np.unique(
    [epochs, np.where(in_rest, 0, runs)], axis=1, return_inverse=True
  )
  runs = _shuffle(runs, num_runs, seed, epochs, 0)[inverse.ravel()]
  return np.where(in_rest, num_runs * RUN + after, runs * RUN + offsets)


def _shuffle(positions, sizes, seed, *streams):
  """Permutes ``[0, size)``, each position under the key of its stream."""
  # Small integers are poor keys of this cipher: under (0, 0, 0) it changes
  # nothing. Its default of 4 rounds leaves neighbours of a large set together;
  # 16 rounds pass for a true shuffle and cost 0.2 us for each index.
  streams = np.stack(np.broadcast_arrays(*streams), axis=1)
  distinct, inverse = np.unique(streams, axis=0, return_inverse=True)
  keys = np.stack([_words(seed, stream)[:3] for stream in distinct.tolist()])
  shuffled = tensorflow().random_index_shuffle(
    positions,
    keys[inverse.ravel()].astype(np.int64),
    np.broadcast_to(np.asarray(sizes, np.int64) - 1, positions.shape),
    rounds=16,
  )
  return shuffled.numpy()


def _words(seed, stream) -> np.ndarray:
  return np.random.SeedSequence(
    seed, spawn_key=tuple(map(int, stream))
  ).generate_state(4)
