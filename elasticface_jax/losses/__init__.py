# SPDX-License-Identifier: Apache-2.0
"""Margin-softmax losses as pure functions. Needs jax and nothing else.

A named loss takes cosines ``[B, C]`` and labels ``[B]``, and returns the loss
of each sample, ``[B]``:

>>> import jax
>>> import jax.numpy as jnp
>>> from elasticface_jax import losses
>>> embeddings = jnp.array([[3.0, 4.0], [0.0, 5.0]])
>>> class_centers = jnp.array([[1.0, 0.0], [-1.0, 0.5]])
>>> labels = jnp.array([0, 1])
>>> cosines = losses.cosines(embeddings, class_centers)
>>> loss = losses.elastic_arcface(cosines, labels, key=jax.random.key(0))
>>> loss.shape
(2,)

A loss that depends on the norms of the embeddings takes those too, and a loss
with a state returns the new one:

>>> state = losses.adaface_init()
>>> norms = losses.norms(embeddings)
>>> loss, state = losses.adaface(cosines, labels, norms, state)
>>> loss.shape
(2,)

For more classes than fit in ``[B, C]``, `blockwise_margin_softmax` computes
each of these losses block by block:

>>> margins = losses.sample_margins(jax.random.key(0), (2,), mean=0.5, std=0.05)
>>> loss = losses.blockwise_margin_softmax(
...   embeddings, class_centers, labels, margins, kind='arc', num_blocks=2)
>>> loss.shape
(2,)

Arguments may be anything that ``jax.numpy.asarray`` takes: arrays of JAX or
NumPy, scalars, or lists.
"""

from elasticface_jax.losses._adaptive import (
  AdaFaceState,
  CurricularFaceState,
  adaface,
  adaface_init,
  adaface_margins,
  curricularface,
  curricularface_init,
  curricularface_margins,
  magface,
  magface_margins,
)
from elasticface_jax.losses._blockwise import (
  blockwise_margin_softmax,
  target_cosines,
)
from elasticface_jax.losses._logits import (
  arcface_logits,
  cosface_logits,
  cosines,
  norms,
  subcenter_cosines,
)
from elasticface_jax.losses._margins import pair_margins, sample_margins
from elasticface_jax.losses._softmax import (
  arcface,
  combined_margin,
  cosface,
  elastic_arcface,
  elastic_arcface_plus,
  elastic_cosface,
  elastic_cosface_plus,
  normface,
  sphereface,
  x2_softmax,
)

__all__ = [
  # Losses of cosines and labels.
  'normface',
  'arcface',
  'cosface',
  'combined_margin',
  'sphereface',
  'x2_softmax',
  'elastic_arcface',
  'elastic_cosface',
  'elastic_arcface_plus',
  'elastic_cosface_plus',
  # Losses that also take norms or a state, and their first states.
  'magface',
  'adaface',
  'adaface_init',
  'AdaFaceState',
  'curricularface',
  'curricularface_init',
  'CurricularFaceState',
  # The large-scale form of all of them, and the margins that it takes.
  'blockwise_margin_softmax',
  'sample_margins',
  'pair_margins',
  'magface_margins',
  'adaface_margins',
  'curricularface_margins',
  # Cosines, norms and logits.
  'cosines',
  'subcenter_cosines',
  'target_cosines',
  'norms',
  'arcface_logits',
  'cosface_logits',
]
