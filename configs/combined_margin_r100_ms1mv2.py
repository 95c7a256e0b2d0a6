# SPDX-License-Identifier: Apache-2.0
r"""Combined margin on MS1MV2 with IResNet-100 (arXiv 1801.07698).

A margin on the angle and one on the cosine at once: the ArcFace paper's
combination (1, 0.3, 0.2). Everything but the loss is the recipe of ElasticFace,
so that losses can be compared.

Run: elasticface train --config combined_margin_r100_ms1mv2 --workdir W

Expect: nothing readable is published for this loss with this network.
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('combined_margin'))
