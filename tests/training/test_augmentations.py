# SPDX-License-Identifier: Apache-2.0
"""Each augmentation, compared with Pillow, SciPy or a loop in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance

from elasticface_jax.training import augmentations, resampling
from elasticface_jax.training.resampling import METHODS

SIZE = 24, 20  # Not square.
AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)


@pytest.fixture(scope='module')
def image():
  # Steep edges, and both ends of the range.
  noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  noise[5:15, 4:12] = 255
  noise[8:11, 6:9] = 0
  return noise


def changed(augmentation, image, uniforms):
  """Changes an image by each row of uniforms, compiled, as NumPy."""
  uniforms = np.asarray(uniforms, np.float32)
  return np.asarray(jax.jit(jax.vmap(augmentation, (None, 0)))(image, uniforms))


def levels_off(ours, expected):
  return np.abs(ours.astype(int) - expected.astype(int))


def keys_cubic(x, a=-0.75):
  x = abs(x)
  if x < 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(row, made, method):
  """Resizes a row as OpenCV defines it, pixel by pixel, in float64."""
  taken = len(row)
  at = lambda i: row[min(max(i, 0), taken - 1)]
  sums = np.concatenate([[0], np.cumsum(row)])
  new = []
  for o in range(made):
    place = (o + 0.5) * taken / made - 0.5
    below = math.floor(place)
    match method:
      case 'nearest':
        value = row[o * taken // made]
      case 'linear':
        value = np.interp(place, np.arange(taken), row)
      case 'area':
        ends = np.array([o, o + 1]) * taken / made
        value = np.diff(np.interp(ends, np.arange(taken + 1), sums))
        value = value[0] * made / taken
      case 'cubic':
        taps = range(below - 1, below + 3)
        value = sum(at(i) * keys_cubic(place - i) for i in taps)
      case 'lanczos':
        taps = range(below - 3, below + 5)
        weights = [np.sinc(place - i) * np.sinc((place - i) / 4) for i in taps]
        value = np.dot([at(i) for i in taps], weights) / sum(weights)
    new.append(value)
  return np.array(new)


def resized_image(image, size, method):
  rows = np.apply_along_axis(resized, 0, image.astype(float), size[0], method)
  both = np.apply_along_axis(resized, 1, rows, size[1], method)
  return np.clip(np.floor(both + 0.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('method', METHODS)
def test_weights_of_resizing(method):
  length, rng = 112, np.random.default_rng(0)
  weights = jax.jit(resampling.resize_weights, static_argnums=0)
  # By 2 and 4, by nothing, to and from one pixel, and less even ones.
  for first, taken, made in [
    *((0, 112, made) for made in (112, 111, 79, 56, 28, 23, 1)),
    *((0, taken, 112) for taken in (111, 79, 56, 23, 2, 1)),
    *((13, 50, 112), (62, 50, 31), (111, 1, 112)),
  ]:
    row = rng.random(length)
    found = np.asarray(
      weights(
        length, METHODS.index(method), first=first, taken=taken, made=made
      )
    )
    expected = resized(row[first : first + taken], made, method)
    np.testing.assert_allclose(found[:made] @ row, expected, atol=2e-6)
    assert not found[made:].any()
    assert not found[:, :first].any() and not found[:, first + taken :].any()


@pytest.mark.parametrize('sigma', [0.01, 0.1, 0.8, 2.0, 20.0])
def test_weights_of_a_blur(sigma):
  row = np.random.default_rng(0).random(112)
  found = np.asarray(resampling.blur_weights(112, sigma)) @ row
  # As wide as SciPy can mirror the image.
  radius = round(min(111, 8 * sigma + 1))
  expected = scipy.ndimage.gaussian_filter1d(
    row, sigma, mode='mirror', radius=radius
  )
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_resampling_rounds_and_clips(image):
  # Products without rounding errors; sums far outside of the range, and halves.
  rng = np.random.default_rng(0)
  rows, columns = (
    rng.choice([-0.5, 0, 0, 0, 0.25, 1], (n, n)).astype(np.float32)
    for n in SIZE
  )
  exact = np.einsum('oh,hwc,pw->opc', rows, image.astype(float), columns)
  assert exact.min() < 0 and exact.max() > 255 and (exact % 1 == 0.5).any()
  np.testing.assert_array_equal(
    resampling.resample(image, rows, columns),
    np.clip(np.floor(exact + 0.5), 0, 255),
  )


def drawn_rectangle(uniforms, size, area, aspect):
  """The rectangle of torchvision's description, try by try."""
  height, width = size
  tries = len(uniforms) // 2 - 1
  log = np.log(aspect)
  for shares, ratios in zip(uniforms[:tries], uniforms[tries:-2], strict=True):
    pixels = height * width * (area[0] + shares * (area[1] - area[0]))
    ratio = math.exp(log[0] + ratios * (log[1] - log[0]))
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = int(uniforms[-2] * (height - h + 1))
      return top, int(uniforms[-1] * (width - w + 1)), h, w
  return None


