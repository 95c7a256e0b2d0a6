# SPDX-License-Identifier: Apache-2.0
r"""MobileFaceNet, the small network of face recognition.

Input ``[B, 112, 112, 3]``; a convolution that halves it and a grouped one;
three stages of bottlenecks, each of which begins by halving height and width
(56 to 7); a 1x1 convolution; one weighted sum over each channel's 7x7 pixels; a
linear layer; a BatchNorm over the embedding. A bottleneck widens the channels,
filters each by itself and narrows them, without an activation at its end:

.. math::
  y = x + \text{BN}(\text{conv}_{1 \times 1}(\text{PReLU}(\text{BN}(
    \text{depthwise}_{3 \times 3}(\text{PReLU}(\text{BN}(
    \text{conv}_{1 \times 1}(x))))))))

and without :math:`x` where it halves height and width.

Sub-modules carry the names of arcface_torch's (``layers.3.layers.0``), so
weights convert name by name. Letters: B images, C channels, D embedding size.
"""

import itertools
from collections.abc import Iterator
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
  Linear,
  PReLU,
  at_least_float32,
)

# Bottlenecks of each stage after its first.
BLOCKS = 4, 6, 2
# Channels of its output, and inside its first and its other bottlenecks, for a
# width of 1.
_CHANNELS = (2, 2, 2), (4, 4, 4), (4, 8, 4)
# Channels after the last 1x1 convolution, for a width of 1.
LAST = 8
_HALVINGS = 4


