# SPDX-License-Identifier: Apache-2.0
"""Margin-softmax losses as pure functions. Imports jax and nothing else.

Cosines ``[B, C]`` go into the named losses, which return ``[B]``::

  cosines = losses.cosines(embeddings, class_centers)
  loss = losses.elastic_arcface(cosines, labels, key=key).mean()

Those that follow the length of the embeddings, or a state, return that too::

  norms = losses.norms(embeddings)
  loss, state = losses.adaface(cosines, labels, norms, state)

For more classes than ``[B, C]`` has room for: `blockwise_margin_softmax`, which
takes the margins of any of these losses.
"""

from elasticface_jax.losses._adaptive import AdaFaceState as AdaFaceState
from elasticface_jax.losses._adaptive import (
  CurricularFaceState as CurricularFaceState,
)
from elasticface_jax.losses._adaptive import adaface as adaface
from elasticface_jax.losses._adaptive import adaface_init as adaface_init
from elasticface_jax.losses._adaptive import adaface_margins as adaface_margins
from elasticface_jax.losses._adaptive import curricularface as curricularface
from elasticface_jax.losses._adaptive import (
  curricularface_init as curricularface_init,
)
from elasticface_jax.losses._adaptive import (
  curricularface_margins as curricularface_margins,
)
from elasticface_jax.losses._adaptive import magface as magface
from elasticface_jax.losses._adaptive import magface_margins as magface_margins
from elasticface_jax.losses._blockwise import (
  blockwise_margin_softmax as blockwise_margin_softmax,
)
from elasticface_jax.losses._blockwise import target_cosines as target_cosines
from elasticface_jax.losses._logits import arcface_logits as arcface_logits
from elasticface_jax.losses._logits import cosface_logits as cosface_logits
from elasticface_jax.losses._logits import cosines as cosines
from elasticface_jax.losses._logits import norms as norms
from elasticface_jax.losses._logits import (
  subcenter_cosines as subcenter_cosines,
)
from elasticface_jax.losses._margins import pair_margins as pair_margins
from elasticface_jax.losses._margins import sample_margins as sample_margins
from elasticface_jax.losses._softmax import arcface as arcface
from elasticface_jax.losses._softmax import combined_margin as combined_margin
from elasticface_jax.losses._softmax import cosface as cosface
from elasticface_jax.losses._softmax import elastic_arcface as elastic_arcface
from elasticface_jax.losses._softmax import (
  elastic_arcface_plus as elastic_arcface_plus,
)
from elasticface_jax.losses._softmax import elastic_cosface as elastic_cosface
from elasticface_jax.losses._softmax import (
  elastic_cosface_plus as elastic_cosface_plus,
)
from elasticface_jax.losses._softmax import normface as normface
from elasticface_jax.losses._softmax import sphereface as sphereface
from elasticface_jax.losses._softmax import x2_softmax as x2_softmax
