# SPDX-License-Identifier: Apache-2.0
"""Random changes of an image: crops, low resolution, colours, grey, blur.

Each maps one uint8 image and uniforms in [0, 1) to a uint8 image of the same
size, and is pure: `augment` draws the uniforms and maps over the samples of a
group. Between two of them images are uint8 in the libraries that published
recipes use, too. What they draw from are their attributes.
"""

import dataclasses
import itertools
import math
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from elasticface_jax.training import resampling

Range = tuple[float, float]  # Lowest and highest value of a uniform draw.

# Rectangles that are drawn for a crop; the first that fits is taken.
_TRIES = 10


class Augmentation(Protocol):
  """A random change of one image.

  Attributes:
    name: by which its random values are drawn, apart from all others.
    numbers: how many a sample takes, besides the one that chooses it.
    probability: of a sample to be chosen.
  """

  name: ClassVar[str]
  numbers: ClassVar[int]
  probability: float

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image, uint8 ``[H, W, 3]``, by uniforms ``[numbers]``."""
    ...


@dataclasses.dataclass(frozen=True)
class _OfRectangle:
  """A change by a random rectangle inside the image, as both crops are."""

  numbers: ClassVar[int] = 2 * _TRIES + 2
  probability: float
  area: Range
  aspect: Range

  def _edges(self, size, uniforms):
    """Returns the length of each axis, and what the rectangle takes of it."""
    found = _rectangle(size, uniforms, self.area, self.aspect)
    return zip(size, found, strict=True)


@dataclasses.dataclass(frozen=True)
class ResizedCrop(_OfRectangle):
  """A random rectangle, resized to the full image (Inception, torchvision).

  Differs from torchvision's `RandomResizedCrop` in: the image is rounded once,
  where Pillow rounds after each axis; pixels differ by one level at most.

  Attributes:
    probability: of a sample to be chosen.
    area: of the rectangle, as a share of the image.
    aspect: width divided by height; its logarithm is uniform.
  """

  name: ClassVar[str] = 'resized_crop'

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    rows, columns = (
      resampling.resize_weights(
        length, resampling.LINEAR, first=first, taken=taken, made=length
      )
      for length, (first, taken) in self._edges(image.shape[:2], uniforms)
    )
    return resampling.resample(image, rows, columns)


@dataclasses.dataclass(frozen=True)
class Crop(_OfRectangle):
  """A random rectangle that stays where it is; all around it becomes black.

  AdaFace's crop. The rectangle is drawn as that of `ResizedCrop`.

  Attributes:
    probability: of a sample to be chosen.
    area: of the rectangle, as a share of the image.
    aspect: width divided by height; its logarithm is uniform.
  """

  name: ClassVar[str] = 'crop'

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    rows, columns = (
      (jnp.arange(length) >= first) & (jnp.arange(length) < first + taken)
      for length, (first, taken) in self._edges(image.shape[:2], uniforms)
    )
    inside = rows[:, None] & columns[None]
    return jnp.where(inside[:, :, None], image, jnp.uint8(0))


@dataclasses.dataclass(frozen=True)
class LowResolution:
  """A smaller image, enlarged again: AdaFace's low resolution.

  Down by one and up by another of the five interpolations of
  `resampling.METHODS`, which are OpenCV's; each is drawn evenly.

  Differs from OpenCV in: weights are float32, not of 11 bits, so that pixels
  of one resizing differ by one level at most; and places are quotients of
  integers. For eight of the sides from 22 to 111, such as 36 and 72, OpenCV's
  rounded quotient makes 'nearest', and 'area' upwards, take the pixel before.

  Attributes:
    probability: of a sample to be chosen.
    side: of the smaller image, as a share of the image's; rounded down.
  """

  name: ClassVar[str] = 'low_resolution'
  numbers: ClassVar[int] = 3
  probability: float
  side: Range

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    side = _between(uniforms[0], self.side)
    down, up = (_index(u, len(resampling.METHODS)) for u in uniforms[1:])
    small = [
      jnp.maximum(jnp.floor(side * length), 1).astype(jnp.int32)
      for length in image.shape[:2]
    ]
    weights = resampling.resize_weights
    lengths = list(zip(image.shape[:2], small, strict=True))
    image = resampling.resample(
      image, *(weights(n, down, first=0, taken=n, made=s) for n, s in lengths)
    )
    return resampling.resample(
      image, *(weights(n, up, first=0, taken=s, made=n) for n, s in lengths)
    )


@dataclasses.dataclass(frozen=True)
class Photometric:
  """Brightness, contrast and saturation, in random order.

  Each is a blend of the image with another one, by a factor that is drawn:
  with black, with the mean of its luma, and with its luma. 1 changes nothing, 0
  leaves the other one. It is torchvision's `ColorJitter` with hue 0, on images
  of Pillow, whose values it has.

  Differs from AdaFace's code in: red has the weight of red in the luma; there
  images have the channels blue, green, red, and blue has it.

  Attributes:
    probability: of a sample to be chosen.
    brightness: its factor.
    contrast: its factor.
    saturation: its factor.
  """

  name: ClassVar[str] = 'photometric'
  numbers: ClassVar[int] = 4
  probability: float
  brightness: Range
  contrast: Range
  saturation: Range

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    ranges = self.brightness, self.contrast, self.saturation
    factors = jnp.stack(
      [_between(u, r) for u, r in zip(uniforms[1:], ranges, strict=True)]
    )
    orders = list(itertools.permutations(range(3)))
    order = jnp.asarray(orders, jnp.int32)[_index(uniforms[0], len(orders))]
    for place in range(3):
      image = _blend(image, order[place], factors[order[place]])
    return image


def _blend(image, kind, factor):
  """Blends an image with another one: 0 black, 1 its mean, 2 its luma."""
  luma = _luma(image)
  pixels = luma.size
  mean = (2 * luma.sum(dtype=jnp.int32) + pixels) // (2 * pixels)
  black = jnp.zeros_like(luma)
  other = jax.lax.select_n(kind, black, jnp.full_like(luma, mean), luma)
  other = other.astype(jnp.float32)[:, :, None]
  blended = other + factor * (image.astype(jnp.float32) - other)
  # Pillow cuts the fraction off.
  return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _luma(image):
  """Computes luma as in Rec. 601, rounded, int32 ``[H, W]``."""
  red, green, blue = jnp.moveaxis(image.astype(jnp.int32), 2, 0)
  # 0.299, 0.587 and 0.114, times 2**16.
  return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


@dataclasses.dataclass(frozen=True)
class Grey:
  """The luma (Rec. 601) in all three channels, as torchvision's.

  Attributes:
    probability: of a sample to be chosen.
  """

  name: ClassVar[str] = 'grey'
  numbers: ClassVar[int] = 0
  probability: float

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    del uniforms
    grey = _luma(image).astype(jnp.uint8)
    return jnp.broadcast_to(grey[:, :, None], image.shape)


@dataclasses.dataclass(frozen=True)
class Blur:
  """A Gaussian blur of the image, which is mirrored at its edges.

  Differs from torchvision's `GaussianBlur` in: the kernel is as wide as the
  image, not cut off at a size that is given.

  Attributes:
    probability: of a sample to be chosen.
    sigma: standard deviation in pixels.
  """

  name: ClassVar[str] = 'blur'
  numbers: ClassVar[int] = 1
  probability: float
  sigma: Range

  def __call__(self, image: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Changes an image; see `Augmentation`."""
    sigma = _between(uniforms[0], self.sigma)
    weights = [
      resampling.blur_weights(length, sigma) for length in image.shape[:2]
    ]
    return resampling.resample(image, *weights)


