# SPDX-License-Identifier: Apache-2.0
r"""CurricularFace on MS1MV2 with IResNet-100 (arXiv 2004.00288).

The authors' margin, epochs and drops: 24 epochs, the rate a tenth from epochs
10, 18 and 22 on. The rest is the recipe of ElasticFace.

Run: elasticface train --config curricularface_r100_ms1mv2 --workdir W

Expect (model zoo of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100):
LFW 99.78, AgeDB-30 98.05, CALFW 96.08, CPLFW 92.88, CFP-FP 98.29 % accuracy.
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('curricularface'))
  c.total_steps = 272_928  # 24 epochs of 11,372 steps.
  c.optim.decay_steps = (113_720, 204_696, 250_184)  # Epochs 10, 18 and 22.
  return c
