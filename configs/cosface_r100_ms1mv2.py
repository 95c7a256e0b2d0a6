# SPDX-License-Identifier: Apache-2.0
r"""CosFace on MS1MV2 with IResNet-100, in the recipe of ElasticFace.

The margin is that of the CosFace paper; the ElasticFace authors' configuration
trains CosFace with loss.margin=0.5.

Expect (model zoo of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100):
LFW 99.75, AgeDB-30 98.37, CALFW 95.93, CPLFW 93.25, CFP-FP 98.41 % accuracy.

Run: elasticface train --config cosface_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('cosface'))
