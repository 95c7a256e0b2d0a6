# SPDX-License-Identifier: Apache-2.0
"""Margin-softmax losses as pure functions. Imports jax and nothing else.

Cosines ``[B, C]`` go into the named losses, which return ``[B]``::

  cosines = losses.cosines(embeddings, class_centers)
  loss = losses.elastic_arcface(cosines, labels, key=key).mean()

For more classes than ``[B, C]`` has room for: `blockwise_margin_softmax`.
"""

from elasticface_jax.losses.blockwise import (
  blockwise_margin_softmax as blockwise_margin_softmax,
)
from elasticface_jax.losses.logits import arcface_logits as arcface_logits
from elasticface_jax.losses.logits import cosface_logits as cosface_logits
from elasticface_jax.losses.logits import cosines as cosines
from elasticface_jax.losses.margins import pair_margins as pair_margins
from elasticface_jax.losses.margins import sample_margins as sample_margins
from elasticface_jax.losses.softmax import arcface as arcface
from elasticface_jax.losses.softmax import cosface as cosface
from elasticface_jax.losses.softmax import elastic_arcface as elastic_arcface
from elasticface_jax.losses.softmax import (
  elastic_arcface_plus as elastic_arcface_plus,
)
from elasticface_jax.losses.softmax import elastic_cosface as elastic_cosface
from elasticface_jax.losses.softmax import (
  elastic_cosface_plus as elastic_cosface_plus,
)
from elasticface_jax.losses.softmax import normface as normface
