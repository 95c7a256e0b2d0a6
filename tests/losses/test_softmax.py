# SPDX-License-Identifier: Apache-2.0
"""The named losses compared with the reference in NumPy in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elasticface_jax import losses

from . import programs
from .programs import ADAPTIVE, ELASTIC, KIND, PLAIN, PLUS, STRAIGHT
from .reference import (
  ANGULAR,
  batch,
  check_bits,
  check_float32,
  check_float64,
  edges,
  hard_vectors,
  reference,
  rounding,
  vectors,
)

NAMED = [*PLAIN, *ELASTIC]
ALL = [*NAMED, *ADAPTIVE]


def call(name, cosines, labels, seed=0, **options):
  key = jax.random.key(seed)
  loss, _ = programs.call(name, cosines, labels, None, key=key, **options)
  return loss


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


@pytest.mark.parametrize('program', ['float32', 'float64'])
@pytest.mark.parametrize('batch_kind', ['uniform', 'trained'])
@pytest.mark.parametrize('name', PLAIN)
def test_loss_and_gradient(name, batch_kind, program):
  cosines, labels, _ = programs.example(batch_kind)
  margins = programs.reference_margins(name)
  for scale in (64.0, 30.0, 4.0):
    *want, _ = reference(cosines, labels, margins, scale, KIND[name])
    results = programs.results(batch_kind, program, scale)[name][:2]
    if program == 'float64':
      check_float64(results, want)
    else:
      check_float32(results, want, KIND[name], scale)


@pytest.mark.parametrize(
  'program, options', [('float32', {}), ('float64', programs.CLIPPED)]
)
@pytest.mark.parametrize('name', ELASTIC)
def test_elastic_losses_use_the_margins_of_their_key(name, program, options):
  cosines, labels, _ = programs.example()
  margins = programs.elastic_margins(name, cosines, labels, **options)
  *want, _ = reference(cosines, labels, margins, 64, KIND[name])
  results = programs.results('uniform', program)
  if program == 'float32':
    check_float32(results[name][:2], want, KIND[name], 64)
    return
  others = programs.elastic_margins(name, cosines, labels)
  assert np.mean(margins[0] != others[0]) > 0.9
  # The draws are float32 also here.
  for got, by_hand in zip(results[f'{name} clipped'], want, strict=False):
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, by_hand, rtol=64 * 2**-22)


@pytest.mark.parametrize('name', PLUS)
def test_released_pairing_reaches_the_loss(name):
  cosines, labels, _ = programs.example()
  released, paper = (
    programs.elastic_margins(name, cosines, labels, rule=rule)
    for rule in ('released', 'paper')
  )
  assert np.any(released[0] != paper[0])
  *want, _ = reference(cosines, labels, released, 64, KIND[name])
  results = programs.results('uniform', 'float64')
  check_float64(results[f'{name} released'][:2], want)


def test_no_margin_is_the_softmax_of_scaled_cosines():
  cosines, labels, _ = programs.example()
  logits = 64 * cosines.astype(np.float64)
  total = np.log(np.exp(logits).sum(axis=1))
  by_hand = total - logits[np.arange(32), labels]
  got = programs.results('uniform', 'float32')['normface'].loss
  np.testing.assert_allclose(got, by_hand, rtol=1e-6, atol=1e-6)


def test_two_classes_by_hand():
  # cos(arccos .6 + m) = .6 cos m - .8 sin m
  target = 0.6 * math.cos(0.5) - 0.8 * math.sin(0.5)
  for cosines, label, want in [
    (
      [0.6, 0.0],
      0,
      {'normface': -3, 'cosface': -2, 'arcface': -5 * target},
    ),
    (
      [0.8, 0.6],
      1,
      {'normface': 1, 'cosface': 2, 'arcface': 4 - 5 * target},
    ),
  ]:
    results = programs.evaluate(
      [cosines],
      [label],
      program='few',
      scale=5.0,
      margins={
        'cosface': {'margin': np.float32([0.2])},
        'arcface': {'margin': np.float32([0.5])},
      },
    )
    for name, excess in want.items():
      np.testing.assert_allclose(
        results[name].loss, [math.log1p(math.exp(excess))], rtol=1e-6
      )


def test_a_batch_of_one():
  cosines, labels, norms = [[0.3, -0.2]], np.array([1]), np.float32([70])
  results = programs.evaluate(cosines, labels, norms, program='few')
  for name, result in results.items():
    if name in ELASTIC:
      margins = (
        programs.elastic_margins('elastic_arcface', None, None)[0][:1],
      )
    elif name in ADAPTIVE:
      margins = programs.adaptive_margins(name, norms, result.extra)
    else:
      margins = tuple(programs.make_margins(1)[name].values()) or (0.0,)
    *want, _ = reference(cosines, labels, margins, 64, KIND[name])
    check_float64(result[:2], want)


def test_small_losses_keep_their_digits():
  # Logits 32 and -8: the loss is e**-40, which 1 - p in float32 says is 0.
  cosines = np.full((32, 20), -1.0)
  cosines[:, :2] = 0.5, -0.125
  result = programs.evaluate(cosines, np.zeros(32, int))['normface']
  want = np.full(32, math.exp(-40))
  np.testing.assert_allclose(result.loss, want, rtol=1e-6)
  np.testing.assert_allclose(
    result.by_cosines[:, :2], 64 * want[:, None] * [[-1, 1]], rtol=1e-6
  )


@pytest.mark.parametrize('scale', [64.0, 1000.0])
@pytest.mark.parametrize('margin', [None, 0.0, np.pi])
def test_nothing_overflows(margin, scale):
  cosines, labels = edges()
  margins = programs.make_margins()
  if margin is not None:
    margins = {
      name: {key: np.full(32, margin, np.float32) for key in margins[name]}
      for name in PLAIN
    }
  results = programs.evaluate(cosines, labels, scale=scale, margins=margins)
  for name in PLAIN if margin is not None else NAMED:
    assert np.all(np.isfinite(results[name].by_cosines))
    drawn = (
      programs.elastic_margins(name, cosines, labels)
      if name in ELASTIC
      else tuple(margins[name].values()) or (0.0,)
    )
    want, _, _ = reference(cosines, labels, drawn, scale, KIND[name])
    # Both ulps are of the target; pi squared times pi may be one.
    atol = scale * 2**-23 * (32 if KIND[name] in ANGULAR else 2)
    np.testing.assert_allclose(
      results[name].loss, want, rtol=1e-6, atol=atol, err_msg=name
    )


def test_one_class_costs_nothing():
  norms = np.float32([20, 0, 200])
  results = programs.evaluate(
    [[0.3], [1.0], [-1.0]], [0, 0, 0], norms, program='few'
  )
  for result in results.values():
    np.testing.assert_array_equal(result.loss, np.zeros(3))
    np.testing.assert_array_equal(result.by_cosines, np.zeros((3, 1)))
    if result.by_norms is not None:
      np.testing.assert_array_equal(result.by_norms, np.zeros(3))


def cosines_and_norms(embeddings, centers):
  return losses.cosines(embeddings, centers), losses.norms(embeddings)


@functools.partial(jax.jit, compiler_options=programs.QUICK)
def pull_back(embeddings, centers, cotangents):
  """Cosines and norms, and the gradients of the vectors from theirs."""
  values, pullback = jax.vjp(cosines_and_norms, embeddings, centers)
  return values, pullback(cotangents)


def test_finite_through_aligned_opposed_and_zero_vectors():
  embeddings, centers, labels = hard_vectors()
  none = np.zeros((32, 20), np.float32), np.zeros(32, np.float32)
  values, _ = pull_back(embeddings, centers, none)
  cosines, norms = map(np.asarray, values)
  for result in programs.evaluate(cosines, labels, norms).values():
    assert np.all(np.isfinite(result.loss))
    by_norms = none[1] if result.by_norms is None else result.by_norms
    _, gradients = pull_back(embeddings, centers, (result.by_cosines, by_norms))
    to_embeddings, to_centers = map(np.asarray, gradients)
    assert np.all(np.isfinite(to_embeddings)) and np.any(to_embeddings != 0)
    assert np.all(np.isfinite(to_centers))
    np.testing.assert_array_equal(to_embeddings[3], np.zeros(7))
    np.testing.assert_array_equal(to_centers[5], np.zeros(7))


@pytest.mark.parametrize('name', STRAIGHT)
def test_straight_through_keeps_the_loss_and_drops_the_slope(name):
  cosines, labels, _ = programs.example()
  results = programs.results('uniform', 'float64')
  straight = results[f'{name} straight_through']
  exact = results[name if name in PLAIN else f'{name} exact']
  np.testing.assert_array_equal(straight.loss, exact.loss)
  # As in a plain softmax, what the others gain the target loses.
  margins = (
    programs.reference_margins(name)
    if name in PLAIN
    else programs.elastic_margins(name, cosines, labels)
  )
  loss, want, pull = reference(cosines, labels, margins, 64, KIND[name])
  want[np.arange(32), labels] = 64 * pull
  check_float64(straight[:2], (loss, want))
  assert np.abs(exact.by_cosines - want).max() > 1
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    call(name, cosines, labels, gradient='none')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', ALL)
def test_narrow_inputs_give_float32_losses(name, dtype):
  cosines, labels, norms = programs.example()
  narrow = jnp.asarray(cosines, dtype), jnp.asarray(norms, dtype)
  options = programs.options_of(name)
  run = lambda c, n: programs.call(
    name, c, labels, n, key=jax.random.key(0), **options
  )
  results = run(*narrow)
  assert {x.dtype.name for x in jax.tree.leaves(results)} == {'float32'}
  want = run(*(x.astype(jnp.float32) for x in narrow))
  jax.tree.map(np.testing.assert_array_equal, results, want)


@functools.cache
def mapped():
  """The losses of two batches with a key each, in one call."""

  def run(*batch_and_key):
    *arrays, key = batch_and_key
    return {
      name: programs.call(name, *arrays, key=key, **programs.options_of(name))
      for name in ALL
    }

  both = zip(*map(programs.example, ('uniform', 'trained')), strict=True)
  run = jax.jit(jax.vmap(run), compiler_options=programs.QUICK)
  keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
  return jax.tree.map(np.asarray, run(*map(np.stack, both), keys))


@pytest.mark.parametrize('name', ALL)
def test_jit_and_vmap(name):
  # XLA may fuse a product and a sum into one rounding.
  close = functools.partial(
    np.testing.assert_allclose, rtol=rounding(KIND[name], 64), atol=64 * 2**-23
  )
  eager, eager_extra = programs.eager()[name]
  first = programs.results('uniform', 'float32')[name]
  second = programs.results('trained', 'float32', seed=1)[name]
  close(first.loss, eager)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=3e-7),
    first.extra,
    eager_extra,
  )
  loss, extra = mapped()[name]
  for i, (value, other) in enumerate(
    [(eager, eager_extra), (second.loss, second.extra)]
  ):
    close(loss[i], value)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6),
      jax.tree.map(lambda x, i=i: x[i], extra),
      other,
    )


@pytest.mark.parametrize('name', ELASTIC)
def test_the_key_decides(name):
  first = programs.results('trained', 'float32')[name].loss
  again, other = (
    programs.evaluate(*programs.example('trained'), seed=seed)[name].loss
    for seed in (0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.all(first != other)


@pytest.mark.parametrize('name', PLAIN)
def test_a_permuted_batch_has_permuted_losses(name):
  cosines, labels, norms = programs.example()
  order = np.random.default_rng(0).permutation(32)
  margins = programs.make_margins()
  margins = {
    plain: {key: margin[order] for key, margin in margins[plain].items()}
    for plain in PLAIN
  }
  got = programs.evaluate(
    cosines[order], labels[order], norms[order], margins=margins
  )
  want = programs.results('uniform', 'float32')[name]
  check_bits(got[name][:2], (want.loss[order], want.by_cosines[order]))


@functools.cache
def turned_and_stretched():
  """Losses of vectors, of them turned, stretched, and of longer embeddings."""
  rng = np.random.default_rng(5)
  x, w = 15 * vectors(32, 8, seed=5), vectors(20, 8, seed=6)
  labels = rng.integers(0, 20, 32)
  turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
  stretch = lambda x: x * np.exp(rng.normal(0, 5, (len(x), 1)))
  run_wide = jax.jit(cosines_and_norms, compiler_options=programs.QUICK)

  def run(x, w):
    with jax.enable_x64(True):
      cosines, norms = map(np.asarray, run_wide(x, w))
    results = programs.evaluate(cosines, labels, norms, program='float64')
    return {name: result.loss for name, result in results.items()}

  return {
    'plain': run(x, w),
    'turned': run(x @ turn, w @ turn),
    'centers': run(x, stretch(w)),
    'both': run(stretch(x), stretch(w)),
    'longer': run(1.5 * x, w),
  }


@pytest.mark.parametrize('name', [*PLAIN, *(f'{n} clipped' for n in ELASTIC)])
def test_turned_and_stretched_vectors_have_the_same_losses(name):
  losses_of = {k: v[name] for k, v in turned_and_stretched().items()}
  want = losses_of.pop('plain')
  for got in losses_of.values():
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize('name', ADAPTIVE)
def test_losses_with_norms_depend_on_the_norms_alone(name):
  losses_of = {k: v[name] for k, v in turned_and_stretched().items()}
  want = losses_of['plain']
  # A state in float32 may round to the other side.
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-10 if name == 'magface' else 1e-5
  )
  close(losses_of['turned'], want)
  close(losses_of['centers'], want)
  if name == 'curricularface':
    close(losses_of['longer'], want)
  else:
    assert np.mean(losses_of['longer'] != want) > 0.5


def test_same_loss_on_8_devices():
  cosines, labels, _ = programs.example()
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  place = NamedSharding(mesh, PartitionSpec('data'))
  sharded = jax.jit(
    lambda c, y: call(
      'elastic_arcface_plus', c, y, margin_std=programs.SPREAD, scale=64.0
    ),
    in_shardings=(place, place),
    out_shardings=place,
    compiler_options=programs.QUICK,
  )(cosines, labels)
  assert len(sharded.sharding.device_set) == 8
  want = programs.results('uniform', 'float32')['elastic_arcface_plus'].loss
  np.testing.assert_allclose(sharded, want, rtol=1e-6, atol=1e-6)


# Arguments.


@pytest.mark.parametrize('name', NAMED)
def test_defaults_are_those_documented(name):
  stated = {'scale': 30.0 if name == 'sphereface' else 64.0}
  if name in PLAIN:
    stated |= PLAIN[name][1]
  if name in STRAIGHT:
    stated |= {'gradient': 'exact'}
  if name in ELASTIC:
    _, stated['margin'], stated['margin_std'] = ELASTIC[name]
    stated |= {'clip': None, 'first_sample': 0}
  if name in PLUS:
    stated |= {'pairing': 'paper'}

  def trace(**options):
    run = functools.partial(call, name, **options)
    return str(jax.make_jaxpr(run)(*batch(4, 3)))

  assert trace() == trace(**stated)
  assert trace() != trace(**stated | {'scale': 1.0})


@pytest.mark.parametrize('name', NAMED)
def test_wrong_arguments_are_refused(name):
  c, y = np.zeros((4, 3), np.float32), np.zeros(4, int)

  def check(error, match, *arrays, **options):
    with pytest.raises(error, match=match):
      jax.eval_shape(functools.partial(call, name, **options), *arrays)

  check(ValueError, r'cosines must be \[B, C\].*\(3,\)', c[0], y)
  check(ValueError, r'labels.*\(4, 3\).*\(2,\)', c, y[:2])
  check(TypeError, 'labels must be integer.*float32', c, c[:, 0])
  check(TypeError, 'cosines must be floating.*int32', c.astype(int), y)
  for margin in PLAIN.get(name, (0, {}))[1]:
    wrong = {margin: np.zeros(3)}
    check(ValueError, r'margins.*\(4, 3\).*\(3,\)', c, y, **wrong)


@pytest.mark.parametrize('name', ELASTIC)
def test_wrong_draws_are_refused(name):
  c, y = np.zeros((4, 3), np.float32), np.zeros(4, int)

  def check(error, match, **options):
    with pytest.raises(error, match=match):
      jax.eval_shape(functools.partial(call, name, **options), c, y)

  check(ValueError, 'negative, got -1', margin_std=-1)
  for clip in ((1.0, -1.0), (1.0, 1.0), (1.0,), (-1.0, 0.0, 1.0)):
    check(ValueError, r'clip must be \(low, high\).*got', clip=clip)
  with pytest.raises(TypeError, match=r'jax\.random\.key'):
    getattr(losses, name)(c, y, key=np.zeros(2, np.uint32))
  if name in PLUS:
    check(ValueError, "'rank'", pairing='rank')
