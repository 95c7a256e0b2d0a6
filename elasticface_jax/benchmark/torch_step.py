# SPDX-License-Identifier: Apache-2.0
"""The training step as one writes it in PyTorch, to be compared with ours.

The same network, loss and SGD; its own libraries and layouts. What differs:

- The batch is one group, where ours may be several: BatchNorm's statistics are
  then those of more samples. It is PyTorch's plain way, and its fastest.
- The logits ``[B, C]`` exist, and so does the gradient of all class centres.
- Flips, margins and dropout come from PyTorch's own generator.
- With ``bfloat16`` the network runs under autocast. Then, as ours, it keeps
  parameters and statistics in float32, and cosines and all after them are
  float32. Of ours, the output of ``fc`` is float32; here it is bfloat16.
- On a GPU, products and convolutions of float32 numbers may use TF32. Ours do
  too, but for the head, which has full float32: there PyTorch has less to do.
- With ``remat``, stem and blocks are checkpointed; their running statistics
  move twice a step, as PyTorch's do then.

On a CPU PyTorch takes as many threads as there are cores, and this module
leaves it at that. torch is imported where it is used: nothing else needs it.

Letters: B samples, C classes, D embedding size, u sub-centres of a class.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from elasticface_jax.benchmark.recipe import (
  CLIP_NORM,
  LR,
  MOMENTUM,
  WEIGHT_DECAY,
  Recipe,
)
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.models import STAGES
from elasticface_jax.models.iresnet import IMAGE_SHAPE, SE_REDUCTION
from elasticface_jax.training.loss import MarginLoss, by_name

LOSSES = (
  'normface',
  'arcface',
  'cosface',
  'elastic_arcface',
  'elastic_cosface',
  'elastic_arcface_plus',
  'elastic_cosface_plus',
)
# torch 2.13 on a CPU writes past the end of an array in the gradient of a 1x1
# convolution of stride 2, channels last, with fewer input channels.
_LEAST_WIDTH = 16
# What is compiled, by name; modes of torch.compile.
_COMPILED = {
  'cpu': {'torch compiled': 'default'},
  'cuda': {
    'torch compiled': 'default',
    'torch max-autotune': 'max-autotune-no-cudagraphs',
  },
}


def make_ways(recipe: Recipe, device: str) -> dict[str, Callable[[], None]]:
  """Makes ways of one training step, each the best for someone's machine.

  On a CPU: plain, ``channels_last``, and that compiled. On a GPU all are
  ``channels_last``, with cuDNN choosing its kernels by trial; TF32 is allowed
  for the whole process. SGD is fused on both. A way that torch cannot compile
  here is left out, and why is printed.

  Args:
    recipe: of the step.
    device: ``'cpu'`` or ``'cuda'``.

  Returns:
    Functions by name. Each does one step on a random batch that is on the
    device already, and waits for its end.

  Raises:
    InputError: if the recipe asks for what is not written here.
  """
  check(recipe)
  _allow_fast_kernels(device)
  ways = {}
  if device == 'cpu':
    ways['torch'] = Step(recipe, device, channels_last=False)
    if recipe.model.get('width', 64) < _LEAST_WIDTH:
      print(
        'left out: torch channels_last and torch compiled, as oneDNN crashes '
        f'there with fewer than {_LEAST_WIDTH} channels',
        flush=True,
      )
      return ways
  step = ways['torch channels_last'] = Step(recipe, device, channels_last=True)
  ways |= _compiled(step, device)
  return {name: _waiting(way, device) for name, way in ways.items()}


def check(recipe: Recipe) -> None:
  """Refuses what is not written here.

  Args:
    recipe: of the step.

  Raises:
    InputError: if the recipe asks for it.
  """
  name = recipe.loss['name']
  if name not in LOSSES:
    raise InputError(
      f'loss.name={name!r} is not written in PyTorch here: leave out '
      f'--against torch, or use one of {", ".join(LOSSES)}'
    )
  if recipe.sample_rate != 1:
    raise InputError(
      f'head.sample_rate={recipe.sample_rate}: sampling of classes is not '
      'written in PyTorch here: leave out --against torch, or set it to 1'
    )


def peak_memory(way: Callable[[], None], device: str) -> int | None:
  """Does a step and tells the most that PyTorch had in use at once meanwhile.

  Args:
    way: of `make_ways`.
    device: where it runs.

  Returns:
    Bytes on the GPU, without what the allocator keeps for later; None on a
    CPU, where nobody counts.
  """
  if device != 'cuda':
    return None
  import torch

  torch.cuda.reset_peak_memory_stats()
  way()
  return torch.cuda.max_memory_allocated()


class Step:
  """Network, class centres, SGD and a batch. A call does one step.

  Attributes:
    network: the backbone.
    class_centers: ``[C, u D]``.
    optimizer: of both.
    images: uint8 ``[B, 3, 112, 112]``.
    labels: int64 ``[B]``.
  """

  def __init__(self, recipe: Recipe, device: str, *, channels_last: bool):
    import torch

    batch_size = recipe.batch_size
    self._device = device
    self._flip = recipe.flip
    self._loss = by_name(recipe.loss)
    self._autocast = recipe.dtype == 'bfloat16'
    self._head = functools.partial(
      head_loss, loss=self._loss, group_size=recipe.group_size
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.float64 if recipe.dtype == 'float64' else torch.float32
    self.network = make_network(**recipe.model).to(
      device, dtype, memory_format=layout
    )
    shape = recipe.num_classes, recipe.subcenters * recipe.embedding_dim
    centers = 0.01 * torch.randn(shape, device=device, dtype=dtype)
    self.class_centers = centers.requires_grad_()
    self.optimizer = _sgd(
      [*self.network.parameters(), self.class_centers], batch_size
    )
    shape = batch_size, 3, IMAGE_SHAPE[0], IMAGE_SHAPE[0]
    self.images = torch.randint(
      256, shape, dtype=torch.uint8, device=device
    ).contiguous(memory_format=layout)
    self.labels = torch.randint(
      recipe.num_classes, (batch_size,), device=device
    )

  def objective(self, images, labels, flipped, margins):
    """The mean loss of a batch, with what was drawn for it.

    Args:
      images: as the attribute.
      labels: as the attribute.
      flipped: which are mirrored, bool ``[B]``.
      margins: not yet paired, ``[B]``.

    Returns:
      A scalar, in nats.
    """
    import torch

    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    images = (images.float() - 127.5) / 127.5
    images = images.to(self.class_centers.dtype)
    with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
      embeddings = self.network(images)
    return self._head(embeddings, self.class_centers, labels, margins)

  def draw(self):
    """Draws flips and margins of one step, ``[B]`` each."""
    import torch

    count = self.labels.shape
    flipped = torch.rand(count, device=self._device) < self._flip
    return flipped, draw_margins(self._loss, count, self._device)

  def descend(self, objective, *batch):
    """Does one step on a batch; objective is the method, compiled or not."""
    from torch.nn.utils import clip_grad_norm_

    self.optimizer.zero_grad()
    loss = objective(*batch)
    loss.backward()
    clip_grad_norm_(self.network.parameters(), CLIP_NORM)
    self.optimizer.step()
    return loss.detach()

  def __call__(self, objective=None) -> None:
    """Does one step."""
    self.descend(
      objective or self.objective, self.images, self.labels, *self.draw()
    )


def draw_margins(loss: MarginLoss, shape, device: str):
  """Draws margins of one step, one for each sample, not yet paired."""
  import torch

  numbers = dict(loss.hyperparameters)
  mean, std = numbers.get('margin', 0.0), numbers.get('margin_std', 0.0)
  margins = torch.full(shape, mean, device=device)
  if not std:
    return margins
  if clip := tuple(numbers['clip']):
    low, high = (mean + std * end for end in clip)
    return torch.nn.init.trunc_normal_(margins, mean, std, low, high)
  return margins.normal_(mean, std)


def head_loss(
  embeddings, class_centers, labels, margins, *, loss: MarginLoss, group_size
):
  """The mean loss of embeddings of any length.

  Args:
    embeddings: any float dtype, ``[B, D]``.
    class_centers: at least float32, ``[C, u D]``.
    labels: int64, ``[B]``.
    margins: not yet paired, ``[B]``.
    loss: one of `LOSSES`.
    group_size: samples among which the '+' losses pair margins.

  Returns:
    A scalar, in nats.
  """
  import torch
  from torch.nn import functional as F

  head = loss.head(len(class_centers))
  dim = embeddings.shape[1]
  unit_centers = F.normalize(class_centers.view(-1, dim))
  embeddings = F.normalize(embeddings.to(class_centers.dtype))
  cosines = F.linear(embeddings, unit_centers)
  if len(unit_centers) > head.num_classes:
    cosines = cosines.view(len(labels), head.num_classes, -1).max(2).values
  samples = torch.arange(len(labels), device=labels.device)
  target = cosines[samples, labels]
  numbers = dict(loss.hyperparameters)
  if numbers.get('margin_std') and 'pairing' in numbers:
    margins = pair(margins, target, group_size, rule=numbers['pairing'])
  straight = head.gradient == 'straight_through'
  with torch.no_grad() if straight else contextlib.nullcontext():
    if head.kind == 'arc':
      changed = (target.clamp(-1, 1).acos() + margins).cos()
    else:
      changed = target - margins
  if straight:
    changed = target + (changed - target).detach()
  cosines[samples, labels] = changed
  return F.cross_entropy(cosines.mul_(head.scale), labels)


def pair(margins, target_cosines, group_size: int, *, rule: str):
  """As `losses.pair_margins`, within each group."""
  import torch

  grouped = -1, group_size
  cosines = target_cosines.detach().view(grouped)
  order = cosines.argsort(dim=1, descending=True, stable=True)
  margins = margins.view(grouped).sort(1).values
  if rule == 'released':
    paired = margins.gather(1, order)
  else:
    paired = torch.empty_like(margins).scatter(1, order, margins)
  return paired.view(-1)


def make_network(
  name: str,
  *,
  embedding_dim: int = 512,
  dropout: float = 0.0,
  use_se: bool = False,
  dtype: str = 'float32',
  width: int = 64,
  remat: bool = False,
) -> Any:
  """Makes the network of `models.build`, whose arguments it takes.

  Returns:
    A `torch.nn.Module` in training mode: float ``[B, 3, 112, 112]`` to
    embeddings, not normalised, ``[B, D]``. Its numbers are float32 and drawn
    as ours; `dtype` is the caller's business.
  """
  del dtype
  import torch
  from torch import nn
  from torch.utils.checkpoint import checkpoint

  def conv(channels_in, channels_out, size, stride=1):
    made = nn.Conv2d(
      channels_in, channels_out, size, stride, size // 2, bias=False
    )
    nn.init.normal_(made.weight, std=0.1)
    return made

  class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.fc1 = conv(channels, channels // SE_REDUCTION, 1)
      self.fc2 = conv(channels // SE_REDUCTION, channels, 1)

    def forward(self, x):
      means = x.mean((2, 3), keepdim=True)
      return x * self.fc2(self.fc1(means).relu()).sigmoid()

  class Block(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
      super().__init__()
      self.bn1 = nn.BatchNorm2d(channels_in)
      self.conv1 = conv(channels_in, channels_out, 3)
      self.bn2 = nn.BatchNorm2d(channels_out)
      self.prelu = nn.PReLU(channels_out)
      self.conv2 = conv(channels_out, channels_out, 3, stride)
      self.bn3 = nn.BatchNorm2d(channels_out)
      self.se_block = SqueezeExcitation(channels_out) if use_se else None
      self.downsample = None
      if stride != 1 or channels_in != channels_out:
        self.downsample = nn.Sequential(
          conv(channels_in, channels_out, 1, stride),
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

  class IResNet(nn.Module):
    def __init__(self, stages):
      super().__init__()
      self.conv1 = conv(3, width, 3)
      self.bn1 = nn.BatchNorm2d(width)
      self.prelu = nn.PReLU(width)
      channels = width
      for i, blocks in enumerate(stages):
        made = []
        for j in range(blocks):
          made.append(Block(channels, width << i, 2 if j == 0 else 1))
          channels = width << i
        setattr(self, f'layer{i + 1}', nn.Sequential(*made))
      self.blocks = [
        block
        for i in range(len(stages))
        for block in getattr(self, f'layer{i + 1}')
      ]
      self.bn2 = nn.BatchNorm2d(channels)
      self.dropout = nn.Dropout(dropout)
      fan_in = channels * (IMAGE_SHAPE[0] >> len(stages)) ** 2
      self.fc = nn.Linear(fan_in, embedding_dim)
      self.features = nn.BatchNorm1d(embedding_dim)
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
    return IResNet(STAGES[name])


def _sgd(parameters, batch_size):
  import torch

  return torch.optim.SGD(
    [p for p in parameters if p.requires_grad],
    lr=LR * batch_size / 512,
    momentum=MOMENTUM,
    weight_decay=WEIGHT_DECAY,
    fused=True,
  )


def _allow_fast_kernels(device):
  if device == 'cuda':
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')


def _compiled(step, device):
  """Ways of a step that torch compiles; prints why one is left out."""
  import torch

  ways = {}
  for name, mode in _COMPILED[device].items():
    objective = torch.compile(
      step.objective, fullgraph=True, dynamic=False, mode=mode
    )
    way = functools.partial(step, objective)
    try:
      way()
    # A compiler may be missing, or fail in any way.
    except Exception as error:
      cause = getattr(error, 'inner_exception', error)
      print(f'left out: {name}, as {first_line(cause)}', flush=True)
    else:
      ways[name] = way
  return ways


def _waiting(way, device):
  if device == 'cpu':
    return way
  import torch

  def once():
    way()
    torch.cuda.synchronize()

  return once