@pytest.fixture(scope='module')
def rectangles():
  count = augmentations.Crop.numbers
  uniforms = np.random.default_rng(1).random((60, count), np.float32)
  drawn = [drawn_rectangle(u, SIZE, AREA, ASPECT) for u in uniforms]
  # Where the first try does not fit, another one is taken.
  assert None not in drawn and len(set(drawn)) > 50
  return uniforms, drawn


def test_crop(image, rectangles):
  uniforms, drawn = rectangles
  ours = changed(augmentations.Crop(1.0, AREA, ASPECT), image, uniforms)
  for one, (top, left, height, width) in zip(ours, drawn, strict=True):
    place = slice(top, top + height), slice(left, left + width)
    expected = np.zeros_like(image)
    expected[place] = image[place]
    np.testing.assert_array_equal(one, expected)


def test_resized_crop(image, rectangles):
  uniforms, drawn = rectangles
  ours = changed(augmentations.ResizedCrop(1.0, AREA, ASPECT), image, uniforms)
  for one, (top, left, height, width) in zip(ours, drawn, strict=True):
    part = Image.fromarray(image[top : top + height, left : left + width])
    expected = part.resize(SIZE[::-1], Image.Resampling.BILINEAR)
    assert levels_off(one, np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
  'aspect, height, width',
  [((3.0, 4.0), 7, 20), ((0.2, 0.25), 24, 6), ((0.7, 2.0), 24, 20)],
)
def test_crop_where_no_try_fits(aspect, height, width):
  # Only the first two are outside of the image's own aspect, 20 / 24.
  numbers = augmentations.Crop.numbers
  uniforms = np.full((1, numbers), 0.999)
  uniforms[0, numbers // 2 - 1 : -2] = 0.0 if aspect[0] < 0.5 else 0.9
  crop = augmentations.Crop(1.0, (0.99, 1.0), aspect)
  assert drawn_rectangle(uniforms[0], SIZE, crop.area, aspect) is None
  (ours,) = changed(crop, np.full((*SIZE, 3), 255, np.uint8), uniforms)
  rows, columns = (np.flatnonzero(ours[..., 0].any(axis=i)) for i in (1, 0))
  for found, size, taken in (
    (rows, SIZE[0], height),
    (columns, SIZE[1], width),
  ):
    assert (found[0], len(found)) == ((size - taken) // 2, taken)


def test_low_resolution(image):
  pairs = list(itertools.product(range(5), repeat=2))
  sides = np.linspace(0, 0.999, len(pairs))
  low, high = 0.2, 1.0
  uniforms = [
    (s, (down + 0.5) / 5, (up + 0.5) / 5)
    for s, (down, up) in zip(sides, pairs, strict=True)
  ]
  ours = changed(augmentations.LowResolution(1.0, (low, high)), image, uniforms)
  for one, side, (down, up) in zip(ours, sides, pairs, strict=True):
    small = [int((low + side * (high - low)) * n) for n in SIZE]
    expected = resized_image(image, small, METHODS[down])
    expected = resized_image(expected, SIZE, METHODS[up])
    # A sum at a half may be rounded otherwise.
    off = levels_off(one, expected)
    assert (off > 0).mean() < 0.03 and off.max() <= 2, (down, up)


def test_low_resolution_of_a_pixel(image):
  low = augmentations.LowResolution(1.0, (0.001, 0.001))
  (ours,) = changed(low, image, [(0.5, 0.5, 0.5)])  # By area both times.
  mean = np.floor(image.mean(axis=(0, 1)) + 0.5)
  np.testing.assert_array_equal(ours, np.broadcast_to(mean, ours.shape))


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_photometric(image, order):
  enhance = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
  place = (sorted(itertools.permutations(range(3))).index(order) + 0.5) / 6
  uniforms = np.random.default_rng(2).random((40, 3), np.float32)
  ours = changed(
    augmentations.Photometric(1.0, (0.5, 1.5), (0.25, 1.75), (0.0, 2.0)),
    image,
    [(place, *u) for u in uniforms],
  )
  worst = []
  for one, u in zip(ours, uniforms, strict=True):
    factors = [0.5, 0.25, 0] + u * [1, 1.5, 2]
    expected = Image.fromarray(image)
    for i in order:
      expected = enhance[i](expected).enhance(factors[i])
    worst.append(levels_off(one, np.asarray(expected)))
  # Where a product is next to an integer, Pillow may cut off one level more,
  # and what follows multiplies it.
  assert (np.array(worst) > 0).mean() < 1e-3 and np.max(worst) <= 4


def test_a_factor_of_one_changes_nothing(image):
  one = (1.0, 1.0)
  same = augmentations.Photometric(1.0, one, one, one)
  np.testing.assert_array_equal(
    changed(same, image, [(0.3, 0.2, 0.9, 0.5)])[0], image
  )


def test_grey(image):
  (ours,) = changed(augmentations.Grey(1.0), image, np.zeros((1, 0)))
  expected = Image.fromarray(image).convert('L').convert('RGB')
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_blur(image):
  uniforms = np.linspace(0, 0.999, 20)[:, None]
  ours = changed(augmentations.Blur(1.0, (0.1, 2.0)), image, uniforms)
  for one, u in zip(ours, uniforms[:, 0], strict=True):
    blurred = scipy.ndimage.gaussian_filter(
      image.astype(float),
      (0.1 + 1.9 * u, 0.1 + 1.9 * u, 0),
      mode='mirror',
      truncate=9,
    )
    off = levels_off(one, np.floor(blurred + 0.5))
    assert (off > 0).mean() < 1e-3 and off.max() <= 1


# What is drawn evenly. Seeds are fixed: a test passes always or never.


def check_even(counts):
  assert scipy.stats.chisquare(counts).pvalue > 1e-3, counts


def uniforms_of(augmentation, count, seed):
  rng = np.random.default_rng(seed)
  return rng.random((count, augmentation.numbers), np.float32)


def counts_of_images(images):
  return np.unique(images.reshape(len(images), -1), axis=0, return_counts=True)[
    1
  ]


def test_interpolations_are_drawn_evenly(image):
  # At one side the 25 pairs give 25 images.
  low = augmentations.LowResolution(1.0, (0.45, 0.45))
  counts = counts_of_images(
    changed(low, image[:12, :12], uniforms_of(low, 5000, 0))
  )
  assert len(counts) == 25
  check_even(counts)


def test_orders_are_drawn_evenly(image):
  jitter = augmentations.Photometric(1.0, (1.4, 1.4), (0.6, 0.6), (1.5, 1.5))
  counts = counts_of_images(
    changed(jitter, image[:12, :12], uniforms_of(jitter, 3000, 0))
  )
  assert len(counts) == 6
  check_even(counts)


@pytest.mark.parametrize('field', ['brightness', 'contrast', 'saturation'])
def test_factors_are_drawn_evenly(field):
  ranges = {n: (1.0, 1.0) for n in ('brightness', 'contrast', 'saturation')}
  jitter = augmentations.Photometric(1.0, **ranges | {field: (0.5, 1.5)})
  # Two pixels whose distance from black, from the mean, or from grey becomes
  # 60 times the factor.
  first = {'contrast': (180,) * 3, 'saturation': (100, 100, 160)}
  second = {'contrast': (60,) * 3, 'saturation': (100, 100, 160)}
  pair = [first.get(field, (60,) * 3), second.get(field, (60,) * 3)]
  images = np.array([pair], np.uint8)
  ours = changed(jitter, images, uniforms_of(jitter, 3000, 1)).astype(int)
  factors = {
    'brightness': ours[:, 0, 0, 0] / 60,
    'contrast': (ours[:, 0, 0, 0] - ours[:, 0, 1, 0]) / 120,
    'saturation': (ours[:, 0, 0, 2] - ours[:, 0, 0, 0]) / 60,
  }[field]
  # In steps of a level or two, 1 / 60.
  assert 0.48 <= factors.min() < 0.53 and 1.47 < factors.max() <= 1.52
  counts, _ = np.histogram(factors + 1e-6, np.arange(0.5, 1.6, 0.2))
  assert np.all(np.abs(counts / 3000 - 0.2) < 0.045), counts


def test_sides_are_drawn_evenly():
  low = augmentations.LowResolution(1.0, (0.2, 1.0))
  ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None], (40, 40))
  uniforms = uniforms_of(low, 2000, 2) * [1, 0, 0]  # Nearest both times.
  ours = changed(low, np.stack([ramp] * 3, axis=-1), uniforms)
  sides = [len(np.unique(one[:, 0, 0])) for one in ours]
  counts = np.bincount(sides)
  assert (min(sides), len(counts)) == (8, 40)
  check_even(counts[8:])


