#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# OpenCV's estimateAffinePartial2D fits a rotation, a scale and a shift to pairs
# of points. Of five landmarks of a face with an error of 1.5 pixels it leaves
# one or two out in most faces, since by default it is RANSAC with a threshold
# of 3 pixels, and the aligned face moves by pixels beside the least squares
# over all five. Mirrored landmarks give a matrix like any others.
#
# Seen with opencv-python-headless 5.0.0.93, numpy 2.3.5, Python 3.12.1. One
# would expect all of five points to count, and points that fit no rotation to
# be an error.
#
# Who meets it: whoever aligns faces with the function's defaults, in training
# or in an evaluation, next to networks that were trained on least squares.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  opencv-python-headless==5.0.0.93 numpy==2.3.5
cat >"$folder/try.py" <<'PYTHON'
import sys

import cv2
import numpy as np

template = np.array([
  [38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
  [41.5493, 92.3655], [70.7299, 92.2041],
])
corners = np.array([[0, 0], [111, 0], [0, 111], [111, 111]])


def least_squares(points):
  x, y = points.T
  one, none = np.ones(5), np.zeros(5)
  equations = np.block([[x, y], [-y, x], [one, none], [none, one]]).T
  a, b, tx, ty = np.linalg.lstsq(equations, template.T.ravel())[0]
  return np.array([[a, -b, tx], [b, a, ty]])


def place(matrix, points):
  return points @ matrix[:, :2].T + matrix[:, 2]


rng = np.random.default_rng(0)
dropped, moved = [], []
for _ in range(1000):
  landmarks = 2 * (template + rng.normal(0, 1.5, (5, 2))) + 100
  matrix, inliers = cv2.estimateAffinePartial2D(landmarks, template)
  dropped.append(5 - int(inliers.sum()))
  there = 2 * corners + 100
  far = place(matrix, there) - place(least_squares(landmarks), there)
  moved.append(np.linalg.norm(far, axis=1).max())
share = np.mean(np.array(dropped) > 0)
print(f'landmarks dropped in {share:.0%} of faces, by default')
print(f'a corner moves by {np.median(moved):.1f} pixels in the median')
mirrored = [223, 0] + 2 * template * [-1, 1]
matrix, inliers = cv2.estimateAffinePartial2D(mirrored, template)
silent = matrix is not None
print(f'mirrored landmarks: {"a matrix" if silent else "an error"}')
as_described = share > 0.5 and np.median(moved) > 2 and silent
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
