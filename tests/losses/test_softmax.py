# SPDX-License-Identifier: Apache-2.0
"""The named losses against NumPy in float64, from the formulas.

The reference takes the arccos, adds the margin, takes the cosine, forms the
softmax and differentiates by hand:

  d loss / d cosine_j = s p_j                          for j other than y,
  d loss / d cosine_y = -s (1 - p_y) sin(t + m) / sin(t)  (arc), or times 1.

In float64 the two agree element by element. In float32 the target's own cosine
is good to one ulp of 1, 2**-23, which the scale turns into 7.6e-6 of the logit
at 64; so there each loss and each row of the gradient agrees to the relative
error ``1e-6 + s * 2**-23``, and the batch as a whole to 1e-6 of its largest
value.
"""

import functools
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elasticface_jax
from elasticface_jax import losses

# The loss, its kind, its mean margin, its spread.
ELASTIC = {
  'elastic_arcface': ('arc', 0.5, 0.05),
  'elastic_cosface': ('cos', 0.35, 0.05),
  'elastic_arcface_plus': ('arc', 0.5, 0.0175),
  'elastic_cosface_plus': ('cos', 0.35, 0.025),
}
PARENT = {'arc': losses.arcface, 'cos': losses.cosface}
NAMED = ['normface', 'arcface', 'cosface', *ELASTIC]


def call(name, cosines, labels, seed=0, **kwargs):
  if name in ELASTIC:
    kwargs['key'] = jax.random.key(seed)
  return getattr(losses, name)(cosines, labels, **kwargs)


def reference(cosines, labels, margins, scale, kind):
  """Loss ``[B]`` and its gradient ``[B, C]``, in float64."""
  c = np.array(cosines, np.float64)
  rows = np.arange(len(c))
  target = c[rows, labels]
  if kind == 'arc':
    theta = np.arccos(target)
    changed = np.cos(theta + margins)
    slope = np.sin(theta + margins) / np.sin(theta)
  else:
    changed = target - margins
    slope = np.ones_like(target)
  logits = scale * c
  logits[rows, labels] = scale * changed
  top = logits.max(axis=1, keepdims=True)
  weights = np.exp(logits - top)
  p = weights / weights.sum(axis=1, keepdims=True)
  others = p.copy()
  others[rows, labels] = 0
  missed = others.sum(axis=1)  # 1 - p_y, with all its digits.
  loss = top[:, 0] - logits[rows, labels] + np.log(weights.sum(axis=1))
  loss = np.where(missed < 0.5, -np.log1p(-np.minimum(missed, 0.5)), loss)
  gradient = scale * others
  gradient[rows, labels] = -scale * missed * slope
  return loss, gradient


