# SPDX-License-Identifier: Apache-2.0
"""Dot products of many vectors, as matrix products that all have one shape.

A matrix library computes the edge of a large product by other code than its
inside, which adds in another order: the same two vectors then score 0.3 in one
place and 0.3 + 6e-17 in another. Ties break that way, and with them ranks and
rates. Here vectors are cut into blocks of `ROWS` and of `COLUMNS`, filled up
with zeros, so that each product is `ROWS` x D by D x `COLUMNS`, and equal
vectors score equally wherever they stand. All is float64.
"""

import numpy as np

# Larger blocks waste more on short lists; in smaller ones the threads of the
# matrix library wait for each other, longest on a machine that is busy.
ROWS = 256
COLUMNS = 1024


def blocks(vectors: np.ndarray, size: int) -> np.ndarray:
  """Cuts vectors into blocks, the last one filled up with zeros.

  Args:
    vectors: any float dtype, ``[N, D]``.
    size: vectors in a block.

  Returns:
    float64, ``[ceil(N / size), size, D]``.

  Examples:
    >>> print(blocks(np.ones((3, 1)), 2)[:, :, 0])
    [[1. 1.]
     [1. 0.]]
  """
  num = -(-len(vectors) // size)
  cut = np.zeros((num * size, vectors.shape[1]))
  cut[: len(vectors)] = vectors
  return cut.reshape(num, size, -1)


def product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Computes the dot products of blocks of rows with a block of columns.

  Args:
    rows: blocks of `ROWS` vectors, float64, ``[..., ROWS, D]``.
    columns: a block of `COLUMNS` vectors, float64, ``[COLUMNS, D]``.

  Returns:
    float64, ``[..., ROWS, COLUMNS]``.

  Examples:
    >>> rows, columns = blocks(np.eye(2), ROWS), blocks(np.eye(2), COLUMNS)
    >>> print(product(rows, columns[0])[0, :2, :3])
    [[1. 0. 0.]
     [0. 1. 0.]]
  """
  return np.matmul(rows, columns.T)


def scores_of_rows(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Computes the dot products of one block of rows with all columns.

  Args:
    rows: a block of `ROWS` vectors, float64, ``[ROWS, D]``.
    columns: K blocks of `COLUMNS` vectors, float64, ``[K, COLUMNS, D]``.

  Returns:
    float64, ``[ROWS, K * COLUMNS]``; the products with the zeros at the end
    are zero, and the caller's to leave out.

  Examples:
    >>> rows, columns = blocks(np.eye(2), ROWS), blocks(np.eye(2), COLUMNS)
    >>> scores_of_rows(rows[0], columns).shape
    (256, 1024)
  """
  scores = np.empty((len(rows), len(columns) * COLUMNS))
  for k, block in enumerate(columns):
    scores[:, k * COLUMNS : (k + 1) * COLUMNS] = product(rows, block)
  return scores
