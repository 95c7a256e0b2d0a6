# SPDX-License-Identifier: Apache-2.0
"""The losses in NumPy float64, from the formulas, and batches to compare on.

The reference computes the arccos, changes the target as in the paper, forms the
softmax and differentiates by hand:

  d loss / d cosine_j = s p_j                             for j other than y,
  d loss / d cosine_y = -s (1 - p_y) (-psi'(t) / sin t)

with psi and its derivative from `formula`. In float64 it agrees with the
library element by element. In float32 the target's own cosine has an error of
one ulp of 1, 2**-23, which the scale turns into 7.6e-6 of the logit at 64. So
there each loss and each row of the gradient agrees to the relative error
``1e-6 + s * 2**-23``, and the batch to 1e-6 of its largest value. Losses that
compute with the angle round it too, to an ulp of pi and not of 1.
"""

import numpy as np

# Kinds that compute with the angle, which is rounded to a float itself.
ANGULAR = 'combined', 'sphere', 'x2'
ANGLE_ULPS = 8


def unit(x):
  """Vectors of norm 1; zeros where they are zero."""
  norms = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(norms == 0, 1, norms)


def vectors(count=6, dim=5, seed=0):
  return np.random.default_rng(seed).normal(size=(count, dim))


def formula(kind, theta, margins):
  """The changed cosine of an angle, and its negative slope, in float64."""
  theta = np.asarray(theta, np.float64)
  m, *more = (np.asarray(margin, np.float64) for margin in margins)
  added = np.cos(theta + m), np.sin(theta + m)
  plain = np.cos(theta), np.sin(theta)
  if kind == 'arc':
    return added
  if kind == 'cos':
    return np.cos(theta) - m, np.sin(theta)
  if kind == 'combined':
    total = m * theta + more[0]
    return np.cos(total) - more[1], m * np.sin(total)
  if kind == 'sphere':
    k = np.floor(m * theta / np.pi)
    sign = np.where(k % 2, -1, 1)
    return sign * np.cos(m * theta) - 2 * k, sign * m * np.sin(m * theta)
  if kind == 'x2':
    h, k = more
    return m * (theta - h) ** 2 + k, -2 * m * (theta - h)
  if kind == 'adaface':
    clipped = np.clip(theta + m, 1e-3, np.pi - 1e-3)
    slope = np.where(clipped == theta + m, added[1], 0)
    return np.cos(clipped) - more[0], slope
  if kind == 'magface':
    return tuple(
      np.where(theta < np.pi / 2, *pair)
      for pair in zip(added, plain, strict=True)
    )
  line = np.cos(theta) - m * np.sin(m), np.sin(theta)
  return tuple(
    np.where(theta + m < np.pi, *pair) for pair in zip(added, line, strict=True)
  )


def curricular_others(cosines, target_angles, m, t):
  """The changed cosines of others ``[B, C]``, and their slopes."""
  hard = cosines > np.cos(target_angles + m)[:, None]
  t = np.broadcast_to(t, target_angles.shape)[:, None]
  changed = np.where(hard, cosines * (t + cosines), cosines)
  return changed, np.where(hard, t + 2 * cosines, 1)


def reference(cosines, labels, margins, scale, kind):
  """Loss ``[B]``, its gradient ``[B, C]`` and that by the target's logit."""
  c = np.array(cosines, np.float64)
  each = np.arange(len(c))
  theta = np.arccos(np.clip(c[each, labels], -1, 1))
  target, falls = formula(kind, theta, margins)
  others, slopes = c, np.ones_like(c)
  if kind == 'curricular':
    others, slopes = curricular_others(c, theta, *margins)
  logits = scale * others
  logits[each, labels] = scale * target
  top = logits.max(axis=1, keepdims=True)
  weights = np.exp(logits - top)
  p = weights / weights.sum(axis=1, keepdims=True)
  p[each, labels] = 0
  missed = p.sum(axis=1)  # 1 - p_y, with all its digits.
  loss = top[:, 0] - logits[each, labels] + np.log(weights.sum(axis=1))
  loss = np.where(missed < 0.5, -np.log1p(-np.minimum(missed, 0.5)), loss)
  gradient = scale * p * slopes
  with np.errstate(divide='ignore', invalid='ignore'):
    gradient[each, labels] = -scale * missed * falls / np.sin(theta)
  return loss, gradient, -missed


