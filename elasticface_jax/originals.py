# SPDX-License-Identifier: Apache-2.0
"""Converted networks beside the files that they came from.

onnxruntime runs an ONNX file, and torch, where it is installed, the tensors of
any other, under their own names and on their own pixels.
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from elasticface_jax import interop, models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import comparison
from elasticface_jax.interop.comparison import TOLERANCE, Agreement
from elasticface_jax.interop.onnx_network import OnnxNetwork
from elasticface_jax.interop.torch_network import TorchNetwork
from elasticface_jax.models.iresnet import IMAGE_SHAPE
from elasticface_jax.weights import Weights

__all__ = ['BATCHES', 'ROWS', 'TOLERANCE', 'compare']

# Images of a batch, and batches: a wrong conversion differs on any image.
ROWS, BATCHES = 16, 16


def compare(weights: Weights, batches: Iterable[np.ndarray]) -> Agreement:
  """Compares the embeddings of a network with those of its original.

  Both are computed in float32 on the CPU.

  Args:
    weights: as `weights.open_weights` opens a file.
    batches: aligned faces, RGB, uint8, ``[M, 112, 112, 3]``, at most `ROWS` at
      a time.

  Returns:
    How near they are; an embedding is the sum of those of an image and its
    mirror image.

  Raises:
    InputError: if the file's own network cannot be run here.
  """
  with jax.default_device(comparison.on_cpu(weights.path)):
    return comparison.agreement(_ours(weights), _original(weights), batches)


def _ours(weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
  backbone = models.build(**weights.model)

  @jax.jit
  def embed(params, batch_stats, images):
    # In float32, as both sides of every comparison.
    pixels = (images - 127.5) / 127.5
    one, other = (
      backbone.apply(params, batch_stats, turned, train=False)[0]
      for turned in (pixels, pixels[:, :, ::-1])
    )
    return one + other

  def run(images):
    # Whole batches, so that the network is compiled once.
    batch = np.zeros((ROWS, *IMAGE_SHAPE), np.float32)
    batch[: len(images)] = images
    embeddings = embed(weights.params, weights.batch_stats, batch)
    return np.asarray(embeddings)[: len(images)]

  return run


def _original(weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
  identity = weights.identity
  pixels_of = identity.pixels
  if weights.path.suffix == '.onnx':
    is_stated = 'normalisation' in identity.stated
    network = OnnxNetwork(
      weights.path,
      rows=ROWS,
      colour_order=pixels_of.colour_order,
      normalisation=pixels_of.normalisation if is_stated else None,
    )
    if is_stated and network.scales_pixels:
      raise InputError(
        f'{weights.path} scales pixels itself; leave --normalise out, or '
        '--check'
      )
    return network.embed
  order = -1 if pixels_of.colour_order == 'BGR' else 1
  tensors = interop.original_tensors(weights.path, prefix=weights.prefix)
  epsilon = interop.FAMILIES[identity.family].epsilon
  network = TorchNetwork(tensors, epsilon=epsilon)
  mean, std = (np.float32(values) for values in (pixels_of.mean, pixels_of.std))

  def run(images):
    pixels = ((images - mean) / std)[..., ::order]
    return network(pixels) + network(pixels[:, :, ::-1])

  return run
