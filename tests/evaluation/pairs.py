# SPDX-License-Identifier: Apache-2.0
"""Embeddings of pairs, for tests."""

import numpy as np


def noisy_pairs(num_pairs, seed, dim=6, noise=0.6):
  rng = np.random.default_rng(seed)
  same = rng.random(num_pairs) < 0.5
  first = rng.normal(size=(num_pairs, dim))
  other = rng.normal(size=(num_pairs, dim))
  second = np.where(same[:, None], first + noise * other, other)
  embeddings = np.empty((2 * num_pairs, dim))
  embeddings[0::2], embeddings[1::2] = first, second
  return embeddings, same


def pairs_with_cosines(cosines):
  """Makes planar pairs with these cosines; exact for 1, 0 and -1."""
  cosines = np.asarray(cosines, np.float64)
  embeddings = np.zeros((2 * len(cosines), 2))
  embeddings[0::2, 0] = 1
  embeddings[1::2, 0] = cosines
  embeddings[1::2, 1] = np.sqrt(1 - cosines**2)
  return embeddings
