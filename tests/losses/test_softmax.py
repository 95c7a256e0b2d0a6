# SPDX-License-Identifier: Apache-2.0
"""The named losses against NumPy in float64, from the formulas.

The reference takes the arccos, changes the target as the paper says, forms the
softmax and differentiates by hand:

  d loss / d cosine_j = s p_j                             for j other than y,
  d loss / d cosine_y = -s (1 - p_y) (-psi'(t) / sin t)

with psi and its derivative from `test_changes`. In float64 the two agree
element by element. In float32 the target's own cosine is good to one ulp of 1,
2**-23, which the scale turns into 7.6e-6 of the logit at 64; so there each loss
and each row of the gradient agrees to the relative error ``1e-6 + s * 2**-23``,
and the batch as a whole to 1e-6 of its largest value. Losses that compute with
the angle round that too, to an ulp of pi and not of 1.
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

from .test_targets import ANGULAR, curricular_others, formula

# The loss, its kind, its margins by name.
PLAIN = {
  'normface': ('cos', {}),
  'arcface': ('arc', {'margin': 0.5}),
  'cosface': ('cos', {'margin': 0.35}),
  'combined_margin': ('combined', {'m1': 1.0, 'm2': 0.5, 'm3': 0.0}),
  'sphereface': ('sphere', {'margin': 1.7}),
  'x2_softmax': ('x2', {'a': -0.9, 'h': 0.0, 'k': 0.65}),
}
ANGLE_ULPS = 8
# The loss, its kind, its mean margin, its spread.
ELASTIC = {
  'elastic_arcface': ('arc', 0.5, 0.05),
  'elastic_cosface': ('cos', 0.35, 0.05),
  'elastic_arcface_plus': ('arc', 0.5, 0.0175),
  'elastic_cosface_plus': ('cos', 0.35, 0.025),
}
PARENT = {'arc': losses.arcface, 'cos': losses.cosface}
NAMED = [*PLAIN, *ELASTIC]
KIND = {name: entry[0] for name, entry in (PLAIN | ELASTIC).items()}
# Those that take gradient=.
STRAIGHT = [name for name in NAMED if KIND[name] != 'cos']


def call(name, cosines, labels, seed=0, **kwargs):
  if name in ELASTIC:
    kwargs['key'] = jax.random.key(seed)
  return getattr(losses, name)(cosines, labels, **kwargs)


def draw_margins(name, cosines, labels, seed=0, **options):
  """What to give a loss, and the margins, in order, that it then has."""
  if name in PLAIN:
    rng = np.random.default_rng(1)
    margins = {
      key: rng.normal(mean, 0.05, len(labels)).astype(np.float32)
      for key, mean in PLAIN[name][1].items()
    }
    return margins, tuple(margins.values()) or (0.0,)
  # A power of two, so that a fused product and sum draws the same margins.
  spread = 2**-4
  margins = losses.sample_margins(
    jax.random.key(seed),
    labels.shape,
    mean=ELASTIC[name][1],
    std=spread,
    **options,
  )
  if name.endswith('plus'):
    targets = cosines[np.arange(len(labels)), labels]
    margins = losses.pair_margins(margins, targets)
  return options | {'margin_std': spread}, (np.asarray(margins),)


def reference(cosines, labels, margins, scale, kind):
  """Loss ``[B]``, its gradient ``[B, C]`` and that by the target's logit."""
  c = np.array(cosines, np.float64)
  rows = np.arange(len(c))
  theta = np.arccos(np.clip(c[rows, labels], -1, 1))
  target, falls = formula(kind, theta, margins)
  others, slopes = c, np.ones_like(c)
  if kind == 'curricular':
    others, slopes = curricular_others(c, theta, *margins)
  logits = scale * others
  logits[rows, labels] = scale * target
  top = logits.max(axis=1, keepdims=True)
  weights = np.exp(logits - top)
  p = weights / weights.sum(axis=1, keepdims=True)
  p[rows, labels] = 0
  missed = p.sum(axis=1)  # 1 - p_y, with all its digits.
  loss = top[:, 0] - logits[rows, labels] + np.log(weights.sum(axis=1))
  loss = np.where(missed < 0.5, -np.log1p(-np.minimum(missed, 0.5)), loss)
  gradient = scale * p * slopes
  with np.errstate(divide='ignore', invalid='ignore'):
    gradient[rows, labels] = -scale * missed * falls / np.sin(theta)
  return loss, gradient, -missed


