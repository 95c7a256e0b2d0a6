# SPDX-License-Identifier: Apache-2.0
"""Which images a step reads: its number says so, nothing else does.

The samples of a run are numbered 0, 1, 2, ... without end; step t takes those
in ``[t B, (t + 1) B)``. Sample i is image ``permutation_e(i mod n)`` of n, with
epoch ``e = i // n`` and a permutation keyed by (seed, epoch) that is computed
for one index at a time. So there is no state: any step's batch is known from
its number, starting at step a million costs what starting at 0 does, and hosts
that read parts of a batch read together what one host would.

There are two permutations. One shuffles all n images. The other is for storage
where reading in order is cheap and jumping is not (``gs://``, network disks,
spinning disks): images lie in runs of 1,024 neighbours, the runs are shuffled,
and then the images within each window of many runs.
"""

from collections.abc import Iterator

import numpy as np

from elasticface_jax.data.sources.decode import tensorflow
from elasticface_jax.errors import InputError

RUN = 1024  # Neighbours that stay together in a window.


def check_window(window: int) -> None:
  """Checks a config's `data.window`.

  Args:
    window: images that are shuffled together, or 0 for all.

  Raises:
    InputError: if it is neither 0 nor a run or more.
  """
  if window and window < RUN:
    raise InputError(
      f'data.window={window} must be 0, to shuffle all images together, or '
      f'{RUN} and more'
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
  """Which images the batch of a step holds.

  Args:
    step: t, from 0.
    num_images: n; every n samples show each image once.
    seed: with the epoch, the key of the permutation; not negative.
    batch_size: B; may be larger than n, and a batch may span epochs.
    window: images that are shuffled together, or 0 for all.
    rows: the part of the batch that is wanted.

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
  """Which images to fetch at a step, so that the next window is there in time.

  Args:
    step: t.
    num_images: n.
    seed: of the run.
    batch_size: B.
    window: images that are shuffled together, not 0.
    first: whether the reading begins at this step: then all of the window that
      its batch lies in is wanted, too.

  Yields:
    Pieces of at most 1,024 indices, int64, in the order of the storage but
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
  """Images at places of an epoch whose runs alone are shuffled.

  The last run is shorter than the others; its place is drawn by itself.
  """
  num_runs, rest = divmod(num_images, RUN)
  if not num_runs:
    return places
  distinct, which = np.unique(epochs, return_inverse=True)
  draws = np.array([_words(seed, (epoch, 0))[3] for epoch in distinct])
  before_rest = RUN * (draws.astype(np.int64) % (num_runs + 1))[which]
  after = places - before_rest  # Counted from where the short run begins.
  in_rest = (after >= 0) & (after < rest)
  runs, offsets = np.divmod(places - np.where(after >= rest, rest, 0), RUN)
  # Few distinct ones, and the cipher is slow where there are few runs.
  (epochs, runs), which = np.unique(
    [epochs, np.where(in_rest, 0, runs)], axis=1, return_inverse=True
  )
  runs = _shuffle(runs, num_runs, seed, epochs, 0)[which.ravel()]
  return np.where(in_rest, num_runs * RUN + after, runs * RUN + offsets)


def _shuffle(positions, sizes, seed, *streams):
  """Permutes ``[0, size)``, for each position with the key of its stream."""
  # As they are, small numbers make poor keys of this cipher: under (0, 0, 0) it
  # changes nothing. Its default of 4 rounds leaves neighbours of a large set
  # together; 16 cannot be told from a true shuffle and cost 0.2 us an index.
  streams = np.stack(np.broadcast_arrays(*streams), axis=1)
  distinct, which = np.unique(streams, axis=0, return_inverse=True)
  keys = np.stack([_words(seed, stream)[:3] for stream in distinct.tolist()])
  shuffled = tensorflow().random_index_shuffle(
    positions,
    keys[which.ravel()].astype(np.int64),
    np.broadcast_to(np.asarray(sizes, np.int64) - 1, positions.shape),
    rounds=16,
  )
  return shuffled.numpy()


def _words(seed, stream) -> np.ndarray:
  return np.random.SeedSequence(
    seed, spawn_key=tuple(map(int, stream))
  ).generate_state(4)
