# SPDX-License-Identifier: Apache-2.0
r"""Networks in the form of another project, with equal embeddings.

A shortcut that takes every second pixel is a 1x1 convolution by the identity
and a BatchNorm of variance :math:`1 - \epsilon`; so is a BatchNorm that is not
there, without the convolution. Scale and bias of the last BatchNorm go into the
layer before it and into its mean. These are equalities of evaluation: in
training BatchNorm normalises by the batch, and what was folded learns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop.families import Family, Pixels
from elasticface_jax.models.layers import EPSILON

Tree = dict[str, Any]
# Most that a layer may differ from the identity to be left out.
_TOLERANCE = 1e-6


def input_norm(pixels: Pixels) -> dict[str, np.ndarray] | None:
  """Returns the constants of `models.layers.InputNorm` for pixels.

  Args:
    pixels: that a network takes.

  Returns:
    Mean and deviation, float32, ``[3]``, of red, green and blue in [-1, 1];
    None if the network takes these as they are.
  """
  if pixels._replace(colour_order='RGB') == Pixels():
    return None
  mean, std = np.float64(pixels.mean), np.float64(pixels.std)
  return {
    'mean': ((mean - 127.5) / 127.5).astype(np.float32),
    'std': (std / 127.5).astype(np.float32),
  }


def turned(params: Tree) -> Tree:
  """Returns parameters for colours in the opposite order."""
  kernel = np.ascontiguousarray(
    np.asarray(params['conv1']['kernel'])[:, :, ::-1]
  )
  return params | {'conv1': {'kernel': kernel}}


def with_epsilon(
  params: Tree, batch_stats: Tree, epsilon: float, wanted: float
) -> tuple[Tree, Tree]:
  r"""Returns a network whose BatchNorms add another epsilon.

  The running variance takes the difference. Where it would be negative, it is 0
  and the scale takes the rest.

  Args:
    params: of a backbone.
    batch_stats: likewise.
    epsilon: that its BatchNorms add.
    wanted: that they shall add.
  """
  if epsilon == wanted:
    return params, batch_stats
  if 'var' in batch_stats:
    dtype = np.asarray(batch_stats['var']).dtype
    sums = np.asarray(batch_stats['var'], np.float64) + epsilon
    var = np.maximum(sums - wanted, 0)
    batch_stats = batch_stats | {'var': var.astype(dtype)}
    if 'scale' in params:
      scale = params['scale'] * np.sqrt((var + wanted) / sums)
      params = params | {'scale': scale.astype(dtype)}
    return params, batch_stats
  params, batch_stats = dict(params), dict(batch_stats)
  for key, stats in batch_stats.items():
    if isinstance(stats, Mapping) and key != 'input':
      ours, batch_stats[key] = with_epsilon(
        params.get(key, {}), stats, epsilon, wanted
      )
      # A BatchNorm without scale and bias has no parameters.
      params |= {key: ours} if ours else {}
  return params, batch_stats


def fit(
  params: Tree, batch_stats: Tree, model: Mapping[str, Any], family: Family
) -> tuple[Tree, Tree, list[str]]:
  """Brings a network into the form of a family.

  Args:
    params: of an IResNet.
    batch_stats: likewise.
    model: its arguments of `models.build`.
    family: whose modules shall load it.

  Returns:
    Parameters and statistics for the family's pixels and epsilon, without an
    `InputNorm`; and what was folded, one line each: nothing if the network has
    the family's form.

  Raises:
    InputError: names what has no place in the family's networks.
  """
  params, batch_stats = _copy(params), _copy(batch_stats)
  if model['use_se'] and not family.use_se:
    raise InputError(f'{family.title} has no networks with SE; use_se is True')
  folded = [
    *_fit_pixels(params, batch_stats, family),
    *_fit_blocks(params, batch_stats, model, family),
    *_fit_output(params, batch_stats, model['output_norm'], family),
  ]
  if family.pixels.colour_order == 'BGR':
    params = turned(params)
  params, batch_stats = with_epsilon(
    params, batch_stats, EPSILON, family.epsilon
  )
  return params, batch_stats, folded


def _copy(tree):
  if isinstance(tree, Mapping):
    return {key: _copy(value) for key, value in tree.items()}
  return np.asarray(tree)


def _fit_pixels(params, batch_stats, family):
  """Replaces the input's constants by those of the family's pixels."""
  ours = batch_stats.pop('input', None)
  theirs = input_norm(family.pixels)
  identity = {'mean': np.zeros(3), 'std': np.ones(3)}
  ours, theirs = ours or identity, theirs or identity
  # Pixels of theirs, t, are x = std t + mean; ours are (x - mean) / std.
  ours, theirs = (
    {key: np.float64(value) for key, value in one.items()}
    for one in (ours, theirs)
  )
  factor = theirs['std'] / ours['std']
  shift = (theirs['mean'] - ours['mean']) / ours['std']
  if np.abs(shift).max() > _TOLERANCE:
    raise InputError(
      f'{family.title} scales pixels as {family.pixels.normalisation}, this '
      'network otherwise, by constants of its own: a shift of them has no '
      'place in a convolution that pads; choose the names that it came with'
    )
  if np.abs(factor - 1).max() <= _TOLERANCE:
    return []
  kernel = params['conv1']['kernel']
  kernel = (kernel * factor[:, None]).astype(kernel.dtype)
  params['conv1'] = {'kernel': kernel}
  return ['the scale of pixels into the first kernel']


def _fit_blocks(params, batch_stats, model, family):
  """Adds the layers that the family's blocks have, and drops those it lacks."""
  ours, theirs = model['block'], family.blocks[0]
  if ours in family.blocks:
    return []
  if ours == 'adaface_bottleneck':
    raise InputError(
      f'{family.title} has no bottlenecks (1x1, 3x3, 1x1), of which this '
      'network is made; choose adaface, tface or cvlface'
    )
  folded = []
  for stage in (f'layer{i}' for i in range(1, 5)):
    for j, block in params[stage].items():
      stats = batch_stats[stage][j]
      where = f'{stage}.{j}'
      if ours == 'curricularface':
        _add_norm(block, stats, 'bn2', block['prelu']['slope'])
        folded.append('BatchNorms that are the identity added')
      elif theirs == 'curricularface':
        _drop_norm(block, stats, f'{where}.bn2', family)
        folded.append('BatchNorms that are the identity left out')
  first, stats = params['layer1']['0'], batch_stats['layer1']['0']
  if theirs == 'insightface':
    slope = first['prelu']['slope']
    kernel = np.eye(len(slope), dtype=slope.dtype)[None, None]
    first['downsample'], stats['downsample'] = {'0': {'kernel': kernel}}, {}
    _add_norm(first['downsample'], stats['downsample'], '1', slope)
    folded.append('layer1.0.downsample, the identity, added')
  elif ours == 'insightface':
    _drop_projection(first, stats, family)
    folded.append('layer1.0.downsample, the identity, left out')
  return list(dict.fromkeys(folded))