def batch(size=32, classes=20, kind='uniform', seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  if kind == 'uniform':
    cosines = rng.uniform(-0.99, 0.99, (size, classes))
  else:  # 'trained': other centres near a right angle, losses near 1 too.
    cosines = rng.normal(0, 0.1, (size, classes))
    cosines[np.arange(size), labels] = rng.uniform(0.3, 0.95, size)
  # Both precisions get the same numbers.
  return cosines.astype(np.float32), labels


def value_and_gradient(loss, cosines):
  values, pullback = jax.vjp(loss, cosines)
  (gradient,) = pullback(jnp.ones_like(values))
  assert values.dtype == gradient.dtype == cosines.dtype
  return values, gradient


@functools.partial(jax.jit, static_argnames='name')
def compiled(name, cosines, labels, **options):
  """Loss and gradient; one program serves all scales and margins."""
  loss = functools.partial(call, name, labels=labels, **options)
  return value_and_gradient(loss, cosines)


CASES = [
  (1, 2, 'uniform'),
  (32, 20, 'uniform'),
  (32, 20, 'trained'),
]


def test_the_reference_gradient_is_the_slope_of_the_reference():
  cosines, labels = batch(6, 5)
  cosines, step = cosines.astype(np.float64), 1e-6
  for kind in ('arc', 'cos'):
    _, gradient = reference(cosines, labels, 0.4, 8.0, kind)
    for j in range(5):
      nudge = step * (np.arange(5) == j)
      up, _ = reference(cosines + nudge, labels, 0.4, 8.0, kind)
      down, _ = reference(cosines - nudge, labels, 0.4, 8.0, kind)
      np.testing.assert_allclose(
        (up - down) / (2 * step), gradient[:, j], rtol=1e-6, atol=1e-7
      )


@pytest.mark.parametrize('scale', [64.0, 30.0])
@pytest.mark.parametrize('size, classes, shape', CASES)
@pytest.mark.parametrize('name', ['arcface', 'cosface'])
def test_float64_agrees_element_by_element(name, size, classes, shape, scale):
  cosines, labels = batch(size, classes, shape)
  margin = np.random.default_rng(1).normal(0.5, 0.05, size)
  want, want_gradient = reference(cosines, labels, margin, scale, name[:3])
  with jax.enable_x64(True):
    got, gradient = compiled(
      name, cosines.astype(np.float64), labels, margin=margin, scale=scale
    )
  np.testing.assert_allclose(got, want, rtol=1e-11, atol=0)
  np.testing.assert_allclose(gradient, want_gradient, rtol=1e-11, atol=0)


@pytest.mark.parametrize('scale', [64.0, 30.0])
@pytest.mark.parametrize('size, classes, shape', CASES)
@pytest.mark.parametrize('name', ['arcface', 'cosface'])
def test_float32_agrees_to_rounding(name, size, classes, shape, scale):
  cosines, labels = batch(size, classes, shape)
  margin = np.float32(np.random.default_rng(1).normal(0.5, 0.05, size))
  want, want_gradient = reference(cosines, labels, margin, scale, name[:3])
  got, gradient = compiled(name, cosines, labels, margin=margin, scale=scale)
  relative = 1e-6 + scale * 2**-23
  # Below this float32 has no digits left to agree in.
  tiny = 1e-37
  np.testing.assert_allclose(got, want, rtol=relative, atol=tiny)
  assert np.all(np.abs(got - want) <= 1e-6 * want.max() + tiny)
  row = np.abs(want_gradient).max(axis=1, keepdims=True)
  error = np.abs(gradient - want_gradient)
  assert np.all(error <= relative * row + tiny)
  assert np.all(error <= 1e-6 * row.max() + tiny)


@pytest.mark.parametrize('name', ELASTIC)
def test_elastic_losses_use_the_margins_of_their_key(name):
  kind, margin, margin_std = ELASTIC[name]
  cosines, labels = batch()
  margins = losses.sample_margins(
    jax.random.key(7), (32,), mean=margin, std=margin_std
  )
  if name.endswith('plus'):
    margins = losses.pair_margins(margins, cosines[np.arange(32), labels])
  want, _ = reference(cosines, labels, np.float64(margins), 64, kind)
  np.testing.assert_allclose(
    call(name, cosines, labels, 7), want, rtol=1e-6, atol=1e-5
  )
  with jax.enable_x64(True):
    got = call(name, cosines.astype(np.float64), labels, 7)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.parametrize(
  'name', ['elastic_arcface_plus', 'elastic_cosface_plus']
)
def test_released_pairing_reaches_the_loss(name):
  kind, margin, margin_std = ELASTIC[name]
  cosines, labels = batch()
  margins = losses.pair_margins(
    losses.sample_margins(
      jax.random.key(7), (32,), mean=margin, std=margin_std
    ),
    cosines[np.arange(32), labels],
    rule='released',
  )
  want = PARENT[kind](cosines, labels, margin=margins)
  got = call(name, cosines, labels, 7, pairing='released')
  np.testing.assert_array_equal(got, want)
  assert np.any(got != call(name, cosines, labels, 7))


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('name', ELASTIC)
def test_no_spread_gives_the_parent_bit_for_bit(name, wide):
  cosines, labels = batch()
  with jax.enable_x64(wide):
    cosines = cosines.astype(np.float64 if wide else np.float32)
    for transform in (lambda f: f, jax.jit):
      want = transform(PARENT[ELASTIC[name][0]])(cosines, labels)
      loss = functools.partial(call, name, margin_std=0.0)
      got = transform(loss)(cosines, labels)
      assert got.dtype == cosines.dtype
      np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
def test_no_margin_gives_normface_bit_for_bit(transform):
  cosines, labels = batch()
  run = lambda loss: value_and_gradient(
    transform(functools.partial(loss, labels=labels)), jnp.asarray(cosines)
  )
  want = run(losses.normface)
  for parent in PARENT.values():
    got = run(functools.partial(parent, margin=0.0))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
  logits = 64 * cosines.astype(np.float64)
  total = np.log(np.exp(logits).sum(axis=1))
  by_hand = total - logits[np.arange(32), labels]
  np.testing.assert_allclose(want[0], by_hand, rtol=1e-6, atol=1e-6)


def test_two_classes_by_hand():
  cosines, labels = jnp.array([[0.6, 0.0], [0.8, 0.6]]), jnp.array([0, 1])
  np.testing.assert_allclose(
    losses.normface(cosines, labels, scale=5.0),
    [math.log1p(math.exp(-3)), math.log1p(math.exp(1))],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    losses.cosface(cosines, labels, margin=0.2, scale=5.0),
    [math.log1p(math.exp(-2)), math.log1p(math.exp(2))],
    rtol=1e-6,
  )
  # cos(arccos .6 + m) = .6 cos m - .8 sin m
  target = 0.6 * math.cos(0.5) - 0.8 * math.sin(0.5)
  np.testing.assert_allclose(
    losses.arcface(cosines, labels, scale=5.0),
    [math.log1p(math.exp(-5 * target)), math.log1p(math.exp(4 - 5 * target))],
    rtol=1e-6,
  )


def test_small_losses_keep_their_digits():
  # Logits 32 and -8: the loss is e**-40, which 1 - p in float32 says is 0.
  got, gradient = compiled(
    'normface', jnp.array([[0.5, -0.125]]), jnp.array([0])
  )
  np.testing.assert_allclose(got, math.exp(-40), rtol=1e-6)
  np.testing.assert_allclose(
    gradient, 64 * math.exp(-40) * np.array([[-1, 1]]), rtol=1e-6
  )


@pytest.mark.parametrize('name', NAMED)
def test_nothing_overflows(name):
  cosines = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
  labels = jnp.array([0, 0, 0])
  for scale in (64.0, 1000.0):
    got, gradient = compiled(name, cosines, labels, scale=scale)
    assert np.all(np.isfinite(got)) and np.all(np.isfinite(gradient))
    assert scale < got[1] < 4 * scale


@pytest.mark.parametrize('name', NAMED)
def test_one_class_costs_nothing(name):
  cosines = jnp.array([[0.3], [1.0], [-1.0]])
  got, gradient = compiled(name, cosines, jnp.zeros(3, int))
  np.testing.assert_array_equal(got, np.zeros(3))
  np.testing.assert_array_equal(gradient, np.zeros((3, 1)))


@pytest.mark.parametrize('name', NAMED)
def test_finite_through_cosines_of_aligned_opposed_and_zero_vectors(name):
  centers = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
  embeddings = np.stack(
    [centers[0], -centers[1], 1e30 * centers[2], 0 * centers[3], centers[0]]
  )
  labels = np.array([0, 1, 2, 3, 0])
  objective = lambda x, w: call(name, losses.cosines(x, w), labels).sum()
  value, gradients = jax.jit(jax.value_and_grad(objective, (0, 1)))(
    embeddings, centers
  )
  assert np.isfinite(value)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradients[0][3], np.zeros(7))


