# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc+ on MS1MV2 with IResNet-100 (arXiv 2109.09416).

The recipe of the authors' code, with the margins and pairing of their paper.
Their code pairs by the inverse permutation: --config.loss.pairing=released.

Run: elasticface train --config elastic_arc_plus_r100_ms1mv2 --workdir W
Expect (the paper, Table III):
LFW 99.82, AgeDB-30 98.35, CALFW 96.17, CPLFW 93.28, CFP-FP 98.60 % accuracy.
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('elastic_arcface_plus'))
