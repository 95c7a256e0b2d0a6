# SPDX-License-Identifier: Apache-2.0
"""A network that embeds by picking pixels, and costs nothing."""

import numpy as np


class Pixels:
  """A run folder's network whose embeddings make no difference of light."""

  config = {'eval': {'synthetic_pairs': 300}, 'seed': 0}
  step = 160
  eval_rows = 1
  embedding_dim = 38
  note = ''
  fingerprint = 'ab' * 32

  def __init__(self, path):
    self.path = path
    self.sizes = []  # Of the calls.

  @property
  def title(self):
    return f'{self.path.name}, step {self.step}'

  def describe(self):
    return {'training_fingerprint': self.fingerprint}

  def embed(self, images):
    self.sizes.append(len(images))
    picked = images.reshape(len(images), -1)[:, ::997].astype(np.float32)
    return picked - picked.mean(1, keepdims=True)