def rounding(kind, scale):
  """What float32 may err in the loss, relatively; see the top of the file."""
  return 1e-6 + scale * 2**-23 * (ANGLE_ULPS if kind in ANGULAR else 1)


def check_float32(results, want, kind, scale):
  """Loss and gradient in float32 against those of the reference."""
  (got, gradient), (loss, by_hand) = results, want
  assert got.dtype == gradient.dtype == np.float32
  relative = rounding(kind, scale)
  # Below this float32 has no digits left to agree in.
  tiny = 1e-37
  np.testing.assert_allclose(got, loss, rtol=relative, atol=tiny)
  row = np.abs(by_hand).max(axis=1, keepdims=True)
  error = np.abs(gradient - by_hand)
  assert np.all(error <= relative * row + tiny)
  ulps = ANGLE_ULPS if kind in ANGULAR else 1
  assert np.all(np.abs(got - loss) <= ulps * 1e-6 * loss.max() + tiny)
  assert np.all(error <= ulps * 1e-6 * row.max() + tiny)


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


@functools.partial(jax.jit, static_argnames=('name', 'margin_std', 'clip'))
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
  for kind, margins in (
    ('arc', (0.4,)),
    ('sphere', (1.7,)),
    ('curricular', (0.4, 0.3)),
  ):
    _, gradient, _ = reference(cosines, labels, margins, 8.0, kind)
    for j in range(5):
      nudge = step * (np.arange(5) == j)
      up, _, _ = reference(cosines + nudge, labels, margins, 8.0, kind)
      down, _, _ = reference(cosines - nudge, labels, margins, 8.0, kind)
      np.testing.assert_allclose(
        (up - down) / (2 * step), gradient[:, j], rtol=1e-6, atol=1e-7
      )


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('size, classes, shape', CASES)
@pytest.mark.parametrize('name', PLAIN)
def test_loss_and_gradient(name, size, classes, shape, wide):
  cosines, labels = batch(size, classes, shape)
  options, margins = draw_margins(name, cosines, labels)
  for scale in (64.0, 30.0, 4.0):
    *want, _ = reference(cosines, labels, margins, scale, KIND[name])
    with jax.enable_x64(wide):
      results = compiled(
        name,
        cosines.astype(np.float64 if wide else np.float32),
        labels,
        scale=scale,
        **options,
      )
    if wide:
      assert results[0].dtype == np.float64
      for got, by_hand in zip(results, want, strict=True):
        np.testing.assert_allclose(got, by_hand, rtol=1e-10, atol=0)
    else:
      check_float32(results, want, KIND[name], scale)


@pytest.mark.parametrize(
  'wide, options',
  [(False, {}), (True, {'clip': (-1.0, 1.5), 'first_sample': 16})],
)
@pytest.mark.parametrize('name', ELASTIC)
def test_elastic_losses_use_the_margins_of_their_key(name, wide, options):
  cosines, labels = batch()
  options, margins = draw_margins(name, cosines, labels, **options)
  *want, _ = reference(cosines, labels, margins, 64, KIND[name])
  with jax.enable_x64(wide):
    results = compiled(
      name,
      cosines.astype(np.float64 if wide else np.float32),
      labels,
      scale=64.0,
      **options,
    )
  if not wide:
    check_float32(results, want, KIND[name], 64)
    return
  _, others = draw_margins(name, cosines, labels)
  assert np.mean(margins[0] != others[0]) > 0.9
  for got, by_hand in zip(results, want, strict=True):
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, by_hand, rtol=1e-10)


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


