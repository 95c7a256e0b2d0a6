# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Cos+ on MS1MV2 with IResNet-100 (arXiv 2109.09416).

The recipe of the authors' code, with the paper's margins and pairing. Their
configuration has loss.margin_std=0.02, and their code loss.pairing='released'.
Expect (Table III of the paper):
LFW 99.80, AgeDB-30 98.28, CALFW 96.18, CPLFW 93.23, CFP-FP 98.73 % accuracy.

Run: elasticface train --config elastic_cos_plus_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('elastic_cosface_plus'))
