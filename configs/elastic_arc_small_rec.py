# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc on any .rec folder, small enough for a CPU.

For a folder of a few thousand aligned faces in insightface's layout, such as a
crop of your own data. A narrow IResNet-10 trains for 15 to 20 minutes on two
cores.

Expect (measured, 7,024 photographs of 1,191 people, 1,200 pairs of others):
66 % untrained, 86 % after 300 steps, 88 to 89 % from 600 on. The numbers of the
recipe were chosen on these data.

Run:   elasticface train --config configs/elastic_arc_small_rec.py \
           --workdir runs/small --config.data.source=FOLDER \
           --config.eval.pairs=PAIRS.bin
"""

import ml_collections as mlc


def get_config(arg=''):
  if arg:
    raise ValueError(f'unknown argument {arg!r}; there is none')
  c = mlc.ConfigDict()
  c.seed = 0  # The one root of every random stream.
  c.total_steps = 900
  c.group_size = 16  # Samples that share BatchNorm statistics.

  c.data = dict(
    source='data/faces',  # Holds train.rec, train.idx and property.
    batch_size=64,
    window=0,  # Images shuffled together (data.order); 0 for all of them.
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=5_000, num_classes=250),
  )
  c.augment = dict(flip=0.5)  # Probability of a horizontal flip.
  c.model = dict(
    name='iresnet10',
    width=16,  # Of the first stage; 64 as published.
    embedding_dim=128,
    dropout=0.0,  # Before the last linear layer.
    use_se=False,
    dtype='float32',  # Of convolutions; parameters are float32 always.
    remat=False,  # Less memory for a third more work (models.build).
  )
  c.head = dict(
    num_blocks=8,  # Blocks of classes; devices divide it.
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
    name='elastic_arcface',
    scale=32.0,
    margin=0.2,  # Mean; radians for arc losses.
    margin_std=0.05,
    clip=(),  # Bounds of the draw in standard deviations; () for none.
    pairing='paper',  # Of the '+' losses: 'paper' or 'released'.
    gradient='exact',  # Of the arc losses: or 'straight_through'.
  )
  c.optim = dict(
    lr=0.8,  # At batch size 512; scaled by batch_size / 512.
    warmup_steps=50,
    decay_steps=(550, 800),  # From these steps on, lr is lower by
    decay_factor=0.1,  # this factor.
    momentum=0.9,
    weight_decay=5e-4,  # On everything trained.
    backbone_clip_norm=5.0,  # Of the gradient, backbone only.
  )
  c.log_every = 25  # Steps.
  c.eval_every = 150
  c.checkpoint_every = 150
  c.keep_checkpoints = 3  # Newest ones.
  c.eval = dict(
    pairs=(),  # Or paths of insightface .bin files.
    synthetic_pairs=600,  # How many 'synthetic' draws.
    rows=16,  # Images that go through the network together.
  )
  return c
