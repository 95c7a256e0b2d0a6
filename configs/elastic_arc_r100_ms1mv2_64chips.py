# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc on MS1MV2 with IResNet-100, for 64 chips.

`elastic_arc_r100_ms1mv2_16chips` with a batch four times as large: a group of
128 images on each chip, 710 steps an epoch. It has not been trained, and no
published training of this network on MS1MV2 has such a batch.

Sources of what differs:

- A rate of 0.6, and a warm-up of four epochs: insightface's configuration for
  8,192 images, of IResNet-50 on WebFace42M (wf42m_pfc02_16gpus_r50_bs8k).

Not known: the accuracy. To stay with 2,048 images on 64 chips, set groups of
32 (`--config.group_size=32 --config.data.batch_size=2048`, and rate and steps
of the other recipe): statistics of 32 images, and a quarter of the work for a
chip between two exchanges.

Run: elasticface train --config elastic_arc_r100_ms1mv2_64chips --workdir W
"""

from elasticface_jax import recipes

BATCH = 64 * 128
EPOCH = 5_822_653 // BATCH


def get_config():
  c = recipes.base(loss=recipes.loss('elastic_arcface'))
  c.model.dtype = 'bfloat16'
  c.data.batch_size = BATCH
  c.head.num_blocks = 128  # Two a chip: a single one is copied.
  c.optim.lr = 0.6 * 512 / BATCH  # It is multiplied by BATCH / 512.
  c.optim.warmup_steps = 4 * EPOCH
  c.optim.decay_steps = tuple(epoch * EPOCH for epoch in (7, 13, 19, 24))
  c.total_steps = 26 * EPOCH
  c.eval_every = c.checkpoint_every = EPOCH
  return c
