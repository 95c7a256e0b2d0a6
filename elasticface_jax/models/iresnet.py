# SPDX-License-Identifier: Apache-2.0
r"""IResNet, the residual network of face recognition.

Input ``[B, 112, 112, 3]``; a stem at full resolution; four stages, each of
which halves it (112 to 7) and, after the first, doubles the channels; a fully
connected layer; a BatchNorm over the embedding. No activation lies on the
shortcut:

.. math::
  y = \text{shortcut}(x) + \text{BN}(\text{conv}_s(\text{PReLU}(
    \text{BN}(\text{conv}(\text{BN}(x))))))

Sub-modules carry the names of the PyTorch implementations (``layer1.0.conv1``,
``downsample.1``, ``features``), so weights convert name by name; numbered ones
are string keys of `nnx.Dict`. Letters: B images, D embedding size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elasticface_jax.models.faces import IMAGE_SHAPE, check_scaled
from elasticface_jax.models.functional import recomputed
from elasticface_jax.models.layers import (
  BatchNorm,
  Conv,
  InputNorm,
  Linear,
  PReLU,
  at_least_float32,
)

SE_REDUCTION = 16
# Channels of a bottleneck's output for one of its 3x3 convolution.
EXPANSION = 4
# Residual blocks, by the project that published networks of them first:
#   insightface: where a stage begins, the shortcut is a projection.
#   adaface: it takes every second pixel where the channels stay equal. TFace's
#     and CVLface's too.
#   curricularface: likewise, and no BatchNorm follows the first convolution.
#     face.evoLVe's too.
#   adaface_bottleneck: 1x1, 3x3 and 1x1, with four times the channels outside.
BLOCKS = 'insightface', 'adaface', 'curricularface', 'adaface_bottleneck'
# What the BatchNorm of the embedding learns, as (scale, bias).
OUTPUT_NORMS = {
  'bias': (False, True),  # ElasticFace, arcface_torch.
  'affine': (True, True),  # MagFace, face.evoLVe.
  'plain': (False, False),  # AdaFace, TFace, CVLface, CurricularFace.
}


class SqueezeExcitation(nnx.Module):
  """A gate in (0, 1) for each channel, computed from the means of all.

  Args:
    channels: C, a multiple of `SE_REDUCTION`.
    dtype: of the computation.
  """

  def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike):
    hidden = channels // SE_REDUCTION
    self.fc1: Conv = Conv(channels, hidden, size=1, dtype=dtype)
    self.fc2: Conv = Conv(hidden, channels, size=1, dtype=dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Multiplies `x` by its gates."""
    means = x.mean((1, 2), keepdims=True)
    return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(means))))


