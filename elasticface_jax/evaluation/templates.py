# SPDX-License-Identifier: Apache-2.0
"""Templates: one vector for all images of a person that belong together.

Shapes: n images, D embedding size, T templates, P pairs of templates. A medium
is a photograph, or a video whose frames are several images.

Embeddings may be a memory map that is larger than memory: they are read in
blocks of whole templates, so that no sum depends on the size of a block.
"""

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.products import COLUMNS, ROWS, blocks, product

# Images that are in memory in float64 at once, 16 MiB at D = 512; a template
# with more images is one block.
_IMAGES = 4096
# Pairs whose vectors are in memory at once.
_PAIRS = 4096
# A dot product inside a matrix product takes 1/32 of the time of one whose two
# vectors are fetched for it alone; measured with D = 512.
_GAIN = 32
# A sum shorter than this share of what was added is rounding.
_CANCELLED = 1e-12


def pool_templates(
  embeddings: np.ndarray,
  templates: np.ndarray,
  media: np.ndarray,
  *,
  detector_scores: np.ndarray | None = None,
  keep_norms: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
  r"""Pools the embeddings of images into one unit vector for each template.

  Each embedding is normalised, unless ``keep_norms``, and multiplied by the
  image's detector score, if there are any. The mean over the images of a medium
  in a template, then the sum over the media of the template, l2-normalised:

  .. math:: t \propto \sum_{m \in t} \frac{1}{|m|} \sum_{i \in m} w_i z_i

  Rows are added one after another in the order of the images, in float64, so
  the result does not depend on how much is read at once.

  Args:
    embeddings: embeddings of the images, any float dtype, ``[n, D]``; for the
      published figures the sum of the embeddings of an image and of its mirror
      image. May be a memory map.
    templates: template of each image, integers, ``[n]``.
    media: medium of each image, integers, ``[n]``. Media of one number in two
      templates are two media.
    detector_scores: weight of each image, not negative, ``[n]``.
    keep_norms: whether an embedding of twice the norm counts twice. Published
      scripts call True "N1" in one place and "N0" in another.

  Returns:
    ``(ids, pooled)``: the templates' numbers, rising, ``[T]``; and unit
    vectors, float64, ``[T, D]``.

  Raises:
    InputError: if the shapes disagree, an embedding is not finite or zero, a
      weight is negative, or nothing is left of a template.

  Examples:
    >>> z = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    >>> ids, pooled = pool_templates(z, [7, 7, 7, 2], [1, 1, 2, 1])
    >>> print(ids)
    [2 7]
    >>> print(pooled.round(3))  # 7: mean of 3 and 1, and 2.
    [[0.    1.   ]
     [0.707 0.707]]

  References:
    IJB-C: Maze et al., ICB 2018; pooled as by insightface's IJB script.
  """
  embeddings, templates, media, weights = _checked_images(
    embeddings, templates, media, detector_scores
  )
  order = np.lexsort((media, templates))  # Stable: the order of the images.
  templates, media = templates[order], media[order]
  is_template = np.append(True, templates[1:] != templates[:-1])
  is_medium = is_template | np.append(True, media[1:] != media[:-1])
  ids = templates[is_template]
  starts = np.append(np.flatnonzero(is_template), len(order))
  pooled = np.empty((len(ids), embeddings.shape[1]))
  for first, last in _blocks_of_templates(starts):
    rows = slice(starts[first], starts[last])
    images = _read(embeddings, order[rows], weights, keep_norms)
    medium = np.flatnonzero(is_medium[rows])
    counts = np.diff(np.append(medium, len(images)))
    means = np.add.reduceat(images, medium, axis=0) / counts[:, np.newaxis]
    template = np.flatnonzero(is_template[rows][medium])
    sums = np.add.reduceat(means, template, axis=0)
    added = np.add.reduceat(_norms(images), medium) / counts
    lengths, added = _norms(sums), np.add.reduceat(added, template)
    # `not above` is true for NaN too, where float64 overflows.
    bad = np.flatnonzero(~((lengths > _CANCELLED * added) & (lengths < np.inf)))
    if len(bad):
      k = first + bad[0]
      raise InputError(
        f'template {ids[k]} has no direction: its {starts[k + 1] - starts[k]} '
        'image embeddings cancel each other, all have weight 0, or overflow; '
        'leave it and its pairs out'
      )
    pooled[first:last] = sums / lengths[:, np.newaxis]
  return ids, pooled


def template_scores(
  ids: np.ndarray, pooled: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
  """Computes the cosine of the two templates of each pair.

  Pairs that share templates are computed together as matrix products of one
  shape; a list whose pairs hardly share any is computed pair by pair. Either
  agrees with a sum over the products to 1e-15, and within a list equal vectors
  score equally.

  Args:
    ids: the templates' numbers, rising, integers, ``[T]``.
    pooled: their unit vectors, any float dtype, ``[T, D]``.
    pairs: numbers of two templates, integers, ``[P, 2]``.

  Returns:
    Cosines, float64, ``[P]``.

  Raises:
    InputError: if the shapes disagree, a vector is not finite, or a pair names
      a template that is not among ``ids``: it has no images.

  Examples:
    >>> pooled = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> print(template_scores([2, 7], pooled, [[2, 7], [7, 7]]))
    [0.6 1. ]
  """
  ids, pooled, pairs = np.asarray(ids), np.asarray(pooled), np.asarray(pairs)
  _check_templates(ids, pooled)
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not _is_integer(pairs):
    raise InputError(
      f'pairs have shape {pairs.shape} and dtype {pairs.dtype}; expected '
      'integers [P, 2], the numbers of two templates'
    )
  if not len(pairs):
    return np.empty(0)
  first, second = (_positions(ids, pairs, side) for side in (0, 1))
  rows, first = _used(first, len(ids))
  columns, second = _used(second, len(ids))
  width = -(-len(columns) // COLUMNS)
  size = width * -(-len(rows) // ROWS)
  block = (first // ROWS) * width + second // COLUMNS
  counts = np.bincount(block, minlength=size)
  if np.count_nonzero(counts) * ROWS * COLUMNS > _GAIN * len(pairs):
    return _pair_by_pair(pooled, rows[first], columns[second])
  # 16 bits, enough for any published list, are sorted in a tenth of the time.
  block = block.astype(np.min_scalar_type(size))
  order = np.argsort(block, kind='stable')
  of_rows = blocks(pooled[rows], ROWS)
  of_columns = blocks(pooled[columns], COLUMNS)
  scores = np.empty(len(pairs))
  ends = np.cumsum(counts)
  for k in np.flatnonzero(counts):
    members = order[ends[k] - counts[k] : ends[k]]
    tile = product(of_rows[k // width], of_columns[k % width])
    scores[members] = tile[first[members] % ROWS, second[members] % COLUMNS]
  return scores


def check_embeddings(
  embeddings: np.ndarray, num: int, what: str = 'images'
) -> np.ndarray:
  """Checks the shape of embeddings, without reading them.

  Args:
    embeddings: any float dtype, ``[num, D]``; may be a memory map.
    num: number of rows that there should be.
    what: name of the rows, for the message.

  Returns:
    The embeddings as an array, not copied.

  Raises:
    InputError: if there are more or fewer, or the dtype is no float.

  Examples:
    >>> check_embeddings(np.ones((2, 3)), 2).shape
    (2, 3)
  """
  embeddings = np.asanyarray(embeddings)
  if (
    embeddings.ndim != 2
    or len(embeddings) != num
    or not embeddings.size
    or not np.issubdtype(embeddings.dtype, np.floating)
  ):
    raise InputError(
      f'embeddings have shape {embeddings.shape} and dtype {embeddings.dtype}; '
      f'expected floats [{num}, D], a row for each of the {what} in their order'
    )
  return embeddings


def read_rows(
  embeddings: np.ndarray, rows: np.ndarray | slice, what: str = 'image'
) -> np.ndarray:
  """Reads rows of embeddings in float64 and checks them.

  Args:
    embeddings: any float dtype, ``[n, D]``; may be a memory map.
    rows: positions, or a slice with both ends.
    what: name of a row, for the message.

  Returns:
    A copy of the rows, float64.

  Raises:
    InputError: names the first image whose embedding is not finite or zero.

  Examples:
    >>> read_rows(np.ones((2, 3), np.float32), slice(0, 1)).dtype
    dtype('float64')
  """
  read = np.array(embeddings[rows], np.float64)
  is_zero = ~read.any(axis=1)
  bad = np.flatnonzero(is_zero | ~np.isfinite(read).all(axis=1))
  if len(bad):
    k = bad[0]
    row = rows.start + k if isinstance(rows, slice) else rows[k]
    kind = 'zero' if is_zero[k] else 'not finite'
    raise InputError(
      f'the embedding of {what} {row} (counted from 0, of {len(embeddings)}) '
      f'is {kind}; check that image and the network'
    )
  return read


def unit(vectors: np.ndarray) -> np.ndarray:
  """Divides vectors by their norms.

  Args:
    vectors: not zero, float64, ``[N, D]``.

  Returns:
    Unit vectors, float64, ``[N, D]``.

  Examples:
    >>> print(unit(np.array([[3.0, 4.0]])))
    [[0.6 0.8]]
  """
  return vectors / _norms(vectors)[:, np.newaxis]


def _norms(vectors: np.ndarray) -> np.ndarray:
  return np.sqrt(np.einsum('ij,ij->i', vectors, vectors))


def _read(
  embeddings: np.ndarray,
  rows: np.ndarray,
  weights: np.ndarray | None,
  keep_norms: bool,
) -> np.ndarray:
  """Reads embeddings as they are added up."""
  images = read_rows(embeddings, rows)
  if not keep_norms:
    images = unit(images)
  if weights is not None:
    images *= weights[rows, np.newaxis]
  return images


def _blocks_of_templates(starts: np.ndarray) -> list[tuple[int, int]]:
  """Groups neighbouring templates to about `_IMAGES` images."""
  groups, first = [], 0
  while first < len(starts) - 1:
    last = np.searchsorted(starts, starts[first] + _IMAGES, side='right') - 1
    groups.append((first, max(int(last), first + 1)))
    first = groups[-1][1]
  return groups


def _pair_by_pair(
  pooled: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  scores = np.empty(len(first))
  for start in range(0, len(first), _PAIRS):
    part = slice(start, start + _PAIRS)
    scores[part] = np.einsum(
      'ij,ij->i',
      pooled[first[part]],
      pooled[second[part]],
      dtype=np.float64,
      casting='same_kind',
    )
  return scores


def _positions(ids: np.ndarray, pairs: np.ndarray, side: int) -> np.ndarray:
  """Finds the rows of one side's templates."""
  positions = np.empty(len(pairs), np.int32)
  for start in range(0, len(pairs), 1 << 20):  # In parts: indices take 8 bytes.
    wanted = pairs[start : start + (1 << 20), side]
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    wrong = np.flatnonzero(ids[found] != wanted)
    if len(wrong):
      k = wrong[0]
      raise InputError(
        f'pair {start + k} (counted from 0) is of template {wanted[k]}, which '
        f'has no images: it is not among the {len(ids)} templates'
      )
    positions[start : start + len(found)] = found
  return positions


def _used(positions: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the rows that occur; returns them, and each entry's number."""
  used = np.zeros(num, bool)
  used[positions] = True
  numbers = np.cumsum(used, dtype=np.int32) - 1
  return np.flatnonzero(used), numbers[positions]


def _is_integer(values: np.ndarray) -> bool:
  return np.issubdtype(values.dtype, np.integer)


def _checked_images(
  embeddings: np.ndarray,
  templates: np.ndarray,
  media: np.ndarray,
  detector_scores: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
  templates, media = np.asarray(templates), np.asarray(media)
  for name, values in (('templates', templates), ('media', media)):
    if values.shape != templates.shape or values.ndim != 1:
      raise InputError(
        f'{name} have shape {values.shape}; expected one number for each image'
      )
    if not _is_integer(values):
      raise InputError(f'{name} are {values.dtype}; expected integers')
  embeddings = check_embeddings(embeddings, len(templates))
  if detector_scores is None:
    return embeddings, templates, media, None
  weights = np.asarray(detector_scores, np.float64)
  if weights.shape != templates.shape:
    raise InputError(
      f'detector_scores have shape {weights.shape}; expected '
      f'{templates.shape}, one for each image'
    )
  bad = np.flatnonzero(~((weights >= 0) & (weights < np.inf)))
  if len(bad):
    raise InputError(
      f'the detector score of image {bad[0]} (counted from 0) is '
      f'{weights[bad[0]]:g}; a weight is 0 or more'
    )
  return embeddings, templates, media, weights


def _check_templates(ids: np.ndarray, pooled: np.ndarray) -> None:
  if ids.ndim != 1 or not _is_integer(ids) or (ids[1:] <= ids[:-1]).any():
    raise InputError(
      f'ids have shape {ids.shape} and dtype {ids.dtype}; expected rising '
      'integers [T], each once'
    )
  check_embeddings(pooled, len(ids), 'templates')
  bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
  if len(bad):
    raise InputError(
      f'the vector of template {ids[bad[0]]} is not finite, the first of '
      f'{len(bad)} such; pool it again'
    )
