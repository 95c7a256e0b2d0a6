# SPDX-License-Identifier: Apache-2.0
r"""Trains some steps here and in PyTorch on the same numbers, and compares.

Both start from the same weights and get the same images, labels, flips and
margins. Ours is the trainer's step; the other is written with torch.nn and
torch.optim. Several groups of ours are as many ranks there: replicas of one
network with BatchNorm buffers of their own, each on its part of the batch,
whose gradients are averaged.

    python checks/torch_trace.py
    python checks/torch_trace.py --groups 4 --dtype float32
    python checks/torch_trace.py --groups 4 --mistake all
    python checks/torch_trace.py --write tests/checks/golden/torch_trace.json

Printed are relative differences: of each quantity at each step, and at the end
of each tensor, its largest difference over its largest value. Of ours, running
statistics are the mean over groups, so those of the ranks are averaged.

The gradient of a bias that a BatchNorm follows is 0 but for rounding: sums of
terms that cancel. So the momentum of every tensor is compared with the largest
value of all momenta of the backbone where its own is a thousandth of that or
less.

PyTorch's clip divides by the norm plus 1e-6, ours by the norm. With
--exact-clip both do: then what is left is rounding.

In float32 rounding grows from step to step, and gradients may jump: where it
turns the sign of a number next to 0, a PReLU has another slope.

In float64 the check exits with 1 if a quantity, weight or statistic differs by
more than 1e-8; with mistakes, if one of them makes no such difference.
"""

import argparse
import copy
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As the trainer does. Read when jax is first imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import given_trace
import jax
from given_trace import CENTERS, QUANTITIES, Given, Trace

from elasticface_jax import interop, models
from elasticface_jax.benchmark import torch_step
from elasticface_jax.benchmark.recipe import (
  CLIP_NORM,
  MOMENTUM,
  WEIGHT_DECAY,
  Recipe,
)
from elasticface_jax.benchmark.step import make_task, thin_backbone
from elasticface_jax.training import state
from elasticface_jax.training.loss import by_name

DTYPES = 'float64', 'float32'
TOLERANCE = 1e-8  # In float64.
# Of the backbone's largest momentum: see above.
LEAST_MOMENTUM = 1e-3
# What people do wrong, what it first shows in, and whether it needs ranks.
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


