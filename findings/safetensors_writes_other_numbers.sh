#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# safetensors.numpy.save_file writes an array that is not C-contiguous in the
# order of memory under the shape of the view: other numbers, no error, no
# warning. Transposed kernels come back as other kernels of the right shape. And
# it writes metadata in a random order: equal content has other bytes each time,
# and another hash.
#
# Seen with safetensors 0.8.0 (0.4.1 to 0.7.0 write the right numbers, in all of
# them the order is random), numpy 2.4.6, Python 3.11.7. Its docstring asks for
# arrays that are "contiguous and dense", which a transposed one is in Fortran's
# order. One would expect its numbers, or an error as safetensors.torch raises.
#
# Who meets it: whoever converts weights between frameworks, whose kernels have
# other orders of axes; and whoever compares files by their hashes.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat >"$folder/try.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
views = {
  'transposed': kernel.T,
  'every second': kernel[:, ::2],
  'Fortran': np.asfortranarray(kernel),
}
path = Path(sys.argv[1], 'weights.safetensors')
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter('always')
  save_file(views, path)
found = load_file(path)
for name, view in views.items():
  print(f'{name}: {view.tolist()} is read as {found[name].tolist()}')
same_shapes = all(found[n].shape == v.shape for n, v in views.items())
wrong = not any(np.array_equal(found[n], v) for n, v in views.items())
metadata = {letter: letter for letter in 'abcdefgh'}
contents = {save({'kernel': kernel}, metadata) for _ in range(20)}
print(len(caught), 'warnings;', len(contents), 'contents of 20 equal files')
as_described = wrong and same_shapes and not caught and len(contents) > 1
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