@pytest.mark.parametrize(
  'transform, wide', [(lambda f: f, False), (jax.jit, False), (jax.jit, True)]
)
@pytest.mark.parametrize('name', ELASTIC)
def test_no_spread_gives_the_parent_bit_for_bit(name, transform, wide):
  cosines, labels = batch()
  with jax.enable_x64(wide):
    cosines = cosines.astype(np.float64 if wide else np.float32)
    want = transform(PARENT[KIND[name]])(cosines, labels)
    loss = functools.partial(call, name, margin_std=0.0)
    got = transform(loss)(cosines, labels)
  assert got.dtype == cosines.dtype
  np.testing.assert_array_equal(got, want)


def normface(c, y, m):
  return losses.normface(c, y)


def arcface(c, y, m):
  return losses.arcface(c, y, margin=m)


# A loss of margins m, ``[B]``, and the loss that it is.
REDUCTIONS = {
  'combined arc': (
    lambda c, y, m: losses.combined_margin(c, y, m1=1.0, m2=m, m3=0.0),
    arcface,
  ),
  'combined cos': (
    lambda c, y, m: losses.combined_margin(c, y, m1=1.0, m2=0.0, m3=m),
    lambda c, y, m: losses.cosface(c, y, margin=m),
  ),
  'combined 0': (
    lambda c, y, m: losses.combined_margin(c, y, m2=0.0),
    normface,
  ),
  'sphereface 1': (
    lambda c, y, m: losses.sphereface(c, y, margin=1.0, scale=64.0),
    normface,
  ),
  'arcface 0': (lambda c, y, m: losses.arcface(c, y, margin=0.0), normface),
  'cosface 0': (lambda c, y, m: losses.cosface(c, y, margin=0.0), normface),
}


def reduce(loss, cosines, labels, margins):
  """Loss and gradient by the cosines."""
  return value_and_gradient(lambda c: loss(c, labels, margins), cosines)


reduce_compiled = jax.jit(reduce, static_argnums=0)


@pytest.mark.parametrize(
  'run, wide',
  [(reduce, False), (reduce_compiled, False), (reduce_compiled, True)],
)
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_reductions_bit_for_bit(reduction, run, wide):
  cosines, labels = batch(kind='trained')
  margins = np.linspace(0.3, 0.6, 32)
  with jax.enable_x64(wide):
    dtype = np.float64 if wide else np.float32
    got, want = (
      run(loss, jnp.asarray(cosines, dtype), labels, margins.astype(dtype))
      for loss in REDUCTIONS[reduction]
    )
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def check_an_ulp_of_the_target(got, want):
  """Loss and gradient apart by what an ulp of the target is, times 64."""
  np.testing.assert_allclose(got[0], want[0], rtol=64 * 2**-23)
  row = np.abs(want[1]).max(axis=1, keepdims=True)
  assert np.all(np.abs(got[1] - want[1]) <= 64 * 2**-23 * row)


def test_a_constant_combined_margin_is_its_part_to_an_ulp_of_the_target():
  # A margin known when XLA compiles gives arcface another last bit than the
  # same margin given at run time. The combined margin has the latter's.
  cosines, labels = batch(kind='trained')
  combined, alone = REDUCTIONS['combined arc']
  constant = lambda loss: jax.jit(lambda c: reduce(loss, c, labels, 0.5))
  got = constant(combined)(cosines)
  check_an_ulp_of_the_target(got, constant(alone)(cosines))
  want = reduce_compiled(alone, cosines, labels, np.full(32, 0.5, np.float32))
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_no_margin_is_the_softmax_of_scaled_cosines():
  cosines, labels = batch()
  logits = 64 * cosines.astype(np.float64)
  total = np.log(np.exp(logits).sum(axis=1))
  by_hand = total - logits[np.arange(32), labels]
  got = losses.normface(cosines, labels)
  np.testing.assert_allclose(got, by_hand, rtol=1e-6, atol=1e-6)


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


