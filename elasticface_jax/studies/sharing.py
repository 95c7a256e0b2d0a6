# SPDX-License-Identifier: Apache-2.0
"""Statement of what runs of one seed share, by the fields of their configs.

Each random stream of a run comes from its seed, and from the fields that are
listed here: of the backbone and the class centres (`training.state.init`), of
the order of images (`data.order`), of augmentation, margins, dropout and
sampled classes (`training.step`, `training.turn`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from elasticface_jax.studies.variants import differing


def describe(configs: Sequence[Mapping[str, Any]], num_seeds: int) -> str:
  """Returns one line that says what runs of one seed share and do not share.

  Args:
    configs: fields by dotted name, without the seed.
    num_seeds: number of seeds.
  """
  if len(configs) == 1:
    if num_seeds == 1:
      return 'one config with one seed: there is nothing to compare it with'
    return (
      f'one config; its {num_seeds} runs differ in the seed alone: initial '
      'weights, order of images, augmentation and all else that is drawn'
    )
  differ = differing(configs)
  shared, apart = [], []
  for name in _streams(configs[0]):
    used = filter(None, (_streams(config)[name] for config in configs))
    needed = list(used)
    if len(needed) < 2:
      continue  # There is nothing to share it with.
    fields = [field for field in differing(needed) if field in differ]
    if fields:
      words = 'differs' if len(fields) == 1 else 'differ'
      apart.append(f'{name} ({", ".join(fields)} {words})')
    else:
      shared.append(name)
  parts = [
    f'share {_listed(shared)}' if shared else '',
    f'do not share {_listed(apart)}' if apart else '',
  ]
  return (
    f'runs of one seed {", but ".join(filter(None, parts))}; the configs '
    f'differ in {", ".join(differ)}'
  )


def _listed(names: Sequence[str]) -> str:
  *others, last = names
  return f'{", ".join(others)} and {last}' if others else last


def _streams(config: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
  """Returns what each stream depends on besides the seed; None if not used."""
  pick = lambda *names: {name: config[name] for name in names}
  section = lambda name: pick(*(k for k in config if k.startswith(f'{name}.')))
  # What 'synthetic' draws, and where another source is.
  source = pick('data.source')
  if config['data.source'] == 'synthetic':
    source |= section('data.synthetic')
  start = pick('start.head')
  if config['start.head']:
    start |= pick('start.checkpoint')
  order = source | pick('data.window', 'data.batch_size')
  draws = config.get('loss.margin_std', 0) > 0
  left_out = 'model.dropout', 'model.drop_path', 'model.mask_ratio'
  is_sampled = config['head.sample_rate'] < 1
  return {
    'the initial backbone': {
      **pick('model.name', 'model.width', 'model.embedding_dim'),
      **pick('model.block', 'model.use_se', 'model.output_norm'),
      **pick('start.checkpoint'),
      # Parameters are drawn in float64 for it, and in float32 for all else.
      'model.dtype': config['model.dtype'] == 'float64',
    },
    'the initial class centres': source
    | start
    | pick('head.subcenters', 'model.embedding_dim'),
    'the order of images': order,
    'the augmentation': order | section('augment'),
    # A margin is the mean and so many deviations: for one image as many of
    # them, whatever mean and deviation are.
    'the draws of margins': order | pick('loss.clip') if draws else None,
    'the dropout': order | pick('group_size', *left_out)
    if any(config[field] for field in left_out)
    else None,
    'the sampled classes': order | pick('head.sample_rate', 'head.num_blocks')
    if is_sampled
    else None,
  }
