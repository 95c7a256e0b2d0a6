# SPDX-License-Identifier: Apache-2.0
r"""ArcFace on MS1MV2 with IResNet-100, in the recipe of ElasticFace.

Run: elasticface train --config arcface_r100_ms1mv2 --workdir W

Expect (arXiv 2109.09416, Table III, which quotes the ArcFace paper):
LFW 99.82, AgeDB-30 98.15, CALFW 95.45, CPLFW 92.08, CFP-FP 98.27 % accuracy.
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('arcface'))
