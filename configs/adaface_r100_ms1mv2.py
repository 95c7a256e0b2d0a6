# SPDX-License-Identifier: Apache-2.0
r"""AdaFace on MS1MV2 with IResNet-100 (arXiv 2204.00964).

The authors' margins, epochs and drops: 26 epochs, the rate a tenth from epochs
12, 20 and 24 on; and their augmentation: a fifth of the images each is cropped,
of low resolution, and changed in its colours. What differs: they do not decay
BatchNorm, and change colours of images in the order blue, green, red.

Expect (AdaFace's README, R100 on MS1MV2):
IJB-C TAR@FAR=1e-4 96.89 %. In the model zoo of
HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100:
LFW 99.82, AgeDB-30 98.13, CALFW 96.15, CPLFW 93.05, CFP-FP 98.63 % accuracy.

Run: elasticface train --config adaface_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base(loss=recipes.loss('adaface'))
  # The base has the ranges of all three.
  c.augment.update(crop=0.2, low_resolution=0.2, photometric=0.2)
  # Epochs of 11,372 steps.
  c.optim.decay_steps = tuple(epoch * 11_372 for epoch in (12, 20, 24))
  return c
