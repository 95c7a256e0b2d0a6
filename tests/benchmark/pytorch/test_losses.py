# SPDX-License-Identifier: Apache-2.0
"""PyTorch's losses equal ours, gradients included."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax import losses
from elasticface_jax.training.loss import MarginLoss

torch = pytest.importorskip('torch')
from elasticface_jax.benchmark.pytorch import losses as twin  # noqa: E402

B, C, D = 8, 9, 5
GROUP = 4
# Hyperparameters other than the defaults, where those would hide a term.
CHANGES = {'combined_margin': {'m1': 0.9, 'm2': 0.4, 'm3': 0.15}}
# Of the state before the step, which the update has to change visibly.
STATES = {
  'adaface': losses.AdaFaceState(2.0, 0.5),
  'curricularface': losses.CurricularFaceState(0.3),
}


def named(name, **changes):
  """The public loss `name` with its defaults, or other hyperparameters."""
  parameters = inspect.signature(getattr(losses, name)).parameters.values()
  arguments = {
    p.name: p.default for p in parameters if p.default is not p.empty
  }
  arguments |= CHANGES.get(name, {}) | changes
  scale, gradient = arguments.pop('scale'), arguments.pop('gradient', 'exact')
  return MarginLoss(name, scale, gradient, tuple(arguments.items()))


def draw(subcenters=1):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(B, D))
  centers = rng.normal(size=(C, subcenters * D))
  return embeddings, centers, rng.integers(C, size=B)


def compare(loss, ours, subcenters=1, margins=None):
  """Compares mean loss, gradients and running statistics with ours.

  ``ours(cosines, norms, labels)`` gives losses and the next state.
  """
  *leaves, labels = draw(subcenters)

  def objective(embeddings, centers):
    centers = centers.reshape(C, -1, D)
    cosines = losses.subcenter_cosines(embeddings, centers)
    found, state = ours(cosines, losses.norms(embeddings), labels)
    return found.mean(), state

  # Under jit: one compilation instead of one for each operation.
  compute = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
  with jax.enable_x64(True):
    (value, next_state), gradients = compute(*leaves)
  given = [torch.tensor(x, requires_grad=True) for x in leaves]
  if margins is None:
    margins = np.zeros(B)
  state = STATES[loss.name]._asdict() if loss.name in STATES else {}
  statistics = {
    n: torch.tensor(x, dtype=torch.float64) for n, x in state.items()
  }
  found = twin.mean_loss(
    *given,
    torch.from_numpy(labels),
    torch.from_numpy(margins),
    loss=loss,
    group_size=GROUP,
    statistics=statistics,
  )
  found.backward()
  # Our running statistics are float32.
  tolerance = 1e-6 if statistics else 1e-12
  for x, expected in zip(
    (found, *(leaf.grad for leaf in given)), (value, *gradients), strict=True
  ):
    expected = np.asarray(expected)
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(x.detach().numpy(), expected, 0, limit)
  if state:
    next_state = jax.tree.map(float, next_state)
    assert statistics == pytest.approx(next_state._asdict(), rel=1e-6)
    assert all(value != state[field] for field, value in statistics.items())


@pytest.mark.parametrize('subcenters', [1, 3])
@pytest.mark.parametrize(
  ('name', 'choices'),
  [
    ('normface', {}),
    ('arcface', {'gradient': 'exact'}),
    ('arcface', {'gradient': 'straight_through'}),
    ('cosface', {}),
    ('elastic_arcface', {'gradient': 'exact'}),
    ('elastic_arcface', {'gradient': 'straight_through'}),
    ('elastic_cosface', {}),
    ('elastic_arcface_plus', {'gradient': 'exact', 'pairing': 'paper'}),
    (
      'elastic_arcface_plus',
      {'gradient': 'straight_through', 'pairing': 'released'},
    ),
    ('elastic_cosface_plus', {'pairing': 'paper'}),
    ('elastic_cosface_plus', {'pairing': 'released'}),
  ],
)
def test_given_margins(name, choices, subcenters):
  rng = np.random.default_rng(1)
  margins = rng.normal(0.5, 0.05, size=B) if name != 'normface' else np.zeros(B)

  def ours(cosines, norms, labels):
    own = jnp.asarray(margins)
    if rule := choices.get('pairing'):
      target = cosines[jnp.arange(B), labels]
      groups = np.arange(B).reshape(-1, GROUP)
      own = jnp.concatenate(
        [losses.pair_margins(own[g], target[g], rule=rule) for g in groups]
      )
    if 'arcface' in name:
      logits = losses.arcface_logits(
        cosines, labels, own, gradient=choices['gradient']
      )
    else:
      logits = losses.cosface_logits(cosines, labels, own)
    return -jax.nn.log_softmax(logits)[jnp.arange(B), labels], ()

  compare(named(name, **choices), ours, subcenters, margins)


@pytest.mark.parametrize('gradient', ['exact', 'straight_through'])
@pytest.mark.parametrize(
  'name', ['combined_margin', 'sphereface', 'x2_softmax']
)
def test_margins_of_other_forms(name, gradient):
  loss = getattr(losses, name)
  changes = CHANGES.get(name, {})
  compare(
    named(name, gradient=gradient),
    lambda cosines, norms, labels: (
      loss(cosines, labels, gradient=gradient, **changes),
      (),
    ),
  )


def test_magface_has_its_regularizer():
  # The norms of the draw, about 2, lie between these.
  limits = {'lower_norm': 1.5, 'upper_norm': 2.5}
  compare(
    named('magface', **limits),
    lambda cosines, norms, labels: (
      sum(losses.magface(cosines, labels, norms, **limits)),
      (),
    ),
  )


@pytest.mark.parametrize('name', STATES)
def test_running_statistics_are_updated(name):
  def ours(cosines, norms, labels):
    norms = (norms,) if name == 'adaface' else ()
    state = jax.tree.map(jnp.float32, STATES[name])
    return getattr(losses, name)(cosines, labels, *norms, state)

  compare(named(name), ours)


def test_statistics_start_as_ours():
  assert twin.init_statistics(named('adaface'), 'cpu') == {
    'mean': 20.0,
    'std': 100.0,
  }
  assert twin.init_statistics(named('curricularface'), 'cpu') == {'t': 0.0}
  assert twin.init_statistics(named('magface'), 'cpu') == {}


def test_arccos_of_all_cosines_is_arcface():
  embeddings, centers, labels = (torch.from_numpy(x) for x in draw())
  found = twin.arcface_acos_of_all(
    embeddings, centers, labels, margin=0.5, scale=64.0
  )
  expected = twin.mean_loss(
    *(embeddings, centers, labels, torch.full((B,), 0.5)),
    loss=named('arcface'),
    group_size=B,
  )
  assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_margins_are_drawn():
  def drawn(name, **changes):
    return twin.draw_margins(named(name, **changes), (20_000,), 'cpu').numpy()

  torch.manual_seed(0)
  margins = drawn('elastic_arcface', margin_std=0.05)
  # Five standard errors.
  assert abs(margins.mean() - 0.5) < 5 * 0.05 / 20_000**0.5
  assert abs(margins.std() - 0.05) < 5 * 0.05 / 40_000**0.5
  clipped = drawn(
    'elastic_cosface_plus', margin=0.5, margin_std=0.05, clip=(-1.0, 0.5)
  )
  assert 0.45 <= clipped.min() < 0.4505 and 0.5245 < clipped.max() <= 0.525
  assert set(drawn('elastic_arcface', margin_std=0.0)) == {0.5}
  assert set(drawn('arcface')) == {0.5}
  assert set(drawn('normface')) == {0.0}