def slope_by_differences(f, x, step=1e-3):
  """Five-point derivative; its error is of the order of ``step ** 4``."""
  return (
    8 * (f(x + step) - f(x - step)) - (f(x + 2 * step) - f(x - 2 * step))
  ) / (12 * step)


def to_vectors(to_cosines, embeddings, centers):
  """The gradients of embeddings and (sub-)centres, of that of each cosine.

  d cos(x, w) / dx = (w / |w| - cos x / |x|) / |x|; that of a zero vector is 0.
  """
  x, w = unit(embeddings), unit(centers)
  gx, gw = to_cosines @ w, to_cosines.T @ x
  gx -= np.sum(gx * x, axis=1, keepdims=True) * x
  gw -= np.sum(gw * w, axis=1, keepdims=True) * w
  with np.errstate(divide='ignore', invalid='ignore'):
    gx /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    gw /= np.linalg.norm(centers, axis=1, keepdims=True)
  return [np.where(np.isfinite(x), x, 0) for x in (gx, gw)]


def dense_reference(
  embeddings,
  centers,
  labels,
  margins,
  weights,
  *,
  kind,
  scale,
  gradient='exact',
):
  """Loss, and gradients of embeddings, centres and each margin.

  Args:
    embeddings: ``[B, D]``.
    centers: ``[C, D]`` or ``[C, k, D]``.
    labels: ``[B]``.
    margins: ``[B]`` each.
    weights: d objective / d loss, ``[B]``.
    kind: kind of the loss.
    scale: scale of the loss.
    gradient: ``'exact'`` or ``'straight_through'``.
  """
  embeddings, centers = np.float64(embeddings), np.float64(centers)
  weights = np.float64(weights)
  margins, size = tuple(map(np.float64, margins)), len(labels)
  flat = centers.reshape(-1, centers.shape[-1])
  each = (unit(embeddings) @ unit(flat).T).reshape(size, len(centers), -1)
  cosines = each.max(axis=2)
  loss, to_cosines, pull = reference(cosines, labels, margins, scale, kind)
  target = np.arange(size), labels
  if gradient == 'straight_through':
    to_cosines[target] = scale * pull
  # All of it goes to the nearest sub-centre.
  to_each = (weights[:, None] * to_cosines)[:, :, None]
  to_each = to_each * (each == cosines[:, :, None])
  gx, gw = to_vectors(to_each.reshape(size, -1), embeddings, flat)

  theta = np.arccos(np.clip(cosines[target], -1, 1))
  to_margins = []
  for i, margin in enumerate(margins):
    changed = lambda m, i=i: formula(
      kind, theta, (*margins[:i], m, *margins[i + 1 :])
    )[0]
    slope = slope_by_differences(changed, margin, 1e-4)
    if (kind, i) == ('curricular', 1):
      slope = 0 * theta  # t is the others'.
    to_margins.append(weights * scale * pull * slope)
  return [loss, gx, gw.reshape(centers.shape), *to_margins]


def adaface_margins(norms, state, margin=0.4, h=0.333, ema_rate=0.01):
  """Both margins, and the new mean and standard deviation."""
  norms = np.clip(np.float64(norms), 1e-3, 100)
  mean = ema_rate * norms.mean() + (1 - ema_rate) * state.mean
  std = state.std
  if len(norms) > 1:
    std = ema_rate * norms.std(ddof=1) + (1 - ema_rate) * std
  k = np.clip(h * (norms - mean) / (std + 1e-3), -1, 1)
  return (-margin * k, margin + margin * k), (mean, std)


def magface_margins(norms, weight=35.0):
  """Margin and regulariser, and their slopes by the norm."""
  a = np.clip(np.float64(norms), 10, 110)
  inside = a == norms
  margin = 0.45 + (a - 10) * 0.35 / 100
  regularizer = weight * (a / 110**2 + 1 / a)
  slope = weight * (1 / 110**2 - 1 / a**2)
  return margin, regularizer, 0.0035 * inside, slope * inside


# Batches.


