# SPDX-License-Identifier: Apache-2.0
r"""Combined margin on MS1MV2 with IResNet-100 (arXiv 1801.07698).

A margin on the angle and one on the cosine at once: the ArcFace paper's
combination (1, 0.3, 0.2).

Everything but the loss is the recipe of ElasticFace, so that losses can be
compared: global batch 512 of 4 groups of 128, 26 epochs, the rate a tenth from
epochs 7, 13, 19 and 24 on (counted from 0).

Expect: nothing readable is published for this loss with this network.

Run:   elasticface train --config configs/combined_margin_r100_ms1mv2.py \
           --workdir runs/combined_margin_r100_ms1mv2 \
           --config.data.source=FOLDER
Smoke: ... --config configs/combined_margin_r100_ms1mv2.py:smoke
"""

import ml_collections as mlc

# 5,822,653 images in batches of 512; 295,672 steps in 26 epochs, the number in
# the names of the released checkpoints.
STEPS_PER_EPOCH = 5_822_653 // 512


def get_config(arg=''):
  c = mlc.ConfigDict()
  c.seed = 0  # The one root of every random stream.
  c.total_steps = 26 * STEPS_PER_EPOCH  # 295,672.
  c.group_size = 128  # Shares BatchNorm.

  c.data = dict(
    source='data/ms1mv2',  # Holds train.rec, train.idx and property.
    batch_size=512,
    window=0,  # Images shuffled together (data.order); 0 for all of them.
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=1_024, num_classes=64),
  )
  c.augment = dict(flip=0.5)
  c.model = dict(
    name='iresnet100',
    width=64,  # Of the first stage, as published.
    embedding_dim=512,
    dropout=0.0,  # Before the last linear layer.
    use_se=False,
    dtype='float32',
    remat=False,  # Less memory for a third more work (models.build).
  )
  c.head = dict(
    num_blocks=16,  # Blocks of classes; devices divide it.
    subcenters=1,  # Centres of each class; the nearest counts.
    sample_rate=1.0,  # Share of a block's classes in a step; 1 for all.
    precision='highest',  # Of its products; or 'high', 'default' (README).
  )
  c.start = dict(
    checkpoint='',  # Run folder or .pth whose backbone to begin with, or ''.
    head=False,  # Begin with its class centres too: the same classes.
    freeze=False,  # Train the class centres alone.
  )
  c.loss = dict(
    name='combined_margin',
    scale=64.0,
    gradient='exact',  # Or 'straight_through', as insightface.
    combined_margin=dict(
      m1=1.0,  # Factor of the angle.
      m2=0.3,  # Margin on the angle, radians.
      m3=0.2,  # Margin on the cosine.
    ),
  )
  c.optim = dict(
    lr=0.1,  # At batch size 512; scaled by batch_size / 512.
    warmup_steps=0,
    decay_steps=tuple(epoch * STEPS_PER_EPOCH for epoch in (7, 13, 19, 24)),
    decay_factor=0.1,
    momentum=0.9,
    weight_decay=5e-4,  # On everything trained.
    backbone_clip_norm=5.0,  # Of the gradient, backbone only.
  )
  c.log_every = 50  # Steps.
  c.eval_every = STEPS_PER_EPOCH // 2
  c.checkpoint_every = STEPS_PER_EPOCH // 2
  c.keep_checkpoints = 3  # Newest ones.
  c.eval = dict(
    pairs=(
      'data/lfw.bin',
      'data/agedb_30.bin',
      'data/calfw.bin',
      'data/cplfw.bin',
      'data/cfp_fp.bin',
    ),
    synthetic_pairs=100,  # How many 'synthetic' draws.
    rows=128,  # Images that go through the network together.
  )

  if arg == 'smoke':  # Every part of it, small and without data.
    c.total_steps, c.group_size = 4, 8
    c.log_every, c.eval_every, c.checkpoint_every = 1, 4, 2
    c.data.update(source='synthetic', batch_size=32)
    c.model.update(name='iresnet18', width=8)
    c.eval.pairs = ('synthetic',)
  elif arg:
    raise ValueError(f'unknown argument {arg!r}; there is only smoke')
  return c
