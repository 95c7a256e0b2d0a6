# SPDX-License-Identifier: Apache-2.0
"""PyTorch's step equals ours: two of each, from the same state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elasticface_jax import interop, losses, models
from elasticface_jax.benchmark.pytorch import network as torch_network
from elasticface_jax.benchmark.pytorch import step as torch_step
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import make_task
from elasticface_jax.errors import InputError
from elasticface_jax.training import augment, state

torch = pytest.importorskip('torch')

RECIPE = Recipe(
  model={
    'name': 'iresnet10',
    'width': 16,
    'embedding_dim': 16,
    'use_se': True,
    'dtype': 'float64',
  },
  batch_size=8,
  group_size=8,
  num_classes=30,
  num_blocks=4,
)
NARROW = RECIPE.model | {'use_se': False, 'dtype': 'float32'}
TINY = dataclasses.replace(RECIPE, model=NARROW)


@pytest.fixture(autouse=True)
def same_draws():
  torch.manual_seed(0)


def load(step, ours):
  """Copies our state into PyTorch's step."""
  state_dict = interop.to_torch(ours.params, ours.batch_stats)
  given = {n: torch.from_numpy(v.copy()) for n, v in state_dict.items()}
  step.network.load_state_dict(given, strict=True)
  with torch.no_grad():
    step.class_centers.copy_(torch.from_numpy(centers_of(ours.class_centers)))


def centers_of(blocks):
  return np.array(blocks).reshape(-1, blocks.shape[-1])[: RECIPE.num_classes]


def momentum_of(step, parameter):
  return step.optimizer.state[parameter]['momentum_buffer']


class Ours:
  """Our step, assembled as by the trainer."""

  def __init__(self, recipe):
    self._task = make_task(recipe, state.make_mesh(1))
    self.put = self._task.layout.put
    self.loss = self._task.loss
    self.state = self._task.init(state.make_keys(0)['init'])
    # Class centres are drawn in float32.
    float64 = lambda x: x.astype(float) if x.dtype == jnp.float32 else x
    self.state = jax.tree.map(float64, self.state)

  def __call__(self, images, labels):
    batch = map(self.put, (images, labels))
    keys = state.make_keys(0)
    self.state, measured = self._task.step(self.state, *batch, keys)
    return measured

  def drawn(self, step, count, flip):
    """Returns the flips and the margins before pairing of one step."""
    keys = state.make_keys(0)
    fold = lambda name: jax.random.fold_in(keys[name], step)
    flipped = augment.draw(fold('augment'), count, flip=flip)['flip']
    values = dict(self.loss.hyperparameters)
    margins = losses.sample_margins(
      fold('margins'),
      (count,),
      mean=values['margin'],
      std=values.get('margin_std', 0.0),
    )
    return [torch.from_numpy(np.array(x)) for x in (flipped, margins)]


def close(found, expected, tolerance, *, least=0.0):
  """Compares arrays relative to their largest value, or to `least`."""
  expected = np.asarray(expected)
  limit = tolerance * max(np.abs(expected).max(), least)
  np.testing.assert_allclose(found.detach().numpy(), expected, 0, limit)


def test_is_our_step():
  with jax.enable_x64(True):
    ours = Ours(RECIPE)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(8, 112, 112, 3), dtype=np.uint8)
    labels = rng.integers(30, size=8, dtype=np.int32)
    step = torch_step.Step(RECIPE, 'cpu', channels_last=True)
    load(step, ours.state)
    step.images.copy_(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    step.labels.copy_(torch.from_numpy(labels))
    parameters = dict(step.network.named_parameters())
    # The first step has no momentum yet.
    for number in range(2):
      drawn = ours.drawn(number, 8, RECIPE.flip)
      loss = step.descend(step.objective, step.images, step.labels, *drawn)
      measured = ours(images, labels)
      # Else the clip would do nothing.
      assert measured['backbone_gradient_norm'] > 5
      # Our pixels and learning rate are float32, all else is float64.
      close(loss, measured['loss'], 1e-6)
      batch_stats = ours.state.batch_stats
      expected = interop.to_torch(
        ours.state.params, batch_stats, num_batches_tracked=number + 1
      )
      for name, value in step.network.state_dict().items():
        close(value, expected[name], 1e-6, least=1e-6)
      (trace,) = optax.tree.get_all_with_path(ours.state.backbone_opt, 'trace')
      expected = interop.to_torch(trace[1], batch_stats)
      for name in parameters.keys() - {'features.weight'}:
        # The gradient of a bias before a BatchNorm is 0 except for rounding.
        momentum = momentum_of(step, parameters[name])
        close(momentum, expected[name], 1e-6, least=1e-3)
      close(step.class_centers, centers_of(ours.state.class_centers), 1e-6)
      (trace,) = optax.tree.get_all_with_path(ours.state.head_opt, 'trace')
      close(momentum_of(step, step.class_centers), centers_of(trace[1]), 1e-6)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 1e-5), ('bfloat16', 0.03)]
)
def test_in_other_precisions(dtype, tolerance, remat):
  made = []
  for model in (
    NARROW | {'dtype': 'float64'},
    NARROW | {'dtype': dtype, 'remat': remat},
  ):
    recipe = dataclasses.replace(RECIPE, model=model)
    made.append(torch_step.Step(recipe, 'cpu', channels_last=True))
  wide, narrow = made
  narrow.network.load_state_dict(wide.network.state_dict())
  with torch.no_grad():
    narrow.class_centers.copy_(wide.class_centers)
  batch = wide.images, wide.labels, *wide.draw()
  losses_of = [float(step.descend(step.objective, *batch)) for step in made]
  assert losses_of[1] == pytest.approx(losses_of[0], rel=tolerance)
  for p in narrow.network.parameters():
    assert p.dtype == torch.float32
  found, expected = (step.network.fc.weight.grad for step in made)
  error = (found - expected).norm() / expected.norm()
  assert error < 30 * tolerance


