# SPDX-License-Identifier: Apache-2.0
"""Template of five points to which faces of 112x112 are aligned."""

import numpy as np

SIZE = 112  # Height and width of an aligned face, in pixels.
# Names of the points, in their order; left is the image's left.
POINTS = (
  'left eye',
  'right eye',
  'nose',
  'left mouth corner',
  'right mouth corner',
)
# x and y in pixels of the aligned face; (0, 0) is the centre of the first
# pixel. Published with insightface, and what all of its training sets are
# aligned to.
TEMPLATE = (
  (38.2946, 51.6963),
  (73.5318, 51.5014),
  (56.0252, 71.7366),
  (41.5493, 92.3655),
  (70.7299, 92.2041),
)

# Points of the usual 68 that stand for each of the five: an eye is the mean of
# its two corners.
_OF_68 = ((36, 39), (42, 45), (30,), (48,), (54,))


def from_68(points: np.ndarray) -> np.ndarray:
  """Reduces the 68 points of iBUG's annotation to the five of the template.

  Args:
    points: x and y, any float dtype, ``[..., 68, 2]``.

  Returns:
    Eyes (each the mean of its two corners), nose and mouth corners, float64,
    ``[..., 5, 2]``.

  Examples:
    >>> from_68(np.arange(136.0).reshape(68, 2))[:, 0].tolist()
    [75.0, 87.0, 60.0, 96.0, 108.0]
  """
  points = np.asarray(points, np.float64)
  return np.stack(
    [points[..., list(group), :].mean(-2) for group in _OF_68], axis=-2
  )
