# SPDX-License-Identifier: Apache-2.0
r"""Sub-center ArcFace on MS1MV2 with IResNet-100 (ECCV 2020).

Three centres for each class, as the authors; the nearest counts. Made for data
with many wrong labels; MS1MV2 has been cleaned of them. The rest is the recipe
of ElasticFace, so that losses can be compared.

Expect: nothing readable is published for this loss with these data.

Run: elasticface train --config subcenter_arcface_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('arcface'))
  c.head.subcenters = 3
  return c
