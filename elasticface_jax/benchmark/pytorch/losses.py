# SPDX-License-Identifier: Apache-2.0
"""The losses in PyTorch: a chain of arccos, cos and cross-entropy.

Only the target logit of a sample is computed anew (in CurricularFace, hard
negatives too), as in the fast public codes. Unlike ours, angles come from a
clamped arccos, whose gradient is infinite at cosines of -1 and 1, and the
logits ``[B, C]`` exist.

Letters: B samples, C classes, D embedding size, u sub-centres of a class.
"""

import contextlib
import math

from elasticface_jax.training.loss import MarginLoss

# Limits of AdaFace's norms and of its angle, and what it adds to the std.
_ADAFACE_NORMS, _ADAFACE_ANGLE, _ADAFACE_EPSILON = (1e-3, 100.0), 1e-3, 1e-3


def mean_loss(
  embeddings,
  class_centers,
  labels,
  margins,
  *,
  loss: MarginLoss,
  group_size: int,
  statistics: dict | None = None,
):
  """Computes the mean loss of embeddings of any norm.

  Args:
    embeddings: any float dtype, ``[B, D]``.
    class_centers: at least float32, ``[C, u D]``.
    labels: int64, ``[B]``.
    margins: from `draw_margins`, not yet paired, ``[B]``.
    loss: the loss with its hyperparameters.
    group_size: number of samples among which the '+' losses pair margins.
    statistics: from `init_statistics`; updated in place.

  Returns:
    A scalar, in nats. MagFace's includes its regulariser.
  """
  import torch
  from torch.nn import functional as F

  head = loss.head(len(class_centers))
  dim = embeddings.shape[1]
  unit_centers = F.normalize(class_centers.view(-1, dim))
  embeddings = embeddings.to(class_centers.dtype)
  cosines = F.linear(F.normalize(embeddings), unit_centers)
  if len(unit_centers) > head.num_classes:
    cosines = cosines.view(len(labels), head.num_classes, -1).max(2).values
  samples = torch.arange(len(labels), device=labels.device)
  target = cosines[samples, labels]
  values = _hyperparameters(loss)
  regularizer = None
  if values.get('margin_std') and 'pairing' in values:
    margins = pair(margins, target, group_size, rule=values['pairing'])
  if head.kind == 'adaface':
    margins = _adaface_margins(embeddings, statistics, **values)
  elif head.kind == 'magface':
    margins, regularizer = _magface_margins(embeddings, **values)
  straight = head.gradient == 'straight_through'
  with torch.no_grad() if straight else contextlib.nullcontext():
    changed = _change_target(head.kind, target, margins, values)
  if straight:
    changed = target + (changed - target).detach()
  if head.kind == 'curricular':
    cosines = _curricular_others(cosines, target, statistics, **values)
  cosines[samples, labels] = changed
  mean = F.cross_entropy(cosines.mul_(head.scale), labels)
  return mean if regularizer is None else mean + regularizer.mean()


def arcface_acos_of_all(
  embeddings, class_centers, labels, *, margin: float, scale: float
):
  """Computes ArcFace as the authors of ElasticFace: arccos of all cosines.

  Args:
    embeddings: float32, ``[B, D]``.
    class_centers: float32, ``[C, D]``.
    labels: int64, ``[B]``.
    margin: in radians.
    scale: inverse temperature.

  Returns:
    The mean loss, a scalar in nats.
  """
  import torch
  from torch.nn import functional as F

  cosines = F.linear(F.normalize(embeddings), F.normalize(class_centers))
  theta = cosines.clamp_(-1, 1).acos_()
  theta[torch.arange(len(labels)), labels] += margin
  return F.cross_entropy(theta.cos_().mul_(scale), labels)


