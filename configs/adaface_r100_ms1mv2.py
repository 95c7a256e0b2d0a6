# SPDX-License-Identifier: Apache-2.0
r"""AdaFace on MS1MV2 with IResNet-100 (arXiv 2204.00964).

The authors' margins, epochs and drops: 26 epochs, the rate a tenth from epochs
12, 20 and 24 on. What differs: they crop, blur and recolour a fifth of the
images each, which is not here, and do not decay BatchNorm.

Expect (AdaFace's README, R100 on MS1MV2, with augmentation):
IJB-C TAR@FAR=1e-4 96.89 %. In the model zoo of
HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100:
LFW 99.82, AgeDB-30 98.13, CALFW 96.15, CPLFW 93.05, CFP-FP 98.63 % accuracy.

Run: elasticface train --config adaface_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('adaface'))
  # Epochs of 11,372 steps.
  c.optim.decay_steps = tuple(epoch * 11_372 for epoch in (12, 20, 24))
  return c
