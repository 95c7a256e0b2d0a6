# SPDX-License-Identifier: Apache-2.0
r"""Checks the accuracy of loss and gradients for each `head.precision`.

TPUs multiply float32 matrices as sums of products of bfloat16 parts: six for
'highest', three for 'high', one for 'default'. NVIDIA GPUs take TF32 for 'high'
and 'default'. A CPU computes all three in float32, so the parts are split here
and multiplied in float32, and the results are compared with float64. Everything
except the products is float32 in all variants. Takes half a minute.

    python checks/head_precision.py

Columns: the largest error of a sample's loss in nats, and the error of the
gradients of embeddings and of class centres relative to their norm. The exit
code is 0 if 'highest' is as accurate as float32 products, and 'high' and
'default' are less accurate in this order.
"""

import argparse
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax import losses
from elasticface_jax.losses import _blocks

NUM_SAMPLES, DIM, NUM_CLASSES, NUM_BLOCKS = 128, 512, 8192, 8
SCALE, MARGIN = 64.0, 0.5
# Indices of the parts of both factors whose products are added.
PARTS = {
  'highest': ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)),
  'high': ((0, 0), (0, 1), (1, 0)),
  'default': ((0, 0),),
}
TF32_BITS = 13  # Of float32's mantissa that TF32 lacks.


def split(x: jax.Array) -> list[jax.Array]:
  """Splits float32 into three bfloat16 parts that add up to it."""
  parts = []
  for _ in range(3):
    # XLA would remove a cast to bfloat16 and back.
    part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    parts.append(part)
    x = x - part
  return parts


def by_parts(pairs):
  """Returns a replacement of `_blocks.product` that multiplies parts."""

  def product(a, b, dims, precision):
    del precision
    a, b = split(a), split(b)
    dimensions = ((dims[:1], dims[1:]), ((), ()))
    # Small products first: later they would be lost in the sum.
    return sum(
      jax.lax.dot_general(a[i], b[j], dimensions, precision='highest')
      for i, j in reversed(pairs)
    )

  return product


def tf32(a, b, dims, precision):
  """Multiplies in TF32, as NVIDIA's tensor cores."""
  del precision
  a, b = (jax.lax.reduce_precision(x, 8, 23 - TF32_BITS) for x in (a, b))
  dimensions = ((dims[:1], dims[1:]), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision='highest')


def batch(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
  """Draws samples at cosines of 0.3 to 0.9 with their class, as in training."""
  centers = rng.normal(size=(NUM_CLASSES, DIM))
  labels = rng.integers(NUM_CLASSES, size=NUM_SAMPLES)
  own = centers[labels] / np.linalg.norm(centers[labels], axis=1)[:, None]
  noise = rng.normal(size=own.shape)
  noise -= own * np.sum(own * noise, axis=1, keepdims=True)
  noise /= np.linalg.norm(noise, axis=1, keepdims=True)
  cosine = rng.uniform(0.3, 0.9, size=(NUM_SAMPLES, 1))
  embeddings = cosine * own + np.sqrt(1 - cosine**2) * noise
  return embeddings, centers, labels.astype(np.int32)


def compute(embeddings, centers, labels):
  """Computes losses and the gradients of their mean."""

  def objective(embeddings, centers):
    loss = losses.blockwise_margin_softmax(
      embeddings, centers, labels, MARGIN, scale=SCALE, num_blocks=NUM_BLOCKS
    )
    return loss.mean(), loss

  gradients, loss = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(
    embeddings, centers
  )
  return [np.asarray(x, np.float64) for x in (loss, *gradients)]


def errors(found, expected) -> tuple[float, float, float]:
  """Returns the errors of loss and gradients."""
  norm = np.linalg.norm
  return (
    np.abs(found[0] - expected[0]).max(),
    *(
      norm(f - e) / norm(e)
      for f, e in zip(found[1:], expected[1:], strict=True)
    ),
  )


def measure() -> dict[str, tuple[float, float, float]]:
  """Returns the errors of each kind of product."""
  *arrays, labels = batch(np.random.default_rng(0))
  arrays = [x.astype(np.float32) for x in arrays]
  with jax.enable_x64(True):
    expected = compute(*(jnp.asarray(x, float) for x in arrays), labels)
  products = {name: by_parts(pairs) for name, pairs in PARTS.items()}
  kinds = {'float32': _blocks.product, **products, 'TF32': tf32}
  found = {}
  for name, product in kinds.items():
    with mock.patch.object(_blocks, 'product', product):
      found[name] = errors(compute(*arrays, labels), expected)
  return found


def main(argv=None) -> int:
  """Prints the table; returns the exit code."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args(argv)
  found = measure()
  print(
    f'B {NUM_SAMPLES}, D {DIM}, {NUM_CLASSES:,} classes, scale {SCALE:g}; '
    f'jax {jax.__version__}'
  )
  print('products  loss, nats  embeddings  class centres')
  for name, (loss, to_embeddings, to_centers) in found.items():
    print(f'{name:8}  {loss:10.1e}  {to_embeddings:10.1e}  {to_centers:13.1e}')
  rises = all(
    low < high
    for a, b in (('highest', 'high'), ('high', 'default'))
    for low, high in zip(found[a], found[b], strict=True)
  )
  exact = all(
    six < 2 * one
    for six, one in zip(found['highest'], found['float32'], strict=True)
  )
  return 0 if rises and exact else 1


if __name__ == '__main__':
  sys.exit(main())