def _rectangle(size, uniforms, area, aspect):
  """Draws a rectangle inside an image.

  Args:
    size: height and width of the image.
    uniforms: ``[2 * _TRIES + 2]``.
    area: range of the rectangle's, as a share of the image's.
    aspect: range of width divided by height.

  Returns:
    The first and the number of its rows, and likewise of its columns, int32.
    If no try fits into the image, the largest rectangle in its middle whose
    aspect is in the range.
  """
  tries = uniforms[:-2].reshape(2, _TRIES)
  pixels = math.prod(size) * _between(tries[0], area)
  aspects = jnp.exp(_between(tries[1], tuple(map(math.log, aspect))))
  found = jnp.stack(
    [
      jnp.round(jnp.sqrt(pixels / aspects)),
      jnp.round(jnp.sqrt(pixels * aspects)),
    ]
  )
  fits = ((found >= 1) & (found <= jnp.asarray(size)[:, None])).all(axis=0)
  first_fit = found[:, jnp.argmax(fits)]
  largest = _largest(size, aspect)
  edges = []
  for i, place in enumerate(uniforms[-2:]):
    taken = jnp.where(fits.any(), first_fit[i], largest[i]).astype(jnp.int32)
    spare = size[i] - taken
    first = jnp.where(fits.any(), _index(place, spare + 1), spare // 2)
    edges.append((first, taken))
  return edges


def _largest(size, aspect):
  """Returns height and width of the largest rectangle, of an aspect."""
  height, width = size
  nearest = min(max(width / height, aspect[0]), aspect[1])
  return (
    max(1, min(height, round(width / nearest))),
    max(1, min(width, round(height * nearest))),
  )


def _between(uniforms, ends):
  """Maps [0, 1) to a range."""
  low, high = ends
  return low + (high - low) * uniforms


def _index(uniform, count):
  """Maps [0, 1) to 0, ..., count - 1 evenly, int32."""
  # Never to `count`: 1 - 2**-23, the largest uniform, times a count below 2**23
  # is no nearer to it than to the float before it.
  return jnp.floor(uniform * count).astype(jnp.int32)