@pytest.mark.parametrize(
  'name',
  [
    'iresnet10',
    'iresnet18',
    'iresnet34',
    'iresnet50',
    'iresnet100',
    'iresnet200',
  ],
)
def test_every_depth_has_our_shapes(name):
  backbone = models.build(name, use_se=True)
  key = jax.eval_shape(lambda: jax.random.key(0))
  ours = jax.eval_shape(backbone.init, key)
  with torch.device('meta'):
    network = torch_network.make_network(name, use_se=True)
  sizes = lambda tree: sorted(leaf.size for leaf in jax.tree.leaves(tree))
  trained = [p for p in network.parameters() if p.requires_grad]
  assert sizes(ours[0]) == sorted(p.numel() for p in trained)
  kept = [b for n, b in network.named_buffers() if 'num_batches' not in n]
  assert sizes(ours[1]) == sorted(b.numel() for b in kept)


@pytest.fixture
def quick_compiler(monkeypatch):
  """Replaces the compiler by tracing alone."""
  compiler = torch.compile

  def compile(function, *, mode, **flags):
    assert mode == 'default'
    return compiler(function, backend='aot_eager', **flags)

  monkeypatch.setattr(torch, 'compile', compile)


def test_every_variant_runs_steps(quick_compiler):
  variants = torch_step.make_variants(TINY, 'cpu')
  assert list(variants) == ['torch', 'torch channels_last', 'torch compiled']
  for run_step in variants.values():
    step = getattr(run_step, 'func', run_step)
    before = step.network.conv1.weight.clone(), step.class_centers.clone()
    run_step()
    for old, new in zip(
      before, (step.network.conv1.weight, step.class_centers), strict=True
    ):
      assert not torch.equal(old, new)
    assert torch_step.peak_memory(run_step, 'cpu') is None
  layouts = [
    getattr(run_step, 'func', run_step).network.conv1.weight.is_contiguous(
      memory_format=torch.channels_last
    )
    for run_step in variants.values()
  ]
  assert layouts == [False, True, True]


def test_a_variant_alone(quick_compiler):
  for name in torch_step.names_of('cpu'):
    assert list(torch_step.make_variants(TINY, 'cpu', [name])) == [name]
  assert torch_step.names_of('cuda') == (
    'torch channels_last',
    'torch compiled',
    'torch cudagraphs',
    'torch max-autotune',
  )


def test_a_graph_that_cannot_be_recorded_is_left_out(monkeypatch, capsys):
  calls = []

  def compile(function, **flags):
    def record(*inputs):
      calls.append(0)
      if len(calls) == 2:
        raise RuntimeError('operation not permitted when stream is capturing')
      return function(*inputs)

    return record

  monkeypatch.setattr(torch, 'compile', compile)
  assert not torch_step.make_variants(TINY, 'cpu', ['torch compiled'])
  assert 'left out: torch compiled, as operation not' in capsys.readouterr().out


def test_narrow_networks_crash_oneDNN(capsys):
  model = NARROW | {'width': 8}
  recipe = dataclasses.replace(TINY, model=model)
  assert list(torch_step.make_variants(recipe, 'cpu')) == ['torch']
  assert 'fewer than 16 channels' in capsys.readouterr().out


def test_without_a_compiler(monkeypatch, capsys):
  def compile(function, **flags):
    def fail(*inputs):
      raise RuntimeError('no g++\nhere')

    return fail

  monkeypatch.setattr(torch, 'compile', compile)
  variants = torch_step.make_variants(TINY, 'cpu')
  assert list(variants) == ['torch', 'torch channels_last']
  assert capsys.readouterr().out == 'left out: torch compiled, as no g++\n'


def test_what_is_not_written_in_pytorch_is_refused():
  with pytest.raises(InputError, match='head.sample_rate=0.1'):
    torch_step.make_variants(dataclasses.replace(TINY, sample_rate=0.1), 'cpu')
  augmented = dict(TINY.augment, crop=0.2, blur=0.1)
  with pytest.raises(InputError, match=r'^augment.crop=0.2 and augment.blur=0'):
    torch_step.make_variants(
      dataclasses.replace(TINY, augment=augmented), 'cpu'
    )