def edges():
  """Targets at and next to every end, among the hardest others."""
  ends = [1, -1, 0, 1 - 2**-24, -1 + 2**-24, 1 + 2**-23, -1 - 2**-23, 1e-6]
  others = [[1, -1], [1, 1], [-1, -1], [0, 0]]
  cosines = [[end, *np.resize(other, 19)] for end in ends for other in others]
  return np.float32(cosines), np.zeros(32, int)


@pytest.mark.parametrize('name', NAMED)
def test_nothing_overflows(name):
  cosines, labels = edges()
  options, margins = draw_margins(name, cosines, labels)
  for scale in (64.0, 1000.0):
    for margin in (None, 0.0, np.pi) if name in PLAIN else (None,):
      if margin is not None:
        options = {key: np.full(32, margin, np.float32) for key in options}
        margins = tuple(options.values()) or margins
      got, gradient = compiled(name, cosines, labels, scale=scale, **options)
      assert np.all(np.isfinite(gradient))
      want, _, _ = reference(cosines, labels, margins, scale, KIND[name])
      # Both ulps are of the target; pi squared times pi may be one.
      atol = scale * 2**-23 * (32 if KIND[name] in ANGULAR else 2)
      np.testing.assert_allclose(got, want, rtol=1e-6, atol=atol)


@pytest.mark.parametrize('name', [*PLAIN, 'elastic_arcface_plus'])
def test_one_class_costs_nothing(name):
  cosines = jnp.array([[0.3], [1.0], [-1.0]])
  got, gradient = compiled(name, cosines, jnp.zeros(3, int))
  np.testing.assert_array_equal(got, np.zeros(3))
  np.testing.assert_array_equal(gradient, np.zeros((3, 1)))


def hard_vectors():
  """Embeddings with, against, far beyond their class centre, and zero ones."""
  centers = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
  labels = np.resize(np.arange(20), 32)
  stretch = np.resize(np.float32([1, -1, 1e30, 0, -1e-30]), (32, 1))
  embeddings = stretch * centers[labels]
  centers[5] = 0
  return embeddings, centers, labels


@jax.jit
def pull_back(embeddings, centers, pull):
  return jax.vjp(losses.cosines, embeddings, centers)[1](pull)


def check_hard_vectors(embeddings, centers, pull):
  """The gradients that reach the vectors, of those by the cosines."""
  gradients = pull_back(embeddings, centers, pull)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradients[0][3], np.zeros(7))
  np.testing.assert_array_equal(gradients[1][5], np.zeros(7))
  assert np.any(np.asarray(gradients[0]) != 0)


@pytest.mark.parametrize('name', NAMED)
def test_finite_through_cosines_of_aligned_opposed_and_zero_vectors(name):
  embeddings, centers, labels = hard_vectors()
  cosines = losses.cosines(embeddings, centers)
  options, _ = draw_margins(name, cosines, labels)
  value, pull = compiled(name, cosines, labels, scale=64.0, **options)
  assert np.all(np.isfinite(value))
  check_hard_vectors(embeddings, centers, pull)


