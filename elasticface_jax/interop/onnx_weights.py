# SPDX-License-Identifier: Apache-2.0
"""Weights of an IResNet from an ONNX file, by the structure of its graph.

Names of nodes and arrays mean nothing: the graph is followed from the images
to the embeddings, and the first node that does not fit is named.

An exporter that folds a BatchNorm into the convolution before it leaves a
kernel and a bias. That BatchNorm comes back with mean 0, variance 1 - epsilon,
scale 1 and the bias: the same function in evaluation. Its statistics are
unknown, and training begins with another function; `onnx_statistics` measures
them on images.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.interop import families, onnx_operations, torch_names
from elasticface_jax.interop.families import Identity, Pixels
from elasticface_jax.interop.onnx_file import OnnxFile
from elasticface_jax.interop.onnx_operations import Affine, Operation, Value
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.models.iresnet import EXPANSION, SE_REDUCTION
from elasticface_jax.models.layers import EPSILON

Tree = dict[str, Any]

# A graph whose first factor is less takes pixels from 0 to 255: others would
# be all but equal after it.
_FACTOR_OF_PIXELS = 0.05
_HALF = 127.5
_NUM_STAGES = 4
# What stands in an IResNet, by the kind of operation.
_EXPECTED = {
  'conv': 'a convolution',
  'prelu': 'PReLU',
  'add': 'the sum of a block and its shortcut',
  'flatten': 'the flat feature map',
  'linear': 'a fully connected layer',
  'sigmoid': 'a sigmoid',
  'gate': 'a product with gates',
}
# What to do, by a part of a node's name and kind.
_QUANTISED = 'it is quantised: give the file that it was made from'
_FOR_ONE_CPU = (
  'it was optimised for one kind of machine: give the file that it was made '
  'from, or save it at a lower level of optimisation'
)
_REMEDIES = {
  'Quantize': _QUANTISED,
  'QLinear': _QUANTISED,
  'Integer': _QUANTISED,
  '(com.microsoft.nchwc.': _FOR_ONE_CPU,
  '(com.ms.internal.': _FOR_ONE_CPU,
}


class OnnxWeights(NamedTuple):
  """The network in an ONNX file.

  Attributes:
    params: of the backbone, float32, as `models.Backbone.apply` takes them.
    batch_stats: likewise.
    identity: the pixels that the network was trained on, as far as known.
    folded: names of the BatchNorms whose statistics the file does not have.
    notes: what is to be known besides, one line each.
  """

  params: Tree
  batch_stats: Tree
  identity: Identity
  folded: Sequence[str]
  notes: Sequence[str]


def from_onnx(
  path: str | os.PathLike[str],
  *,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> tuple[Tree, Tree]:
  """Reads an IResNet from an ONNX file, by its structure.

  In evaluation it is the network of the file; see `read` for what the file
  cannot tell. onnxruntime is not needed.

  Args:
    path: of the file.
    colour_order: of the images that the file takes, ``'rgb'`` or ``'bgr'``;
      None for RGB, as insightface's.
    normalisation: formula of a pixel x in [0, 255], such as ``'x / 255'``, that
      the file takes; None for ``'(x - 127.5) / 127.5'``, or ``'x'`` where the
      graph itself scales pixels.

  Returns:
    ``(params, batch_stats)``, nested dicts of NumPy arrays, float32, for RGB in
    [-1, 1]; `model_of` returns the arguments of `models.build` for them.

  Raises:
    InputError: names the first node that does not fit, or what is damaged.
  """
  return read(path, colour_order=colour_order, normalisation=normalisation)[:2]


def read(
  path: str | os.PathLike[str],
  *,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> OnnxWeights:
  """Reads an IResNet from an ONNX file, and what the file does not have.

  Args:
    path: as for `from_onnx`.
    colour_order: likewise.
    normalisation: likewise.

  Returns:
    The weights.

  Raises:
    InputError: as `from_onnx`.
  """
  file = OnnxFile(path)
  source, outputs = onnx_operations.operations(file, _channels_first(file))
  reader = _Reader(file)
  reader.network(source, outputs)
  identity = reader.input(colour_order, normalisation)
  found = OnnxWeights(
    reader.params,
    reader.batch_stats,
    identity,
    tuple(reader.folded),
    tuple(reader.notes),
  )
  try:
    torch_names.model_of(found.params, found.batch_stats)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  return found


def _channels_first(file: OnnxFile) -> bool:
  """Checks the input of a graph, and returns its layout."""
  side, _, channels = IMAGE_SHAPE
  shapes = [
    [
      dim.dim_value or dim.dim_param or '?'
      for dim in x.type.tensor_type.shape.dim
    ]
    for x in file.inputs
  ]
  if len(shapes) == 1 and len(shapes[0]) == 4:
    # A size that the graph leaves open fits.
    for layout in ((channels, side, side), IMAGE_SHAPE):
      if all(
        not isinstance(size, int) or size == known
        for size, known in zip(shapes[0][1:], layout, strict=True)
      ):
        return layout is not IMAGE_SHAPE
  listed = ', '.join(
    f'{x.name!a} {shape}' for x, shape in zip(file.inputs, shapes, strict=True)
  )
  raise InputError(
    f'{file.path} is no IResNet: it takes {listed or "nothing"}, where one '
    f'takes images, [B, {channels}, {side}, {side}]'
  )


class _Reader:
  """The walk through a graph, and the parameters found on the way."""

  def __init__(self, file):
    self.params = {}
    self.batch_stats = {}
    self.folded = []
    self.notes = []
    self._file = file
    # As the first block has it; the others must agree.
    self._is_bottleneck = self._use_se = self._projects = False
    self._width = 0
    self._inner_norms = []

  def network(self, source: Operation, outputs: Sequence[Value]) -> None:
    """Walks from the input to the outputs."""
    x = self._next(source, 'conv1', 'conv', 'flip')
    is_flipped = x.kind == 'flip'
    self._input = x.inputs[0].affine
    if is_flipped:
      x, before = self._next(x, 'conv1', 'conv'), self._input
      self._input = Affine(before.scale[::-1], before.shift[::-1]).then(
        x.inputs[0].affine.scale, x.inputs[0].affine.shift, x.node
      )
    self._is_flipped = is_flipped
    self._width = x.shape[0]
    self._conv(x, 'conv1', size=3, stride=1, channels=self._width)
    x = self._prelu(x, 'bn1', 'prelu')
    stage = number = 0
    while not any(user.kind == 'flatten' for user in x.users):
      if not x.users:
        self._cut(x, 'the next block, or fc,')
      begins = not any(user.kind == 'add' for user in x.users)
      stage, number = (stage + 1, 0) if begins else (stage, number + 1)
      x = self._block(x, stage, number)
    if stage < _NUM_STAGES:
      self._fail(x.users[0], f'layer{stage + 1}.0', 'a residual block')
    self._drop_inner_norms()
    # CurricularFace gives this feature map, flat, beside the embedding.
    aside = [v.source for v in outputs if v.source in x.users]
    if all(user.kind == 'flatten' and not user.users for user in aside):
      x.users[:] = [user for user in x.users if user not in aside]
      outputs = [v for v in outputs if v.source not in aside]
    self._end(x, outputs)

  def input(
    self, colour_order: str | None, normalisation: str | None
  ) -> Identity:
    """Adds the layer that scales pixels, if needed; turns conv1 to RGB."""
    scale, shift = self._input.scale, self._input.shift
    takes_pixels = np.abs(scale).max() < _FACTOR_OF_PIXELS
    known = families.UNSCALED if takes_pixels else Pixels()
    pixels = families.stated_pixels(known, colour_order, normalisation)
    if self._is_flipped != (pixels.colour_order == 'BGR'):
      conv1 = self.params['conv1']
      conv1['kernel'] = np.ascontiguousarray(conv1['kernel'][:, :, ::-1])
      scale, shift = scale[::-1], shift[::-1]
    mean, std = np.float64(pixels.mean), np.float64(pixels.std)
    # From RGB in [-1, 1] to pixels, to what the file takes, to conv1.
    factor = scale * (_HALF / std)
    offset = scale * ((_HALF - mean) / std) + shift
    if not factor.all():
      raise InputError(
        f'{self._file.path}: {self._input.node} multiplies a colour by 0; it '
        'is no network for faces'
      )
    if not (_near(factor, 1) and _near(offset, 0)):
      constants = {'mean': -offset / factor, 'std': 1 / factor}
      self._put(self.batch_stats, 'input', **constants)
    stated = families.stated_fields(colour_order, normalisation)
    unknown = ['colour_order']
    if takes_pixels:
      self.notes.append('the graph scales pixels itself')
    else:
      unknown.append('normalisation')
    assumed = tuple(field for field in unknown if field not in stated)
    if assumed:
      self.notes.append(
        f'pixels taken as {pixels.colour_order}, {pixels.normalisation}, as '
        "insightface's; an ONNX file does not say: if it takes others, give "
        '--input and --normalise'
      )
    if not self._input.is_identity:
      # With what the graph itself does; of red, green and blue.
      deviation = _HALF / factor
      means = _HALF - offset * deviation
      pixels = pixels._replace(
        mean=tuple(means.round(4).tolist()),
        std=tuple(deviation.round(4).tolist()),
      )
    return Identity('onnx', pixels, stated, assumed, '', '')

  def _block(self, x, stage, number):
    """Reads a block, and returns the operation that ends it."""
    name = f'layer{stage}.{number}'
    stride = 2 if number == 0 else 1
    if stage > _NUM_STAGES:
      self._fail(x.users[0], 'fc', 'the flat feature map, after four stages')
    main, other = self._branches(x, name)
    if stage == 0:
      self._fail(other, 'layer1.0', 'a shortcut of stride 2')
    if name == 'layer1.0':
      self._is_bottleneck = _size(main) == 1
    channels = self._width << (stage - 1)
    wide = channels * (EXPANSION if self._is_bottleneck else 1)
    self._norm(f'{name}.bn1', main.inputs[0].affine)
    if self._is_bottleneck:
      self._conv(main, f'{name}.conv1', size=1, stride=1, channels=channels)
      y = self._prelu(main, f'{name}.bn2', f'{name}.prelu')
      y = self._next(y, f'{name}.conv2', 'conv')
      self._conv(y, f'{name}.conv2', size=3, stride=1, channels=channels)
      y = self._prelu(y, f'{name}.bn3', f'{name}.prelu2')
      y, last = self._next(y, f'{name}.conv3', 'conv'), ('conv3', 'bn4')
      self._conv(y, f'{name}.conv3', size=1, stride=stride, channels=wide)
    else:
      self._conv(main, f'{name}.conv1', size=3, stride=1, channels=wide)
      y = self._prelu(main, f'{name}.bn2', f'{name}.prelu')
      self._inner_norms.append((name, y.inputs[0].affine))
      y, last = self._next(y, f'{name}.conv2', 'conv'), ('conv2', 'bn3')
      self._conv(y, f'{name}.conv2', size=3, stride=stride, channels=wide)
    y, total = self._gate(y, f'{name}.{last[1]}', name)
    self._shortcut(x, other, total, name, stride, wide)
    if total.kind != 'add' or not any(v.source is y for v in total.inputs):
      self._fail(total, name, 'the sum of a block and its shortcut')
    return total

  def _branches(self, x, name):
    """Returns the two users of a feature map: a block and its shortcut."""
    convs = [
      user
      for user in x.users
      if user.kind == 'conv'
      and not (_size(user) == 1 and user.stride == (2, 2))
    ]
    others = [user for user in x.users if user not in convs[:1]]
    kinds = {'conv', 'add', 'subsample'}
    unknown = [user for user in others if user.kind not in kinds]
    if unknown or not convs:
      expected = 'a convolution, and the shortcut round it'
      self._fail((unknown or x.users)[0], f'{name}.conv1', expected)
    if len(others) != 1:
      self._fail((others or convs)[-1], name, 'a block and one shortcut')
    return convs[0], others[0]

  def _gate(self, y, norm, name):
    """Reads the last BatchNorm and SE, and returns what is added, and where."""
    users = [user.kind for user in y.users]
    has_gate = 'mean' in users or 'gate' in users
    if name == 'layer1.0':
      self._use_se = has_gate
    if self._use_se != has_gate:
      expected = 'a gate, as in layer1.0' if self._use_se else 'a sum'
      self._fail((y.users or [y])[0], name, expected)
    if not has_gate:
      total = self._next(y, f'{name}.sum', 'add')
      self._norm(norm, _input_of(total, y).affine)
      return y, total
    place = f'{name}.se_block'
    means = [user for user in y.users if user.kind == 'mean']
    if len(y.users) != 2 or len(means) != 1:
      self._fail(y.users[0], place, 'means, and a product with their gates')
    (mean,) = means
    self._norm(norm, mean.inputs[0].affine)
    hidden = self._gate_layer(mean, f'{place}.fc1', y.shape[0] // SE_REDUCTION)
    relu = self._next(hidden, f'{place}.relu', 'prelu')
    if not relu.inputs[0].affine.is_identity or relu.slope.any():
      self._fail(relu, f'{place}.relu', 'a Relu, without a bias before it')
    last = self._gate_layer(relu, f'{place}.fc2', y.shape[0])
    sigmoid = self._next(last, f'{place}.sigmoid', 'sigmoid')
    gate = self._next(sigmoid, f'{place}.scaled', 'gate')
    if not (
      sigmoid.inputs[0].affine.is_identity
      and gate.inputs[1].affine.is_identity
      and gate.inputs[0].same(mean.inputs[0])
    ):
      self._fail(gate, place, 'x times gates, without a bias')
    total = self._next(gate, f'{name}.sum', 'add')
    if not _input_of(total, gate).affine.is_identity:
      self._fail(total, f'{name}.sum', 'the sum right after the gate')
    return gate, total

  def _gate_layer(self, x, place, channels):
    linear = self._next(x, place, 'linear')
    if not linear.inputs[0].affine.is_identity or linear.bias.any():
      self._fail(linear, place, 'a 1x1 convolution without a bias')
    if linear.shape[0] != channels:
      self._fail(linear, place, f'a 1x1 convolution to {channels} channels')
    self._put(self.params, place, kernel=linear.kernel[None, None])
    return linear

  def _shortcut(self, x, other, total, name, stride, channels):
    """Reads the shortcut from `x`, which enters the sum `total`."""
    if other is total:
      if stride != 1 or not _input_of(total, x).affine.is_identity:
        self._fail(total, name, 'the sum of a block and its input')
      return
    place = f'{name}.downsample'
    if stride == 1 or self._next(other, place, 'add') is not total:
      self._fail(other, name, 'the sum of a block and its input')
    begins, ends = other.inputs[0].affine, _input_of(total, other).affine
    if not begins.is_identity:
      self._fail(other, place, 'a shortcut without a BatchNorm before it')
    projects = other.kind == 'conv' and not _is_choice(other, ends)
    if name == 'layer1.0':
      self._projects = projects
    if projects:
      self._conv(other, f'{place}.0', size=1, stride=stride, channels=channels)
      self._norm(f'{place}.1', ends)
    elif (
      not ends.is_identity
      or other.stride != (2, 2)
      or (self._is_bottleneck or name != 'layer1.0')
    ):
      expected = 'a 1x1 convolution of stride 2, and a BatchNorm'
      self._fail(other, place, expected)

  def _drop_inner_norms(self):
    """Leaves out the BatchNorm before PReLU where no block has one."""
    if self._projects or not all(x.is_identity for _, x in self._inner_norms):
      return
    for name, _ in self._inner_norms:
      layer, number = name.split('.')
      for tree in (self.params, self.batch_stats):
        del tree[layer][number]['bn2']
      self.folded.remove(f'{name}.bn2')

  def _end(self, x, outputs):
    """Reads all that follows the feature map."""
    flat = self._next(x, 'fc', 'flatten')
    self._norm('bn2', flat.inputs[0].affine)
    fc = self._next(flat, 'fc', 'linear')
    affine = self._embedding(fc, outputs)
    # For each value of the feature map; without padding, it folds exactly.
    before = fc.inputs[0].affine
    kernel, bias = fc.kernel, fc.bias
    if not (before.norm is None and before.is_identity):
      bias = bias + before.shift @ kernel
      kernel = kernel * before.scale[:, None]
    features = {}
    if affine.norm is None:
      # A last BatchNorm that was folded, or none: its scale is the kernel's.
      if not affine.is_identity:
        kernel = kernel * affine.scale
      features['bias'] = bias * affine.scale + affine.shift
      bias = np.zeros(len(bias))
      affine = Affine(np.ones(len(bias)), features['bias'])
      self._norm('features', affine)
      del self.params['features']['scale']
    else:
      self._norm('features', affine)
      learned = self.params['features']
      if np.all(learned['scale'] == 1):
        del learned['scale']
        # A bias of 0 is no bias, or an insightface's before its training.
        is_insightface = self._projects and not self._is_bottleneck
        if not learned['bias'].any() and not is_insightface:
          del self.params['features']
    sizes = dict(zip('CHW', x.shape, strict=True))
    kernel = kernel.reshape(*(sizes[axis] for axis in flat.order), -1)
    places = [flat.order.index(axis) for axis in 'HWC']
    kernel = kernel.transpose(*places, 3).reshape(-1, len(bias))
    self._put(self.params, 'fc', kernel=kernel, bias=bias)

  def _embedding(self, fc, outputs):
    """Returns what is done to the result of fc, before it is normalised."""
    found, others = [], []
    for value in outputs:
      if value.source is fc:
        found.append(value)
      elif value.source.kind == 'normalize':
        found.append(value.source.inputs[0])
        self.notes.append(
          f'{value.source.node} normalises the embedding; it is taken before'
        )
      # AdaFace gives the norm beside the unit embedding.
      elif value.source.kind != 'norm':
        others.append(value)
    if fc.users and others:
      unknown = [u for u in fc.users if u.kind not in ('normalize', 'norm')]
      self._fail((unknown or fc.users)[0], 'features', 'the embedding')
    if len(found) != 1 or others or found[0].source is not fc:
      raise InputError(
        f'{self._file.path} is no IResNet: it gives '
        f'{", ".join(map(ascii, self._file.outputs))}, where one gives '
        'embeddings alone'
      )
    return found[0].affine

  def _prelu(self, x, norm, name):
    prelu = self._next(x, name, 'prelu')
    self._norm(norm, prelu.inputs[0].affine)
    self._put(self.params, name, slope=prelu.slope)
    return prelu

  def _conv(self, conv, name, *, size, stride, channels):
    if (
      _size(conv) != size
      or conv.stride != (stride, stride)
      or conv.padding != size // 2
      or conv.shape[0] != channels
    ):
      expected = f'a {size}x{size} convolution, stride {stride}, padding '
      expected += f'{size // 2}, to {channels} channels'
      self._fail(conv, name, expected)
    kernel = conv.kernel.transpose(2, 3, 1, 0)
    self._put(self.params, name, kernel=kernel)

  def _norm(self, name, affine):
    """Adds a BatchNorm, of the file or in place of one that was folded."""
    norm = affine.norm
    if norm is None:
      self.folded.append(name)
      scale, bias = affine.scale, affine.shift
      mean, var = np.zeros(scale.shape), np.full(scale.shape, 1 - EPSILON)
    else:
      scale, bias, mean = norm.scale, norm.bias, norm.mean
      var = norm.var
      if norm.epsilon != np.float32(EPSILON):
        var = var + (norm.epsilon - EPSILON)
      # Less than what is added here: the rest goes into the scale.
      small = var < 0
      rest = np.where(small, EPSILON / (norm.var + norm.epsilon), 1)
      scale, var = scale * np.sqrt(rest), np.where(small, 0, var)
    self._put(self.params, name, scale=scale, bias=bias)
    self._put(self.batch_stats, name, mean=mean, var=var)

  def _put(self, tree, name, **arrays):
    for part in name.split('.'):
      tree = tree.setdefault(part, {})
    for key, array in arrays.items():
      tree[key] = np.ascontiguousarray(array, np.float32)

  def _next(self, x, place, *kinds):
    """Returns the only user of an operation, which is one of some kinds."""
    if not x.users:
      self._cut(x, place)
    unknown = [user for user in x.users if user.kind not in kinds]
    if unknown or len(x.users) > 1:
      self._fail((unknown or x.users[1:])[0], place, _EXPECTED[kinds[0]])
    return x.users[0]

  def _cut(self, x: Operation, place: str) -> NoReturn:
    raise InputError(
      f'{self._file.path} is no IResNet: it ends with {x.node}, where {place} '
      'follows in one; export the whole network'
    )

  def _fail(self, found: Operation, place: str, expected: str) -> NoReturn:
    what = ''
    if found.kind == 'conv':
      what = f', {_size(found)}x{_size(found)}, stride {found.stride[0]}, '
      what += f'padding {found.padding}, to {found.shape[0]} channels,'
    remedy = ''
    for part, words in _REMEDIES.items():
      if part in found.node:
        remedy = f'; {words}'
    raise InputError(
      f'{self._file.path} is no IResNet: {found.node}{what} stands where one '
      f'has {expected} ({place}){remedy}'
    )


def _near(values, wanted):
  """Returns whether values are a number, but for rounding to float32."""
  return np.allclose(values, wanted, 0, 1e-6)


def _size(conv):
  return conv.kernel.shape[-1]


def _input_of(operation, source):
  """Returns the value of a source that an operation reads."""
  return next(v for v in operation.inputs if v.source is source)


def _is_choice(conv, affine):
  """Returns whether a convolution takes every second pixel as it is."""
  out, channels, size, _ = conv.kernel.shape
  return (
    affine.is_identity
    and (out, size) == (channels, 1)
    and np.array_equal(conv.kernel[:, :, 0, 0], np.eye(out))
  )