def draw_margins(loss: MarginLoss, shape, device: str):
  """Draws the margins of one step, one for each sample, not yet paired."""
  import torch

  values = _hyperparameters(loss)
  mean, std = values.get('margin', 0.0), values.get('margin_std', 0.0)
  margins = torch.full(shape, mean, device=device)
  if not std:
    return margins
  if clip := tuple(values.get('clip') or ()):
    low, high = (mean + std * end for end in clip)
    return torch.nn.init.trunc_normal_(margins, mean, std, low, high)
  return margins.normal_(mean, std)


def pair(margins, target_cosines, group_size: int, *, rule: str):
  """Pairs margins with samples as `losses.pair_margins`, in each group."""
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


def init_statistics(loss: MarginLoss, device: str) -> dict:
  """Makes the running statistics of a loss before the first step.

  Args:
    loss: the loss.
    device: where they live.

  Returns:
    Scalars by the names of our state's fields; empty for most losses.
  """
  import torch

  state = loss.init()
  values = state._asdict() if hasattr(state, '_asdict') else {}
  return {
    name: torch.tensor(float(value), device=device)
    for name, value in values.items()
  }


def _hyperparameters(loss):
  return dict(loss.numbers)


def _move(running, new, rate):
  running.mul_(1 - rate).add_(rate * new)


def _change_target(kind, target, margins, values):
  """Returns the target cosines with their margins, ``[B]``."""
  import torch

  if kind == 'cos':
    return target - margins
  theta = target.clamp(-1, 1).acos()
  match kind:
    case 'arc':
      return (theta + margins).cos()
    case 'combined':
      return (values['m1'] * theta + values['m2']).cos() - values['m3']
    case 'sphere':
      multiple = values['margin'] * theta
      k = (multiple.detach() / math.pi).floor()
      return (1 - 2 * (k % 2)) * multiple.cos() - 2 * k
    case 'x2':
      return values['a'] * (theta - values['h']).square() + values['k']
    case 'adaface':
      on_angle, on_cosine = margins
      end = _ADAFACE_ANGLE
      return (theta + on_angle).clamp(end, math.pi - end).cos() - on_cosine
    case 'magface':
      return torch.where(target > 0, (theta + margins).cos(), target)
    case 'curricular':
      margin = values['margin']
      beyond = target - margin * math.sin(margin)
      inside = target > -math.cos(margin)
      return torch.where(inside, (theta + margin).cos(), beyond)
  raise ValueError(f'loss kind {kind!r} is not written in PyTorch')


def _adaface_margins(embeddings, statistics, *, margin, h, ema_rate):
  """Returns the margins on angle and cosine; updates mean and std."""
  import torch

  with torch.no_grad():
    norms = embeddings.norm(dim=1).clamp(*_ADAFACE_NORMS)
    mean, std = statistics['mean'], statistics['std']
    _move(mean, norms.mean(), ema_rate)
    _move(std, norms.std(), ema_rate)
    k = (h * (norms - mean) / (std + _ADAFACE_EPSILON)).clamp(-1, 1)
    return -margin * k, margin + margin * k


def _magface_margins(
  embeddings,
  *,
  lower_norm,
  upper_norm,
  lower_margin,
  upper_margin,
  regularizer_weight,
):
  """Returns the margins and the weighted regulariser."""
  norms = embeddings.norm(dim=1).clamp(lower_norm, upper_norm)
  slope = (upper_margin - lower_margin) / (upper_norm - lower_norm)
  regularizer = regularizer_weight * (norms / upper_norm**2 + 1 / norms)
  return lower_margin + slope * (norms - lower_norm), regularizer


def _curricular_others(cosines, target, statistics, *, margin, ema_rate):
  """Returns the cosines with hard negatives changed; updates t."""
  import torch

  with torch.no_grad():
    t = statistics['t']
    _move(t, target.mean(), ema_rate)
    hard = cosines > (target.clamp(-1, 1).acos() + margin).cos()[:, None]
  return torch.where(hard, cosines * (t + cosines), cosines)