class Block(nnx.Module):
  """The residual block; its last convolution has the stride.

  Args:
    channels_in: channels of the input.
    channels_out: channels of the output.
    stride: 1, or 2 to halve height and width.
    kind: one of `BLOCKS`.
    use_se: whether a squeeze-and-excitation gate follows the last BatchNorm.
    dtype: of the computation.
  """

  def __init__(
    self,
    channels_in: int,
    channels_out: int,
    *,
    stride: int,
    kind: str,
    use_se: bool,
    dtype: jax.typing.DTypeLike,
  ):
    self.stride = stride
    self.use_se = use_se
    self.use_bn2: bool = kind != 'curricularface'
    self._make_residual(channels_in, channels_out, dtype)
    if use_se:
      self.se_block: SqueezeExcitation = SqueezeExcitation(
        channels_out, dtype=dtype
      )
    self.projects: bool = channels_in != channels_out or (
      stride != 1 and kind == 'insightface'
    )
    if self.projects:
      self.downsample: nnx.Dict[Conv | BatchNorm] = nnx.Dict(
        {
          '0': Conv(
            channels_in, channels_out, size=1, stride=stride, dtype=dtype
          ),
          '1': BatchNorm(channels_out, dtype=dtype),
        }
      )

  def _make_residual(self, channels_in, channels_out, dtype):
    self.bn1: BatchNorm = BatchNorm(channels_in, dtype=dtype)
    self.conv1: Conv = Conv(channels_in, channels_out, size=3, dtype=dtype)
    if self.use_bn2:
      self.bn2: BatchNorm = BatchNorm(channels_out, dtype=dtype)
    self.prelu: PReLU = PReLU(channels_out, dtype=dtype)
    self.conv2: Conv = Conv(
      channels_out, channels_out, size=3, stride=self.stride, dtype=dtype
    )
    self.bn3: BatchNorm = BatchNorm(channels_out, dtype=dtype)

  def _residual(self, x, *, train):
    y = self.conv1(self.bn1(x, train=train))
    if self.use_bn2:
      y = self.bn2(y, train=train)
    y = self.conv2(self.prelu(y))
    return self.bn3(y, train=train)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Adds the residual to `x`, to every second pixel, or to a projection."""
    y = self._residual(x, train=train)
    if self.use_se:
      y = self.se_block(y)
    if self.projects:
      x = self.downsample['1'](self.downsample['0'](x), train=train)
    elif self.stride != 1:
      x = x[:, :: self.stride, :: self.stride]
    return x + y


class Bottleneck(Block):
  """The residual block whose 3x3 convolution has a quarter of the channels."""

  def _make_residual(self, channels_in, channels_out, dtype):
    hidden = channels_out // EXPANSION
    self.bn1: BatchNorm = BatchNorm(channels_in, dtype=dtype)
    self.conv1: Conv = Conv(channels_in, hidden, size=1, dtype=dtype)
    self.bn2: BatchNorm = BatchNorm(hidden, dtype=dtype)
    self.prelu: PReLU = PReLU(hidden, dtype=dtype)
    self.conv2: Conv = Conv(hidden, hidden, size=3, dtype=dtype)
    self.bn3: BatchNorm = BatchNorm(hidden, dtype=dtype)
    self.prelu2: PReLU = PReLU(hidden, dtype=dtype)
    self.conv3: Conv = Conv(
      hidden, channels_out, size=1, stride=self.stride, dtype=dtype
    )
    self.bn4: BatchNorm = BatchNorm(channels_out, dtype=dtype)

  def _residual(self, x, *, train):
    y = self.conv1(self.bn1(x, train=train))
    y = self.conv2(self.prelu(self.bn2(y, train=train)))
    y = self.conv3(self.prelu2(self.bn3(y, train=train)))
    return self.bn4(y, train=train)


class IResNet(nnx.Module):
  """The network that maps face images to embeddings.

  Differs from the authors' code in: the feature map is flattened as height,
  width, channel, where PyTorch has the channel first, so converting weights
  permutes the rows of ``fc``; the scale of the last BatchNorm, which they
  freeze at 1, does not exist; the dropout mask comes from a key; MagFace drops
  whole channels of the feature map.

  Args:
    stages: number of blocks of each stage; four in the published networks.
    width: channels of the stem and of the first stage.
    embedding_dim: D.
    dropout: probability that a value of the flat feature map is dropped.
    block: one of `BLOCKS`.
    use_se: whether blocks have a squeeze-and-excitation gate.
    output_norm: one of `OUTPUT_NORMS`.
    input_norm: whether the network has an `InputNorm`.
    remat: whether the backward pass of training computes the insides of stem
      and blocks again, so that only their inputs are kept.
    dtype: of the computation.
  """

  def __init__(
    self,
    stages: tuple[int, ...],
    *,
    width: int,
    embedding_dim: int,
    dropout: float,
    block: str,
    use_se: bool,
    output_norm: str,
    input_norm: bool,
    remat: bool,
    dtype: jax.typing.DTypeLike,
  ):
    self.stages = stages
    self.remat = remat
    self.dropout = dropout
    self.input_norm = input_norm
    if input_norm:
      self.input: InputNorm = InputNorm(IMAGE_SHAPE[-1], dtype=dtype)
    self.conv1: Conv = Conv(IMAGE_SHAPE[-1], width, size=3, dtype=dtype)
    self.bn1: BatchNorm = BatchNorm(width, dtype=dtype)
    self.prelu: PReLU = PReLU(width, dtype=dtype)
    is_bottleneck = block == 'adaface_bottleneck'
    make_block = Bottleneck if is_bottleneck else Block
    expansion = EXPANSION if is_bottleneck else 1
    channels = width
    for i, blocks in enumerate(stages):
      stage = nnx.Dict()
      for j in range(blocks):
        stage[str(j)] = make_block(
          channels,
          expansion * width << i,
          stride=2 if j == 0 else 1,
          kind=block,
          use_se=use_se,
          dtype=dtype,
        )
        channels = expansion * width << i
      setattr(self, f'layer{i + 1}', stage)
    self.bn2: BatchNorm = BatchNorm(channels, dtype=dtype)
    fan_in = channels * (IMAGE_SHAPE[0] >> len(stages)) ** 2
    self.fc: Linear = Linear(fan_in, embedding_dim, dtype=dtype)
    use_scale, use_bias = OUTPUT_NORMS[output_norm]
    self.features: BatchNorm = BatchNorm(
      embedding_dim,
      dtype=at_least_float32(dtype),
      use_scale=use_scale,
      use_bias=use_bias,
    )

  def __call__(
    self, images: jax.Array, *, train: bool, key: jax.Array | None
  ) -> jax.Array:
    """Embeds a batch of aligned faces.

    Args:
      images: RGB in [-1, 1], any float dtype, ``[B, 112, 112, 3]``.
      train: whether BatchNorm uses, and records, the statistics of these B
        images, and dropout is on.
      key: typed PRNG key of the dropout mask, consumed once; needed where
        `train` and the dropout is not 0, else unused.

    Returns:
      Embeddings, not normalised, at least float32, ``[B, D]``.

    Raises:
      TypeError: if the images are integers.
      ValueError: if they have another shape, if there are fewer than 2 in
        training, or if the dropout lacks its key.
    """
    check_scaled(images, train=train)
    if train and self.dropout and key is None:
      raise ValueError(f'dropout {self.dropout} in training needs a key')

    def stem(layers, x):
      conv1, bn1, prelu = layers
      return prelu(bn1(conv1(x), train=train))

    def run(function, module, x):
      if train and self.remat:
        return recomputed(function, module, x)
      return function(module, x)

    if self.input_norm:
      images = self.input(images)
    x = run(stem, (self.conv1, self.bn1, self.prelu), images)
    for i, blocks in enumerate(self.stages):
      stage = getattr(self, f'layer{i + 1}')
      for j in range(blocks):
        x = run(lambda block, x: block(x, train=train), stage[str(j)], x)
    # Not recomputed: the rest keeps little, and draws the dropout mask.
    x = self.bn2(x, train=train)
    x = x.reshape(x.shape[0], -1)
    if train and self.dropout:
      kept = 1 - self.dropout
      x = jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0)
    return self.features(self.fc(x), train=train)


def randomize(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
  r"""Draws the initial kernels of an `IResNet`; keeps all other parameters.

  Convolutions from :math:`N(0, 0.1^2)`; kernel and bias of ``fc`` from
  :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` with :math:`n` its inputs.

  Args:
    params: of an `IResNet`, nested dicts.
    key: typed PRNG key, consumed once.

  Returns:
    The parameters, same keys, shapes and dtypes.
  """
  conv_key, fc_key = jax.random.split(key)
  # One flat draw for all kernels. Drawn one by one, in four dims, each kernel
  # costs most of a second of compilation: IResNet-100 has 103.
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
  dtype = kernels[0].dtype
  ends = np.cumsum([kernel.size for kernel in kernels])
  flat = 0.1 * jax.random.normal(conv_key, (ends[-1],), dtype)
  draws = iter(jnp.split(flat, ends[:-1]))
  params = jax.tree.map(
    lambda leaf: next(draws).reshape(leaf.shape) if leaf.ndim == 4 else leaf,
    params,
  )
  fan_in, features_out = params['fc']['kernel'].shape
  limit = fan_in**-0.5
  count = (fan_in + 1) * features_out
  flat = jax.random.uniform(fc_key, (count,), dtype, -limit, limit)
  rows = flat.reshape(fan_in + 1, features_out)
  return params | {'fc': {'kernel': rows[:-1], 'bias': rows[-1]}}
