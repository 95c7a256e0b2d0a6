# SPDX-License-Identifier: Apache-2.0
r"""X2-Softmax on MS1MV2 with IResNet-100 (arXiv 2312.05281).

The authors train IResNet-50 on MS1MV3 with a batch of 128 and drops at epochs
8, 14, 20 and 25 of 26; their loss and its gradient, and these drops, are here.
The rest is the recipe of ElasticFace.

Run: elasticface train --config x2_softmax_r100_ms1mv2 --workdir W
Expect: nothing readable is published for this loss with this network.
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('x2_softmax'))
  # Epochs 8, 14, 20 and 25 of 11,372 steps.
  c.optim.decay_steps = (90_976, 159_208, 227_440, 284_300)
  return c