def test_rectangles_are_those_of_torchvision():
  # Drawn here by other random numbers, as often as needed.
  size, count = (112, 112), 4000
  rng = np.random.default_rng(3)
  expected = np.array(
    [drawn_rectangle(rng.random(200), size, AREA, ASPECT) for _ in range(count)]
  )
  uniforms = uniforms_of(augmentations.Crop, count, 4)
  ours = jax.jit(
    jax.vmap(lambda u: augmentations._rectangle(size, u, AREA, ASPECT))
  )(uniforms)
  (top, height), (left, width) = jax.tree.map(np.asarray, ours)
  ours = np.stack([top, left, height, width], axis=1)
  assert np.all(ours >= [0, 0, 1, 1])
  assert np.all(ours[:, :2] + ours[:, 2:] <= 112)
  measures = {
    'area': lambda x: x[:, 2] * x[:, 3] / 112**2,
    'aspect': lambda x: np.log(x[:, 3] / x[:, 2]),
    'top': lambda x: x[:, 0] / (113 - x[:, 2]),
    'left': lambda x: x[:, 1] / (113 - x[:, 3]),
  }
  for name, measure in measures.items():
    found = scipy.stats.ks_2samp(measure(ours), measure(expected))
    assert found.pvalue > 1e-3, name
  area = measures['area'](ours)
  assert 0.19 < area.min() < 0.21 and area.max() > 0.98
  ratio = measures['aspect'](ours)
  assert abs(np.abs(ratio).max() - np.log(4 / 3)) < 0.03
  # The largest uniform never becomes the count itself.
  largest = jnp.float32(1) - jnp.float32(2**-23)
  for n in (3, 5, 6, 91, 113):
    assert int(augmentations._index(largest, n)) == n - 1