@pytest.mark.parametrize('name', ['arcface', *list(ELASTIC)[::2]])
def test_straight_through_keeps_the_loss_and_drops_the_slope(name):
  cosines, labels = batch()
  results = {}
  for gradient in ('exact', 'straight_through'):
    loss = functools.partial(call, name, labels=labels, gradient=gradient)
    results[gradient] = value_and_gradient(loss, jnp.asarray(cosines))
  np.testing.assert_array_equal(
    results['exact'][0], results['straight_through'][0]
  )
  # As in a plain softmax, what the others gain the target loses.
  rows = {k: np.abs(v[1].sum(axis=1)).max() for k, v in results.items()}
  assert rows['straight_through'] < 1e-4
  assert rows['exact'] > 1


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', NAMED)
def test_narrow_cosines_give_float32_losses(name, dtype):
  cosines, labels = batch()
  narrow = jnp.asarray(cosines, dtype)
  got = call(name, narrow, labels)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(
    got, call(name, narrow.astype(jnp.float32), labels)
  )


@pytest.mark.parametrize('name', NAMED)
def test_jit_vmap_and_strict_promotion(name):
  cosines, labels = batch()
  want = np.asarray(call(name, cosines, labels))
  with jax.numpy_dtype_promotion('strict'):
    got = jax.jit(functools.partial(call, name))(cosines, labels)
  # XLA may fuse a product and a sum into one rounding.
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=64 * 2**-23)

  twice = lambda x: np.stack([x, x])
  batched = jax.jit(jax.vmap(functools.partial(call, name)))
  got = batched(twice(cosines), twice(labels))
  np.testing.assert_allclose(got, twice(want), rtol=1e-6, atol=64 * 2**-23)


