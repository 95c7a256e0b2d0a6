# SPDX-License-Identifier: Apache-2.0
"""The names that PyTorch projects give to the modules of one network.

Two schemes are in use for IResNets: insightface's (``layer1.0.conv1``), which
is ours too, and that of the IR networks (``body.0.res_layer.1``), which number
the layers of a block. A scheme yields the modules of a network with both
names, from which tensors are read, written and checked; so a further network
is a further entry of `SCHEMES`. MobileFaceNet and ViT have one name for each
module, theirs (`torch_modules`).

Letters: D embedding size.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_modules
from elasticface_jax.models import STAGES, stages_of
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.models.iresnet import EXPANSION, SE_REDUCTION

COUNTER = 'num_batches_tracked'

# By kind of module and PyTorch's name: our collection and name.
_STATISTICS = {
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_SCALE = {'weight': ('params', 'scale')}
_BIAS = {'bias': ('params', 'bias')}
_KERNEL = {'weight': ('params', 'kernel')}
TENSORS = {
  'conv': _KERNEL,
  'prelu': {'weight': ('params', 'slope')},
  'norm': _SCALE | _BIAS | _STATISTICS,
  'fc': _KERNEL | _BIAS,
  # The last BatchNorm: its weight is frozen at 1 and no parameter of ours; or
  # it has neither weight nor bias.
  'frozen_norm': _BIAS | _STATISTICS,
  'plain_norm': _STATISTICS,
}
NORMS = 'norm', 'frozen_norm', 'plain_norm'
_OUTPUT_NORMS = {'affine': 'norm', 'bias': 'frozen_norm', 'plain': 'plain_norm'}
# Side of the feature map that fc reads: each of the four stages halves it.
_SIDE = IMAGE_SHAPE[0] >> 4


class Module(NamedTuple):
  """A module of a network.

  Attributes:
    name: ours, keys of the tree joined by dots.
    theirs: PyTorch's name.
    kind: key of `TENSORS`.
    shape: of ``weight`` in PyTorch, or that it would have.
  """

  name: str
  theirs: str
  kind: str
  shape: tuple[int, ...]

  def expected(self) -> dict[str, tuple[int, ...]]:
    """Returns PyTorch's keys of its tensors, and their shapes."""
    lasts = [*TENSORS[self.kind]]
    if self.kind == 'frozen_norm':
      lasts = ['weight', *lasts]
    return {
      f'{self.theirs}.{last}': self.shape
      if last == 'weight'
      else self.shape[:1]
      for last in lasts
    }


class Scheme(NamedTuple):
  """A way to name the modules of a network.

  Attributes:
    first: matches a key of the first block; group 1 is the prefix.
    network: matches keys of a backbone, or of a relative of it.
    last: key of the weight that makes embeddings, ``[D, ...]``.
    read: ``read(name, keys, shape)``: the arguments of `modules` for a network
      of these keys in a file; ``shape(key, ndim)`` returns a shape, checked.
    modules: ``modules(**model)``: the modules in the order of the network. None
      for the networks of `torch_modules`, where `read` returns the arguments of
      `models.build`.
  """

  first: re.Pattern[str]
  network: re.Pattern[str]
  last: str
  read: Callable[..., dict[str, Any]]
  modules: Callable[..., Iterator[Module]] | None


def model_of_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """Derives the arguments of `modules` from our own parameters."""
  block = params['layer1']['0']
  # Without scale and bias, it has statistics alone.
  features = params['features'] if 'features' in params else {}
  has_scale, has_bias = 'scale' in features, 'bias' in features
  kind = 'insightface' if 'downsample' in block else 'adaface'
  if 'conv3' in block:
    kind = 'adaface_bottleneck'
  elif 'bn2' not in block:
    kind = 'curricularface'
  return {
    'stages': tuple(len(params[f'layer{i}']) for i in range(1, 5)),
    'width': params['conv1']['kernel'].shape[-1],
    'embedding_dim': params['fc']['kernel'].shape[-1],
    'use_se': 'se_block' in block,
    'block': kind,
    'output_norm': 'affine' if has_scale else 'bias' if has_bias else 'plain',
  }


