# SPDX-License-Identifier: Apache-2.0
"""Similarity transforms from five landmarks to the template, and their fit.

A similarity is a rotation, one scale and a translation. It has four unknowns
in which the template is linear, so least squares over all five points has one
solution, without iterations and without a choice of inliers.
"""

import itertools

import numpy as np

from elasticface_jax.alignment.template import POINTS, SIZE, TEMPLATE
from elasticface_jax.errors import InputError

# Another order of the points must leave this share of the residual to be the
# one that was meant, and the order that was given at least so many pixels: a
# face in profile fits the template badly in every order.
_FAR_BETTER = 0.4
_BAD_FIT = 6.0
_ORDERS = np.array(list(itertools.permutations(range(len(POINTS)))))
_MIRRORED = [1, 0, 2, 4, 3]


class NotAligned(ValueError):
  """A face that cannot be aligned.

  Attributes:
    kind: of the problem, the same for all images that have it.
    problem: what is wrong with this one, without the image's name.
  """

  def __init__(self, kind: str, problem: str | None = None):
    self.kind = kind
    self.problem = problem or kind
    super().__init__(self.problem)


def similarity(landmarks: np.ndarray) -> np.ndarray:
  """Computes the similarity that takes five landmarks nearest to the template.

  Least squares over all five points. OpenCV's ``estimateAffinePartial2D`` is
  another estimate: by default it leaves out points farther than three pixels.

  Args:
    landmarks: x and y in pixels of the image, in the order of `POINTS`, left
      being the image's left; any float dtype, ``[5, 2]``.

  Returns:
    ``[A | t]`` with ``template ~ A @ landmark + t``, float64, ``[2, 3]``. A is
    a rotation times a scale and never mirrors: see `check`.

  Raises:
    InputError: if the shape is another, a value is not finite, or all points
      are equal.

  Examples:
    >>> matrix = similarity(2 * np.array(TEMPLATE) + [10, 20])
    >>> np.allclose(matrix, [[0.5, 0, -5], [0, 0.5, -10]])
    True
  """
  landmarks = np.asarray(landmarks, np.float64)
  if landmarks.shape != (len(POINTS), 2):
    raise InputError(
      f'landmarks have shape {landmarks.shape}, not (5, 2); give x and y of '
      f'{", ".join(POINTS)}'
    )
  if not np.isfinite(landmarks).all():
    raise InputError(f'landmarks are not finite: {landmarks.tolist()}')
  centre = landmarks.mean(0)
  # In units of their spread, so that no unknown outweighs another.
  spread = np.abs(landmarks - centre).max()
  if not spread:
    raise InputError(
      f'all five landmarks are {tuple(centre.tolist())}; give five points'
    )
  (x, y), one, none = ((landmarks - centre) / spread).T, np.ones(5), np.zeros(5)
  equations = np.block([[x, y], [-y, x], [one, none], [none, one]]).T
  (a, b, tx, ty), *_ = np.linalg.lstsq(
    equations, np.array(TEMPLATE).T.ravel(), rcond=None
  )
  matrix = np.array([[a, -b], [b, a]]) / spread
  return np.column_stack([matrix, np.array([tx, ty]) - matrix @ centre])


def residual(landmarks: np.ndarray) -> float:
  """Computes how far landmarks lie from the template once they are fitted.

  Args:
    landmarks: as for `similarity`.

  Returns:
    Root of the mean squared distance, in pixels of the aligned face: about 2
    for a face from the front, up to 15 in profile.

  Raises:
    InputError: as `similarity`.

  Examples:
    >>> residual(3 * np.array(TEMPLATE)) < 1e-9
    True
  """
  landmarks = np.asarray(landmarks, np.float64)
  matrix = similarity(landmarks)
  fitted = landmarks @ matrix[:, :2].T + matrix[:, 2]
  return float(np.sqrt(((fitted - TEMPLATE) ** 2).sum(1).mean()))


def face_size(matrix: np.ndarray) -> float:
  """Computes the side of the square of the image that becomes the face.

  Args:
    matrix: from `similarity`.

  Returns:
    The side, in pixels of the image.

  Examples:
    >>> round(face_size(similarity(2 * np.array(TEMPLATE))), 6)
    224.0
  """
  return SIZE / float(np.hypot(*matrix[:, 0]))


def check(
  landmarks: np.ndarray, size: tuple[int, int] | None, min_face: float = 0
) -> None:
  """Checks that landmarks are those of a face that can be aligned.

  No transform fails for points that are in another order or mirrored: it
  turns the face upside down, or squeezes it.

  Args:
    landmarks: as for `similarity`.
    size: width and height of the image; None if it is not known.
    min_face: least `face_size`, in pixels.

  Raises:
    NotAligned: if a point is not finite, all are equal, they fit the template
      far better in another order, the face is too small, or it lies outside
      of the image.

  Examples:
    >>> try:
    ...   check(np.array(TEMPLATE)[[1, 0, 2, 4, 3]], (112, 112))
    ... except NotAligned as error:
    ...   print(error.kind)
    the five points fit the mirror image of the template
  """
  try:
    matrix = similarity(landmarks)
  except InputError as error:
    raise NotAligned(
      'the five points are not finite, or all equal', str(error)
    ) from error
  landmarks = np.asarray(landmarks, np.float64)
  side = face_size(matrix)
  if side < min_face or not np.isfinite(side):
    raise NotAligned(
      'the face is too small',
      f'the face is too small: {side:.1f} pixels become {SIZE}, and at least '
      f'{min_face:g} are asked for',
    )
  _check_order(landmarks)
  if size is not None:
    beyond = np.maximum(-landmarks, landmarks - (np.array(size) - 1)).max()
    if beyond > side / 2:
      point = landmarks[
        np.maximum(-landmarks, landmarks - (np.array(size) - 1)).max(1).argmax()
      ]
      raise NotAligned(
        'the face lies outside of the image',
        f'the face lies outside of the image: a point is at '
        f'({point[0]:.0f}, {point[1]:.0f}) of {size[0]}x{size[1]}',
      )


def _check_order(landmarks: np.ndarray) -> None:
  # Least squares in complex numbers, for all orders at once: the residual is
  # |t|^2 - |<p, t>|^2 / |p|^2, of centred points p and template t.
  p, t = (
    (points - points.mean(0)) @ [1, 1j]
    for points in (landmarks, np.array(TEMPLATE))
  )
  inner = np.abs(p.conj()[_ORDERS] @ t) ** 2 / (np.abs(p) ** 2).sum()
  left = np.maximum((np.abs(t) ** 2).sum() - inner, 0)
  distances = np.sqrt(left / len(t))  # The first order is the given one.
  best = distances.argmin()
  if distances[0] < _BAD_FIT or distances[best] > _FAR_BETTER * distances[0]:
    return
  asked = f'give them as {", ".join(POINTS)}, as seen in the image'
  fits = (
    f'they are {distances[0]:.0f} pixels from the template, and '
    f'{distances[best]:.0f} from '
  )
  if _ORDERS[best].tolist() == _MIRRORED:
    kind = 'the five points fit the mirror image of the template'
    raise NotAligned(kind, f'{kind}: {fits}its mirror image; {asked}')
  order = ', '.join(str(1 + place) for place in _ORDERS[best])
  kind = 'the five points fit the template in another order'
  raise NotAligned(kind, f'{kind}: {fits}it in the order {order}; {asked}')
