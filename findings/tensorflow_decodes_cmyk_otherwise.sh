#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A JPEG in CMYK is another image in every second library: TensorFlow and Pillow
# decode it to the same RGB, OpenCV and simplejpeg to another, a grey level away
# in almost all values. Of JPEGs in YCbCr, with which all other JPEGs here are
# written, all four agree to the last bit (TensorFlow if it is asked for
# INTEGER_ACCURATE).
#
# Seen with tensorflow-cpu 2.21.0, pillow 12.0.0, opencv-python-headless
# 4.11.0.86, simplejpeg 1.9.0, Python 3.12.1. One would expect the agreement of
# one kind of JPEG to hold for the other.
#
# Who meets it: whoever compares pixels, or the hashes of pixels, between two
# pipelines over photographs from print.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-cpu==2.21.0 \
  pillow==12.0.0 opencv-python-headless==4.11.0.86 simplejpeg==1.9.0 \
  numpy==2.3.5
cat >"$folder/try.py" <<'PYTHON'
import io
import itertools
import sys

import cv2
import numpy as np
import simplejpeg
import tensorflow as tf
from PIL import Image

smooth = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
image = Image.fromarray(smooth).resize((112, 112))
differ = {}
for mode in ('RGB', 'CMYK'):
  out = io.BytesIO()
  image.convert(mode).save(out, 'jpeg', quality=95)
  encoded = out.getvalue()
  decoded = {
    'TensorFlow': tf.io.decode_jpeg(
      encoded, 3, dct_method='INTEGER_ACCURATE'
    ).numpy(),
    'Pillow': np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')),
    'OpenCV': cv2.imdecode(np.frombuffer(encoded, np.uint8), 1)[..., ::-1],
    'simplejpeg': simplejpeg.decode_jpeg(encoded, 'RGB'),
  }
  for (a, x), (b, y) in itertools.combinations(decoded.items(), 2):
    far = np.abs(x.astype(int) - y)
    differ[mode, a, b] = np.mean(far > 0), far.max()
    print(f'{mode}: {a} and {b}: {np.mean(far > 0):.0%} differ, by {far.max()}')
alike = {('TensorFlow', 'Pillow'), ('OpenCV', 'simplejpeg')}
as_described = all(
  most == (0 if mode == 'RGB' or (a, b) in alike else 1)
  and (most == 0 or share > 0.9)
  for (mode, a, b), (share, most) in differ.items()
)
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/try.py"
