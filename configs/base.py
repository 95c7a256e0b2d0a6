# SPDX-License-Identifier: Apache-2.0
"""Every field of a config, and the published arguments of every loss.

A recipe begins with a copy of `FIELDS` and changes some of them (`recipes`).
The values here are those of the ElasticFace authors' released configuration for
MS1MV2, called the reference below (arXiv 2109.09416), unless a comment names
another source. The table of what each field may be is
`elasticface_jax/config_rules.py`.
"""

# Names and keyword arguments of public functions of `elasticface_jax.losses`.
# `scale` is dimensionless. `clip` bounds the draw of a margin in standard
# deviations, () for no bounds. `gradient` is 'exact', or 'straight_through':
# the derivative of the changed cosine counts as 1.
LOSSES = {
  # No margin; the scale of the other losses.
  'normface': dict(scale=64.0),
  # arXiv 1801.07698; radians. insightface's code: 'straight_through'.
  'arcface': dict(scale=64.0, margin=0.5, gradient='exact'),
  # arXiv 1801.09414; units of the cosine. The reference trains it with 0.5.
  'cosface': dict(scale=64.0, margin=0.35),
  # arXiv 2109.09416, as the next three; mean and deviation in radians.
  'elastic_arcface': dict(
    scale=64.0, margin=0.5, margin_std=0.05, clip=(), gradient='exact'
  ),
  # Mean and deviation in units of the cosine.
  'elastic_cosface': dict(scale=64.0, margin=0.35, margin_std=0.05, clip=()),
  # `pairing` by rank, or 'released': the inverse permutation of the reference.
  'elastic_arcface_plus': dict(
    scale=64.0,
    margin=0.5,
    margin_std=0.0175,
    clip=(),
    pairing='paper',
    gradient='exact',
  ),
  # The deviation is the paper's; the reference has 0.02.
  'elastic_cosface_plus': dict(
    scale=64.0, margin=0.35, margin_std=0.025, clip=(), pairing='paper'
  ),
  # arXiv 1801.07698: factor of the angle, margin on it in radians, and margin
  # on the cosine.
  'combined_margin': dict(scale=64.0, m1=1.0, m2=0.3, m3=0.2, gradient='exact'),
  # SphereFace-R (arXiv 2109.05565) with OpenSphere's values; the margin is a
  # factor of the angle.
  'sphereface': dict(scale=30.0, margin=1.7, gradient='straight_through'),
  # arXiv 2312.05281 and its code: curvature, angle of the vertex in radians,
  # value there.
  'x2_softmax': dict(
    scale=64.0, a=-0.9, h=0.0, k=0.65, gradient='straight_through'
  ),
  # arXiv 2204.00964. `h` sets how many of the norms the margin tells apart;
  # `ema_rate` is that of the running mean and deviation of norms.
  'adaface': dict(scale=64.0, margin=0.4, h=0.333, ema_rate=0.01),
  # arXiv 2103.06627. Norms are clipped to these limits; margins in radians go
  # linearly from the lower norm to the upper one.
  'magface': dict(
    scale=64.0,
    lower_norm=10.0,
    upper_norm=110.0,
    lower_margin=0.45,
    upper_margin=0.8,
    regularizer_weight=35.0,
  ),
  # arXiv 2004.00288; radians. `ema_rate` is that of the running mean of the
  # target cosine.
  'curricularface': dict(scale=64.0, margin=0.5, ema_rate=0.01),
}

# Published losses that are one of `LOSSES` with other fields of a config.
COMBINED = {
  'subcenter_arcface': {'loss.name': 'arcface', 'head.subcenters': 3},
}

# 5,822,653 images of MS1MV2 in batches of 512.
STEPS_PER_EPOCH = 5_822_653 // 512

