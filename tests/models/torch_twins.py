# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT in PyTorch, for tests, written from their description.

Modules have arcface_torch's names. Random draws are given, not made: masks and
dropped branches are arguments of the call.
"""

import pytest

torch = pytest.importorskip('torch')
nn = torch.nn


class Named(nn.Module):
  """Modules in order, under numbers in `layers`."""

  def __init__(self, *layers):
    super().__init__()
    self.layers = nn.Sequential(*layers)

  def forward(self, x):
    return self.layers(x)


class Adding(Named):
  """The same, added to their input."""

  def forward(self, x):
    return x + self.layers(x)


def convolution(into, out, size=1, stride=1, groups=1, pad=None, slopes=True):
  """A convolution, BatchNorm and, unless told not to, PReLU."""
  pad = size // 2 if pad is None else pad
  layers = [
    nn.Conv2d(into, out, size, stride, pad, groups=groups, bias=False),
    nn.BatchNorm2d(out),
  ]
  return Named(*layers, *([nn.PReLU(out)] if slopes else []))


def bottleneck(into, out, hidden, stride):
  kind = Adding if stride == 1 else Named
  return kind(
    convolution(into, hidden),
    convolution(hidden, hidden, 3, stride, groups=hidden),
    convolution(hidden, out, slopes=False),
  )


class MobileFaceNet(nn.Module):
  """Of scale 2 for a width of 64; arcface_torch has blocks (4, 6, 2)."""

  def __init__(self, width, embedding_dim, blocks):
    super().__init__()
    two, four, eight = 2 * width, 4 * width, 8 * width

    def repeated(count, channels, hidden):
      blocks = (bottleneck(channels, channels, hidden, 1) for _ in range(count))
      return Named(*blocks)

    self.layers = nn.ModuleList(
      [
        convolution(3, two, 3, 2),
        convolution(two, two, 3, groups=width),
        bottleneck(two, two, two, 2),
        repeated(blocks[0], two, two),
        bottleneck(two, four, four, 2),
        repeated(blocks[1], four, four),
        bottleneck(four, four, eight, 2),
        repeated(blocks[2], four, four),
      ]
    )
    self.conv_sep = convolution(four, eight)
    self.features = Named(
      convolution(eight, eight, 7, groups=eight, pad=0, slopes=False),
      nn.Flatten(),
      nn.Linear(eight, embedding_dim, bias=False),
      nn.BatchNorm1d(embedding_dim),
    )

  def forward(self, images):
    x = images
    for layer in self.layers:
      x = layer(x)
    return self.features(self.conv_sep(x))


class Attention(nn.Module):
  def __init__(self, size):
    super().__init__()
    self.qkv = nn.Linear(size, 3 * size, bias=False)
    self.proj = nn.Linear(size, size)

  def forward(self, x):
    # [B, L, 3, heads, size of a head]
    parts = self.qkv(x).unflatten(-1, (3, 8, -1))
    queries, keys, values = parts.unbind(2)
    logits = torch.einsum('bqhe,bkhe->bhqk', queries, keys)
    weights = (logits / queries.shape[-1] ** 0.5).softmax(-1)
    return self.proj(
      torch.einsum('bhqk,bkhe->bqhe', weights, values).flatten(2)
    )


class Block(nn.Module):
  def __init__(self, size):
    super().__init__()
    self.norm1 = nn.LayerNorm(size)
    self.norm2 = nn.LayerNorm(size)
    self.attn = Attention(size)
    self.mlp = nn.Module()
    self.mlp.fc1 = nn.Linear(size, 4 * size)
    self.mlp.fc2 = nn.Linear(4 * size, size)

  def forward(self, x, factors):
    first, second = factors[:, :, None, None]
    x = x + first * self.attn(self.norm1(x))
    hidden = self.mlp.fc1(self.norm2(x)).clamp(0, 6)
    return x + second * self.mlp.fc2(hidden)


class ViT(nn.Module):
  """Tokens of a given size, of 144 patches; 8 heads."""

  def __init__(self, depth, size, embedding_dim):
    super().__init__()
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(3, size, 9, 9)
    self.pos_embed = nn.Parameter(torch.zeros(1, 144, size))
    self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
    self.blocks = nn.ModuleList(Block(size) for _ in range(depth))
    self.norm = nn.LayerNorm(size)
    self.feature = nn.Sequential(
      nn.Linear(144 * size, size, bias=False),
      nn.BatchNorm1d(size, eps=2e-5),
      nn.Linear(size, embedding_dim, bias=False),
      nn.BatchNorm1d(embedding_dim, eps=2e-5),
    )

  def forward(self, images, factors=None, kept=None):
    """Embeds images, ``[B, 3, 112, 112]``.

    Args:
      images: the images.
      factors: of the branches, ``[depth, 2, B]``; None for 1.
      kept: tokens that are not left out, a mask ``[B, 144]`` with as many in
        each row; None for all.
    """
    count = len(images)
    x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = x + self.pos_embed
    if factors is None:
      factors = torch.ones(len(self.blocks), 2, count, dtype=x.dtype)
    if kept is not None:
      x = x[kept].unflatten(0, (count, -1))
    for block, own in zip(self.blocks, factors, strict=True):
      x = block(x, own)
    x = self.norm(x)
    if kept is not None:
      all_tokens = self.mask_token.expand(count, 144, -1).clone()
      all_tokens[kept] = x.flatten(0, 1)
      x = all_tokens
    return self.feature(x.flatten(1))
