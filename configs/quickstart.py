# SPDX-License-Identifier: Apache-2.0
r"""ElasticFace-Arc on drawn faces: the whole trainer in a few CPU minutes.

Needs no download. Trains a narrow IResNet-10 on drawn faces, and verifies
pairs of identities that it never saw.

Expect (measured, two CPU cores): 61 % untrained, 95 % after 160 steps, in under
four minutes. The numbers of the recipe were chosen for that, on these faces.

Run:   elasticface train --config configs/quickstart.py \
           --workdir runs/quickstart
"""

import ml_collections as mlc


def get_config(arg=''):
  if arg:
    raise ValueError(f'quickstart takes no argument, not {arg!r}')
  c = mlc.ConfigDict()
  c.seed = 0  # The one root of every random stream.
  c.total_steps = 160
  c.group_size = 16  # Samples that share BatchNorm statistics.

  c.data = dict(
    source='synthetic',  # Or a folder with train.rec, train.idx, property.
    batch_size=64,
    window=0,  # Images shuffled together (data.order); 0 for all of them.
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=4_000, num_classes=200),
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
    # Of other losses, so that loss.name alone may change; see README.
    combined_margin=dict(m1=1.0, m2=0.1, m3=0.1),
    sphereface=dict(margin=1.2),
    x2_softmax=dict(a=-0.6, h=0.0, k=0.9),
    adaface=dict(margin=0.2, h=0.333, ema_rate=0.1),
    magface=dict(
      lower_norm=5.0,
      upper_norm=20.0,
      lower_margin=0.1,
      upper_margin=0.3,
      regularizer_weight=5.0,
    ),
    curricularface=dict(margin=0.2, ema_rate=0.01),
  )
  c.optim = dict(
    lr=0.8,  # At batch size 512; scaled by batch_size / 512.
    warmup_steps=20,
    decay_steps=(100, 135),  # From these steps on, lr is lower by
    decay_factor=0.1,  # this factor.
    momentum=0.9,
    weight_decay=5e-4,  # On everything trained.
    backbone_clip_norm=5.0,  # Of the gradient, backbone only.
  )
  c.log_every = 10  # Steps.
  c.eval_every = 80
  c.checkpoint_every = 80
  c.keep_checkpoints = 3  # Newest ones.
  c.eval = dict(
    pairs=('synthetic',),  # Or paths of insightface .bin files.
    synthetic_pairs=600,  # How many 'synthetic' draws.
    rows=16,  # Images that go through the network together.
  )
  return c