def _add_norm(params, stats, name, like):
  """Adds a BatchNorm that is the identity in evaluation."""
  ones, zeros = np.ones_like(like), np.zeros_like(like)
  params[name] = {'scale': ones, 'bias': zeros}
  var = np.full_like(like, 1 - EPSILON)
  stats[name] = {'mean': zeros, 'var': var}


def _line(params, stats):
  """Returns factor and shift of a BatchNorm in evaluation, float64."""
  var = np.asarray(stats['var'], np.float64)
  factor = params['scale'] / np.sqrt(var + EPSILON)
  return factor, params['bias'] - stats['mean'] * factor


def _is_identity(matrix, shift):
  near = np.abs(matrix - np.eye(len(matrix))).max() <= _TOLERANCE
  return near and np.abs(shift).max() <= _TOLERANCE


def _drop_norm(params, stats, where, family):
  factor, shift = _line(params.pop('bn2'), stats.pop('bn2'))
  if not _is_identity(np.diag(factor), shift):
    raise InputError(
      f'{family.title} has no BatchNorm after the first convolution of a '
      f'block; {where} is a trained one; choose other names'
    )


def _drop_projection(params, stats, family):
  projection, norm = params.pop('downsample'), stats.pop('downsample')
  factor, shift = _line(projection['1'], norm['1'])
  kernel = np.asarray(projection['0']['kernel'], np.float64)[0, 0]
  if not _is_identity(kernel * factor, shift):
    raise InputError(
      f'{family.title} takes every second pixel where the first stage begins; '
      'layer1.0.downsample is a trained projection, which has no place there; '
      'choose insightface or magface'
    )


def _fit_output(params, batch_stats, ours, family):
  """Moves scale and bias of the last BatchNorm to where the family has them."""
  theirs = family.output_norm
  if ours == theirs:
    return []
  stats = batch_stats['features']
  features = params.pop('features', {})
  folded = []
  bias = features.get('bias', np.zeros_like(stats['mean']))
  scale = features.get('scale', np.ones_like(stats['mean']))
  if theirs == 'plain' and bias.any():
    # With a factor of 0, any mean will do.
    factor = scale / np.sqrt(np.float64(stats['var']) + EPSILON)
    if not np.all(factor):
      raise InputError(
        f'{family.title} has no bias after the last BatchNorm, and '
        'features.scale is 0 in places, where it is all that is left; choose '
        'other names'
      )
    stats['mean'] = (stats['mean'] - bias / factor).astype(bias.dtype)
    folded.append('features.bias into the running mean')
  if theirs != 'affine' and (scale != 1).any():
    kernel, offset = params['fc']['kernel'], params['fc']['bias']
    params['fc'] = {'kernel': kernel * scale, 'bias': offset * scale}
    stats['mean'] = stats['mean'] * scale
    folded.append('features.scale into fc and the running mean')
  parts = {'affine': {'scale': scale, 'bias': bias}, 'bias': {'bias': bias}}
  if theirs in parts:
    params['features'] = parts[theirs]
  if ours == 'plain' or theirs == 'affine':
    folded.append('scale 1 or bias 0 added to the last BatchNorm')
  return folded
