# SPDX-License-Identifier: Apache-2.0
"""Synthetic faces: a data source that draws its images.

A class is a point in a space of some fifty face parameters (outline, skin,
hair, brows, eyes, nose, mouth, beard, glasses, ...). An image of it adds a
point in a space of nuisances (pose, expression, light, wall, occlusion, noise).
Both are uniform, so identities that training never saw have the same
distribution as those that it saw. What a network learns here transfers to
them, as face verification requires.

The nuisances are large on purpose. Of 600 pairs of `synthetic_pairs`, the mean
colour gets 56 % right, raw pixels 64 %, the features of an untrained network
63 %, 100 whitened principal components 76 %; a convolutional network of 0.07
GFLOP gets 97 % after three epochs on 4,000 images of 250 identities.

Every image is a pure function of (seed, identity, image number): its bytes do
not depend on the other images drawn, or on the thread.
"""

import hashlib
import math
from types import SimpleNamespace

import numpy as np

from elasticface_jax.errors import InputError

# Part of the fingerprint, which identifies the images: any change of an image
# must change it.
VERSION = 'elasticface_jax synthetic faces 1'

SIZE = 112

# Identities of pairs start here, which excludes all training classes.
_FIRST_PAIR_IDENTITY = 2**32

# Image coordinates of the pixels: x to the right, y down, both in [-1, 1].
_X = ((np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * (2 / SIZE))[None]
_Y = _X.T.copy()

_WHITE = np.full(3, 0.95, np.float32)
_PUPIL = np.full(3, 0.03, np.float32)
_MOUTH = np.array([0.2, 0.05, 0.05], np.float32)

# Parameters of a face, with their lowest and highest values. Lengths are in
# units of about half a head's height, hues in turns. A `beard`, `moustache`,
# `glasses`, `mole_size`, `stripes` or `occluder` below 0 is absent.
_IDENTITY = {
  'head_width': (0.62, 0.86),
  'head_height': (0.86, 1.02),
  'jaw': (-0.22, 0.12),
  'chin': (-0.12, 0.15),
  'skin_tone': (0.0, 1.0),
  'skin_hue': (-0.03, 0.03),
  'cheeks': (0.0, 0.5),
  'hair_hue': (0.0, 1.0),
  'hair_saturation': (0.0, 0.9),
  'hair_value': (0.05, 0.85),
  'hair_volume': (0.02, 0.16),
  'hair_length': (-0.4, 1.1),
  'hair_width': (0.0, 0.22),
  'hairline_y': (-0.72, -0.42),
  'hairline_bend': (-0.5, 0.9),
  'hairline_slope': (-0.25, 0.25),
  'ear_size': (0.02, 0.18),
  'ear_y': (-0.2, 0.1),
  'brow_distance': (0.15, 0.27),
  'brow_length': (0.13, 0.24),
  'brow_thickness': (0.02, 0.08),
  'brow_slope': (-0.3, 0.3),
  'brow_bend': (-0.5, 2.0),
  'brow_darkness': (0.2, 0.9),
  'eye_x': (0.24, 0.40),
  'eye_y': (-0.18, 0.02),
  'eye_width': (0.11, 0.22),
  'eye_height': (0.05, 0.13),
  'eye_slope': (-0.25, 0.25),
  'iris_size': (0.045, 0.085),
  'iris_hue': (0.0, 1.0),
  'iris_value': (0.15, 0.8),
  'lid': (0.0, 1.0),
  'nose_length': (0.22, 0.44),
  'nose_width': (0.07, 0.19),
  'nose_bridge': (0.02, 0.06),
  'nose_shade': (0.35, 0.85),
  'mouth_distance': (0.15, 0.30),
  'mouth_width': (0.16, 0.34),
  'lip_upper': (0.02, 0.08),
  'lip_lower': (0.025, 0.10),
  'lip_hue': (-0.05, 0.04),
  'lip_saturation': (0.25, 0.8),
  'beard': (-1.0, 1.0),
  'beard_y': (0.25, 0.65),
  'moustache': (-1.5, 1.0),
  'moustache_width': (0.15, 0.3),
  'mole_x': (-0.5, 0.5),
  'mole_y': (0.1, 0.6),
  'mole_size': (-0.03, 0.05),
  'glasses': (-2.0, 1.0),
  'glasses_size': (0.17, 0.27),
  'glasses_shape': (0.65, 1.1),
  'glasses_thickness': (0.015, 0.04),
  'glasses_hue': (0.0, 1.0),
}

# Parameters of an image of it. Angles are in radians, `blur` in pixels.
_NUISANCE = {
  'roll': (-0.18, 0.18),
  'yaw': (-0.16, 0.16),
  'pitch': (-0.12, 0.12),
  'scale': (0.78, 0.92),
  'shift_x': (-0.085, 0.085),
  'shift_y': (-0.085, 0.085),
  'blur': (1.0, 2.2),
  'light_x': (-0.35, 0.35),
  'light_y': (-0.25, 0.25),
  'light_dome': (0.0, 0.4),
  'brightness': (0.75, 1.25),
  'contrast': (0.8, 1.2),
  'warmth': (-0.12, 0.12),
  'tint': (-0.06, 0.06),
  'noise': (0.0, 0.06),
  'mouth_opening': (-0.06, 0.10),
  'smile': (-0.9, 0.9),
  'brow_raise': (-0.05, 0.07),
  'eye_closing': (0.0, 0.45),
  'gaze_x': (-0.06, 0.06),
  'gaze_y': (-0.025, 0.025),
  'wall_hue': (0.0, 1.0),
  'wall_saturation': (0.0, 0.8),
  'wall_value': (0.05, 1.0),
  'wall_gradient_x': (-0.4, 0.4),
  'wall_gradient_y': (-0.4, 0.4),
  'stripes': (-0.2, 0.35),
  'stripes_x': (-8.0, 8.0),
  'stripes_y': (-8.0, 8.0),
  'shirt_hue': (0.0, 1.0),
  'shirt_saturation': (0.0, 0.9),
  'shirt_value': (0.05, 1.0),
  'occluder': (-2.4, 0.8),
  'occluder_x': (-0.8, 0.8),
  'occluder_y': (-0.8, 0.8),
  'occluder_width': (0.08, 0.26),
  'occluder_height': (0.08, 0.26),
  'occluder_slope': (-1.0, 1.0),
  'occluder_hue': (0.0, 1.0),
  'occluder_value': (0.0, 1.0),
}


class SyntheticFaces:
  """Source of drawn faces, without any files.

  Image ``i`` is image ``i // num_classes`` of identity ``i % num_classes``, so
  all classes are evenly filled. `render` keeps no state: any number of threads
  may call it with any indices in any order.

  Attributes:
    num_images: number of images.
    num_classes: number of identities.
    labels: class of each image, int32, ``[num_images]``.
    fingerprint: SHA-256 of everything that determines the images, hexadecimal.

  Examples:
    >>> faces = SyntheticFaces(num_images=6, num_classes=3, seed=0)
    >>> images, labels = faces.render(np.array([1, 4]))
    >>> images.shape, images.dtype, labels
    ((2, 112, 112, 3), dtype('uint8'), array([1, 1], dtype=int32))
  """

  def __init__(self, num_images: int, num_classes: int, seed: int):
    """Checks the arguments and labels the images.

    Args:
      num_images: number of images; at least one for each class.
      num_classes: number of identities, at least 1.
      seed: determines the identities and their images, in ``[0, 2**64)``.

    Raises:
      InputError: if an argument is out of its range.
    """
    if num_classes < 1:
      raise InputError(
        f'num_classes={num_classes}: synthetic faces need at least 1 class'
      )
    if num_images < num_classes:
      raise InputError(
        f'num_images={num_images} is less than num_classes={num_classes}: '
        'give every class at least one image'
      )
    _check_seed(seed)
    self.num_images = num_images
    self.num_classes = num_classes
    self.labels = (np.arange(num_images) % num_classes).astype(np.int32)
    self.fingerprint = hashlib.sha256(
      f'{VERSION}, {num_images=}, {num_classes=}, {seed=}'.encode()
    ).hexdigest()
    self._seed = seed

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws images, in about a millisecond each on one core.

    Args:
      indices: numbers of the images, integer in ``[0, num_images)``, ``[n]``.

    Returns:
      The images, RGB uint8, ``[n, 112, 112, 3]``, and their labels, int32,
      ``[n]``.
    """
    labels = self.labels[indices]
    return _render(self._seed, labels, indices // self.num_classes), labels

  def warm(self, indices: np.ndarray) -> None:
    """Does nothing, since there is no storage."""


def synthetic_pairs(num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a pair set like LFW's: ten folds of genuine, then impostor pairs.

  The identities differ from those of every `SyntheticFaces` with any seed, and
  no two pairs share one.

  Args:
    num_pairs: N, a multiple of 20: every tenth of the set has as many genuine
      pairs as impostor pairs.
    seed: determines the identities and their images, in ``[0, 2**64)``.

  Returns:
    The images, RGB uint8, ``[2N, 112, 112, 3]``, of which 2i and 2i+1 are pair
    i; and True for genuine pairs, bool, ``[N]``.

  Raises:
    InputError: if an argument is out of its range.
  """
  if num_pairs < 20 or num_pairs % 20:
    raise InputError(
      f'num_pairs={num_pairs}: synthetic pairs come in multiples of 20, for '
      'ten folds of equally many genuine and impostor pairs'
    )
  _check_seed(seed)
  fold = num_pairs // 10
  same = np.arange(num_pairs) % fold < fold // 2
  images = np.arange(2 * num_pairs)
  identities = _FIRST_PAIR_IDENTITY + images
  identities[1::2] -= same
  return _render(seed, identities, images % 2), same


def _check_seed(seed: int) -> None:
  if not 0 <= seed < 2**64:
    raise InputError(f'seed={seed}: a seed must be in [0, 2**64)')


def _render(
  seed: int, identities: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
  """Draws image `numbers[i]` of `identities[i]`, one after the other.

  One at a time is fastest, because an image stays in the first-level caches and
  a feature costs only its own pixels.
  """
  images = np.empty((len(identities), SIZE, SIZE, 3), np.uint8)
  wanted = zip(identities.tolist(), numbers.tolist(), strict=True)
  for image, (identity, number) in zip(images, wanted, strict=True):
    face = _sample(_IDENTITY, _stream(seed, identity, 0))
    stream = _stream(seed, identity, 1 + number)
    shot = _sample(_NUISANCE, stream)
    noise = np.frombuffer(stream.bytes(image.size), np.int8)
    image[:] = _draw(face, shot, noise)
  return images


def _stream(seed: int, identity: int, number: int) -> np.random.Generator:
  """Returns the generator of one image (from 1), or of an identity (0)."""
  key = np.array([seed, identity], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=number << 192))


def _sample(ranges: dict, stream: np.random.Generator) -> SimpleNamespace:
  low, high = np.array(list(ranges.values())).T
  values = low + (high - low) * stream.random(len(ranges))
  return SimpleNamespace(**dict(zip(ranges, values.tolist(), strict=True)))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
  """Converts a hue in turns, a saturation and a value to RGB [3] in [0, 1]."""
  ramps = [min(max(abs((6 * hue + k) % 6 - 3) - 1, 0), 1) for k in (0, 4, 2)]
  return np.array(
    [value * (1 - saturation * (1 - ramp)) for ramp in ramps], np.float32
  )


class _Canvas:
  """Pixels of an image, and their coordinates on the head.

  Attributes:
    pixels: planar RGB in [0, 1] before exposure, float32, ``[3, 112, 112]``.
    u, v: head coordinates of every pixel, ``[112, 112]``.
    radius: 0 in the middle of the head, 1 on its outline, ``[112, 112]``.
    p, q: face coordinates, in which features keep their places as the head
      turns, ``[112, 112]``.
  """

  def __init__(self, face: SimpleNamespace, shot: SimpleNamespace):
    self.face, self.shot = face, shot
    self.pixels = np.empty((3, SIZE, SIZE), np.float32)
    # Similarity from head to image; its inverse gives u and v.
    self.cos = shot.scale * math.cos(shot.roll)
    self.sin = shot.scale * math.sin(shot.roll)
    x = (_X - shot.shift_x) / shot.scale**2
    y = (_Y - shot.shift_y) / shot.scale**2
    self.u = self.cos * x + self.sin * y
    self.v = self.cos * y - self.sin * x
    # Lengths to coverage: an edge is `blur` pixels wide.
    self.sharpness = shot.scale * SIZE / 2 / shot.blur
    # The outline is an ellipse whose width is a parabola in v (positive on the
    # entire image). The head is a dome over it: turning the head shifts the
    # middle of the face relative to the outline.
    v = self.v / face.head_height
    u = self.u / (face.head_width * (1 + v * (face.jaw + face.chin * v)))
    dome = u * u
    dome += v * v
    self.radius = np.sqrt(dome)
    np.subtract(1, dome, out=dome)
    np.maximum(dome, 0, out=dome)
    self.p = self.u - shot.yaw * dome
    self.q = self.v - shot.pitch * dome

  def paint(self, depth, colour, opacity=1.0):
    """Blends in a colour [3] where the depth inside a shape is positive."""
    self.blend(self.cover(depth), colour, opacity)

  def cover(self, depth):
    """Converts depth inside a shape to coverage in [0, 1], in place."""
    depth *= self.sharpness
    depth += 0.5
    np.maximum(depth, 0, out=depth)
    return np.minimum(depth, 1, out=depth)

  def blend(self, cover, colour, opacity=1.0, window=...):
    """Moves pixels towards a colour [3] by their coverage in [0, 1]."""
    pixels = self.pixels[window]
    change = colour[:, None, None] - pixels
    change *= cover if opacity == 1 else cover * opacity
    pixels += change

  def spot(self, colour, opacity, *ellipse):
    """Paints an ellipse, in its window only."""
    window = self.window(*ellipse)
    self.blend(self.ellipse(window, *ellipse), colour, opacity, window)

  def ellipse(self, window, x, y, width, height, slope=0.0, bend=0.0):
    """Computes the coverage of a sheared and bent ellipse in face coordinates.

    Args:
      window: the part of the canvas to work on.
      x: its middle, in p.
      y: its middle, in q.
      width: half its extent along p.
      height: half its extent along q.
      slope: how far it falls along p.
      bend: how far its ends fall, quadratic in p.
    """
    p = self.p[window[1:]] - x
    q = self.q[window[1:]] - y
    q -= p * (slope + bend * p)
    # With f = 1 - (p / width)^2 - (q / height)^2, depth is about f / |grad f|:
    # right at the edge, whatever the aspect.
    p *= p
    q *= q
    slant = p * width**-4 + q * height**-4
    slant += 1e-6
    np.sqrt(slant, out=slant)
    p *= -(width**-2)
    q *= -(height**-2)
    p += q
    p += 1
    p /= slant
    p *= 0.5
    return self.cover(p)

  def window(self, x, y, width, height, slope=0.0, bend=0.0):
    """Returns a part of the canvas that contains the ellipse, with a margin."""
    face, shot = self.face, self.shot
    dome = 1 - (x / face.head_width) ** 2 - (y / face.head_height) ** 2
    u = x + shot.yaw * max(dome, 0)
    v = y + shot.pitch * max(dome, 0)
    height += width * (abs(slope) + abs(bend) * width)
    cos, sin = abs(self.cos), abs(self.sin)
    margin = 2 / self.sharpness
    across = 1.15 * (cos * width + sin * height) + margin
    along = 1.15 * (sin * width + cos * height) + margin
    return (
      slice(None),
      _pixels(self.sin * u + self.cos * v + shot.shift_y, along),
      _pixels(self.cos * u - self.sin * v + shot.shift_x, across),
    )


def _pixels(middle: float, reach: float) -> slice:
  """Returns the rows or columns within reach of a coordinate in [-1, 1]."""
  low, high = (middle - reach + 1) * SIZE / 2, (middle + reach + 1) * SIZE / 2
  return slice(max(int(low), 0), max(int(high), 0))


def _draw(
  face: SimpleNamespace, shot: SimpleNamespace, noise: np.ndarray
) -> np.ndarray:
  """Draws the image [112, 112, 3] of a face, from back to front."""
  face.skin = _rgb(
    0.07 + face.skin_hue,
    0.25 + 0.35 * face.skin_tone,
    1.0 - 0.65 * face.skin_tone,
  )
  face.hair = _rgb(face.hair_hue, face.hair_saturation, face.hair_value)
  face.nose_y = face.eye_y + face.nose_length
  face.mouth_y = face.nose_y + face.mouth_distance
  canvas = _Canvas(face, shot)
  _paint_wall(canvas, shot)
  _paint_head(canvas, face, shot)
  _paint_cheeks(canvas, face)
  _paint_nose(canvas, face)
  _paint_mouth(canvas, face, shot)
  for side in (-1, 1):
    _paint_eye(canvas, face, shot, side)
  _paint_hair(canvas, face)
  _paint_occluder(canvas, shot)
  return _expose(canvas, shot, noise)


def _paint_wall(canvas, shot):
  level = 1 + shot.wall_gradient_x * _X + shot.wall_gradient_y * _Y
  if shot.stripes > 0:
    wave = shot.stripes_x * _X + shot.stripes_y * _Y
    wave -= np.floor(wave)
    wave -= 0.5
    level += 4 * shot.stripes * np.abs(wave)
  wall = _rgb(shot.wall_hue, shot.wall_saturation, shot.wall_value)
  np.multiply(wall[:, None, None], level, out=canvas.pixels)


def _paint_head(canvas, face, shot):
  """Paints long hair, neck, shirt, ears and the bare head, in that order."""
  across = np.abs(canvas.u)
  width = face.head_width + face.hair_width
  above = np.minimum(canvas.v, 0)
  mane = 1 - np.sqrt(np.square(across / width) + above * above)
  mane *= width
  canvas.paint(np.minimum(mane, face.hair_length - canvas.v), face.hair)
  neck = np.minimum(0.62 * face.head_width - across, canvas.v - 0.4)
  canvas.paint(neck, 0.8 * face.skin)
  shirt = _rgb(shot.shirt_hue, shot.shirt_saturation, shot.shirt_value)
  across *= 0.12
  across += canvas.v
  across -= 1.18
  canvas.paint(across, shirt)
  for side in (-1, 1):
    ear = side * face.head_width, face.ear_y, face.ear_size, 1.4 * face.ear_size
    canvas.spot(0.85 * face.skin, 1.0, *ear)
  canvas.paint((1 - canvas.radius) * face.head_width, face.skin)


def _paint_cheeks(canvas, face):
  """Paints blush and, if the face has them, beard, moustache and mole."""
  cheek = face.skin * np.array([1.0, 0.72, 0.7], np.float32)
  for side in (-1, 1):
    x = side * 0.6 * face.head_width
    canvas.spot(cheek, face.cheeks, x, face.nose_y, 0.16, 0.12)
  if face.beard > 0:
    depth = canvas.q - face.beard_y
    np.minimum(depth, 1 - canvas.radius, out=depth)
    canvas.paint(depth, 0.8 * face.hair, 0.25 + 0.6 * face.beard)
  if face.moustache > 0:
    y = 0.5 * (face.nose_y + face.mouth_y) + 0.02
    shape = 0.0, y, face.moustache_width, 0.05, 0.0, 1.0
    canvas.spot(0.8 * face.hair, 0.5 + 0.4 * face.moustache, *shape)
  if face.mole_size > 0:
    mole = face.mole_x, face.mole_y, face.mole_size, face.mole_size
    canvas.spot(0.4 * face.skin, 1.0, *mole)


def _paint_nose(canvas, face):
  shadow = face.nose_shade * face.skin
  middle = face.nose_y - 0.5 * face.nose_length
  bridge = 0.0, middle, face.nose_bridge, 0.5 * face.nose_length
  canvas.spot(shadow, 0.5, *bridge)
  canvas.spot(shadow, 0.9, 0.0, face.nose_y, face.nose_width, 0.055, 0.0, -2.0)
  tip = 0.0, face.nose_y - 0.05, 0.75 * face.nose_width, 0.06
  canvas.spot(1.1 * face.skin, 0.9, *tip)


def _paint_mouth(canvas, face, shot):
  value = 0.35 + 0.5 * float(face.skin[0])
  lips = _rgb(0.99 + face.lip_hue, face.lip_saturation, value)
  width, y, bend = face.mouth_width, face.mouth_y, -shot.smile
  opening = max(shot.mouth_opening, 0.0)
  upper = y - 0.4 * face.lip_upper - 0.5 * opening
  lower = y + 0.4 * face.lip_lower + 0.5 * opening
  canvas.spot(lips, 1.0, 0.0, upper, width, face.lip_upper, 0.0, bend)
  lower = 0.0, lower, 0.9 * width, face.lip_lower, 0.0, bend
  canvas.spot(0.85 * lips, 1.0, *lower)
  inside = 0.0, y, 0.85 * width, 0.02 + opening, 0.0, bend
  canvas.spot(_MOUTH, 1.0, *inside)


def _paint_eye(canvas, face, shot, side):
  """Paints lid, white, iris, pupil, brow and glasses of one side."""
  x, y, slope = side * face.eye_x, face.eye_y, side * face.eye_slope
  lid = (0.75 - 0.35 * face.lid) * face.skin
  height = 0.02 + 1.1 * face.eye_height
  canvas.spot(lid, 1.0, x, y - 0.02, 1.12 * face.eye_width, height, slope, 0.6)
  height = face.eye_height * (1 - shot.eye_closing)
  eye = x, y, face.eye_width, height, slope
  window = canvas.window(*eye)
  white = canvas.ellipse(window, *eye)
  canvas.blend(white, _WHITE, 1.0, window)
  iris = _rgb(face.iris_hue, 0.6, face.iris_value)
  for colour, size in ((iris, 1.0), (_PUPIL, 0.4)):
    size *= face.iris_size
    disc = x + shot.gaze_x, y + shot.gaze_y, size, size
    cover = canvas.ellipse(window, *disc)
    canvas.blend(white * cover, colour, 1.0, window)
  brow = face.skin + face.brow_darkness * (0.7 * face.hair - face.skin)
  y -= face.brow_distance + shot.brow_raise
  slope, bend = side * face.brow_slope, face.brow_bend
  arc = x, y, face.brow_length, face.brow_thickness, slope, bend
  canvas.spot(brow, 1.0, *arc)
  if face.glasses > 0:
    _paint_lens(canvas, face, x)


def _paint_lens(canvas, face, x):
  """Paints a ring: the outer ellipse without the inner one."""
  width, half = face.glasses_size, face.glasses_thickness
  height = face.glasses_shape * width
  outer = x, face.eye_y, width + half, height + half
  inner = x, face.eye_y, width - half, height - half
  window = canvas.window(*outer)
  ring = canvas.ellipse(window, *outer)
  ring -= canvas.ellipse(window, *inner)
  canvas.blend(ring, _rgb(face.glasses_hue, 0.7, 0.4), 1.0, window)


def _paint_hair(canvas, face):
  """Paints hair on the head, above a hairline that follows the turned face."""
  line = canvas.p * face.hairline_bend
  line += face.hairline_slope
  line *= canvas.p
  line -= canvas.q
  line += face.hairline_y
  depth = (1 + face.hair_volume) - canvas.radius
  canvas.paint(np.minimum(depth, line, out=depth), face.hair)


def _paint_occluder(canvas, shot):
  if shot.occluder > 0:
    x = _X - shot.occluder_x
    y = _Y - shot.occluder_y - shot.occluder_slope * x
    across, along = shot.occluder_width - np.abs(x), shot.occluder_height
    colour = _rgb(shot.occluder_hue, 0.5, shot.occluder_value)
    canvas.paint(np.minimum(across, along - np.abs(y)), colour)


def _expose(canvas, shot, noise):
  """Applies light, white balance, contrast and noise; returns uint8 HWC."""
  light = canvas.radius * canvas.radius
  light *= -shot.light_dome
  np.maximum(light, -0.6, out=light)
  light += 1 + 0.5 * shot.light_dome
  light += shot.light_x * canvas.u
  light += shot.light_y * canvas.v
  np.maximum(light, 0.15, out=light)
  balance = 1 + shot.warmth, 1 + shot.tint, 1 - shot.warmth
  gain = 255 * shot.brightness * shot.contrast * np.array(balance, np.float32)
  pixels = canvas.pixels
  pixels *= light
  pixels *= gain[:, None, None]
  pixels += noise.reshape(pixels.shape) * np.float32(shot.noise)
  pixels += 127.5 * (1 - shot.contrast) + 0.5  # Casting to uint8 truncates.
  np.clip(pixels, 0, 255, out=pixels)
  return pixels.astype(np.uint8).transpose(1, 2, 0)