def train(
  recipe: Recipe,
  given: Given,
  *,
  exact_clip: bool = False,
  mistake: str | None = None,
) -> Trace:
  """PyTorch's side.

  Args:
    recipe: of the step.
    given: what it starts from.
    exact_clip: divide by the norm itself, where PyTorch adds 1e-6.
    mistake: one of `MISTAKES`.
  """
  import torch

  clip = _clip_exactly if exact_clip else torch.nn.utils.clip_grad_norm_
  dtype = getattr(torch, recipe.dtype)
  # In C order: channels last, a narrow network crashes (`torch_step`).
  tensor = lambda x: torch.from_numpy(np.array(x, order='C')).to(dtype)
  network = torch_step.make_network(**recipe.model).to(dtype)
  numbers = interop.to_torch(given.params, given.batch_stats)
  if mistake == 'fc flattened as height, width, channel':
    numbers['fc.weight'] = given.params['fc']['kernel'].T
  network.load_state_dict({n: tensor(x) for n, x in numbers.items()})
  if mistake == 'scale of the last BatchNorm trained':
    network.features.weight.requires_grad_(True)
  centers = tensor(given.class_centers).requires_grad_()
  backbone = [p for p in network.parameters() if p.requires_grad]
  trained = [*backbone, centers]

  normalised = paired = recipe.group_size
  if mistake == 'one statistic for all groups':
    normalised = recipe.batch_size
  if mistake == 'margins paired over the whole batch':
    paired = recipe.batch_size
  # A rank has the parameters of all and its own buffers.
  shared = {id(p): p for p in network.parameters()}
  ranks = [
    copy.deepcopy(network, dict(shared))
    for _ in range(recipe.batch_size // normalised)
  ]
  if mistake == 'running variance biased':
    for rank in ranks:
      _bias_variances(rank)

  thin = thin_backbone(recipe.embedding_dim)
  task = make_task(recipe, state.make_mesh(1), backbone=thin)
  rate = float(task.rate(0))
  decays = [WEIGHT_DECAY] * len(trained)
  if mistake == 'BatchNorm without weight decay':
    norms = _batch_norm_parameters(network)
    decays = [0 if id(p) in norms else WEIGHT_DECAY for p in trained]
  elsewhere = (
    'weight decay before clipping',
    'weight decay decoupled from momentum',
  )
  if mistake in elsewhere:
    decays = [0.0] * len(trained)
  sgd = torch.optim.SGD(
    [
      {'params': [p], 'weight_decay': decay}
      for p, decay in zip(trained, decays, strict=True)
    ],
    lr=rate,
    momentum=MOMENTUM,
  )
  loss_of = by_name(recipe.loss)
  steps = {name: [] for name in QUANTITIES}
  for images, labels, margins, flips in zip(*given[3:], strict=True):
    images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    images = tensor(given_trace.scale(images).transpose(0, 3, 1, 2))
    embeddings = [
      rank(share)
      for rank, share in zip(ranks, images.split(normalised), strict=True)
    ]
    shares = torch.cat(embeddings), torch.from_numpy(labels).long()
    shares = [x.split(paired) for x in (*shares, tensor(margins))]
    losses = [
      torch_step.head_loss(e, centers, y, m, loss=loss_of, group_size=paired)
      for e, y, m in zip(*shares, strict=True)
    ]
    # The gradient of the mean is the mean of the ranks' gradients.
    loss = torch.stack(losses).mean()
    sgd.zero_grad()
    loss.backward()
    steps['loss'].append(loss.item())
    gradients = [p.grad.numpy() for p in backbone]
    steps['backbone_gradient_norm'].append(given_trace.norm(gradients))
    steps['head_gradient_norm'].append(given_trace.norm([centers.grad]))
    with torch.no_grad():
      for p in trained:
        if mistake == 'weight decay before clipping':
          p.grad.add_(p, alpha=WEIGHT_DECAY)
        if mistake == 'weight decay decoupled from momentum':
          p.mul_(1 - rate * WEIGHT_DECAY)
    together = mistake == 'backbone and head clipped together'
    clip(trained if together else backbone, CLIP_NORM)
    sgd.step()
    statistics = _statistics(ranks)
    steps['statistics_norm'].append(given_trace.norm(statistics.values()))

  names = {id(p): name for name, p in network.named_parameters()}
  names[id(centers)] = CENTERS
  momenta = {
    names[id(p)]: sgd.state[p]['momentum_buffer'].numpy() for p in trained
  }
  weights = {names[id(p)]: p.detach().numpy() for p in trained}
  return Trace(
    {name: np.array(values) for name, values in steps.items()},
    given_trace.sort_tensors(weights | statistics, momenta),
  )


def _clip_exactly(parameters, limit):
  norm = given_trace.norm([p.grad for p in parameters])
  for p in parameters:
    p.grad.mul_(min(1.0, limit / norm))


def _statistics(ranks):
  """Running statistics by name, the mean over the ranks."""
  return {
    name: np.mean([rank.get_buffer(name).numpy() for rank in ranks], axis=0)
    for name, _ in ranks[0].named_buffers()
    if '.running_' in name
  }


def _batch_norms(network):
  from torch.nn.modules.batchnorm import _BatchNorm

  return [m for m in network.modules() if isinstance(m, _BatchNorm)]


def _batch_norm_parameters(network):
  return {id(p) for m in _batch_norms(network) for p in m.parameters()}


def _bias_variances(network):
  """Lets running variances follow the biased variance of a batch."""

  def before(module, inputs):
    module.old_var = module.running_var.clone()

  def after(module, inputs, outputs):
    count = inputs[0].numel() // module.num_features
    kept = (1 - module.momentum) * module.old_var
    taken = module.running_var - kept
    # PyTorch watches the buffer until the backward pass; not its data.
    module.running_var.data.copy_(kept + taken * (count - 1) / count)

  for module in _batch_norms(network):
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def differences(ours: Trace, theirs: Trace) -> dict[str, np.ndarray]:
  """Relative differences of each quantity, [T] each."""
  return {
    name: given_trace.relative(ours.steps[name], theirs.steps[name])
    for name in QUANTITIES
  }


def tensor_differences(
  ours: Trace, theirs: Trace
) -> dict[str, dict[str, float]]:
  """Each tensor's largest difference over its largest value, by kind."""
  made = {}
  for kind, tensors in theirs.tensors.items():
    largest = {name: np.abs(x).max() for name, x in tensors.items()}
    least = 0.0
    if kind == 'momenta':
      of_backbone = [x for name, x in largest.items() if name != CENTERS]
      least = LEAST_MOMENTUM * max(of_backbone)
    made[kind] = {
      name: float(
        np.abs(ours.tensors[kind][name] - x).max() / max(largest[name], least)
      )
      for name, x in tensors.items()
    }
  return made


def show(ours: Trace, theirs: Trace) -> float:
  """Prints what differs; returns the largest difference."""
  apart = differences(ours, theirs)
  print('step  loss      ' + '  '.join(f'{name:>23}' for name in QUANTITIES))
  for i, row in enumerate(zip(*apart.values(), strict=True), 1):
    cells = '  '.join(f'{x:23.1e}' for x in row)
    print(f'{i:4}  {ours.steps["loss"][i - 1]:8.5f}  {cells}')
  norms = ours.steps['backbone_gradient_norm']
  print(
    f'gradient of the backbone: norm {norms.min():.2f} to {norms.max():.2f}, '
    f'clipped in {(norms > CLIP_NORM).sum()} of {len(norms)} steps'
  )
  largest = {name: x.max() for name, x in apart.items()}
  # By least squares: at single steps differences happen to be small.
  logs = np.log(np.maximum(apart['backbone_gradient_norm'], 1e-17))
  growth = np.exp(np.polyfit(np.arange(len(logs)), logs, 1)[0])
  print(f'difference of the gradient: times {growth:.2f} a step')
  for kind, tensors in tensor_differences(ours, theirs).items():
    worst = sorted(tensors, key=tensors.get, reverse=True)[:3]
    told = ', '.join(f'{name} {tensors[name]:.1e}' for name in worst)
    print(f'{kind} of {len(tensors)} tensors: {told}')
    # A momentum has the error of the clip whole, a weight times the rate.
    if kind != 'momenta':
      largest[kind] = tensors[worst[0]]
  name = max(largest, key=largest.get)
  print(f'largest: {name} {largest[name]:.1e}')
  return largest[name]


def show_mistake(name: str, ours: Trace, theirs: Trace) -> float:
  """Prints where a mistake leaves the tolerance; returns how far it comes."""
  quantity = MISTAKES[name][0]
  apart = differences(ours, theirs)[quantity]
  beyond = np.flatnonzero(apart > TOLERANCE)
  first = f'from step {beyond[0] + 1} on' if len(beyond) else 'at no step'
  print(
    f'{name}: {quantity} {first} beyond {TOLERANCE:.0e}; {apart[-1]:.1e} at '
    f'step {len(apart)}',
    flush=True,
  )
  return apart.max()


def golden() -> dict:
  """PyTorch's traces of a narrow network, for tests that have no torch."""
  import torch

  made = {'torch': torch.__version__, 'traces': {}}
  for groups in given_trace.GOLDEN_GROUPS:
    wide, narrow = map(given_trace.golden_recipe, (groups,) * 2, DTYPES)
    given, narrow_given = (
      given_trace.give(recipe, given_trace.GOLDEN_STEPS)
      for recipe in (wide, narrow)
    )
    made['flips'] = {
      dtype: given_trace.pack(x.flips)
      for dtype, x in zip(DTYPES, (given, narrow_given), strict=True)
    }
    listed = lambda steps: {name: list(x) for name, x in steps.items()}
    right = train(wide, given)
    wrong = {
      name: list(train(wide, given, mistake=name).steps[MISTAKES[name][0]])
      for name in possible_mistakes(wide)
    }
    made['traces'][str(groups)] = {
      'float64': listed(right.steps),
      'exact_clip': listed(train(wide, given, exact_clip=True).steps),
      'float32': listed(train(narrow, narrow_given).steps),
      'tensors': given_trace.digests(right.tensors),
      'mistakes': {
        name: {MISTAKES[name][0]: values} for name, values in wrong.items()
      },
    }
  return made


def in_lines(content: dict) -> str:
  """JSON with every list on one line."""
  text = json.dumps(content, indent=1) + '\n'
  return re.sub(r'\[[^][]*\]', lambda found: ' '.join(found[0].split()), text)


def possible_mistakes(recipe: Recipe) -> list[str]:
  """Those of `MISTAKES` that change something in a recipe."""
  one_group = recipe.group_size == recipe.batch_size
  plus = recipe.loss['name'].endswith('_plus')
  return [
    name
    for name, (_, needs_ranks) in MISTAKES.items()
    if not (needs_ranks and one_group)
    and (plus or not name.startswith('margins paired'))
  ]


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='iresnet18', choices=models.STAGES)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--embedding-dim', type=int, default=512)
  parser.add_argument('--classes', type=int, default=1000)
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--groups', type=int, default=1)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument(
    '--loss', default='elastic_arcface', choices=given_trace.MARGINS
  )
  parser.add_argument('--dtype', default='float64', choices=DTYPES)
  parser.add_argument('--exact-clip', action='store_true')
  parser.add_argument('--mistake', choices=[*MISTAKES, 'all'])
  parser.add_argument('--write', type=Path, help='the traces of the tests')
  flags = parser.parse_args(argv)
  if flags.batch_size % flags.groups:
    parser.error(
      f'--groups {flags.groups} do not divide --batch-size {flags.batch_size}'
    )
  recipe = given_trace.make_recipe(
    flags.model,
    width=flags.width,
    embedding_dim=flags.embedding_dim,
    dtype=flags.dtype,
    loss=flags.loss,
    batch_size=flags.batch_size,
    groups=flags.groups,
    num_classes=flags.classes,
  )
  possible = possible_mistakes(recipe)
  if flags.mistake not in (None, 'all', *possible):
    parser.error(
      f'--mistake {flags.mistake!r} changes nothing here: set --groups above '
      "1, and for the pairing --loss to one of '_plus'"
    )
  if flags.mistake:
    possible = possible if flags.mistake == 'all' else [flags.mistake]
    flags.mistake = possible
  return flags, recipe


def main(argv=None):
  """Compares.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if differences are not as they should be; 2 without PyTorch.
  """
  flags, recipe = parse(argv)
  try:
    import torch
  except ImportError:
    message = "needs torch: pip install 'elasticface_jax[bench]'"
    print(message, file=sys.stderr)
    return 2
  jax.config.update('jax_platforms', 'cpu')
  if flags.write:
    flags.write.write_text(in_lines(golden()))
    return 0
  print(
    f'{flags.model}, width {flags.width}, batch size {flags.batch_size} in '
    f'{flags.groups} groups, {flags.loss}, {flags.dtype}; jax '
    f'{jax.__version__}, torch {torch.__version__}',
    flush=True,
  )
  given = given_trace.give(recipe, flags.steps)
  ours = given_trace.train(recipe, given)
  limit = TOLERANCE if recipe.dtype == 'float64' else np.inf
  if not flags.mistake:
    theirs = train(recipe, given, exact_clip=flags.exact_clip)
    return 0 if show(ours, theirs) <= limit else 1
  least = min(
    show_mistake(name, ours, train(recipe, given, mistake=name))
    for name in flags.mistake
  )
  return 0 if least > TOLERANCE else 1


if __name__ == '__main__':
  sys.exit(main())
