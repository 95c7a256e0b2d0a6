# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT, compared with modules of PyTorch."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from elasticface_jax import interop

from . import small_networks as small

torch = pytest.importorskip('torch')

from . import torch_twins  # noqa: E402

GOLDEN = Path(__file__).parent / 'golden' / 'networks.npz'
KEY = 3


def twin(name, tensors):
  """Makes the module, in float64, and loads its own names."""
  if name == 'mobilefacenet':
    made = torch_twins.MobileFaceNet(small.WIDTH, small.DIM, small.BLOCKS)
  else:
    made = torch_twins.ViT(small.DEPTH, 4 * small.WIDTH, small.DIM)
  made = made.double()
  assert list(made.state_dict()) == list(tensors)
  made.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
  return made


def pixels():
  return torch.tensor(small.images()).permute(0, 3, 1, 2)


def forward(name, network, key):
  """Embeds the images in training, with our draws."""
  if name == 'mobilefacenet':
    return network(pixels())
  return network(pixels(), *map(torch.tensor, small.draws(key)))


def numbers(name):
  """Returns what the golden file holds of a network."""
  network = twin(name, small.state_dict(name))
  evaluated = network.eval()(pixels()).detach().numpy()
  network.train()
  embeddings = forward(name, network, jax.random.key(KEY))
  (embeddings * torch.tensor(small.directions())).sum().backward()
  gradients = {k: p.grad.numpy() for k, p in network.named_parameters()}
  running = {k: v.numpy() for k, v in network.named_buffers() if 'running' in k}
  return evaluated, embeddings.detach().numpy(), gradients, running


@pytest.fixture(scope='module', params=small.NAMES)
def name(request):
  return request.param


def test_embeddings_in_evaluation(name):
  expected = numbers(name)[0]
  np.testing.assert_allclose(small.in_evaluation(name), expected, atol=1e-4)


def test_embeddings_gradients_and_statistics_in_training(name):
  _, embeddings, gradients, running = numbers(name)
  found, tensors = small.in_training(
    name, small.state_dict(name), jax.random.key(KEY), small.directions()
  )
  np.testing.assert_allclose(found, embeddings, atol=1e-9)
  # What BatchNorm takes away again has a gradient of 0, but for rounding.
  largest = max(np.abs(g).max() for g in gradients.values())
  for key, expected in (gradients | running).items():
    np.testing.assert_allclose(
      tensors[key], expected, rtol=1e-8, atol=1e-10 * largest, err_msg=key
    )


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_ten_steps(name, optimizer):
  tensors = small.state_dict(name)
  network = twin(name, tensors)
  kinds = {
    'sgd': (
      optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, 0.9)),
      lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, weight_decay=5e-4),
    ),
    'adamw': (
      optax.adamw(1e-3, weight_decay=0.1),
      lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
    ),
  }
  ours, theirs = kinds[optimizer]
  theirs = theirs(network.parameters())
  targets = small.directions()
  with small.few_layers(), jax.enable_x64(True):
    params, stats = jax.tree.map(np.array, interop.from_torch(tensors))
    state = ours.init(params)
    for step in range(10):
      key = jax.random.fold_in(jax.random.key(KEY), step)
      theirs.zero_grad()
      embeddings = forward(name, network.train(), key)
      # Of half the squared distance to the targets, taken as constant.
      by = embeddings.detach() - torch.tensor(targets)
      (embeddings * by).sum().backward()
      theirs.step()
      (_, (found, stats)), gradient = small.gradients()[name](
        params, stats, small.images(), by.numpy(), key
      )
      np.testing.assert_allclose(found, embeddings.detach(), atol=1e-6)
      updates, state = ours.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    reached = interop.to_torch(params, stats)
  for key, value in network.state_dict().items():
    if not key.endswith('num_batches_tracked'):
      np.testing.assert_allclose(reached[key], value, atol=1e-6, err_msg=key)
  assert any(np.abs(reached[k] - tensors[k]).max() > 1e-3 for k in tensors)


def test_the_golden_numbers_are_those_of_pytorch(name):
  golden = np.load(GOLDEN)
  for key, value in summary(name).items():
    np.testing.assert_allclose(golden[key], value, rtol=1e-9, err_msg=key)


def summary(name):
  """Returns what the golden file holds of a network: `np.savez` wrote it."""
  evaluated, embeddings, gradients, running = numbers(name)
  arrays = gradients | running
  return {
    f'{name}.evaluated': evaluated,
    f'{name}.embeddings': embeddings,
    f'{name}.norms': np.array(
      [np.linalg.norm(arrays[k]) for k in small.trained(arrays)]
    ),
  }