class GlobalDepthwise(nnx.Module):
  """A weighted sum over the pixels of each channel.

  Args:
    side: height and width of the input.
    channels: C.
    dtype: of the computation.
  """

  def __init__(self, side: int, channels: int, *, dtype: jax.typing.DTypeLike):
    self.dtype = dtype
    shape = (side, side, 1, channels)
    self.kernel: nnx.Param[jax.Array] = nnx.Param(
      jnp.zeros(shape, at_least_float32(dtype))
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[B, side, side, C]`` to ``[B, C]``, at least float32."""
    return jnp.einsum(
      'bhwc,hwc->bc',
      x.astype(self.dtype),
      self.kernel[:, :, 0].astype(self.dtype),
      preferred_element_type=at_least_float32(self.dtype),
    )


class ConvBlock(nnx.Module):
  """A convolution, BatchNorm and, unless it is linear, PReLU.

  Args:
    channels_in: channels of the input.
    channels_out: channels of the output.
    size: of the kernel, 1 or 3.
    stride: 1 or 2.
    groups: of channels, each convolved by itself.
    linear: whether there is no PReLU.
    dtype: of the computation.
  """

  def __init__(
    self,
    channels_in: int,
    channels_out: int,
    *,
    size: int = 1,
    stride: int = 1,
    groups: int = 1,
    linear: bool = False,
    dtype: jax.typing.DTypeLike,
  ):
    self.linear = linear
    layers = {
      '0': Conv(
        channels_in,
        channels_out,
        size=size,
        stride=stride,
        groups=groups,
        dtype=dtype,
      ),
      '1': BatchNorm(channels_out, dtype=dtype),
    }
    if not linear:
      layers['2'] = PReLU(channels_out, dtype=dtype)
    self.layers: nnx.Dict[Any] = nnx.Dict(layers)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Applies the layers."""
    x = self.layers['1'](self.layers['0'](x), train=train)
    return x if self.linear else self.layers['2'](x)


class Bottleneck(nnx.Module):
  """The bottleneck; with stride 1 its input is added.

  Args:
    channels_in: channels of the input.
    channels_out: channels of the output.
    hidden: channels of the depthwise convolution.
    stride: 1, or 2 to halve height and width.
    dtype: of the computation.
  """

  def __init__(
    self,
    channels_in: int,
    channels_out: int,
    *,
    hidden: int,
    stride: int,
    dtype: jax.typing.DTypeLike,
  ):
    self.adds: bool = stride == 1
    self.layers: nnx.Dict[ConvBlock] = nnx.Dict(
      {
        '0': ConvBlock(channels_in, hidden, dtype=dtype),
        '1': ConvBlock(
          hidden, hidden, size=3, stride=stride, groups=hidden, dtype=dtype
        ),
        '2': ConvBlock(hidden, channels_out, linear=True, dtype=dtype),
      }
    )

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Filters `x` and, with stride 1, adds it."""
    y = x
    for layer in '012':
      y = self.layers[layer](y, train=train)
    return x + y if self.adds else y


class Stage(nnx.Module):
  """Bottlenecks of stride 1, one after the other, under the name ``layers``."""

  def __init__(self, count: int, channels: int, **options: Any):
    """Makes `count` bottlenecks of `channels`, with the other options."""
    self.layers: nnx.Dict[Bottleneck] = nnx.Dict(
      {
        str(i): Bottleneck(channels, channels, stride=1, **options)
        for i in range(count)
      }
    )


class Embedding(nnx.Module):
  """The weighted sums over pixels, the linear layer and the last BatchNorm.

  Args:
    channels: of the input.
    embedding_dim: D.
    dtype: of the computation.
  """

  def __init__(
    self, channels: int, embedding_dim: int, *, dtype: jax.typing.DTypeLike
  ):
    side = IMAGE_SHAPE[0] >> _HALVINGS
    sums = {
      '0': GlobalDepthwise(side, channels, dtype=dtype),
      '1': BatchNorm(channels, dtype=dtype),
    }
    # Their layer 1 flattens what is flat here.
    self.layers: nnx.Dict[Any] = nnx.Dict(
      {
        '0': nnx.Dict({'layers': nnx.Dict(sums)}),
        '2': Linear(channels, embedding_dim, use_bias=False, dtype=dtype),
        '3': BatchNorm(embedding_dim, dtype=at_least_float32(dtype)),
      }
    )

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps ``[B, side, side, C]`` to ``[B, D]``."""
    sums = self.layers['0']['layers']
    x = sums['1'](sums['0'](x), train=train)
    return self.layers['3'](self.layers['2'](x), train=train)


class MobileFaceNet(nnx.Module):
  """The network that maps face images to embeddings.

  Args:
    width: half the channels of the first layers; 64 as arcface_torch's ``mbf``.
    embedding_dim: D.
    remat: whether the backward pass of training computes the insides of first
      layers and bottlenecks again, so that only their inputs are kept.
    dtype: of the computation.

  References:
    `MobileFaceNets <https://arxiv.org/abs/1804.07573>`_, and arcface_torch's
    ``mbf``, which has twice their channels.
    Differs from the authors' code in: nothing. From the paper in the numbers
    of channels, and in that the second layer is no depthwise convolution: each
    of its groups has two channels.
  """

  def __init__(
    self,
    *,
    width: int,
    embedding_dim: int,
    remat: bool,
    dtype: jax.typing.DTypeLike,
  ):
    self.remat = remat
    channels = 2 * width
    layers = {
      '0': ConvBlock(IMAGE_SHAPE[-1], channels, size=3, stride=2, dtype=dtype),
      '1': ConvBlock(channels, channels, size=3, groups=width, dtype=dtype),
    }
    number = itertools.count(2)
    for count, sizes in zip(BLOCKS, _CHANNELS, strict=True):
      after, first, hidden = (size * width for size in sizes)
      layers[str(next(number))] = Bottleneck(
        channels, after, hidden=first, stride=2, dtype=dtype
      )
      layers[str(next(number))] = Stage(
        count, after, hidden=hidden, dtype=dtype
      )
      channels = after
    self.layers: nnx.Dict[Any] = nnx.Dict(layers)
    self.conv_sep: ConvBlock = ConvBlock(channels, LAST * width, dtype=dtype)
    self.features: Embedding = Embedding(
      LAST * width, embedding_dim, dtype=dtype
    )

  def _parts(self) -> Iterator[Any]:
    """Yields first layers and bottlenecks, in their order."""
    for number in range(len(self.layers)):
      layer = self.layers[str(number)]
      if isinstance(layer, Stage):
        yield from (layer.layers[str(i)] for i in range(len(layer.layers)))
      else:
        yield layer

  def __call__(
    self, images: jax.Array, *, train: bool, key: jax.Array | None
  ) -> jax.Array:
    """Embeds a batch of aligned faces.

    Args:
      images: RGB in [-1, 1], any float dtype, ``[B, 112, 112, 3]``.
      train: whether BatchNorm uses, and records, the statistics of these B
        images.
      key: unused; the network draws nothing.

    Returns:
      Embeddings, not normalised, at least float32, ``[B, D]``.

    Raises:
      TypeError: if the images are integers.
      ValueError: if they have another shape, or if there are fewer than 2 in
        training.
    """
    check_scaled(images, train=train)
    run = lambda part, x: part(x, train=train)
    x = images
    for part in self._parts():
      x = recomputed(run, part, x) if train and self.remat else run(part, x)
    return self.features(self.conv_sep(x, train=train), train=train)


def randomize(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
  r"""Draws the initial kernels of a `MobileFaceNet`; keeps other parameters.

  From :math:`N(0, 2 / n)`, with :math:`n` the pixels of a kernel times all
  output channels, of whatever groups, as PyTorch counts them.

  Args:
    params: of a `MobileFaceNet`, nested dicts.
    key: typed PRNG key, consumed once.

  Returns:
    The parameters, same keys, shapes and dtypes.
  """
  leaves, structure = jax.tree.flatten(params)
  kernels = [leaf for leaf in leaves if leaf.ndim > 1]
  # One flat draw: see `iresnet.randomize`.
  ends = np.cumsum([kernel.size for kernel in kernels])
  flat = jax.random.normal(key, (ends[-1],), kernels[0].dtype)
  draws = iter(jnp.split(flat, ends[:-1]))
  return jax.tree.unflatten(
    structure, [_scaled(next(draws), x) if x.ndim > 1 else x for x in leaves]
  )


def _scaled(draw, kernel):
  fan_out = kernel.size // kernel.shape[-2]
  return (draw * (2 / fan_out) ** 0.5).reshape(kernel.shape)