FIELDS = dict(
  seed=0,  # Root of every random stream.
  # 26 epochs: 295,672, which is in the names of the released checkpoints.
  total_steps=26 * STEPS_PER_EPOCH,
  # Samples that share BatchNorm statistics. The reference: 4 GPUs x 128.
  group_size=128,
  data=dict(
    # Folder with train.rec, train.idx and property; or shards, a folder of
    # images for each person, or 'synthetic'.
    source='data/ms1mv2',
    batch_size=512,  # Of all devices together.
    # Images shuffled together; 0 for all of them. 65,536 where reading in
    # order is cheap and jumping is not, as in a bucket.
    window=0,
    # What 'synthetic' draws; not read for other sources.
    synthetic=dict(num_images=1_024, num_classes=64),
  ),
  augment=dict(
    flip=0.5,  # Probability of a horizontal flip. The reference has no other.
    # Probabilities of the others, which come before the flip in this order,
    # each followed by what it draws from: (lowest, highest), evenly. Ranges are
    # AdaFace's (arXiv 2204.00964), but for the blur.
    resized_crop=0.0,  # A rectangle, resized to the full image.
    crop=0.0,  # A rectangle; all around it becomes black.
    crop_area=(0.2, 1.0),  # Of both crops, as a share of the image.
    crop_aspect=(3 / 4, 4 / 3),  # Of both: width by height, evenly in its log.
    low_resolution=0.0,  # Down and up again, by drawn interpolations.
    low_resolution_side=(0.2, 1.0),  # As a share of the image's.
    photometric=0.0,  # The three that follow, in random order.
    brightness=(0.5, 1.5),  # Factor.
    contrast=(0.5, 1.5),  # Factor.
    saturation=(0.5, 1.5),  # Factor.
    grey=0.0,
    blur=0.0,  # Gaussian.
    blur_sigma=(0.1, 2.0),  # In pixels; torchvision's default.
  ),
  model=dict(
    # Or iresnet10, 18, 34, 50, 152, 200, mobilefacenet, vit_t, vit_s, vit_b.
    name='iresnet100',
    width=64,  # As published; every number of channels is in proportion to it.
    embedding_dim=512,
    # Of IResNets alone, as are use_se, block and both norms.
    dropout=0.0,  # Probability, before the last linear layer.
    use_se=False,  # Squeeze-and-excitation at the end of each block.
    dtype='float32',  # Of the computation; parameters are float32 always.
    remat=False,  # Less memory for a third more work (`models.build`).
    block='insightface',  # Or adaface, curricularface, adaface_bottleneck.
    output_norm='bias',  # Learned by the last BatchNorm; or affine, plain.
    input_norm=False,  # For weights that were trained on other pixels.
    # Of ViTs alone.
    drop_path=0.0,  # Probability of skipping a branch of the last block.
    mask_ratio=0.0,  # Share of patches left out in training.
  ),
  head=dict(
    num_blocks=16,  # Blocks of classes; the number of devices divides it.
    subcenters=1,  # Centres of each class; the nearest counts.
    sample_rate=1.0,  # Share of a block's classes in a step; 1 for all.
    precision='highest',  # Of its matrix products; or 'high', 'default'.
  ),
  start=dict(
    checkpoint='',  # Run folder or .pth whose backbone to begin with; '': none.
    head=False,  # Begin with its class centres too: the same classes.
    freeze=False,  # Train the class centres alone.
  ),
  loss=dict(name='elastic_arcface', **LOSSES['elastic_arcface']),
  optim=dict(
    name='sgd',  # Or adamw, whose rate and weight decay are others.
    lr=0.1,  # At batch size 512; it is scaled by batch_size / 512.
    warmup_steps=0,  # Of a linear rise from the first step on.
    # From these steps on, here epochs 7, 13, 19 and 24 counted from 0, the
    # rate is lower by the factor.
    decay_steps=tuple(epoch * STEPS_PER_EPOCH for epoch in (7, 13, 19, 24)),
    decay_factor=0.1,
    # Step at which a polynomial decay from the end of the warm-up on reaches 0;
    # 0 for none. insightface's ends with the training, and is linear.
    decay_end=0,
    decay_power=1.0,
    momentum=0.9,  # Of sgd.
    beta1=0.9,  # Of adamw, as the next two, which are torch's.
    beta2=0.999,
    eps=1e-8,
    # On everything that is trained. sgd's is part of the gradient, adamw's not.
    weight_decay=5e-4,
    backbone_clip_norm=5.0,  # Of the gradient, backbone only.
  ),
  # Intervals in steps; 0 for the end only.
  log_every=50,
  eval_every=STEPS_PER_EPOCH // 2,
  checkpoint_every=STEPS_PER_EPOCH // 2,
  keep_checkpoints=3,  # Newest ones.
  # Save checksums with a checkpoint, and compare them when it is restored.
  checkpoint_checksums=True,
  # Steps between records of each tensor's checksum, for `repeat`; 0 for those
  # of checkpoints alone. A record is one reading of the state on its devices.
  fingerprint_every=0,
  eval=dict(
    # Files of pairs, .bin or .npz, or 'synthetic'.
    pairs=(
      'data/lfw.bin',
      'data/agedb_30.bin',
      'data/calfw.bin',
      'data/cplfw.bin',
      'data/cfp_fp.bin',
    ),
    synthetic_pairs=100,  # How many 'synthetic' draws.
    folds=10,  # Of the cross-validation, as published; fewer for small sets.
    # Images that go through the network together; an accelerator wants 128.
    rows=128,
  ),
)

# A recipe with ``:smoke``: every part of it, small and without data. A network
# is by that of the recipe.
VARIANTS = {
  'smoke': {
    'total_steps': 4,
    'group_size': 8,
    'data.source': 'synthetic',
    'data.synthetic.num_images': 1_024,
    'data.synthetic.num_classes': 64,
    'data.batch_size': 32,
    'model.name': {
      **dict.fromkeys(
        (f'iresnet{depth}' for depth in (10, 18, 34, 50, 100, 152, 200)),
        'iresnet18',
      ),
      'mobilefacenet': 'mobilefacenet',
      **dict.fromkeys(('vit_t', 'vit_s', 'vit_b'), 'vit_t'),
    },
    'model.width': 8,
    'head.num_blocks': 16,  # Fewer than the drawn classes.
    'log_every': 1,
    'eval_every': 4,
    'checkpoint_every': 2,
    'eval.pairs': ('synthetic',),
  }
}
