# SPDX-License-Identifier: Apache-2.0
"""The backbones by name: stages of blocks, and `build`.

>>> backbone = build('iresnet10', embedding_dim=128, width=8)
>>> params, batch_stats = jax.eval_shape(backbone.init, jax.random.key(0))
>>> params['layer1']['0']['conv1']['kernel'].shape
(3, 3, 8, 8)
"""

import dataclasses
import functools

import jax

from elasticface_jax.errors import InputError
from elasticface_jax.models import functional, iresnet
from elasticface_jax.models.functional import Apply, Init

__all__ = ['STAGES', 'Backbone', 'build', 'stages_of']

# Blocks of the four stages, by name.
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
      dropout is not 0.
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
) -> Backbone:
  """Builds a backbone by name; computes nothing.

  Args:
    name: ``'iresnet10'``, ``18``, ``34``, ``50``, ``100``, ``152`` or ``200``.
    embedding_dim: D, the size of an embedding.
    dropout: probability, in [0, 1), of dropping a value before the last
      fully connected layer. The authors use 0 for IResNet-100, 0.4 for 50.
    use_se: whether blocks end in a squeeze-and-excitation gate.
    dtype: of convolutions, the fully connected layer and activations:
      ``'float32'`` as published, ``'bfloat16'``, or ``'float64'``, which
      needs ``jax_enable_x64``. Parameters and BatchNorm statistics are at
      least float32 in any case.
    width: channels of the first stage, doubled in each later one. 64 as
      published; smaller for trials on a CPU.
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
    which adds a BatchNorm before the first convolution and PReLU.
    Differs from the authors' code in: the scale of the last BatchNorm,
    which they freeze at 1, is not a parameter unless `output_norm` says so;
    the feature map is flattened channel last; iresnet10, `width` and `dtype`
    are additions.
  """
  if name not in STAGES:
    raise InputError(
      f'model name {name!r} is unknown; use one of {", ".join(STAGES)}'
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
  make_module = functools.partial(
    iresnet.IResNet,
    stages_of(name, block),
    width=width,
    embedding_dim=embedding_dim,
    dropout=dropout,
    block=block,
    use_se=use_se,
    output_norm=output_norm,
    input_norm=input_norm,
    remat=remat,
    dtype=dtype,
  )
  init, apply = functional.functional(make_module, iresnet.randomize)
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
