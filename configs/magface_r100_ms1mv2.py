# SPDX-License-Identifier: Apache-2.0
r"""MagFace on MS1MV2 with IResNet-100 (arXiv 2103.06627).

The authors' margins, epochs and drops: 25 epochs, the rate a tenth from epochs
10, 18 and 22 on, no flip. What differs: they give images in 0 to 1 and in the
order BGR.

Expect (model zoo of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, R100):
LFW 99.82, AgeDB-30 98.22, CALFW 96.02, CPLFW 92.95, CFP-FP 98.40 % accuracy.

Run:   elasticface train --config configs/magface_r100_ms1mv2.py \
           --workdir runs/magface_r100_ms1mv2 \
           --config.data.source=FOLDER
Smoke: ... --config configs/magface_r100_ms1mv2.py:smoke
"""

import ml_collections as mlc

# 5,822,653 images in batches of 512.
STEPS_PER_EPOCH = 5_822_653 // 512


def get_config(arg=''):
  c = mlc.ConfigDict()
  c.seed = 0  # The one root of every random stream.
  c.total_steps = 25 * STEPS_PER_EPOCH  # 284,300.
  c.group_size = 128  # Shares BatchNorm.

  c.data = dict(
    source='data/ms1mv2',  # Holds train.rec, train.idx and property.
    batch_size=512,
    window=0,  # Images shuffled together (data.order); 0 for all of them.
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=1_024, num_classes=64),
  )
  c.augment = dict(flip=0.0)
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
    name='magface',
    scale=64.0,
    gradient='exact',  # There is no other for this loss.
    magface=dict(
      lower_norm=10.0,  # Shorter embeddings count as this long,
      upper_norm=110.0,  # longer ones as this.
      lower_margin=0.45,  # Radians, of the shortest.
      upper_margin=0.8,  # Of the longest.
      regularizer_weight=35.0,
    ),
  )
  c.optim = dict(
    lr=0.1,  # At batch size 512; scaled by batch_size / 512.
    warmup_steps=0,
    decay_steps=tuple(epoch * STEPS_PER_EPOCH for epoch in (10, 18, 22)),
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
