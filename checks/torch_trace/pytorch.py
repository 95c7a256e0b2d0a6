# SPDX-License-Identifier: Apache-2.0
"""A trace in PyTorch, with or without a mistake that people make.

Groups are ranks: replicas of one network with BatchNorm buffers of their own,
each on its part of the batch, whose gradients are averaged.
"""

import copy

import numpy as np

from checks.torch_trace.given import (
  CENTERS,
  QUANTITIES,
  Given,
  Trace,
  norm,
  scale,
  sort_tensors,
)
from elasticface_jax import interop
from elasticface_jax.benchmark.pytorch.losses import mean_loss
from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.benchmark.recipe import (
  CLIP_NORM,
  MOMENTUM,
  WEIGHT_DECAY,
  Recipe,
)
from elasticface_jax.benchmark.step import make_task, thin_backbone
from elasticface_jax.training import state
from elasticface_jax.training.loss import by_name

# Frequent mistakes, the quantity that shows each first, and whether it needs
# several ranks.
MISTAKES = {
  'BatchNorm without weight decay': ('loss', False),
  'backbone and head clipped together': ('loss', False),
  'weight decay before clipping': ('loss', False),
  'weight decay decoupled from momentum': ('loss', False),
  'scale of the last BatchNorm trained': ('loss', False),
  'fc flattened as height, width, channel': ('loss', False),
  'running variance biased': ('statistics_norm', False),
  'one statistic for all groups': ('loss', True),
  'margins paired over the whole batch': ('loss', True),
}


def possible_mistakes(recipe: Recipe) -> list[str]:
  """Returns those of `MISTAKES` that make a difference in a recipe."""
  one_group = recipe.group_size == recipe.batch_size
  plus = recipe.loss['name'].endswith('_plus')
  return [
    name
    for name, (_, needs_ranks) in MISTAKES.items()
    if not (needs_ranks and one_group)
    and (plus or not name.startswith('margins paired'))
  ]


def train(
  recipe: Recipe,
  given: Given,
  *,
  exact_clip: bool = False,
  mistake: str | None = None,
) -> Trace:
  """Trains in PyTorch.

  Args:
    recipe: of the step.
    given: the inputs.
    exact_clip: divide by the norm itself, where PyTorch adds 1e-6.
    mistake: one of `MISTAKES`.
  """
  trainer = _Trainer(recipe, given, exact_clip=exact_clip, mistake=mistake)
  steps = {name: [] for name in QUANTITIES}
  for images, labels, margins, flips in zip(*given[3:], strict=True):
    images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    measured = trainer.step(scale(images), labels, margins)
    for name, value in zip(QUANTITIES, measured, strict=True):
      steps[name].append(value)
  return Trace(
    {name: np.array(values) for name, values in steps.items()},
    trainer.tensors(),
  )


