# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc on CASIA-WebFace with IResNet-50 (arXiv 2109.09416).

The set-up of the paper's parameter study, with the values of the released
configuration: 40 epochs, the rate a tenth from epochs 21, 29 and 39 on
(counted from 0). The authors advise at least 50 epochs with drops at 20, 30
and 40 where it does not converge.

Expect (AdaFace's README, ArcFace with R50; the paper's own are unknown):
LFW 99.45, AgeDB-30 94.90, CFP-FP 95.21 % accuracy.

Run: elasticface train --config elastic_arc_r50_casia --workdir W
"""

from elasticface_jax import recipes


def get_config():
  c = recipes.base()
  c.data.source = 'data/casia'
  c.model.update(name='iresnet50', dropout=0.4)
  # 490,623 images, as the reference's step counts say (its config says
  # 501,195): 958 steps an epoch.
  c.total_steps = 38_320
  c.optim.decay_steps = (20_118, 27_782, 37_362)
  c.eval_every = c.checkpoint_every = 479
  return c
