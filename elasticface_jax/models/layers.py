# SPDX-License-Identifier: Apache-2.0
r"""The layers of the backbones, in flax.nnx.

They compute in `dtype`. Parameters and statistics are float32, or float64
where `dtype` is, and so are sums over many values, in the backward pass too.
The backward passes of `BatchNorm` and `PReLU` are written out: they need one
array of the size of the input where JAX would keep two to four, a third of the
memory of training IResNet-100, and save one pass over it. They have no
forward-mode derivative.

The last dim is channels, C. A new module's kernels are 0; the `randomize` of a
network draws them.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from elasticface_jax.models.convolution import convolve, convolve_groups

# Added to the variance, as PyTorch's default.
EPSILON = 1e-5
# Fraction of the running statistics kept in a step. PyTorch counts the fraction
# replaced: its 0.1 is 0.9 here.
MOMENTUM = 0.9

_Param = nnx.Param[jax.Array]
_Statistic = nnx.BatchStat[jax.Array]


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """Returns the dtype of parameters and sums for a compute dtype."""
  return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nnx.Module):
  r"""Normalises each channel over all other dims.

  In training, with mean and variance of the :math:`n` values of a channel,

  .. math::
    y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta,
    \quad \mu = \tfrac1n \sum x, \quad \sigma^2 = \tfrac1n \sum (x - \mu)^2

  and with the running ones in evaluation.

  Differs from flax in: the running variance takes the unbiased
  :math:`\sigma^2 n / (n - 1)`, as PyTorch's does; the variance is that of the
  centred values, where flax's default subtracts two large numbers.

  Args:
    channels: C, the size of the last dim.
    dtype: of the output. Statistics are at least float32.
    use_scale: whether :math:`\gamma` is learned; otherwise it is 1.
    use_bias: whether :math:`\beta` is learned; otherwise it is 0.
    epsilon: :math:`\epsilon`.
  """

  def __init__(
    self,
    channels: int,
    *,
    dtype: jax.typing.DTypeLike,
    use_scale: bool = True,
    use_bias: bool = True,
    epsilon: float = EPSILON,
  ):
    param_dtype = at_least_float32(dtype)
    self.dtype = dtype
    self.epsilon = epsilon
    self.use_scale = use_scale
    self.use_bias = use_bias
    if use_scale:
      self.scale: _Param = nnx.Param(jnp.ones(channels, param_dtype))
    if use_bias:
      self.bias: _Param = nnx.Param(jnp.zeros(channels, param_dtype))
    self.mean: _Statistic = nnx.BatchStat(jnp.zeros(channels, param_dtype))
    self.var: _Statistic = nnx.BatchStat(jnp.ones(channels, param_dtype))

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalises `x` and, in training, updates the running statistics."""
    wide = at_least_float32(x.dtype)
    channels = self.mean.shape
    bias = self.bias[...] if self.use_bias else jnp.zeros(channels, wide)
    scale = self.scale[...] if self.use_scale else jnp.ones(channels, wide)
    bias, scale = bias.astype(wide), scale.astype(wide)
    if train:
      y, mean, var = _normalize(x, scale, bias, self.dtype, self.epsilon)
      self._update(mean, var, count=x.size // x.shape[-1])
      return y
    inverse = jax.lax.rsqrt(self.var[...] + self.epsilon)
    y = (x - _last_dim(self.mean[...], x)) * _last_dim(inverse * scale, x)
    return (y + _last_dim(bias, x)).astype(self.dtype)

  def _update(self, mean, var, *, count):
    """Moves the running statistics towards those of a batch."""
    # A single value has no spread to estimate: its variance stays 0.
    unbiased = var * (count / max(count - 1, 1))
    for stat, value in ((self.mean, mean), (self.var, unbiased)):
      # Not `stat[...] = ...`: under a trace nnx then asks the tracer for its
      # sharding, an error path of jax that walks the trace so far: 9 of 10
      # seconds of tracing IResNet-100.
      stat.set_value(MOMENTUM * stat[...] + (1 - MOMENTUM) * value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x, scale, bias, dtype, epsilon):
  """Normalises by the statistics of `x` and returns them, gradient-free."""
  return _normalize_forward(x, scale, bias, dtype, epsilon)[0]


def _normalize_forward(x, scale, bias, dtype, epsilon):
  axes = tuple(range(x.ndim - 1))
  mean = x.astype(scale.dtype).mean(axes)
  centred = x - _last_dim(mean, x)
  var = jnp.square(centred).mean(axes)
  inverse = jax.lax.rsqrt(var + epsilon)
  y = centred * _last_dim(inverse * scale, x) + _last_dim(bias, x)
  return (y.astype(dtype), mean, var), (x, scale, mean, inverse)


def _normalize_backward(dtype, _, residuals, cotangents):
  r"""Computes the gradients, with :math:`\hat x` the normalised input.

  .. math::
    d\beta = \sum dy, \quad d\gamma = \sum dy \, \hat x, \quad
    dx = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
      (dy - \tfrac1n d\beta - \tfrac1n \hat x \, d\gamma)
  """
  x, scale, mean, inverse = residuals
  axes = tuple(range(x.ndim - 1))
  count = x.size // x.shape[-1]
  dy = cotangents[0].astype(scale.dtype)
  normal = (x - _last_dim(mean, x)) * _last_dim(inverse, x)
  dbias = dy.sum(axes)
  dscale = (dy * normal).sum(axes)
  dx = dy - _last_dim(dbias / count, x) - normal * _last_dim(dscale / count, x)
  dx = dx * _last_dim(inverse * scale, x)
  return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)


