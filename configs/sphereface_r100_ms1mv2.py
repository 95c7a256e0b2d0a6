# SPDX-License-Identifier: Apache-2.0
r"""SphereFace-R on MS1MV2 with IResNet-100 (arXiv 1704.08063, 2109.05565).

OpenSphere's margin and gradient, and the scale of the model zoo below, where
OpenSphere has 30. All else is the recipe of ElasticFace.

Expect (model zoo of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100):
LFW 99.83, AgeDB-30 98.20, CALFW 96.07, CPLFW 92.88, CFP-FP 98.40 % accuracy.

Run: elasticface train --config sphereface_r100_ms1mv2 --workdir W
"""

from elasticface_jax import recipes


def get_config():
  return recipes.base(loss=recipes.loss('sphereface', scale=64.0))
