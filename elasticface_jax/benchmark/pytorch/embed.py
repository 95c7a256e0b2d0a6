# SPDX-License-Identifier: Apache-2.0
"""Embedding of images and of their mirror images in PyTorch, beside ours.

The network of `network` in evaluation mode, in float32 or under autocast, in
each of PyTorch's layouts and compiled. Pixels start in the host's memory and
embeddings end there, as in ours.
"""

from collections.abc import Callable

import numpy as np

from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.benchmark.pytorch.step import (
  allow_fast_kernels,
  compiled,
  names_of,
)
from elasticface_jax.benchmark.recipe import Recipe


def make_variants(
  recipe: Recipe, device: str, images: np.ndarray
) -> dict[str, Callable[[], object]]:
  """Makes variants of one embedding, each the fastest on some machine.

  Args:
    recipe: of the network.
    device: ``'cpu'`` or ``'cuda'``.
    images: uint8 ``[B, 112, 112, 3]``.

  Returns:
    Functions by name, as from `step.make_variants`; each embeds the images.
  """
  allow_fast_kernels(device)
  plain, *modes = names_of(device)
  variants: dict[str, Callable[[], object]] = {}
  if device == 'cpu':
    variants[plain] = Embed(recipe, device, images, channels_last=False)
    plain, *modes = modes
  embed = Embed(recipe, device, images, channels_last=True)
  variants[plain] = embed
  return variants | compiled(embed, embed.embed, modes, device)


class Embed:
  """A network and images. A call embeds them.

  Attributes:
    network: the backbone, in evaluation mode.
    images: uint8 ``[B, 3, 112, 112]``, on the host.
  """

  def __init__(
    self,
    recipe: Recipe,
    device: str,
    images: np.ndarray,
    *,
    channels_last: bool,
  ):
    import torch

    self._device = device
    self._autocast = recipe.dtype == 'bfloat16'
    self._dtype = torch.float64 if recipe.dtype == 'float64' else torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = make_network(**recipe.model).eval()
    self.network = network.to(device, self._dtype, memory_format=layout)
    self.images = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(
      memory_format=layout
    )

  def embed(self, images):
    """Computes the sum of the embeddings of images and of their mirror images.

    Args:
      images: as the attribute, on the device.

    Returns:
      Embeddings, ``[B, D]``.
    """
    import torch

    pixels = ((images.float() - 127.5) / 127.5).to(self._dtype)
    with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
      return self.network(pixels) + self.network(pixels.flip(3))

  def __call__(self, embed=None) -> np.ndarray:
    """Embeds the images; `embed` is the method, maybe compiled."""
    import torch

    with torch.inference_mode():
      found = (embed or self.embed)(self.images.to(self._device))
    return found.float().cpu().numpy()
