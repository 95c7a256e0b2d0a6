# SPDX-License-Identifier: Apache-2.0
"""Convolutions that are fast in a training step on every platform.

XLA knows to match a convolution and the gradients of `jax.vjp` with the
vendor's kernels on GPUs and TPUs. Its CPU compiler has fast kernels for the
convolution alone. It brings gradients into that form only in the outermost
computation; the training step runs the backbone inside a loop, where they
would fall back to plain loops, 10 to 60 times slower (jax 0.10.2 and 0.11.2).
So on a CPU gradients, and what Winograd's tiles make faster, are those of
`cpu_convolution`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import export

from elasticface_jax.models import cpu_convolution as cpu


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Convolves with padding ``size // 2`` on every side, as torch does.

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, stride):
  if export.is_symbolic_dim(x.shape[0]):
    # A program for any number of images, to be exported: tiles are made some
    # images at a time, which takes a known number.
    return cpu.plain(x, kernel, stride)
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(cpu.convolve, stride=stride),
    default=functools.partial(cpu.plain, stride=stride),
  )


def _forward(x, kernel, stride):
  return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, gradient):
  def by_vjp(x, kernel, gradient):
    plain = functools.partial(cpu.plain, stride=stride)
    return jax.vjp(plain, x, kernel)[1](gradient)

  return jax.lax.platform_dependent(
    *residuals,
    gradient,
    cpu=functools.partial(cpu.gradients, stride=stride),
    default=by_vjp,
  )


_convolve.defvjp(_forward, _backward)
