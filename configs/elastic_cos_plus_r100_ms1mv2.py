# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Cos+ on MS1MV2 with IResNet-100 (arXiv 2109.09416).

The recipe of the authors' code, with the paper's margins: global batch 512 of
4 groups of 128, 26 epochs, the rate a tenth from epochs 7, 13, 19 and 24 on
(counted from 0). All numbers without another source are those of the released
configuration. The released configuration has a margin_std of 0.02 here, the
paper 0.025. The published code pairs margins by the inverse permutation; set
loss.pairing='released' for that.

Expect (the paper, Table III):
LFW 99.80, AgeDB-30 98.28, CALFW 96.18, CPLFW 93.23, CFP-FP 98.73 % accuracy.

Run:   elasticface train --config configs/elastic_cos_plus_r100_ms1mv2.py \
           --workdir runs/elastic_cos_plus_r100_ms1mv2 \
           --config.data.source=FOLDER
Smoke: ... --config configs/elastic_cos_plus_r100_ms1mv2.py:smoke
"""

import ml_collections as mlc

# 5,822,653 images in batches of 512; 295,672 steps in 26 epochs, the number in
# the names of the released checkpoints.
STEPS_PER_EPOCH = 5_822_653 // 512


def get_config(arg=''):
  c = mlc.ConfigDict()
  c.seed = 0  # The one root of every random stream.
  c.total_steps = 26 * STEPS_PER_EPOCH  # 295,672.
  c.group_size = 128  # Shares BatchNorm: 4 GPUs x 128 in the reference.

  c.data = dict(
    source='data/ms1mv2',  # Holds train.rec, train.idx and property.
    batch_size=512,
    window=0,  # Images shuffled together (data.order); 0 for all of them.
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=1_024, num_classes=64),
  )
  c.augment = dict(flip=0.5)  # Nothing else, as the reference.
  c.model = dict(
    name='iresnet100',
    width=64,  # Of the first stage, as published.
    embedding_dim=512,
    dropout=0.0,  # Before the last linear layer, as the reference.
    use_se=False,
    dtype='float32',  # As the reference trained.
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
    name='elastic_cosface_plus',
    scale=64.0,
    margin=0.35,  # Mean, in units of cosine.
    margin_std=0.025,  # As the paper; 0.02 in the released code.
    clip=(),  # Bounds of the draw in standard deviations; () for none.
    pairing='paper',  # By rank; or as published: 'released'.
    gradient='exact',  # Of the arc losses, as the reference.
  )
  c.optim = dict(
    lr=0.1,  # At batch size 512; scaled by batch_size / 512.
    warmup_steps=0,  # None in the reference.
    decay_steps=tuple(epoch * STEPS_PER_EPOCH for epoch in (7, 13, 19, 24)),
    decay_factor=0.1,
    momentum=0.9,
    weight_decay=5e-4,  # On everything trained, as the reference.
    backbone_clip_norm=5.0,  # Of the gradient, backbone only.
  )
  c.log_every = 50  # Steps.
  c.eval_every = STEPS_PER_EPOCH // 2  # As the reference.
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
