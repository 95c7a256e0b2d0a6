#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# OpenCV's warpAffine with INTER_LINEAR gives other pixels since version 5: 4.12
# interpolates on a grid of 1/32 pixel, 5.0 between the exact places. Of a smooth
# image 3 % of the values of 4.12 are more than the rounding away from the exact
# ones, of noise a third, by up to 6 grey levels; none of those of 5.0 are.
#
# Seen with opencv-python-headless 4.12.0.88 and 5.0.0.93, numpy 2.2.6, Python
# 3.12.1. One would expect bilinear interpolation to be one thing.
#
# Who meets it: whoever compares aligned faces, or embeddings of them, that two
# machines have made with `pip install opencv-python`.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/warp.py" <<'PYTHON'
import sys

import cv2
import numpy as np

noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
smooth = cv2.GaussianBlur(noise, (0, 0), 4)
smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
matrix = cv2.getRotationMatrix2D((100, 100), 17, 0.71)
warped = [cv2.warpAffine(x, matrix, (112, 112)) for x in (smooth, noise)]
np.savez(sys.argv[1], smooth=smooth, noise=noise, matrix=matrix, warped=warped)
PYTHON
for version in 4.12.0.88 5.0.0.93; do
  "${PYTHON:-python3}" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet \
    "opencv-python-headless==$version" numpy==2.2.6
  "$folder/$version/bin/python" "$folder/warp.py" "$folder/$version.npz"
done
cat >"$folder/compare.py" <<'PYTHON'
import sys

import numpy as np

old, new = (np.load(path) for path in sys.argv[1:])
assert all((old[name] == new[name]).all() for name in ('noise', 'matrix'))
assert (old['smooth'] == new['smooth']).all()
inverse = np.linalg.inv(np.vstack([old['matrix'], [0, 0, 1]]))
y, x = np.mgrid[:112, :112]
places = np.stack([x, y, np.ones_like(x)], -1) @ inverse[:2].T
# Beyond the image there is black.
low = np.floor(places).astype(int)
part = places - low


def exact(image):
  padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))
  total = 0
  for dy in (0, 1):
    for dx in (0, 1):
      rows = np.clip(low[..., 1] + dy + 1, 0, 201)
      columns = np.clip(low[..., 0] + dx + 1, 0, 201)
      weight = np.abs(1 - dx - part[..., 0]) * np.abs(1 - dy - part[..., 1])
      total = total + weight[..., None] * padded[rows, columns]
  return total


shares = []
for number, name in enumerate(('smooth', 'noise')):
  for version, arrays in (('4.12', old), ('5.0', new)):
    far = np.abs(arrays['warped'][number] - exact(arrays[name]))
    # Beyond half a grey level it is not the rounding.
    shares.append(np.mean(far > 0.51))
    print(f'{name}, {version}: {shares[-1]:.1%} are not the exact, by {far.max():.1f}')
as_described = shares[0] > 0.01 and shares[2] > 0.2
as_described &= max(shares[1], shares[3]) < 0.01
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
"$folder/5.0.0.93/bin/python" "$folder/compare.py" \
  "$folder/4.12.0.88.npz" "$folder/5.0.0.93.npz"
