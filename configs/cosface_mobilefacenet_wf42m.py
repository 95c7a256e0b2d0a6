# SPDX-License-Identifier: Apache-2.0
r"""CosFace on WebFace42M with MobileFaceNet, as arcface_torch on 16 GPUs.

The values are those of its configuration wf42m_pfc02_16gpus_mbf_bs8k: SGD, a
linear decay after a warm-up of 2 of 20 epochs, a weight decay of 1e-4, Partial
FC, and 512 images of each GPU, which are a group here.

Differs from it in: the first step, which it takes at the full rate; classes
that a step does not sample, which it decays and moves by their momentum, and
which stay as they are here; bfloat16 for float16.

Not known: the accuracy. Not trained here.

Run: elasticface train --config cosface_mobilefacenet_wf42m --workdir W
"""

from elasticface_jax import recipes

BATCH = 16 * 512
EPOCH = 42_474_557 // BATCH


def get_config():
  c = recipes.base(loss=recipes.loss('cosface', margin=0.4))
  c.group_size = 512
  c.data.update(source='data/wf42m', batch_size=BATCH)
  c.model.update(name='mobilefacenet', dtype='bfloat16')
  # 12,876 of the 64,376 classes of a block take part.
  c.head.update(num_blocks=32, sample_rate=0.2)
  c.optim.update(weight_decay=1e-4, decay_steps=())
  c.optim.lr = 0.4 * 512 / BATCH  # It is multiplied by BATCH / 512.
  c.optim.warmup_steps = 2 * EPOCH
  c.total_steps = c.optim.decay_end = 20 * EPOCH
  c.eval_every = c.checkpoint_every = EPOCH
  return c
