# SPDX-License-Identifier: Apache-2.0
"""Networks that PyTorch's two exporters write and onnxruntime optimises."""

import functools
import itertools
import warnings

import jax
import numpy as np
import onnxruntime
import pytest

from elasticface_jax import models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import model_of, onnx_weights

torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')
nn = torch.nn

LEVELS = 'ORT_ENABLE_BASIC', 'ORT_ENABLE_EXTENDED'


class Gate(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.pool = nn.AdaptiveAvgPool2d(1)
    self.down = nn.Conv2d(channels, channels // 16, 1, bias=False)
    self.up = nn.Conv2d(channels // 16, channels, 1, bias=False)

  def forward(self, x):
    return x * self.up(self.down(self.pool(x)).relu()).sigmoid()


class Block(nn.Module):
  def __init__(self, before, after, kind, gated):
    super().__init__()
    layers = [nn.BatchNorm2d(before)]
    if kind == 'adaface_bottleneck':
      inner = after // 4
      layers += [nn.Conv2d(before, inner, 1, bias=False)]
      layers += [nn.BatchNorm2d(inner), nn.PReLU(inner)]
      layers += [nn.Conv2d(inner, inner, 3, 1, 1, bias=False)]
      layers += [nn.BatchNorm2d(inner), nn.PReLU(inner)]
      layers += [nn.Conv2d(inner, after, 1, 2, bias=False)]
    else:
      layers += [nn.Conv2d(before, after, 3, 1, 1, bias=False)]
      if kind != 'curricularface':
        layers += [nn.BatchNorm2d(after)]
      layers += [nn.PReLU(after)]
      layers += [nn.Conv2d(after, after, 3, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(after), *([Gate(after)] if gated else [])]
    self.residual = nn.Sequential(*layers)
    self.shortcut = nn.MaxPool2d(1, 2)
    if before != after or kind == 'insightface':
      projection = nn.Conv2d(before, after, 1, 2, bias=False)
      self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))

  def forward(self, x):
    return self.residual(x) + self.shortcut(x)


class Network(nn.Module):
  def __init__(self, kind='insightface', *, gated=False, width=4, end=''):
    super().__init__()
    self.stem = nn.Sequential(
      nn.Conv2d(3, width, 3, 1, 1, bias=False),
      nn.BatchNorm2d(width),
      nn.PReLU(width),
    )
    wide = width * (4 if kind == 'adaface_bottleneck' else 1)
    channels = [width, *(wide << i for i in range(4))]
    self.body = nn.Sequential(
      *(Block(*pair, kind, gated) for pair in itertools.pairwise(channels))
    )
    self.norm, self.dropout = nn.BatchNorm2d(channels[-1]), nn.Dropout(0.4)
    self.fc = nn.Linear(channels[-1] * 49, 8)
    self.features = nn.BatchNorm1d(8, affine=kind == 'insightface')
    self.end = end

  def forward(self, x):
    x = self.dropout(self.norm(self.body(self.stem(x))))
    # As the authors of AdaFace and of arcface_torch.
    flat = torch.flatten(x, 1) if self.end else x.view(x.size(0), -1)
    x = self.features(self.fc(flat))
    if self.end == 'unit':
      return nn.functional.normalize(x)
    if self.end == 'pair':
      norm = torch.norm(x, 2, 1, True)
      return torch.div(x, norm), norm
    return x


CASES = {
  'insightface': {},
  'adaface': {'kind': 'adaface', 'end': 'pair'},
  'curricularface': {'kind': 'curricularface'},
  'adaface_bottleneck': {'kind': 'adaface_bottleneck'},
  'se': {'gated': True, 'width': 16, 'end': 'unit'},
}
EXPORTS = {
  'script': {'dynamo': False, 'opset_version': 11},
  'script, not folded': {
    'dynamo': False,
    'opset_version': 17,
    'do_constant_folding': False,
    'training': torch.onnx.TrainingMode.PRESERVE,
  },
  'dynamo': {'dynamo': True},
  'dynamo, not folded': {'dynamo': True, 'optimize': False},
}


@functools.cache
def network(case):
  module = Network(**CASES[case]).eval()
  random = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, tensor in (module.state_dict()).items():
      if tensor.ndim > 1:
        deviation = tensor[0].numel() ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=random) * deviation)
      elif name.endswith(('mean', 'bias')):
        tensor.copy_(torch.rand(tensor.shape, generator=random) - 0.5)
      elif tensor.is_floating_point():
        tensor.copy_(torch.rand(tensor.shape, generator=random) * 0.6 + 0.3)
  return module


def session(path, level, **fields):
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4
  options.graph_optimization_level = getattr(
    onnxruntime.GraphOptimizationLevel, level
  )
  for name, value in fields.items():
    setattr(options, name, str(value))
  return onnxruntime.InferenceSession(
    path, options, providers=['CPUExecutionProvider']
  )


@functools.cache
def compiled(model):
  backbone = models.build(**dict(model))
  return jax.jit(functools.partial(backbone.apply, train=False))


def check(path, images, expected, case):
  found = onnx_weights.read(path)
  model = model_of(*found[:2])
  assert model['use_se'] == (case == 'se')
  assert model['block'] == ('insightface' if case == 'se' else case)
  apply = compiled(tuple(model.items()))
  embedded = np.asarray(apply(*found[:2], images.transpose(0, 2, 3, 1))[0])
  if CASES[case].get('end'):
    embedded = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
  limit = 1e-4 * max(1, np.abs(expected).max())
  np.testing.assert_allclose(embedded, expected, 0, limit)
  return found


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('how', EXPORTS)
def test_exported_and_optimised(tmp_path, case, how):
  random = np.random.default_rng(0)
  images = random.uniform(-0.5, 0.5, (3, 3, 112, 112))
  images = (images + random.uniform(-0.4, 0.4, (3, 3, 1, 1))).astype(np.float32)
  path = tmp_path / 'network.onnx'
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch.onnx.export(
      network(case), (torch.tensor(images),), path, **EXPORTS[how]
    )
  original = session(path, 'ORT_DISABLE_ALL')
  name = original.get_inputs()[0].name
  expected = original.run(None, {name: images})[0]
  found = check(path, images, expected, case)
  assert bool(found.folded) == ('not folded' not in how)
  for level in LEVELS:
    made = tmp_path / f'{level}.onnx'
    session(path, level, optimized_model_filepath=made)
    check(made, images, expected, case)
  made = tmp_path / 'all.onnx'
  session(path, 'ORT_ENABLE_ALL', optimized_model_filepath=made)
  # Weights in blocks for one kind of CPU, where it has such kernels.
  try:
    check(made, images, expected, case)
  except InputError as error:
    assert 'optimised for one kind of machine' in str(error)
