# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Cos on MS1MV2 with IResNet-100 (arXiv 2109.09416).

The recipe of the authors' code, with the paper's margins.

Expect (Table III there): accuracies of LFW 99.82, AgeDB-30 98.27, CALFW 96.03,
CPLFW 93.17 and CFP-FP 98.61 %.

Run: elasticface train --config elastic_cos_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('elastic_cosface'))