def name_of_stages(name: str, stages: tuple[int, ...], block: str) -> str:
  """Returns the name of a network by the blocks of its stages.

  Args:
    name: of the file, for messages.
    stages: number of blocks of each stage.
    block: kind of block.

  Raises:
    InputError: if `models.build` has no such depth.
  """
  known = {stages_of(one, block): one for one in STAGES}
  if stages not in known:
    raise InputError(
      f'{name}: {", ".join(map(str, stages))} blocks in layer1 to layer4 are '
      f'none of {", ".join(STAGES)}'
    )
  return known[stages]


def _modules(
  *,
  stages: tuple[int, ...],
  width: int,
  embedding_dim: int,
  use_se: bool,
  block: str,
  output_norm: str,
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Yields our name, kind and PyTorch's shape of ``weight``."""
  yield 'conv1', 'conv', (width, IMAGE_SHAPE[-1], 3, 3)
  yield 'bn1', 'norm', (width,)
  yield 'prelu', 'prelu', (width,)
  expansion = EXPANSION if block == 'adaface_bottleneck' else 1
  before = width
  for i, blocks in enumerate(stages):
    after = expansion * width << i
    for j in range(blocks):
      place = f'layer{i + 1}.{j}.'
      for name, kind, shape in _residual(block, before, after):
        yield place + name, kind, shape
      if use_se:
        hidden = after // SE_REDUCTION
        yield place + 'se_block.fc1', 'conv', (hidden, after, 1, 1)
        yield place + 'se_block.fc2', 'conv', (after, hidden, 1, 1)
      if before != after or (j == 0 and block == 'insightface'):
        yield place + 'downsample.0', 'conv', (after, before, 1, 1)
        yield place + 'downsample.1', 'norm', (after,)
      before = after
  yield 'bn2', 'norm', (before,)
  yield 'fc', 'fc', (embedding_dim, before * _SIDE**2)
  yield 'features', _OUTPUT_NORMS[output_norm], (embedding_dim,)


def _residual(block, before, after):
  """Yields the layers between shortcut and sum, in their order."""
  yield 'bn1', 'norm', (before,)
  if block == 'adaface_bottleneck':
    hidden = after // EXPANSION
    yield 'conv1', 'conv', (hidden, before, 1, 1)
    yield 'bn2', 'norm', (hidden,)
    yield 'prelu', 'prelu', (hidden,)
    yield 'conv2', 'conv', (hidden, hidden, 3, 3)
    yield 'bn3', 'norm', (hidden,)
    yield 'prelu2', 'prelu', (hidden,)
    yield 'conv3', 'conv', (after, hidden, 1, 1)
    yield 'bn4', 'norm', (after,)
    return
  yield 'conv1', 'conv', (after, before, 3, 3)
  if block != 'curricularface':
    yield 'bn2', 'norm', (after,)
  yield 'prelu', 'prelu', (after,)
  yield 'conv2', 'conv', (after, after, 3, 3)
  yield 'bn3', 'norm', (after,)


def own_modules(**model: Any) -> Iterator[Module]:
  """Yields the modules of any IResNet under our names."""
  for name, kind, shape in _modules(**model):
    yield Module(name, name, kind, shape)


def _read_insightface(name, keys, shape):
  matches = (re.match(r'layer([1-4])\.(\d+)\.', key) for key in keys)
  blocks = {match.groups() for match in matches if match}
  stages = tuple(sum(i == layer for i, _ in blocks) for layer in '1234')
  name_of_stages(name, stages, 'insightface')
  return {
    'stages': stages,
    'width': shape('conv1.weight', 4)[0],
    'embedding_dim': shape('fc.weight', 2)[0],
    'use_se': any('.se_block.' in key for key in keys),
    'block': 'insightface',
    'output_norm': 'affine',
  }


# Our name of a module outside of blocks: that of IR networks.
_IR = {
  'conv1': 'input_layer.0',
  'bn1': 'input_layer.1',
  'prelu': 'input_layer.2',
  'bn2': 'output_layer.0',
  'fc': 'output_layer.3',
  'features': 'output_layer.4',
}
# The gate's place in `res_layer`: by name, or by number where the block has no
# BatchNorm after its first convolution.
_IR_GATES = {'adaface': 'se_block', 'curricularface': '5'}


def _ir_modules(**model):
  """Yields the modules of an IR network, whose blocks are numbered."""
  block = model['block']
  layers = [name for name, _, _ in _residual(block, 1, EXPANSION)]
  names = {name: f'res_layer.{i}' for i, name in enumerate(layers)}
  gate = _IR_GATES.get(block, 'se_block')
  names |= {f'se_block.fc{i}': f'res_layer.{gate}.fc{i}' for i in (1, 2)}
  names |= {f'downsample.{i}': f'shortcut_layer.{i}' for i in (0, 1)}
  starts = (0, *itertools.accumulate(model['stages']))
  for name, kind, shape in _modules(**model):
    theirs = _IR.get(name)
    if theirs is None:
      stage, j, layer = name.split('.', 2)
      number = starts[int(stage.removeprefix('layer')) - 1] + int(j)
      theirs = f'body.{number}.{names[layer]}'
    yield Module(name, theirs, kind, shape)


def _read_ir(name, keys, shape):
  # A gate there has fc1 and fc2, a convolution has a weight alone.
  middle = re.compile(r'body\.\d+\.res_layer\.5\.running_mean')
  block = 'curricularface'
  if any('.res_layer.8.' in key for key in keys):
    block = 'adaface_bottleneck'
  elif any(map(middle.match, keys)):
    block = 'adaface'
  matches = (re.match(r'body\.(\d+)\.', key) for key in keys)
  blocks = len({match[1] for match in matches if match})
  totals = {sum(stages_of(one, block)): one for one in STAGES}
  if blocks not in totals:
    counts = ', '.join(map(str, sorted(totals)))
    raise InputError(
      f'{name}: {blocks} blocks in body; known networks have {counts}'
    )
  affine = {'output_layer.4.weight', 'output_layer.4.bias'}
  return {
    'stages': stages_of(totals[blocks], block),
    'width': shape('input_layer.0.weight', 4)[0],
    'embedding_dim': shape('output_layer.3.weight', 2)[0],
    'use_se': any(re.search(r'\.fc[12]\.', key) for key in keys),
    'block': block,
    'output_norm': 'affine' if affine & set(keys) else 'plain',
  }


SCHEMES = {
  'insightface': Scheme(
    re.compile(r'(.*?)layer1\.0\.(?:bn[123]|conv[12]|prelu)\.'),
    re.compile(r'(?:layer\d+|conv\d|bn\d|prelu|fc|features)\.'),
    'fc.weight',
    _read_insightface,
    own_modules,
  ),
  'ir': Scheme(
    re.compile(r'(.*?)body\.0\.res_layer\.\d+\.'),
    re.compile(r'(?:input_layer|body|output_layer)\.'),
    'output_layer.3.weight',
    _read_ir,
    _ir_modules,
  ),
  'mobilefacenet': Scheme(
    re.compile(r'(.*?)conv_sep\.layers\.0\.'),
    re.compile(r'(?:layers|conv_sep|features)\.'),
    'features.layers.2.weight',
    torch_modules.read_mobilefacenet,
    None,
  ),
  'vit': Scheme(
    re.compile(r'(.*?)patch_embed\.proj\.'),
    re.compile(r'(?:patch_embed|blocks|norm|feature)\.'),
    'feature.2.weight',
    torch_modules.read_vit,
    None,
  ),
}


def to_ours(weight: np.ndarray, kind: str) -> np.ndarray:
  """Converts ``weight`` of a kind of module to our order of axes."""
  if kind == 'conv':
    weight = weight.transpose(2, 3, 1, 0)
  elif kind == 'fc':
    weight = weight.reshape(len(weight), -1, _SIDE, _SIDE)
    weight = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
  return np.ascontiguousarray(weight)


def to_theirs(weight: np.ndarray, kind: str) -> np.ndarray:
  """Converts a kernel of a kind of module to PyTorch's order of axes."""
  if kind == 'conv':
    return weight.transpose(3, 2, 0, 1)
  if kind == 'fc':
    weight = weight.reshape(_SIDE, _SIDE, -1, weight.shape[-1])
    return weight.transpose(3, 2, 0, 1).reshape(weight.shape[-1], -1)
  return weight
