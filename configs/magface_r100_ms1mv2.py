# SPDX-License-Identifier: Apache-2.0
r"""MagFace on MS1MV2 with IResNet-100 (arXiv 2103.06627).

Run: elasticface train --config magface_r100_ms1mv2 --workdir W

The authors' margins, epochs and drops: 25 epochs, the rate a tenth from epochs
10, 18 and 22 on, no flip. What differs: they give images in 0 to 1 and in the
order BGR.

Expect (model zoo of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100):
LFW 99.82, AgeDB-30 98.22, CALFW 96.02, CPLFW 92.95, CFP-FP 98.40 % accuracy.
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('magface'))
  c.augment.flip = 0.0
  c.total_steps = 284_300  # 25 epochs of 11,372 steps.
  c.optim.decay_steps = (113_720, 204_696, 250_184)  # Epochs 10, 18 and 22.
  return c
