# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc on MS1MV2 with IResNet-100 (arXiv 2109.09416).

The base: the recipe of the authors' code, with the margins of their paper.

Run: elasticface train --config elastic_arc_r100_ms1mv2 --workdir W

Expect (the paper, Table III):
LFW 99.80, AgeDB-30 98.35, CALFW 96.17, CPLFW 93.27, CFP-FP 98.67 % accuracy.
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('elastic_arcface'))