def test_vmap_over_keys():
  cosines, labels = batch()
  keys = jax.random.split(jax.random.key(0), 3)
  one = lambda key: losses.elastic_arcface(cosines, labels, key=key)
  got = np.asarray(jax.jit(jax.vmap(one))(keys))
  assert got.shape == (3, 32)
  assert np.all(got[0] != got[1])


@pytest.mark.parametrize('name', ELASTIC)
def test_the_key_decides(name):
  cosines, labels = batch()
  first, again, other = (call(name, cosines, labels, s) for s in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.all(first != other)


@pytest.mark.parametrize('kind', PARENT)
def test_a_permuted_batch_has_permuted_losses(kind):
  cosines, labels = batch()
  margins = np.linspace(0.3, 0.6, 32, dtype=np.float32)
  order = np.random.default_rng(0).permutation(32)
  loss = lambda c, y, m: PARENT[kind](c, y, margin=m)
  np.testing.assert_array_equal(
    loss(cosines[order], labels[order], margins[order]),
    loss(cosines, labels, margins)[order],
  )


def test_same_loss_on_1_and_8_devices():
  cosines, labels = batch()

  def sharded(devices):
    mesh = jax.make_mesh(
      (devices,),
      ('data',),
      axis_types=(AxisType.Auto,),
      devices=jax.devices()[:devices],
    )
    place = NamedSharding(mesh, PartitionSpec('data'))
    return jax.jit(
      lambda c, y: call('elastic_arcface_plus', c, y),
      in_shardings=(place, place),
      out_shardings=place,
    )(cosines, labels)

  np.testing.assert_allclose(sharded(1), sharded(8), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', NAMED)
def test_defaults_are_those_documented(name):
  cosines, labels = batch()
  named = {'scale': 64.0}
  if name == 'arcface':
    named |= {'margin': 0.5, 'gradient': 'exact'}
  if name == 'cosface':
    named |= {'margin': 0.35}
  if name in ELASTIC:
    _, named['margin'], named['margin_std'] = ELASTIC[name]
  if name.endswith('plus'):
    named |= {'pairing': 'paper'}
  np.testing.assert_array_equal(
    call(name, cosines, labels), call(name, cosines, labels, **named)
  )


@pytest.mark.parametrize('name', NAMED)
def test_wrong_arguments_are_refused(name):
  c, y = jnp.zeros((4, 3)), jnp.zeros(4, int)
  with pytest.raises(ValueError, match=r'cosines must be \[B, C\].*\(3,\)'):
    call(name, c[0], y)
  with pytest.raises(ValueError, match=r'labels.*\(4, 3\).*\(2,\)'):
    call(name, c, y[:2])
  with pytest.raises(TypeError, match='labels must be integer.*float32'):
    call(name, c, c[:, 0])
  with pytest.raises(TypeError, match='cosines must be floating.*int32'):
    call(name, jnp.zeros((4, 3), int), y)


@pytest.mark.parametrize('name', ELASTIC)
def test_wrong_draws_are_refused(name):
  c, y = jnp.zeros((4, 3)), jnp.zeros(4, int)
  with pytest.raises(ValueError, match='negative, got -1'):
    call(name, c, y, margin_std=-1)
  with pytest.raises(TypeError, match=r'jax\.random\.key'):
    getattr(losses, name)(c, y, key=jnp.zeros(2, jnp.uint32))
  if name.endswith('plus'):
    with pytest.raises(ValueError, match="'rank'"):
      call(name, c, y, pairing='rank')


def test_the_losses_import_jax_and_nothing_else():
  program = """
import sys
import jax, jax.numpy
before = set(sys.modules)
import elasticface_jax.losses
tops = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(tops - sys.stdlib_module_names))
"""
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=pathlib.Path(elasticface_jax.__file__).parents[1],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.split() == ['elasticface_jax']
