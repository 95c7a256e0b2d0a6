# SPDX-License-Identifier: Apache-2.0
"""IResNet in PyTorch, written from the paper.

Parameters and buffers have the official names, so that `interop.to_torch` fits.
"""

import inspect
import types
from typing import Any

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.models.iresnet import SE_REDUCTION

# Arguments of `models.build` for what is written here.
_WRITTEN = {'block': 'insightface', 'output_norm': 'bias', 'input_norm': False}


def check(name: str, **model: Any) -> None:
  """Checks that a network is written here.

  Args:
    name: as for `models.build`.
    **model: likewise.

  Raises:
    InputError: if it is no IResNet of insightface's form.
  """
  unwritten = [
    f'model.{field}={model[field]!r}'
    for field, value in _WRITTEN.items()
    if model.get(field, value) != value
  ]
  if name not in models.STAGES:
    unwritten.insert(0, f'model.name={name!r}')
  if unwritten:
    raise InputError(
      f"{' and '.join(unwritten)}: insightface's IResNets alone are written in "
      'PyTorch here: leave out --against torch, or change it'
    )


def make_network(name: str, **model: Any) -> Any:
  """Makes the network of `models.build`, with the same arguments.

  Args:
    name: such as ``'iresnet50'``.
    **model: as for `models.build`, with its defaults. ``dtype`` is ignored:
      parameters are float32, and the caller casts.

  Returns:
    A `torch.nn.Module` in training mode: float ``[B, 3, 112, 112]`` to
    embeddings, not normalised, ``[B, D]``. Parameters are drawn from the same
    distributions as ours.
  """
  import torch
  from torch import nn
  from torch.utils.checkpoint import checkpoint

  bound = inspect.signature(models.build).bind(name, **model)
  bound.apply_defaults()
  arguments = types.SimpleNamespace(**bound.arguments)
  width, remat = arguments.width, arguments.remat
  make_block = _block_class(arguments.use_se)

  class IResNet(nn.Module):
    def __init__(self, stages):
      super().__init__()
      self.conv1 = _conv(3, width, 3)
      self.bn1 = nn.BatchNorm2d(width)
      self.prelu = nn.PReLU(width)
      channels = width
      for i, blocks in enumerate(stages):
        made = []
        for j in range(blocks):
          made.append(make_block(channels, width << i, 2 if j == 0 else 1))
          channels = width << i
        setattr(self, f'layer{i + 1}', nn.Sequential(*made))
      self.blocks = [
        block
        for i in range(len(stages))
        for block in getattr(self, f'layer{i + 1}')
      ]
      self.bn2 = nn.BatchNorm2d(channels)
      self.dropout = nn.Dropout(arguments.dropout)
      fan_in = channels * (IMAGE_SHAPE[0] >> len(stages)) ** 2
      self.fc = nn.Linear(fan_in, arguments.embedding_dim)
      self.features = nn.BatchNorm1d(arguments.embedding_dim)
      self.features.weight.requires_grad_(False)

    def stem(self, x):
      return self.prelu(self.bn1(self.conv1(x)))

    def forward(self, x):
      for part in self.stem, *self.blocks:
        x = checkpoint(part, x, use_reentrant=False) if remat else part(x)
      x = self.dropout(self.bn2(x).flatten(1))
      x = self.fc(x)
      return self.features(x.to(self.features.bias.dtype))

  with torch.no_grad():
    return IResNet(models.STAGES[name])


def _block_class(use_se):
  """Returns the class of residual blocks, called (in, out, stride)."""
  from torch import nn

  class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.fc1 = _conv(channels, channels // SE_REDUCTION, 1)
      self.fc2 = _conv(channels // SE_REDUCTION, channels, 1)

    def forward(self, x):
      means = x.mean((2, 3), keepdim=True)
      return x * self.fc2(self.fc1(means).relu()).sigmoid()

  class Block(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
      super().__init__()
      self.bn1 = nn.BatchNorm2d(channels_in)
      self.conv1 = _conv(channels_in, channels_out, 3)
      self.bn2 = nn.BatchNorm2d(channels_out)
      self.prelu = nn.PReLU(channels_out)
      self.conv2 = _conv(channels_out, channels_out, 3, stride)
      self.bn3 = nn.BatchNorm2d(channels_out)
      self.se_block = SqueezeExcitation(channels_out) if use_se else None
      self.downsample = None
      if stride != 1 or channels_in != channels_out:
        self.downsample = nn.Sequential(
          _conv(channels_in, channels_out, 1, stride),
          nn.BatchNorm2d(channels_out),
        )

    def forward(self, x):
      y = self.conv1(self.bn1(x))
      y = self.bn3(self.conv2(self.prelu(self.bn2(y))))
      if self.se_block is not None:
        y = self.se_block(y)
      if self.downsample is not None:
        x = self.downsample(x)
      return x + y

  return Block


def _conv(channels_in, channels_out, size, stride=1):
  from torch import nn

  made = nn.Conv2d(
    channels_in, channels_out, size, stride, size // 2, bias=False
  )
  nn.init.normal_(made.weight, std=0.1)
  return made
