# SPDX-License-Identifier: Apache-2.0
r"""ArcFace on MS1MV3 with MobileFaceNet, as arcface_torch trains it on 8 GPUs.

The values are those of its configuration ms1mv3_mbf: SGD, a rate that falls
linearly to 0 in 40 epochs, a weight decay of 1e-4, and 128 images of each GPU,
which are a group here. The rate is 0.1 for all 1,024 images.

Differs from it in: bfloat16 for float16.

Expect (README of arcface_torch): IJB-C TAR 94.23 % at FAR 1e-4, 91.33 % at
1e-5; MFR-ALL 63.78 %. Not trained here.

Run: elasticface train --config arcface_mobilefacenet_ms1mv3 --workdir W
"""

from elasticface_jax import recipes

BATCH = 8 * 128
EPOCH = 5_179_510 // BATCH


def get_config():
  c = recipes.base(loss=recipes.loss('arcface', gradient='straight_through'))
  c.data.update(source='data/ms1mv3', batch_size=BATCH)
  c.model.update(name='mobilefacenet', dtype='bfloat16')
  c.optim.update(weight_decay=1e-4, decay_steps=())
  c.optim.lr = 0.1 * 512 / BATCH  # It is multiplied by BATCH / 512.
  c.total_steps = c.optim.decay_end = 40 * EPOCH
  c.eval_every = c.checkpoint_every = EPOCH
  return c
