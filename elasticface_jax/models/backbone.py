# SPDX-License-Identifier: Apache-2.0
"""The backbones by name, and `build`.

>>> backbone = build('iresnet10', embedding_dim=128, width=8)
>>> params, batch_stats = jax.eval_shape(backbone.init, jax.random.key(0))
>>> params['layer1']['0']['conv1']['kernel'].shape
(3, 3, 8, 8)
"""

import dataclasses
import functools

import jax

from elasticface_jax.errors import InputError
from elasticface_jax.models import functional, iresnet, mobilefacenet, vit
from elasticface_jax.models.functional import Apply, Init

__all__ = ['STAGES', 'VITS', 'Backbone', 'build', 'stages_of']

# Blocks of the four stages of an IResNet, by name.
STAGES = {
  'iresnet10': (1, 1, 1, 1),
  'iresnet18': (2, 2, 2, 2),
  'iresnet34': (3, 4, 6, 3),
  'iresnet50': (3, 4, 14, 3),
  'iresnet100': (3, 13, 30, 3),
  'iresnet152': (3, 8, 36, 3),
  'iresnet200': (6, 26, 60, 6),
}
# IR-200 of AdaFace, TFace and CVLface, which is made of bottlenecks.
_BOTTLENECK_200 = (3, 24, 36, 3)
# Number of blocks of a ViT, and the size of its tokens for a width of 1.
VITS = {'vit_t': (12, 4), 'vit_s': (12, 8), 'vit_b': (24, 8)}
# Arguments of `build` that only some networks have, and their value elsewhere.
_ONLY = {
  'dropout': (STAGES, 0.0),
  'use_se': (STAGES, False),
  'block': (STAGES, 'insightface'),
  'output_norm': (STAGES, 'bias'),
  'input_norm': (STAGES, False),
  'drop_path': (VITS, 0.0),
  'mask_ratio': (VITS, 0.0),
}
_DTYPES = ('float32', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network without weights, as two pure functions `init` and `apply`.

  Attributes:
    name: the argument of `build`.
    embedding_dim: D, the size of an embedding.
    init: ``init(key) -> (params, batch_stats)``, nested dicts with string
      keys and float32 leaves (float64 for dtype ``'float64'``).
    apply: ``apply(params, batch_stats, images, *, train, key=None) ->
      (embeddings, batch_stats)``. Images are RGB in [-1, 1],
      ``[B, 112, 112, 3]``; embeddings are not normalised, float32 whatever
      the compute dtype (float64 for ``'float64'``), ``[B, D]``. In training
      BatchNorm uses the statistics of exactly these images and returns
      updated running ones; `key` is needed only there, and only where
      dropout, drop_path or mask_ratio is not 0.
  """

  name: str
  embedding_dim: int
  init: Init
  apply: Apply


def build(
  name: str,
  *,
  embedding_dim: int = 512,
  dropout: float = 0.0,
  use_se: bool = False,
  dtype: str = 'float32',
  width: int = 64,
  remat: bool = False,
  block: str = 'insightface',
  output_norm: str = 'bias',
  input_norm: bool = False,
  drop_path: float = 0.0,
  mask_ratio: float = 0.0,
) -> Backbone:
  """Builds a backbone by name; computes nothing.

  Args:
    name: ``'iresnet10'``, ``18``, ``34``, ``50``, ``100``, ``152`` or ``200``;
      ``'mobilefacenet'``; ``'vit_t'``, ``'vit_s'`` or ``'vit_b'``. `dropout`,
      `use_se`, `block`, `output_norm` and `input_norm` are of IResNets alone,
      `drop_path` and `mask_ratio` of ViTs: elsewhere they have their defaults.
    embedding_dim: D, the size of an embedding.
    dropout: probability, in [0, 1), of dropping a value before the last
      fully connected layer. The authors use 0 for IResNet-100, 0.4 for 50.
    use_se: whether blocks end in a squeeze-and-excitation gate.
    dtype: of convolutions, the fully connected layer and activations:
      ``'float32'`` as published, ``'bfloat16'``, or ``'float64'``, which
      needs ``jax_enable_x64``. Parameters and BatchNorm statistics are at
      least float32 in any case.
    width: 64 as published; all numbers of channels are in proportion to it, so
      smaller for trials on a CPU. The channels of an IResNet's first stage,
      half of MobileFaceNet's; a token of ``'vit_t'`` has 4 times as many
      values, of the other two 8 times. Even for ``'vit_t'``, which has 8 heads.
    remat: whether the backward pass of training computes activations again.
      Little more than the inputs of stem and blocks is then kept for it, about
      a seventh of the memory otherwise, and it computes the insides of one
      block at a time again: a third more work. Losses and statistics stay the
      same; gradients change in the last digits of `dtype`, so a run has another
      fingerprint with it. On a CPU, jax 0.10 merges the second computation with
      the first, which saves no memory; 0.11 does not.
    block: residual block. ``'insightface'``; ``'adaface'``, whose shortcut
      takes every second pixel where a stage begins with equal channels, also
      of TFace and CVLface; ``'curricularface'``, which moreover has no
      BatchNorm after its first convolution, also of face.evoLVe;
      ``'adaface_bottleneck'``, of their IR-152 and IR-200.
    output_norm: what the last BatchNorm learns: ``'bias'``, as insightface;
      ``'affine'``, scale and bias, as MagFace and face.evoLVe; ``'plain'``,
      nothing, as AdaFace, TFace, CVLface and CurricularFace.
    input_norm: whether the network begins with a layer that maps RGB in
      [-1, 1] to the pixels that it was trained on elsewhere, by the constants
      ``batch_stats['input']``.
    drop_path: probability, in [0, 1), that an image skips a branch of the last
      block in training; less in the blocks before it, 0 in the first.
      arcface_torch: 0.1, or 0.05 on WebFace42M.
    mask_ratio: share of an image's patches, in [0, 0.99], that are left out in
      training. arcface_torch: 0.1, or 0 on WebFace42M.

  Returns:
    The backbone.

  Raises:
    InputError: if an argument has none of these values.

  Examples:
    >>> build('iresnet100').embedding_dim
    512

  References:
    `Improved Residual Networks <https://arxiv.org/abs/2004.04989>`_ name the
    family; the block is that of `ArcFace <https://arxiv.org/abs/1801.07698>`_,
    which adds a BatchNorm before the first convolution and PReLU. The others
    are those of arcface_torch (`mobilefacenet`, `vit`).
    Differs from the authors' code in: the scale of the last BatchNorm,
    which they freeze at 1, is not a parameter unless `output_norm` says so;
    the feature map is flattened channel last; iresnet10, `width` and `dtype`
    are additions.
  """
  names = *STAGES, 'mobilefacenet', *VITS
  if name not in names:
    raise InputError(
      f'model name {name!r} is unknown; use one of {", ".join(names)}'
    )
  if dtype not in _DTYPES:
    raise InputError(
      f'model dtype {dtype!r} is unknown; use one of {", ".join(_DTYPES)}'
    )
  if dtype == 'float64' and not jax.config.jax_enable_x64:
    raise InputError("model dtype 'float64' needs jax_enable_x64 switched on")
  if embedding_dim < 1 or width < 1:
    raise InputError(
      f'model embedding_dim {embedding_dim} and width {width} must be positive'
    )
  if not 0 <= dropout < 1:
    raise InputError(f'model dropout {dropout} must lie in [0, 1)')
  if use_se and width % iresnet.SE_REDUCTION:
    raise InputError(
      f'model width {width} with use_se must be a multiple of '
      f'{iresnet.SE_REDUCTION}'
    )
  for field, value, known in (
    ('block', block, iresnet.BLOCKS),
    ('output_norm', output_norm, iresnet.OUTPUT_NORMS),
  ):
    if value not in known:
      raise InputError(
        f'model {field} {value!r} is unknown; use one of {", ".join(known)}'
      )
  if not 0 <= drop_path < 1:
    raise InputError(f'model drop_path {drop_path} must lie in [0, 1)')
  if not 0 <= mask_ratio <= 0.99:
    raise InputError(f'model mask_ratio {mask_ratio} must lie in [0, 0.99]')
  own = {
    'dropout': dropout,
    'use_se': use_se,
    'block': block,
    'output_norm': output_norm,
    'input_norm': input_norm,
    'drop_path': drop_path,
    'mask_ratio': mask_ratio,
  }
  for field, value in own.items():
    networks, absent = _ONLY[field]
    if name not in networks and value != absent:
      raise InputError(
        f'model {field} {value!r} is for {", ".join(networks)}; {name} has '
        f'none: leave it at {absent!r}'
      )
  shared = {'embedding_dim': embedding_dim, 'remat': remat, 'dtype': dtype}
  if name in STAGES:
    module = iresnet
    make_module = functools.partial(
      iresnet.IResNet,
      stages_of(name, block),
      width=width,
      dropout=dropout,
      block=block,
      use_se=use_se,
      output_norm=output_norm,
      input_norm=input_norm,
      **shared,
    )
  elif name in VITS:
    module = vit
    depth, size = VITS[name]
    if size * width % vit.HEADS:
      raise InputError(f'model width {width} of {name} must be even')
    make_module = functools.partial(
      vit.ViT,
      depth,
      size=size * width,
      drop_path=drop_path,
      mask_ratio=mask_ratio,
      **shared,
    )
  else:
    module = mobilefacenet
    make_module = functools.partial(
      mobilefacenet.MobileFaceNet, width=width, **shared
    )
  init, apply = functional.functional(make_module, module.randomize)
  return Backbone(name, embedding_dim, init, apply)


def stages_of(name: str, block: str) -> tuple[int, ...]:
  """Returns the number of blocks of each stage of an IResNet.

  Args:
    name: as for `build`.
    block: likewise.

  Examples:
    >>> stages_of('iresnet200', 'insightface')
    (6, 26, 60, 6)
  """
  if (name, block) == ('iresnet200', 'adaface_bottleneck'):
    return _BOTTLENECK_200
  return STAGES[name]
