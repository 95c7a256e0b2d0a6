# SPDX-License-Identifier: Apache-2.0
r"""The target functions of the losses, against NumPy in float64.

The library never leaves the cosine. The formulas of the reference are those of
the papers, of the angle :math:`\theta` that arccos gives, differentiated by
hand: the slope by the cosine is :math:`-\psi'(\theta) / \sin\theta`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elasticface_jax.losses import _targets

from .programs import QUICK
from .reference import (
  ANGULAR,
  curricular_others,
  formula,
  slope_by_differences,
)

# Margins at which each branch of a kind acts on the angles of `grid`.
MARGINS = {
  'arc': [(0.5,), (0.0,), (np.pi,)],
  'cos': [(0.35,), (0.0,)],
  'combined': [(1.0, 0.3, 0.2), (0.9, 0.4, 0.15), (1.35, 0.0, 0.0)],
  'sphere': [(1.7,), (1.0,), (2.0,), (4.0,)],
  'x2': [(-0.9, 0.0, 0.65), (-0.5, 0.3, 0.9)],
  'adaface': [(0.4, 0.0), (-0.4, 0.8), (0.1, 0.5)],
  'magface': [(0.45,), (0.8,)],
  'curricular': [(0.5, 0.3), (1.2, 0.3)],
}
KINDS = [(kind, margins) for kind in MARGINS for margins in MARGINS[kind]]
EACH_KIND = [(kind, MARGINS[kind][0]) for kind in MARGINS]
# Margins that leave the cosine as it is.
NONE = {
  'arc': (0.0,),
  'cos': (0.0,),
  'combined': (1.0, 0.0, 0.0),
  'sphere': (1.0,),
  'adaface': (0.0, 0.0),
  'magface': (0.0,),
  'curricular': (0.0, 0.3),
}
EAGER_AND_JIT = pytest.mark.parametrize('jit', [False, True])
COUNT = 397


def grid(count=COUNT):
  """Cosines in float32, whose angles keep off the places where pieces meet."""
  theta = np.linspace(0.004, np.pi - 0.004, count)
  cosines = np.cos(theta).astype(np.float32)
  theta = np.arccos(cosines.astype(np.float64))
  joints = [np.pi / 2, 0.4 + 1e-3]
  joints += [np.pi - m for m in (0.1 + 1e-3, 0.4 + 1e-3, 0.5, 1.2)]
  joints += [np.pi * k / m for m in (1.7, 2.0, 4.0) for k in range(1, 4)]
  apart = np.abs(theta[:, None] - np.array(joints)[None, :]).min(axis=1)
  return cosines[apart > 0.0025]


def change(kind, cosines, margins, gradient='exact'):
  return _targets.change_target(cosines, margins, kind=kind, gradient=gradient)


def value_and_slopes(kind, cosines, margins, gradient='exact', jit=True):
  """Changed cosines, and their derivatives by cosine and margins."""
  dtype = cosines.dtype if cosines.dtype == np.float64 else np.float32
  # One number of cosines, one program: of all kinds, as few as there can be.
  repeated = np.resize(np.asarray(cosines, dtype), COUNT)
  full = {
    k: tuple(np.full(COUNT, m, dtype) for m in values[0])
    for k, values in MARGINS.items()
  }
  full[kind] = tuple(np.full(COUNT, m, dtype) for m in margins)
  if not jit:
    results = _value_and_slopes(kind, gradient, repeated, full[kind])
  elif dtype == np.float64:
    results = _compiled_wide(repeated, full)[kind, gradient]
  else:
    results = _compiled(repeated, full)[kind, gradient]
  return jax.tree.map(lambda x: np.asarray(x)[: len(cosines)], results)


def _value_and_slopes(kind, gradient, cosines, margins):
  value, pullback = jax.vjp(
    lambda c, margins: change(kind, c, margins, gradient), cosines, margins
  )
  return value, *pullback(jnp.ones_like(value))


def _all_kinds(gradients, cosines, margins):
  return {
    (kind, gradient): _value_and_slopes(kind, gradient, cosines, margins[kind])
    for kind in MARGINS
    for gradient in gradients
  }


_compiled = jax.jit(functools.partial(_all_kinds, _targets.GRADIENTS))
# Float64 is for the mathematics, and compiled in less time.
_compiled_wide = jax.jit(
  functools.partial(_all_kinds, ['exact']), compiler_options=QUICK
)


def test_every_kind_has_its_formula():
  assert list(MARGINS) == list(_targets.KINDS)
  for kind, margins in KINDS:
    assert len(margins) == len(_targets.KINDS[kind].margins)


@pytest.mark.parametrize('kind, margins', KINDS)
def test_the_formulas_are_differentiated_right(kind, margins):
  theta = np.arccos(grid().astype(np.float64))
  value = lambda theta: formula(kind, theta, margins)[0]
  np.testing.assert_allclose(
    -slope_by_differences(value, theta),
    formula(kind, theta, margins)[1],
    atol=1e-9,
  )


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('kind, margins', KINDS)
def test_target_and_slope(kind, margins, wide):
  cosines = grid().astype(np.float64 if wide else np.float32)
  # The margins as the target is given them, to their last digit.
  margins = tuple(np.asarray(m, cosines.dtype).astype(float) for m in margins)
  theta = np.arccos(cosines.astype(np.float64))
  want, falls = formula(kind, theta, margins)
  with jax.enable_x64(wide):
    value, slope, _ = value_and_slopes(kind, cosines, margins)
  assert value.dtype == slope.dtype == cosines.dtype
  # Rounding, nothing else: of what is computed and, where the angle itself is
  # taken, of that. In float64 the reference rounds as much.
  ulp = 4 * 2**-52 if wide else 2**-23
  of_value, of_fall = 1 + np.abs(want), 1 + np.abs(falls)
  if kind in ANGULAR:
    of_value += theta * np.abs(falls)
    of_fall += theta * max(2, margins[0] ** 2)
  assert np.all(np.abs(value - want) <= ulp * of_value)
  error = np.abs(slope.astype(float) * np.sin(theta) - falls)
  assert np.all(error <= (1e-12 if wide else ulp) * of_fall)


@pytest.mark.parametrize('kind, margins', KINDS)
def test_slopes_by_the_margins(kind, margins):
  cosines = grid().astype(np.float64)
  theta = np.arccos(cosines)
  with jax.enable_x64(True):
    _, _, slopes = value_and_slopes(kind, cosines, margins)
  if kind == 'curricular':
    np.testing.assert_array_equal(slopes[1], 0 * theta)  # t is the others'.
    slopes = slopes[:1]
  for i, slope in enumerate(slopes):
    value = lambda m, i=i: formula(
      kind, theta, (*margins[:i], m, *margins[i + 1 :])
    )[0]
    want = slope_by_differences(value, margins[i], 3e-4)
    np.testing.assert_allclose(slope, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('kind, margins', EACH_KIND)
def test_the_slope_has_no_floor_next_to_the_ends(kind, margins):
  # The last float32 numbers before +-1, where any epsilon would show.
  cosines = np.float32([1 - 2**-24, 1 - 2**-23, 0.9999, -1 + 2**-24, -0.999])
  margins = tuple(np.float32(margin).astype(float) for margin in margins)
  theta = np.arccos(cosines.astype(np.float64))
  want = formula(kind, theta, margins)[1] / np.sin(theta)
  _, slope, _ = value_and_slopes(kind, cosines, margins)
  np.testing.assert_allclose(
    slope, want, rtol=1e-6 if kind not in ANGULAR else 3e-6
  )
  if kind == 'arc':
    assert want[0] > 1000


@pytest.mark.parametrize('kind', MARGINS)
def test_finite_at_the_ends_and_beyond(kind):
  # Rounding puts the cosine of a vector with itself at 1 + 1e-7.
  cosines = np.float32([1, -1, 0, 1 + 2**-23, -1 - 2**-23, 1.001])
  theta = np.arccos(np.clip(cosines, -1, 1).astype(np.float64))
  count = len(MARGINS[kind][0])
  for margins in (*MARGINS[kind], (0.0,) * count, (np.pi,) * count):
    value, slope, slopes = value_and_slopes(kind, cosines, margins)
    for result in (value, slope, *slopes):
      assert np.all(np.isfinite(result))
    # A cosine of 1.001 may go on outside.
    want, _ = formula(kind, theta[:3], margins)
    np.testing.assert_allclose(value[:3], want, rtol=2e-6, atol=2e-6)
    if kind == 'arc':
      ends = slope[[0, 1, 3, 4, 5]]
      np.testing.assert_allclose(ends, np.cos(margins[0]), rtol=1e-6)


@pytest.mark.parametrize('kind, margins', KINDS)
def test_jit_is_eager_to_an_ulp(kind, margins):
  cosines = grid()
  compiled, _, _ = value_and_slopes(kind, cosines, margins)
  eager, _, _ = value_and_slopes(kind, cosines, margins, jit=False)
  ulps = max(1, margins[0]) if kind in ANGULAR else 1
  # XLA may fuse a product and a sum into one rounding: an ulp of what the
  # angle is multiplied by.
  error = np.abs(compiled - eager)
  assert np.all(error <= ulps * 2**-23 * (1 + np.abs(eager)))


def test_vmap_and_one_margin_for_all():
  cosines = grid()

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(cosines):
    return {
      kind: (
        jax.vmap(lambda c, k=kind, m=margins: change(k, c, m))(cosines),
        change(kind, cosines, margins),
      )
      for kind, margins in EACH_KIND
    }

  for kind, results in run(cosines).items():
    want, _, _ = value_and_slopes(kind, cosines, MARGINS[kind][0])
    ulps = max(1, MARGINS[kind][0][0]) if kind in ANGULAR else 1
    for got in results:
      error = np.abs(np.asarray(got) - want)
      assert np.all(error <= ulps * 2**-23 * (1 + np.abs(want))), kind


@EAGER_AND_JIT
@pytest.mark.parametrize('kind, margins', EACH_KIND)
def test_straight_through_changes_the_slope_and_not_one_bit_else(
  kind, margins, jit
):
  cosines = np.append(grid(), np.float32([1, -1, 0]))
  exact, _, _ = value_and_slopes(kind, cosines, margins, jit=jit)
  value, slope, _ = value_and_slopes(
    kind, cosines, margins, 'straight_through', jit
  )
  np.testing.assert_array_equal(value, exact)
  np.testing.assert_array_equal(slope, np.ones_like(cosines))


@EAGER_AND_JIT
@pytest.mark.parametrize('kind', NONE)
def test_no_margin_changes_no_bit(kind, jit):
  cosines = np.append(grid(), np.float32([1, -1, 0]))
  if kind == 'adaface':  # Which holds the angle off the ends.
    cosines = grid()
  value, slope, _ = value_and_slopes(kind, cosines, NONE[kind], jit=jit)
  np.testing.assert_array_equal(value, cosines)
  np.testing.assert_array_equal(slope, np.ones_like(cosines))


@EAGER_AND_JIT
def test_the_combined_margin_is_its_parts_bit_for_bit(jit):
  cosines = np.append(grid(), np.float32([1, -1, 0]))
  for kind, part in (('arc', 1), ('cos', 2)):
    margins = [1.0, 0.0, 0.0]
    margins[part] = 0.4
    run = functools.partial(value_and_slopes, cosines=cosines, jit=jit)
    value, slope, by_margins = run('combined', margins=tuple(margins))
    want, want_slope, want_by_margin = run(kind, margins=(0.4,))
    np.testing.assert_array_equal(value, want)
    np.testing.assert_array_equal(slope, want_slope)
    np.testing.assert_array_equal(by_margins[part], want_by_margin[0])


# What each kind is for.


@pytest.mark.parametrize('margin', [1.0, 1.5, 1.7, 2.0, 3.0, 4.0])
def test_sphereface_falls_over_all_angles(margin):
  theta = np.linspace(0, np.pi, COUNT)
  with jax.enable_x64(True):
    value, _, _ = value_and_slopes('sphere', np.cos(theta), (margin,))
  assert np.all(np.diff(value) < 1e-15)
  # No jump where one piece follows on another.
  assert np.abs(np.diff(value)).max() < 1.01 * margin * np.pi / (COUNT - 1)
  np.testing.assert_allclose(value[0], 1)
  np.testing.assert_allclose(
    value[-1], formula('sphere', np.pi, (margin,))[0], atol=1e-12
  )
  assert np.all(np.diff(value)[::10] < 0)


@pytest.mark.parametrize('margin', [0.1, 0.5, 1.0])
def test_curricularface_falls_over_all_angles(margin):
  cosines = np.cos(np.linspace(0, np.pi, COUNT))
  with jax.enable_x64(True):
    value, _, _ = value_and_slopes('curricular', cosines, (margin, 0.0))
  assert np.all(np.diff(value) < 0)
  # ArcFace's rises again.
  assert formula('arc', np.pi, (margin,))[0] > -1


def test_adaface_holds_the_angle_at_both_ends():
  cosines = np.cos(np.float32([0.1, 0.39, 3.0, 3.14]))
  for margin, held in ((-0.4, [0, 1]), (0.4, [2, 3])):
    value, slope, _ = value_and_slopes('adaface', cosines, (margin, 0.25))
    end = np.cos(1e-3) if margin < 0 else -np.cos(1e-3)
    np.testing.assert_allclose(value[np.array(held)], end - 0.25, rtol=1e-6)
    np.testing.assert_array_equal(slope[np.array(held)], np.zeros(2))
    assert np.count_nonzero(slope) == 2


def test_magface_leaves_a_right_angle_and_more():
  cosines = np.float32([0.0, -0.0, -0.5, -1.0])
  value, slope, _ = value_and_slopes('magface', cosines, (0.8,))
  np.testing.assert_array_equal(value, cosines)
  np.testing.assert_array_equal(slope, np.ones(4))
  value, _, _ = value_and_slopes('magface', np.float32([1e-6]), (0.8,))
  np.testing.assert_allclose(value, -np.sin(0.8), rtol=1e-5)


def test_curricularface_changes_hard_negatives_alone():
  rng = np.random.default_rng(0)
  cosines = rng.uniform(-1, 1, (40, 30))
  target = rng.uniform(-1, 1, 40)
  margins = rng.normal(0.5, 0.1, 40)
  value = lambda c, *rest: _targets.change_others(
    c, rest[0], rest[1:], kind='curricular'
  )

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(*arguments):
    results, pullback = jax.vjp(value, *arguments)
    return results, pullback(jnp.ones_like(cosines))

  for t in (0.0, 0.3, 1.0):
    want, slope = curricular_others(cosines, np.arccos(target), margins, t)
    assert 100 < (want != cosines).sum() < 1100
    with jax.enable_x64(True):
      got, (by_cosine, *others) = run(cosines, target, margins, np.full(40, t))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(by_cosine, slope, rtol=1e-12)
    for gradient in others:
      np.testing.assert_array_equal(gradient, np.zeros(40))


@pytest.mark.parametrize('kind', [k for k in MARGINS if k != 'curricular'])
def test_other_kinds_leave_the_others(kind):
  cosines, target = np.ones((3, 2)), np.zeros(3)
  got = _targets.change_others(cosines, target, MARGINS[kind][0], kind=kind)
  assert got is cosines


def test_angles_and_their_slope():
  cosines = np.append(grid(), np.float32([1, -1, 1.5, -1.5]))
  run = jax.jit(
    lambda c: (
      _targets.angles(c),
      jax.grad(lambda c: _targets.angles(c).sum())(c),
    )
  )
  angles, slopes = map(np.asarray, run(cosines))
  wide = cosines[:-4].astype(np.float64)
  np.testing.assert_allclose(angles[:-4], np.arccos(wide), rtol=2**-22)
  np.testing.assert_allclose(
    slopes[:-4], -1 / np.sqrt((1 - wide) * (1 + wide)), rtol=1e-6
  )
  np.testing.assert_allclose(angles[-4:], [0, np.pi, 0, np.pi])
  np.testing.assert_array_equal(slopes[-4:], np.zeros(4))


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="'straight_through'.*'none'"):
    change('arc', np.zeros(2), (0.5,), gradient='none')
  with pytest.raises(ValueError, match="arc, cos, .*, not 'tan'"):
    change('tan', np.zeros(2), (0.5,))
