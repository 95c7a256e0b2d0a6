# SPDX-License-Identifier: Apache-2.0
"""Published networks of other projects, compared with PyTorch modules.

The modules are written from the projects' descriptions. Each is fed what its
project feeds, computed here from the pixels of a file, and compared in
evaluation, through a step of fine-tuning, and after it.
"""

import json
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.interop import torch_files

torch = pytest.importorskip('torch')
nn = torch.nn

GOLDEN = Path(__file__).with_name('published.json')
LR, SCALE = 0.02, 4.0
# Least that embeddings of wrong pixels differ; right ones do by 1e-4.
WRONG = 0.05
LABELS = np.array([0, 1, 2, 1])


class Gate(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
    self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

  def forward(self, x):
    hidden = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.fc2(hidden))


def conv(before, after, size, stride=1):
  return nn.Conv2d(before, after, size, stride, size // 2, bias=False)


class Unit(nn.Module):
  """A block of the IR networks."""

  def __init__(self, before, after, stride, block, use_se):
    super().__init__()
    if before == after:
      self.shortcut_layer = nn.MaxPool2d(1, stride)
    else:
      self.shortcut_layer = nn.Sequential(
        conv(before, after, 1, stride), nn.BatchNorm2d(after)
      )
    inner = after // 4
    layers = {
      'adaface': lambda: [
        *(nn.BatchNorm2d(before), conv(before, after, 3)),
        *(nn.BatchNorm2d(after), nn.PReLU(after)),
        *(conv(after, after, 3, stride), nn.BatchNorm2d(after)),
      ],
      'curricularface': lambda: [
        *(nn.BatchNorm2d(before), conv(before, after, 3), nn.PReLU(after)),
        *(conv(after, after, 3, stride), nn.BatchNorm2d(after)),
      ],
      'adaface_bottleneck': lambda: [
        *(nn.BatchNorm2d(before), conv(before, inner, 1)),
        *(nn.BatchNorm2d(inner), nn.PReLU(inner), conv(inner, inner, 3)),
        *(nn.BatchNorm2d(inner), nn.PReLU(inner)),
        *(conv(inner, after, 1, stride), nn.BatchNorm2d(after)),
      ],
    }[block]()
    named = OrderedDict((str(i), layer) for i, layer in enumerate(layers))
    if use_se:
      named['5' if block == 'curricularface' else 'se_block'] = Gate(after)
    self.res_layer = nn.Sequential(named)

  def forward(self, x):
    return self.res_layer(x) + self.shortcut_layer(x)


class IR(nn.Module):
  def __init__(
    self, *, stages, width, embedding_dim, use_se, block, output_norm
  ):
    super().__init__()
    self.input_layer = nn.Sequential(
      conv(3, width, 3), nn.BatchNorm2d(width), nn.PReLU(width)
    )
    expansion = 4 if block == 'adaface_bottleneck' else 1
    units, before = [], width
    for i, count in enumerate(stages):
      after = expansion * width * 2**i
      for j in range(count):
        units.append(Unit(before, after, 1 if j else 2, block, use_se))
        before = after
    self.body = nn.Sequential(*units)
    self.output_layer = nn.Sequential(
      nn.BatchNorm2d(before),
      nn.Dropout(0.0),
      nn.Flatten(),
      nn.Linear(before * 49, embedding_dim),
      nn.BatchNorm1d(embedding_dim, affine=output_norm == 'affine'),
    )

  def forward(self, x):
    return self.output_layer(self.body(self.input_layer(x)))


def module_of(published):
  """Returns a project's module with the numbers of a file."""
  if interop.FAMILIES[published.family].scheme == 'ir':
    module = IR(**published.model)
  else:
    sizes = ('width', 'embedding_dim', 'use_se')
    sizes = {key: published.model[key] for key in sizes}
    module = make_network(published.name, **sizes)
  if published.family == 'magface':
    module.features.weight.requires_grad_(True)
    for layer in module.modules():
      if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.eps = 2e-5  # Its momentum, 0.9, moves running statistics alone.
  tensors = {
    key.removeprefix(published.prefix): torch.from_numpy(value)
    for key, value in published.state_dict.items()
  }
  # Counts are there under PyTorch's names, and none are drawn.
  counts = {k: v for k, v in module.state_dict().items() if 'num_batches' in k}
  module.load_state_dict(tensors | counts, strict=True)
  return module


def theirs(faces, family):
  """Returns what a project feeds its networks, NCHW."""
  # With channels last in memory, torch 2.13 dies in the backward pass.
  pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous().float()
  if family in ('adaface', 'magface'):
    pixels = pixels.flip(1)
  return pixels / 255 if family == 'magface' else (pixels - 127.5) / 127.5


def ours(faces):
  return (faces.astype(np.float32) - 127.5) / 127.5


@pytest.fixture(scope='module')
def compared(published, faces):
  """A module, and our functions, of the same network."""
  module = module_of(published)
  variables = interop.from_torch(published.state_dict)
  backbone = models.build(**interop.model_of(*variables))
  embed = jax.jit(lambda *args: backbone.apply(*args, train=False)[0])
  return module, variables, backbone, embed


def test_embeddings(compared, published, faces):
  module, variables, _, embed = compared
  module.eval()
  with torch.no_grad():
    wanted = module(theirs(faces, published.family)).numpy()
  found = np.asarray(embed(*variables, ours(faces)))
  assert wanted.std(0).min() > 0.03
  np.testing.assert_allclose(found, wanted, 0, 1e-4)
  golden = json.loads(GOLDEN.read_text())[published.kind]
  np.testing.assert_allclose(wanted, golden, 0, 1e-5)
  # Another order of colours, and another scale.
  for wrong in (
    embed(*variables, ours(faces)[..., ::-1]),
    embed(*variables, (ours(faces) + 1) / 2),
  ):
    assert np.abs(np.asarray(wrong) - wanted).max() > WRONG


def test_a_step_of_fine_tuning(compared, published, faces):
  module, (params, batch_stats), backbone, embed = compared
  centers = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
  centers /= np.linalg.norm(centers, axis=1, keepdims=True)

  module.train()
  before = {k: v.clone() for k, v in module.state_dict().items()}
  optimizer = torch.optim.SGD(module.parameters(), LR)
  embeddings = module(theirs(faces, published.family))
  cosines = nn.functional.normalize(embeddings) @ torch.from_numpy(centers).T
  loss = nn.functional.cross_entropy(SCALE * cosines, torch.from_numpy(LABELS))
  loss.backward()
  optimizer.step()
  # Copies, since the module gets its old values back below.
  after = {
    published.prefix + key: value.clone()
    for key, value in module.state_dict().items()
  }
  module.eval()
  with torch.no_grad():
    wanted = module(theirs(faces, published.family)).numpy()
  module.load_state_dict(before)

  @jax.jit
  def step(params, batch_stats, images):
    def loss_of(params):
      embeddings, moved = backbone.apply(
        params, batch_stats, images, train=True
      )
      norms = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
      logits = SCALE * (embeddings / norms) @ centers.T
      chosen = jax.nn.log_softmax(logits)[jnp.arange(4), LABELS]
      return -chosen.mean(), moved

    (loss, moved), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, jax.tree.map(lambda p, g: p - LR * g, params, grads), moved

  our_loss, our_params, our_stats = step(params, batch_stats, ours(faces))
  assert our_loss == pytest.approx(loss.item(), abs=1e-3)
  their_params, _ = interop.from_torch(after)
  moved = 0.0
  for path, found in jax.tree.leaves_with_path(our_params):
    wanted_leaf = their_params
    start = params
    for key in path:
      wanted_leaf, start = wanted_leaf[key.key], start[key.key]
    np.testing.assert_allclose(found, wanted_leaf, 0, 1e-3, err_msg=str(path))
    moved = max(moved, np.abs(found - start).max())
  assert moved > 0.005
  found = np.asarray(embed(our_params, our_stats, ours(faces)))
  np.testing.assert_allclose(found, wanted, 1e-3, 1e-3)
  still = np.asarray(embed(params, batch_stats, ours(faces)))
  assert np.abs(found - still).max() > 0.02


def test_files_that_the_projects_load(compared, published, tmp_path):
  module, variables, _, _ = compared
  family = interop.FAMILIES[published.family]
  state_dict = interop.to_torch(*variables, names=published.family)
  torch_files.write(tmp_path / 'a.pth', state_dict, {}, within=family.within)
  loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
  if family.within:
    assert list(loaded) == [family.within]
    loaded = loaded[family.within]
  bare = {k.removeprefix(published.prefix): v for k, v in loaded.items()}
  module.load_state_dict(bare, strict=True)
  for key, value in published.state_dict.items():
    assert np.array_equal(loaded[key].numpy(), value), key
  found = interop.identify(tmp_path / 'a.pth')
  assert found.family == published.family