@pytest.mark.parametrize('name', STRAIGHT)
def test_straight_through_keeps_the_loss_and_drops_the_slope(name):
  cosines, labels = batch()
  options, margins = draw_margins(name, cosines, labels)
  results = {}
  for gradient in ('exact', 'straight_through'):
    loss = functools.partial(
      call, name, labels=labels, gradient=gradient, scale=64.0, **options
    )
    results[gradient] = value_and_gradient(loss, jnp.asarray(cosines))
  np.testing.assert_array_equal(
    results['exact'][0], results['straight_through'][0]
  )
  # As in a plain softmax, what the others gain the target loses.
  _, want, pull = reference(cosines, labels, margins, 64, KIND[name])
  want[np.arange(32), labels] = 64 * pull
  row = np.abs(want).max(axis=1, keepdims=True)
  error = np.abs(results['straight_through'][1] - want)
  assert np.all(error <= rounding(KIND[name], 64) * row)
  assert np.abs(results['exact'][1] - want).max() > 1
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    call(name, cosines, labels, gradient='none')


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
  options, _ = draw_margins(name, cosines, labels)
  run = functools.partial(call, name, scale=64.0, **options)
  want = np.asarray(run(cosines, labels))
  with jax.numpy_dtype_promotion('strict'):
    jax.eval_shape(run, cosines, labels)
  # XLA may fuse a product and a sum into one rounding.
  close = functools.partial(
    np.testing.assert_allclose, rtol=rounding(KIND[name], 64), atol=64 * 2**-23
  )
  close(compiled(name, cosines, labels, scale=64.0, **options)[0], want)
  twice = lambda x: np.stack([x, x])
  mapped = jax.jit(jax.vmap(run))(twice(cosines), twice(labels))
  close(mapped, twice(want))


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


@pytest.mark.parametrize('name', PLAIN)
def test_a_permuted_batch_has_permuted_losses(name):
  cosines, labels = batch()
  margins, _ = draw_margins(name, cosines, labels)
  order = np.random.default_rng(0).permutation(32)
  permuted = {key: margin[order] for key, margin in margins.items()}
  got = compiled(name, cosines[order], labels[order], scale=64.0, **permuted)
  want = compiled(name, cosines, labels, scale=64.0, **margins)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b[order])


@pytest.mark.parametrize('name', NAMED)
def test_turned_and_stretched_vectors_have_the_same_losses(name):
  rng = np.random.default_rng(5)
  embeddings, centers = rng.normal(size=(32, 8)), rng.normal(size=(20, 8))
  labels = rng.integers(0, 20, 32)
  turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
  stretch = lambda x: x * np.exp(rng.normal(0, 5, (len(x), 1)))
  options, _ = draw_margins(name, np.zeros((32, 20)), labels)
  # The draws of the elastic are float32.
  wide = name in PLAIN
  cosines = jax.jit(losses.cosines)
  run = lambda x, w: compiled(
    name, cosines(x, w), labels, scale=64.0, **options
  )[0]
  pairs = [
    (embeddings, centers),
    (embeddings @ turn, centers @ turn),
    (stretch(embeddings), stretch(centers)),
  ]
  with jax.enable_x64(wide):
    want, *others = (
      run(*(x.astype(float if wide else np.float32) for x in pair))
      for pair in pairs
    )
  for got in others:
    np.testing.assert_allclose(got, want, rtol=1e-10 if wide else 1e-4)


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
  named = {'scale': 30.0 if name == 'sphereface' else 64.0}
  if name in PLAIN:
    named |= PLAIN[name][1]
  if name in STRAIGHT:
    named |= {'gradient': 'exact'}
  if name in ELASTIC:
    _, named['margin'], named['margin_std'] = ELASTIC[name]
    named |= {'clip': None, 'first_sample': 0}
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
  for margin in PLAIN.get(name, (0, {}))[1]:
    with pytest.raises(ValueError, match=r'margins.*\(4, 3\).*\(3,\)'):
      call(name, c, y, **{margin: jnp.zeros(3)})


@pytest.mark.parametrize('name', ELASTIC)
def test_wrong_draws_are_refused(name):
  c, y = jnp.zeros((4, 3)), jnp.zeros(4, int)
  with pytest.raises(ValueError, match='negative, got -1'):
    call(name, c, y, margin_std=-1)
  for clip in ((1.0, -1.0), (1.0, 1.0), (1.0,), (-1.0, 0.0, 1.0)):
    with pytest.raises(ValueError, match=r'clip must be \(low, high\).*got'):
      call(name, c, y, clip=clip)
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