class InputNorm(nnx.Module):
  """Maps pixels in [-1, 1] to what a network was trained on, before padding.

  Mean and deviation are constants of the network, ``(x - mean) / std``. As a
  layer of its own, another scale of pixels is exact: folded into a padded
  convolution, the shift would be wrong along the border, and the factor would
  change the step size of the kernel.

  Args:
    channels: C, the size of the last dim.
    dtype: of the computation. The constants are at least float32.
  """

  def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike):
    wide = at_least_float32(dtype)
    self.mean: _Statistic = nnx.BatchStat(jnp.zeros(channels, wide))
    self.std: _Statistic = nnx.BatchStat(jnp.ones(channels, wide))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Shifts and scales `x`; at least float32."""
    return (x - _last_dim(self.mean[...], x)) / _last_dim(self.std[...], x)


class PReLU(nnx.Module):
  """``x`` where positive, else ``slope * x``, with a slope for each channel.

  Differs from flax in: `nnx.PReLU` has one slope for all channels.

  Args:
    channels: C, the size of the last dim.
    dtype: of the computation.
  """

  def __init__(self, channels: int, *, dtype: jax.typing.DTypeLike):
    slopes = jnp.full(channels, 0.25, at_least_float32(dtype))
    self.slope: _Param = nnx.Param(slopes)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the slopes; keeps the dtype of `x`."""
    return _prelu(x, self.slope[...].astype(at_least_float32(x.dtype)))


@jax.custom_vjp
def _prelu(x, slope):
  return jnp.where(x > 0, x, (_last_dim(slope, x) * x).astype(x.dtype))


def _prelu_forward(x, slope):
  return _prelu(x, slope), (x, slope)


def _prelu_backward(residuals, dy):
  x, slope = residuals
  dx = jnp.where(x > 0, dy, (_last_dim(slope, x) * dy).astype(x.dtype))
  # bfloat16 would be too narrow for a sum over all pixels of a batch.
  terms = jnp.where(x > 0, 0, x.astype(slope.dtype) * dy)
  return dx, terms.sum(tuple(range(x.ndim - 1)))


_prelu.defvjp(_prelu_forward, _prelu_backward)


class Conv(nnx.Module):
  """A square convolution without bias, padded equally on all sides.

  Args:
    channels_in: channels of the input.
    channels_out: channels of the output.
    size: of the kernel, 1 or 3.
    stride: 1, or 2 to halve height and width.
    groups: of channels, each convolved by itself; it divides both numbers of
      channels. With more than one, the size is 3.
    dtype: of the computation.
  """

  def __init__(
    self,
    channels_in: int,
    channels_out: int,
    *,
    size: int,
    stride: int = 1,
    groups: int = 1,
    dtype: jax.typing.DTypeLike,
  ):
    self.stride = stride
    self.groups = groups
    self.dtype = dtype
    shape = (size, size, channels_in // groups, channels_out)
    self.kernel: _Param = nnx.Param(jnp.zeros(shape, at_least_float32(dtype)))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves ``[B, H, W, C]`` in `dtype`."""
    kernel = self.kernel[...].astype(self.dtype)
    function = convolve if self.groups == 1 else convolve_groups
    return function(x.astype(self.dtype), kernel, stride=self.stride)


class Linear(nnx.Module):
  """``x @ kernel + bias``.

  Args:
    features_in: size of the last dim of the input.
    features_out: size of the last dim of the output.
    dtype: of the computation.
    use_bias: whether there is a bias.
  """

  def __init__(
    self,
    features_in: int,
    features_out: int,
    *,
    dtype: jax.typing.DTypeLike,
    use_bias: bool = True,
  ):
    self.dtype = dtype
    self.use_bias = use_bias
    param_dtype = at_least_float32(dtype)
    shape = features_in, features_out
    self.kernel: _Param = nnx.Param(jnp.zeros(shape, param_dtype))
    if use_bias:
      self.bias: _Param = nnx.Param(jnp.zeros(features_out, param_dtype))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Multiplies in `dtype`; adds, and returns, in at least float32."""
    y = jnp.matmul(
      x.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      preferred_element_type=at_least_float32(self.dtype),
    )
    return y + _last_dim(self.bias[...], y) if self.use_bias else y


def _last_dim(vector, x):
  """Shapes a vector over channels to broadcast against `x`."""
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))