def batch(size=32, classes=20, kind='uniform', seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  if kind == 'uniform':
    cosines = rng.uniform(-0.99, 0.99, (size, classes))
  else:  # 'trained': other centres near a right angle, losses near 1 too.
    cosines = rng.normal(0, 0.1, (size, classes))
    cosines[np.arange(size), labels] = rng.uniform(0.3, 0.95, size)
  # Both precisions get the same values.
  return cosines.astype(np.float32), labels


def edges():
  """Targets at and next to every end, among the hardest others."""
  ends = [1, -1, 0, 1 - 2**-24, -1 + 2**-24, 1 + 2**-23, -1 - 2**-23, 1e-6]
  others = [[1, -1], [1, 1], [-1, -1], [0, 0]]
  cosines = [[end, *np.resize(other, 19)] for end in ends for other in others]
  return np.float32(cosines), np.zeros(32, int)


def hard_vectors():
  """Embeddings with, against, far beyond their class centre, and zero ones."""
  centers = vectors(20, 7).astype(np.float32)
  labels = np.resize(np.arange(20), 32)
  stretch = np.resize(np.float32([1, -1, 1e30, 0, -1e-30]), (32, 1))
  embeddings = stretch * centers[labels]
  centers[5] = 0
  return embeddings, centers, labels


# Each margin of each kind: the mean over the samples and the spread.
SPREADS = {
  'arc': [(0.4, 0.1)],
  'cos': [(0.4, 0.1)],
  'combined': [(1.2, 0.1), (0.3, 0.1), (0.1, 0.1)],
  'sphere': [(1.7, 0.1)],
  'x2': [(-0.9, 0.1), (0.1, 0.1), (0.65, 0.1)],
  'adaface': [(0.0, 0.6), (0.4, 0.1)],
  'magface': [(0.6, 0.1)],
  'curricular': [(0.5, 0.1), (0.3, 0.1)],
}


def block_batch(size=12, classes=9, dim=6, seed=0, kind='arc', subcenters=None):
  """Embeddings, class centres, labels, margins, d objective / d loss."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, size)
  labels[: size // 3] = labels[0]
  each = np.arange(size)
  centers = rng.normal(size=(classes, subcenters or 1, dim))
  # Some samples near their class centre, some far; norms of all sizes.
  near = rng.uniform(-4, 4, (size, 1))
  embeddings = near * centers[labels, each % (subcenters or 1)]
  embeddings += rng.normal(size=(size, dim))
  embeddings *= 10 ** rng.uniform(-1, 1, (size, 1))
  centers *= 10 ** rng.uniform(-1, 1, (classes, subcenters or 1, 1))
  margins = [rng.normal(*spread, size) for spread in SPREADS[kind]]
  cotangents = rng.normal(size=size)
  narrow = lambda x: x.astype(np.float32)  # Both precisions get these values.
  return (
    narrow(embeddings),
    narrow(centers if subcenters else centers[:, 0]),
    labels,
    tuple(map(narrow, margins)),
    narrow(cotangents),
  )


# Comparisons.


def rounding(kind, scale):
  """Relative error of the loss in float32; see the top of the file."""
  return 1e-6 + scale * 2**-23 * (ANGLE_ULPS if kind in ANGULAR else 1)


def check_float32(results, want, kind, scale):
  """Compares loss and gradient in float32 with those of the reference."""
  (got, gradient), (loss, by_hand) = results, want
  assert got.dtype == gradient.dtype == np.float32
  relative = rounding(kind, scale)
  # Below this float32 has no digits left to agree in.
  tiny = 1e-37
  np.testing.assert_allclose(got, loss, rtol=relative, atol=tiny)
  largest = np.abs(by_hand).max(axis=1, keepdims=True)
  error = np.abs(gradient - by_hand)
  assert np.all(error <= relative * largest + tiny)
  ulps = ANGLE_ULPS if kind in ANGULAR else 1
  assert np.all(np.abs(got - loss) <= ulps * 1e-6 * loss.max() + tiny)
  assert np.all(error <= ulps * 1e-6 * largest.max() + tiny)


def check_float64(results, want):
  for got, by_hand in zip(results, want, strict=True):
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, by_hand, rtol=1e-10, atol=0)


def check_an_ulp_of_the_target(got, want):
  """Loss and gradient apart by what an ulp of the target is, times 64."""
  np.testing.assert_allclose(got[0], want[0], rtol=64 * 2**-23)
  largest = np.abs(want[1]).max(axis=1, keepdims=True)
  assert np.all(np.abs(got[1] - want[1]) <= 64 * 2**-23 * largest)


def check_bits(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)
