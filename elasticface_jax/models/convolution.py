# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose gradients are fast inside a loop on a CPU too.

XLA maps a convolution and the gradients of `jax.vjp` to the vendor's kernels on
GPUs and TPUs. Its CPU compiler has fast kernels for convolutions in one layout
(batch, height, width, channel), and brings gradients into it only in the
outermost computation. The training step runs the backbone inside a loop, where
the same gradients fall back to plain loops, 10 to 60 times slower (jax 0.10.2
and 0.11.2). So for a CPU the gradients are written in that layout here.

For convolutions of few channels a group it has no fast kernel anywhere: forward
and backward, one of 64 groups takes 200 times as long as the sum of products
that a CPU computes here.
"""

import functools

import jax
import jax.numpy as jnp

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Convolves with padding ``size // 2`` on every side, as PyTorch does.

  Differs from ``'SAME'`` at stride 2 and even height: that pads the far side
  only.

  Args:
    x: ``[B, H, W, I]``; H and W even where the stride is 2.
    kernel: 1x1 or 3x3, dtype of ``x``, ``[size, size, I, O]``.
    stride: 1 or 2.

  Returns:
    ``[B, H / stride, W / stride, O]``, dtype of ``x``.

  Examples:
    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), stride=2).shape
    (1, 2, 2, 5)
  """
  if kernel.shape[0] == 1:
    return jnp.tensordot(x[:, ::stride, ::stride], kernel[0, 0], 1)
  return _convolve(x, kernel, stride)


def convolve_groups(
  x: jax.Array, kernel: jax.Array, *, stride: int = 1
) -> jax.Array:
  """Convolves each group of channels by itself, padded as in `convolve`.

  Output channels ``[g * O / G, (g + 1) * O / G)`` are sums over the input
  channels ``[g * I / G, (g + 1) * I / G)``, for the groups ``g`` of G.

  Args:
    x: ``[B, H, W, I]``; H and W even where the stride is 2.
    kernel: 3x3, dtype of ``x``, ``[3, 3, I / G, O]``.
    stride: 1 or 2.

  Returns:
    ``[B, H / stride, W / stride, O]``, dtype of ``x``.

  Examples:
    >>> x, kernel = jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 2, 6))
    >>> print(convolve_groups(x, kernel, stride=2)[0, :, :, 0])
    [[ 8. 12.]
     [12. 18.]]
  """
  return _convolve_groups(x, kernel, stride)


def _plain(
  x, kernel, *, stride=1, padding=((1, 1), (1, 1)), dilation=1, groups=1
):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=_LAYOUT,
    feature_group_count=groups,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, stride):
  return _plain(x, kernel, stride=stride)


def _forward(x, kernel, stride):
  return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, gradient):
  return jax.lax.platform_dependent(
    *residuals,
    gradient,
    cpu=functools.partial(gradients_in_layout, stride=stride),
    default=functools.partial(gradients_by_vjp, stride=stride),
  )


_convolve.defvjp(_forward, _backward)


def gradients_by_vjp(
  x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
  """Computes the gradients as accelerators do.

  Args:
    x: as for `convolve`.
    kernel: 3x3.
    gradient: that of the output.
    stride: 1 or 2.

  Returns:
    Gradients of the input and of the kernel.
  """
  plain = functools.partial(_plain, stride=stride)
  return jax.vjp(plain, x, kernel)[1](gradient)


def gradients_in_layout(
  x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, stride: int
) -> tuple[jax.Array, jax.Array]:
  """Computes the same gradients by convolutions in the CPU's layout."""
  to_input = _to_input if stride == 1 else _to_input_of_stride_2
  return to_input(kernel, gradient), _to_kernel(x, gradient, stride)


def _to_input(kernel, gradient):
  """Convolves with the kernel rotated by 180 degrees, its channels swapped."""
  return _plain(gradient, kernel[::-1, ::-1].swapaxes(2, 3))


def _to_input_of_stride_2(kernel, gradient):
  """Computes the gradient of the input without dilating that of the output.

  Row 2i meets tap 1 of output i; row 2i + 1 meets tap 2 of output i and tap 0
  of output i + 1; likewise columns. So the four parities are four sets of
  channels of one 2x2 convolution, interleaved afterwards.
  """
  taps = {(0, 0): 1, (1, 0): 2, (1, 1): 0}  # (parity, output - i): tap

  def tap(row, column, p, q):
    if (p, row) in taps and (q, column) in taps:
      return kernel[taps[p, row], taps[q, column]].T
    return jnp.zeros_like(kernel[0, 0].T)

  two = (0, 1)

  def all_parities(row, column):
    return jnp.concatenate(
      [tap(row, column, p, q) for p in two for q in two], axis=1
    )

  kernels = jnp.stack(
    [jnp.stack([all_parities(r, c) for c in two]) for r in two]
  )
  parities = _plain(gradient, kernels, padding=((0, 1), (0, 1)))
  b, h, w, _ = parities.shape
  parities = parities.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
  return parities.reshape(b, 2 * h, 2 * w, -1)


def _to_kernel(x, gradient, stride):
  """Convolves the images with the gradient, summed over the batch."""
  kernel = _plain(
    x.transpose(3, 1, 2, 0),
    gradient.transpose(1, 2, 0, 3),
    # At stride 2 the last row of padding is never read.
    padding=((1, 2 - stride),) * 2,
    dilation=stride,
  )
  return kernel.transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_groups(x, kernel, stride):
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(sum_of_products, stride=stride),
    default=functools.partial(plain_groups, stride=stride),
  )


def _forward_groups(x, kernel, stride):
  return _convolve_groups(x, kernel, stride), (x, kernel)


def _backward_groups(stride, residuals, gradient):
  def gradients_of(function):
    function = functools.partial(function, stride=stride)
    return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)

  return jax.lax.platform_dependent(
    *residuals,
    gradient,
    cpu=gradients_of(sum_of_products),
    default=gradients_of(plain_groups),
  )


_convolve_groups.defvjp(_forward_groups, _backward_groups)


def plain_groups(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
  """Convolves groups as accelerators do; see `convolve_groups`."""
  groups = x.shape[-1] // kernel.shape[2]
  return _plain(x, kernel, stride=stride, groups=groups)


def sum_of_products(
  x: jax.Array, kernel: jax.Array, *, stride: int
) -> jax.Array:
  """Computes the same, in at least float32, as a sum of shifted inputs.

  Each is multiplied channel by channel. Where a group has several input
  channels, the first of all groups come first, then the second, and so on.
  """
  _, height, width, _ = x.shape
  size, _, of_group, channels_out = kernel.shape
  outputs = channels_out * of_group // x.shape[-1]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y = 0
  for i in range(of_group):
    member = jnp.repeat(x[..., i::of_group], outputs, axis=-1).astype(wide)
    for row in range(size):
      for column in range(size):
        window = member[
          :, row : row + height : stride, column : column + width : stride
        ]
        tap = kernel[row, column, i].astype(wide)
        y += window * tap.reshape(1, 1, 1, -1)
  return y.astype(x.dtype)
