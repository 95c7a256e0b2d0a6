# SPDX-License-Identifier: Apache-2.0
"""Does a face that is aligned by points one pixel off verify as well?

Takes a pair set of aligned faces, whose points are those of the template, makes
photographs of them with faces of twice the size, moves each point by a distance
in a random direction, aligns the faces by the moved points, and compares the
accuracy of verification. The photographs are larger since an aligned face that
is resampled at its own size loses sharpness even where it is only shifted by
half a pixel, which costs more than the error that is asked about.

    python checks/alignment_accuracy.py --pairs lfw.bin --checkpoint runs/q

Exits with 1 if an error of one pixel costs more than half a point.
"""

import argparse
import sys

import numpy as np
from PIL import Image

from elasticface_jax import alignment, data, evaluation, runtime
from elasticface_jax.weights import open_weights

_LIMIT = 0.5  # In points of accuracy, that is per cent.
_TIMES = 2  # Size of the face in a photograph.


def main(argv: list[str] | None = None) -> int:
  """Prints the accuracy for each error, and a verdict."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--pairs', required=True, help='pair set, .bin or .npz')
  parser.add_argument('--checkpoint', required=True, help='run folder or .pth')
  parser.add_argument('--draws', type=int, default=3)
  parser.add_argument('--pixels', type=float, nargs='*', default=[1, 2, 4])
  args = parser.parse_args(argv)
  runtime.check_platform()
  if 1 not in args.pixels:
    parser.error('--pixels must have 1, which the verdict is about')
  pairs, weights = data.read_pairs(args.pairs), open_weights(args.checkpoint)

  def accuracy(images):
    result = evaluation.verify(weights.embed(images), pairs.same)
    return 100 * result.accuracy, 100 * result.accuracy_std

  given, deviation = accuracy(pairs.images)
  print(f'as given: {given:.2f} ± {deviation:.2f} %', flush=True)
  lost = {}
  for pixels in args.pixels:
    rng = np.random.default_rng(0)
    found = [
      accuracy(moved(pairs.images, pixels, rng))[0] for _ in range(args.draws)
    ]
    lost[pixels] = given - np.mean(found)
    draws = ', '.join(f'{one:.2f}' for one in found)
    print(
      f'{pixels:g} pixels: {np.mean(found):.2f} % ({draws}), '
      f'{-lost[pixels]:+.2f} points',
      flush=True,
    )
  passed = lost[1] <= _LIMIT
  print('PASSED' if passed else 'FAILED')
  return int(not passed)


def moved(
  images: np.ndarray, pixels: float, rng: np.random.Generator
) -> np.ndarray:
  """Aligns faces again, in larger photographs, by points with an error.

  Args:
    images: aligned faces, uint8, ``[n, 112, 112, 3]``.
    pixels: distance of each point from its place, in pixels of the photograph.
    rng: draws the directions.

  Returns:
    The faces, uint8, ``[n, 112, 112, 3]``.
  """
  size = images.shape[1]
  # Pixels are counted from the centre of the first one.
  points = (np.array(alignment.TEMPLATE) + 0.5) * _TIMES - 0.5
  angles = rng.uniform(0, 2 * np.pi, (len(images), len(points)))
  errors = pixels * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
  faces = np.empty_like(images)
  for place, (image, error) in enumerate(zip(images, errors, strict=True)):
    photograph = Image.fromarray(image).transform(
      (size * _TIMES, size * _TIMES),
      Image.Transform.AFFINE,
      (1 / _TIMES, 0, 0, 0, 1 / _TIMES, 0),
      Image.Resampling.BICUBIC,
    )
    faces[place] = alignment.align(np.asarray(photograph), points + error)
  return faces


if __name__ == '__main__':
  sys.exit(main())
