# SPDX-License-Identifier: Apache-2.0
r"""Four losses on any .rec folder, small enough for a study on a CPU.

For a few thousand aligned faces in insightface's layout. A narrow IResNet-10
trains for two to four minutes on two cores, so five seeds of all four losses
take about an hour:

  elasticface study --config losses_small_rec:arcface \
    --config losses_small_rec:elastic_arc \
    --config losses_small_rec:elastic_arc_plus \
    --config losses_small_rec:elastic_arc_plus_released \
    --config.data.source=FOLDER "--config.eval.pairs=('PAIRS.bin',)" \
    --seeds 5 --out runs/losses

Expect (measured, 7,024 photographs of 1,191 people, 1,200 pairs of others):
67 % untrained, 83 to 84 % after 300 steps. BENCHMARKS.md has the study.

Run: elasticface train --config losses_small_rec --workdir runs/small \
       --config.data.source=FOLDER
"""

from elasticface_jax import recipes

# The deviations of margins are the published ones.
_SMALL = dict(scale=32.0, margin=0.2)
LOSSES = {
  'arcface': recipes.loss('arcface', **_SMALL),
  'elastic_arc': recipes.loss('elastic_arcface', **_SMALL),
  'elastic_arc_plus': recipes.loss('elastic_arcface_plus', **_SMALL),
  'elastic_arc_plus_released': recipes.loss(
    'elastic_arcface_plus', pairing='released', **_SMALL
  ),
}


def get_config(loss='elastic_arc'):
  if loss not in LOSSES:
    raise ValueError(f'no loss {loss!r}; choose one of {", ".join(LOSSES)}')
  c = recipes.base(loss=LOSSES[loss])
  c.data.update(source='data/faces', batch_size=64)
  c.data.synthetic.update(num_images=5_000, num_classes=250)
  c.group_size = 16
  c.head.num_blocks = 8
  c.model.update(name='iresnet10', width=8, embedding_dim=128)
  c.total_steps = 300
  c.optim.update(lr=0.8, warmup_steps=30, decay_steps=(200, 270))
  c.eval.update(pairs=(), synthetic_pairs=600, rows=16)
  c.eval_every = c.checkpoint_every = 150
  c.log_every = 25
  return c
