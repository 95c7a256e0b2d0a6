# SPDX-License-Identifier: Apache-2.0
"""Networks of published sizes, compared with PyTorch, gradients included.

PyTorch's network is that of `benchmark.pytorch`, written from the paper.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.interop import torch_files

torch = pytest.importorskip('torch')

SIZES = ['iresnet18', 'iresnet34', 'iresnet50', 'iresnet100']


def make(name, use_se, seed=0):
  """Makes a network whose values are as large as those of a trained one."""
  torch.manual_seed(seed)
  network = make_network(name, use_se=use_se)
  norms = [
    m
    for m in network.modules()
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
  ]
  with torch.no_grad():
    for module in norms:
      if module.weight.requires_grad:
        module.weight.uniform_(0.5, 1.5)
      module.bias.normal_(0, 0.2)
      module.momentum = None  # Statistics of this batch alone.
    for module in network.modules():
      if isinstance(module, torch.nn.PReLU):
        module.weight.uniform_(0, 0.5)
    network(torch.rand(8, 3, 112, 112) * 2 - 1)
  for module in norms:
    module.momentum = 0.1
  return network


def images_of(count, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (count, 112, 112, 3)).astype(np.float32)


def nchw(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.slow
@pytest.mark.parametrize('use_se', [False, True], ids=['plain', 'se'])
@pytest.mark.parametrize('name', SIZES)
def test_evaluation_and_training(name, use_se, tmp_path):
  network = make(name, use_se)
  path = tmp_path / '295672backbone.pth'
  torch.save({f'module.{k}': v for k, v in network.state_dict().items()}, path)
  params, batch_stats = interop.from_torch(path)
  backbone = models.build(**interop.model_of(params))
  assert backbone.name == name
  images = images_of(4)

  network.eval()
  with torch.no_grad():
    expected = network(nchw(images)).numpy()
  apply = jax.jit(lambda *given: backbone.apply(*given, train=False)[0])
  found = apply(params, batch_stats, images)
  gap = float(np.abs(found - expected).max())
  print(f'{name} se={use_se}: evaluation {gap:.2g} of {np.abs(expected).max()}')
  np.testing.assert_allclose(found, expected, 0, 1e-4)

  direction = np.random.default_rng(2).normal(size=expected.shape)
  direction = direction.astype(np.float32)

  @jax.jit
  def train(params, batch_stats, images):
    def objective(params):
      embeddings, stats = backbone.apply(
        params, batch_stats, images, train=True
      )
      return (embeddings * direction).mean(), (embeddings, stats)

    return jax.value_and_grad(objective, has_aux=True)(params)

  (_, (found, stats)), gradients = train(params, batch_stats, images)
  network.train()
  before = copy.deepcopy(network.state_dict())
  embeddings = network(nchw(images))
  (embeddings * torch.from_numpy(direction)).mean().backward()
  expected = embeddings.detach().numpy()
  print(f'  training {float(np.abs(found - expected).max()):.2g}')
  np.testing.assert_allclose(found, expected, 0, 1e-3)

  mine = interop.to_torch(params, stats)
  moved = 0
  for key, value in network.state_dict().items():
    if 'running' in key:
      theirs = value.numpy()
      limit = 1e-4 * max(1, np.abs(theirs).max())
      np.testing.assert_allclose(mine[key], theirs, 0, limit, err_msg=key)
      moved += not torch.equal(value, before[key])
  assert moved == sum('running' in key for key in before)

  # Our parameters are PyTorch's parameters with a gradient.
  mine = interop.to_torch(gradients, batch_stats)
  squares = [0.0, 0.0]
  for key, parameter in network.named_parameters():
    if key != 'features.weight':
      squares[0] += float(np.square(mine[key], dtype=float).sum())
      squares[1] += float(parameter.grad.double().square().sum())
  found, expected = np.sqrt(squares)
  print(f'  gradient norm {found:.6g}, {found / expected - 1:.2g} off')
  assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('use_se', [False, True], ids=['plain', 'se'])
def test_round_trip_and_strict_loading(use_se, tmp_path):
  network = make('iresnet18', use_se)
  optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
  network(nchw(images_of(2))).sum().backward()
  optimizer.step()
  path = tmp_path / 'checkpoint.pt'
  checkpoint = {
    'epoch': 2,
    'state_dict_backbone': network.state_dict(),
    'state_dict_softmax_fc': {'weight': torch.randn(5, 512)},
    'state_optimizer': optimizer.state_dict(),
  }
  torch.save(checkpoint, path)
  again = interop.to_torch(
    *interop.from_torch(path),
    num_batches_tracked=interop.num_batches_tracked(path),
  )
  np.testing.assert_array_equal(
    interop.head_from_torch(path),
    checkpoint['state_dict_softmax_fc']['weight'].numpy(),
  )
  before = network.state_dict()
  assert list(again) == list(before)
  for key, value in before.items():
    assert again[key].tobytes() == value.numpy().tobytes(), key
  # Tensors, on whatever device, do as well as a file.
  params, _ = interop.from_torch(network.state_dict())
  np.testing.assert_array_equal(
    params['conv1']['kernel'][..., 3],
    before['conv1.weight'][3].permute(1, 2, 0).numpy(),
  )

  torch_files.write(tmp_path / 'ours.pth', again, {'made': 'here'})
  other = make('iresnet18', use_se, seed=9)
  other.load_state_dict(
    torch.load(tmp_path / 'ours.pth', weights_only=True), strict=True
  )
  for key, value in other.state_dict().items():
    assert torch.equal(value, before[key]), key


class Wrapper(torch.nn.Module):
  """A network with modules of its own, called as those of the backbone."""

  def __init__(self, backbone):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(3, 64, 3)
    self.bn1 = torch.nn.BatchNorm2d(64)
    self.prelu = torch.nn.PReLU(64)
    self.features = torch.nn.BatchNorm1d(512)
    self.fc = torch.nn.Linear(512, 5)
    self.register_buffer('t', torch.zeros(1))
    for value in self.state_dict().values():
      value.data.add_(3)
    self.backbone = backbone


WRAPS = {
  'module.': torch.nn.DataParallel,
  '_orig_mod.': torch.compile,
  'module._orig_mod.': lambda net: torch.nn.DataParallel(torch.compile(net)),
  'backbone.': Wrapper,
  '_orig_mod.backbone.': lambda net: torch.compile(Wrapper(net)),
  'module.backbone.': lambda net: torch.optim.swa_utils.AveragedModel(
    Wrapper(net)
  ),
}


# The compiler is only imported; it uses parts of torch that torch deprecates.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_wrapped_networks(tmp_path):
  network = make('iresnet18', False)
  path = tmp_path / 'wrapped.pt'
  for prefix, wrap in WRAPS.items():
    wrapped = wrap(copy.deepcopy(network))
    own = wrapped.state_dict()
    expected = {
      key.removeprefix(prefix): value.numpy()
      for key, value in own.items()
      if key.startswith(prefix)
    }
    torch.save({'state_dict': own, 'hyper_parameters': {'lr': 0.1}}, path)
    found = interop.to_torch(
      *interop.from_torch(path),
      num_batches_tracked=interop.num_batches_tracked(path),
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      assert found[key].tobytes() == value.tobytes(), (prefix, key)
    outer = [f'state_dict.{k}' for k in own if not k.startswith(prefix)]
    assert interop.left_aside(path) == outer
    if 'backbone' in prefix:
      assert interop.head_from_torch(path).shape == (5, 512)


def test_bfloat16_weights_become_float32():
  network = make('iresnet18', False).bfloat16()
  params, _ = interop.from_torch(network.state_dict())
  assert params['fc']['kernel'].dtype == jnp.float32
  expected = network.bn2.weight.float().detach().numpy()
  np.testing.assert_array_equal(params['bn2']['scale'], expected)
