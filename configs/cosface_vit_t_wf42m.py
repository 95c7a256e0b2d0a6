# SPDX-License-Identifier: Apache-2.0
r"""CosFace on WebFace42M with ViT-T, as arcface_torch trains it on 8 GPUs.

The values are those of its configuration wf42m_pfc03_40epoch_8gpu_vit_t:
AdamW, a linear decay after a warm-up of 4 of 40 epochs, Partial FC, and 512
images of each GPU, which are a group here.

Differs from it in: the first step, which it takes at the full rate; classes
that a step does not sample, which it decays and moves by their momentum, and
which stay as they are here; bfloat16 for float16.

Expect (README of arcface_torch, where a fifth of the classes is sampled): IJB-C
TAR 97.27 % at FAR 1e-4, 95.68 % at 1e-5; MFR-ALL 92.04 %. Not trained here.

Run: elasticface train --config cosface_vit_t_wf42m --workdir W
"""

from elasticface_jax import recipes

BATCH = 8 * 512
EPOCH = 42_474_557 // BATCH


def get_config():
  c = recipes.base(loss=recipes.loss('cosface', margin=0.4))
  c.group_size = 512
  c.data.update(source='data/wf42m', batch_size=BATCH)
  c.model.update(name='vit_t', dtype='bfloat16', drop_path=0.05)
  # 9,658 of the 32,192 classes of a block take part.
  c.head.update(num_blocks=64, sample_rate=0.3)
  c.optim.update(name='adamw', weight_decay=0.1, decay_steps=())
  c.optim.lr = 0.001 * 512 / BATCH  # It is multiplied by BATCH / 512.
  c.optim.warmup_steps = 4 * EPOCH
  c.total_steps = c.optim.decay_end = 40 * EPOCH
  c.eval_every = c.checkpoint_every = EPOCH
  return c