class _Trainer:
  """Ranks, class centres and SGD."""

  def __init__(self, recipe, given, *, exact_clip, mistake):
    import torch

    self._mistake = mistake
    self._clip = torch.nn.utils.clip_grad_norm_
    if exact_clip:
      self._clip = _clip_exactly
    self._dtype = getattr(torch, recipe.dtype)
    self._loss = by_name(recipe.loss)
    self._network = make_network(**recipe.model).to(self._dtype)
    state_dict = interop.to_torch(given.params, given.batch_stats)
    if mistake == 'fc flattened as height, width, channel':
      state_dict['fc.weight'] = given.params['fc']['kernel'].T
    self._network.load_state_dict(
      {name: self._tensor(x) for name, x in state_dict.items()}
    )
    if mistake == 'scale of the last BatchNorm trained':
      self._network.features.weight.requires_grad_(True)
    self._centers = self._tensor(given.class_centers).requires_grad_()
    parameters = self._network.parameters()
    self._backbone = [p for p in parameters if p.requires_grad]
    self._trained = [*self._backbone, self._centers]
    # Samples of a rank, and samples among which margins are paired.
    self._rank_size = self._pair_size = recipe.group_size
    if mistake == 'one statistic for all groups':
      self._rank_size = recipe.batch_size
    if mistake == 'margins paired over the whole batch':
      self._pair_size = recipe.batch_size
    # A rank has the parameters of all and its own buffers.
    shared = {id(p): p for p in self._network.parameters()}
    self._ranks = [
      copy.deepcopy(self._network, dict(shared))
      for _ in range(recipe.batch_size // self._rank_size)
    ]
    if mistake == 'running variance biased':
      for rank in self._ranks:
        _bias_variances(rank)
    thin = thin_backbone(recipe.embedding_dim)
    task = make_task(recipe, state.make_mesh(1), backbone=thin)
    self._rate = float(task.rate(0))
    self._sgd = torch.optim.SGD(
      [
        {'params': [p], 'weight_decay': decay}
        for p, decay in zip(self._trained, self._decays(), strict=True)
      ],
      lr=self._rate,
      momentum=MOMENTUM,
    )

  def _tensor(self, x):
    import torch

    # In C order: with channels last, a narrow network crashes.
    return torch.from_numpy(np.array(x, order='C')).to(self._dtype)

  def _decays(self):
    """Returns the weight decay of each parameter by SGD."""
    if self._mistake in (
      'weight decay before clipping',
      'weight decay decoupled from momentum',
    ):
      return [0.0] * len(self._trained)
    exempt = set()
    if self._mistake == 'BatchNorm without weight decay':
      exempt = {
        id(p) for m in _batch_norms(self._network) for p in m.parameters()
      }
    return [0 if id(p) in exempt else WEIGHT_DECAY for p in self._trained]

  def step(self, images, labels, margins):
    """Runs one step; returns the values of `QUANTITIES`."""
    import torch

    images = self._tensor(images.transpose(0, 3, 1, 2)).split(self._rank_size)
    embeddings = [
      rank(share) for rank, share in zip(self._ranks, images, strict=True)
    ]
    batch = (
      torch.cat(embeddings),
      torch.from_numpy(labels).long(),
      self._tensor(margins),
    )
    losses = [
      mean_loss(e, self._centers, y, m, loss=self._loss, group_size=len(y))
      for e, y, m in zip(
        *(x.split(self._pair_size) for x in batch), strict=True
      )
    ]
    # The gradient of the mean is the mean of the ranks' gradients.
    loss = torch.stack(losses).mean()
    self._sgd.zero_grad()
    loss.backward()
    norms = (
      norm([p.grad.numpy() for p in self._backbone]),
      norm([self._centers.grad]),
    )
    with torch.no_grad():
      for p in self._trained:
        if self._mistake == 'weight decay before clipping':
          p.grad.add_(p, alpha=WEIGHT_DECAY)
        if self._mistake == 'weight decay decoupled from momentum':
          p.mul_(1 - self._rate * WEIGHT_DECAY)
    together = self._mistake == 'backbone and head clipped together'
    self._clip(self._trained if together else self._backbone, CLIP_NORM)
    self._sgd.step()
    return loss.item(), *norms, norm(self._statistics().values())

  def _statistics(self):
    """Returns running statistics by name, the mean over the ranks."""
    return {
      name: np.mean(
        [rank.get_buffer(name).numpy() for rank in self._ranks], axis=0
      )
      for name, _ in self._network.named_buffers()
      if '.running_' in name
    }

  def tensors(self):
    """Returns weights, momenta and statistics."""
    names = {id(p): name for name, p in self._network.named_parameters()}
    names[id(self._centers)] = CENTERS
    momenta = {
      names[id(p)]: self._sgd.state[p]['momentum_buffer'].numpy()
      for p in self._trained
    }
    weights = {names[id(p)]: p.detach().numpy() for p in self._trained}
    return sort_tensors(weights | self._statistics(), momenta)


def _clip_exactly(parameters, limit):
  found = norm([p.grad for p in parameters])
  for p in parameters:
    p.grad.mul_(min(1.0, limit / found))


def _batch_norms(network):
  from torch.nn.modules.batchnorm import _BatchNorm

  return [m for m in network.modules() if isinstance(m, _BatchNorm)]


def _bias_variances(network):
  """Makes running variances follow the biased variance of a batch."""

  def before(module, inputs):
    module.old_var = module.running_var.clone()

  def after(module, inputs, outputs):
    count = inputs[0].numel() // module.num_features
    kept = (1 - module.momentum) * module.old_var
    taken = module.running_var - kept
    # Autograd checks the version of the buffer, not of its data.
    module.running_var.data.copy_(kept + taken * (count - 1) / count)

  for module in _batch_norms(network):
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
